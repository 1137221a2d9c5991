package certs

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"testing"
	"time"
)

// What our CA signs is good for servers, for a day, and signs nothing itself.
func TestAttack_D06_reach_of_the_ca(t *testing.T) {
	a, err := NewEphemeral(Options{})
	if err != nil {
		t.Fatal(err)
	}
	ca := a.Cert()
	if !ca.IsCA || ca.MaxPathLen != 0 || !ca.MaxPathLenZero || len(ca.ExtKeyUsage) != 1 || ca.ExtKeyUsage[0] != x509.ExtKeyUsageServerAuth || ca.KeyUsage != x509.KeyUsageCertSign|x509.KeyUsageCRLSign {
		t.Errorf("D06 %+v", ca)
	}
	roots := x509.NewCertPool()
	roots.AddCert(ca)
	got, err := a.Leaf("good.test")
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(got.Certificate[0])
	if err != nil {
		t.Fatal(err)
	}
	if life := time.Until(leaf.NotAfter); life > 24*time.Hour || leaf.IsCA || !leaf.BasicConstraintsValid || leaf.KeyUsage != x509.KeyUsageDigitalSignature {
		t.Errorf("D06 a leaf for %v: %+v", life, leaf)
	}
	if _, err := leaf.Verify(x509.VerifyOptions{Roots: roots, DNSName: "good.test"}); err != nil {
		t.Errorf("D06 the leaf does not verify: %v", err)
	}
	for _, use := range []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageCodeSigning, x509.ExtKeyUsageEmailProtection} {
		if _, err := leaf.Verify(x509.VerifyOptions{Roots: roots, KeyUsages: []x509.ExtKeyUsage{use}}); err == nil {
			t.Errorf("D06 the leaf is good for %v", use)
		}
	}
	// Whoever got the leaf's key, or the CA to sign another CA, has gained no authority.
	sign := func(tmpl, parent *x509.Certificate, signer any) (*x509.Certificate, *ecdsa.PrivateKey) {
		t.Helper()
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		tmpl.NotBefore, tmpl.NotAfter, tmpl.SerialNumber, tmpl.BasicConstraintsValid = time.Now().Add(-time.Hour), time.Now().Add(time.Hour), big.NewInt(2), true
		der, err := x509.CreateCertificate(rand.Reader, tmpl, parent, key.Public(), signer)
		if err != nil {
			t.Fatal(err)
		}
		c, err := x509.ParseCertificate(der)
		if err != nil {
			t.Fatal(err)
		}
		return c, key
	}
	below, key := sign(&x509.Certificate{Subject: pkix.Name{CommonName: "below"}, IsCA: true, KeyUsage: x509.KeyUsageCertSign}, ca, a.key)
	for name, tc := range map[string]struct {
		parent *x509.Certificate
		signer any
	}{"an authority below": {below, key}, "a leaf": {leaf, got.PrivateKey}} {
		forged, _ := sign(&x509.Certificate{DNSNames: []string{"bank.test"}}, tc.parent, tc.signer)
		between := x509.NewCertPool()
		between.AddCert(tc.parent)
		if _, err := forged.Verify(x509.VerifyOptions{Roots: roots, Intermediates: between, DNSName: "bank.test"}); err == nil {
			t.Errorf("D06 %s signs for bank.test", name)
		}
	}
}
