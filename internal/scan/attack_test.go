package scan

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"net/http"
	"net/url"
	"strings"
	"testing"
)

// TestAttack_A25_reflection scrubs a canary that comes back in every form that is looked
// for, cut at each of its bytes, under each content coding.
func TestAttack_A25_reflection(t *testing.T) {
	const canary = "canary/0123456789+abcdef=ghij"
	m := New(Patterns(canary, 1))
	redact := func(int) []byte { return []byte("[redacted]") }
	asJSON, err := json.Marshal(map[string]any{"headers": map[string]string{"Authorization": "Bearer " + canary}})
	if err != nil {
		t.Fatal(err)
	}
	forms := map[string]string{
		"raw":          "Authorization: Bearer " + canary + "\r\n",
		"JSON":         string(asJSON),
		"hex":          "0x" + hex.EncodeToString([]byte(canary)) + " ",
		"HEX":          strings.ToUpper(hex.EncodeToString([]byte(canary))),
		"URL":          "a=" + url.QueryEscape(canary) + "&b=1",
		"base64 at 0":  base64.StdEncoding.EncodeToString([]byte(canary)),
		"base64 at 1":  base64.StdEncoding.EncodeToString([]byte("u" + canary)),
		"base64 at 2":  base64.StdEncoding.EncodeToString([]byte("u:" + canary + ":x")),
		"base64 again": base64.URLEncoding.EncodeToString([]byte("usr:" + canary)),
		"SSE":          "event: e\ndata: {\"t\":\"" + canary + "\"}\n\n",
		"NDJSON":       "{\"n\":1}\n{\"t\":\"" + canary + "\"}\n",
		"twice":        canary + canary,
	}
	for name, text := range forms {
		t.Run("A25 "+name, func(t *testing.T) {
			for i := range len(text) + 1 {
				got := drain(t, m.Replace(chunks([]byte(text[:i]), []byte(text[i:])), redact), 4096)
				assertScrubbed(t, got, canary)
			}
			for coding, with := range coders() {
				r, err := Decoded(bytes.NewReader(encode(t, with, []byte(text))), coding, Limits{})
				if err != nil {
					t.Fatal(err)
				}
				assertScrubbed(t, drain(t, m.Replace(r, redact), 700), canary)
			}
		})
	}
	t.Run("A25 C07 header and trailer", func(t *testing.T) {
		h := http.Header{"X-Echo": {"Bearer " + canary}, "Set-Cookie": {"a=" + url.QueryEscape(canary)}}
		if n := m.Header(h, redact); n != 2 || h.Get("X-Echo") != "Bearer [redacted]" || h.Get("Set-Cookie") != "a=[redacted]" {
			t.Errorf("%d: %v", n, h)
		}
	})
	// What the documentation says is not found. Should one be found one day, say so there.
	for name, text := range map[string]string{
		"reversed":     reverse(canary),
		"UTF-16":       strings.Join(strings.Split(canary, ""), "\x00"),
		"base64 twice": base64.StdEncoding.EncodeToString([]byte(base64.StdEncoding.EncodeToString([]byte("x:" + canary)))),
		"first half":   canary[:len(canary)-1],
	} {
		t.Run("A25 not found: "+name, func(t *testing.T) {
			if got := drain(t, m.Replace(strings.NewReader(text), redact), 4096); got != text {
				t.Errorf("%q became %q", text, got)
			}
		})
	}
}

func assertScrubbed(t *testing.T, got, canary string) {
	t.Helper()
	if !strings.Contains(got, "[redacted]") {
		t.Fatalf("nothing was redacted in %q", got)
	}
	for _, form := range Encodings(canary) {
		if strings.Contains(got, string(form)) {
			t.Fatalf("%q is left in %q", form, got)
		}
	}
}

func reverse(s string) string {
	b := []byte(s)
	for i, j := 0, len(b)-1; i < j; i, j = i+1, j-1 {
		b[i], b[j] = b[j], b[i]
	}
	return string(b)
}
