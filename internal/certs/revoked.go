package certs

import (
	"bytes"
	"crypto/x509"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"fmt"
	"sync"
	"time"

	"golang.org/x/crypto/ocsp"
)

// Errors of Revocations.Check and CheckStaple.
var (
	ErrRevoked  = errors.New("certificate is revoked")
	ErrNoStaple = errors.New("certificate demands a stapled OCSP response and there is no good one")
)

// Revocations are certificate revocation lists (RFC 5280 section 5) that the operator has
// named. Nothing is fetched. Safe for concurrent use; nil lists nothing.
type Revocations struct {
	lists map[string][]*crl // by the issuer's name, as DER
}

// crl is one list. What it says counts for certificates of an issuer whose key has signed it.
type crl struct {
	list   *x509.RevocationList
	serial map[string]struct{} // big-endian

	mu     sync.Mutex
	signed map[string]bool // by the issuer's SubjectPublicKeyInfo
}

// maxIssuers bounds what one list remembers of keys: a name has few.
const maxIssuers = 64

// LoadCRLs reads lists, PEM or DER. A file without one, or with one that does not parse, is
// an error that names it. A list that has a delta's or an indirect list's critical extension
// is refused. One whose NextUpdate is over still counts: a revocation is not taken back.
func LoadCRLs(files []string) (*Revocations, error) {
	r := &Revocations{lists: map[string][]*crl{}}
	for _, f := range files {
		data, err := readFile(f)
		if err != nil {
			return nil, err // the path is in it
		}
		if err := r.add(data); err != nil {
			return nil, fmt.Errorf("%s: %w", f, err)
		}
	}
	return r, nil
}

func (r *Revocations) add(data []byte) error {
	ders := [][]byte{data}
	if bytes.Contains(data, []byte("-----BEGIN ")) {
		ders = nil
		for block, rest := pem.Decode(data); block != nil; block, rest = pem.Decode(rest) {
			if block.Type == "X509 CRL" {
				ders = append(ders, block.Bytes)
			}
		}
	}
	if len(ders) == 0 {
		return errors.New("no revocation list in it")
	}
	for _, der := range ders {
		list, err := x509.ParseRevocationList(der)
		if err != nil {
			return errors.New("revocation list does not parse: check that the file is whole")
		}
		for _, e := range list.Extensions {
			if e.Critical {
				return fmt.Errorf("revocation list has a critical extension that is not known: %v", e.Id)
			}
		}
		c := &crl{list: list, serial: make(map[string]struct{}, len(list.RevokedCertificateEntries)), signed: map[string]bool{}}
		for _, e := range list.RevokedCertificateEntries {
			c.serial[string(e.SerialNumber.Bytes())] = struct{}{}
		}
		r.lists[string(list.RawIssuer)] = append(r.lists[string(list.RawIssuer)], c)
	}
	return nil
}

// Check asks the lists about each certificate of a verified chain but its root. ErrRevoked.
func (r *Revocations) Check(chain []*x509.Certificate) error {
	if r == nil || len(r.lists) == 0 {
		return nil
	}
	for i := 0; i+1 < len(chain); i++ {
		c, issuer := chain[i], chain[i+1]
		for _, l := range r.lists[string(c.RawIssuer)] {
			if _, listed := l.serial[string(c.SerialNumber.Bytes())]; listed && l.signedBy(issuer) {
				return ErrRevoked
			}
		}
	}
	return nil
}

// signedBy verifies a signature once for each key.
func (l *crl) signedBy(issuer *x509.Certificate) bool {
	key := string(issuer.RawSubjectPublicKeyInfo)
	l.mu.Lock()
	defer l.mu.Unlock()
	ok, known := l.signed[key]
	if !known {
		ok = l.list.CheckSignatureFrom(issuer) == nil
		if len(l.signed) < maxIssuers {
			l.signed[key] = ok
		}
	}
	return ok
}

// mustStaple is the TLS feature extension (RFC 7633), statusRequest what it lists.
var mustStaple = asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 1, 24}

const statusRequest = 5

// CheckStaple looks at the OCSP response that came in a handshake (RFC 6066 section 8), nil
// if none did. ErrRevoked if its signer says so, however old it is; ErrNoStaple if the
// leaf demands one and there is none that is good now. Any other one says nothing.
func CheckStaple(response []byte, leaf, issuer *x509.Certificate, now time.Time) error {
	good := false
	if len(response) > 0 {
		r, err := ocsp.ParseResponseForCert(response, leaf, issuer)
		if err == nil && r.Status == ocsp.Revoked {
			return ErrRevoked
		}
		good = err == nil && r.Status == ocsp.Good && !now.Before(r.ThisUpdate) && (r.NextUpdate.IsZero() || now.Before(r.NextUpdate))
	}
	if !good && demandsStaple(leaf) {
		return ErrNoStaple
	}
	return nil
}

func demandsStaple(c *x509.Certificate) bool {
	for _, e := range c.Extensions {
		if !e.Id.Equal(mustStaple) {
			continue
		}
		var features []int
		if rest, err := asn1.Unmarshal(e.Value, &features); err != nil || len(rest) > 0 {
			return true // nobody knows what it demands
		}
		for _, f := range features {
			if f == statusRequest {
				return true
			}
		}
	}
	return false
}
