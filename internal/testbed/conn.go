package testbed

import (
	"context"
	"crypto/tls"
	"io"
	"log"
	"net"
	"sync"
)

type connKey struct{}

// originConn is one connection of an origin: the recorded one, under the TLS layer
// where there is one.
type originConn struct {
	net.Conn
	id  int
	raw net.Conn

	wire, app tape

	mu    sync.Mutex
	state *tls.ConnectionState
	err   string
}

// tlsOriginConn lets the servers see the TLS layer through the recorder.
type tlsOriginConn struct{ *originConn }

func (c tlsOriginConn) ConnectionState() tls.ConnectionState { return *c.state }

func (c *originConn) established(state *tls.ConnectionState, conn net.Conn) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.state, c.Conn = state, conn
}

func (c *originConn) fail(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.err = err.Error()
}

func (c *originConn) snapshot() Conn {
	c.mu.Lock()
	defer c.mu.Unlock()
	out := Conn{
		ID: c.id, HandshakeErr: c.err, Wire: c.wire.bytes(), App: c.app.bytes(),
		WireBytes: c.wire.count(), AppBytes: c.app.count(),
	}
	if s := c.state; s != nil {
		out.SNI, out.ALPN, out.Version, out.Resumed = s.ServerName, s.NegotiatedProtocol, s.Version, s.DidResume
		if len(s.PeerCertificates) > 0 {
			out.ClientCert = s.PeerCertificates[0].Subject.CommonName
		}
	}
	return out
}

func connContext(ctx context.Context, c net.Conn) context.Context {
	if tc, ok := c.(tlsOriginConn); ok {
		c = tc.originConn
	}
	return context.WithValue(ctx, connKey{}, c)
}

// feed is a listener that hands out connections which were accepted elsewhere.
type feed struct {
	addr net.Addr
	ch   chan net.Conn
	once sync.Once
	done chan struct{}
}

func newFeed(addr net.Addr) *feed {
	return &feed{addr: addr, ch: make(chan net.Conn), done: make(chan struct{})}
}

func (f *feed) put(c net.Conn) {
	select {
	case f.ch <- c:
	case <-f.done:
		_ = c.Close()
	}
}

func (f *feed) Accept() (net.Conn, error) {
	select {
	case c := <-f.ch:
		return c, nil
	case <-f.done:
		return nil, net.ErrClosed
	}
}

func (f *feed) Close() error {
	f.once.Do(func() { close(f.done) })
	return nil
}

func (f *feed) Addr() net.Addr { return f.addr }

func discardLog() *log.Logger { return log.New(io.Discard, "", 0) }
