package proxy

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"

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
	route         string // route.key
}

// Bounds of the pools. An idle connection is one descriptor at both ends.
const (
	maxIdlePerPool = 256
	maxIdle        = 4096
	maxPools       = 16384 // names that a sandbox makes up cost memory too
	idleLifetime   = 90 * time.Second
)

// upstream holds the connections to origins. Safe for concurrent use.
type upstream struct {
	guard   Guard
	names   *names
	trust   trust
	limits  Limits
	metrics *metrics
	h1lim   h1.Limits

	mu      sync.Mutex
	pools   *lru.Cache[poolKey, *pool]
	retired []*pool          // forgotten less than idleLifetime ago
	lastUse map[string]int64 // "team/name" of a source, of pools that are gone
	idle    int
	closed  atomic.Bool

	perSandbox *quota // connections that are open, in use or idle
	dialled    *dialled
}

// pool is what is open for one key.
type pool struct {
	up      *upstream
	key     poolKey
	route   route
	sources []string // "team/name" of the material, for closeIdleOf
	tls     *clientTLS
	alpn    atomic.Uint32 // what the origin spoke: alpnUnknown, alpnH1, alpnH2

	used atomic.Int64 // when a request or an answer was last here, Unix ns

	mu      sync.Mutex
	idle    []*upConn // oldest first
	retired bool      // forgotten: what was in use when that happened is not kept

	h2once sync.Once
	h2     *http.Transport
}

const (
	alpnUnknown uint32 = iota
	alpnH1
	alpnH2
)

var (
	errUpstreamTLS      = errors.New("upstream TLS")
	errUpstreamResponse = errors.New("upstream response")
	errClientGone       = errors.New("the client went away")
	errNotH2            = errors.New("the origin does not speak h2")
	errUpstreamLimit    = errors.New("the sandbox has too many upstream connections")
	errClosed           = errors.New("shutting down")
	errNoAddress        = errors.New("the name has no address")
)

func newUpstream(g Guard, n *names, with trust, l Limits, m *metrics) *upstream {
	u := &upstream{guard: g, names: n, trust: with, limits: l, metrics: m, h1lim: h1.DefaultLimits(), perSandbox: newQuota(l.ConnectionsPerSandbox),
		lastUse: map[string]int64{}, dialled: newDialled()}
	u.pools, _ = lru.NewWithEvict(maxPools, func(_ poolKey, p *pool) { p.retire() }) // fails on a size below 1 only
	u.h1lim.Headers = 256                                                            // origins send many Set-Cookie
	return u
}

// roundTrip sends r as p says and returns the head of the final answer. r.Header
// and r.Body are the ones to send. Interim answers go to w as they come.
func (u *upstream) roundTrip(f *flight, w http.ResponseWriter, r *http.Request, p *plan) (*http.Response, error) {
	pl, err := u.pool(p)
	if err != nil {
		return nil, err
	}
	if r.ProtoMajor == 2 && !p.websocket && pl.alpn.Load() != alpnH1 || pl.alpn.Load() == alpnH2 && !p.websocket {
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
	if u.closed.Load() {
		return nil, errClosed
	}
	now := time.Now().UnixNano()
	pl, ok := u.pools.Get(p.key)
	if !ok {
		pl = &pool{up: u, key: p.key, route: p.route, sources: p.sources()}
		if p.key.tls {
			pl.tls = newClientTLS(u.trust, p)
		}
		if other, ok, _ := u.pools.PeekOrAdd(p.key, pl); ok {
			pl = other
		}
	}
	pl.used.Store(now)
	return pl, nil
}

func (u *upstream) addIdle(n int) bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	if n > 0 && (u.idle >= maxIdle || u.closed.Load()) {
		return false
	}
	u.idle += n
	return true
}

// dial opens a connection to an address that netguard has checked and, for TLS,
// verifies the certificate for the destination's name before a byte is sent.
func (p *pool) dial(ctx context.Context, alpn ...string) (net.Conn, string, error) {
	u := p.up
	var addrs []netip.Addr
	if p.key.addr.IsValid() {
		addrs = []netip.Addr{p.key.addr}
	}
	nc, err := u.reach(ctx, p.key.sandbox, p.key.dest, addrs, p.route)
	if err != nil {
		return nil, "", err
	}
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

// closeIdleOf ends idle connections that carry material of a source; of any source if
// both names are empty.
func (u *upstream) closeIdleOf(team, name string) {
	want, every := team+"/"+name, team == "" && name == ""
	u.forget(func(p *pool) bool {
		if every {
			return len(p.sources) > 0
		}
		return slices.Contains(p.sources, want)
	})
}

// forget drops the pools that match. What is in use finishes and is closed then.
func (u *upstream) forget(match func(*pool) bool) {
	for _, p := range u.pools.Values() {
		if match(p) {
			u.pools.Remove(p.key) // retires it
		}
	}
}

// noteUse keeps when the sources of a pool that goes were last used.
func (u *upstream) noteUse(p *pool) {
	u.mu.Lock()
	defer u.mu.Unlock()
	for _, s := range p.sources {
		u.lastUse[s] = max(u.lastUse[s], p.used.Load())
	}
}

// lastUsed is when a request last left, or an answer last ended, with material of a source.
func (u *upstream) lastUsed(team, name string) time.Time {
	want := team + "/" + name
	u.mu.Lock()
	at := u.lastUse[want]
	u.mu.Unlock()
	for _, p := range u.pools.Values() {
		if slices.Contains(p.sources, want) {
			at = max(at, p.used.Load())
		}
	}
	if at == 0 {
		return time.Time{}
	}
	return time.Unix(0, at)
}

// retire closes what is idle in a pool that nothing leads to any more; what is in use is
// closed when it is given back.
func (p *pool) retire() {
	p.up.noteUse(p)
	p.used.Store(time.Now().UnixNano())
	p.mu.Lock()
	p.retired = true
	h2 := p.h2 != nil
	p.mu.Unlock()
	p.closeIdle(time.Time{})
	if h2 {
		p.up.mu.Lock()
		p.up.retired = append(p.up.retired, p) // its transport cannot be told to keep nothing
		p.up.mu.Unlock()
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
	old := u.retired
	u.retired = nil
	u.mu.Unlock()
	u.sweepRetired(old, before)
	for _, p := range u.pools.Values() {
		if p.closeIdle(before) == 0 && p.used.Load() < before.UnixNano() {
			u.pools.Remove(p.key)
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
		if p.used.Load() > before.UnixNano() {
			keep = append(keep, p)
		}
	}
	u.mu.Lock()
	u.retired = append(u.retired, keep...)
	u.mu.Unlock()
}

func (u *upstream) close() {
	if !u.closed.Swap(true) {
		u.pools.Purge()
	}
}

func (p *plan) sources() []string {
	var s []string
	if p.cred != nil {
		s = append(s, p.key.team+"/"+p.cred.Source)
	}
	if p.cert != nil {
		s = append(s, p.key.team+"/"+p.cert.Source)
	}
	if p.route.login != nil {
		s = append(s, p.key.team+"/"+p.route.login.Source)
	}
	return s
}
