//go:build unix

package h1

import (
	"crypto/tls"
	"syscall"
)

// Alive says whether the origin has left an idle connection open, by looking at what
// the kernel has received and consuming nothing. Two system calls at most.
func (c *ClientConn) Alive() bool {
	if c.broken {
		return false
	}
	_, isTLS := c.nc.(*tls.Conn)
	sc, ok := transport(c.nc).(syscall.Conn)
	if !ok {
		return true
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return false
	}
	alive := false
	// Control and not Read: the read deadline of the last exchange may have passed.
	err = raw.Control(func(fd uintptr) { alive = aliveFD(int(fd), isTLS) })
	return err == nil && alive
}

func aliveFD(fd int, isTLS bool) bool {
	if peerClosed(fd) {
		return false
	}
	var peeked [2048]byte
	n, _, err := syscall.Recvfrom(fd, peeked[:], syscall.MSG_PEEK|syscall.MSG_DONTWAIT)
	switch {
	case err == syscall.EAGAIN:
		return true
	case err == nil && n > 0:
		return isTLS && onlyTickets(peeked[:n])
	}
	return false
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
