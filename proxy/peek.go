package proxy

import (
	"context"
	"io"
	"syscall"
	"time"
)

// peekByte waits for the first byte of t's connection and leaves it there, so that what
// is a bare TCP connection stays one. It gives up when limit has passed or drain begins.
func peekByte(t *tunnel, limit time.Duration) (byte, error) {
	if err := t.raw.SetReadDeadline(time.Now().Add(limit)); err != nil {
		return 0, err
	}
	stop := context.AfterFunc(t.drain, func() { _ = t.raw.SetReadDeadline(time.Unix(1, 0)) })
	b, err := peek(t)
	if !stop() && err == nil {
		err = context.Canceled
	}
	if err == nil {
		err = t.raw.SetReadDeadline(time.Time{})
	}
	return b, err
}

func peek(t *tunnel) (byte, error) {
	var b [1]byte
	sc, ok := t.raw.(syscall.Conn)
	if !ok {
		if _, err := io.ReadFull(t.raw, b[:]); err != nil {
			return 0, err
		}
		t.raw = &replayConn{Conn: t.raw, t: t, prefix: b[:]}
		return b[0], nil
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return 0, err
	}
	var n int
	var peekErr error
	err = raw.Read(func(fd uintptr) bool {
		for {
			n, _, peekErr = syscall.Recvfrom(int(fd), b[:], syscall.MSG_PEEK|syscall.MSG_DONTWAIT)
			if peekErr != syscall.EINTR {
				return peekErr != syscall.EAGAIN
			}
		}
	})
	switch {
	case err != nil:
		return 0, err
	case peekErr != nil:
		return 0, peekErr
	case n == 0:
		return 0, io.EOF
	}
	return b[0], nil
}
