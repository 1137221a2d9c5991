package proxy

import (
	"context"
	"net/http"
	"sync/atomic"

	"github.com/egressd/egressd/internal/h1"
)

// flight is one exchange on an HTTP/1.1 connection to an origin. It is part of its
// record and used again with that.
type flight struct {
	opts     h1.RoundTripOptions
	answer   h1.Answer
	conn     *upConn
	w        http.ResponseWriter
	r        *http.Request
	interims int
	guard    *guardedUse
	scrub    *scrubber // of the answer, hints included
}

// ready makes the callbacks, once for all exchanges that f will be.
func (f *flight) ready() {
	f.opts = h1.RoundTripOptions{Slow: f.slow, Got1xx: f.got1xx, Done: f.done, Room: &f.answer}
}

// clear forgets the exchange and keeps the room.
func (f *flight) clear() {
	f.answer.Clear()
	f.opts = h1.RoundTripOptions{Slow: f.opts.Slow, Got1xx: f.opts.Got1xx, Done: f.opts.Done, Room: &f.answer}
	f.conn, f.w, f.r, f.interims, f.guard, f.scrub = nil, nil, nil, 0, nil, nil
}

// on prepares f for an attempt on c.
func (f *flight) on(c *upConn, w http.ResponseWriter, r *http.Request, p *plan) *h1.RoundTripOptions {
	l := &c.pool.up.limits
	f.conn, f.w, f.r, f.interims, f.guard, f.scrub = c, w, r, 0, nil, p.scrub
	o := &f.opts
	o.Target, o.Host, o.Upgrade, o.Trailers = p.target, p.authority, p.websocket, p.trailers
	o.HeaderTimeout, o.StallTimeout, o.IdleTimeout = l.ResponseHeaderTimeout, l.StallTimeout, l.IdleTimeout
	o.SlowAfter = slowAfter
	if r.ProtoMajor == 2 { // it can be cut alone, at any time
		f.slow()
	}
	return o
}

// guardedUse is a use of a connection that ends if the client goes away. It is a thing
// of its own because who watches the client may speak up when the use is over and the
// connection another exchange's.
type guardedUse struct {
	conn  *upConn
	state atomic.Uint32
	stop  func() bool
}

const (
	useGoesOn uint32 = iota
	useOver
	useAborted // the client went away
)

func (g *guardedUse) abort() {
	if g.state.CompareAndSwap(useGoesOn, useAborted) {
		_ = g.conn.nc.Close()
	}
}

// slow begins to watch whether the client still waits.
func (f *flight) slow() {
	if f.guard != nil {
		return
	}
	g := &guardedUse{conn: f.conn}
	f.guard = g
	if dw, ok := f.w.(h1.DisconnectWatcher); ok {
		dw.WatchDisconnect(g.abort)
		return
	}
	g.stop = context.AfterFunc(f.r.Context(), g.abort)
}

// aborted says whether the connection was closed because the client went away.
func (f *flight) aborted() bool { return f.guard != nil && f.guard.state.Load() == useAborted }

func (f *flight) got1xx(status int, h http.Header) error {
	if f.interims++; f.interims <= maxInterims {
		f.scrub.fields(h)
		interim(f.w, status, h)
	}
	return nil
}

func (f *flight) done(reusable bool) {
	if g := f.guard; g != nil {
		if g.stop != nil {
			g.stop()
		}
		reusable = g.state.CompareAndSwap(useGoesOn, useOver) && reusable
	}
	f.conn.done(reusable)
}
