package inject

import (
	"slices"
	"strings"
)

// edit puts a value in the place of raw[from:to].
type edit struct {
	from, to int
	with     string
	filling  *filling
}

// holds says whether one of the placeholders stands in text as it is.
func holds(text string, fs []filling) bool {
	return slices.ContainsFunc(fs, func(f filling) bool { return strings.Contains(text, f.placeholder) })
}

// find gives the places of placeholders in text, from the left, none over another. Its
// time is linear in text for each placeholder.
func find(text string, fs []filling) []edit {
	var out []edit
	for i := range fs {
		f := &fs[i]
		for from := 0; ; {
			n := strings.Index(text[from:], f.placeholder)
			if n < 0 {
				break
			}
			from += n + len(f.placeholder)
			out = append(out, edit{from: from - len(f.placeholder), to: from, filling: f})
		}
	}
	if len(fs) > 1 {
		slices.SortFunc(out, func(a, b edit) int { return a.from - b.from })
		end := 0
		out = slices.DeleteFunc(out, func(e edit) bool {
			if e.from < end {
				return true
			}
			end = e.to
			return false
		})
	}
	return out
}

// findEscaped is find in the meaning of text, whose i-th byte is written at at[i] to
// at[i+1] of raw, or at i when at is nil. The edits are of raw, moved by base.
func findEscaped(text string, at []int32, base int, fs []filling, write func(*filling) string) []edit {
	out := find(text, fs)
	for i := range out {
		e := &out[i]
		if at != nil {
			e.from, e.to = int(at[e.from]), int(at[e.to])
		}
		e.from, e.to, e.with = e.from+base, e.to+base, write(e.filling)
	}
	return out
}

// apply makes the edits, which are in order, unless the result grows by more than limit.
func apply(raw string, edits []edit, limit int) (string, error) {
	if len(edits) == 0 {
		return raw, nil
	}
	grown := 0
	for _, e := range edits {
		grown += len(e.with) - (e.to - e.from)
	}
	if grown > limit {
		return "", ErrGrowth
	}
	var out strings.Builder
	out.Grow(len(raw) + grown)
	done := 0
	for _, e := range edits {
		out.WriteString(raw[done:e.from])
		out.WriteString(e.with)
		done = e.to
	}
	out.WriteString(raw[done:])
	return out.String(), nil
}

func asIs(f *filling) string      { return f.value }
func asPercent(f *filling) string { return f.percent }
func asJSON(f *filling) string    { return f.json }

// unpercent undoes percent-encoding once, and leaves what is none as it stands. at is for
// findEscaped.
func unpercent(raw string) (text string, at []int32) {
	if strings.IndexByte(raw, '%') < 0 {
		return raw, nil
	}
	out := make([]byte, 0, len(raw))
	at = make([]int32, 0, len(raw)+1)
	for i := 0; i < len(raw); {
		at = append(at, int32(i))
		if hi, lo := hexAt(raw, i+1), hexAt(raw, i+2); raw[i] == '%' && hi >= 0 && lo >= 0 {
			out = append(out, byte(hi<<4|lo))
			i += 3
			continue
		}
		out = append(out, raw[i])
		i++
	}
	return string(out), append(at, int32(len(raw)))
}

// hexAt is the value of the hex digit at s[i], -1 if there is none.
func hexAt(s string, i int) int {
	if i >= len(s) {
		return -1
	}
	switch c := s[i]; {
	case '0' <= c && c <= '9':
		return int(c - '0')
	case 'a' <= c|0x20 && c|0x20 <= 'f':
		return int(c|0x20-'a') + 10
	}
	return -1
}
