package static_test

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/egressd/egressd/source"
	"github.com/egressd/egressd/source/static"
)

func kind(t testing.TB, name string) source.Kind {
	t.Helper()
	for _, k := range static.Kinds() {
		if k.Name == name {
			return k
		}
	}
	t.Fatalf("no kind %s", name)
	return source.Kind{}
}

// spec of a kind from its block's members.
func spec(t testing.TB, k source.Kind, block any) []byte {
	t.Helper()
	out, err := json.Marshal(map[string]any{k.Block: block})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// refused wants the one fault message at path, and no other.
func refused(t *testing.T, k source.Kind, block any, path, message string) {
	t.Helper()
	raw := spec(t, k, block)
	err := k.Check(raw)
	var fields source.FieldErrors
	if !errors.As(err, &fields) {
		t.Fatalf("err = %v, want %s: %s", err, path, message)
	}
	got := strings.Join(fields[path], "|")
	if !strings.Contains(got, message) || len(fields) != 1 {
		t.Errorf("%v, want only %s: %q", fields, path, message)
	}
	if m, perr := k.Parse(raw); m != nil || perr == nil {
		t.Errorf("Parse gave %v, %v", m, perr)
	}
}

func TestTextValues(t *testing.T) {
	for _, tc := range []struct {
		name, value, message string
		latin                bool // only headers refuse it
	}{
		{"empty", "", "is empty", false},
		{"C13 CRLF", "x\r\nX-Evil: 1", "control character", false},
		{"C13 LF", "x\nHost: e", "control character", false},
		{"C13 CR", "x\ry", "control character", false},
		{"C13 NUL", "x\x00", "control character", false},
		{"C13 tab", "x\ty", "control character", false},
		{"C13 DEL", "x\x7f", "control character", false},
		{"C13 C1 control", "x\u0085y", "control character", false},
		{"C13 leading space", " x", "white space", false},
		{"C13 trailing space", "x ", "white space", false},
		{"C13 trailing line end", "x\n", "white space", false},
		{"C13 70 KB", strings.Repeat("x", 70<<10), "is too long", false},
		{"C13 non-ASCII", "caf\u00e9", "not ASCII", true},
		{"placeholder $encrypted$", "$encrypted$", "is a placeholder", false},
		{"placeholder ***", "***", "is a placeholder", false},
		{"placeholder stars", "********", "is a placeholder", false},
		{"placeholder REDACTED", "REDACTED", "is a placeholder", false},
		{"placeholder [redacted]", "[redacted]", "is a placeholder", false},
		{"placeholder <redacted>", "<Redacted>", "is a placeholder", false},
		{"placeholder terraform", "(sensitive value)", "is a placeholder", false},
		{"placeholder masked", "[MASKED]", "is a placeholder", false},
		{"placeholder dots", "......", "is a placeholder", false},
		{"placeholder underscores", "__REDACTED__", "is a placeholder", false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			headers, login := kind(t, static.Headers), kind(t, static.UsernamePassword)
			refused(t, headers, map[string]any{"values": map[string]string{"good": "g", "token": tc.value}}, "staticHeaders.values.token", tc.message)
			if tc.latin {
				if err := login.Check(spec(t, login, map[string]string{"username": "u", "password": tc.value})); err != nil {
					t.Errorf("password: %v", err)
				}
				return
			}
			refused(t, login, map[string]string{"username": "u", "password": tc.value}, "staticUsernamePassword.password", tc.message)
			refused(t, login, map[string]string{"username": tc.value, "password": "p"}, "staticUsernamePassword.username", tc.message)
		})
	}
}

func TestValuesThatLookOddAreTaken(t *testing.T) {
	headers, login := kind(t, static.Headers), kind(t, static.UsernamePassword)
	for _, v := range []string{"x", "**", "hidden", "secret", "masked", "Bearer a b", "a*b***c", "<<a>>", "redacted-not", "$x$", "~!@#$%^&*()"} {
		if err := headers.Check(spec(t, headers, map[string]any{"values": map[string]string{"k": v}})); err != nil {
			t.Errorf("%q: %v", v, err)
		}
		if err := login.Check(spec(t, login, map[string]string{"username": "u", "password": v})); err != nil {
			t.Errorf("%q: %v", v, err)
		}
	}
	// The longest of both still fits a header once encoded.
	long := strings.Repeat("x", 4<<10)
	if err := login.Check(spec(t, login, map[string]string{"username": long, "password": long})); err != nil {
		t.Error(err)
	}
	if n := base64.StdEncoding.EncodedLen(2*len(long)+1) + len("Basic "); n > 16<<10 {
		t.Errorf("%d bytes of Authorization", n)
	}
}

func TestHeaders(t *testing.T) {
	k := kind(t, static.Headers)
	for _, key := range []string{"", "1a", "a-b", "a.b", "a b", "ключ", strings.Repeat("a", 65), "CANARY=1"} {
		raw := spec(t, k, map[string]any{"values": map[string]string{key: "v"}})
		err := k.Check(raw)
		if err == nil || !strings.Contains(err.Error(), "does not match") || strings.Contains(err.Error(), "CANARY") {
			t.Errorf("key %q: %v", key, err)
		}
	}
	refused(t, k, map[string]any{"values": map[string]string{}}, "staticHeaders.values", "at least one key")
	refused(t, k, map[string]any{}, "staticHeaders.values", "at least one key")
	many := map[string]string{}
	for i := range 129 {
		many["k"+strings.Repeat("x", i%60)+string(rune('a'+i/60))] = "v"
	}
	refused(t, k, map[string]any{"values": many}, "staticHeaders.values", "more than 128")

	m, err := k.Parse(spec(t, k, map[string]any{"values": map[string]string{"token": "t0", "_A9": "x"}}))
	if err != nil || len(m.Values) != 2 || m.Values["token"].Reveal() != "t0" || m.Kind != static.Headers {
		t.Errorf("%v, %v", m, err)
	}
}

func TestUsernamePassword(t *testing.T) {
	k := kind(t, static.UsernamePassword)
	refused(t, k, map[string]string{"username": "a:b", "password": "p"}, "staticUsernamePassword.username", "colon")
	refused(t, k, map[string]string{"username": "a"}, "staticUsernamePassword.password", "is required")
	refused(t, k, map[string]string{"password": "a"}, "staticUsernamePassword.username", "is required")
	refused(t, k, map[string]any{"username": "a", "password": 12345678}, "staticUsernamePassword.password", "must be a string")
	raw := spec(t, k, map[string]string{"username": "zoë", "password": "a:b c"})
	m, err := k.Parse(raw)
	if err != nil || m.Values["username"].Reveal() != "zoë" || m.Values["password"].Reveal() != "a:b c" {
		t.Fatalf("%v, %v", m, err)
	}
	in, err := k.Inspect(raw, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"username", "password"}, in.Keys); diff != "" {
		t.Error(diff)
	}
	if len(in.Fields) != 2 || in.Fields[0].Path != "staticUsernamePassword.password" {
		t.Errorf("%v", in.Fields)
	}
}

// No message repeats a leaf, whatever is wrong with it.
func TestAttack_G01_messages_repeat_nothing(t *testing.T) {
	const canary = "CANARY7f3a"
	for _, k := range static.Kinds() {
		for _, bad := range []any{
			map[string]any{"values": map[string]any{"token": canary + "\n", canary + "!": canary}},
			map[string]any{"values": canary}, canary, []string{canary}, map[string]any{"values": []any{canary}},
			map[string]any{"username": canary + ":x", "password": canary + "\r"},
			map[string]any{"privateKeyPem": canary, "certificatePem": canary, "caPem": canary, "passphrase": canary},
			map[string]any{"accessKeyId": canary + "/", "secretAccessKey": canary + "\n", "sessionToken": canary + "\x00"},
			map[string]any{"privateKeyPem": "-----BEGIN PRIVATE KEY-----\n" + canary + "\n-----END PRIVATE KEY-----\n"},
		} {
			err := k.Check(spec(t, k, bad))
			if err == nil {
				t.Errorf("%s took %v", k.Name, bad)
			} else if strings.Contains(err.Error(), canary) {
				t.Errorf("%s: %v", k.Name, err)
			}
		}
	}
}

// Whatever a kind takes, it takes again in canonical form, to the same bytes.
func FuzzSpecs(f *testing.F) {
	for _, s := range []string{
		`{"awsAccessKey":{"accessKeyId":"k","secretAccessKey":"s","sessionToken":"t"}}`,
		`{"staticHeaders":{"values":{"token":"x"}}}`, `{"staticUsernamePassword":{"username":"u","password":"p"}}`,
		`{"staticSSHPrivateKey":{"privateKeyPem":"-----BEGIN OPENSSH PRIVATE KEY-----\nb3BlbnNzaC1rZXktdjEA\n-----END OPENSSH PRIVATE KEY-----\n"}}`,
		`{"staticTLSClientCertificate":{"certificatePem":"-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n","privateKeyPem":"x"}}`,
	} {
		f.Add([]byte(s))
	}
	kinds := static.Kinds()
	f.Fuzz(func(t *testing.T, in []byte) {
		for _, k := range kinds {
			first, err := k.Canonical(in)
			if err != nil {
				continue
			}
			second, err := k.Canonical(first)
			if err != nil || string(first) != string(second) {
				t.Errorf("%s: %q → %q → %q, %v", k.Name, in, first, second, err)
			}
			if _, err := k.Parse(first); err != nil {
				t.Errorf("%s: %q: %v", k.Name, first, err)
			}
		}
	})
}
