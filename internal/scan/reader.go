package scan

import (
	"errors"
	"io"
)

// ErrFound is what reading ends with where Detect has found something.
var ErrFound = errors.New("a known value was found")

const (
	roomy    = 512 // bytes of the caller's buffer that make it worth reading into
	maxEmpty = 100 // reads in a row that gave nothing
)

// Reader passes a stream on and acts on what is found in it, wherever its chunks end. It
// holds back only bytes at the end of what has arrived that a pattern begins with, less
// than Longest of them; all others leave with the Read that they came with. Like any
// io.Reader it is for one goroutine; Close may come from another if the source's may.
//
// Detect holds back only where four bytes or more of a pattern stand at the end, if all
// patterns are of eight or more: one byte in five begins some form of a value, and whoever
// waits for the last byte of a message would wait in vain.
//
// When the source fails other than with io.EOF, what was held back is dropped: it is the
// beginning of a value.
type Reader struct {
	m       *Matcher
	src     io.Reader
	replace func(tag int) []byte // nil: detect
	found   func(tag int) bool

	in    []byte // came from src and has not been passed on; at the end of buf
	buf   []byte
	past  []byte // what has left of a beginning that was too short to hold back
	clean int    // bytes of in that may go
	dirty bool   // in has not been searched to its end
	out   []byte
	err   error // of src, or ErrFound; given when all else has been
}

// Replace gives src with each match replaced by what replace says for its tag, which may
// be nothing. replace is called once for each match, within Read; what it returns must
// not change until the next call. What replaces is not searched again.
func (m *Matcher) Replace(src io.Reader, replace func(tag int) []byte) *Reader {
	return &Reader{m: m, src: src, replace: replace}
}

// Detect gives src up to the first match that counts, and then ErrFound: of the match three
// bytes are passed on at the most, and none of it where it came in one piece. found says,
// within Read, whether a match counts; nil: every one does.
func (m *Matcher) Detect(src io.Reader, found func(tag int) bool) *Reader {
	if found == nil {
		found = func(int) bool { return true }
	}
	return &Reader{m: m, src: src, found: found}
}

// Read gives bytes as soon as there are any that may go.
func (r *Reader) Read(p []byte) (int, error) {
	n := 0
	for n < len(p) {
		switch {
		case len(r.out) > 0:
			c := copy(p[n:], r.out)
			r.out = r.out[c:]
			n += c
		case r.clean > 0:
			c := copy(p[n:], r.in[:r.clean])
			r.in, r.clean = r.in[c:], r.clean-c
			n += c
		case r.dirty:
			r.search()
		case n > 0:
			return n, nil
		case r.err != nil:
			r.in = nil
			return 0, r.err
		case len(p) >= len(r.in)+roomy:
			n = r.direct(p)
		default:
			r.fill()
		}
	}
	return n, nil
}

// Close closes the source if it can be.
func (r *Reader) Close() error {
	if c, ok := r.src.(io.Closer); ok {
		return c.Close()
	}
	return nil
}

// search looks at in. A match that does not stand at its beginning is found again when
// what is before it has gone.
func (r *Reader) search() {
	start, end, n := r.m.scan(r.in, r.err == io.EOF)
	switch {
	case n < 0:
		r.clean, r.dirty = r.release(r.in, start), false
	case start > 0:
		r.clean = start
	case r.replace == nil && !r.found(r.m.patterns[n].tag):
		r.clean = 1 // what begins within it may count
	case r.replace == nil:
		r.in, r.dirty, r.err = nil, false, ErrFound
	default:
		r.in = r.in[end:]
		r.dirty = len(r.in) > 0
		r.out = r.replace(r.m.patterns[n].tag)
	}
}

// direct reads into the caller's buffer, which is searched in place: without matches
// nothing is copied but what is held back. It gives the number of bytes that may go.
func (r *Reader) direct(p []byte) int {
	held := copy(p, r.in)
	all := p[:held+r.pull(p[held:])]
	if !r.joined(all) {
		clear(all)
		return 0
	}
	start, _, n := r.m.scan(all, r.err == io.EOF)
	if n < 0 {
		start = r.release(all, start)
	}
	r.keep(all[start:])
	r.dirty = n >= 0
	clear(all[start:]) // the caller has no business with it
	return start
}

// fill reads into the buffer of our own, for callers with a small one.
func (r *Reader) fill() {
	held := len(r.in)
	if want := max(2*r.m.Longest(), 8*roomy); cap(r.buf) < want {
		r.buf = make([]byte, want)
	}
	r.buf = r.buf[:cap(r.buf)]
	copy(r.buf, r.in) // may overlap
	n := r.pull(r.buf[held:])
	r.in = r.buf[:held+n]
	r.dirty = r.joined(r.in)
}

// joined looks for what has begun in past and goes on in b, which came next. It says
// whether to search b itself: not when something was found, nor when b as a whole may be
// the middle of a match and is kept.
func (r *Reader) joined(b []byte) bool {
	if len(r.past) == 0 {
		return true
	}
	found, open := r.m.across(r.past, b, r.err == io.EOF, r.found)
	switch {
	case found:
		r.in, r.past, r.err = nil, nil, ErrFound
	case open:
		r.keep(b)
	default:
		r.past = r.past[:0]
		return true
	}
	return false
}

// release says how much of b may go, of which b[start:] may be the beginning of a match.
func (r *Reader) release(b []byte, start int) int {
	if short := b[start:]; r.replace == nil && len(short) < block && r.m.window >= 2*block {
		r.past = append(r.past[:0], short...)
		return len(b)
	}
	return start
}

func (r *Reader) keep(b []byte) {
	if len(b) == 0 {
		r.in = nil
		return
	}
	r.buf = append(r.buf[:0], b...)
	r.in = r.buf
}

// pull reads from src until something has come.
func (r *Reader) pull(p []byte) int {
	for range maxEmpty {
		n, err := r.src.Read(p)
		if n < 0 || n > len(p) {
			n, err = 0, errors.New("source gave an impossible length")
		}
		r.err = err
		if n > 0 || err != nil {
			return n
		}
	}
	r.err = io.ErrNoProgress
	return 0
}
