//go:build unix

package h1

import (
	"crypto/tls"
	"net"
	"syscall"
)

// Alive says whether the origin has left an idle connection open, by looking at what
// the kernel has received and consuming nothing. One system call.
func (c *ClientConn) Alive() bool {
	nc, isTLS := c.nc, false
	if tc, ok := nc.(*tls.Conn); ok {
		nc, isTLS = tc.NetConn(), true
	}
	sc, ok := nc.(*net.TCPConn)
	if !ok {
		return true
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return false
	}
	alive := false
	var peeked [2048]byte
	err = raw.Read(func(fd uintptr) bool {
		n, _, err := syscall.Recvfrom(int(fd), peeked[:], syscall.MSG_PEEK|syscall.MSG_DONTWAIT)
		switch {
		case err == syscall.EAGAIN: //nolint:errorlint // a system call's own error
			alive = true
		case err == nil && n > 0:
			alive = isTLS && onlyTickets(peeked[:n])
		}
		return true
	})
	return err == nil && alive
}

// onlyTickets says whether waiting TLS records can all be session tickets. An alert is
// a record of type 21 or, encrypted in TLS 1.3, one of exactly 19 bytes.
func onlyTickets(b []byte) bool {
	for len(b) >= 5 {
		n := int(b[3])<<8 | int(b[4])
		if b[0] != 23 || n <= 19 {
			return false
		}
		b = b[min(5+n, len(b)):]
	}
	return true
}
