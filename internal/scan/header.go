package scan

import "net/http"

// Bytes gives b with each match replaced by what replace says for its tag, and how many
// there were. Without any it is b itself, and nothing is allocated.
func (m *Matcher) Bytes(b []byte, replace func(tag int) []byte) ([]byte, int) {
	var out []byte
	count := 0
	for rest := b; ; count++ {
		start, end, tag, ok := m.Find(rest)
		switch {
		case !ok && count == 0:
			return b, 0
		case !ok:
			return append(out, rest...), count
		}
		out = append(append(out, rest[:start]...), replace(tag)...)
		rest = rest[end:]
	}
}

// Header replaces, in place, what is found in the values of a header or trailer by what
// replace says, and gives how many matches there were. Fields with a match in their name
// are deleted (names reach us in one case only, so that only values without capitals can
// be told). What replaces must be legal in a field value.
func (m *Matcher) Header(h http.Header, replace func(tag int) []byte) int {
	if m.Empty() {
		return 0
	}
	count := 0
	var scratch []byte
	for name, values := range h {
		scratch = append(scratch[:0], name...)
		if m.inName(scratch) {
			delete(h, name)
			count++
			continue
		}
		for i, v := range values {
			scratch = append(scratch[:0], v...)
			b, n := m.Bytes(scratch, replace)
			if n > 0 {
				values[i] = string(b)
				count += n
			}
		}
	}
	return count
}

// inName compares name, which it changes, as what canonicalisation and as what HTTP/2
// make of it.
func (m *Matcher) inName(name []byte) bool {
	if _, _, _, ok := m.Find(name); ok {
		return true
	}
	for i, c := range name {
		if 'A' <= c && c <= 'Z' {
			name[i] = c | 0x20
		}
	}
	_, _, _, ok := m.Find(name)
	return ok
}
