package sigv4

import "strings"

// authParams are what a presigned URL has; the names as paramName makes them.
var authParams = [7]string{
	"x-amz-algorithm", "x-amz-credential", "x-amz-signedheaders", "x-amz-signature", "x-amz-date", "x-amz-expires", "x-amz-security-token",
}

// authParamNames are their spellings.
var authParamNames = [7]string{
	"X-Amz-Algorithm", "X-Amz-Credential", "X-Amz-SignedHeaders", "X-Amz-Signature", "X-Amz-Date", "X-Amz-Expires", "X-Amz-Security-Token",
}

const (
	pAlgorithm = iota
	pCredential
	pSigned
	pSignature
	pDate
	pExpires
)

// pair is one parameter, decoded.
type pair struct {
	name, value string
	bare        bool // without "="
}

func (p pair) loose() string {
	return strings.Map(func(c rune) rune {
		switch {
		case 'A' <= c && c <= 'Z':
			return c + 'a' - 'A'
		case c == '_', c == '.', c == ' ':
			return '-'
		}
		return c
	}, strings.TrimSpace(p.name))
}

// splitQuery decodes a query. Parameters end at "&" alone.
func splitQuery(raw string) ([]pair, error) {
	var out []pair
	for part := range strings.SplitSeq(raw, "&") {
		if part == "" {
			continue
		}
		name, value, has := strings.Cut(part, "=")
		n, okName := unescape(name, true)
		v, okValue := unescape(value, true)
		if !okName || !okValue {
			return nil, malformed("a query that cannot be decoded")
		}
		out = append(out, pair{n, v, !has})
	}
	return out, nil
}

// joinQuery writes parameters, in the order in which they came, as a canonical query would
// ("URI encode"): there is then one way only to read them. A signature's own are left out.
func joinQuery(pairs []pair) string {
	var b strings.Builder
	for _, p := range pairs {
		if isAuthParam(p.loose()) {
			continue
		}
		if b.Len() > 0 {
			b.WriteByte('&')
		}
		escape(&b, p.name)
		if !p.bare {
			b.WriteByte('=')
			escape(&b, p.value)
		}
	}
	return b.String()
}

func isAuthParam(loose string) bool {
	for _, name := range authParams {
		if name == loose {
			return true
		}
	}
	return false
}

// encodePath writes a path so that it is the same whether a service verifies it as it came or
// decodes and encodes it before: everything but unreserved characters and slashes is
// encoded. An encoded slash stays one.
func encodePath(path string, s3 bool) (string, error) {
	if path == "" {
		path = "/"
	}
	segments := strings.Split(path, "/")
	var b strings.Builder
	for i, s := range segments {
		decoded, ok := unescape(s, false)
		if !ok {
			return "", malformed("a path that cannot be decoded")
		}
		inner := i > 0 && i < len(segments)-1
		if !s3 && (decoded == "." || decoded == ".." || decoded == "" && inner) {
			return "", malformed("a path that is not normal, for a service that normalises it")
		}
		if i > 0 {
			b.WriteByte('/')
		}
		escape(&b, decoded)
	}
	return b.String(), nil
}

func escape(b *strings.Builder, s string) {
	const hexDigits = "0123456789ABCDEF"
	for _, c := range []byte(s) {
		if isUnreserved(c) {
			b.WriteByte(c)
			continue
		}
		b.WriteByte('%')
		b.WriteByte(hexDigits[c>>4])
		b.WriteByte(hexDigits[c&15])
	}
}

func unescape(s string, plus bool) (string, bool) {
	if !strings.ContainsAny(s, "%+") {
		return s, true
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		c := s[i]
		switch {
		case c == '+' && plus:
			c = ' '
		case c == '%':
			if i+2 >= len(s) || unhex(s[i+1]) < 0 || unhex(s[i+2]) < 0 {
				return "", false
			}
			c = byte(unhex(s[i+1])<<4 | unhex(s[i+2]))
			i += 2
		}
		b.WriteByte(c)
	}
	return b.String(), true
}

func isUnreserved(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '-' || c == '.' || c == '_' || c == '~'
}

func unhex(c byte) int {
	switch {
	case '0' <= c && c <= '9':
		return int(c - '0')
	case 'a' <= c && c <= 'f':
		return int(c-'a') + 10
	case 'A' <= c && c <= 'F':
		return int(c-'A') + 10
	}
	return -1
}
