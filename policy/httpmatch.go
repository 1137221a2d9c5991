package policy

import (
	"net/http"
	"slices"
	"strings"
)

// httpMatch limits a rule to some requests.
type httpMatch struct {
	methods  []string
	paths    []string
	prefixes []pathPrefix
	query    []valueMatch
	headers  []valueMatch
}

// valueMatch wants a parameter or header to be there, with one of values if any are
// given.
type valueMatch struct {
	name   string
	values []string
}

func (m valueMatch) accepts(v string) bool {
	return len(m.values) == 0 || slices.Contains(m.values, v)
}

// stance is the side on which a match errs when a request says two things at once
// (a parameter given twice, an encoding that servers read differently).
type stance uint8

const (
	strict stance = iota // grants something: every reading must match
	broad                // restricts something: one reading is enough
)

// ok reports whether the request matches. A nil match takes every request.
func (m *httpMatch) ok(f *Flow, s stance) bool {
	if m == nil {
		return true
	}
	if len(m.methods) > 0 && !slices.Contains(m.methods, f.Method) && (s != broad || !containsFold(m.methods, f.Method)) {
		return false
	}
	if m.looksAtPaths() && !m.path(f.Path, s) {
		return false
	}
	for i := range m.query {
		if !m.query[i].inQuery(f.RawQuery, s) {
			return false
		}
	}
	for i := range m.headers {
		if !m.headers[i].inHeader(f.Header, s) {
			return false
		}
	}
	return true
}

// containsFold is for lists that restrict: a method is matched exactly, but some
// origins take "delete" for DELETE.
func containsFold(methods []string, method string) bool {
	for _, m := range methods {
		if strings.EqualFold(m, method) {
			return true
		}
	}
	return false
}

func (m *httpMatch) looksAtPaths() bool {
	return m != nil && len(m.paths)+len(m.prefixes) > 0
}

func (m *httpMatch) looksAtMethods() bool {
	return m != nil && len(m.methods) > 0
}

func (m *httpMatch) path(path string, s stance) bool {
	if s == broad {
		return anyForbids(m.paths, m.prefixes, path)
	}
	return anyGrants(m.paths, m.prefixes, path)
}

func anyGrants(exact []string, prefixes []pathPrefix, path string) bool {
	if slices.Contains(exact, path) {
		return true
	}
	for _, p := range prefixes {
		if p.grants(path) {
			return true
		}
	}
	return false
}

func anyForbids(exact []string, prefixes []pathPrefix, path string) bool {
	for _, want := range exact {
		if forbidsExactly(path, want) {
			return true
		}
	}
	for _, p := range prefixes {
		if p.forbids(path) {
			return true
		}
	}
	return false
}

// inQuery looks for the parameter in a raw query without building a map. Parameters
// that servers split or decode differently (";", broken percent-encoding) count as
// not matching when strict and as matching when broad.
func (m valueMatch) inQuery(raw string, s stance) bool {
	found := false
	for raw != "" {
		var pair string
		pair, raw, _ = strings.Cut(raw, "&")
		if strings.IndexByte(pair, ';') >= 0 {
			return s == broad
		}
		key, val, _ := strings.Cut(pair, "=")
		same, wellFormed := unescapesTo(key, m.name)
		if !wellFormed || !decodes(val) {
			return s == broad
		}
		if !same {
			continue
		}
		accepted := m.acceptsEscaped(val)
		switch {
		case accepted && s == broad:
			return true
		case !accepted && s == strict:
			return false
		}
		found = found || accepted
	}
	return found
}

func (m valueMatch) acceptsEscaped(escaped string) bool {
	if len(m.values) == 0 {
		return true
	}
	for _, v := range m.values {
		if same, _ := unescapesTo(escaped, v); same {
			return true
		}
	}
	return false
}

// unescapesTo compares a query component, percent- and plus-decoded, with want.
func unescapesTo(escaped, want string) (same, wellFormed bool) {
	same = true
	j := 0
	for i := 0; i < len(escaped); i++ {
		c := escaped[i]
		switch c {
		case '%':
			if i+2 >= len(escaped) || !isHex(escaped[i+1]) || !isHex(escaped[i+2]) {
				return false, false
			}
			c = unhex(escaped[i+1])<<4 | unhex(escaped[i+2])
			i += 2
		case '+':
			c = ' '
		}
		same = same && j < len(want) && want[j] == c
		j++
	}
	return same && j == len(want), true
}

func decodes(escaped string) bool {
	_, ok := unescapesTo(escaped, "")
	return ok
}

// inHeader looks at every field of that name, however its key is spelled.
func (m valueMatch) inHeader(h http.Header, s stance) bool {
	found := false
	for key, vals := range h {
		if len(key) != len(m.name) || !strings.EqualFold(key, m.name) {
			continue
		}
		for _, v := range vals {
			accepted := m.accepts(v)
			switch {
			case accepted && s == broad:
				return true
			case !accepted && s == strict:
				return false
			}
			found = found || accepted
		}
	}
	return found
}

// overlaps reports whether one request could match both, as far as methods and paths
// tell.
func (m *httpMatch) overlaps(o *httpMatch) bool {
	if m == nil || o == nil {
		return true
	}
	if !overlapping(m.methods, o.methods, func(a, b string) bool { return a == b }) {
		return false
	}
	if !m.looksAtPaths() || !o.looksAtPaths() {
		return true
	}
	return m.meets(o) || o.meets(m)
}

// meets reports whether one of o's paths or prefixes lies within m's.
func (m *httpMatch) meets(o *httpMatch) bool {
	for _, p := range o.paths {
		if anyGrants(m.paths, m.prefixes, p) {
			return true
		}
	}
	for _, p := range o.prefixes {
		if anyGrants(nil, m.prefixes, string(p)) {
			return true
		}
	}
	return false
}
