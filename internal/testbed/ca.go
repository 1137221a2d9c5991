package testbed

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// CA is a root (or an intermediate) that signs what a test asks for, broken or not.
type CA struct {
	Cert *x509.Certificate
	Key  crypto.Signer
	// chain is what a leaf's tls.Certificate carries after the leaf: the
	// intermediates below the root, nearest first.
	chain [][]byte
}

// NewCA makes a fresh P-256 root, valid for a day.
func NewCA(t testing.TB) *CA {
	t.Helper()
	key := newKey(t)
	tmpl := caTemplate("testbed root")
	return &CA{Cert: sign(t, tmpl, tmpl, key.Public(), key), Key: key}
}

// Intermediate makes a CA under ca. edit, if not nil, changes the template first.
func (ca *CA) Intermediate(t testing.TB, edit func(*x509.Certificate)) *CA {
	t.Helper()
	key := newKey(t)
	tmpl := caTemplate("testbed intermediate")
	if edit != nil {
		edit(tmpl)
	}
	cert := sign(t, tmpl, ca.Cert, key.Public(), ca.Key)
	return &CA{Cert: cert, Key: key, chain: append([][]byte{cert.Raw}, ca.chain...)}
}

// Leaf makes a server certificate for names (DNS names or IP addresses).
func (ca *CA) Leaf(t testing.TB, names ...string) tls.Certificate {
	t.Helper()
	return ca.Issue(t, nil, leafTemplate(names...))
}

// ClientCert makes a client certificate whose common name is cn.
func (ca *CA) ClientCert(t testing.TB, cn string) tls.Certificate {
	t.Helper()
	tmpl := leafTemplate()
	tmpl.Subject = pkix.Name{CommonName: cn}
	tmpl.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	return ca.Issue(t, nil, tmpl)
}

// Issue signs tmpl. A nil key means a fresh P-256 one.
func (ca *CA) Issue(t testing.TB, key crypto.Signer, tmpl *x509.Certificate) tls.Certificate {
	t.Helper()
	if key == nil {
		key = newKey(t)
	}
	leaf := sign(t, tmpl, ca.Cert, key.Public(), ca.Key)
	return tls.Certificate{
		Certificate: append([][]byte{leaf.Raw}, ca.chain...),
		PrivateKey:  key,
		Leaf:        leaf,
	}
}

// PEM is the CA's certificate.
func (ca *CA) PEM() []byte { return pemBlock("CERTIFICATE", ca.Cert.Raw) }

// Pool holds the CA alone.
func (ca *CA) Pool() *x509.CertPool {
	p := x509.NewCertPool()
	p.AddCert(ca.Cert)
	return p
}

// File writes the CA's certificate to a temporary file and returns its path, for
// upstream.extraCAFiles and for clients' environment variables.
func (ca *CA) File(t testing.TB) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(path, ca.PEM(), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// CertPEM and KeyPEM give a certificate as an operator would submit it.
func CertPEM(c tls.Certificate) string {
	var out []byte
	for _, der := range c.Certificate {
		out = append(out, pemBlock("CERTIFICATE", der)...)
	}
	return string(out)
}

// KeyPEM is the private key as PKCS #8.
func KeyPEM(t testing.TB, c tls.Certificate) string {
	t.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(c.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	return string(pemBlock("PRIVATE KEY", der))
}

func pemBlock(kind string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
}

func newKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func serial(t testing.TB) *big.Int {
	t.Helper()
	n, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func sign(t testing.TB, tmpl, parent *x509.Certificate, pub crypto.PublicKey, key crypto.Signer) *x509.Certificate {
	t.Helper()
	if tmpl.SerialNumber == nil {
		tmpl.SerialNumber = serial(t)
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, parent, pub, key)
	if err != nil {
		t.Fatalf("sign certificate: %v", err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatalf("parse what was signed: %v", err)
	}
	return cert
}

func caTemplate(cn string) *x509.Certificate {
	return &x509.Certificate{
		Subject:               pkix.Name{CommonName: cn},
		NotBefore:             time.Now().Add(-time.Hour),
		NotAfter:              time.Now().Add(24 * time.Hour),
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		BasicConstraintsValid: true,
		IsCA:                  true,
	}
}

func leafTemplate(names ...string) *x509.Certificate {
	tmpl := &x509.Certificate{
		NotBefore:             time.Now().Add(-time.Hour),
		NotAfter:              time.Now().Add(12 * time.Hour),
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		BasicConstraintsValid: true,
	}
	for _, n := range names {
		if ip := net.ParseIP(n); ip != nil {
			tmpl.IPAddresses = append(tmpl.IPAddresses, ip)
		} else {
			tmpl.DNSNames = append(tmpl.DNSNames, n)
		}
	}
	return tmpl
}
