package scan

import (
	"compress/gzip"
	"compress/zlib"
	"errors"
	"io"
	"strings"

	"github.com/andybalholm/brotli"
)

// Errors of Decoded and of reading what it gives.
var (
	ErrEncoding = errors.New("content coding is unknown, or more than one")
	ErrBomb     = errors.New("content coding inflates beyond its limits")
)

// Limits bound what decoding may yield. Zero fields take the defaults.
type Limits struct {
	Ratio int64 // decoded bytes per encoded one; 100
	Grace int64 // decoded bytes from which on Ratio counts; 1 MiB
	Bytes int64 // decoded bytes in all; 64 MiB
}

// Decoded gives r without its content coding: gzip, x-gzip, deflate (zlib, RFC 9110
// §8.4.1.2) or br; "" and identity give r itself. Anything else, a list of codings
// included, is ErrEncoding. It does not read yet. Reading gives what can be decoded as
// soon as it can be, ErrBomb in place of the first byte beyond limits, and the decoder's
// error where the encoding is broken. It needs no closing; closing r stays the caller's.
func Decoded(r io.Reader, contentEncoding string, limits Limits) (io.Reader, error) {
	in := &counted{r: r}
	out := &decoded{in: in, limits: limits}
	switch strings.ToLower(strings.Trim(contentEncoding, " \t")) {
	case "", "identity":
		return r, nil
	case "gzip", "x-gzip":
		out.open = func() (io.Reader, error) { return gzip.NewReader(in) }
	case "deflate":
		out.open = func() (io.Reader, error) { return zlib.NewReader(in) }
	case "br":
		out.open = func() (io.Reader, error) { return brotli.NewReader(in), nil }
	default:
		return nil, ErrEncoding
	}
	out.limits.fill()
	return out, nil
}

func (l *Limits) fill() {
	for _, f := range []struct {
		v      *int64
		preset int64
	}{{&l.Ratio, 100}, {&l.Grace, 1 << 20}, {&l.Bytes, 64 << 20}} {
		if *f.v <= 0 {
			*f.v = f.preset
		}
	}
}

type decoded struct {
	in     *counted
	open   func() (io.Reader, error) // waits for bytes of the header, so that it is called by Read
	limits Limits
	r      io.Reader
	n      int64
	err    error
}

func (d *decoded) Read(p []byte) (int, error) {
	if d.err == nil && d.r == nil {
		d.r, d.err = d.open()
		d.empty()
	}
	if d.err != nil {
		return 0, d.err
	}
	n, err := d.r.Read(p)
	d.n += int64(n)
	if d.n > d.limits.Bytes || d.n > d.limits.Grace && d.n > d.limits.Ratio*d.in.n {
		n, err = 0, ErrBomb
	}
	d.err = err
	d.empty()
	return n, d.err
}

// empty forgives a coded body of no bytes at all: answers to HEAD have it, and servers
// that code nothing.
func (d *decoded) empty() {
	if d.err != nil && d.in.n == 0 && d.in.err == io.EOF {
		d.err = io.EOF
	}
}

// counted counts what is read from r.
type counted struct {
	r   io.Reader
	n   int64
	err error
}

func (c *counted) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n += int64(n)
	c.err = err
	return n, err
}
