package mcp

import (
	"bytes"
	"encoding/json"
	"errors"
	"strconv"
	"strings"
	"unicode/utf8"
)

// maxDepth of a request.
const maxDepth = 64

var (
	errDuplicate = errors.New("a member is given twice")
	errDepth     = errors.New("nested too deeply")
	errName      = errors.New("a name is not Unicode")
	errCase      = errors.New("a member is spelt in another letter case")
)

// wellFormed says whether b is one JSON document (RFC 8259) in UTF-8. The functions below
// are for such documents only.
func wellFormed(b []byte) bool { return utf8.Valid(b) && json.Valid(b) }

func skipSpace(b []byte, i int) int {
	for i < len(b) && (b[i] == ' ' || b[i] == '\t' || b[i] == '\n' || b[i] == '\r') {
		i++
	}
	return i
}

// skipValue gives the end of the value that begins at i.
func skipValue(b []byte, i int) int {
	depth := 0
	for i < len(b) {
		switch b[i] {
		case '"':
			i = skipString(b, i)
		case '{', '[':
			depth++
			i++
			continue
		case '}', ']':
			depth--
			i++
		case ' ', '\t', '\n', '\r', ',', ':':
			i++
			continue
		default: // a number or a word
			for i < len(b) && strings.IndexByte(" \t\n\r,:]}", b[i]) < 0 {
				i++
			}
		}
		if depth <= 0 {
			return i
		}
	}
	return i
}

// skipString gives the end of the string that begins at i.
func skipString(b []byte, i int) int {
	for i++; i < len(b) && b[i] != '"'; i++ {
		if b[i] == '\\' {
			i++
		}
	}
	return min(i+1, len(b))
}

// span is b[from:to] of a document.
type span struct{ from, to int }

func (s span) of(b []byte) []byte { return b[s.from:s.to] }

// is says what kind of value stands there, by its first byte.
func (s span) is(b []byte, first byte) bool { return s.from < s.to && b[s.from] == first }

// members calls f for each member of the object that begins at i, until it fails.
func members(b []byte, i int, f func(key, value span) error) error {
	for i = skipSpace(b, i+1); i < len(b) && b[i] != '}'; {
		key := span{i, skipString(b, i)}
		i = skipSpace(b, skipSpace(b, key.to)+1) // past the colon
		value := span{i, skipValue(b, i)}
		if err := f(key, value); err != nil {
			return err
		}
		if i = skipSpace(b, value.to); i < len(b) && b[i] == ',' {
			i = skipSpace(b, i+1)
		}
	}
	return nil
}

// elements calls f for each element of the array that begins at i, until it fails, and
// gives the place of the closing bracket. around includes the space before and after.
func elements(b []byte, i int, f func(value, around span) error) (end int, err error) {
	i++
	for at := skipSpace(b, i); at < len(b) && b[at] != ']'; at = skipSpace(b, i) {
		value := span{at, skipValue(b, at)}
		to := skipSpace(b, value.to)
		if err := f(value, span{i, to}); err != nil {
			return 0, err
		}
		if i = to; i < len(b) && b[i] == ',' {
			i++
		}
	}
	return skipSpace(b, i), nil
}

// text reads the string literal s. It fails for what is no string and for half a surrogate
// pair, which every decoder makes something else of.
func text(b []byte, s span) (string, bool) {
	raw := s.of(b)
	if len(raw) < 2 || raw[0] != '"' {
		return "", false
	}
	if bytes.IndexByte(raw, '\\') < 0 {
		return string(raw[1 : len(raw)-1]), true
	}
	var out string
	if loneSurrogate(raw) || json.Unmarshal(raw, &out) != nil {
		return "", false
	}
	return out, true
}

// loneSurrogate looks for \uD800 to \uDFFF that is not in a pair.
func loneSurrogate(raw []byte) bool {
	for i := 0; i+1 < len(raw); i++ {
		if raw[i] != '\\' {
			continue
		}
		switch unit := escaped(raw[i:]); {
		case unit >= 0xDC00 && unit <= 0xDFFF:
			return true
		case unit >= 0xD800 && unit <= 0xDBFF:
			if low := escaped(raw[i+6:]); low < 0xDC00 || low > 0xDFFF {
				return true
			}
			i += 11
		default:
			i++ // the escaped byte
		}
	}
	return false
}

// escaped reads \uXXXX; -1 when it is something else.
func escaped(b []byte) int64 {
	if len(b) < 6 || b[0] != '\\' || b[1] != 'u' {
		return -1
	}
	unit, err := strconv.ParseUint(string(b[2:6]), 16, 16)
	if err != nil {
		return -1
	}
	return int64(unit)
}

// unambiguous looks at the whole value at i and gives its end: no object in it has a
// member twice, no key is half a character, and nothing is deeper than depth.
func unambiguous(b []byte, i, depth int) (end int, err error) {
	if b[i] != '{' && b[i] != '[' {
		return skipValue(b, i), nil
	}
	if depth == 0 {
		return 0, errDepth
	}
	object := b[i] == '{'
	var seen map[string]bool
	for i = skipSpace(b, i+1); b[i] != '}' && b[i] != ']'; {
		if object {
			key := span{i, skipString(b, i)}
			name, ok := text(b, key)
			if !ok {
				return 0, errName
			}
			if seen[name] {
				return 0, errDuplicate
			}
			if seen == nil {
				seen = map[string]bool{}
			}
			seen[name] = true
			i = skipSpace(b, skipSpace(b, key.to)+1) // past the colon
		}
		if i, err = unambiguous(b, i, depth-1); err != nil {
			return 0, err
		}
		if i = skipSpace(b, i); b[i] == ',' {
			i = skipSpace(b, i+1)
		}
	}
	return i + 1, nil
}

// pick finds the named members of the object at i. Names that differ from one of them in
// letter case only are an error (encoding/json, among others, takes either), and so is a
// second of the same name.
func pick(b []byte, i int, names ...string) (map[string]span, error) {
	out := map[string]span{}
	err := members(b, i, func(key, value span) error {
		got, ok := text(b, key)
		if !ok {
			return errName
		}
		for _, name := range names {
			_, twice := out[name]
			switch {
			case got == name && twice:
				return errDuplicate
			case got == name:
				out[name] = value
			case strings.EqualFold(got, name):
				return errCase
			}
		}
		return nil
	})
	return out, err
}
