package h1

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"time"
)

// ClientConn is one connection to an origin. Not for concurrent use; it may be used
// again once Done has been called with true. While it is not in use it holds no buffer.
type ClientConn struct {
	nc     net.Conn
	lim    Limits
	rd     reader
	read   readDeadline
	write  writeDeadline
	wait   waiting
	up     *upload
	broken bool
}

// NewClientConn makes a ClientConn of nc, on which nothing has been sent. See TrackEOF
// for a *tls.Conn.
func NewClientConn(nc net.Conn, lim Limits) *ClientConn {
	c := &ClientConn{nc: nc, lim: lim}
	c.rd.fill = c.fill
	return c
}

// RoundTripOptions of one exchange. Target and Host are sent as they are.
type RoundTripOptions struct {
	Target   string // origin-form
	Host     string
	Upgrade  bool    // send the WebSocket upgrade; a 101 is an answer
	Room     *Answer // empty; where the answer is put. nil: in a new one
	Trailers bool    // send req.Trailer behind a body of unknown length

	HeaderTimeout time.Duration // until the final head; 0: none
	StallTimeout  time.Duration // a write without progress (to within a quarter); 0: none
	IdleTimeout   time.Duration // a read of the body without progress (to within a quarter); 0: none

	// Slow is called once when the request is out and the origin has been silent for
	// SlowAfter: the time to begin to watch whether anybody still waits. It must return
	// at once.
	Slow      func()
	SlowAfter time.Duration

	// Got1xx sees interim answers other than 100 in order. An error ends the exchange.
	Got1xx func(status int, h http.Header) error
	// Done is called once: with the body read to its end, or given up (reusable false).
	// For an answer without a body that is before RoundTrip returns. It is not called
	// when RoundTrip fails: the connection is then of no use and the caller closes it.
	Done func(reusable bool)
}

// maxInterim is how many 1xx an origin may send before it is taken for an attack.
const maxInterim = 64

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
// given that this connection had been used before and the request is idempotent.
func Retryable(err error) bool {
	var re retryError
	return errors.As(err, &re)
}

// timeoutError is an origin that was too slow. It is a context.DeadlineExceeded.
type timeoutError struct{ error }

func (e timeoutError) Unwrap() []error { return []error{e.error, context.DeadlineExceeded} }

// RoundTrip sends req (Method, Header, Body, ContentLength, Trailer) and returns the
// final answer. Header values are checked: a CR, LF or NUL fails, nothing is replaced.
// Close of req.Body must end a Read in flight; it is called where the answer ends the
// exchange before the body was sent.
//
// Errors: *ProtocolError (502) for an answer that must not be passed on,
// context.DeadlineExceeded for one that did not come in time, what req.Body's Read
// returned, what Got1xx returned, or the connection's.
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
		bodyErr := c.endUpload()
		c.rd.take()
		if bodyErr != nil {
			return nil, bodyErr
		}
		return nil, c.failed(err, lost)
	}
	return resp, nil
}

func (c *ClientConn) failed(err error, lost bool) error {
	var pe *ProtocolError
	switch {
	case errors.As(err, &pe), errors.Is(err, errBadField):
		return err
	case errors.Is(err, os.ErrDeadlineExceeded):
		return timeoutError{err}
	case lost || c.wait.any:
		return err
	}
	return retryError{err}
}

// fill reads from the origin under the deadline of the moment, and calls Slow once
// when nothing has come for a while.
func (c *ClientConn) fill(p []byte) (int, error) {
	w := &c.wait
	for {
		slow := w.opts.Slow != nil && !w.slow
		limit := w.opts.IdleTimeout
		if w.head {
			limit = 0
			if !w.until.IsZero() {
				limit = max(time.Until(w.until), 1)
			}
		}
		if slow = slow && (limit == 0 || w.opts.SlowAfter < limit); slow {
			limit = w.opts.SlowAfter
		}
		c.read.set(c.nc, limit)
		n, err := c.nc.Read(p)
		if n > 0 {
			w.any = true
			return n, err
		}
		switch {
		case !errors.Is(err, os.ErrDeadlineExceeded):
			return n, err
		case !slow && w.head && time.Now().Before(w.until):
			continue // the deadline was that of an earlier exchange
		case !slow:
			return n, err
		}
		if c.up == nil || c.up.over() { // while a request is on its way its sender is watched by that
			w.slow = true
			w.opts.Slow()
		}
	}
}

// readHead reads interim answers and the final head.
func (c *ClientConn) readHead(req *http.Request, opts *RoundTripOptions) (*http.Response, error) {
	a := opts.Room
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
		if a == nil {
			a = new(Answer)
		}
		resp := &a.resp
		if err := parseResponse(a, head, lines); err != nil {
			return nil, badGateway(err)
		}
		resp.Request = req
		switch {
		case resp.StatusCode == http.StatusSwitchingProtocols:
			return c.upgraded(resp, opts)
		case resp.StatusCode >= 200:
			return c.answer(req, a, opts)
		case len(resp.Header["Content-Length"])+len(resp.Header["Transfer-Encoding"]) > 0:
			return nil, &ProtocolError{Status: http.StatusBadGateway, Reason: "framed_1xx"}
		case resp.StatusCode != http.StatusContinue && opts.Got1xx != nil:
			if err := opts.Got1xx(resp.StatusCode, resp.Header); err != nil {
				return nil, err
			}
		}
		a = nil // Got1xx may have kept something
	}
	return nil, &ProtocolError{Status: http.StatusBadGateway, Reason: "too_many_1xx"}
}

// answer gives the answer its body.
func (c *ClientConn) answer(req *http.Request, a *Answer, opts *RoundTripOptions) (*http.Response, error) {
	resp := &a.resp
	f, toClose, none, err := frameResponse(resp, req.Method)
	if err != nil {
		return nil, badGateway(err)
	}
	c.wait.head = false
	b := &a.body
	b.c, b.resp, b.opts = c, resp, opts
	b.keep = !toClose && resp.ProtoMinor == 1 && !hasOption(resp.Header["Connection"], "close")
	b.p = payload{rd: &c.rd, framing: f, left: max(f.length, 0), toClose: toClose}
	resp.Body = b
	if none {
		b.p.err = io.EOF
		b.end(true)
	}
	return resp, nil
}
