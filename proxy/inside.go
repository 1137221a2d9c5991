package proxy

import (
	"context"
	"crypto/tls"
	"errors"
	"net/http"

	"github.com/egressd/egressd/policy"
)

// logins are the protocols with a login of their own that TLS may carry.
var logins = [...]policy.Protocol{policy.Redis, policy.MQTT, policy.Postgres, policy.SOCKS5}

// mayLogIn says whether a rule lets anything but HTTP be spoken in the TLS of this tunnel.
func (s *Server) mayLogIn(t *tunnel) bool {
	b, err := t.sess.bind()
	if err != nil {
		return false
	}
	for _, p := range logins {
		f := policy.Flow{Sandbox: b.sandbox, Host: t.dest.host, Port: t.dest.port, Addr: t.dest.ip, Protocol: p, InTLS: true}
		if dec, _, ref := s.decide(t.ctx, b, &f); ref == nil && dec.Action != policy.Deny {
			return true
		}
	}
	return false
}

// inside looks at what is spoken in TLS that has been terminated, decides and hands over.
func (s *Server) inside(ctx context.Context, t *tunnel, tc *tls.Conn, alpn string) {
	t.conn = tc
	prefix, proto, err := s.sniff(t, s.limits.HandshakeTimeout, false)
	t.conn = &replayConn{Conn: tc, t: t, prefix: prefix}
	if err == nil && proto == policy.HTTP && !t.h2c {
		s.requests.serveTunnel(t)
		return
	}
	b, bindErr := t.sess.bind()
	if err = errors.Join(err, bindErr); err != nil {
		s.closeTunnel(t, prefix, proto, &refusal{status: http.StatusForbidden, code: codeProtocol, detail: err.Error()})
		return
	}
	f := policy.Flow{Sandbox: b.sandbox, Host: t.dest.host, Port: t.dest.port, Addr: t.dest.ip, Protocol: proto, InTLS: true}
	dec, addrs, ref := s.decide(ctx, b, &f)
	switch {
	case ref != nil:
	case dec.Action == policy.Deny:
		ref = denied(dec)
	case dec.Action == policy.Pass, dec.Credential != nil, dec.ClientCert != nil:
		s.serveLogin(ctx, t, b, &f, dec, addrs, alpn)
		return
	default:
		ref = &refusal{status: http.StatusForbidden, code: codeProtocol, rule: dec.Rule}
	}
	s.closeTunnel(t, prefix, proto, ref)
}
