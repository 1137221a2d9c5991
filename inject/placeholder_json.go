package inject

import (
	"encoding/json"
	"errors"
	"io"
	"strings"
)

// jsonEdits are those inside string literals, names of members too. A placeholder in what
// is no JSON text, nor a sequence of them (as in NDJSON), is an error: where its strings
// begin is then the reader's guess.
func jsonEdits(raw string, fs []filling) ([]edit, error) {
	var edits []edit
	for i := 0; i < len(raw); {
		n := strings.IndexByte(raw[i:], '"')
		if n < 0 {
			break
		}
		from := i + n + 1
		to, escaped := literalEnd(raw, from)
		text, at := raw[from:to], []int32(nil)
		if escaped {
			text, at = unescapeJSON(text)
		}
		edits = append(edits, findEscaped(text, at, from, fs, asJSON)...)
		i = to + 1
	}
	if (len(edits) > 0 || holds(raw, fs)) && !areJSON(raw) {
		return nil, ErrBodySyntax
	}
	return edits, nil
}

// literalEnd is the place of the quote that ends the string whose content begins at from.
func literalEnd(raw string, from int) (to int, escaped bool) {
	for to = from; to < len(raw); to++ {
		switch raw[to] {
		case '"':
			return to, escaped
		case '\\':
			escaped = true
			to++
		}
	}
	return len(raw), escaped
}

// unescapeJSON undoes the escapes of a string's content as far as they are ASCII, which
// all of a placeholder is; anything else is a byte that no placeholder has.
func unescapeJSON(raw string) (text string, at []int32) {
	const no = 0xff
	out := make([]byte, 0, len(raw))
	at = make([]int32, 0, len(raw)+1)
	for i := 0; i < len(raw); {
		at = append(at, int32(i))
		c, width := raw[i], 1
		if c == '\\' {
			c, width = no, 2
			if i+1 < len(raw) {
				switch e := raw[i+1]; e {
				case '"', '\\', '/':
					c = e
				case 'u':
					width = 6
					if r := hex4(raw, i+2); r >= 0 && r < 0x80 {
						c = byte(r)
					}
				}
			}
		}
		out = append(out, c)
		i = min(i+width, len(raw))
	}
	return string(out), append(at, int32(len(raw)))
}

// hex4 is the value of the four digits at s[i], -1 if they are none.
func hex4(s string, i int) int {
	v := 0
	for k := range 4 {
		d := hexAt(s, i+k)
		if d < 0 {
			return -1
		}
		v = v<<4 | d
	}
	return v
}

// areJSON: one JSON text or several, a byte order mark before them.
func areJSON(raw string) bool {
	d := json.NewDecoder(strings.NewReader(strings.TrimPrefix(raw, "\ufeff")))
	for {
		var one json.RawMessage
		if err := d.Decode(&one); err != nil {
			return errors.Is(err, io.EOF)
		}
	}
}

// Text replaces in one whole text message of a WebSocket (RFC 6455, 5.6) where body is a
// location: as in JSON if it is a JSON text, else as in text. out is msg itself when n is
// 0. The error is ErrGrowth.
func (p *Placeholders) Text(msg []byte) (out []byte, n int, err error) {
	fs := p.places().body
	if len(fs) == 0 {
		return msg, 0, nil
	}
	raw := string(msg)
	if !holds(raw, fs) && strings.IndexByte(raw, '\\') < 0 {
		return msg, 0, nil
	}
	var edits []edit
	if json.Valid(msg) {
		edits, err = jsonEdits(raw, fs)
	} else {
		edits = findEscaped(raw, nil, 0, fs, asIs)
	}
	if err != nil || len(edits) == 0 {
		return keep(msg, err), 0, err
	}
	filled, err := apply(raw, edits, maxGrowth)
	if err != nil {
		return nil, 0, err
	}
	return []byte(filled), len(edits), nil
}
