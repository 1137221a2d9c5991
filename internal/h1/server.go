package h1

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

// Server serves HTTP/1.1 connections. Its fields are set before the first ServeConn
// and not changed after; one Server may serve any number of connections at once.
type Server struct {
	Handler http.Handler
	Limits  Limits

	AllowAbsolute bool // absolute-form targets with http
	AllowConnect  bool // CONNECT; a handler takes it over by hijacking

	HeadTimeout time.Duration // a head, from its first byte
	IdleTimeout time.Duration // between requests
	BodyStall   time.Duration // a read of a request body without progress
	WriteStall  time.Duration // a write of an answer without progress (to within a quarter)

	// Reject is told of a refused head and may give a body and headers for the answer.
	Reject func(ctx context.Context, e *ProtocolError) (contentType string, body []byte, header http.Header)
	// Panicked is told of a handler's panic other than http.ErrAbortHandler.
	Panicked func(value any)
}

// DisconnectWatcher is what a ResponseWriter of this package can do besides: call
// abort when the client goes away while the handler waits. It may be called once per
// request, and only after the request body has been read; it costs a goroutine, so
// call it when a wait has become long.
type DisconnectWatcher interface {
	WatchDisconnect(abort func())
}

// conn is one connection being served.
type conn struct {
	srv   *Server
	nc    net.Conn
	isTLS bool
	rd    reader
	first [1]byte // what an idle connection reads into: it holds no buffer

	base     *http.Request // template with the connection's context
	resp     response
	deadline time.Time // read deadline that is set
	wrote    time.Time // when the write deadline was last set
	fixed    bool      // the read deadline is a head's: more() must not move it
	body     bool      // reads are of a request body

	idle     atomic.Bool
	drained  atomic.Bool
	hijacked bool
}

var aLongTimeAgo = time.Unix(1, 0)

// ServeConn serves nc until it ends, a handler hijacks it, or drain ends: then the
// request in flight is finished and the connection closed, an idle one at once. ctx is
// the parent of the requests' contexts. nc is closed unless it was hijacked.
func (s *Server) ServeConn(ctx, drain context.Context, nc net.Conn) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	c := &conn{srv: s, nc: nc}
	_, c.isTLS = nc.(*tls.Conn)
	c.base = new(http.Request).WithContext(ctx)
	c.base.RemoteAddr = nc.RemoteAddr().String()
	c.rd.src, c.rd.fill = nc, c.fill
	c.resp.c = c
	stop := context.AfterFunc(drain, func() {
		c.drained.Store(true)
		if c.idle.Load() {
			_ = nc.SetReadDeadline(aLongTimeAgo)
		}
	})
	defer stop()
	for c.serveOne() {
	}
	if !c.hijacked {
		c.rd.take()
		_ = nc.Close()
	}
}

// fill is the reader's source with the deadlines of the state the connection is in.
func (c *conn) fill(p []byte) (int, error) {
	if c.body && c.srv.BodyStall > 0 {
		c.setReadDeadline(c.srv.BodyStall)
	} else if !c.fixed && c.rd.buf != nil && c.rd.buffered() > 0 {
		c.fixed = true // the head has begun: its deadline is absolute
		c.deadline = time.Now().Add(c.srv.HeadTimeout)
		_ = c.nc.SetReadDeadline(c.deadline)
	}
	return c.nc.Read(p)
}

// setReadDeadline sets the deadline d from now, unless one within a quarter of it is set.
func (c *conn) setReadDeadline(d time.Duration) {
	want := time.Now().Add(d)
	if diff := want.Sub(c.deadline); diff < 0 || diff > d/4 {
		c.deadline = want
		_ = c.nc.SetReadDeadline(want)
	}
}

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
	req := new(http.Request)
	*req = *c.base
	f, err := c.srv.parseRequest(req, head, lines)
	if err != nil {
		c.reject(err)
		return false
	}
	c.resp.reset(req)
	body := c.setBody(req, f)
	if !c.handle(req) {
		c.abort()
		return false
	}
	if c.hijacked {
		return false
	}
	return c.finish(req, body)
}

// awaitRequest blocks until a request begins. A TLS connection waits with one byte:
// the record it belongs to stays in crypto/tls, so this costs no system call.
func (c *conn) awaitRequest() bool {
	c.fixed, c.body = false, false
	if c.rd.buf != nil && c.rd.buffered() > 0 {
		return !c.drained.Load()
	}
	c.setReadDeadline(c.srv.IdleTimeout)
	c.idle.Store(true)
	if c.drained.Load() {
		return false
	}
	var err error
	if c.isTLS {
		c.rd.release()
		var n int
		if n, err = c.nc.Read(c.first[:]); n == 1 {
			c.rd.acquire()
			c.rd.buf.b[0], c.rd.w, err = c.first[0], 1, nil
			c.fixed = true // what follows is in the same record, or under the deadline set here
			c.deadline = time.Now().Add(c.srv.HeadTimeout)
			_ = c.nc.SetReadDeadline(c.deadline)
		}
	} else {
		err = c.rd.more(c.srv.Limits.HeadBytes)
	}
	c.idle.Store(false)
	return err == nil
}

// setBody gives req its body and says what to finish.
func (c *conn) setBody(req *http.Request, f framing) *requestBody {
	switch {
	case f.chunked:
		req.ContentLength = -1
		req.TransferEncoding = []string{"chunked"}
		delete(req.Header, "Transfer-Encoding")
	case f.length > 0:
		req.ContentLength = f.length
		delete(req.Header, "Content-Length")
	default:
		delete(req.Header, "Content-Length")
		req.Body = http.NoBody
		return nil
	}
	b := &requestBody{c: c, req: req}
	b.p = payload{rd: &c.rd, framing: f, left: max(f.length, 0)}
	if len(req.Header["Expect"]) > 0 && req.ProtoMinor == 1 {
		b.expects = true
		delete(req.Header, "Expect")
	}
	if f.chunked {
		delete(req.Header, "Trailer")
	}
	req.Body = b
	return b
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
func (c *conn) finish(req *http.Request, body *requestBody) bool {
	reusable := body == nil || body.finish()
	if !reusable {
		c.resp.closeAfter = true
	}
	if !c.resp.finish() {
		c.abort()
		return false
	}
	if req.Method == http.MethodConnect || c.resp.closeAfter || c.drained.Load() {
		c.closeGently()
		return false
	}
	return true
}

// closeGently lets the peer read the answer before a reset for unread bytes could
// destroy it.
func (c *conn) closeGently() {
	raw := c.nc
	if tc, ok := raw.(*tls.Conn); ok {
		_ = tc.CloseWrite()
		raw = tc.NetConn()
	}
	if tcp, ok := raw.(*net.TCPConn); ok {
		_ = tcp.CloseWrite()
		_ = tcp.SetReadDeadline(time.Now().Add(500 * time.Millisecond))
		b := getBuffer(&readBuffers)
		for n := 0; n < 64<<10; {
			m, err := tcp.Read(b.b)
			if n += m; err != nil {
				break
			}
		}
		readBuffers.Put(b)
	}
}

// abort closes without anything that looks like a clean end.
func (c *conn) abort() {
	if tc, ok := c.nc.(*tls.Conn); ok {
		_ = tc.NetConn().Close() // no close_notify
		return
	}
	if tcp, ok := c.nc.(*net.TCPConn); ok {
		_ = tcp.SetLinger(0)
	}
	_ = c.nc.Close()
}

// reject answers a head that was refused and leaves the connection to be closed.
// Nothing is answered to a peer that only went away.
func (c *conn) reject(err error) {
	var pe *ProtocolError
	if !errors.As(err, &pe) {
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			return
		}
		pe = &ProtocolError{Status: 408, Reason: "head_timeout"}
	}
	contentType, body, header := "text/plain", []byte(nil), http.Header(nil)
	if c.srv.Reject != nil {
		contentType, body, header = c.srv.Reject(c.base.Context(), pe)
	}
	req := new(http.Request)
	*req = *c.base
	req.Method, req.ProtoMinor = http.MethodGet, 1
	c.resp.reset(req)
	h := c.resp.Header()
	for k, v := range header {
		h[k] = v
	}
	h["Content-Type"] = []string{contentType}
	c.resp.closeAfter = true
	c.resp.length(int64(len(body)))
	c.resp.WriteHeader(pe.Status)
	_, _ = c.resp.Write(body)
	if c.resp.finish() {
		c.closeGently()
	}
}

// requestBody is a request's body. One reader at a time; Close may come from
// another goroutine.
type requestBody struct {
	c       *conn
	req     *http.Request
	mu      sync.Mutex
	p       payload
	expects bool // 100 Continue is due before the first byte
	closed  bool
}

func (b *requestBody) Read(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return 0, http.ErrBodyReadAfterClose
	}
	if b.expects {
		b.expects = false
		if err := b.c.resp.sendContinue(); err != nil {
			return 0, err
		}
	}
	b.c.body = true
	n, err := b.p.Read(p)
	if err == io.EOF && b.p.trailer != nil {
		b.req.Trailer = b.p.trailer
	}
	return n, err
}

// read says whether the body has been read to its end and nobody is reading it.
func (b *requestBody) read() bool {
	if !b.mu.TryLock() {
		return false
	}
	defer b.mu.Unlock()
	return b.p.err == io.EOF
}

// Close does not wait for a Read in flight; finish does.
func (b *requestBody) Close() error { return nil }

// finish ends the body when the handler is done: a reader that is still there is
// thrown out, a short rest is read. False: the connection cannot be used again.
func (b *requestBody) finish() bool {
	if !b.mu.TryLock() {
		for !b.mu.TryLock() { // the reader may be about to set a deadline of its own
			_ = b.c.nc.SetReadDeadline(aLongTimeAgo)
			time.Sleep(time.Millisecond)
		}
		b.closed = true
		b.mu.Unlock()
		return false
	}
	defer b.mu.Unlock()
	b.closed = true
	if b.expects { // never asked for: the client may send it or not
		return b.p.err != nil && errors.Is(b.p.err, io.EOF)
	}
	if b.p.err == io.EOF {
		return true
	}
	buf := getBuffer(&readBuffers)
	defer readBuffers.Put(buf)
	b.c.body = true
	for left := drainLimit; left > 0; {
		n, err := b.p.Read(buf.b)
		if left -= n; err == io.EOF {
			return true
		} else if err != nil {
			return false
		}
	}
	return false
}
