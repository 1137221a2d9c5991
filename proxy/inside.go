package proxy

import (
	"context"
	"crypto/tls"
	"errors"
	"net/http"

	"github.com/egressd/egressd/policy"
)

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
