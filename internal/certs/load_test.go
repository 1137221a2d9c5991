package certs

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/elazarl/goproxy"
)

func TestLoadOrCreate(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state", "ca")
	certFile, keyFile := filepath.Join(dir, "ca.pem"), filepath.Join(dir, "ca.key")
	a, err := LoadOrCreate(certFile, keyFile, Options{})
	if err != nil {
		t.Fatal(err)
	}
	if got := time.Until(a.NotAfter()); got < OwnValidity-time.Minute || got > OwnValidity {
		t.Errorf("valid for %v", got)
	}
	for _, f := range []string{certFile, keyFile} {
		st, err := os.Stat(f)
		if err != nil {
			t.Fatal(err)
		}
		if st.Mode().Perm() != 0o600 {
			t.Errorf("D05: %s has mode %v", f, st.Mode())
		}
	}
	assertNames(t, dir, "ca.key", "ca.pem")
	b, err := LoadOrCreate(certFile, keyFile, Options{})
	if err != nil {
		t.Fatal(err)
	}
	if !b.Cert().Equal(a.Cert()) {
		t.Error("the second start made another CA")
	}
}

func assertNames(t *testing.T, dir string, want ...string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, e := range entries {
		got = append(got, e.Name())
	}
	if !slices.Equal(got, want) {
		t.Errorf("%s holds %q, want %q", dir, got, want)
	}
}

func TestAttack_D05_many_processes_at_once(t *testing.T) {
	dir := t.TempDir()
	certFile, keyFile := filepath.Join(dir, "ca.pem"), filepath.Join(dir, "ca.key")
	var wg sync.WaitGroup
	var mu sync.Mutex
	seen := map[string]bool{}
	start := make(chan struct{})
	for range 16 { // no lock in the process is involved: goroutines race like processes
		wg.Go(func() {
			<-start
			a, err := LoadOrCreate(certFile, keyFile, Options{})
			if err != nil {
				t.Error(err)
				return
			}
			mu.Lock()
			defer mu.Unlock()
			seen[string(a.Cert().Raw)] = true
		})
	}
	close(start)
	wg.Wait()
	if len(seen) != 1 {
		t.Errorf("%d different CAs", len(seen))
	}
	assertNames(t, dir, "ca.key", "ca.pem")
}

func TestLoadOrCreate_after_a_crash_between_the_files(t *testing.T) {
	dir := t.TempDir()
	certFile, keyFile := filepath.Join(dir, "ca.pem"), filepath.Join(dir, "ca.key")
	if err := createKey(keyFile); err != nil {
		t.Fatal(err)
	}
	before, err := os.ReadFile(keyFile)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := LoadOrCreate(certFile, keyFile, Options{}); err != nil {
		t.Fatal(err)
	}
	after, err := os.ReadFile(keyFile)
	if err != nil || !bytes.Equal(before, after) {
		t.Errorf("the key changed (%v)", err)
	}
}

// pair is the files of one CA.
type pair struct{ cert, key []byte }

func writePair(t *testing.T, p pair, keyMode fs.FileMode) (certFile, keyFile string) {
	t.Helper()
	dir := t.TempDir()
	certFile, keyFile = filepath.Join(dir, "ca.pem"), filepath.Join(dir, "ca.key")
	if p.cert != nil {
		if err := os.WriteFile(certFile, p.cert, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if p.key != nil {
		if err := os.WriteFile(keyFile, p.key, keyMode); err != nil {
			t.Fatal(err)
		}
	}
	return certFile, keyFile
}

func pkcs8(t testing.TB, key crypto.Signer) []byte {
	t.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return block("PRIVATE KEY", der)
}

func block(typ string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: typ, Bytes: der})
}

func makePair(t *testing.T, key crypto.Signer, change func(*x509.Certificate)) pair {
	return pair{encodeCert(mustCA(t, key, change).Raw), pkcs8(t, key)}
}

func TestLoad_own_CA(t *testing.T) {
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	ecKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	sec1, err := x509.MarshalECPrivateKey(ecKey)
	if err != nil {
		t.Fatal(err)
	}
	_, edKey, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	ecCert := encodeCert(mustCA(t, ecKey, nil).Raw)
	for name, p := range map[string]pair{
		"rsa pkcs8":       makePair(t, rsaKey, nil),
		"rsa pkcs1":       {encodeCert(mustCA(t, rsaKey, nil).Raw), block("RSA PRIVATE KEY", x509.MarshalPKCS1PrivateKey(rsaKey))},
		"ecdsa sec1":      {ecCert, append(block("EC PARAMETERS", []byte{6, 0}), block("EC PRIVATE KEY", sec1)...)},
		"ed25519":         makePair(t, edKey, nil),
		"no key usage":    makePair(t, ecKey, func(c *x509.Certificate) { c.KeyUsage = 0 }),
		"any usage":       makePair(t, ecKey, func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageAny} }),
		"cert beside key": {ecCert, append(slices.Clone(ecCert), pkcs8(t, ecKey)...)},
	} {
		t.Run(name, func(t *testing.T) {
			certFile, keyFile := writePair(t, p, 0o600)
			a, err := LoadOrCreate(certFile, keyFile, Options{})
			if err != nil {
				t.Fatal(err)
			}
			parsedLeaf(t, a, "good.test")
		})
	}
}

func TestLoad_refusals(t *testing.T) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	other, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	short, err := rsa.GenerateKey(rand.Reader, 1024)
	if err != nil {
		t.Fatal(err)
	}
	good := makePair(t, key, nil)
	with := func(change func(*x509.Certificate)) pair { return makePair(t, key, change) }
	for _, tc := range []struct {
		name string
		pair pair
		mode fs.FileMode
		want string
	}{
		{"D02 goproxy's public CA", pair{goproxy.CA_CERT, goproxy.CA_KEY}, 0o600, "its private key is public"},
		{"D05 key of others", good, 0o640, "run chmod 600"},
		{"D05 key of the world", good, 0o604, "run chmod 600"},
		{"no certificate", pair{nil, good.key}, 0o600, "put the certificate there"},
		{"no key", pair{good.cert, nil}, 0o600, "put the key back"},
		{"another key", pair{good.cert, pkcs8(t, other)}, 0o600, "are a pair"},
		{"no CA", with(func(c *x509.Certificate) { c.IsCA = false }), 0o600, "CA:TRUE"},
		{"key usage", with(func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageDigitalSignature }), 0o600, "keyCertSign"},
		{"extended key usage", with(func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth} }), 0o600, "serverAuth"},
		{"expired", with(func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) }), 0o600, "expired on"},
		{"not yet", with(func(c *x509.Certificate) { c.NotBefore = time.Now().Add(time.Minute) }), 0o600, "check the clock"},
		{"encrypted", pair{good.cert, block("ENCRYPTED PRIVATE KEY", []byte{1})}, 0o600, "openssl pkey"},
		{"short rsa", pair{good.cert, block("RSA PRIVATE KEY", x509.MarshalPKCS1PrivateKey(short))}, 0o600, "too short"},
		{"garbled key", pair{good.cert, block("PRIVATE KEY", []byte("canary-5e1f"))}, 0o600, "is not a private key"},
		{"no PEM key", pair{good.cert, []byte("canary-5e1f")}, 0o600, "no private key in PEM form"},
		{"no PEM certificate", pair{[]byte("hello"), good.key}, 0o600, "no certificate in PEM form"},
		{"garbled certificate", pair{block("CERTIFICATE", []byte{0x30}), good.key}, 0o600, "does not parse"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			certFile, keyFile := writePair(t, tc.pair, tc.mode)
			_, err := LoadOrCreate(certFile, keyFile, Options{})
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Fatalf("error %v; want it to say %q", err, tc.want)
			}
			msg := err.Error()
			if strings.Contains(msg, "\n") || strings.Contains(msg, "canary") {
				t.Errorf("not one line, or it quotes the key: %q", msg)
			}
			if !strings.Contains(msg, certFile) && !strings.Contains(msg, keyFile) {
				t.Errorf("names no file: %q", msg)
			}
		})
	}
}

func TestAttack_D02_known_public_keys(t *testing.T) {
	b, _ := pem.Decode(goproxy.CA_CERT)
	c, err := x509.ParseCertificate(b.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(c.RawSubjectPublicKeyInfo)
	if !slices.Contains(publicKeys[:], hex.EncodeToString(sum[:])) {
		t.Error("the CA that this version of goproxy carries is not on the list")
	}
}

func TestLoadOrCreate_unwritable(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := LoadOrCreate(filepath.Join(file, "ca.pem"), filepath.Join(file, "ca.key"), Options{})
	if err == nil || strings.Contains(err.Error(), "\n") {
		t.Errorf("below a file: %v", err)
	}
	_, err = Load(filepath.Join(dir, "no.pem"), filepath.Join(dir, "no.key"), Options{})
	if !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Load of nothing: %v", err)
	}
	assertNames(t, dir, "file")
}
