package proxy

import (
	"context"
	"encoding/base64"
	"errors"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"time"

	"github.com/elazarl/goproxy"

	"github.com/egressd/egressd/internal/secret"
)

// newEdge is the explicit proxy's front: goproxy tells CONNECT from absolute-form
// and takes CONNECT over the connection; both are handed to us. None of its
// interception, transports, certificates or logging is used: what it would fall
// back to refuses.
func (s *Server) newEdge() *goproxy.ProxyHttpServer {
	edge := goproxy.NewProxyHttpServer()
	edge.Logger = silent{}
	edge.Tr = &http.Transport{Proxy: nil, DialContext: refuseDial, DialTLSContext: refuseDial, DisableKeepAlives: true}
	edge.ConnectDial = func(string, string) (net.Conn, error) { return nil, errRefused }
	edge.ConnectDialWithReq = func(*http.Request, string, string) (net.Conn, error) { return nil, errRefused }
	edge.CertStore = nil
	edge.AllowHTTP2 = false
	edge.NonproxyHandler = http.HandlerFunc(s.serveAbsolute)
	edge.OnRequest().HandleConnectFunc(func(host string, _ *goproxy.ProxyCtx) (*goproxy.ConnectAction, string) {
		return &goproxy.ConnectAction{Action: goproxy.ConnectHijack, Hijack: s.connect}, host
	})
	// Absolute-form never reaches goproxy's own forwarding: serve.go splits the URI
	// first. If it ever did, this answers.
	edge.OnRequest().DoFunc(func(r *http.Request, _ *goproxy.ProxyCtx) (*http.Request, *http.Response) {
		return r, goproxy.NewResponse(r, "text/plain", http.StatusInternalServerError, "")
	})
	return edge
}

var errRefused = errors.New("goproxy must not dial")

func refuseDial(context.Context, string, string) (net.Conn, error) { return nil, errRefused }

type silent struct{}

func (silent) Printf(string, ...any) {}

// connect has taken a CONNECT's connection over. It decides, answers, and leaves
// what follows to the owner of the connection: the goroutine's stack is shallow
// again before the tunnel's long life begins.
func (s *Server) connect(r *http.Request, c net.Conn, _ *goproxy.ProxyCtx) {
	t := tunnelOf(r.Context())
	t.way = wayExplicit
	rec := t.begin(s)
	ref := s.openTunnel(r, t)
	// Answers that the client has not read may have filled the connection.
	_ = c.SetWriteDeadline(time.Now().Add(s.limits.StallTimeout))
	if ref != nil {
		n, _ := c.Write(ref.raw(rec.id))
		_ = c.Close() // what follows a refused CONNECT is not read
		rec.sess, rec.dest, rec.method = t.sess, t.dest, http.MethodConnect
		rec.refused(ref, int64(n))
		return
	}
	if _, err := c.Write([]byte("HTTP/1.1 200 Connection established\r\n\r\n")); err != nil {
		_ = c.Close()
		return
	}
	_ = c.SetWriteDeadline(time.Time{})
	t.conn = c
	ctx := t.ctx
	t.next = func() { s.dispatch(ctx, t) }
}

// openTunnel identifies the client and asks the policy whether the destination
// could be allowed for any protocol.
func (s *Server) openTunnel(r *http.Request, t *tunnel) *refusal {
	b, ref := s.authenticate(r, t)
	if ref != nil {
		return ref
	}
	d, ok := parseDest(r.RequestURI, 0)
	if !ok {
		return &refusal{status: http.StatusBadRequest, code: codeBadRequest, detail: "CONNECT target"}
	}
	if claim := r.Host; claim != "" && !d.matches(claim, d.String(), true) && !d.matches(claim, d.String(), false) {
		t.dest = d
		return &refusal{status: http.StatusMisdirectedRequest, code: codeMisdirected, detail: "Host differs from the CONNECT target"}
	}
	return s.openTo(t, b, d)
}

// checkLiteral refuses a forbidden address before a byte is relayed; names are
// checked when they are resolved.
func (s *Server) checkLiteral(d dest) *refusal {
	if !d.ip.IsValid() {
		return nil
	}
	if err := s.guard.Check(addrPort(d.ip, d.port)); err != nil {
		return &refusal{status: http.StatusForbidden, code: codeForbiddenAddr, detail: err.Error()}
	}
	return nil
}

// authenticate finds who the client is from Proxy-Authorization and its address,
// and removes the header.
func (s *Server) authenticate(r *http.Request, t *tunnel) (*bound, *refusal) {
	values := r.Header["Proxy-Authorization"]
	delete(r.Header, "Proxy-Authorization")
	if s.isDraining() {
		return nil, &refusal{status: http.StatusServiceUnavailable, code: codeShutdown, close: true}
	}
	if len(values) > 1 {
		return nil, &refusal{status: http.StatusBadRequest, code: codeBadRequest, detail: "two Proxy-Authorization headers", close: true}
	}
	user, token, given := "", "", len(values) == 1
	if given {
		var ok bool
		if user, token, ok = basicAuth(values[0]); !ok || token == "" {
			return nil, s.loginFailed(t.sess.claims.addr, "Proxy-Authorization is not Basic with a token")
		}
	}
	return s.identify(t, user, token, given)
}

// identify finds out who the client is from what it said and from its address. A failed
// login slows its address down.
func (s *Server) identify(t *tunnel, user, token string, given bool) (*bound, *refusal) {
	addr := t.sess.claims.addr
	if c := t.sess.claims; given != c.given || user != c.user || token != c.token.Reveal() {
		t.sess = &session{srv: s, claims: claims{addr: addr, user: user, token: secret.New(token), given: given}}
	}
	b, err := t.sess.bind()
	switch {
	case err == nil:
		return b, nil
	case errors.Is(err, errNoRules):
		return nil, &refusal{status: http.StatusForbidden, code: codeNoPolicy, close: true}
	case given:
		return nil, s.loginFailed(addr, err.Error())
	}
	return nil, unauthenticated(err.Error())
}

func (s *Server) loginFailed(addr netip.Addr, detail string) *refusal {
	if s.backoff.failed(addr) {
		return &refusal{status: http.StatusTooManyRequests, code: codeBackoff, detail: detail, close: true}
	}
	return unauthenticated(detail)
}

func limited(what string) *refusal {
	return &refusal{status: http.StatusTooManyRequests, code: codeLimit, detail: what, close: true}
}

func unauthenticated(detail string) *refusal {
	return &refusal{status: http.StatusProxyAuthRequired, code: codeAuthRequired, detail: detail, close: true}
}

func basicAuth(v string) (user, password string, ok bool) {
	scheme, enc, found := strings.Cut(v, " ")
	if !found || !strings.EqualFold(scheme, "basic") {
		return "", "", false
	}
	raw, err := base64.StdEncoding.DecodeString(strings.TrimSpace(enc))
	if err != nil {
		return "", "", false
	}
	return strings.Cut(string(raw), ":")
}

// serveAbsolute answers one absolute-form request: cleartext HTTP through the proxy.
func (s *Server) serveAbsolute(w http.ResponseWriter, r *http.Request) {
	t := tunnelOf(r.Context())
	d, ok := t.absolute, t.absolute.port != 0
	t.absolute = dest{}
	x := t.begin(s)
	x.method = r.Method
	if !ok { // origin-form to the proxy itself: nothing is served here
		x.refuse(w, &refusal{status: http.StatusBadRequest, code: codeBadRequest, detail: "not a proxy request", close: true})
		return
	}
	x.dest = d
	b, ref := s.authenticate(r, t)
	x.sess = t.sess // who it is has been found out only now
	if ref == nil {
		ref = s.count(t, b)
	}
	if ref == nil {
		ref = s.checkLiteral(d)
	}
	if ref == nil {
		ref = s.checkLoop(t)
	}
	if ref != nil {
		x.refuse(w, ref)
		return
	}
	s.exchange(w, r, t, x, b)
}
