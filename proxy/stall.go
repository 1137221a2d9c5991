package proxy

import (
	"net/http"
	"sync"
	"time"
)

// stallGuard resets an h2 stream whose client opens no window for limit: net/http
// bounds writes to the connection, but not the wait for flow control, so that a stream
// would keep its goroutine, its buffer and its upstream connection for good. The h1
// server has deadlines of its own: nil is a guard that does nothing.
type stallGuard struct {
	rc    *http.ResponseController
	limit time.Duration

	mu    sync.Mutex
	timer *time.Timer
	over  bool // the handler has returned or is about to: rc must not be used
}

// last comes before the piece that completes the answer. Its deadline outlives the
// handler, because what is buffered is sent when that has returned.
func (g *stallGuard) last() {
	if g != nil {
		_ = g.rc.SetWriteDeadline(time.Now().Add(g.limit))
	}
}

// begin comes before any other piece, end behind it: the time between two pieces is
// the origin's own.
func (g *stallGuard) begin() {
	switch {
	case g == nil:
	case g.timer == nil:
		g.timer = time.AfterFunc(g.limit, g.expire)
	default:
		g.timer.Reset(g.limit)
	}
}

func (g *stallGuard) end() {
	if g != nil && g.timer != nil {
		g.timer.Stop()
	}
}

func (g *stallGuard) expire() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.over {
		_ = g.rc.SetWriteDeadline(time.Unix(1, 0))
	}
}

func (g *stallGuard) close() {
	if g == nil || g.timer == nil {
		return
	}
	g.timer.Stop()
	g.mu.Lock()
	g.over = true
	g.mu.Unlock()
}
