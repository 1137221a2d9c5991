package certs

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	pkcs12 "software.sslmate.com/src/go-pkcs12"
)

func writeFile(t *testing.T, data []byte) string {
	t.Helper()
	f := filepath.Join(t.TempDir(), "roots.pem")
	if err := os.WriteFile(f, data, 0o600); err != nil {
		t.Fatal(err)
	}
	return f
}

func verifies(pool *x509.CertPool, c *x509.Certificate) bool {
	_, err := c.Verify(x509.VerifyOptions{Roots: pool})
	return err == nil
}

func TestPool(t *testing.T) {
	a, b := ephemeral(t, Options{}), ephemeral(t, Options{})
	_, la := parsedLeaf(t, a, "a.test")
	_, lb := parsedLeaf(t, b, "b.test")
	junk := append([]byte("# roots\n"), block("CERTIFICATE", []byte{0x30, 0})...)
	system := writeFile(t, append(junk, a.CertPEM()...))
	extra := writeFile(t, b.CertPEM())
	paths := []string{filepath.Join(t.TempDir(), "none.pem"), system, extra}

	pool, err := poolFrom(paths, nil)
	if err != nil {
		t.Fatal(err)
	}
	if !verifies(pool, la) || verifies(pool, lb) {
		t.Error("the pool is not the first file that exists")
	}
	pool, err = poolFrom(paths, []string{extra})
	if err != nil {
		t.Fatal(err)
	}
	if !verifies(pool, la) || !verifies(pool, lb) {
		t.Error("extra files are not added to the system's")
	}
	pool, err = poolFrom(paths[:1], []string{extra})
	if err != nil {
		t.Fatal(err)
	}
	if verifies(pool, la) || !verifies(pool, lb) {
		t.Error("extra files alone are not enough")
	}
	if _, err := poolFrom(paths[:1], nil); !errors.Is(err, ErrNoSystemRoots) {
		t.Errorf("no roots at all: %v", err)
	}
}

func TestAttack_A19_pool_ignores_the_environment(t *testing.T) {
	evil := ephemeral(t, Options{})
	_, leaf := parsedLeaf(t, evil, "good.test")
	file := writeFile(t, evil.CertPEM())
	t.Setenv("SSL_CERT_FILE", file)
	t.Setenv("SSL_CERT_DIR", filepath.Dir(file))
	pool, err := SystemPool([]string{writeFile(t, ephemeral(t, Options{}).CertPEM())})
	if err != nil {
		t.Fatal(err)
	}
	if verifies(pool, leaf) {
		t.Error("SSL_CERT_FILE decides whom egressd trusts")
	}
}

func TestBundle(t *testing.T) {
	a, b := ephemeral(t, Options{}), ephemeral(t, Options{})
	// Keys and remarks in a file must not reach the child.
	system := writeFile(t, append([]byte("# remark\n"), append(block("PRIVATE KEY", []byte("canary")), a.CertPEM()...)...))
	for name, got := range map[string]func() ([]byte, error){
		"system's": func() ([]byte, error) {
			return bundleFrom([]string{system}, "", [][]byte{b.CertPEM(), a.CertPEM()})
		},
		"named": func() ([]byte, error) { return bundleFrom(nil, system, [][]byte{b.CertPEM()}) },
	} {
		out, err := got()
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if want := append(a.CertPEM(), b.CertPEM()...); !bytes.Equal(out, want) {
			t.Errorf("%s: bundle is\n%s\nwant\n%s", name, out, want)
		}
	}
	if _, err := bundleFrom(nil, "", [][]byte{b.CertPEM()}); !errors.Is(err, ErrNoSystemRoots) {
		t.Errorf("no system roots: %v", err)
	}
	if _, err := bundleFrom([]string{system}, "", [][]byte{[]byte("junk")}); err == nil {
		t.Error("junk was added")
	}
	if _, err := bundleFrom([]string{system}, filepath.Join(t.TempDir(), "none"), nil); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a named file that does not exist: %v", err)
	}
}

func TestSystemBundleOfThisMachine(t *testing.T) {
	file := ""
	if roots, err := firstOf(systemRoots[:]); err != nil {
		t.Fatal(err)
	} else if len(roots) == 0 { // a bare container
		file = writeFile(t, ephemeral(t, Options{}).CertPEM())
	}
	ours := ephemeral(t, Options{}).CertPEM()
	out, err := SystemBundle(file, ours)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.HasSuffix(out, ours) || bytes.Count(out, []byte("BEGIN CERTIFICATE")) < 2 {
		t.Error("bundle lacks the roots or ours")
	}
}

func TestLoadPEMFiles(t *testing.T) {
	good := ephemeral(t, Options{}).CertPEM()
	for name, tc := range map[string]struct {
		data []byte
		want string
	}{
		"empty":     {nil, "no certificate in PEM form"},
		"key only":  {block("PRIVATE KEY", []byte("x")), "no certificate in PEM form"},
		"second":    {append(bytes.Clone(good), block("CERTIFICATE", []byte("x"))...), "certificate 2 does not parse"},
		"too large": {bytes.Repeat([]byte("\n"), maxPEMFile+1), "larger than 8 MiB"},
	} {
		f := writeFile(t, tc.data)
		_, err := LoadPEMFiles([]string{f})
		if err == nil || !strings.Contains(err.Error(), tc.want) || !strings.Contains(err.Error(), f) {
			t.Errorf("%s: %v; want it to name the file and say %q", name, err, tc.want)
		}
	}
	cs, err := LoadPEMFiles([]string{writeFile(t, good), writeFile(t, append(good, good...))})
	if err != nil || len(cs) != 3 {
		t.Errorf("%d certificates, %v", len(cs), err)
	}
}

func TestTruststore(t *testing.T) {
	a, b := ephemeral(t, Options{}), ephemeral(t, Options{})
	bundle := append(a.CertPEM(), b.CertPEM()...)
	store, err := Truststore(bundle, "changeit")
	if err != nil {
		t.Fatal(err)
	}
	cs, err := pkcs12.DecodeTrustStore(store, "changeit")
	if err != nil {
		t.Fatal(err)
	}
	if len(cs) != 2 || !cs[0].Equal(a.Cert()) || !cs[1].Equal(b.Cert()) {
		t.Errorf("%d certificates came back", len(cs))
	}
	if _, err := pkcs12.DecodeTrustStore(store, "wrong"); err == nil {
		t.Error("opens with a wrong password")
	}
	if _, err := Truststore([]byte("junk"), "changeit"); err == nil {
		t.Error("a trust store of nothing")
	}
}

func FuzzCheckHost(f *testing.F) {
	for _, s := range []string{"good.test", "::1", "192.0.2.1", "*.a", "a\x00b", "0x7f.1"} {
		f.Add(s)
	}
	a := ephemeral(f, Options{CacheSize: 1})
	f.Fuzz(func(t *testing.T, host string) {
		name, addr, err := checkHost(host)
		if err != nil {
			return
		}
		if name != strings.ToLower(host) || strings.ContainsAny(name, "*\x00 ,%[]") || (!addr.IsValid() && strings.Contains(name, ":")) {
			t.Fatalf("%q was taken as %q", host, name)
		}
		c, err := a.Leaf(host)
		if err != nil {
			t.Fatal(err)
		}
		x, err := x509.ParseCertificate(c.Certificate[0])
		if err != nil {
			t.Fatal(err)
		}
		if err := x.VerifyHostname(bracketed(name)); err != nil {
			t.Fatal(err)
		}
	})
}

func TestCertPEMIsOnlyCertificates(t *testing.T) {
	rest := ephemeral(t, Options{}).CertPEM()
	for len(rest) > 0 {
		var b *pem.Block
		if b, rest = pem.Decode(rest); b == nil || b.Type != "CERTIFICATE" {
			t.Fatalf("block %+v", b)
		}
	}
}
