package policydns

import (
	"context"
	"encoding/binary"
	"io"
	"net"
	"sync"
	"time"
)

const (
	maxTCP   = 4096 // bytes of a question
	tcpIdle  = 10 * time.Second
	tcpWrite = 5 * time.Second
)

// serveTCP takes connections as long as there are places.
func (s *Server) serveTCP(ctx context.Context, ln net.Listener) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	inARow := 0
	for {
		nc, err := ln.Accept()
		if err != nil {
			if again(ctx, err, &inARow) {
				continue
			}
			return orNil(ctx, err)
		}
		inARow = 0
		c := s.admitConn(nc)
		if c == nil {
			_ = nc.Close()
			continue
		}
		wg.Go(func() {
			defer func() {
				_ = nc.Close()
				release(s.conns)
				release(c.conns)
			}()
			s.converse(ctx, c, nc)
		})
	}
}

func (s *Server) admitConn(nc net.Conn) *client {
	sandbox, ok := s.opts.Identify(addrOf(nc.RemoteAddr()))
	if !ok {
		s.report(Event{Outcome: Unknown})
		return nil
	}
	c := s.clients.get(sandbox)
	if !take(c.conns) {
		s.report(Event{Sandbox: sandbox, Outcome: Limited})
		return nil
	}
	if !take(s.conns) {
		release(c.conns)
		s.report(Event{Sandbox: sandbox, Outcome: Limited})
		return nil
	}
	return c
}

// converse answers the questions of one connection, one after the other, until the client
// ends it, is silent, or asks too much.
func (s *Server) converse(ctx context.Context, c *client, nc net.Conn) {
	stop := context.AfterFunc(ctx, func() { _ = nc.Close() })
	defer stop()
	var head [2]byte
	for {
		_ = nc.SetReadDeadline(time.Now().Add(tcpIdle))
		if _, err := io.ReadFull(nc, head[:]); err != nil {
			return
		}
		n := int(binary.BigEndian.Uint16(head[:]))
		if n < headerLen || n > maxTCP {
			s.report(Event{Sandbox: c.sandbox, Outcome: Malformed})
			return
		}
		packet := make([]byte, n)
		if _, err := io.ReadFull(nc, packet); err != nil {
			return
		}
		if !c.limit.Allow() || !s.enter(c) {
			s.report(Event{Sandbox: c.sandbox, Outcome: Limited})
			return
		}
		reply := s.answer(ctx, c, packet, true)
		s.leave(c)
		if reply == nil {
			return
		}
		_ = nc.SetWriteDeadline(time.Now().Add(tcpWrite))
		if _, err := nc.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(reply))), reply...)); err != nil {
			return
		}
	}
}
