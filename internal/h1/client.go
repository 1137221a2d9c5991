package h1

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"time"
)

// ClientConn is one connection to an origin. Not for concurrent use; it may be used
// again once Done has been called with true. While it is not in use it holds no buffer.
type ClientConn struct {
	nc     net.Conn
	lim    Limits
	rd     reader
	wait   waiting
	up     *upload
	broken bool
}

// NewClientConn makes a ClientConn of nc, on which nothing has been sent.
func NewClientConn(nc net.Conn, lim Limits) *ClientConn {
	c := &ClientConn{nc: nc, lim: lim}
	c.rd.src, c.rd.fill = nc, c.fill
	return c
}

// RoundTripOptions of one exchange. Target and Host are sent as they are.
type RoundTripOptions struct {
	Target  string // origin-form
	Host    string
	Upgrade bool // send the WebSocket upgrade; a 101 is an answer

	HeaderTimeout time.Duration // until the final head; 0: none
	StallTimeout  time.Duration // a write without progress
	IdleTimeout   time.Duration // a read of the body without progress; 0: none

	// Slow is called once when the origin has been silent for SlowAfter: the time to
	// begin to watch whether anybody still waits. It must return at once.
	Slow      func()
	SlowAfter time.Duration

	// Got1xx sees interim answers other than 100 in order. An error ends the exchange.
	Got1xx func(status int, h http.Header) error
	// Done is called once: with the body read to its end, or given up (reusable false).
	// It is not called when RoundTrip fails.
	Done func(reusable bool)
}

// maxInterim is how many 1xx an origin may send before it is taken for an attack.
const maxInterim = 64

// smallBody is sent in one write with its head.
const smallBody = 4 << 10

// waiting is the state of reads from the origin.
type waiting struct {
	opts  *RoundTripOptions
	slow  bool // Slow has been called
	head  bool // the head has not come yet
	until time.Time
	any   bool // a byte of the answer has come
}

var errNothingRead = errors.New("the origin closed the connection before it answered")

// retryError marks an error before which nothing of an answer came and nothing of a
// request body was lost.
type retryError struct{ error }

func (e retryError) Unwrap() error { return e.error }

// Retryable says whether the same request may be sent again on a new connection,
// given that this connection had been used before.
func Retryable(err error) bool {
	var re retryError
	return errors.As(err, &re)
}

// RoundTrip sends req (Method, Header, Body, ContentLength, Trailer) and returns the
// final answer. Header values are checked: a CR, LF or NUL fails, nothing is replaced.
func (c *ClientConn) RoundTrip(req *http.Request, opts *RoundTripOptions) (*http.Response, error) {
	if c.broken {
		return nil, errNothingRead
	}
	c.broken = true // until the answer has been read
	c.wait = waiting{opts: opts, head: true}
	if opts.HeaderTimeout > 0 {
		c.wait.until = time.Now().Add(opts.HeaderTimeout)
	}
	lost, err := c.send(req, opts)
	if err != nil && c.up == nil {
		return nil, c.failed(err, lost)
	}
	resp, err := c.readHead(req, opts)
	if err != nil {
		c.endUpload()
		var clientErr error
		if c.up != nil {
			clientErr = c.up.readErr()
		}
		c.rd.take()
		if clientErr != nil {
			return nil, clientErr
		}
		return nil, c.failed(err, lost)
	}
	return resp, nil
}

func (c *ClientConn) failed(err error, lost bool) error {
	var pe *ProtocolError
	if !lost && !c.wait.any && !errors.As(err, &pe) && !errors.Is(err, os.ErrDeadlineExceeded) {
		return retryError{err}
	}
	return err
}

// send writes the request. lost: something of the body was consumed.
func (c *ClientConn) send(req *http.Request, opts *RoundTripOptions) (lost bool, err error) {
	b := getBuffer(&writeBuffers)
	defer func() {
		b.b = b.b[:0]
		writeBuffers.Put(b)
	}()
	b.b = b.b[:0]
	hasBody := req.Body != nil && req.Body != http.NoBody && req.ContentLength != 0
	if err := appendRequest(b, req, opts, hasBody); err != nil {
		return false, err
	}
	if opts.StallTimeout > 0 {
		_ = c.nc.SetWriteDeadline(time.Now().Add(opts.StallTimeout))
	}
	if !hasBody {
		_, err = c.nc.Write(b.b)
		return false, err
	}
	if n := req.ContentLength; n > 0 && n <= smallBody {
		at := len(b.b)
		b.b = append(b.b, make([]byte, n)...)
		if _, err := io.ReadFull(req.Body, b.b[at:]); err != nil {
			return true, err
		}
		_, err = c.nc.Write(b.b)
		return true, err
	}
	c.up = &upload{c: c, req: req, stall: opts.StallTimeout, done: make(chan struct{})}
	if _, err := c.nc.Write(b.b); err != nil {
		close(c.up.done)
		return true, err
	}
	go c.up.run() // endUpload waits for it
	return true, nil
}

var errBadField = errors.New("header field that cannot be sent")

func appendRequest(b *buffer, req *http.Request, opts *RoundTripOptions, hasBody bool) error {
	if !all(req.Method, isToken) || req.Method == "" || !all(opts.Target, isTarget) || opts.Target == "" || !all(opts.Host, isHost) {
		return errBadField
	}
	b.b = append(b.b, req.Method...)
	b.b = append(b.b, ' ')
	b.b = append(b.b, opts.Target...)
	b.b = append(b.b, " HTTP/1.1\r\nHost: "...)
	b.b = append(b.b, opts.Host...)
	b.b = append(b.b, "\r\n"...)
	for k, vs := range req.Header {
		switch k {
		case "Host", "Content-Length", "Transfer-Encoding", "Connection", "Upgrade", "Trailer", "Expect":
			continue // framing is ours alone
		}
		if !all(k, isToken) || k == "" {
			return errBadField
		}
		for _, v := range vs {
			if !all(v, isValue) {
				return errBadField
			}
			b.b = appendField(b.b, k, v)
		}
	}
	switch {
	case hasBody && req.ContentLength > 0:
		b.b = append(b.b, "Content-Length: "...)
		b.b = strconv.AppendInt(b.b, req.ContentLength, 10)
		b.b = append(b.b, "\r\n"...)
	case hasBody:
		b.b = append(b.b, "Transfer-Encoding: chunked\r\n"...)
	case req.Method == http.MethodPost || req.Method == http.MethodPut || req.Method == http.MethodPatch:
		b.b = append(b.b, "Content-Length: 0\r\n"...)
	}
	if opts.Upgrade {
		b.b = append(b.b, "Connection: Upgrade\r\nUpgrade: websocket\r\n"...)
	}
	b.b = append(b.b, "\r\n"...)
	return nil
}

// fill reads from the origin under the deadline of the moment, and calls Slow once
// when nothing has come for a while.
func (c *ClientConn) fill(p []byte) (int, error) {
	w := &c.wait
	for {
		var deadline time.Time
		slowRound := w.opts.Slow != nil && !w.slow
		switch {
		case slowRound:
			deadline = time.Now().Add(w.opts.SlowAfter)
			if w.head && !w.until.IsZero() && w.until.Before(deadline) {
				deadline, slowRound = w.until, false
			}
		case w.head:
			deadline = w.until
		case w.opts.IdleTimeout > 0:
			deadline = time.Now().Add(w.opts.IdleTimeout)
		}
		_ = c.nc.SetReadDeadline(deadline)
		n, err := c.nc.Read(p)
		if n > 0 {
			w.any = true
		}
		if n == 0 && slowRound && errors.Is(err, os.ErrDeadlineExceeded) {
			w.slow = true
			w.opts.Slow()
			continue
		}
		return n, err
	}
}

// readHead reads interim answers and the final head.
func (c *ClientConn) readHead(req *http.Request, opts *RoundTripOptions) (*http.Response, error) {
	for range maxInterim {
		head, lines, err := c.rd.head(c.lim)
		if err == io.EOF {
			err = errNothingRead
			if c.wait.any {
				err = io.ErrUnexpectedEOF
			}
		}
		if err != nil {
			return nil, badGateway(err)
		}
		resp, err := parseResponse(head, lines)
		if err != nil {
			return nil, badGateway(err)
		}
		resp.Request = req
		switch {
		case resp.StatusCode == http.StatusSwitchingProtocols && opts.Upgrade:
			return c.upgraded(resp, opts), nil
		case resp.StatusCode == http.StatusSwitchingProtocols:
			return nil, &ProtocolError{Status: http.StatusBadGateway, Reason: "unrequested_101"}
		case resp.StatusCode >= 200:
			return c.answer(req, resp, opts)
		case len(resp.Header["Content-Length"])+len(resp.Header["Transfer-Encoding"]) > 0:
			return nil, &ProtocolError{Status: http.StatusBadGateway, Reason: "framed_1xx"}
		case resp.StatusCode != http.StatusContinue && opts.Got1xx != nil:
			if err := opts.Got1xx(resp.StatusCode, resp.Header); err != nil {
				return nil, err
			}
		}
	}
	return nil, &ProtocolError{Status: http.StatusBadGateway, Reason: "too_many_1xx"}
}

// answer gives resp its body.
func (c *ClientConn) answer(req *http.Request, resp *http.Response, opts *RoundTripOptions) (*http.Response, error) {
	f, toClose, none, err := frameResponse(resp, req.Method)
	if err != nil {
		return nil, badGateway(err)
	}
	c.wait.head = false
	keep := !toClose && resp.ProtoMinor == 1 && !hasOption(resp.Header["Connection"], "close")
	body := &responseBody{c: c, resp: resp, opts: opts, keep: keep}
	body.p = payload{rd: &c.rd, framing: f, left: max(f.length, 0), toClose: toClose}
	resp.Body = body
	if none {
		body.p.err = io.EOF
		body.end(true)
	}
	return resp, nil
}

// responseBody is the body of an answer. Its end, or Close, gives the connection back.
type responseBody struct {
	c     *ClientConn
	resp  *http.Response
	opts  *RoundTripOptions
	p     payload
	keep  bool
	ended atomic.Bool
}

func (b *responseBody) Read(p []byte) (int, error) {
	if b.ended.Load() {
		if b.p.err == io.EOF {
			return 0, io.EOF
		}
		return 0, http.ErrBodyReadAfterClose
	}
	n, err := b.p.Read(p)
	if err == io.EOF {
		b.resp.Trailer = b.p.trailer
		b.end(true)
	} else if err != nil {
		err = badGateway(err)
	}
	return n, err
}

// Close gives up what has not been read.
func (b *responseBody) Close() error {
	b.end(false)
	return nil
}

func (b *responseBody) end(whole bool) {
	if b.ended.Swap(true) {
		return
	}
	c := b.c
	reusable := whole && b.keep && c.rd.buffered() == 0
	if c.up != nil && !c.up.finished() {
		reusable = false // an early answer: what is left of the upload is not sent
	}
	if !reusable {
		_ = c.nc.Close()
	}
	c.endUpload()
	c.rd.take()
	c.broken = !reusable
	b.opts.Done(reusable)
}

// upgraded gives resp the connection as its body (io.ReadWriteCloser).
func (c *ClientConn) upgraded(resp *http.Response, opts *RoundTripOptions) *http.Response {
	rest := c.rd.take()
	_ = c.nc.SetDeadline(time.Time{})
	resp.ContentLength = -1
	resp.Body = &upgradedBody{Conn: c.nc, rest: bytes.NewReader(rest), done: opts.Done}
	return resp
}

type upgradedBody struct {
	net.Conn
	rest *bytes.Reader
	once sync.Once
	done func(bool)
}

func (u *upgradedBody) Read(p []byte) (int, error) {
	if u.rest.Len() > 0 {
		return u.rest.Read(p)
	}
	return u.Conn.Read(p)
}

func (u *upgradedBody) CloseWrite() error {
	if hc, ok := u.Conn.(interface{ CloseWrite() error }); ok {
		return hc.CloseWrite()
	}
	return nil
}

func (u *upgradedBody) Close() error {
	err := u.Conn.Close()
	u.once.Do(func() { u.done(false) })
	return err
}

// chunkHead is room for the size line of a chunk.
const chunkHead = 16

// upload copies a request body that is large, or of unknown length, while the
// answer is read.
type upload struct {
	c     *ClientConn
	req   *http.Request
	stall time.Duration
	done  chan struct{}
	err   error // of reading the body; valid when done
	ok    bool  // all was sent
}

func (u *upload) run() {
	defer close(u.done)
	buf := getBuffer(&chunkBuffers)
	defer chunkBuffers.Put(buf)
	const head = chunkHead
	b := buf.b[:cap(buf.b)]
	left := u.req.ContentLength
	for {
		n, err := u.req.Body.Read(b[head : len(b)-2])
		if n > 0 && !u.write(b, head, n, &left) {
			return
		}
		switch {
		case err == io.EOF:
			u.finish(left)
			return
		case err != nil:
			u.err = err
			_ = u.c.nc.Close() // never a clean end to a body that was cut short
			return
		}
	}
}

// write sends b[head:head+n], as one chunk if the length is not known.
func (u *upload) write(b []byte, head, n int, left *int64) bool {
	out := b[head : head+n]
	if *left < 0 {
		var size [chunkHead]byte
		line := strconv.AppendInt(size[:0], int64(n), 16)
		line = append(line, "\r\n"...)
		start := head - len(line)
		copy(b[start:], line)
		copy(b[head+n:], "\r\n")
		out = b[start : head+n+2]
	} else if *left -= int64(n); *left < 0 {
		u.err = fmt.Errorf("body is longer than its Content-Length")
		_ = u.c.nc.Close()
		return false
	}
	if u.stall > 0 {
		_ = u.c.nc.SetWriteDeadline(time.Now().Add(u.stall))
	}
	_, err := u.c.nc.Write(out)
	return err == nil // the origin may have answered early: the reader decides
}

func (u *upload) finish(left int64) {
	if left > 0 {
		u.err = io.ErrUnexpectedEOF
		_ = u.c.nc.Close()
		return
	}
	if left < 0 {
		b := append([]byte(nil), "0\r\n"...)
		for k, vs := range u.req.Trailer {
			for _, v := range vs {
				if all(k, isToken) && k != "" && all(v, isValue) {
					b = appendField(b, k, v)
				}
			}
		}
		if _, err := u.c.nc.Write(append(b, "\r\n"...)); err != nil {
			return
		}
	}
	u.ok = true
}

func (u *upload) finished() bool {
	select {
	case <-u.done:
		return u.ok
	default:
		return false
	}
}

// readErr is the error of reading the body, if that is what ended the upload.
func (u *upload) readErr() error {
	select {
	case <-u.done:
		return u.err
	default:
		return nil
	}
}

// endUpload stops an upload. It does not wait for a body read that is in flight:
// the server that owns the body throws that out when the handler returns.
func (c *ClientConn) endUpload() {
	if c.up == nil {
		return
	}
	select {
	case <-c.up.done:
		if c.up.ok {
			c.up = nil
		}
	default:
		_ = c.nc.Close()
	}
}
