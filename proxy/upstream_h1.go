package proxy

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"time"

	"github.com/egressd/egressd/internal/h1"
)

// upConn is one HTTP/1.1 connection to an origin.
type upConn struct {
	nc     net.Conn
	h1     *h1.ClientConn
	pool   *pool
	since  time.Time // when it became idle
	reused bool
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
		switch {
		case err == nil && f.aborted(): // our own close made the origin answer
			_ = resp.Body.Close()
			return nil, errClientGone
		case err == nil:
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
		c.since = now
		p.used.Store(now.UnixNano())
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
