package main

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"strconv"
	"sync"
)

// What the hand-written client, origin and relay share: scanning HTTP/1.1 heads as
// bytes. They trust each other; nothing here is fit for hostile input.

var (
	crlf2      = []byte("\r\n\r\n")
	crlf       = []byte("\r\n")
	errTooLong = errors.New("head is longer than the buffer")
)

// token is the credential that every proxy injects.
const token = "bench-token-0123456789abcdef0123456789abcdef"

// message is a scanned head. body is what was read behind it.
type message struct {
	head    []byte // with its empty line
	length  int64  // of the body; -1: until the connection ends
	chunked bool
}

// headReader reads heads from r into a buffer of its own; what follows a head stays there.
type headReader struct {
	r    io.Reader
	buf  []byte
	i, j int // unread: buf[i:j]
}

func newHeadReader(r io.Reader) *headReader { return &headReader{r: r, buf: make([]byte, 8<<10)} }

// next reads a head. The slice is good until the next call.
func (h *headReader) next() (message, error) {
	if h.i == h.j {
		h.i, h.j = 0, 0
	} else if h.i > 0 {
		h.j = copy(h.buf, h.buf[h.i:h.j])
		h.i = 0
	}
	for from := 0; ; {
		if k := bytes.Index(h.buf[from:h.j], crlf2); k >= 0 {
			end := from + k + len(crlf2)
			h.i = end
			return scan(h.buf[:end])
		}
		from = max(0, h.j-3)
		if h.j == len(h.buf) {
			return message{}, errTooLong
		}
		n, err := h.r.Read(h.buf[h.j:])
		h.j += n
		if n == 0 && err != nil {
			return message{}, err
		}
	}
}

// rest gives what was read behind the head, at most n bytes of it, and takes it.
func (h *headReader) rest(n int64) []byte {
	b := h.buf[h.i:h.j]
	if int64(len(b)) > n {
		b = b[:n]
	}
	h.i += len(b)
	return b
}

// Read hands out the rest first.
func (h *headReader) Read(p []byte) (int, error) {
	if h.i < h.j {
		n := copy(p, h.buf[h.i:h.j])
		h.i += n
		return n, nil
	}
	return h.r.Read(p)
}

// scan finds the body's framing.
func scan(head []byte) (message, error) {
	m := message{head: head}
	if bytes.HasPrefix(head, []byte("HTTP/1.")) {
		m.length = -1
	}
	if v := field(head, "content-length"); v != nil {
		n, err := strconv.ParseInt(string(v), 10, 64)
		if err != nil {
			return m, err
		}
		m.length = n
	}
	if bytes.EqualFold(field(head, "transfer-encoding"), []byte("chunked")) {
		m.chunked, m.length = true, -1
	}
	return m, nil
}

// field is the value of a header, nil when it is not there. name is in lower case.
func field(head []byte, name string) []byte {
	_, v := find(head, name)
	return v
}

// find gives the whole line with its CRLF, and the value.
func find(head []byte, name string) (line, value []byte) {
	for rest := head; ; {
		k := bytes.Index(rest, crlf)
		if k < 0 {
			return nil, nil
		}
		rest = rest[k+2:]
		if len(rest) <= len(name) || rest[len(name)] != ':' || !fold(rest[:len(name)], name) {
			continue
		}
		end := bytes.Index(rest, crlf)
		return rest[:end+2], bytes.TrimSpace(rest[len(name)+1 : end])
	}
}

func fold(b []byte, lower string) bool {
	for i, c := range b {
		if 'A' <= c && c <= 'Z' {
			c += 'a' - 'A'
		}
		if c != lower[i] {
			return false
		}
	}
	return true
}

// chunkReader decodes a chunked body.
type chunkReader struct {
	r    *bufio.Reader
	left int64
	done bool
}

func (c *chunkReader) Read(p []byte) (int, error) {
	if c.done {
		return 0, io.EOF
	}
	if c.left == 0 {
		line, err := c.r.ReadSlice('\n')
		if err != nil {
			return 0, err
		}
		c.left, err = strconv.ParseInt(string(bytes.TrimSpace(line)), 16, 64)
		if err != nil {
			return 0, fmt.Errorf("chunk size: %w", err)
		}
		if c.left == 0 {
			c.done = true
			if _, err := c.r.Discard(2); err != nil {
				return 0, err
			}
			return 0, io.EOF
		}
	}
	n, err := c.r.Read(p[:min(int64(len(p)), c.left)])
	c.left -= int64(n)
	if c.left == 0 && err == nil {
		_, err = c.r.Discard(2)
	}
	return n, err
}

// text is a body of lines of letters and digits, as of JSON or base64: nothing that a
// search for secrets could skip because all of it is the same.
type text struct{ left, at int64 }

func newText(n int64) *text { return &text{left: n} }

const textBlock = 256 << 10

var textOnce = sync.OnceValue(func() []byte {
	const letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
	out := make([]byte, textBlock)
	x := uint64(1)
	for i := range out {
		x = x*6364136223846793005 + 1442695040888963407
		out[i] = letters[x>>58]
		if i%77 == 76 {
			out[i] = '\n'
		}
	}
	return out
})

func (t *text) Read(p []byte) (int, error) {
	if t.left == 0 {
		return 0, io.EOF
	}
	n := copy(p[:min(int64(len(p)), t.left)], textOnce()[t.at%textBlock:])
	t.left -= int64(n)
	t.at += int64(n)
	return n, nil
}
