package proxy

import (
	"context"
	"io"
	"net"
	"net/http"
	"time"

	"github.com/egressd/egressd/inject"
)

// upgrade hands both connections over to each other after a 101: WebSocket frames
// are carried as they are, but for a rule that has to see inside (frames). The connection
// is cut when a new ruleset would deny the request that opened it.
func (s *Server) upgrade(w http.ResponseWriter, resp *http.Response, x *record, keepClientAuth bool) {
	far, ok := resp.Body.(io.ReadWriteCloser)
	hj, canHijack := w.(http.Hijacker)
	if !ok || !canHijack {
		x.failed(w, &refusal{status: http.StatusBadGateway, code: codeUpstream, detail: "101 where none can be carried"})
		return
	}
	if ref := x.plan.ws.answer(resp.Header); ref != nil {
		x.failed(w, ref)
		return
	}
	cleanResponse(resp.Header, x.source != nil || x.cert != nil, keepClientAuth)
	near, _, err := hj.Hijack()
	if err != nil {
		x.outcome, x.detail = outcomeAborted, err.Error()
		return
	}
	defer func() { _ = near.Close() }()
	x.status, x.protocol = http.StatusSwitchingProtocols, "websocket"
	if err := near.SetWriteDeadline(time.Now().Add(s.limits.StallTimeout)); err != nil {
		return
	}
	if _, err := near.Write(switching(resp.Header)); err != nil {
		x.outcome, x.detail = outcomeAborted, err.Error()
		return
	}
	_ = near.SetDeadline(time.Time{})
	t, f, was := x.tunnel, x.flow, x.decision
	f.Header = f.Header.Clone()
	t.handle.watch(func(r *Ruleset) bool {
		b, err := t.sess.bindTo(r)
		if err != nil {
			return false
		}
		g := f
		g.Sandbox = b.sandbox
		d := r.Policy.Decide(&g)
		return goesOn(&d, &was)
	}, far)
	defer t.handle.unwatch()
	if h := x.held(); h != (uses{}) { // a copy: x may be another's when it is asked
		t.handle.watchCredential(func() bool { return h.revoked(t.ctx) })
	}
	s.metrics.tunnels.Inc()
	defer s.metrics.tunnels.Dec()
	client, origin := s.paces.pace(f.Sandbox.ID).slowed(t.ctx, near), streamOf(far)
	if x.plan.ws != nil {
		x.bytesIn, x.bytesOut, err = x.plan.ws.carry(client, origin)
	} else {
		x.bytesIn, x.bytesOut, err = pipe(client, origin, s.limits.IdleTimeout)
	}
	if err != nil {
		x.outcome, x.detail = outcomeAborted, err.Error()
	}
}

const revokedPatience = 2 * time.Second

// revoked says whether in, by which a connection was opened, would refuse now. That a
// source cannot be reached says nothing.
func revoked(ctx context.Context, in *inject.Injector, host string, port uint16) bool {
	if in == nil {
		return false
	}
	ctx, cancel := context.WithTimeout(ctx, revokedPatience)
	defer cancel()
	if _, err := in.Resolve(ctx, host, port); err != nil {
		switch resolveCode(err) {
		case inject.CodeSourceNotFound, inject.CodeSourceDisabled, inject.CodeDestinationNotAllowed:
			return true
		}
	}
	return false
}

// switching writes a 101 with the origin's handshake headers (RFC 6455 section 4.2.2).
func switching(h http.Header) []byte {
	b := []byte("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n")
	for k, vs := range h {
		for _, v := range vs {
			b = append(b, k...)
			b = append(b, ": "...)
			b = append(b, v...)
			b = append(b, "\r\n"...)
		}
	}
	return append(b, "\r\n"...)
}

// streamOf gives an upgraded body the face of a connection, which HTTP/1.1's is.
func streamOf(body io.ReadWriteCloser) net.Conn {
	if c, ok := body.(net.Conn); ok {
		return c
	}
	return &streamConn{ReadWriteCloser: body}
}

// streamConn gives an upgraded body the face of a connection for pipe.
type streamConn struct {
	io.ReadWriteCloser
}

func (c *streamConn) LocalAddr() net.Addr                { return nil }
func (c *streamConn) RemoteAddr() net.Addr               { return nil }
func (c *streamConn) SetDeadline(t time.Time) error      { return c.SetReadDeadline(t) }
func (c *streamConn) SetWriteDeadline(t time.Time) error { return nil }
func (c *streamConn) SetReadDeadline(t time.Time) error {
	if d, ok := c.ReadWriteCloser.(interface{ SetReadDeadline(time.Time) error }); ok {
		return d.SetReadDeadline(t)
	}
	return nil
}
