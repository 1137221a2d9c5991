package scan

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/url"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestPatternsFindEveryForm writes values as origins do, with other bytes around.
func TestPatternsFindEveryForm(t *testing.T) {
	forms := map[string]func(v string) string{
		"raw":            func(v string) string { return v },
		"query":          url.QueryEscape,
		"query, lower":   func(v string) string { return lowerEscapes(url.QueryEscape(v)) },
		"path":           url.PathEscape,
		"path, lower":    func(v string) string { return lowerEscapes(url.PathEscape(v)) },
		"form":           func(v string) string { return url.Values{"k": {v}}.Encode() },
		"every byte":     func(v string) string { return percent(v, "") },
		"JSON":           func(v string) string { b, _ := json.Marshal(v); return string(b) },
		"JSON in a map":  func(v string) string { b, _ := json.Marshal(map[string]string{"Authorization": v}); return string(b) },
		"JSON, not HTML": func(v string) string { return plainJSON(v) },
		"JSON, slashes":  func(v string) string { return strings.ReplaceAll(plainJSON(v), "/", `\/`) },
		"JSON, ASCII":    func(v string) string { return asciiOnly(plainJSON(v)) },
		"JSON, ASCII, upper": func(v string) string {
			return strings.ReplaceAll(asciiOnly(plainJSON(v)), `\u00e9`, `\u00E9`)
		},
		"hex":       func(v string) string { return hex.EncodeToString([]byte(v)) },
		"HEX":       func(v string) string { return strings.ToUpper(hex.EncodeToString([]byte(v))) },
		"hex mixed": func(v string) string { return strings.ReplaceAll(hex.EncodeToString([]byte(v)), "a", "A") },
	}
	for before := range 6 {
		for after := range 4 {
			for name, enc := range map[string]*base64.Encoding{"std": base64.StdEncoding, "URL": base64.URLEncoding, "raw": base64.RawURLEncoding} {
				forms[fmt.Sprintf("base64 %s %d+%d", name, before, after)] = func(v string) string {
					return enc.EncodeToString([]byte(strings.Repeat("~", before) + v + strings.Repeat("~", after)))
				}
			}
		}
	}
	for _, v := range []string{
		"0123456789abcdef0123456789abcdef01234567",
		"a/b+c=d&e?f g<h>i\"j\\k",
		"pa55wörd-mit-é und \u2028",
		"-----BEGIN X-----\nMIIC\tAQ/+==\n-----END X-----\n",
		"10letters!",
		"\xff\xfe\x00binary\x80\x81",
		strings.Repeat("key material ", 2000), // longer than MaxValue
	} {
		m := New(Patterns(v, 4))
		for name, form := range forms {
			if strings.HasPrefix(name, "JSON") && strings.Contains(v, "\xff") {
				continue // is no text
			}
			text := "{~ " + form(v) + " ~}"
			if _, _, tag, ok := m.Find([]byte(text)); !ok || tag != 4 {
				t.Errorf("%s of %.20q is not found in %.80q", name, v, text)
			}
		}
		for _, e := range Encodings(v) {
			if start, end, _, ok := m.Find(e); !ok || start != 0 || end != len(e) {
				t.Errorf("%q is no pattern of its own", e)
			}
		}
	}
}

func plainJSON(v string) string {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	_ = enc.Encode(v)
	return b.String()
}

func lowerEscapes(s string) string {
	b := []byte(s)
	for i, c := range b {
		if c == '%' {
			copy(b[i+1:], strings.ToLower(s[i+1:i+3]))
		}
	}
	return string(b)
}

func TestEncodings(t *testing.T) {
	var got []string
	for _, e := range Encodings("s3cr/t") {
		got = append(got, string(e))
	}
	want := []string{
		"s3cr/t",
		"czNjci90", // of the other alignments 7 digits are its own, which is too few
		"s3cr%2ft", "s3cr%2Ft",
		`s3cr\/t`,
		"733363722f74", "733363722F74",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if Encodings("short") != nil || Patterns("", 0) != nil {
		t.Error("a short value has forms")
	}
	// Plain letters: no form is given twice.
	seen := map[string]bool{}
	for _, e := range Encodings("AlphaNumeric0123") {
		if seen[string(e)] || len(e) < MinValue {
			t.Errorf("%q", e)
		}
		seen[string(e)] = true
	}
	if len(seen) != 1+3+2 {
		t.Errorf("%d forms: raw, three of base64 and two of hex are wanted", len(seen))
	}
}

func TestLongValuesAreSearchedInPieces(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 1))
	for _, n := range []int{MaxValue - 1, MaxValue, MaxValue + MinValue - 1, MaxValue + MinValue, 3*MaxValue + 2} {
		b := make([]byte, n)
		for i := range b {
			b[i] = 'a' + byte(rnd.IntN(26))
		}
		m := New(Patterns(string(b), 0))
		if out, found := m.Bytes([]byte("<"+string(b)+">"), func(int) []byte { return nil }); string(out) != "<>" || found == 0 {
			t.Errorf("%d bytes: %d are left after %d matches", n, len(out), found)
		}
		if m.Longest() > 2*(MaxValue+MinValue) {
			t.Errorf("%d bytes would be held back", m.Longest())
		}
	}
}

// TestNoFalseMatches: what is like a value, and is not it, stays.
func TestNoFalseMatches(t *testing.T) {
	m := New(Patterns("0123456789abcdef", 0))
	for _, s := range []string{"0123456789abcde", "0123456789ABCDEF", "123456789abcdef", "0123456789abcde\x00f", "MDEyMzQ1Njc4OWFiY2Rl"} {
		if start, end, _, ok := m.Find([]byte(s)); ok {
			t.Errorf("found %q in %q", s[start:end], s)
		}
	}
}

func TestHeader(t *testing.T) {
	m := New(append(Patterns("tok-0123456789", 1), Patterns("other-value", 2)...))
	h := http.Header{
		"X-Echo":           {"Bearer tok-0123456789", "none", "other-value tok-0123456789"},
		"Location":         {"https://a.example/?t=dG9rLTAxMjM0NTY3ODk%3D"},
		"Content-Type":     {"text/plain"},
		"X-Other-Value-Ok": {"1"},
		"Empty":            {},
	}
	n := m.Header(h, tagged)
	want := http.Header{
		"X-Echo":       {"Bearer <1>", "none", "<2> <1>"},
		"Location":     {"https://a.example/?t=<1>k%3D"}, // the last digit has bits of what follows
		"Content-Type": {"text/plain"},
		"Empty":        {},
	}
	if diff := cmp.Diff(want, h); diff != "" {
		t.Error(diff)
	}
	if n != 5 {
		t.Errorf("%d matches", n)
	}
	if New(nil).Header(h, tagged) != 0 {
		t.Error("nothing was looked for")
	}
}

func FuzzPatterns(f *testing.F) {
	f.Add("a value/with+all&sorts=%2f\\u00e9\n", []byte("x"), []byte("yy"))
	f.Fuzz(func(t *testing.T, v string, before, after []byte) {
		if len(v) < MinValue || len(v) > 1000 {
			return
		}
		m := New(Patterns(v, 0))
		all := string(before) + v + string(after)
		for name, s := range map[string]string{
			"raw": all, "hex": hex.EncodeToString([]byte(all)), "query": url.QueryEscape(all), "path": url.PathEscape(all), "every": percent(all, ""),
		} {
			if _, _, _, ok := m.Find([]byte(s)); !ok {
				t.Errorf("%s: %q is not found in %q", name, v, s)
			}
		}
		if len(v) >= 8 {
			if s := base64.StdEncoding.EncodeToString([]byte(all)); !finds(m, s) {
				t.Errorf("base64: %q is not found in %q", v, s)
			}
		}
	})
}

func finds(m *Matcher, s string) bool {
	_, _, _, ok := m.Find([]byte(s))
	return ok
}
