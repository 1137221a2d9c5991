package h1

import (
	"net/http"
	"strings"
)

// byte classes (RFC 9110 section 5.6.2, RFC 3986 section 2).
const (
	isToken  = 1 << iota // tchar
	isUpper              // A-Z
	isLower              // a-z
	isValue              // field-content: HTAB, SP, VCHAR, obs-text
	isTarget             // VCHAR but # and backslash
	isHost               // a name or an IPv4 address
)

var class = makeClasses()

func makeClasses() (c [256]uint8) {
	for i := range 256 {
		b := byte(i)
		switch {
		case b >= 'a' && b <= 'z':
			c[i] |= isToken | isLower | isHost
		case b >= 'A' && b <= 'Z':
			c[i] |= isToken | isUpper | isHost
		case b >= '0' && b <= '9':
			c[i] |= isToken | isHost
		case strings.IndexByte("!#$%&'*+-.^_`|~", b) >= 0:
			c[i] |= isToken
		}
		if strings.IndexByte("-._", b) >= 0 {
			c[i] |= isHost
		}
		if b == '\t' || b >= ' ' && b != 0x7f {
			c[i] |= isValue
		}
		if b > ' ' && b < 0x7f && b != '#' && b != '\\' {
			c[i] |= isTarget
		}
	}
	return c
}

func all(s string, want uint8) bool {
	for i := range len(s) {
		if class[s[i]]&want == 0 {
			return false
		}
	}
	return true
}

// parseFields parses field lines ("Name: value\r\n" each). Names become canonical;
// values are substrings of s. They are put into h, nil for a new one; room, if it is
// large enough for n values, holds them.
func parseFields(s string, n int, h http.Header, room []string) (http.Header, error) {
	if h == nil {
		h = make(http.Header, n)
	}
	values := room
	if len(values) < n {
		values = make([]string, n)
	}
	for len(s) > 0 {
		end := strings.Index(s, "\r\n")
		line := s[:end]
		s = s[end+2:]
		colon := strings.IndexByte(line, ':')
		if colon <= 0 {
			if line != "" && (line[0] == ' ' || line[0] == '\t') {
				return nil, bad("obs_fold")
			}
			return nil, bad("field_without_name")
		}
		name, err := canonicalName(line[:colon])
		if err != nil {
			return nil, err
		}
		raw := line[colon+1:]
		value := strings.Trim(raw, " \t")
		if !all(value, isValue) {
			return nil, bad("bad_field_value")
		}
		if name == "Content-Length" && !strings.HasSuffix(raw, value) {
			return nil, bad("bad_content_length")
		}
		if old, ok := h[name]; ok {
			h[name] = append(old, value)
			continue
		}
		values[0] = value
		h[name] = values[:1:1]
		values = values[1:]
	}
	return h, nil
}

// canonicalName checks a field name and gives its canonical form, without a copy
// where it has that form already.
func canonicalName(s string) (string, error) {
	upper, canonical := true, true
	for i := range len(s) {
		c := class[s[i]]
		if c&isToken == 0 {
			if s[i] == ' ' || s[i] == '\t' {
				if i == 0 {
					return "", bad("obs_fold")
				}
				return "", bad("blank_in_field_name")
			}
			return "", bad("bad_field_name")
		}
		if upper && c&isLower != 0 || !upper && c&isUpper != 0 {
			canonical = false
		}
		upper = s[i] == '-'
	}
	if canonical {
		return s, nil
	}
	return http.CanonicalHeaderKey(s), nil
}

// framing is how long a body is.
type framing struct {
	length  int64 // -1: not given
	chunked bool
}

// parseFraming reads Content-Length and Transfer-Encoding, both of which frame a
// message and therefore must leave no room for a second reading.
func parseFraming(h http.Header, http10 bool) (framing, error) {
	f := framing{length: -1}
	te, cl := h["Transfer-Encoding"], h["Content-Length"]
	if len(te) > 0 {
		switch {
		case http10:
			return f, bad("te_on_http_1_0")
		case len(cl) > 0:
			return f, bad("te_and_cl")
		case len(te) > 1:
			return f, bad("repeated_te")
		case !strings.EqualFold(te[0], "chunked"):
			return f, &ProtocolError{Status: 501, Reason: "unknown_te"}
		}
		f.chunked = true
		return f, nil
	}
	if len(cl) == 0 {
		return f, nil
	}
	if len(cl) > 1 {
		return f, bad("repeated_cl")
	}
	n, ok := parseLength(cl[0])
	if !ok {
		return f, bad("bad_content_length")
	}
	f.length = n
	return f, nil
}

// parseLength takes 1 to 18 digits without a leading zero.
func parseLength(s string) (int64, bool) {
	if len(s) == 0 || len(s) > 18 || len(s) > 1 && s[0] == '0' {
		return 0, false
	}
	var n int64
	for i := range len(s) {
		if s[i] < '0' || s[i] > '9' {
			return 0, false
		}
		n = 10*n + int64(s[i]-'0')
	}
	return n, true
}

// hasOption says whether a comma-separated list in any of vs has option.
func hasOption(vs []string, option string) bool {
	for _, v := range vs {
		for o := range strings.SplitSeq(v, ",") {
			if strings.EqualFold(strings.Trim(o, " \t"), option) {
				return true
			}
		}
	}
	return false
}
