package proxy

import (
	"net"
	"sync"
)

// quota bounds how many of something each sandbox holds. An h2 client could otherwise
// turn its connections, a hundred streams each, into as many upstream ones.
type quota struct {
	max int
	mu  sync.Mutex
	n   map[string]int
}

func newQuota(limit int) *quota { return &quota{max: limit, n: map[string]int{}} }

// take counts one for sandbox; release, which may be called more than once, gives it back.
func (q *quota) take(sandbox string) (release func(), ok bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.n[sandbox] >= q.max {
		return nil, false
	}
	q.n[sandbox]++
	return sync.OnceFunc(func() {
		q.mu.Lock()
		defer q.mu.Unlock()
		if q.n[sandbox]--; q.n[sandbox] <= 0 {
			delete(q.n, sandbox)
		}
	}), true
}

// meteredConn gives its place in a quota back when it is closed.
type meteredConn struct {
	*net.TCPConn
	release func()
}

func (c *meteredConn) Close() error {
	c.release()
	return c.TCPConn.Close()
}

// plainConn is the same for what is not TCP (a test's pipe).
type plainConn struct {
	net.Conn
	release func()
}

func (c *plainConn) Close() error {
	c.release()
	return c.Conn.Close()
}

func metered(nc net.Conn, release func()) net.Conn {
	if tcp, ok := nc.(*net.TCPConn); ok {
		return &meteredConn{tcp, release}
	}
	return &plainConn{nc, release}
}

// bare is the connection under a metered one, which its owner still has to close.
func bare(nc net.Conn) net.Conn {
	if m, ok := nc.(*meteredConn); ok {
		return m.TCPConn
	}
	return nc
}
