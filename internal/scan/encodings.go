package scan

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"net/url"
	"slices"
	"strings"
	"unicode/utf16"
	"unicode/utf8"
)

const (
	// MinValue is the length in bytes of the shortest value that Patterns gives forms of: a
	// shorter one would be found everywhere.
	MinValue = 6
	// MaxValue is the length from which on a value is looked for in pieces of that length.
	MaxValue = 16 << 10

	minCore = 8 // base64 digits that must be the value's alone
)

// Patterns gives the forms in which value may be written, all tagged tag:
//
//   - as it is;
//   - in base64, standard and URL alphabet, at each of three alignments: what of it does
//     not depend on the bytes before and after, if that is 8 digits or more. So
//     base64(user:value) is found, except for its edges;
//   - percent-encoded by the habits of forms, of paths, of JavaScript and of Python;
//   - as a JSON string, with and without the escapes for HTML, for slashes and for all
//     that is not ASCII;
//   - in base16, with the escapes' and base16's letters in either case.
//
// A value shorter than MinValue has none. The package comment says what is not found.
func Patterns(value string, tag int) []Pattern {
	if len(value) < MinValue {
		return nil
	}
	var out []Pattern
	add := func(fold Fold, forms ...string) {
		for _, f := range forms {
			out = append(out, Pattern{Bytes: []byte(f), Tag: tag, Fold: fold})
		}
	}
	for _, v := range pieces(value) {
		add(Exact, v)
		add(Exact, base64Cores(v)...)
		add(FoldEscapes, percentForms(v)...)
		add(FoldEscapes, jsonForms(v)...)
		add(FoldLetters, hex.EncodeToString([]byte(v)))
	}
	return unique(out)
}

// Encodings gives the forms of Patterns as literals, each form that has letters of either
// case in both.
func Encodings(value string) [][]byte {
	var out [][]byte
	for _, p := range Patterns(value, 0) {
		c := compile(p)
		upper := bytes.Clone(c.bytes)
		for i := range c.mask {
			upper[i] &^= c.mask[i]
		}
		out = append(out, c.bytes)
		if !bytes.Equal(upper, c.bytes) {
			out = append(out, upper)
		}
	}
	return out
}

// pieces cuts a value that is too long to be held back whole. The last piece takes what
// is too short to stand alone.
func pieces(value string) []string {
	var out []string
	for len(value) >= MaxValue+MinValue {
		out = append(out, value[:MaxValue])
		value = value[MaxValue:]
	}
	return append(out, value)
}

// unique keeps the first of those that would match the same.
func unique(in []Pattern) []Pattern {
	type key struct{ bytes, mask string }
	seen := make(map[key]bool, len(in))
	return slices.DeleteFunc(in, func(p Pattern) bool {
		c := compile(p)
		key := key{string(c.bytes), string(c.mask)}
		was := seen[key]
		seen[key] = true
		return was
	})
}

// base64Cores are the digits that stand for bits of v alone, when v begins at a byte
// whose number is 0, 1 or 2 modulo 3.
func base64Cores(v string) []string {
	var out []string
	for offset := range 3 {
		// After zero bytes; digit k holds the bits 6k to 6k+5.
		padded := append(make([]byte, offset, offset+len(v)), v...)
		from, to := (8*offset+5)/6, 8*len(padded)/6
		if to-from < minCore {
			continue
		}
		out = append(out, base64.RawStdEncoding.EncodeToString(padded)[from:to], base64.RawURLEncoding.EncodeToString(padded)[from:to])
	}
	return out
}

// percentForms: there are as many as there are opinions about which bytes are safe.
func percentForms(v string) []string {
	query := url.QueryEscape(v)
	return []string{
		query,
		strings.ReplaceAll(query, "+", "%20"),
		url.PathEscape(v),
		percent(v, "-_.!~*'()"),            // encodeURIComponent
		percent(v, "-_.!~*'();/?:@&=+$,#"), // encodeURI
		percent(v, "-_.~/"),                // Python's quote
		strings.ReplaceAll(percent(v, "*-._ "), " ", "+"), // forms of browsers
		percent(v, ""),
	}
}

func percent(v, safe string) string {
	const digits = "0123456789ABCDEF"
	var b strings.Builder
	for _, c := range []byte(v) {
		if '0' <= c && c <= '9' || 'a' <= c|0x20 && c|0x20 <= 'z' || strings.IndexByte(safe, c) >= 0 {
			b.WriteByte(c)
			continue
		}
		b.Write([]byte{'%', digits[c>>4], digits[c&15]})
	}
	return b.String()
}

// jsonForms are the insides of JSON strings; none when v is no text.
func jsonForms(v string) []string {
	if !utf8.ValidString(v) {
		return nil
	}
	var out []string
	for _, html := range []bool{false, true} {
		var b bytes.Buffer
		enc := json.NewEncoder(&b)
		enc.SetEscapeHTML(html)
		if enc.Encode(v) != nil {
			continue // cannot be: a string
		}
		s := strings.TrimSuffix(b.String(), "\n")
		s = s[1 : len(s)-1]
		// encoding/json escapes U+2028 and U+2029 always, most others never.
		plain := strings.NewReplacer(`\u2028`, "\u2028", `\u2029`, "\u2029").Replace(s)
		for _, f := range []string{s, plain, asciiOnly(s)} {
			out = append(out, f, strings.ReplaceAll(f, "/", `\/`))
		}
	}
	return out
}

func asciiOnly(s string) string {
	const digits = "0123456789abcdef"
	var b strings.Builder
	for _, r := range s {
		if r < utf8.RuneSelf {
			b.WriteRune(r)
			continue
		}
		for _, u := range utf16.Encode([]rune{r}) {
			b.Write([]byte{'\\', 'u', digits[u>>12], digits[u>>8&15], digits[u>>4&15], digits[u&15]})
		}
	}
	return b.String()
}
