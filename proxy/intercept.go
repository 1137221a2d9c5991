package proxy

import (
	"context"
	"crypto/tls"
	"errors"
	"net/http"
	"slices"
	"time"

	"github.com/egressd/egressd/policy"
)

// downstreamTLS is the one configuration towards sandboxes, shared so that sessions
// resume. The certificate is for the tunnel's destination, never for what the
// ClientHello says (checkHello compared the two). The hybrid key exchange is left
// out on this side: the link is the operator's own and it costs a third of a
// handshake (docs/adr/0004).
func (s *Server) downstreamTLS() *tls.Config {
	conf := &tls.Config{
		MinVersion:       tls.VersionTLS12,
		NextProtos:       []string{"h2", "http/1.1"},
		CurvePreferences: []tls.CurveID{tls.X25519, tls.CurveP256, tls.CurveP384},
		ClientAuth:       tls.NoClientCert,
		GetCertificate: func(hi *tls.ClientHelloInfo) (*tls.Certificate, error) {
			rc, ok := hi.Conn.(*replayConn)
			if !ok {
				return nil, errors.New("not a tunnel")
			}
			if !s.mayMint(rc.t) {
				return nil, errMints
			}
			return s.leaves.Leaf(rc.t.dest.host)
		},
	}
	conf.GetConfigForClient = s.configFor(conf)
	return conf
}

// intercept terminates the sandbox's TLS and serves the requests inside.
func (s *Server) intercept(ctx context.Context, t *tunnel, prefix []byte) {
	rc := &replayConn{Conn: t.conn, t: t, prefix: prefix}
	tc := tls.Server(rc, s.tlsConf)
	alpn, ok := s.accept(ctx, t, tc)
	if !ok {
		return
	}
	t.tls = true
	switch {
	case alpn == "h2":
		s.requests.serveH2(t, tc, rc)
	case alpn != "http/1.1": // it did not say what it speaks
		s.inside(ctx, t, tc, alpn)
	default:
		t.conn = tc
		s.requests.serveTunnel(t)
	}
}

// accept shakes hands and says what protocol was agreed on. That takes stack that an idle
// tunnel need not hold.
func (s *Server) accept(ctx context.Context, t *tunnel, tc *tls.Conn) (alpn string, ok bool) {
	if err := s.handshake(ctx, tc); err != nil {
		// The client does not trust our CA, pins, or broke off: never a reason to pass it through.
		x := t.begin(s)
		x.dest, x.protocol = t.dest, policy.TLS.String()
		ref := &refusal{status: http.StatusBadRequest, code: codeBadRequest, detail: "TLS handshake with the client failed: " + err.Error()}
		if errors.Is(err, errMints) {
			ref = limited(err.Error())
		}
		x.refused(ref, 0)
		return "", false
	}
	return tc.ConnectionState().NegotiatedProtocol, true
}

// handshake with a sandbox, within its time.
func (s *Server) handshake(ctx context.Context, tc *tls.Conn) error {
	if err := tc.SetDeadline(time.Now().Add(s.limits.HandshakeTimeout)); err != nil {
		return err
	}
	if err := s.apart(func() error { return tc.HandshakeContext(ctx) }); err != nil {
		return err
	}
	return tc.SetDeadline(time.Time{})
}

// otherALPN are protocols that have a login of their own and a name in ALPN.
var otherALPN = []string{"mqtt", "postgresql", "redis"}

// configFor offers what is not HTTP to clients that ask for nothing else.
func (s *Server) configFor(conf *tls.Config) func(*tls.ClientHelloInfo) (*tls.Config, error) {
	other := conf.Clone()
	other.NextProtos = otherALPN
	return func(hi *tls.ClientHelloInfo) (*tls.Config, error) {
		for _, p := range hi.SupportedProtos {
			if slices.Contains(conf.NextProtos, p) {
				return nil, nil
			}
		}
		if len(hi.SupportedProtos) == 0 {
			return nil, nil
		}
		return other, nil
	}
}

var errPanicked = errors.New("panic")

// apart runs f, whose stack is deep, on one of its own: a goroutine's stack does not
// become smaller before the next collection, and a tunnel may wait for long with its own.
func (s *Server) apart(f func() error) error {
	done := make(chan error, 1)
	go func() {
		err := errPanicked
		defer func() { done <- err }()
		defer s.recovered("hello or handshake")
		err = f()
	}()
	return <-done
}
