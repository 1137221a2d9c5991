package h1

import (
	"errors"
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
)

// smallBody is sent in one write with its head.
const smallBody = 4 << 10

// send writes the request. lost: something of the body was consumed.
func (c *ClientConn) send(req *http.Request, opts *RoundTripOptions) (lost bool, err error) {
	b := getBuffer(&writeBuffers)
	defer writeBuffers.Put(b)
	hasBody := req.Body != nil && req.Body != http.NoBody && req.ContentLength != 0
	if b.b, err = appendRequest(b.b[:0], req, opts, hasBody); err != nil {
		return false, err
	}
	n := req.ContentLength
	if hasBody && n > 0 && n <= smallBody {
		at := len(b.b)
		b.b = append(b.b, make([]byte, n)...)
		if _, err := io.ReadFull(req.Body, b.b[at:]); err != nil {
			return true, unexpected(err)
		}
		lost, hasBody = true, false
	}
	c.write.set(c.nc, opts.StallTimeout)
	if _, err = c.nc.Write(b.b); err != nil || !hasBody {
		return lost, err
	}
	c.up = &upload{c: c, req: req, opts: opts, done: make(chan struct{})}
	go c.up.run() // endUpload waits for it
	return true, nil
}

var errBadField = errors.New("header field that cannot be sent")

func appendRequest(b []byte, req *http.Request, opts *RoundTripOptions, hasBody bool) ([]byte, error) {
	if req.Method == "" || !all(req.Method, isToken) || !validAuthority(opts.Host, false) ||
		!strings.HasPrefix(opts.Target, "/") || !all(opts.Target, isTarget) {
		return b, errBadField
	}
	b = append(b, req.Method...)
	b = append(b, ' ')
	b = append(b, opts.Target...)
	b = append(b, " HTTP/1.1\r\nHost: "...)
	b = append(b, opts.Host...)
	b = append(b, "\r\n"...)
	for k, vs := range req.Header {
		if framingField(k) || ourField(k) {
			continue
		}
		if !all(k, isToken) || k == "" {
			return b, errBadField
		}
		for _, v := range vs {
			if !all(v, isValue) {
				return b, errBadField
			}
			b = appendField(b, k, v)
		}
	}
	switch {
	case hasBody && req.ContentLength > 0:
		b = append(b, "Content-Length: "...)
		b = strconv.AppendInt(b, req.ContentLength, 10)
		b = append(b, "\r\n"...)
	case hasBody:
		b = append(b, "Transfer-Encoding: chunked\r\n"...)
	case req.Method == http.MethodPost || req.Method == http.MethodPut || req.Method == http.MethodPatch:
		b = append(b, "Content-Length: 0\r\n"...)
	}
	if opts.Upgrade {
		b = append(b, "Connection: Upgrade\r\nUpgrade: websocket\r\n"...)
	}
	return append(b, "\r\n"...), nil
}

// ourField says whether a request field, however it is spelled, is written by
// appendRequest alone.
func ourField(k string) bool {
	switch len(k) {
	case len("Host"):
		return strings.EqualFold(k, "Host")
	case len("Expect"):
		return strings.EqualFold(k, "Expect")
	case len("Upgrade"): // and Trailer
		return strings.EqualFold(k, "Upgrade") || strings.EqualFold(k, "Trailer")
	}
	return false
}

// chunkHead is room for the size line of a chunk.
const chunkHead = 16

// upload copies a request body that is large, or of unknown length, while the
// answer is read.
type upload struct {
	c    *ClientConn
	req  *http.Request
	opts *RoundTripOptions
	done chan struct{}

	state atomic.Uint32
	err   error // of reading the body; valid when done
	ok    bool  // all was sent; valid when done
}

// states of an upload. Only the first step away from uploading counts.
const (
	uploading uint32 = iota
	lastWrite        // the last bytes are on their way
	bodyEnded        // reading the body failed: err says how
	givenUp          // the exchange ended first
)

// lastGrace is how long an answer that is complete waits for the last write of its
// request to return: an origin answers within the time that takes.
const lastGrace = 100 * time.Millisecond

func (u *upload) run() {
	defer close(u.done)
	buf := getBuffer(&chunkBuffers)
	defer chunkBuffers.Put(buf)
	b := buf.b[:cap(buf.b)]
	left := u.req.ContentLength
	for left != 0 {
		end := len(b) - 2
		if left > 0 {
			end = int(min(int64(end), chunkHead+left))
		}
		n, err := u.req.Body.Read(b[chunkHead:end])
		if n > 0 && !u.write(b, n, &left) {
			return
		}
		switch {
		case err == io.EOF && left < 0:
			u.ok = u.finish()
			return
		case err != nil && left != 0:
			u.fail(unexpected(err))
			return
		}
	}
	u.ok = true
}

// fail ends the connection, never cleanly: the body was cut short.
func (u *upload) fail(err error) {
	if u.state.CompareAndSwap(uploading, bodyEnded) {
		u.err = err
	}
	_ = u.c.nc.Close()
}

// write sends n bytes of b behind chunkHead, as one chunk if the length is not
// known. A failure is for the reader to judge: the origin may have answered early.
func (u *upload) write(b []byte, n int, left *int64) bool {
	out := b[chunkHead : chunkHead+n]
	if *left < 0 {
		var size [chunkHead]byte
		line := strconv.AppendInt(size[:0], int64(n), 16)
		line = append(line, "\r\n"...)
		start := chunkHead - len(line)
		copy(b[start:], line)
		copy(b[chunkHead+n:], "\r\n")
		out = b[start : chunkHead+n+2]
	} else if *left -= int64(n); *left == 0 {
		u.state.CompareAndSwap(uploading, lastWrite)
	}
	return u.send(out)
}

func (u *upload) send(out []byte) bool {
	u.c.write.set(u.c.nc, u.opts.StallTimeout)
	_, err := u.c.nc.Write(out)
	return err == nil
}

// finish sends the last chunk.
func (u *upload) finish() bool {
	b := append(make([]byte, 0, 64), "0\r\n"...)
	if u.opts.Trailers {
		for k, vs := range u.req.Trailer {
			b = appendTrailer(b, k, vs)
		}
	}
	u.state.CompareAndSwap(uploading, lastWrite)
	return u.send(append(b, "\r\n"...))
}

func (u *upload) over() bool {
	select {
	case <-u.done:
		return true
	default:
		return false
	}
}

// complete says whether all was sent.
func (u *upload) complete() bool {
	if !u.over() && u.state.Load() == lastWrite {
		grace := time.NewTimer(lastGrace)
		defer grace.Stop()
		select {
		case <-u.done:
		case <-grace.C:
		}
	}
	return u.over() && u.ok
}

// endUpload stops an upload, waits for its end, and returns the error of reading the
// body if that is what ended the exchange.
func (c *ClientConn) endUpload() error {
	u := c.up
	if u == nil {
		return nil
	}
	c.up = nil
	if !u.over() {
		u.state.CompareAndSwap(uploading, givenUp)
		_ = c.nc.Close()       // ends a write
		_ = u.req.Body.Close() // ends a read
		<-u.done
	}
	return u.err
}
