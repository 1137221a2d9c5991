package inject

import (
	"encoding/base64"
	"net/http"
	"strings"
)

// InHeader says whether anything is replaced in headers.
func (p *Placeholders) InHeader() bool { return len(p.places().header) > 0 }

// Header replaces in the values of h and returns how many placeholders it replaced; every
// other byte of them stays. In Basic credentials (RFC 7617) it looks inside. Fields that
// frame or route the message, or describe its body, and Proxy-* are left alone. The error
// is ErrUnsafePlace (a colon that would move into the password, a field over 16 KiB) or
// ErrGrowth; h is then as it was.
func (p *Placeholders) Header(h http.Header) (int, error) {
	fs := p.places().header
	if len(fs) == 0 {
		return 0, nil
	}
	type field struct {
		key    string
		values []string
	}
	var changed []field
	total, grown := 0, 0
	for key, values := range h {
		var fresh []string
		for i, value := range values {
			out, n, err := fillField(key, value, fs)
			if err != nil {
				return 0, err
			}
			if n == 0 {
				continue
			}
			if fresh == nil {
				fresh = append([]string(nil), values...)
			}
			fresh[i] = out
			total += n
			grown += len(out) - len(value)
		}
		if fresh != nil {
			changed = append(changed, field{key, fresh})
		}
	}
	if grown > maxGrowth {
		return 0, ErrGrowth
	}
	for _, f := range changed {
		h[f.key] = f.values
	}
	return total, nil
}

// fillField replaces in one value; n is 0 when it stays as it is.
func fillField(key, value string, fs []filling) (out string, n int, err error) {
	if sameName(key, "Authorization") {
		if b, ok := parseBasic(value); ok {
			if edits := find(b.login, fs); len(edits) > 0 {
				out, err = b.fill(edits)
				return checkField(out, len(edits), err)
			}
		}
	}
	edits := findEscaped(value, nil, 0, fs, asIs)
	if len(edits) == 0 || neverFilled(key) {
		return value, 0, nil
	}
	out, err = apply(value, edits, maxValue)
	return checkField(out, len(edits), err)
}

// checkField: the values were checked when they were rendered and the client's bytes when
// they came in; so this never fails for another reason than the length. It is here so that
// a mistake there ends here.
func checkField(out string, n int, err error) (string, int, error) {
	if err == nil && (len(out) > maxValue || strings.ContainsAny(out, "\r\n\x00")) {
		err = ErrUnsafePlace
	}
	if err != nil {
		return "", 0, err
	}
	return out, n, nil
}

// neverFilled are the fields in which nothing is replaced wherever the operator says
// header: by their value the message, or the way that it takes, would be another.
func neverFilled(key string) bool {
	for _, name := range [...]string{
		"Host", "Content-Length", "Transfer-Encoding", "Connection", "Keep-Alive", "Te", "Trailer", "Upgrade", "Expect",
		"Http2-Settings", "Content-Type", "Content-Encoding",
	} {
		if sameName(key, name) {
			return true
		}
	}
	return len(key) >= 6 && sameName(key[:6], "Proxy-")
}

// basicValue is a field value with Basic credentials, taken apart.
type basicValue struct {
	before, after string // scheme and blanks; blanks
	login         string // user:password
	encoding      *base64.Encoding
}

// parseBasic takes the four alphabets that clients use.
func parseBasic(value string) (basicValue, bool) {
	const scheme = "basic "
	if len(value) <= len(scheme) || !strings.EqualFold(value[:len(scheme)], scheme) {
		return basicValue{}, false
	}
	blob := strings.Trim(value[len(scheme):], " \t")
	at := strings.Index(value[len(scheme):], blob) + len(scheme)
	for _, e := range []*base64.Encoding{base64.StdEncoding, base64.RawStdEncoding, base64.URLEncoding, base64.RawURLEncoding} {
		if login, err := e.DecodeString(blob); err == nil {
			return basicValue{value[:at], value[at+len(blob):], string(login), e}, true
		}
	}
	return basicValue{}, false
}

// fill: the first colon ends the user name, so a value may bring none before it.
func (b basicValue) fill(edits []edit) (string, error) {
	colon := strings.IndexByte(b.login, ':')
	for i := range edits {
		e := &edits[i]
		e.with = e.filling.value
		if e.from <= colon && strings.Count(e.with, ":") != strings.Count(e.filling.placeholder, ":") {
			return "", ErrUnsafePlace
		}
	}
	login, err := apply(b.login, edits, maxValue)
	if err != nil {
		return "", err
	}
	return b.before + b.encoding.EncodeToString([]byte(login)) + b.after, nil
}

// StripClientAuth is the package's function of this name, except that it leaves the fields
// (of Cookie, the cookies) in which a placeholder stands that Header is going to replace:
// those are the operator's. Call it before Header.
func (p *Placeholders) StripClientAuth(h http.Header) {
	fs := p.places().header
	for key, values := range h {
		if !isAuthName(key) {
			continue
		}
		var kept []string
		for _, value := range values {
			if value = ownPart(key, value, fs); value != "" {
				kept = append(kept, value)
			}
		}
		if kept == nil {
			delete(h, key)
		} else {
			h[key] = kept
		}
	}
}

// ownPart is what StripClientAuth leaves of a value.
func ownPart(key, value string, fs []filling) string {
	if len(fs) == 0 || neverFilled(key) {
		return ""
	}
	if sameName(key, "Cookie") {
		var kept []string
		for pair := range strings.SplitSeq(value, ";") {
			if holds(pair, fs) {
				kept = append(kept, strings.TrimSpace(pair))
			}
		}
		return strings.Join(kept, "; ")
	}
	if b, ok := parseBasic(value); holds(value, fs) || ok && sameName(key, "Authorization") && holds(b.login, fs) {
		return value
	}
	return ""
}
