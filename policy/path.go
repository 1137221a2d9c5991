package policy

import (
	"errors"
	"strings"
	"unicode/utf8"
)

// ErrBadPath is what CanonicalPath answers; it never repeats the input.
var ErrBadPath = errors.New("not a path that can be matched")

// CanonicalPath is the one spelling of a request's path (without its query), for
// matching and for sending: percent-encoding decoded once, "." and ".." segments
// removed (never above the root), repeated slashes folded, and what must be encoded
// encoded again in upper-case hex. "+" always comes out as %2B, because some origins
// read it as a space. An empty path is "/". ErrBadPath: no leading slash; an encoded
// slash, backslash or NUL; a raw backslash, '?', '#' or control byte; a broken
// percent-encoding; bytes that are no UTF-8; a dot or
// empty segment with parameters ("..;x", ";x").
// Canonical input comes back without allocating; the result is a fixed point.
func CanonicalPath(escaped string) (string, error) {
	if escaped == "" {
		return "/", nil
	}
	if escaped[0] != '/' {
		return "", ErrBadPath
	}
	if isPlainPath(escaped) {
		return escaped, nil
	}
	decoded, err := unescapePath(escaped)
	if err != nil {
		return "", err
	}
	kept, err := cleanSegments(decoded)
	if err != nil {
		return "", err
	}
	return encodePath(kept), nil
}

// isPlainPath recognises the common case: nothing to decode, encode, fold or remove.
func isPlainPath(p string) bool {
	for i := range len(p) {
		c := p[i]
		switch {
		case !plainPathByte(c):
			return false
		case c == '/' && i+1 < len(p) && (p[i+1] == '/' || p[i+1] == '.' || p[i+1] == ';'):
			return false
		}
	}
	return true
}

// plainPathByte reports what stands for itself in a canonical path: pchar of RFC 3986
// without '+'.
func plainPathByte(c byte) bool {
	return isAlnum(c) || strings.IndexByte("-._~!$&'()*,;=:@/", c) >= 0
}

func unescapePath(p string) (string, error) {
	var b strings.Builder
	b.Grow(len(p))
	for i := 0; i < len(p); i++ {
		c := p[i]
		switch {
		case c == '%':
			if i+2 >= len(p) || !isHex(p[i+1]) || !isHex(p[i+2]) {
				return "", ErrBadPath
			}
			c = unhex(p[i+1])<<4 | unhex(p[i+2])
			if c == '/' || c == '\\' || c < 0x20 || c == 0x7f {
				return "", ErrBadPath
			}
			i += 2
		case c == '\\' || c == '?' || c == '#' || c < 0x20 || c == 0x7f:
			return "", ErrBadPath
		}
		b.WriteByte(c)
	}
	if !utf8.ValidString(b.String()) {
		return "", ErrBadPath // overlong forms of '/' and '.' among them
	}
	return b.String(), nil
}

// cleanSegments folds slashes and removes dot segments. A trailing slash stays, and
// one takes the place of a trailing dot segment.
func cleanSegments(p string) ([]string, error) {
	segments := strings.Split(p[1:], "/")
	kept := make([]string, 0, len(segments)+1)
	for i, s := range segments {
		last := i == len(segments)-1
		name, _, params := strings.Cut(s, ";")
		switch dots := name == "." || name == ".."; {
		case params && (dots || name == ""):
			return nil, ErrBadPath // servers that drop parameters see another path
		case dots:
			if name == ".." && len(kept) > 0 {
				kept = kept[:len(kept)-1]
			}
			if last {
				kept = append(kept, "")
			}
		case s != "" || last:
			kept = append(kept, s)
		}
	}
	return kept, nil
}

func encodePath(segments []string) string {
	const digits = "0123456789ABCDEF"
	var b strings.Builder
	for _, s := range segments {
		b.WriteByte('/')
		for i := range len(s) {
			if c := s[i]; plainPathByte(c) {
				b.WriteByte(c)
			} else {
				b.Write([]byte{'%', digits[c>>4], digits[c&15]})
			}
		}
	}
	if b.Len() == 0 {
		return "/"
	}
	return b.String()
}

func isHex(c byte) bool {
	return c >= '0' && c <= '9' || c >= 'a' && c <= 'f' || c >= 'A' && c <= 'F'
}

func unhex(c byte) byte {
	switch {
	case c >= 'a':
		return c - 'a' + 10
	case c >= 'A':
		return c - 'A' + 10
	}
	return c - '0'
}

// pathPrefix is a prefix of canonical paths that ends at a segment boundary.
type pathPrefix string

// grants is for lists that allow: "/a" covers "/a" and all below it, "/a/" only what
// is below.
func (pre pathPrefix) grants(path string) bool {
	p := string(pre)
	if !strings.HasPrefix(path, p) {
		return false
	}
	return len(path) == len(p) || p[len(p)-1] == '/' || path[len(p)] == '/'
}

// forbids is for lists that deny: "/a" and "/a/" both cover "/a" and all below it,
// and path parameters ("/a;v=1/b"), which many servers ignore, hide nothing.
func (pre pathPrefix) forbids(path string) bool {
	p := strings.TrimSuffix(string(pre), "/")
	n, ok := matchIgnoringParams(path, p)
	return ok && (n == len(path) || path[n] == '/' || path[n] == ';')
}

// forbidsExactly reports whether path is want, parameters apart.
func forbidsExactly(path, want string) bool {
	if path == want {
		return true
	}
	n, ok := matchIgnoringParams(path, want)
	return ok && skipParams(path, n) == len(path)
}

// matchIgnoringParams walks along path as long as it spells want, stepping over
// ";…" at the end of segments, and gives the offset in path where want ended. Where
// want has the parameters itself they are compared.
func matchIgnoringParams(path, want string) (int, bool) {
	i := 0
	for j := range len(want) {
		if want[j] == '/' && i < len(path) && path[i] == ';' {
			i = skipParams(path, i)
		}
		if i >= len(path) || path[i] != want[j] {
			return 0, false
		}
		i++
	}
	return i, true
}

// skipParams gives the end of the parameters that start at i, if any do.
func skipParams(path string, i int) int {
	if i >= len(path) || path[i] != ';' {
		return i
	}
	if end := strings.IndexByte(path[i:], '/'); end >= 0 {
		return i + end
	}
	return len(path)
}
