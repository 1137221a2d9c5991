package static_test

import (
	"crypto"
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"math/big"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/egressd/egressd/source/static"
)

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func ec() *ecdsa.PrivateKey { return must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader)) }

func block(kind string, der []byte) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}))
}

func pkcs8(key any) string { return block("PRIVATE KEY", must(x509.MarshalPKCS8PrivateKey(key))) }

// issue signs a certificate; a nil parent makes it self-signed.
func issue(key crypto.Signer, parent *x509.Certificate, parentKey crypto.Signer, change func(*x509.Certificate)) (*x509.Certificate, string) {
	c := &x509.Certificate{
		SerialNumber: must(rand.Int(rand.Reader, big.NewInt(1<<62))), Subject: pkix.Name{CommonName: "c"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(365 * 24 * time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
	change(c)
	if parent == nil {
		parent, parentKey = c, key
	}
	der := must(x509.CreateCertificate(rand.Reader, c, parent, key.Public(), parentKey))
	return must(x509.ParseCertificate(der)), block("CERTIFICATE", der)
}

func authority(name string) func(*x509.Certificate) {
	return func(c *x509.Certificate) {
		c.Subject.CommonName, c.IsCA, c.BasicConstraintsValid = name, true, true
		c.KeyUsage, c.ExtKeyUsage = x509.KeyUsageCertSign, nil
	}
}

func plain(*x509.Certificate) {}

type chain struct{ leaf, middle, root, key string }

func newChain() chain {
	rootKey, middleKey, leafKey := ec(), ec(), ec()
	root, rootPEM := issue(rootKey, nil, nil, authority("root"))
	middle, middlePEM := issue(middleKey, root, rootKey, authority("middle"))
	_, leafPEM := issue(leafKey, middle, middleKey, plain)
	return chain{leafPEM, middlePEM, rootPEM, pkcs8(leafKey)}
}

func TestTLSClientCertificate(t *testing.T) {
	k, c := kind(t, static.TLSClientCertificate), newChain()
	raw := spec(t, k, map[string]string{"certificatePem": "subject=CN = c\n" + c.leaf + c.middle, "privateKeyPem": c.key, "caPem": c.root})
	m, err := k.Parse(raw)
	if err != nil {
		t.Fatal(err)
	}
	if m.ClientCert.Leaf == nil || len(m.ClientCert.Certificate) != 2 || m.CAs == nil || m.ExpiresAt.IsZero() {
		t.Errorf("%v %v", m.ClientCert.Leaf, m.CAs)
	}
	in, err := k.Inspect(raw, time.Now())
	if err != nil || in.Health != "ok" || len(in.Fields) != 3 || len(in.Keys) != 0 {
		t.Errorf("%v %v", in, err)
	}
	if m, err = k.Parse(spec(t, k, map[string]string{"certificatePem": c.leaf, "privateKeyPem": c.key})); err != nil || m.CAs != nil {
		t.Errorf("without caPem: %v, %v", m, err)
	}
}

func TestTLSKeyForms(t *testing.T) {
	k := kind(t, static.TLSClientCertificate)
	rsaKey := must(rsa.GenerateKey(rand.Reader, 2048))
	_, edKey, _ := ed25519.GenerateKey(rand.Reader)
	ecKey := ec()
	for name, tc := range map[string]struct {
		key crypto.Signer
		pem string
	}{
		"PKCS #8 RSA":     {rsaKey, pkcs8(rsaKey)},
		"PKCS #1":         {rsaKey, block("RSA PRIVATE KEY", x509.MarshalPKCS1PrivateKey(rsaKey))},
		"PKCS #8 Ed25519": {edKey, pkcs8(edKey)},
		"SEC 1":           {ecKey, block("EC PRIVATE KEY", must(x509.MarshalECPrivateKey(ecKey)))},
		"SEC 1 with parameters": {ecKey, block("EC PARAMETERS", must(asn1.Marshal(asn1.ObjectIdentifier{1, 2, 840, 10045, 3, 1, 7}))) +
			block("EC PRIVATE KEY", must(x509.MarshalECPrivateKey(ecKey)))},
	} {
		_, cert := issue(tc.key, nil, nil, plain)
		m, err := k.Parse(spec(t, k, map[string]string{"certificatePem": cert, "privateKeyPem": tc.pem}))
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if _, err := tls.X509KeyPair([]byte(cert), []byte(tc.pem)); err != nil || m.ClientCert.PrivateKey == nil {
			t.Errorf("%s: crypto/tls: %v", name, err)
		}
	}
}

func TestTLSRefused(t *testing.T) {
	const cert, key, ca = "staticTLSClientCertificate.certificatePem", "staticTLSClientCertificate.privateKeyPem", "staticTLSClientCertificate.caPem"
	k, c := kind(t, static.TLSClientCertificate), newChain()
	smallKey := must(rsa.GenerateKey(rand.Reader, 1024))
	_, small := issue(smallKey, nil, nil, plain)
	legacy := must(x509.EncryptPEMBlock(rand.Reader, "EC PRIVATE KEY", must(x509.MarshalECPrivateKey(ec())), []byte("pw"), x509.PEMCipherAES256)) //nolint:staticcheck // what is refused
	damaged := strings.Replace(c.middle, "MII", "!II", 1)
	for _, tc := range []struct{ name, cert, key, ca, path, message string }{
		{"empty certificate", "", c.key, "", cert, "is empty"},
		{"empty key", c.leaf, "", "", key, "is empty"},
		{"not PEM", "hello", c.key, "", cert, "is not PEM"},
		{"placeholder", c.leaf, "[redacted]", "", key, "is a placeholder"},
		{"not DER", block("CERTIFICATE", []byte("x")), c.key, "", cert, "certificate 1 does not parse"},
		{"second damaged", c.leaf + damaged, c.key, "", cert, "is not PEM"},
		{"first damaged", damaged + c.leaf, c.key, "", cert, "is not PEM"},
		{"cut short", c.leaf + "-----BEGIN CERTIFICATE-----\nMIIB", c.key, "", cert, "is not PEM"},
		{"key among certificates", c.leaf + c.key, c.key, "", cert, "PEM block 2 is not a certificate"},
		{"certificate for a key", c.leaf, c.leaf, "", key, "holds a certificate"},
		{"two keys", c.leaf, c.key + c.key, "", key, "more than one key"},
		{"public key", c.leaf, block("PUBLIC KEY", must(x509.MarshalPKIXPublicKey(ec().Public()))), "", key, "is not a private key in"},
		{"key not DER", c.leaf, block("PRIVATE KEY", []byte("x")), "", key, "does not parse as a private key"},
		{"key that cannot sign", c.leaf, pkcs8(must(ecdh.X25519().GenerateKey(rand.Reader))), "", key, "cannot sign"},
		{"only parameters", c.leaf, block("EC PARAMETERS", []byte("x")), "", key, "holds no private key"},
		{"encrypted PKCS #8", c.leaf, block("ENCRYPTED PRIVATE KEY", []byte("x")), "", key, "is encrypted"},
		{"encrypted legacy", c.leaf, string(pem.EncodeToMemory(legacy)), "", key, "is encrypted"},
		{"other key", c.leaf, pkcs8(ec()), "", key, "does not belong to the certificate"},
		{"chain without middle", c.leaf + c.root, c.key, "", cert, "certificate 1 was not issued by certificate 2"},
		{"foreign in chain", c.leaf + c.middle + c.middle, c.key, "", cert, "certificate 2 was not issued by certificate 3"},
		{"too long", strings.Repeat(c.leaf, 11), c.key, "", cert, "more than 10"},
		{"CA not PEM", c.leaf, c.key, "x", ca, "is not PEM"},
		{"CA empty", c.leaf, c.key, "EMPTY", ca, "is empty"},
		{"weak CA", c.leaf, c.key, small, ca, "RSA key of 1024 bits"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			in := map[string]string{"certificatePem": tc.cert, "privateKeyPem": tc.key}
			switch tc.ca {
			case "":
			case "EMPTY":
				in["caPem"] = ""
			default:
				in["caPem"] = tc.ca
			}
			refused(t, k, in, tc.path, tc.message)
		})
	}
	t.Run("order", func(t *testing.T) {
		err := k.Check(spec(t, k, map[string]string{"certificatePem": c.middle + c.leaf, "privateKeyPem": c.key}))
		if err == nil || !strings.Contains(err.Error(), "leaf first, then") || !strings.Contains(err.Error(), "belongs to a later certificate") {
			t.Error(err)
		}
	})
	t.Run("weak RSA", func(t *testing.T) {
		err := k.Check(spec(t, k, map[string]string{"certificatePem": small, "privateKeyPem": pkcs8(smallKey)}))
		if err == nil || strings.Count(err.Error(), "RSA key of 1024 bits is refused") != 2 {
			t.Error(err)
		}
	})
	refused(t, k, map[string]string{"certificatePem": c.leaf}, key, "is required")
}

func TestTLSHealth(t *testing.T) {
	k, key := kind(t, static.TLSClientCertificate), ec()
	now := time.Now()
	for _, tc := range []struct {
		from, until time.Duration
		usage       x509.ExtKeyUsage
		want        string
	}{
		{-time.Hour, 365 * 24 * time.Hour, x509.ExtKeyUsageClientAuth, "ok"},
		{-time.Hour, 365 * 24 * time.Hour, x509.ExtKeyUsageAny, "ok"},
		{-time.Hour, 365 * 24 * time.Hour, x509.ExtKeyUsageServerAuth, "the certificate is not meant for client authentication"},
		{-time.Hour, 73 * time.Hour, x509.ExtKeyUsageClientAuth, "expires in 3 days"},
		{-time.Hour, 25 * time.Hour, x509.ExtKeyUsageClientAuth, "expires in 1 day"},
		{-time.Hour, time.Hour, x509.ExtKeyUsageClientAuth, "expires in less than a day"},
		{-48 * time.Hour, -24 * time.Hour, x509.ExtKeyUsageClientAuth, "expired on " + now.Add(-24*time.Hour).UTC().Format(time.DateOnly)},
		{48 * time.Hour, 365 * 24 * time.Hour, x509.ExtKeyUsageClientAuth, "not valid before " + now.Add(48*time.Hour).UTC().Truncate(time.Second).Format(time.RFC3339)},
	} {
		_, cert := issue(key, nil, nil, func(c *x509.Certificate) {
			c.NotBefore, c.NotAfter, c.ExtKeyUsage = now.Add(tc.from), now.Add(tc.until), []x509.ExtKeyUsage{tc.usage}
		})
		got, err := k.Health(spec(t, k, map[string]string{"certificatePem": cert, "privateKeyPem": pkcs8(key)}), now)
		if err != nil || got != tc.want {
			t.Errorf("got %q, %v, want %q", got, err, tc.want)
		}
	}
}

func TestSSHPrivateKey(t *testing.T) {
	const key, passphrase = "staticSSHPrivateKey.privateKeyPem", "staticSSHPrivateKey.passphrase"
	k := kind(t, static.SSHPrivateKey)
	_, ed, _ := ed25519.GenerateKey(rand.Reader)
	rsaKey, ecKey := must(rsa.GenerateKey(rand.Reader, 2048)), ec()
	open := func(key any) string { return string(pem.EncodeToMemory(must(ssh.MarshalPrivateKey(key, "c")))) }
	locked := string(pem.EncodeToMemory(must(ssh.MarshalPrivateKeyWithPassphrase(ed, "c", []byte("open sesame")))))

	for name, in := range map[string]map[string]string{
		"ed25519": {"privateKeyPem": open(ed)}, "rsa": {"privateKeyPem": open(rsaKey)}, "ecdsa": {"privateKeyPem": open(ecKey)},
		"PKCS #8": {"privateKeyPem": pkcs8(ed)}, "encrypted": {"privateKeyPem": locked, "passphrase": "open sesame"},
	} {
		m, err := k.Parse(spec(t, k, in))
		if err != nil || m.SSH == nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		sig, err := m.SSH.Sign(rand.Reader, []byte("x"))
		if err != nil || m.SSH.PublicKey().Verify([]byte("x"), sig) != nil {
			t.Errorf("%s: sign: %v", name, err)
		}
	}
	for _, tc := range []struct{ name, key, pass, path, message string }{
		{"not PEM", "ssh-ed25519 AAAA", "", key, "is not PEM"},
		{"two blocks", open(ed) + open(ed), "", key, "more than one PEM block"},
		{"damaged", block("OPENSSH PRIVATE KEY", []byte("openssh-key-v1\x00rest")), "", key, "does not parse"},
		{"encrypted, no passphrase", locked, "", passphrase, "is required"},
		{"wrong passphrase", locked, "guess", passphrase, "does not open the key"},
		{"a passphrase too many", open(ed), "pw", passphrase, "is not encrypted"},
		{"placeholder passphrase", locked, "***", passphrase, "is a placeholder"},
		{"placeholder", "REDACTED", "", key, "is a placeholder"},
		{"encrypted PKCS #8", block("ENCRYPTED PRIVATE KEY", []byte("x")), "pw", key, "ssh-keygen -p"},
		{"weak RSA", open(must(rsa.GenerateKey(rand.Reader, 1024))), "", key, "RSA key of 1024 bits"},
		{"public key", string(ssh.MarshalAuthorizedKey(must(ssh.NewPublicKey(ed.Public())))), "", key, "is not PEM"},
		{"derivation without end", slow(t, locked), "open sesame", key, "more than 256 rounds"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			in := map[string]string{"privateKeyPem": tc.key}
			if tc.pass != "" {
				in["passphrase"] = tc.pass
			}
			refused(t, k, in, tc.path, tc.message)
		})
	}
	refused(t, k, map[string]string{}, key, "is required")
	refused(t, k, map[string]string{"privateKeyPem": open(ed), "passphrase": ""}, passphrase, "is empty")
}

// slow is an encrypted OpenSSH key whose head asks for 2³² - 1 rounds of bcrypt.
func slow(t *testing.T, locked string) string {
	t.Helper()
	b, _ := pem.Decode([]byte(locked))
	at := strings.Index(string(b.Bytes), "bcrypt") + len("bcrypt") + 4 + 4 + 16
	if got := b.Bytes[at : at+4]; got[0]|got[1]|got[2] != 0 || got[3] == 0 {
		t.Fatalf("rounds are not at %d: %x", at, got)
	}
	copy(b.Bytes[at:], "\xff\xff\xff\xff")
	return string(pem.EncodeToMemory(b))
}
