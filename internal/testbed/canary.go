package testbed

import (
	"bytes"
	"compress/gzip"
	"crypto/rand"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"io"
	"net/url"
	"slices"
	"strings"
	"testing"
)

// NewCanary makes a secret that cannot occur by chance. It has characters that URL and
// JSON encoding change, so that each form is a form of its own.
func NewCanary() string {
	return "canary/" + rand.Text() + "+\"<&=" + rand.Text()
}

// NewToken makes a secret that is a valid bearer token (RFC 6750: no quotes or spaces).
func NewToken() string { return "canary-" + rand.Text() + "+/" + rand.Text() + "==" }

// Leaks names the forms in which secret stands in data: raw, reversed, base64 (each
// alignment, both alphabets), hex, URL-, JSON- and UTF-16-encoded, and all of these
// inside gzip streams. Empty means clean.
func Leaks(data []byte, secret string) []string { return leaks(data, secret, 3) }

func leaks(data []byte, secret string, depth int) []string {
	var found []string
	for name, form := range forms(secret) {
		if bytes.Contains(data, form) {
			found = append(found, name)
		}
	}
	if depth > 0 {
		for _, plain := range gunzipAll(data) {
			for _, name := range leaks(plain, secret, depth-1) {
				found = append(found, "gzip: "+name)
			}
		}
	}
	slices.Sort(found)
	return found
}

// NoLeak fails the test when one of secrets stands in data. where names the data.
func NoLeak(t testing.TB, where string, data []byte, secrets ...string) {
	t.Helper()
	for i, s := range secrets {
		if l := Leaks(data, s); len(l) > 0 {
			t.Errorf("canary %d is in %s (%s)", i, where, strings.Join(l, ", "))
		}
	}
}

func forms(secret string) map[string][]byte {
	js, _ := json.Marshal(secret) // a string always marshals
	var raw bytes.Buffer
	enc := json.NewEncoder(&raw)
	enc.SetEscapeHTML(false)
	_ = enc.Encode(secret)
	rev := []byte(secret)
	slices.Reverse(rev)
	out := map[string][]byte{
		"raw":           []byte(secret),
		"reversed":      rev,
		"hex":           []byte(hex.EncodeToString([]byte(secret))),
		"hex, upper":    []byte(strings.ToUpper(hex.EncodeToString([]byte(secret)))),
		"url query":     []byte(url.QueryEscape(secret)),
		"url path":      []byte(url.PathEscape(secret)),
		"json":          bytes.Trim(js, `"`),
		"json, no html": bytes.Trim(bytes.TrimSpace(raw.Bytes()), `"`),
		"utf-16":        utf16le(secret),
	}
	for off := range 3 {
		padded := append(make([]byte, off), secret...)
		for name, e := range map[string]*base64.Encoding{"std": base64.RawStdEncoding, "url": base64.RawURLEncoding} {
			// The characters that depend on the neighbours of the secret are left out.
			s := e.EncodeToString(padded)
			lo := (off*8 + 5) / 6
			hi := len(padded) * 8 / 6
			out["base64 "+name+" at "+string(rune('0'+off))] = []byte(s[lo:hi])
		}
	}
	return out
}

func utf16le(s string) []byte {
	out := make([]byte, 0, 2*len(s))
	for i := range len(s) {
		out = append(out, s[i], 0)
	}
	return out
}

// gunzipAll inflates up to 16 gzip streams found in data, 4 MiB of each.
func gunzipAll(data []byte) [][]byte {
	var out [][]byte
	for len(out) < 16 {
		i := bytes.Index(data, []byte{0x1f, 0x8b, 8})
		if i < 0 {
			return out
		}
		data = data[i:]
		if zr, err := gzip.NewReader(bytes.NewReader(data)); err == nil {
			plain, _ := io.ReadAll(io.LimitReader(zr, 4<<20)) // a broken stream gives what it had
			if len(plain) > 0 {
				out = append(out, plain)
			}
		}
		data = data[3:]
	}
	return out
}
