package h1

import (
	"crypto/tls"
	"net"
	"sync/atomic"
	"syscall"
)

// TrackEOF wraps a transport before TLS is put on it, so that a ClientConn can tell
// a TLS stream that was ended by close_notify from one that was cut: crypto/tls reports
// both as io.EOF where the cut falls between two records. A body that ends with its
// connection is truncated in the second case.
func TrackEOF(nc net.Conn) net.Conn { return &trackedConn{Conn: nc} }

type trackedConn struct {
	net.Conn
	ended atomic.Bool // a Read has failed: crypto/tls reads nothing behind close_notify
}

func (t *trackedConn) Read(p []byte) (int, error) {
	n, err := t.Conn.Read(p)
	if err != nil && n == 0 && !isTimeout(err) {
		t.ended.Store(true)
	}
	return n, err
}

func isTimeout(err error) bool {
	ne, ok := err.(net.Error) //nolint:errorlint // as it comes from the connection
	return ok && ne.Timeout()
}

func (t *trackedConn) NetConn() net.Conn { return t.Conn }

// SyscallConn implements syscall.Conn where the transport does.
func (t *trackedConn) SyscallConn() (syscall.RawConn, error) {
	if sc, ok := t.Conn.(syscall.Conn); ok {
		return sc.SyscallConn()
	}
	return nil, syscall.EINVAL
}

// cutShort says whether the end of nc was not announced by close_notify.
func cutShort(nc net.Conn) bool {
	tc, ok := nc.(*tls.Conn)
	if !ok {
		return false
	}
	t, ok := tc.NetConn().(*trackedConn)
	return ok && t.ended.Load()
}
