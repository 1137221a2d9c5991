package static_test

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/crypto/ssh"

	"github.com/egressd/egressd/internal/secret"
	"github.com/egressd/egressd/source"
	"github.com/egressd/egressd/source/static"
)

func awsBlock(change ...string) map[string]any {
	out := map[string]any{"accessKeyId": "FAKEKEYID0123456", "secretAccessKey": "fake/secret+access=key"}
	for i := 0; i < len(change); i += 2 {
		out[change[i]] = change[i+1]
	}
	return out
}

func TestAWSAccessKey(t *testing.T) {
	k := kind(t, static.AWSAccessKey)
	raw := spec(t, k, awsBlock("sessionToken", "fake-session-token"))
	m, err := k.Parse(raw)
	if err != nil || m.Values["accessKeyId"].Reveal() != "FAKEKEYID0123456" || m.Values["secretAccessKey"].Reveal() != "fake/secret+access=key" ||
		m.Values["sessionToken"].Reveal() != "fake-session-token" || len(m.Values) != 3 || m.Kind != static.AWSAccessKey {
		t.Fatalf("%v, %v", m, err)
	}
	if got := len(m.Secrets()); got != 2 {
		t.Errorf("%d secrets, want all but the key's id", got)
	}
	in, err := k.Inspect(raw, time.Now())
	if err != nil || in.Health != "ok" || in.Keys != nil || len(in.Fields) != 3 {
		t.Errorf("%v, %v", in, err)
	}
	if m, err = k.Parse(spec(t, k, awsBlock())); err != nil || len(m.Values) != 2 {
		t.Errorf("without a token: %v, %v", m, err)
	}
	in, err = k.Inspect(spec(t, k, awsBlock("accessKeyId", "AS"+"IA0123456789")), time.Now())
	if err != nil || !strings.Contains(in.Health, "there is no sessionToken") {
		t.Errorf("a temporary key alone: %q, %v", in.Health, err)
	}
	a, err1 := k.Canonical([]byte(`{"awsAccessKey":{"secretAccessKey":"fake-secret","accessKeyId":"minio"}}`))
	b, err2 := k.Canonical([]byte(`{"awsAccessKey": {"accessKeyId":"minio","secretAccessKey":"fake\u002dsecret"}}`))
	if err1 != nil || err2 != nil || string(a) != string(b) {
		t.Errorf("%v, %v", err1, err2)
	}
}

func TestAWSAccessKeyIsRefused(t *testing.T) {
	k := kind(t, static.AWSAccessKey)
	for _, tc := range []struct{ name, field, value, message string }{
		{"C13 CRLF", "", "x\r\nX-Evil: 1", "control character"},
		{"C13 LF", "", "x\ny", "control character"},
		{"C13 NUL", "", "x\x00", "control character"},
		{"C13 leading space", "", " x", "white space"},
		{"C13 trailing space", "", "x ", "white space"},
		{"C13 70 KB", "", strings.Repeat("x", 70<<10), "is too long"},
		{"C13 non-ASCII", "", "caf\u00e9", ""},
		{"empty", "", "", "is empty"},
		{"placeholder", "", "$encrypted$", "is a placeholder"},
		{"placeholder", "", "********", "is a placeholder"},
		{"slash in the scope", "accessKeyId", "AKID/20260101", "no access key id has"},
		{"comma", "accessKeyId", "a,b", "no access key id has"},
		{"long id", "accessKeyId", strings.Repeat("x", 129), "is too long"},
	} {
		fields := []string{tc.field}
		if tc.field == "" {
			fields = []string{"accessKeyId", "secretAccessKey", "sessionToken"}
		}
		for _, field := range fields {
			t.Run(tc.name+" "+field, func(t *testing.T) {
				refused(t, k, awsBlock(field, tc.value), "awsAccessKey."+field, tc.message)
			})
		}
	}
	refused(t, k, map[string]any{"accessKeyId": "x"}, "awsAccessKey.secretAccessKey", "is required")
	refused(t, k, map[string]any{"secretAccessKey": "x"}, "awsAccessKey.accessKeyId", "is required")
	refused(t, k, awsBlock("region", "eu-central-1"), "awsAccessKey.region", "unknown field")
	refused(t, k, map[string]any{"accessKeyId": 1, "secretAccessKey": "x"}, "awsAccessKey.accessKeyId", "must be a string")
}

func reveal(values []secret.String) (out []string) {
	for _, v := range values {
		out = append(out, v.Reveal())
	}
	return out
}

// A key's text is known by lines that no other key has.
func TestKeyText(t *testing.T) {
	_, ed, _ := ed25519.GenerateKey(rand.Reader)
	ec, _ := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	rsaKey, _ := rsa.GenerateKey(rand.Reader, 2048)
	plain, err := ssh.MarshalPrivateKey(ed, "me@host")
	if err != nil {
		t.Fatal(err)
	}
	locked, err := ssh.MarshalPrivateKeyWithPassphrase(ed, "me@host", []byte("fake-passphrase"))
	if err != nil {
		t.Fatal(err)
	}
	ecDER, _ := x509.MarshalECPrivateKey(ec)
	edDER, _ := x509.MarshalPKCS8PrivateKey(ed)
	for name, tc := range map[string]struct {
		block  *pem.Block
		phrase string
		atMost int // lines of its base64
	}{
		"OpenSSH":  {plain, "", 8},
		"locked":   {locked, "fake-passphrase", 9},
		"PKCS #1":  {&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(rsaKey)}, "", 16},
		"SEC 1":    {&pem.Block{Type: "EC PRIVATE KEY", Bytes: ecDER}, "", 3},
		"one line": {&pem.Block{Type: "PRIVATE KEY", Bytes: edDER}, "", 1},
	} {
		t.Run(name, func(t *testing.T) {
			k := kind(t, static.SSHPrivateKey)
			text := "a note\n" + string(pem.EncodeToMemory(tc.block))
			fields := map[string]any{"privateKeyPem": strings.ReplaceAll(text, "\n", "\r\n")}
			if tc.phrase != "" {
				fields["passphrase"] = tc.phrase
			}
			m, err := k.Parse(spec(t, k, fields))
			if err != nil {
				t.Fatal(err)
			}
			got := reveal(m.KeyText)
			if len(got) == 0 || len(got) > tc.atMost {
				t.Fatalf("%d pieces, want 1–%d", len(got), tc.atMost)
			}
			unwrapped := strings.ReplaceAll(text, "\n", "")
			for _, piece := range got {
				if piece != tc.phrase && !strings.Contains(unwrapped, piece) || strings.ContainsAny(piece, "\r\n") {
					t.Errorf("a piece of %d bytes is not of the key", len(piece))
				}
				if strings.HasPrefix(piece, "b3BlbnNzaC1rZXktdjEA") {
					t.Error("the line that all OpenSSH keys begin with")
				}
			}
			if diff := cmp.Diff(got, reveal(m.Secrets())); diff != "" {
				t.Error("Secrets gives other pieces")
			}
		})
	}
}

// What is no secret is said by the kinds themselves, and of values that they have.
func TestNotSecret(t *testing.T) {
	for _, k := range static.Kinds() {
		for _, name := range k.NotSecret {
			found := false
			for _, in := range k.Inputs {
				found = found || in.Name == name && !in.Secret
			}
			if !found {
				t.Errorf("%s: %s is no input, or asked for without echo", k.Name, name)
			}
		}
	}
	var none source.Material
	if got := none.Secrets(); len(got) != 0 {
		t.Errorf("%d secrets of nothing", len(got))
	}
}
