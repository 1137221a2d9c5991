package scan

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/bits"
	"slices"
)

// MinPattern is the length in bytes of the shortest pattern that is looked for.
const MinPattern = block

const (
	block     = 4   // bytes that the shift table is asked about at once
	maxWindow = 128 // of a pattern, that the shift table knows; shifts must fit a byte
	minBits   = 10
	maxBits   = 20 // 1 MiB of table, for the thousands of values of a leak guard
	spread    = 16 // slots of the table per block in it: that many lookups miss for one that hits
	factor    = 0x9E3779B1
)

// Fold says which letters of a pattern match in either case.
type Fold uint8

// The foldings; all are of ASCII letters only.
const (
	Exact       Fold = iota
	FoldLetters      // every letter, for base16
	FoldEscapes      // the hexadecimal digits of %XX and \uXXXX
)

// Pattern is what to look for. Tag is the caller's name for it; several may share one.
// It prints as "[redacted]".
type Pattern struct {
	Bytes []byte
	Tag   int
	Fold  Fold
}

// Format keeps values out of logs.
func (Pattern) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte("[redacted]")) }

// MarshalText keeps values out of logs that are JSON.
func (Pattern) MarshalText() ([]byte, error) { return []byte("[redacted]"), nil }

// Matcher looks for a fixed set of patterns. It is immutable and safe for concurrent use;
// the zero value and nil find nothing. It prints as the number of its patterns.
type Matcher struct {
	patterns []pattern
	window   int // length of the shortest pattern, or maxWindow
	longest  int
	skip     int     // the largest shift
	shifts   []uint8 // by hash of a block; 0: a window may end here
	hashed   uint    // bits that hash leaves out
	ends     []end   // sorted by block
	byEnd    []int32 // patterns, for ends
	// For the last bytes of a chunk, which are shorter than a window: patterns by their
	// first byte b are byFirst[first[b]:first[b+1]].
	first   [257]int32
	byFirst []int32
	begins  [64]uint64 // bits by hash of a pattern's first block
}

// pattern is compared as (byte | mask) == bytes; mask is nil where all must be exact.
type pattern struct {
	bytes, mask []byte
	tag         int
}

// end lists the patterns whose window ends in block: byEnd[from:to].
type end struct {
	block    uint32
	from, to int32
}

// New compiles patterns, which may be changed afterwards. Patterns shorter than MinPattern
// are left out: the caller must have refused them, or know that they are not looked for.
// It takes memory of about 30 bytes per byte of pattern and no less than 4 KiB.
func New(patterns []Pattern) *Matcher {
	m := &Matcher{window: maxWindow}
	for _, p := range patterns {
		if len(p.Bytes) < MinPattern {
			continue
		}
		m.patterns = append(m.patterns, compile(p))
		m.window = min(m.window, len(p.Bytes))
		m.longest = max(m.longest, len(p.Bytes))
	}
	if len(m.patterns) == 0 {
		return &Matcher{}
	}
	m.skip = m.window - block + 1
	m.index()
	m.indexFirst()
	return m
}

func compile(p Pattern) pattern {
	out := pattern{bytes: bytes.Clone(p.Bytes), tag: p.Tag}
	if p.Fold == Exact {
		return out
	}
	mask, any := make([]byte, len(p.Bytes)), false
	for i, c := range p.Bytes {
		if c |= 0x20; 'a' <= c && c <= 'z' && (p.Fold == FoldLetters || inEscape(p.Bytes, i)) {
			out.bytes[i], mask[i], any = c, 0x20, true
		}
	}
	if any {
		out.mask = mask
	}
	return out
}

// inEscape says whether b[i] is a digit of %XX or \uXXXX.
func inEscape(b []byte, i int) bool {
	if !isHex(b[i]) {
		return false
	}
	start := max(0, i-5)
	for j := i - 1; j >= start; j-- {
		switch {
		case b[j] == '%':
			return i-j <= 2
		case b[j] == 'u' && j > 0 && b[j-1] == '\\':
			return i-j <= 4
		case !isHex(b[j]):
			return false
		}
	}
	return false
}

func isHex(c byte) bool {
	return '0' <= c && c <= '9' || 'a' <= c|0x20 && c|0x20 <= 'f'
}

// index fills the shift table and the lists of what may end where.
func (m *Matcher) index() {
	type at struct {
		block   uint32
		pattern int32
	}
	var last []at
	blocks := len(m.patterns) * m.skip
	size := min(max(bits.Len(uint(blocks*spread-1)), minBits), maxBits)
	m.hashed = uint(32 - size)
	m.shifts = bytes.Repeat([]byte{byte(m.skip)}, 1<<size)
	for n := range m.patterns {
		p := &m.patterns[n]
		for to := block; to <= m.window; to++ {
			shift := byte(m.window - to)
			p.blocks(to-block, func(v uint32) {
				h := (v * factor) >> m.hashed
				m.shifts[h] = min(m.shifts[h], shift)
				if shift == 0 {
					last = append(last, at{v, int32(n)})
				}
			})
		}
	}
	slices.SortStableFunc(last, func(a, b at) int {
		return int(int64(a.block) - int64(b.block))
	})
	for i, l := range last {
		if i == 0 || l.block != last[i-1].block {
			m.ends = append(m.ends, end{block: l.block, from: int32(i)})
		}
		m.byEnd = append(m.byEnd, l.pattern)
		m.ends[len(m.ends)-1].to = int32(i + 1)
	}
}

// blocks gives each form that the block at from can have.
func (p *pattern) blocks(from int, yield func(uint32)) {
	v := binary.LittleEndian.Uint32(p.bytes[from:])
	if p.mask == nil {
		yield(v)
		return
	}
	mask := binary.LittleEndian.Uint32(p.mask[from:])
	for upper := mask; ; upper = (upper - 1) & mask { // every subset of mask
		yield(v &^ upper)
		if upper == 0 {
			return
		}
	}
}

func (m *Matcher) indexFirst() {
	for c := range 256 {
		m.first[c] = int32(len(m.byFirst))
		for n := range m.patterns {
			if m.patterns[n].prefix([]byte{byte(c)}) {
				m.byFirst = append(m.byFirst, int32(n))
			}
		}
	}
	m.first[256] = int32(len(m.byFirst))
	for n := range m.patterns {
		m.patterns[n].blocks(0, func(v uint32) {
			h := v * factor >> (32 - 12)
			m.begins[h/64] |= 1 << (h % 64)
		})
	}
}

// Empty says that nothing is looked for.
func (m *Matcher) Empty() bool { return m == nil || len(m.patterns) == 0 }

// Longest is the length in bytes of the longest pattern: what a stream may hold back is
// less.
func (m *Matcher) Longest() int {
	if m == nil {
		return 0
	}
	return m.longest
}

// Format keeps values out of logs.
func (m *Matcher) Format(f fmt.State, _ rune) {
	n := 0
	if m != nil {
		n = len(m.patterns)
	}
	_, _ = fmt.Fprintf(f, "scan of %d patterns", n)
}

// Find gives the leftmost match in b, of those that begin there the longest, of equal
// ones the first in New. It allocates nothing.
func (m *Matcher) Find(b []byte) (start, end, tag int, ok bool) {
	start, end, n := m.scan(b, true)
	if n < 0 {
		return 0, 0, 0, false
	}
	return start, end, m.patterns[n].tag, true
}

// scan finds the first match b[start:end] and its pattern. Without one the pattern is
// -1: nothing in b[:start] is, or is the beginning of, a match; b[start:] may become one
// with the bytes that follow, of which final says that there are none.
func (m *Matcher) scan(b []byte, final bool) (start, end, pattern int) {
	if m.Empty() {
		return len(b), 0, -1
	}
	for from := 0; ; from++ {
		if from = m.candidate(b, from); from < 0 {
			break
		}
		n, open := m.at(b[from:], from+m.window-block, b, final)
		if open {
			return from, 0, -1
		}
		if n >= 0 {
			return from, from + len(m.patterns[n].bytes), n
		}
	}
	if final {
		return len(b), 0, -1
	}
	return m.tail(b), 0, -1
}

// candidate gives the next start, at from or after it, of a window that the shift table
// does not rule out; -1: none. This loop is what scanning costs.
func (m *Matcher) candidate(b []byte, from int) int {
	skip, hashed, shifts := m.skip, m.hashed&31, m.shifts
	offset := m.window - block
	for i := from + offset; i <= len(b)-block; {
		h := int(binary.LittleEndian.Uint32(b[i:]) * factor >> hashed)
		if h >= len(shifts) {
			return -1 // cannot be; spares the check of bounds
		}
		shift := int(shifts[h])
		// As a branch, so that the processor goes on with the likely case instead of
		// waiting for the table.
		if shift == skip {
			i += skip
			continue
		}
		if shift == 0 {
			return i - offset
		}
		i += shift
	}
	return -1
}

// at says which pattern the bytes of rest begin with. open: a pattern that would be
// preferred may, with more bytes. The window's last block is at b[last:].
func (m *Matcher) at(rest []byte, last int, b []byte, final bool) (n int, open bool) {
	v := binary.LittleEndian.Uint32(b[last:])
	i, j := 0, len(m.ends)
	for i < j {
		if h := int(uint(i+j) / 2); m.ends[h].block < v {
			i = h + 1
		} else {
			j = h
		}
	}
	if i == len(m.ends) || m.ends[i].block != v {
		return -1, false
	}
	n = -1
	for _, c := range m.byEnd[m.ends[i].from:m.ends[i].to] {
		p := &m.patterns[c]
		switch {
		case len(p.bytes) > len(rest):
			if !final && p.prefix(rest) {
				return -1, true
			}
		case n >= 0 && len(p.bytes) <= len(m.patterns[n].bytes):
		case p.prefix(rest[:len(p.bytes)]):
			n = int(c)
		}
	}
	return n, false
}

// tail finds where the beginning of a pattern stands at b's end, among the places that
// are too near to it for a whole window.
func (m *Matcher) tail(b []byte) int {
	for i := max(0, len(b)-m.window+1); i < len(b); i++ {
		if i+block <= len(b) {
			h := binary.LittleEndian.Uint32(b[i:]) * factor >> (32 - 12)
			if m.begins[h/64]&(1<<(h%64)) == 0 {
				continue
			}
		}
		c := b[i]
		for _, n := range m.byFirst[m.first[c]:m.first[int(c)+1]] {
			if m.patterns[n].prefix(b[i:]) {
				return i
			}
		}
	}
	return len(b)
}

// across looks at what begins in past, fewer bytes than any pattern, and goes on in b:
// found is a match that counts; open: there may be one with more bytes.
func (m *Matcher) across(past, b []byte, final bool, counts func(tag int) bool) (found, open bool) {
	for i, c := range past {
		k := len(past) - i
		for _, n := range m.byFirst[m.first[c]:m.first[int(c)+1]] {
			p := &m.patterns[n]
			rest := pattern{bytes: p.bytes[k:]}
			if p.mask != nil {
				rest.mask = p.mask[k:]
			}
			have := min(len(b), len(rest.bytes))
			switch {
			case !p.prefix(past[i:]) || !rest.prefix(b[:have]):
			case have < len(rest.bytes):
				open = open || !final
			case counts(p.tag):
				return true, false
			}
		}
	}
	return false, open
}

// prefix says whether b, no longer than the pattern, is what it begins with.
func (p *pattern) prefix(b []byte) bool {
	if p.mask == nil {
		return bytes.Equal(b, p.bytes[:len(b)])
	}
	for i, c := range b {
		if c|p.mask[i] != p.bytes[i] {
			return false
		}
	}
	return true
}
