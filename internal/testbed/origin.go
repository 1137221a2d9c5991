package testbed

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/http2"
)

// OriginOptions shape one origin. The zero value is a TLS origin for good.test on
// 127.0.0.2 that speaks h2 and http/1.1.
type OriginOptions struct {
	IP    string   // an address in 127.0.0.0/8
	Names []string // of the certificate; the first is the one in URL
	Plain bool     // no TLS

	Certificate       *tls.Certificate // instead of one for Names
	ClientCAs         *x509.CertPool   // ask for a client certificate and verify it if it comes
	RequireClientCert bool
	RequestClientCert bool // ask for one, take any or none
	MinVersion        uint16
	MaxVersion        uint16
	ALPN              []string // default h2, http/1.1
	TLS               func(*tls.Config)

	// Handler, if it is not nil, answers in place of the paths of this package.
	Handler http.Handler
	// Mount adds handlers by pattern (net/http.ServeMux) beside the usual paths.
	Mount map[string]http.Handler
	// Bearer and Basic are what /bearer and /basic demand; see also SetBearer, SetBasic.
	Bearer   string
	User, PW string
}

// Origin is a server that records all that reaches it.
type Origin struct {
	opts OriginOptions
	ln   net.Listener
	h1   *http.Server
	h2   *http2.Server //nolint:staticcheck // net/http does h2 on a *tls.Conn only, which could not be recorded
	tls  *tls.Config
	feed *feed
	wg   sync.WaitGroup

	mu     sync.Mutex
	conns  []*originConn
	reqs   []*live
	bearer string
	basic  [2]string
	closed bool
}

// NewOrigin starts an origin whose certificate ca signs. It ends with the test.
func NewOrigin(t testing.TB, ca *CA, opts OriginOptions) *Origin {
	t.Helper()
	if opts.IP == "" {
		opts.IP = "127.0.0.2"
	}
	if len(opts.Names) == 0 {
		opts.Names = []string{"good.test"}
	}
	ln, err := net.Listen("tcp4", net.JoinHostPort(opts.IP, "0"))
	if err != nil {
		t.Fatalf("testbed: listen on %s: %v", opts.IP, err)
	}
	o := &Origin{opts: opts, ln: ln, bearer: opts.Bearer, basic: [2]string{opts.User, opts.PW}, feed: newFeed(ln.Addr())}
	if !opts.Plain {
		o.tls = tlsConfig(t, ca, opts)
	}
	handler := opts.Handler
	if handler == nil {
		handler = o.routes()
	}
	o.h1 = &http.Server{Handler: o.record(handler), ConnContext: connContext, ErrorLog: discardLog()}
	o.h2 = &http2.Server{MaxConcurrentStreams: 1000} //nolint:staticcheck // as above
	o.wg.Go(o.accept)
	o.wg.Go(func() { _ = o.h1.Serve(o.feed) })
	t.Cleanup(o.Close)
	return o
}

func tlsConfig(t testing.TB, ca *CA, opts OriginOptions) *tls.Config {
	t.Helper()
	cert := opts.Certificate
	if cert == nil {
		c := ca.Leaf(t, opts.Names...)
		cert = &c
	}
	cfg := &tls.Config{
		Certificates: []tls.Certificate{*cert},
		NextProtos:   opts.ALPN,
		MinVersion:   opts.MinVersion,
		MaxVersion:   opts.MaxVersion,
		ClientCAs:    opts.ClientCAs,
	}
	if opts.ALPN == nil {
		cfg.NextProtos = []string{"h2", "http/1.1"}
	}
	switch {
	case opts.RequireClientCert:
		cfg.ClientAuth = tls.RequireAndVerifyClientCert
	case opts.ClientCAs != nil:
		cfg.ClientAuth = tls.VerifyClientCertIfGiven
	case opts.RequestClientCert:
		cfg.ClientAuth = tls.RequestClientCert
	}
	if opts.TLS != nil {
		opts.TLS(cfg)
	}
	return cfg
}

// Close ends the origin and waits for all that it runs. Tests need not call it.
func (o *Origin) Close() {
	o.mu.Lock()
	if o.closed {
		o.mu.Unlock()
		return
	}
	o.closed = true
	conns := slices.Clone(o.conns)
	o.mu.Unlock()
	_ = o.ln.Close()
	_ = o.feed.Close()
	for _, c := range conns {
		_ = c.raw.Close()
	}
	_ = o.h1.Close()
	o.wg.Wait()
}

// Addr is where the origin listens.
func (o *Origin) Addr() netip.AddrPort {
	return o.ln.Addr().(*net.TCPAddr).AddrPort()
}

// Port is Addr's port.
func (o *Origin) Port() uint16 { return o.Addr().Port() }

// HostPort is name:port for the origin's first name.
func (o *Origin) HostPort() string { return fmt.Sprintf("%s:%d", o.opts.Names[0], o.Port()) }

// URL is the origin's URL for path under its first name.
func (o *Origin) URL(path string) string {
	scheme := "https"
	if o.opts.Plain {
		scheme = "http"
	}
	return scheme + "://" + o.HostPort() + path
}

// SetBearer changes the token that /bearer demands.
func (o *Origin) SetBearer(token string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.bearer = token
}

// SetBasic changes what /basic demands.
func (o *Origin) SetBasic(user, password string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.basic = [2]string{user, password}
}

// Requests are all requests so far, in the order in which their heads were read.
func (o *Origin) Requests() []Request {
	o.mu.Lock()
	reqs := slices.Clone(o.reqs)
	o.mu.Unlock()
	out := make([]Request, len(reqs))
	for i, l := range reqs {
		out[i] = l.snapshot()
	}
	return out
}

// Last is the newest request; it fails the test when there is none.
func (o *Origin) Last(t testing.TB) Request {
	t.Helper()
	reqs := o.Requests()
	if len(reqs) == 0 {
		t.Fatal("testbed: the origin saw no request")
	}
	return reqs[len(reqs)-1]
}

// WaitRequests waits up to 5 s until n requests have come and returns them.
func (o *Origin) WaitRequests(t testing.TB, n int) []Request {
	t.Helper()
	for end := time.Now().Add(5 * time.Second); ; time.Sleep(2 * time.Millisecond) {
		if reqs := o.Requests(); len(reqs) >= n {
			return reqs
		} else if time.Now().After(end) {
			t.Fatalf("testbed: %d requests came, want %d", len(reqs), n)
		}
	}
}

// Conns are all connections so far.
func (o *Origin) Conns() []Conn {
	o.mu.Lock()
	conns := slices.Clone(o.conns)
	o.mu.Unlock()
	out := make([]Conn, len(conns))
	for i, c := range conns {
		out[i] = c.snapshot()
	}
	return out
}

// WireBytes counts what came from the network, AppBytes what came after TLS.
func (o *Origin) WireBytes() int64 { return o.sum(func(c Conn) int64 { return c.WireBytes }) }

// AppBytes counts application bytes: zero proves that nothing was sent to an origin
// that had not authenticated itself.
func (o *Origin) AppBytes() int64 { return o.sum(func(c Conn) int64 { return c.AppBytes }) }

func (o *Origin) sum(f func(Conn) int64) (n int64) {
	for _, c := range o.Conns() {
		n += f(c)
	}
	return n
}

// Captured is every byte that came, before and after TLS: what a canary scan looks at.
func (o *Origin) Captured() []byte {
	var out []byte
	for _, c := range o.Conns() {
		out = append(append(out, c.Wire...), c.App...)
	}
	return out
}

// Reset forgets what was recorded; open connections stay open and keep their IDs.
func (o *Origin) Reset() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.reqs = nil
	for _, c := range o.conns {
		c.wire.reset()
		c.app.reset()
	}
}

func (t *tape) reset() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.kept, t.total = nil, 0
}

// record wraps h so that each request is kept before h sees it.
func (o *Origin) record(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		id := -1
		if c, ok := r.Context().Value(connKey{}).(*originConn); ok {
			id = c.id
		}
		l := newLive(r, id)
		if r.Body != nil {
			r.Body = &tapedBody{ReadCloser: r.Body, r: r, l: l}
		}
		o.mu.Lock()
		o.reqs = append(o.reqs, l)
		o.mu.Unlock()
		h.ServeHTTP(w, r)
	})
}

func (o *Origin) accept() {
	for {
		raw, err := o.ln.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			time.Sleep(time.Millisecond) // out of descriptors: a passing state
			continue
		}
		c := &originConn{raw: raw}
		o.mu.Lock()
		if o.closed {
			o.mu.Unlock()
			_ = raw.Close()
			return
		}
		c.id = len(o.conns)
		o.conns = append(o.conns, c)
		o.mu.Unlock()
		o.wg.Go(func() { o.serve(c) })
	}
}

// serve does the handshake and gives the connection to the server that ALPN named.
func (o *Origin) serve(c *originConn) {
	wire := &tapedConn{Conn: c.raw, in: &c.wire}
	if o.tls == nil {
		c.Conn = &tapedConn{Conn: wire, in: &c.app}
		o.feed.put(c)
		return
	}
	tc := tls.Server(wire, o.tls)
	_ = c.raw.SetDeadline(time.Now().Add(20 * time.Second))
	if err := tc.Handshake(); err != nil {
		c.fail(err)
		_ = c.raw.Close()
		return
	}
	_ = c.raw.SetDeadline(time.Time{})
	state := tc.ConnectionState()
	c.established(&state, &tapedConn{Conn: tc, in: &c.app})
	if state.NegotiatedProtocol == "h2" {
		ctx := context.WithValue(context.Background(), connKey{}, c)
		//nolint:staticcheck // as above
		o.h2.ServeConn(tlsOriginConn{c}, &http2.ServeConnOpts{Context: ctx, BaseConfig: o.h1, Handler: o.h1.Handler})
		return
	}
	o.feed.put(tlsOriginConn{c})
}
