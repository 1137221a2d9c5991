package certs

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"net/netip"
	"sync/atomic"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"
	"golang.org/x/sync/singleflight"
)

const (
	// OwnValidity is the life of a CA that LoadOrCreate makes.
	OwnValidity = 365 * 24 * time.Hour
	// EphemeralValidity is the life of a CA that NewEphemeral makes.
	EphemeralValidity = 30 * 24 * time.Hour
	// RenewBefore is how long before NotAfter an operator should be told.
	RenewBefore = 30 * 24 * time.Hour

	defaultLeafTTL   = 24 * time.Hour
	minLeafTTL       = time.Minute
	maxLeafTTL       = 7 * 24 * time.Hour
	defaultCacheSize = 4096 // leaves; about 1.5 KiB each
	backdate         = 5 * time.Minute
)

// Options of an Authority; the zero value is good.
type Options struct {
	// LeafTTL is the life of a leaf, 24 h if zero, between a minute and seven days.
	LeafTTL time.Duration
	// CacheSize bounds how many leaves are kept, 4096 if zero.
	CacheSize int
}

func (o Options) withDefaults() (Options, error) {
	if o.LeafTTL == 0 {
		o.LeafTTL = defaultLeafTTL
	}
	if o.CacheSize == 0 {
		o.CacheSize = defaultCacheSize
	}
	if o.LeafTTL < minLeafTTL || o.LeafTTL > maxLeafTTL {
		return o, fmt.Errorf("leaf ttl %v: must be between %v and %v", o.LeafTTL, minLeafTTL, maxLeafTTL)
	}
	if o.CacheSize < 1 {
		return o, fmt.Errorf("leaf cache size %d: must be positive", o.CacheSize)
	}
	return o, nil
}

// Authority signs leaves. Safe for concurrent use.
type Authority struct {
	cert     *x509.Certificate
	chain    []*x509.Certificate // cert and what came with it in its file
	key      crypto.Signer
	leafKey  *ecdsa.PrivateKey
	leafSKI  []byte
	ttl      time.Duration
	leaves   *lru.Cache[string, *leaf]
	flights  singleflight.Group
	mintings atomic.Uint64
}

// leaf is a certificate and the span of wall-clock time, Unix seconds, that it is good for.
type leaf struct {
	cert        *tls.Certificate
	from, until int64
}

func (l *leaf) good(now int64) bool { return now >= l.from && now < l.until }

// NewEphemeral makes a CA that exists only in this process.
func NewEphemeral(o Options) (*Authority, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("making a ca key: %w", err)
	}
	cert, err := selfSign(key, EphemeralValidity)
	if err != nil {
		return nil, err
	}
	return newAuthority([]*x509.Certificate{cert}, key, o)
}

func newAuthority(chain []*x509.Certificate, key crypto.Signer, o Options) (*Authority, error) {
	o, err := o.withDefaults()
	if err != nil {
		return nil, err
	}
	leafKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("making the leaf key: %w", err)
	}
	ski, err := keyID(leafKey.Public())
	if err != nil {
		return nil, err
	}
	leaves, err := lru.New[string, *leaf](o.CacheSize)
	if err != nil {
		return nil, fmt.Errorf("leaf cache: %w", err)
	}
	return &Authority{cert: chain[0], chain: chain, key: key, leafKey: leafKey, leafSKI: ski, ttl: o.LeafTTL, leaves: leaves}, nil
}

// Cert is the CA's certificate. The caller must not change it.
func (a *Authority) Cert() *x509.Certificate { return a.cert }

// NotAfter is when the CA ends.
func (a *Authority) NotAfter() time.Time { return a.cert.NotAfter }

// CertPEM is the CA's certificate and what stood behind it in its file, for clients to
// trust.
func (a *Authority) CertPEM() []byte {
	var b bytes.Buffer
	for _, c := range a.chain {
		b.Write(encodeCert(c.Raw))
	}
	return b.Bytes()
}

// Minted is how many leaves were signed since start.
func (a *Authority) Minted() uint64 { return a.mintings.Load() }

// Has says whether Leaf would give host a certificate without signing one.
func (a *Authority) Has(host string) bool {
	l, ok := a.leaves.Peek(host)
	return ok && l.good(time.Now().Unix())
}

// Leaf returns a certificate for host, which is an LDH name or an address in canonical
// form (ErrBadHost otherwise), with exactly that as its one SAN. The certificate is
// shared and must not be changed. Concurrent first calls for one host mint once.
func (a *Authority) Leaf(host string) (*tls.Certificate, error) {
	if l, ok := a.leaves.Get(host); ok && l.good(time.Now().Unix()) {
		return l.cert, nil
	}
	name, addr, err := checkHost(host)
	if err != nil {
		return nil, err
	}
	v, err, _ := a.flights.Do(name, func() (any, error) {
		if l, ok := a.leaves.Get(name); ok && l.good(time.Now().Unix()) {
			return l.cert, nil // another flight landed since
		}
		l, err := a.mint(name, addr)
		if err != nil {
			return nil, err
		}
		a.leaves.Add(name, l)
		return l.cert, nil
	})
	if err != nil {
		return nil, err
	}
	return v.(*tls.Certificate), nil
}

// mint signs a leaf for a checked name.
func (a *Authority) mint(name string, addr netip.Addr) (*leaf, error) {
	now := time.Now()
	from, to := now.Add(-backdate), now.Add(a.ttl)
	if to.After(a.cert.NotAfter) {
		to = a.cert.NotAfter
	}
	left := to.Sub(now)
	if left <= 0 {
		return nil, fmt.Errorf("the interception ca ended on %s", a.cert.NotAfter.UTC().Format(time.DateOnly))
	}
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		SerialNumber: serial,
		// No common name: it is limited to 64 bytes, and names belong in the SAN.
		Subject:      pkix.Name{Organization: []string{"egressd"}},
		NotBefore:    from,
		NotAfter:     to,
		KeyUsage:     x509.KeyUsageDigitalSignature,
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		SubjectKeyId: a.leafSKI,
		// Says that it is no CA, instead of leaving it open.
		BasicConstraintsValid: true,
	}
	if addr.IsValid() {
		template.IPAddresses = []net.IP{addr.AsSlice()}
	} else {
		template.DNSNames = []string{name}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, a.leafKey.Public(), a.key)
	if err != nil {
		return nil, fmt.Errorf("signing a leaf: %w", err)
	}
	a.mintings.Add(1)
	c := &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: a.leafKey}
	for _, ca := range a.chain {
		if !bytes.Equal(ca.RawSubject, ca.RawIssuer) { // clients have the root, or do not trust it
			c.Certificate = append(c.Certificate, ca.Raw)
		}
	}
	return &leaf{cert: c, from: from.Unix(), until: to.Add(-left / 4).Unix()}, nil
}

// selfSign makes the certificate of a CA of our own.
func selfSign(key crypto.Signer, validity time.Duration) (*x509.Certificate, error) {
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	ski, err := keyID(key.Public())
	if err != nil {
		return nil, err
	}
	now := time.Now()
	template := &x509.Certificate{
		SerialNumber: serial,
		// Distinct per CA, so that an old and a new one can be told apart in a trust store.
		Subject:               pkix.Name{Organization: []string{"egressd"}, CommonName: fmt.Sprintf("egressd interception CA %x", ski[:4])},
		NotBefore:             now.Add(-time.Hour),
		NotAfter:              now.Add(validity),
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		BasicConstraintsValid: true,
		IsCA:                  true,
		MaxPathLenZero:        true,
		SubjectKeyId:          ski,
		AuthorityKeyId:        ski,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, fmt.Errorf("signing the ca certificate: %w", err)
	}
	return x509.ParseCertificate(der)
}

// newSerial is 128 random bits (RFC 5280 section 4.1.2.2 allows 159), never zero.
func newSerial() (*big.Int, error) {
	limit := new(big.Int).Lsh(big.NewInt(1), 128)
	n, err := rand.Int(rand.Reader, limit)
	if err != nil {
		return nil, fmt.Errorf("making a serial number: %w", err)
	}
	return n.Add(n, big.NewInt(1)), nil
}

// keyID is method 1 of RFC 7093 section 2.
func keyID(pub crypto.PublicKey) ([]byte, error) {
	spki, err := x509.MarshalPKIXPublicKey(pub)
	if err != nil {
		return nil, fmt.Errorf("encoding a public key: %w", err)
	}
	sum := sha256.Sum256(spki)
	return sum[:20], nil
}

func encodeCert(der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}
