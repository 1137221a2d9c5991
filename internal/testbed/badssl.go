package testbed

import (
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"io"
	"math/big"
	"testing"
	"time"
)

// BadTLS is one way in which an origin fails to prove who it is. A client that asks
// for Host and trusts only the CA must refuse it without sending an application byte.
type BadTLS struct {
	Name string
	Host string
	Cert tls.Certificate
	// MaxVersion is the highest TLS version the origin speaks, 0 for no limit.
	MaxVersion uint16
	// LibraryAccepts: crypto/tls with its default settings lets this one through, so
	// the code under test needs a check of its own.
	LibraryAccepts bool
}

// Options are the origin's options for this case.
func (b BadTLS) Options() OriginOptions {
	o := OriginOptions{Names: []string{b.Host}, Certificate: &b.Cert, MaxVersion: b.MaxVersion}
	if b.MaxVersion != 0 {
		o.MinVersion = tls.VersionTLS10
	}
	return o
}

// BadTLSMatrix is the D08 matrix of security.md for host: each case is signed by ca,
// as far as a signature is part of the case.
func BadTLSMatrix(t testing.TB, ca *CA, host string) []BadTLS {
	t.Helper()
	return append(badDates(t, ca, host), append(badChains(t, ca, host), badKeys(t, ca, host)...)...)
}

func badDates(t testing.TB, ca *CA, host string) []BadTLS {
	edited := func(edit func(*x509.Certificate)) tls.Certificate {
		tmpl := leafTemplate(host)
		edit(tmpl)
		return ca.Issue(t, nil, tmpl)
	}
	return []BadTLS{
		{Name: "expired", Host: host, Cert: edited(func(c *x509.Certificate) {
			c.NotBefore, c.NotAfter = time.Now().Add(-48*time.Hour), time.Now().Add(-time.Hour)
		})},
		{Name: "not yet valid", Host: host, Cert: edited(func(c *x509.Certificate) {
			c.NotBefore = time.Now().Add(time.Hour)
		})},
		{Name: "wrong host", Host: host, Cert: ca.Leaf(t, "other.test")},
		{Name: "ip san instead of the name", Host: host, Cert: ca.Leaf(t, "127.0.0.1", "127.0.0.2")},
		{Name: "common name only", Host: host, Cert: edited(func(c *x509.Certificate) {
			c.DNSNames, c.Subject = nil, pkix.Name{CommonName: host}
		})},
		{Name: "wildcard two levels up", Host: "a.b." + host, Cert: ca.Leaf(t, "*."+host)},
		{Name: "wildcard for the apex", Host: host, Cert: ca.Leaf(t, "*."+host)},
		{Name: "client auth only", Host: host, Cert: edited(func(c *x509.Certificate) {
			c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
		})},
		{Name: "unknown critical extension", Host: host, Cert: edited(func(c *x509.Certificate) {
			c.ExtraExtensions = []pkix.Extension{{Id: []int{1, 3, 6, 1, 4, 1, 55555, 1}, Critical: true, Value: []byte{5, 0}}}
		})},
		{Name: "tls 1.0 only", Host: host, Cert: ca.Leaf(t, host), MaxVersion: tls.VersionTLS10},
		{Name: "tls 1.1 only", Host: host, Cert: ca.Leaf(t, host), MaxVersion: tls.VersionTLS11},
	}
}

func badChains(t testing.TB, ca *CA, host string) []BadTLS {
	self := &CA{Key: newKey(t)}
	tmpl := leafTemplate(host)
	self.Cert = sign(t, tmpl, tmpl, self.Key.Public(), self.Key)
	constrained := ca.Intermediate(t, func(c *x509.Certificate) {
		c.PermittedDNSDomainsCritical, c.PermittedDNSDomains = true, []string{"only-this.test"}
	})
	notCA := ca.Intermediate(t, func(c *x509.Certificate) { c.IsCA = false })
	bare := ca.Intermediate(t, nil).Leaf(t, host)
	bare.Certificate = bare.Certificate[:1]
	long := ca
	for range 110 {
		long = long.Intermediate(t, nil)
	}
	return []BadTLS{
		{Name: "self-signed", Host: host, Cert: tls.Certificate{Certificate: [][]byte{self.Cert.Raw}, PrivateKey: self.Key}},
		{Name: "unknown ca", Host: host, Cert: NewCA(t).Leaf(t, host)},
		{Name: "name constraint violated", Host: host, Cert: constrained.Leaf(t, host)},
		{Name: "issuer is no ca", Host: host, Cert: notCA.Leaf(t, host)},
		{Name: "missing intermediate", Host: host, Cert: bare},
		{Name: "chain of 110", Host: host, Cert: long.Leaf(t, host)},
	}
}

func badKeys(t testing.TB, ca *CA, host string) []BadTLS {
	// The SHA-1 link must not be the root's self-signature, which nobody checks.
	rsaCA := func(bits int, alg x509.SignatureAlgorithm) tls.Certificate {
		key, err := rsa.GenerateKey(rand.Reader, bits)
		if err != nil {
			t.Fatal(err)
		}
		tmpl := caTemplate("testbed rsa intermediate")
		mid := &CA{Cert: sign(t, tmpl, ca.Cert, key.Public(), ca.Key), Key: key}
		mid.chain = [][]byte{mid.Cert.Raw}
		leaf := leafTemplate(host)
		leaf.SignatureAlgorithm = alg
		return mid.Issue(t, nil, leaf)
	}
	small, err := rsa.GenerateKey(rand.Reader, 1024)
	if err != nil {
		t.Fatal(err)
	}
	return []BadTLS{
		{Name: "sha-1 signature", Host: host, Cert: rsaCA(2048, x509.SHA1WithRSA)},
		{Name: "rsa-1024 leaf", Host: host, Cert: ca.Issue(t, small, leafTemplate(host)), LibraryAccepts: true},
		{Name: "rsa-1024 intermediate", Host: host, Cert: rsaCA(1024, x509.SHA256WithRSA), LibraryAccepts: true},
		{Name: "rsa-16384 leaf", Host: host, Cert: ca.Issue(t, hugeKey(t), leafTemplate(host))},
	}
}

// hugeRSA has a public key that is costly to check. Its signatures are noise: a client
// has to refuse the certificate before it looks at one.
type hugeRSA struct{ pub *rsa.PublicKey }

func hugeKey(t testing.TB) crypto.Signer {
	n, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 16383))
	if err != nil {
		t.Fatal(err)
	}
	n.SetBit(n, 16383, 1).SetBit(n, 0, 1)
	return hugeRSA{&rsa.PublicKey{N: n, E: 65537}}
}

func (h hugeRSA) Public() crypto.PublicKey { return h.pub }

func (h hugeRSA) Sign(io.Reader, []byte, crypto.SignerOpts) ([]byte, error) {
	return make([]byte, h.pub.Size()), nil
}
