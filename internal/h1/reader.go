package h1

import (
	"bytes"
	"io"
	"sync"
)

const bufSize = 4 << 10

type buffer struct{ b []byte }

// readBuffers and writeBuffers are shared by all connections; a buffer goes back
// only when nothing refers to its bytes.
var (
	readBuffers  = sync.Pool{New: func() any { return &buffer{b: make([]byte, bufSize)} }}
	writeBuffers = sync.Pool{New: func() any { return &buffer{b: make([]byte, 0, 2*bufSize)} }}
)

func getBuffer(p *sync.Pool) *buffer {
	b, _ := p.Get().(*buffer)
	return b
}

// reader is a buffered reader that can give its buffer back while it is empty.
type reader struct {
	fill func(p []byte) (int, error) // reads the connection under the owner's deadlines
	buf  *buffer
	r, w int
	grow []byte // replaces buf for heads over 4 KiB
}

func (r *reader) bytes() []byte {
	if r.grow != nil {
		return r.grow
	}
	return r.buf.b
}

func (r *reader) buffered() int { return r.w - r.r }

// acquire makes sure that there is a buffer.
func (r *reader) acquire() {
	if r.buf == nil {
		r.buf = getBuffer(&readBuffers)
		r.r, r.w = 0, 0
	}
}

// put makes b the only byte that is buffered.
func (r *reader) put(b byte) {
	r.acquire()
	r.bytes()[0], r.r, r.w = b, 0, 1
}

// release gives the buffer back if it holds nothing.
func (r *reader) release() {
	if r.buf != nil && r.r == r.w {
		readBuffers.Put(r.buf)
		r.buf, r.grow, r.r, r.w = nil, nil, 0, 0
	}
}

// take returns what is buffered, and forgets it.
func (r *reader) take() []byte {
	if r.buf == nil || r.r == r.w {
		r.release()
		return nil
	}
	rest := bytes.Clone(r.bytes()[r.r:r.w])
	r.r, r.w = 0, 0
	r.release()
	return rest
}

// more reads at least one byte behind what is buffered.
func (r *reader) more(limit int) error {
	r.acquire()
	b := r.bytes()
	switch {
	case r.r == r.w:
		r.r, r.w = 0, 0
		if r.grow != nil { // do not keep a large buffer
			r.grow, b = nil, r.buf.b
		}
	case r.w == len(b) && r.r > 0:
		r.w = copy(b, b[r.r:r.w])
		r.r = 0
	case r.w == len(b):
		if len(b) >= limit {
			return errTooLong
		}
		g := make([]byte, min(4*len(b), limit+1))
		copy(g, b)
		r.grow, b = g, g
	}
	n, err := r.fill(b[r.w:])
	r.w += n
	if n > 0 {
		return nil
	}
	if err == nil {
		err = io.ErrNoProgress
	}
	return err
}

// Read gives buffered bytes first; large reads go past the buffer.
func (r *reader) Read(p []byte) (int, error) {
	if r.r < r.w {
		n := copy(p, r.bytes()[r.r:r.w])
		r.r += n
		return n, nil
	}
	if len(p) >= bufSize {
		return r.fill(p)
	}
	if err := r.more(bufSize); err != nil {
		return 0, err
	}
	n := copy(p, r.bytes()[r.r:r.w])
	r.r += n
	return n, nil
}

var errTooLong = &ProtocolError{Status: 431, Reason: "head_too_large"}

// head reads up to and including the empty line and returns it without that line as
// one string, and the number of lines. Line ends must be CRLF.
func (r *reader) head(lim Limits) (string, int, error) {
	lines, lineStart, pos := 0, 0, 0 // relative to r.r
	for {
		if r.buf != nil {
			b := r.bytes()[r.r:r.w]
			for {
				i := bytes.IndexByte(b[pos:], '\n')
				if i < 0 {
					pos = len(b)
					break
				}
				end := pos + i
				if end == lineStart || b[end-1] != '\r' {
					return "", 0, bad("bare_lf")
				}
				pos = end + 1
				if end-1 == lineStart {
					if pos > lim.HeadBytes {
						return "", 0, errTooLong
					}
					return r.finishHead(b, lineStart, pos, lines)
				}
				if end-lineStart > lim.LineBytes {
					return "", 0, lineTooLong(lines)
				}
				if lines++; lines > lim.Headers+1 {
					return "", 0, &ProtocolError{Status: 431, Reason: "too_many_headers"}
				}
				lineStart = pos
			}
			if len(b)-lineStart > lim.LineBytes {
				return "", 0, lineTooLong(lines)
			}
			if len(b) >= lim.HeadBytes {
				return "", 0, errTooLong
			}
		}
		if err := r.more(lim.HeadBytes); err != nil {
			return "", 0, err
		}
	}
}

func (r *reader) finishHead(b []byte, lineStart, end, lines int) (string, int, error) {
	if lines == 0 {
		return "", 0, bad("empty_line_first")
	}
	head := string(b[:lineStart])
	r.r += end
	return head, lines, nil
}

func lineTooLong(lines int) *ProtocolError {
	if lines == 0 {
		return &ProtocolError{Status: 414, Reason: "request_line_too_long"}
	}
	return &ProtocolError{Status: 431, Reason: "line_too_long"}
}

// line reads one CRLF-terminated line of at most limit bytes. The bytes are valid
// until the next read.
func (r *reader) line(limit int) ([]byte, error) {
	pos := 0
	for {
		if r.buf != nil {
			b := r.bytes()[r.r:r.w]
			if i := bytes.IndexByte(b[pos:], '\n'); i >= 0 {
				end := pos + i
				if end == 0 || b[end-1] != '\r' {
					return nil, bad("bare_lf")
				}
				if end > limit {
					return nil, bad("chunk_line_too_long")
				}
				r.r += end + 1
				return b[:end-1], nil
			}
			if pos = len(b); pos > limit {
				return nil, bad("chunk_line_too_long")
			}
		}
		if err := r.more(bufSize); err != nil {
			return nil, err
		}
	}
}

// crlf reads the two bytes behind a chunk; it does not wait for a second one behind a
// first that is wrong.
func (r *reader) crlf() error {
	for _, want := range []byte("\r\n") {
		if r.r == r.w {
			if err := r.more(bufSize); err != nil {
				return err
			}
		}
		if r.bytes()[r.r] != want {
			return bad("chunk_without_crlf")
		}
		r.r++
	}
	return nil
}
