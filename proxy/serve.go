package proxy

import (
	"context"
	"errors"
	"io"
	"log"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/egressd/egressd/internal/h1"
)

// requestServers turn connections into requests. This is the one place that knows
// which code parses HTTP.
type requestServers struct {
	s      *Server
	edge   *h1.Server // explicit proxy: CONNECT and absolute-form
	tunnel *h1.Server // inside a tunnel: origin-form only
	h2     *http.Server
	conns  *connListener
	served sync.WaitGroup
}

func newRequestServers(s *Server) *requestServers {
	rs := &requestServers{s: s, conns: newConnListener()}
	base := h1.Server{
		Limits:      h1.DefaultLimits(),
		HeadTimeout: s.limits.HandshakeTimeout,
		IdleTimeout: s.limits.IdleTimeout,
		WriteStall:  s.limits.StallTimeout,
		BodyStall:   s.limits.StallTimeout,
		Reject:      s.rejected,
		Panicked:    func(any) { s.metrics.panics.Inc() },
	}
	base.Limits.HeadBytes = s.limits.HeaderBytes
	edge, tunnel := base, base
	edge.AllowAbsolute, edge.AllowConnect = true, true
	edge.Handler = http.HandlerFunc(s.serveEdgeRequest)
	tunnel.Handler = http.HandlerFunc(s.serveInTunnel)
	rs.edge, rs.tunnel = &edge, &tunnel
	protos := new(http.Protocols)
	protos.SetHTTP2(true)
	protos.SetUnencryptedHTTP2(true) // with prior knowledge: the preface has been seen
	protos.SetHTTP1(true)            // net/http serves nothing else on a connection that did not negotiate h2; none arrives
	rs.h2 = &http.Server{
		Handler:           http.HandlerFunc(s.serveInTunnelH2),
		Protocols:         protos,
		MaxHeaderBytes:    s.limits.HeaderBytes,
		IdleTimeout:       s.limits.IdleTimeout,
		ReadHeaderTimeout: s.limits.HandshakeTimeout,
		ErrorLog:          log.New(io.Discard, "", 0), //nolint:forbidigo // it would print what a sandbox sent
		HTTP2: &http.HTTP2Config{
			MaxConcurrentStreams: 100, MaxReadFrameSize: 16 << 10,
			MaxReceiveBufferPerStream: 256 << 10, MaxReceiveBufferPerConnection: 1 << 20,
			SendPingTimeout: s.limits.IdleTimeout / 2, PingTimeout: 15 * time.Second, WriteByteTimeout: s.limits.StallTimeout,
			MaxDecoderHeaderTableSize: h2Table,
		},
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			if g, ok := c.(*h2Guard); ok {
				return context.WithValue(ctx, tunnelKey{}, g.t)
			}
			return ctx
		},
	}
	rs.served.Go(func() { _ = rs.h2.Serve(rs.conns) }) // returns at shutdown
	return rs
}

// serveEdge serves the explicit proxy's own requests until the connection ends or a
// CONNECT takes it over.
func (rs *requestServers) serveEdge(t *tunnel) {
	rs.edge.ServeConn(context.WithValue(t.ctx, tunnelKey{}, t), t.drain, t.raw)
}

// serveTunnel serves HTTP/1.1 on t.conn.
func (rs *requestServers) serveTunnel(t *tunnel) {
	rs.tunnel.ServeConn(context.WithValue(t.ctx, tunnelKey{}, t), t.drain, t.conn)
}

// serveH2 hands a connection that speaks h2, rc or TLS over it, to net/http and waits for
// its end.
func (rs *requestServers) serveH2(t *tunnel, c net.Conn, rc *replayConn) {
	rc.closed = make(chan struct{})
	if !rs.conns.hand(rs.s.newH2Guard(t, c)) {
		return
	}
	select {
	case <-rc.closed:
	case <-t.ctx.Done():
		_ = rc.Close()
	}
}

func (rs *requestServers) shutdown(ctx context.Context) error {
	err := rs.h2.Shutdown(ctx)
	_ = rs.conns.Close()
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return nil // Shutdown reports it
	}
	return err
}

func (rs *requestServers) close() {
	_ = rs.h2.Close()
	_ = rs.conns.Close()
	rs.served.Wait()
}

// serveEdgeRequest splits an absolute URI and hands the request to goproxy, which
// takes CONNECT over and gives all else to serveAbsolute.
func (s *Server) serveEdgeRequest(w http.ResponseWriter, r *http.Request) {
	t := tunnelOf(r.Context())
	if r.Method != http.MethodConnect && r.URL.Host != "" {
		d, ok := parseDest(r.URL.Host, schemePort(false))
		if !ok {
			x := t.begin(s)
			x.method = r.Method
			x.refuse(w, &refusal{status: http.StatusBadRequest, code: codeBadRequest, detail: "authority of the absolute URI", close: true})
			return
		}
		t.absolute = d
		r.RequestURI = originForm(r.RequestURI)
		r.URL.Scheme, r.URL.Host = "", ""
	}
	s.edge.ServeHTTP(w, r)
}

// originForm cuts scheme and authority off an absolute URI, keeping every other byte.
func originForm(uri string) string {
	_, rest, ok := strings.Cut(uri, "://")
	if !ok {
		return uri
	}
	i := strings.IndexAny(rest, "/?")
	switch {
	case i < 0:
		return "/"
	case rest[i] == '?':
		return "/" + rest[i:]
	default:
		return rest[i:]
	}
}

// serveInTunnelH2 does for h2 what the h1 server does by itself.
func (s *Server) serveInTunnelH2(w http.ResponseWriter, r *http.Request) {
	t := tunnelOf(r.Context())
	if r.ProtoMajor != 2 || t == nil { // cannot be
		http.Error(w, "", http.StatusInternalServerError)
		return
	}
	defer t.settle(r.Context())
	if ref := checkH2Head(r, t); ref != nil {
		x := t.begin(s)
		x.method = r.Method
		x.refuse(w, ref)
		return
	}
	if r.ContentLength == 0 {
		r.Body = http.NoBody
	}
	s.serveInTunnel(w, r)
}

// resetCredit is how many more streams a client may give up than it lets finish.
const resetCredit = 200

// settle is called when the handler of an h2 stream returns. net/http counts only the
// resets that come faster than handlers start; each of the others costs a request to
// an origin, so a client that does little else loses its connection (CVE-2023-44487).
func (t *tunnel) settle(stream context.Context) {
	if stream.Err() == nil {
		if n := t.resets.Load(); n > 0 {
			t.resets.CompareAndSwap(n, n-1) // that another one is lost to a race matters to nobody
		}
		return
	}
	if t.resets.Add(1) > resetCredit {
		t.handle.cut()
	}
}

// checkH2Head refuses what h1 refuses and net/http's h2 server lets through, so that a
// request is decided alike however it came.
func checkH2Head(r *http.Request, t *tunnel) *refusal {
	fields := 0
	for _, vs := range r.Header {
		fields += len(vs)
	}
	cl := r.Header["Content-Length"]
	hosts := r.Header["Host"]
	delete(r.Header, "Host")
	switch {
	case fields > h1.DefaultLimits().Headers:
		return &refusal{status: http.StatusRequestHeaderFieldsTooLarge, code: codeBadRequest, detail: "too_many_headers"}
	case !upperToken(r.Method): // no method that is registered is lower-case; a blank in one would split an h1 request line
		return &refusal{status: http.StatusBadRequest, code: codeBadRequest, detail: "bad_method"}
	case len(hosts) > 1 || len(hosts) == 1 && !t.dest.matches(hosts[0], r.Host, t.tls):
		return &refusal{status: http.StatusMisdirectedRequest, code: codeMisdirected, detail: "dest_mismatch: Host differs from the tunnel's destination", close: true}
	case len(cl) > 1 || len(cl) == 1 && r.ContentLength >= 0 && cl[0] != strconv.FormatInt(r.ContentLength, 10):
		return &refusal{status: http.StatusBadRequest, code: codeBadRequest, detail: "bad_content_length"}
	case len(r.Header["Expect"]) > 0: // net/http has taken 100-continue out
		return &refusal{status: http.StatusExpectationFailed, code: codeBadRequest, detail: "unknown_expectation"}
	}
	return nil
}

// upperToken: letters are upper-case, the rest as RFC 9110 section 5.6.2 allows.
func upperToken(s string) bool {
	for i := range len(s) {
		c := s[i]
		if (c < 'A' || c > 'Z') && (c < '0' || c > '9') && strings.IndexByte("!#$%&'*+-.^_`|~", c) < 0 {
			return false
		}
	}
	return s != ""
}

// rejected records a head that the codec refused and says what to answer.
func (s *Server) rejected(ctx context.Context, e *h1.ProtocolError) (contentType string, body []byte, header http.Header) {
	t := tunnelOf(ctx)
	x := t.begin(s)
	code := codeBadRequest
	if e.Status == http.StatusMethodNotAllowed {
		code = codeMethod
	}
	body = problemBody(e.Status, code, x.id)
	x.refused(&refusal{status: e.Status, code: code, detail: e.Reason}, int64(len(body)))
	return problemType, body, http.Header{"X-Egressd-Error": {code}, "X-Request-Id": {x.id}}
}

// connListener feeds connections that were accepted elsewhere to an http.Server.
type connListener struct {
	conns chan net.Conn
	done  chan struct{}
	once  sync.Once
}

func newConnListener() *connListener {
	return &connListener{conns: make(chan net.Conn), done: make(chan struct{})}
}

func (l *connListener) hand(c net.Conn) bool {
	select {
	case l.conns <- c:
		return true
	case <-l.done:
		return false
	}
}

func (l *connListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}

func (l *connListener) Close() error {
	l.once.Do(func() { close(l.done) })
	return nil
}

func (l *connListener) Addr() net.Addr { return &net.TCPAddr{} }
