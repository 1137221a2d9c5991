package proxy

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/netip"
	"net/textproto"
	"net/url"
	"sync"
	"sync/atomic"
	"time"

	"github.com/egressd/egressd/internal/h1"
)

// poolKey says who may share an upstream connection: nobody but the same sandbox,
// with the same material, towards the same destination (and, where the decision was
// about an address, the same address).
type poolKey struct {
	sandbox, team string
	cred, cert    uint64 // inject.Projection.ID; 0: none
	dest          dest
	tls           bool
	addr          netip.Addr
}

// Bounds of the pools. An idle connection is one descriptor at both ends.
const (
	maxIdlePerPool = 256
	maxIdle        = 4096
	idleLifetime   = 90 * time.Second
)

// upstream holds the connections to origins. Safe for concurrent use.
type upstream struct {
	guard   Guard
	roots   *x509.CertPool
	limits  Limits
	metrics *metrics
	h1lim   h1.Limits

	mu      sync.Mutex
	pools   map[poolKey]*pool
	retired []*pool // forgotten less than idleLifetime ago
	idle    int
	closed  bool

	perSandbox *quota // connections that are open, in use or idle
}

// pool is what is open for one key.
type pool struct {
	up      *upstream
	key     poolKey
	sources []string // "team/name" of the material, for closeIdleOf
	tls     *clientTLS
	alpn    atomic.Uint32 // what the origin spoke: alpnUnknown, alpnH1, alpnH2

	mu      sync.Mutex
	idle    []*upConn // oldest first
	used    time.Time
	retired bool // forgotten: what was in use when that happened is not kept

	h2once sync.Once
	h2     *http.Transport
}

const (
	alpnUnknown uint32 = iota
	alpnH1
	alpnH2
)

// upConn is one HTTP/1.1 connection to an origin.
type upConn struct {
	nc     net.Conn
	h1     *h1.ClientConn
	pool   *pool
	since  time.Time // when it became idle
	reused bool
}

var (
	errUpstreamTLS      = errors.New("upstream TLS")
	errUpstreamResponse = errors.New("upstream response")
	errClientGone       = errors.New("the client went away")
	errNotH2            = errors.New("the origin does not speak h2")
	errUpstreamLimit    = errors.New("the sandbox has too many upstream connections")
	errClosed           = errors.New("shutting down")
)

func newUpstream(g Guard, roots *x509.CertPool, l Limits, m *metrics) *upstream {
	u := &upstream{guard: g, roots: roots, limits: l, metrics: m, h1lim: h1.DefaultLimits(),
		pools: map[poolKey]*pool{}, perSandbox: newQuota(l.ConnectionsPerSandbox)}
	u.h1lim.Headers = 256 // origins send many Set-Cookie
	return u
}

// roundTrip sends r as p says and returns the head of the final answer. r.Header
// and r.Body are the ones to send. Interim answers go to w as they come.
func (u *upstream) roundTrip(f *flight, w http.ResponseWriter, r *http.Request, p *plan) (*http.Response, error) {
	pl, err := u.pool(p)
	if err != nil {
		return nil, err
	}
	if r.ProtoMajor == 2 && p.key.tls && !p.websocket && pl.alpn.Load() != alpnH1 || pl.alpn.Load() == alpnH2 && !p.websocket {
		resp, err := pl.roundTripH2(w, r, p)
		if !errors.Is(err, errNotH2) {
			return resp, err
		}
	}
	resp, err := pl.roundTripH1(f, w, r, p)
	if err == nil {
		return resp, nil
	}
	var alert tls.AlertError
	if errors.As(err, &alert) && alert == alertNoApplicationProtocol && !p.websocket {
		return pl.roundTripH2(w, r, p) // the origin speaks h2 alone; nothing was sent yet
	}
	return resp, err
}

// alertNoApplicationProtocol answers an ALPN offer that the origin speaks none of (RFC 7301).
const alertNoApplicationProtocol tls.AlertError = 120

func (u *upstream) pool(p *plan) (*pool, error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.closed {
		return nil, errClosed
	}
	if pl := u.pools[p.key]; pl != nil {
		return pl, nil
	}
	pl := &pool{up: u, key: p.key, used: time.Now()}
	if p.key.tls {
		pl.tls = newClientTLS(u.roots, p)
	}
	pl.sources = p.sources()
	u.pools[p.key] = pl
	return pl, nil
}

// roundTripH1 uses an idle connection or a new one. A connection that the origin
// closed while it was idle is replaced once, when nothing of the request is lost by that.
func (p *pool) roundTripH1(f *flight, w http.ResponseWriter, r *http.Request, pl *plan) (*http.Response, error) {
	for {
		c, err := p.get(r)
		if err != nil {
			return nil, err
		}
		resp, err := c.h1.RoundTrip(r, f.on(c, w, r, pl))
		if err == nil {
			return resp, nil
		}
		_ = c.nc.Close()
		switch {
		case f.aborted():
			return nil, errClientGone
		case c.reused && idempotent(r.Method) && h1.Retryable(err):
			f.answer.Clear()
			continue
		}
		return nil, fmt.Errorf("%w: %w", errUpstreamResponse, err)
	}
}

// slowAfter is how long an origin may be silent before egressd watches whether the
// client still waits.
const slowAfter = time.Second

// maxInterims is how many 1xx answers a sandbox is shown.
const maxInterims = 5

// get returns an idle connection, the youngest first, or dials.
func (p *pool) get(r *http.Request) (*upConn, error) {
	for {
		c := p.takeIdle()
		if c == nil {
			return p.dialH1(r.Context())
		}
		// What cannot be sent twice is not sent into a connection that the origin has
		// closed: look first. Anything else is simply sent again.
		if (r.ContentLength != 0 || !idempotent(r.Method)) && !c.h1.Alive() {
			_ = c.nc.Close()
			continue
		}
		return c, nil
	}
}

func idempotent(method string) bool {
	switch method {
	case http.MethodGet, http.MethodHead, http.MethodOptions, http.MethodPut, http.MethodDelete:
		return true
	}
	return false
}

func (p *pool) takeIdle() *upConn {
	p.mu.Lock()
	n := len(p.idle)
	if n == 0 {
		p.mu.Unlock()
		return nil
	}
	c := p.idle[n-1]
	p.idle[n-1] = nil
	p.idle = p.idle[:n-1]
	p.mu.Unlock()
	p.up.addIdle(-1)
	c.reused = true
	return c
}

func (u *upstream) addIdle(n int) bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	if n > 0 && (u.idle >= maxIdle || u.closed) {
		return false
	}
	u.idle += n
	return true
}

// done is called once when the answer has been read (or given up).
func (c *upConn) done(reusable bool) {
	p := c.pool
	if !reusable || !p.up.addIdle(1) {
		_ = c.nc.Close()
		return
	}
	now := time.Now()
	p.mu.Lock()
	if len(p.idle) < maxIdlePerPool && !p.retired {
		c.since, p.used = now, now
		p.idle = append(p.idle, c)
		p.mu.Unlock()
		return
	}
	p.mu.Unlock()
	p.up.addIdle(-1)
	_ = c.nc.Close()
}

func (p *pool) dialH1(ctx context.Context) (*upConn, error) {
	nc, proto, err := p.dial(ctx, "http/1.1")
	if err != nil {
		return nil, err
	}
	if proto == "h2" { // cannot be: only http/1.1 was offered
		_ = nc.Close()
		return nil, errUpstreamTLS
	}
	return &upConn{nc: nc, h1: h1.NewClientConn(nc, p.up.h1lim), pool: p}, nil
}

// dial opens a connection to an address that netguard has checked and, for TLS,
// verifies the certificate for the destination's name before a byte is sent.
func (p *pool) dial(ctx context.Context, alpn ...string) (net.Conn, string, error) {
	u := p.up
	addrs := []netip.Addr{p.key.addr}
	if !p.key.addr.IsValid() {
		var err error
		if addrs, err = u.guard.Lookup(ctx, p.key.dest.host); err != nil {
			u.metrics.dials.WithLabelValues("lookup_failed").Inc()
			return nil, "", err
		}
	}
	release, ok := u.perSandbox.take(p.key.sandbox)
	if !ok {
		u.metrics.dials.WithLabelValues("limited").Inc()
		return nil, "", errUpstreamLimit
	}
	nc, err := u.guard.Dial(ctx, addrs, p.key.dest.port)
	if err != nil {
		release()
		u.metrics.dials.WithLabelValues("failed").Inc()
		return nil, "", err
	}
	nc = metered(nc, release)
	proto := ""
	if p.tls != nil {
		if nc, proto, err = p.tls.handshake(ctx, nc, p.key.dest, u.limits.HandshakeTimeout, alpn); err != nil {
			u.metrics.dials.WithLabelValues("tls_failed").Inc()
			return nil, "", err
		}
	}
	u.metrics.dials.WithLabelValues("ok").Inc()
	return nc, proto, nil
}

// roundTripH2 sends r over h2, by the standard library's client on connections that
// we dialled and verified. errNotH2: the origin chose HTTP/1.1, nothing was sent.
func (p *pool) roundTripH2(w http.ResponseWriter, r *http.Request, pl *plan) (*http.Response, error) {
	p.h2once.Do(p.startH2)
	ctx, interims := r.Context(), interimGate{w: w}
	defer interims.close()
	ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{Got1xxResponse: interims.pass})
	header := r.Header
	if r.ProtoMajor == 1 {
		header = header.Clone() // the transport may read it for longer than the h1 server leaves it to us
	}
	out := &http.Request{
		Method: r.Method, Header: header, Body: r.Body, ContentLength: r.ContentLength, Trailer: r.Trailer,
		URL: &url.URL{Scheme: "https", Host: pl.authority, Opaque: "//" + pl.authority + pl.target}, Host: pl.authority,
		Proto: "HTTP/2.0", ProtoMajor: 2,
	}
	body := holdBody(out)
	if _, ok := out.Header["User-Agent"]; !ok {
		out.Header["User-Agent"] = nil // net/http would add its own
	}
	resp, err := p.h2.RoundTrip(out.WithContext(ctx))
	if err == nil {
		p.alpn.Store(alpnH2)
		return resp, nil
	}
	if errors.Is(err, errNotH2) {
		p.alpn.Store(alpnH1)
		return nil, err // nothing of the body was read: HTTP/1.1 sends it
	}
	body.closeNow()
	var de *dialError
	if errors.As(err, &de) {
		return nil, de.error
	}
	return nil, fmt.Errorf("%w: %w", errUpstreamResponse, err)
}

// heldBody keeps a transport that found no connection from closing a body which
// another protocol may still send. From the first Read on it is what it wraps.
type heldBody struct {
	io.ReadCloser
	begun atomic.Bool
}

func holdBody(r *http.Request) *heldBody {
	if r.Body == nil || r.Body == http.NoBody {
		return nil
	}
	b := &heldBody{ReadCloser: r.Body}
	r.Body = b
	return b
}

func (b *heldBody) Read(p []byte) (int, error) {
	b.begun.Store(true)
	return b.ReadCloser.Read(p)
}

func (b *heldBody) Close() error {
	if !b.begun.Load() {
		return nil
	}
	return b.ReadCloser.Close()
}

func (b *heldBody) closeNow() {
	if b != nil {
		_ = b.ReadCloser.Close()
	}
}

// interimGate passes interim answers on from the transport's own goroutine, and none
// once RoundTrip has returned: w belongs to the handler then, or to nobody.
type interimGate struct {
	mu   sync.Mutex
	w    http.ResponseWriter
	n    int
	shut bool
}

func (g *interimGate) pass(code int, h textproto.MIMEHeader) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if code == http.StatusSwitchingProtocols {
		return errors.New("unrequested 101") // RFC 9113 section 8.6: h2 has none
	}
	if g.n++; g.n <= maxInterims && !g.shut {
		interim(g.w, code, http.Header(h))
	}
	return nil
}

func (g *interimGate) close() {
	g.mu.Lock()
	g.shut = true
	g.mu.Unlock()
}

// dialError tells what failed before a connection stood from what failed on it.
type dialError struct{ error }

func (e *dialError) Unwrap() error { return e.error }

func (p *pool) startH2() {
	protos := new(http.Protocols)
	protos.SetHTTP2(true)
	h2 := &http.Transport{
		Proxy: nil, Protocols: protos, DisableCompression: true, ForceAttemptHTTP2: true,
		MaxResponseHeaderBytes: int64(p.up.h1lim.HeadBytes), IdleConnTimeout: idleLifetime,
		ResponseHeaderTimeout: p.up.limits.ResponseHeaderTimeout,
		HTTP2:                 &http.HTTP2Config{SendPingTimeout: 30 * time.Second, PingTimeout: 15 * time.Second, WriteByteTimeout: p.up.limits.StallTimeout},
		DialTLSContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			nc, proto, err := p.dial(ctx, "h2", "http/1.1")
			if err != nil {
				return nil, &dialError{err}
			}
			if proto != "h2" {
				// Keep it for the HTTP/1.1 path that takes over now.
				c := &upConn{nc: nc, h1: h1.NewClientConn(nc, p.up.h1lim), pool: p}
				c.done(true)
				return nil, errNotH2
			}
			return nc, nil
		},
	}
	p.mu.Lock()
	p.h2 = h2
	p.mu.Unlock()
}

// closeIdleOf ends idle connections that carry material of a source; of any source if
// both names are empty.
func (u *upstream) closeIdleOf(team, name string) {
	want, every := team+"/"+name, team == "" && name == ""
	u.forget(func(p *pool) bool {
		if every {
			return len(p.sources) > 0
		}
		for _, s := range p.sources {
			if s == want {
				return true
			}
		}
		return false
	})
}

// forget drops the pools that match and closes what is idle in them. What is in use
// finishes and is closed then.
func (u *upstream) forget(match func(*pool) bool) {
	var drop []*pool
	u.mu.Lock()
	for k, p := range u.pools {
		if match(p) {
			drop = append(drop, p)
			delete(u.pools, k)
		}
	}
	u.retired = append(u.retired, drop...)
	u.mu.Unlock()
	for _, p := range drop {
		p.mu.Lock()
		p.retired, p.used = true, time.Now()
		p.mu.Unlock()
		p.closeIdle(time.Time{})
	}
}

// closeIdle closes what has been idle since before t (all: zero) and says how many
// are left.
func (p *pool) closeIdle(before time.Time) int {
	p.mu.Lock()
	n := 0
	for n < len(p.idle) && (before.IsZero() || p.idle[n].since.Before(before)) {
		n++
	}
	old := append([]*upConn(nil), p.idle[:n]...)
	p.idle = append(p.idle[:0], p.idle[n:]...)
	left, h2 := len(p.idle), p.h2
	p.mu.Unlock()
	p.up.addIdle(-n)
	for _, c := range old {
		_ = c.nc.Close()
	}
	if before.IsZero() && h2 != nil {
		h2.CloseIdleConnections()
	}
	return left
}

// sweepOnce closes what has been idle since before, and forgets pools without use.
func (u *upstream) sweepOnce(before time.Time) {
	u.mu.Lock()
	all := make([]*pool, 0, len(u.pools))
	for _, p := range u.pools {
		all = append(all, p)
	}
	old := u.retired
	u.retired = nil
	u.mu.Unlock()
	u.sweepRetired(old, before)
	for _, p := range all {
		if p.closeIdle(before) > 0 {
			continue
		}
		p.mu.Lock()
		unused := p.used.Before(before) && p.h2 == nil
		p.mu.Unlock()
		if unused {
			u.mu.Lock()
			delete(u.pools, p.key)
			u.mu.Unlock()
		}
	}
}

// sweepRetired closes h2 connections that were in use when their pool was forgotten and
// are not any more. Of those still in use after idleLifetime the transport's own idle
// timeout takes care.
func (u *upstream) sweepRetired(pools []*pool, before time.Time) {
	var keep []*pool
	for _, p := range pools {
		p.closeIdle(time.Time{})
		p.mu.Lock()
		if p.used.After(before) {
			keep = append(keep, p)
		}
		p.mu.Unlock()
	}
	u.mu.Lock()
	u.retired = append(u.retired, keep...)
	u.mu.Unlock()
}

func (u *upstream) close() {
	u.mu.Lock()
	if u.closed {
		u.mu.Unlock()
		return
	}
	u.closed = true
	u.mu.Unlock()
	u.forget(func(*pool) bool { return true })
}

func (p *plan) sources() []string {
	var s []string
	if p.cred != nil {
		s = append(s, p.key.team+"/"+p.cred.Source)
	}
	if p.cert != nil {
		s = append(s, p.key.team+"/"+p.cert.Source)
	}
	return s
}
