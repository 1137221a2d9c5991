package proxy

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/egressd/egressd/policy"
)

// Serve accepts explicit-proxy connections, HTTP and SOCKS5, on ln until Shutdown or until
// ctx ends, which also cuts what is open. It returns nil after Shutdown.
func (s *Server) Serve(ctx context.Context, ln net.Listener) error {
	return s.acceptAll(ctx, ln, func(c net.Conn) *tunnel {
		return &tunnel{raw: c, way: wayAbsolute, sess: &session{srv: s, claims: claims{addr: remoteAddr(c)}}, enter: s.enterExplicit}
	})
}

// acceptAll owns one listener. arrive makes the tunnel of a connection that came in.
func (s *Server) acceptAll(ctx context.Context, ln net.Listener, arrive func(net.Conn) *tunnel) error {
	drain, cancel := context.WithCancel(ctx)
	defer cancel()
	var watch sync.WaitGroup
	defer watch.Wait()
	watch.Go(func() {
		select {
		case <-s.draining:
		case <-drain.Done():
		}
		cancel()
		_ = ln.Close()
	})
	var delay time.Duration
	for {
		c, err := ln.Accept()
		if err != nil {
			if s.isDraining() || ctx.Err() != nil {
				return nil
			}
			var ne net.Error
			if !errors.As(err, &ne) || errors.Is(err, net.ErrClosed) {
				return fmt.Errorf("accept: %w", err)
			}
			delay = min(max(2*delay, 5*time.Millisecond), time.Second) // out of descriptors: wait, do not spin
			s.log.Warn("accept failed", zap.Error(err), zap.Duration("retry_in", delay))
			time.Sleep(delay)
			continue
		}
		delay = 0
		if !s.live.reserve() {
			_ = c.Close()
			s.metrics.refusals.WithLabelValues(codeLimit).Inc()
			continue
		}
		t := arrive(c)
		t.srv, t.ctx, t.drain, t.client = s, ctx, drain, remoteAddr(c)
		s.conns.Add(1)
		go s.serveClient(t)
	}
}

// serveClient owns one client connection from accept to its end.
func (s *Server) serveClient(t *tunnel) {
	defer s.conns.Done()
	defer s.live.release()
	s.metrics.connections.Inc()
	defer s.metrics.connections.Dec()
	defer s.recovered("connection")
	defer func() { _ = t.raw.Close() }() // closed already, unless something panicked
	var ok bool
	t.handle, ok = s.live.add(t)
	defer s.live.remove(t.handle)
	if !ok {
		_ = t.raw.Close()
		s.metrics.refusals.WithLabelValues(codeLimit).Inc()
		return
	}
	t.enter(t)
	if next := t.next; next != nil { // the destination is known, and the stack shallow again
		t.next = nil
		next()
	}
}

// enterExplicit tells SOCKS5 from HTTP by the first byte.
func (s *Server) enterExplicit(t *tunnel) {
	first, err := peekByte(t, s.limits.IdleTimeout)
	switch {
	case err != nil:
		_ = t.raw.Close()
	case first == socksVersion:
		s.enterSOCKS(t)
	default:
		s.requests.serveEdge(t)
	}
}

// openTo identifies the client, counts the connection for its sandbox and asks the policy
// whether the destination could be allowed for any protocol.
func (s *Server) openTo(t *tunnel, b *bound, d dest) *refusal {
	t.dest = d
	if ref := s.count(t, b); ref != nil {
		return ref
	}
	f := policy.Flow{Sandbox: b.sandbox, Host: d.host, Port: d.port, Addr: d.ip}
	dec, _, ref := s.decide(t.ctx, b, &f)
	if ref != nil {
		return ref
	}
	if dec.Action == policy.Deny {
		return denied(dec)
	}
	return s.checkLiteral(d)
}

// count takes the connection's place among those of its sandbox.
func (s *Server) count(t *tunnel, b *bound) *refusal {
	if !s.live.bind(t.handle, b.sandbox.ID, t.sess) {
		return limited("connectionsPerSandbox")
	}
	return nil
}
