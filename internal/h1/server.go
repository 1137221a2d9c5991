package h1

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"net/http"
	"net/url"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

// Server serves HTTP/1.1 connections. Its fields are set before the first ServeConn
// and not changed after; one Server may serve any number of connections at once. A
// duration that is 0 is no limit.
type Server struct {
	Handler http.Handler
	Limits  Limits

	AllowAbsolute bool // absolute-form targets with http
	AllowConnect  bool // CONNECT; a handler takes it over by hijacking

	HeadTimeout time.Duration // a head, from its first byte
	IdleTimeout time.Duration // between requests
	BodyStall   time.Duration // a read of a request body without progress (to within a quarter)
	WriteStall  time.Duration // a write of an answer without progress (to within a quarter)

	// Reject is told of a refused head and may give a body and headers for the answer.
	Reject func(ctx context.Context, e *ProtocolError) (contentType string, body []byte, header http.Header)
	// Panicked is told of a handler's panic other than http.ErrAbortHandler.
	Panicked func(value any)
}

// DisconnectWatcher is what a ResponseWriter of this package can do besides: call
// abort when the client goes away while the handler waits. It may be called once per
// request, and does nothing before the request body has been read; it costs a
// goroutine, so call it when a wait has become long.
type DisconnectWatcher interface {
	WatchDisconnect(abort func())
}

// HeaderSetter is what a ResponseWriter of this package can do besides: take h for its
// header map in place of the one it has. h is looked at until the head has been written,
// and for trailers until the answer has been finished.
type HeaderSetter interface {
	SetHeader(h http.Header)
}

// warmIdle is how long a connection waits for its next request with a buffer at
// hand. One that is idle for longer holds none.
const warmIdle = time.Second

// conn is one connection being served.
type conn struct {
	srv   *Server
	nc    net.Conn
	rd    reader
	first [1]byte // what a connection without a buffer reads into

	base     *http.Request // template with the connection's context
	spare    *exchange     // of the last request, which is over; nil: none that can be used again
	resp     response
	read     readDeadline
	write    writeDeadline
	fresh    bool        // TLS, and has had no request
	begun    bool        // a head has begun: the read deadline is its own and absolute
	inBody   bool        // reads are of a request body
	cut      atomic.Bool // reads of the request body must end
	hijacked bool

	mu      sync.Mutex // idle, and the read deadline while it is set
	idle    bool
	drained atomic.Bool
}

var aLongTimeAgo = time.Unix(1, 0)

// ServeConn serves nc until it ends, a handler hijacks it, or drain ends: then the
// request in flight is finished and the connection closed, an idle one at once. ctx is
// the parent of the requests' contexts. A *tls.Conn has done its handshake. nc is
// closed unless it was hijacked.
func (s *Server) ServeConn(ctx, drain context.Context, nc net.Conn) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	c := &conn{srv: s, nc: nc}
	c.base = new(http.Request).WithContext(ctx)
	c.base.RemoteAddr = nc.RemoteAddr().String()
	c.rd.fill = c.fill
	c.resp.c = c
	_, c.fresh = nc.(*tls.Conn)
	defer context.AfterFunc(drain, c.drain)()
	defer c.close()
	for c.serveOne() {
	}
}

// close ends the connection. A panic of the codec itself is a handler's panic: one
// connection ends, the process lives.
func (c *conn) close() {
	if p := recover(); p != nil {
		c.abort()
		if c.srv.Panicked != nil {
			c.srv.Panicked(p)
		}
	}
	if !c.hijacked {
		c.rd.take()
		_ = c.nc.Close()
	}
}

func (c *conn) drain() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.drained.Store(true)
	if c.idle {
		_ = c.nc.SetReadDeadline(aLongTimeAgo)
	}
}

// fill is the reader's source with the deadlines of the state the connection is in.
func (c *conn) fill(p []byte) (int, error) {
	switch {
	case c.inBody:
		c.read.set(c.nc, c.srv.BodyStall)
		if c.cut.Load() { // after the deadline was set: see requestBody.lock
			_ = c.nc.SetReadDeadline(aLongTimeAgo)
		}
	case !c.begun && c.rd.buffered() > 0:
		c.begun = true
		c.read.exactly(c.nc, c.srv.HeadTimeout)
	}
	return c.nc.Read(p)
}

// exchange is what one request needs, allocated at once.
type exchange struct {
	req    http.Request
	url    url.URL
	body   requestBody
	header http.Header // as it came
	values [usualFields]string
}

// usualFields is how many header fields cost no allocation of their own.
const usualFields = 12

// serveOne serves one request and says whether another may follow.
func (c *conn) serveOne() bool {
	if !c.awaitRequest() {
		return false
	}
	head, lines, err := c.rd.head(c.srv.Limits)
	if err != nil {
		c.reject(err)
		return false
	}
	x := c.newExchange()
	req := &x.req
	f, err := c.srv.parseRequest(req, head, lines, x.values[:])
	if err != nil {
		c.reject(err)
		return false
	}
	c.setBody(x, f)
	c.resp.reset(x)
	ok := c.handle(req)
	if c.hijacked {
		return false
	}
	if !ok {
		c.abort()
		return false
	}
	if !c.finish(x) {
		return false
	}
	if x.body.c == nil { // a body may be held by who reads or closes it
		c.spare = x
	}
	return true
}

// newExchange is the last one, cleared, or a new one. What a handler kept of a request
// is of no use to it after it has returned.
func (c *conn) newExchange() *exchange {
	x := c.spare
	if x == nil {
		x = &exchange{header: make(http.Header)}
	}
	c.spare = nil
	clear(x.header)
	x.req, x.url = *c.base, url.URL{}
	x.req.URL, x.req.Header = &x.url, x.header
	return x
}

// awaitRequest blocks until a request begins; after a while without a buffer.
func (c *conn) awaitRequest() bool {
	c.begun, c.inBody = false, false
	if c.rd.buffered() > 0 {
		return !c.drained.Load()
	}
	warm := warmIdle
	if d := c.srv.IdleTimeout; d > 0 {
		warm = min(d, warm)
	}
	err := os.ErrDeadlineExceeded
	if c.fresh { // and cold at once: a read of one byte costs no system call on TLS
		c.fresh, warm = false, 0
	} else {
		if !c.startIdle(warm) {
			return false
		}
		err = c.rd.more(c.srv.Limits.HeadBytes)
	}
	if err != nil && errors.Is(err, os.ErrDeadlineExceeded) {
		if err = c.awaitCold(warm); err != nil {
			err = errClosed
		}
	}
	c.mu.Lock()
	c.idle = false
	drained := c.drained.Load()
	c.mu.Unlock()
	if drained && err == nil {
		c.read.forget() // drain may have changed the deadline
	}
	return err == nil
}

var errClosed = errors.New("http/1.1: the connection ended")

// startIdle sets the deadline of an idle connection, unless it is to be drained.
func (c *conn) startIdle(d time.Duration) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.drained.Load() {
		return false
	}
	c.idle = true
	c.read.set(c.nc, d)
	return true
}

// awaitCold waits for the rest of the idle timeout with one byte.
func (c *conn) awaitCold(waited time.Duration) error {
	left := c.srv.IdleTimeout - waited
	if c.srv.IdleTimeout <= 0 {
		left = 0
	} else if left <= 0 {
		return os.ErrDeadlineExceeded
	}
	c.rd.release()
	c.spare, c.resp.header, c.resp.own = nil, nil, nil
	if !c.startIdle(left) {
		return errClosed
	}
	n, err := c.nc.Read(c.first[:])
	if n == 0 {
		return err
	}
	c.rd.put(c.first[0])
	return nil
}

// setBody gives the request its body.
func (c *conn) setBody(x *exchange, f framing) {
	req := &x.req
	delete(req.Header, "Content-Length")
	switch {
	case f.chunked:
		req.ContentLength = -1
		req.TransferEncoding = []string{"chunked"}
		delete(req.Header, "Transfer-Encoding")
		delete(req.Header, "Trailer")
	case f.length > 0:
		req.ContentLength = f.length
	default:
		req.Body = http.NoBody
		return
	}
	b := &x.body
	b.c, b.req = c, req
	b.p = payload{rd: &c.rd, framing: f, left: max(f.length, 0)}
	if len(req.Header["Expect"]) > 0 {
		b.expects.Store(req.ProtoMinor == 1)
		delete(req.Header, "Expect")
	}
	req.Body = b
}

// handle calls the handler; false when the connection must be cut.
func (c *conn) handle(req *http.Request) (ok bool) {
	defer func() {
		p := recover()
		c.resp.stopWatch()
		if p == nil {
			return
		}
		ok = false
		if p != http.ErrAbortHandler && c.srv.Panicked != nil { //nolint:errorlint // the value itself is the sentinel
			c.srv.Panicked(p)
		}
	}()
	c.srv.Handler.ServeHTTP(&c.resp, req)
	return true
}

// finish completes the answer and what is left of the request.
func (c *conn) finish(x *exchange) bool {
	// An answer that is under way ends before the rest of the request is read; one that
	// is not says whether the connection stays.
	early := c.resp.chunked
	if early && !c.resp.finish() {
		c.abort()
		return false
	}
	if x.body.c != nil && !x.body.finish() {
		c.resp.closeAfter = true
	}
	if !early && !c.resp.finish() {
		c.abort()
		return false
	}
	if c.resp.closeAfter || c.drained.Load() {
		c.closeGently()
		return false
	}
	return true
}
