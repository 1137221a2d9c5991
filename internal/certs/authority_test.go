package certs

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"math/big"
	"net"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

func ephemeral(t testing.TB, o Options) *Authority {
	t.Helper()
	a, err := NewEphemeral(o)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func parsedLeaf(t testing.TB, a *Authority, host string) (*tls.Certificate, *x509.Certificate) {
	t.Helper()
	c, err := a.Leaf(host)
	if err != nil {
		t.Fatalf("Leaf(%q): %v", host, err)
	}
	x, err := x509.ParseCertificate(c.Certificate[0])
	if err != nil {
		t.Fatal(err)
	}
	return c, x
}

func TestOwnCA(t *testing.T) {
	c := ephemeral(t, Options{}).Cert()
	if !c.IsCA || !c.MaxPathLenZero || c.MaxPathLen != 0 {
		t.Errorf("D06: IsCA %v, path length %d (zero set: %v)", c.IsCA, c.MaxPathLen, c.MaxPathLenZero)
	}
	if len(c.ExtKeyUsage) != 1 || c.ExtKeyUsage[0] != x509.ExtKeyUsageServerAuth {
		t.Errorf("D06: extended key usage %v", c.ExtKeyUsage)
	}
	if c.KeyUsage&x509.KeyUsageCertSign == 0 || c.KeyUsage&x509.KeyUsageDigitalSignature != 0 {
		t.Errorf("key usage %b", c.KeyUsage)
	}
	if k, ok := c.PublicKey.(*ecdsa.PublicKey); !ok || k.Curve != elliptic.P256() {
		t.Errorf("key is %T", c.PublicKey)
	}
	if err := c.CheckSignatureFrom(c); err != nil {
		t.Error(err)
	}
}

func TestLeaf(t *testing.T) {
	a := ephemeral(t, Options{})
	pool := x509.NewCertPool()
	pool.AddCert(a.Cert())
	for _, host := range []string{"good.test", "xn--mnchen-3ya.test", "localhost", strings.Repeat("a.", 120) + "test", "192.0.2.7", "2001:db8::1", "::1"} {
		t.Run(host, func(t *testing.T) {
			_, x := parsedLeaf(t, a, host)
			// IPs are verified in brackets by x509, so that they are not taken for names.
			if _, err := x.Verify(x509.VerifyOptions{Roots: pool, DNSName: bracketed(host)}); err != nil {
				t.Error(err)
			}
			if n := len(x.DNSNames) + len(x.IPAddresses) + len(x.EmailAddresses) + len(x.URIs); n != 1 {
				t.Errorf("A14: %d names in it", n)
			}
			if (net.ParseIP(host) != nil) != (len(x.IPAddresses) == 1) {
				t.Errorf("D07: an address belongs in iPAddress: %v %v", x.DNSNames, x.IPAddresses)
			}
			if x.Subject.CommonName != "" {
				t.Errorf("D07: common name %q", x.Subject.CommonName)
			}
			if x.IsCA || !x.BasicConstraintsValid || x.KeyUsage != x509.KeyUsageDigitalSignature {
				t.Errorf("IsCA %v, key usage %b", x.IsCA, x.KeyUsage)
			}
			if len(x.ExtKeyUsage) != 1 || x.ExtKeyUsage[0] != x509.ExtKeyUsageServerAuth {
				t.Errorf("extended key usage %v", x.ExtKeyUsage)
			}
			if !bytes.Equal(x.AuthorityKeyId, a.Cert().SubjectKeyId) || len(x.SubjectKeyId) == 0 {
				t.Error("key identifiers are missing")
			}
			if n := x.SerialNumber.BitLen(); n < 64 || n > 129 {
				t.Errorf("serial number of %d bits", n)
			}
		})
	}
}

func bracketed(host string) string {
	if strings.Contains(host, ":") {
		return "[" + host + "]"
	}
	return host
}

func TestAttack_D07_hosts_that_get_no_certificate(t *testing.T) {
	a := ephemeral(t, Options{})
	for _, host := range []string{
		"", ".", "a.test\x00evil", "*.good.test", "a.test,DNS:b", "-a.test", "a-.test", "a..test", ".a.test", "a.test.", "a b.test",
		strings.Repeat("a", 64) + ".test", strings.Repeat("a.", 126) + "test", "a_b.test", "münchen.test", ":", "[::1]", "::1%eth0", "fe80::1%25eth0",
		"::ffff:192.0.2.1", "0:0::1", "127.1", "0x7f.1", "2130706433", "017700000001", "0177.0.0.1", "1.2.3.4.5", "a.0x7f", "a.test:443", "a.test\n",
	} {
		if c, err := a.Leaf(host); !errors.Is(err, ErrBadHost) || c != nil {
			t.Errorf("Leaf(%q) = %v, %v; want ErrBadHost", host, c, err)
		}
	}
	if n := a.Minted(); n != 0 {
		t.Errorf("%d leaves were signed", n)
	}
}

func TestLeaf_folds_case(t *testing.T) {
	a := ephemeral(t, Options{})
	_, x := parsedLeaf(t, a, "Good.TEST")
	if x.DNSNames[0] != "good.test" {
		t.Errorf("name %q", x.DNSNames[0])
	}
	parsedLeaf(t, a, "good.test")
	if n := a.Minted(); n != 1 {
		t.Errorf("%d leaves for one name", n)
	}
}

func TestAttack_D01_leaf_keys_are_random(t *testing.T) {
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	for range 3 { // the same CA each time: only chance may tell the leaf keys apart
		a, err := newAuthority([]*x509.Certificate{mustCA(t, key, nil)}, key, Options{})
		if err != nil {
			t.Fatal(err)
		}
		_, x := parsedLeaf(t, a, "good.test")
		seen[string(x.RawSubjectPublicKeyInfo)] = true
	}
	if len(seen) != 3 {
		t.Errorf("%d leaf keys in three processes", len(seen))
	}
}

func TestLeaf_one_key_and_distinct_serials(t *testing.T) {
	a := ephemeral(t, Options{})
	_, x := parsedLeaf(t, a, "a.test")
	_, y := parsedLeaf(t, a, "b.test")
	if !bytes.Equal(x.RawSubjectPublicKeyInfo, y.RawSubjectPublicKeyInfo) {
		t.Error("two leaf keys in one process")
	}
	if x.SerialNumber.Cmp(y.SerialNumber) == 0 {
		t.Error("one serial number for two leaves")
	}
}

func TestAttack_D04_concurrent_first_hits_mint_once(t *testing.T) {
	a := ephemeral(t, Options{})
	var wg sync.WaitGroup
	start := make(chan struct{})
	for i := range 200 {
		wg.Go(func() {
			<-start
			if _, err := a.Leaf(fmt.Sprintf("h%d.test", i%4)); err != nil {
				t.Error(err)
			}
		})
	}
	close(start)
	wg.Wait()
	if n := a.Minted(); n != 4 {
		t.Errorf("%d leaves for 4 hosts", n)
	}
}

func TestLeaf_cache_is_bounded(t *testing.T) {
	a := ephemeral(t, Options{CacheSize: 8})
	for i := range 50 {
		parsedLeaf(t, a, fmt.Sprintf("h%d.test", i))
	}
	if n := a.leaves.Len(); n != 8 {
		t.Errorf("%d leaves kept", n)
	}
}

func TestAttack_H04_clock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := ephemeral(t, Options{LeafTTL: 24 * time.Hour})
		first, x := parsedLeaf(t, a, "good.test")
		if got := time.Until(x.NotBefore); got != -5*time.Minute {
			t.Errorf("begins %v from now", got)
		}
		if got := time.Until(x.NotAfter); got != 24*time.Hour {
			t.Errorf("ends %v from now", got)
		}
		time.Sleep(18*time.Hour - time.Second)
		if again, _ := parsedLeaf(t, a, "good.test"); again != first {
			t.Error("minted anew too early")
		}
		time.Sleep(time.Second)
		second, y := parsedLeaf(t, a, "good.test")
		if second == first || time.Until(y.NotAfter) != 24*time.Hour {
			t.Error("not minted anew with a quarter of its life left")
		}
		// A leaf from the future, as after the clock was set back.
		l, _ := a.leaves.Get("good.test")
		a.leaves.Add("good.test", &leaf{cert: l.cert, from: time.Now().Add(time.Hour).Unix(), until: time.Now().Add(20 * time.Hour).Unix()})
		if third, _ := parsedLeaf(t, a, "good.test"); third == second {
			t.Error("a leaf that is not valid yet was handed out")
		}
		// The CA's last days: leaves end with it, and after it there are none.
		time.Sleep(time.Until(a.NotAfter()) - time.Hour)
		if _, z := parsedLeaf(t, a, "good.test"); !z.NotAfter.Equal(a.NotAfter()) {
			t.Errorf("leaf ends %v, its CA %v", z.NotAfter, a.NotAfter())
		}
		time.Sleep(time.Hour)
		if _, err := a.Leaf("good.test"); err == nil || !strings.Contains(err.Error(), "ended") {
			t.Errorf("after the CA's end: %v", err)
		}
	})
}

func TestOptions(t *testing.T) {
	for _, o := range []Options{{LeafTTL: time.Second}, {LeafTTL: 8 * 24 * time.Hour}, {LeafTTL: -1}, {CacheSize: -1}} {
		if _, err := NewEphemeral(o); err == nil {
			t.Errorf("%+v was taken", o)
		}
	}
}

// mustCA signs a CA certificate for key; change may spoil it.
func mustCA(t testing.TB, key crypto.Signer, change func(*x509.Certificate)) *x509.Certificate {
	t.Helper()
	c := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test ca"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	if change != nil {
		change(c)
	}
	der, err := x509.CreateCertificate(rand.Reader, c, c, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	x, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return x
}

// TestHandshake lets real clients check leaves under each kind of CA key.
func TestHandshake(t *testing.T) {
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	ecKey, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	_, edKey, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for name, key := range map[string]crypto.Signer{"rsa": rsaKey, "p384": ecKey, "ed25519": edKey} {
		for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
			t.Run(name+" "+tls.VersionName(version), func(t *testing.T) {
				a, err := newAuthority([]*x509.Certificate{mustCA(t, key, nil)}, key, Options{})
				if err != nil {
					t.Fatal(err)
				}
				handshake(t, a, version)
			})
		}
	}
}

func handshake(t *testing.T, a *Authority, version uint16) {
	t.Helper()
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(a.CertPEM()) {
		t.Fatal("CertPEM holds nothing")
	}
	c, s := net.Pipe()
	server := tls.Server(s, &tls.Config{GetCertificate: func(h *tls.ClientHelloInfo) (*tls.Certificate, error) { return a.Leaf(h.ServerName) }})
	done := make(chan error, 1)
	go func() { done <- server.HandshakeContext(t.Context()) }()
	client := tls.Client(c, &tls.Config{ServerName: "good.test", RootCAs: pool, MinVersion: version, MaxVersion: version})
	if err := client.HandshakeContext(t.Context()); err != nil {
		t.Errorf("client: %v", err)
	}
	if err := <-done; err != nil {
		t.Errorf("server: %v", err)
	}
	_, _ = c.Close(), s.Close()
}

func TestIntermediateIsServedWithTheLeaf(t *testing.T) {
	rootKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	root := mustCA(t, rootKey, func(c *x509.Certificate) { c.Subject.CommonName = "root" })
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "middle"}, NotBefore: time.Now(), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, MaxPathLenZero: true, KeyUsage: x509.KeyUsageCertSign,
	}, root, key.Public(), rootKey)
	if err != nil {
		t.Fatal(err)
	}
	middle, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	a, err := newAuthority([]*x509.Certificate{middle, root}, key, Options{})
	if err != nil {
		t.Fatal(err)
	}
	c, x := parsedLeaf(t, a, "good.test")
	if len(c.Certificate) != 2 || !bytes.Equal(c.Certificate[1], middle.Raw) {
		t.Fatalf("%d certificates are served, want leaf and intermediate", len(c.Certificate))
	}
	roots, inter := x509.NewCertPool(), x509.NewCertPool()
	roots.AddCert(root)
	inter.AddCert(middle)
	if _, err := x.Verify(x509.VerifyOptions{Roots: roots, Intermediates: inter, DNSName: "good.test"}); err != nil {
		t.Error(err)
	}
}

func BenchmarkMint(b *testing.B) {
	a := ephemeral(b, Options{CacheSize: 1})
	hosts := [2]string{"a.test", "b.test"}
	b.ReportAllocs()
	i := 0
	for b.Loop() {
		if _, err := a.Leaf(hosts[i&1]); err != nil {
			b.Fatal(err)
		}
		i++
	}
}

func BenchmarkLeafCached(b *testing.B) {
	a := ephemeral(b, Options{})
	b.ReportAllocs()
	for b.Loop() {
		if _, err := a.Leaf("good.test"); err != nil {
			b.Fatal(err)
		}
	}
}
