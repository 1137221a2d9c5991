package main

import (
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
	"time"
)

// pki is the origin's certificate for *.bench.test and the CA that the proxies mint
// with. Both live as files in the bench's directory, for the children.
type pki struct {
	dir    string
	origin tls.Certificate
	roots  *x509.CertPool // what clients trust: the origin directly, and the proxies' CA
}

func newPKI(dir string) (*pki, error) {
	ca, err := makeCert(nil, &x509.Certificate{
		Subject: pkix.Name{CommonName: "bench interception CA"}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign | x509.KeyUsageDigitalSignature, MaxPathLenZero: true,
	})
	if err != nil {
		return nil, err
	}
	root, err := makeCert(nil, &x509.Certificate{
		Subject: pkix.Name{CommonName: "bench origins"}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	})
	if err != nil {
		return nil, err
	}
	names := leafTemplate("*.bench.test")
	names.DNSNames = append(names.DNSNames, "*.cold.bench.test")
	leaf, err := makeCert(&root, names)
	if err != nil {
		return nil, err
	}
	p := &pki{dir: dir, origin: leaf, roots: x509.NewCertPool()}
	p.roots.AddCert(ca.Leaf)
	p.roots.AddCert(root.Leaf)
	key, err := x509.MarshalPKCS8PrivateKey(ca.PrivateKey)
	if err != nil {
		return nil, err
	}
	for name, block := range map[string]*pem.Block{
		"ca.pem":     {Type: "CERTIFICATE", Bytes: ca.Certificate[0]},
		"ca.key":     {Type: "PRIVATE KEY", Bytes: key},
		"origin.pem": {Type: "CERTIFICATE", Bytes: root.Certificate[0]},
	} {
		if err := os.WriteFile(filepath.Join(dir, name), pem.EncodeToMemory(block), 0o600); err != nil {
			return nil, err
		}
	}
	return p, nil
}

// loadPKI is a reference proxy's view: the CA to mint with, and what upstream is verified against.
func loadPKI(dir string) (ca tls.Certificate, upstream *x509.CertPool, err error) {
	ca, err = tls.LoadX509KeyPair(filepath.Join(dir, "ca.pem"), filepath.Join(dir, "ca.key"))
	if err != nil {
		return ca, nil, err
	}
	text, err := os.ReadFile(filepath.Join(dir, "origin.pem"))
	if err != nil {
		return ca, nil, err
	}
	upstream = x509.NewCertPool()
	upstream.AppendCertsFromPEM(text)
	return ca, upstream, nil
}

func leafTemplate(name string) *x509.Certificate {
	t := &x509.Certificate{KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}
	if ip := net.ParseIP(name); ip != nil {
		t.IPAddresses = []net.IP{ip}
	} else {
		t.DNSNames = []string{name}
	}
	return t
}

// makeCert signs tmpl with parent, or with itself; the key is a fresh P-256 one.
func makeCert(parent *tls.Certificate, tmpl *x509.Certificate) (tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, err
	}
	return signCert(parent, tmpl, key)
}

func signCert(parent *tls.Certificate, tmpl *x509.Certificate, key *ecdsa.PrivateKey) (tls.Certificate, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		return tls.Certificate{}, err
	}
	tmpl.SerialNumber, tmpl.NotBefore, tmpl.NotAfter = serial, time.Now().Add(-time.Hour), time.Now().Add(24*time.Hour)
	issuer, signer := tmpl, any(key)
	if parent != nil {
		issuer, signer = parent.Leaf, parent.PrivateKey
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, issuer, key.Public(), signer)
	if err != nil {
		return tls.Certificate{}, err
	}
	leaf, err := x509.ParseCertificate(der)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}, err
}
