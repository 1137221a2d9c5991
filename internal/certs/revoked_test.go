package certs

import (
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ocsp"

	"github.com/egressd/egressd/internal/testbed"
)

func crlOf(t testing.TB, ca *testbed.CA, edit func(*x509.RevocationList), serials ...*big.Int) []byte {
	t.Helper()
	list := &x509.RevocationList{Number: big.NewInt(1), ThisUpdate: time.Now().Add(-time.Hour), NextUpdate: time.Now().Add(time.Hour)}
	for _, n := range serials {
		list.RevokedCertificateEntries = append(list.RevokedCertificateEntries, x509.RevocationListEntry{SerialNumber: n, RevocationTime: time.Now().Add(-2 * time.Hour)})
	}
	if edit != nil {
		edit(list)
	}
	der, err := x509.CreateRevocationList(rand.Reader, list, ca.Cert, ca.Key)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func TestAttack_D08_revocation_lists(t *testing.T) {
	root := testbed.NewCA(t)
	mid := root.Intermediate(t, nil)
	good, bad := mid.Leaf(t, "good.test"), mid.Leaf(t, "good.test")
	chain := func(c *x509.Certificate) []*x509.Certificate { return []*x509.Certificate{c, mid.Cert, root.Cert} }
	dir := t.TempDir()
	file := func(data []byte) string {
		f, err := os.CreateTemp(dir, "*.crl")
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = f.Close() }()
		if _, err := f.Write(data); err != nil {
			t.Fatal(err)
		}
		return f.Name()
	}
	pemOf := func(der []byte) []byte { return pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: der}) }
	other := testbed.NewCA(t) // says that it is mid
	forger := &testbed.CA{Cert: mid.Cert, Key: other.Key}
	for name, tc := range map[string]struct {
		files     []string
		good, bad bool // revoked
	}{
		"none":                     {nil, false, false},
		"DER":                      {[]string{file(crlOf(t, mid, nil, bad.Leaf.SerialNumber))}, false, true},
		"PEM, two lists":           {[]string{file(append(pemOf(crlOf(t, root, nil)), pemOf(crlOf(t, mid, nil, big.NewInt(1), bad.Leaf.SerialNumber))...))}, false, true},
		"over":                     {[]string{file(crlOf(t, mid, func(l *x509.RevocationList) { l.NextUpdate = time.Now().Add(-time.Minute) }, bad.Leaf.SerialNumber))}, false, true},
		"intermediate":             {[]string{file(crlOf(t, root, nil, mid.Cert.SerialNumber))}, true, true},
		"serial of another issuer": {[]string{file(crlOf(t, root, nil, bad.Leaf.SerialNumber))}, false, false},
		"signed by another key":    {[]string{file(forged(t, forger, bad.Leaf.SerialNumber))}, false, false},
	} {
		r, err := LoadCRLs(tc.files)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		for range 2 { // the second time from memory
			if err := r.Check(chain(good.Leaf)); errors.Is(err, ErrRevoked) != tc.good {
				t.Errorf("D08 %s: good is %v", name, err)
			}
			if err := r.Check(chain(bad.Leaf)); errors.Is(err, ErrRevoked) != tc.bad {
				t.Errorf("D08 %s: bad is %v", name, err)
			}
		}
	}
	for name, data := range map[string][]byte{
		"empty": nil, "a certificate": mid.PEM(), "cut off": crlOf(t, mid, nil)[:40], "PEM cut off": pemOf(crlOf(t, mid, nil)[:40]),
		"a delta": crlOf(t, mid, func(l *x509.RevocationList) {
			l.ExtraExtensions = []pkix.Extension{{Id: []int{2, 5, 29, 27}, Critical: true, Value: []byte{2, 1, 1}}}
		}),
	} {
		f := file(data)
		if r, err := LoadCRLs([]string{f}); err == nil || !strings.Contains(err.Error(), f) {
			t.Errorf("D08 %s: %v, %v", name, r, err)
		}
	}
	if _, err := LoadCRLs([]string{filepath.Join(dir, "none")}); err == nil {
		t.Error("D08 a file that does not exist")
	}
	if err := (*Revocations)(nil).Check(chain(bad.Leaf)); err != nil {
		t.Error(err)
	}
}

// forged is a list in ca's name, signed by a key that is not ca's.
func forged(t testing.TB, ca *testbed.CA, serial *big.Int) []byte {
	t.Helper()
	tmpl := *ca.Cert
	tmpl.PublicKey = ca.Key.Public()
	list := &x509.RevocationList{Number: big.NewInt(1), ThisUpdate: time.Now().Add(-time.Hour), NextUpdate: time.Now().Add(time.Hour),
		RevokedCertificateEntries: []x509.RevocationListEntry{{SerialNumber: serial, RevocationTime: time.Now()}}}
	der, err := x509.CreateRevocationList(rand.Reader, list, &tmpl, ca.Key)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func TestAttack_D08_stapled_responses(t *testing.T) {
	ca, other := testbed.NewCA(t), testbed.NewCA(t)
	plain := ca.Leaf(t, "good.test").Leaf
	demands := func(value ...byte) *x509.Certificate {
		return ca.Issue(t, nil, &x509.Certificate{SerialNumber: big.NewInt(77), DNSNames: []string{"good.test"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
			ExtraExtensions: []pkix.Extension{{Id: mustStaple, Value: value}}}).Leaf
	}
	must := demands(0x30, 3, 2, 1, statusRequest)
	staple := func(status int, of *x509.Certificate, by *testbed.CA, from, until time.Duration) []byte {
		r := ocsp.Response{Status: status, SerialNumber: of.SerialNumber, ThisUpdate: time.Now().Add(from), NextUpdate: time.Now().Add(until), RevokedAt: time.Now().Add(-time.Hour)}
		der, err := ocsp.CreateResponse(by.Cert, by.Cert, r, by.Key)
		if err != nil {
			t.Fatal(err)
		}
		return der
	}
	h := time.Hour
	for name, tc := range map[string]struct {
		leaf   *x509.Certificate
		staple []byte
		want   error
	}{
		"none":                          {plain, nil, nil},
		"good":                          {plain, staple(ocsp.Good, plain, ca, -h, h), nil},
		"revoked":                       {plain, staple(ocsp.Revoked, plain, ca, -h, h), ErrRevoked},
		"revoked, over":                 {plain, staple(ocsp.Revoked, plain, ca, -2*h, -h), ErrRevoked},
		"revoked, says another":         {plain, staple(ocsp.Revoked, plain, other, -h, h), nil},
		"unknown":                       {plain, staple(ocsp.Unknown, plain, ca, -h, h), nil},
		"noise":                         {plain, []byte{0x30, 0x82, 1}, nil},
		"demanded, none":                {must, nil, ErrNoStaple},
		"demanded, good":                {must, staple(ocsp.Good, must, ca, -h, h), nil},
		"demanded, over":                {must, staple(ocsp.Good, must, ca, -2*h, -h), ErrNoStaple},
		"demanded, not yet":             {must, staple(ocsp.Good, must, ca, h, 2*h), ErrNoStaple},
		"demanded, of another":          {must, staple(ocsp.Good, plain, ca, -h, h), ErrNoStaple},
		"demanded, noise":               {must, []byte("noise"), ErrNoStaple},
		"demanded, unknown":             {must, staple(ocsp.Unknown, must, ca, -h, h), ErrNoStaple},
		"another feature":               {demands(0x30, 3, 2, 1, 17), nil, nil},
		"a feature that cannot be read": {demands(0x30, 9), nil, ErrNoStaple},
	} {
		if err := CheckStaple(tc.staple, tc.leaf, ca.Cert, time.Now()); !errors.Is(err, tc.want) || tc.want == nil && err != nil {
			t.Errorf("D08 %s: %v, want %v", name, err, tc.want)
		}
	}
}
