package proxy

import (
	"context"
	"io"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/egressd/egressd/internal/h1"
)

// clientWatch ends an exchange over h2 upstream when its HTTP/1.1 client goes away while
// the handler waits: net/http does that for h2 clients, flight for h1 on both sides.
type clientWatch struct {
	client h1.DisconnectWatcher
	cancel context.CancelFunc
	gone   atomic.Bool

	mu      sync.Mutex
	waiting bool // the handler is in a call that waits for the origin, and nowhere else
	timer   *time.Timer
}

// watchClient gives the context of the exchange; nil for a client that is watched already.
func watchClient(ctx context.Context, w http.ResponseWriter) (context.Context, *clientWatch) {
	dw, ok := w.(h1.DisconnectWatcher)
	if !ok {
		return ctx, nil
	}
	c := &clientWatch{client: dw}
	ctx, c.cancel = context.WithCancel(ctx)
	return ctx, c
}

// wait comes before a call that waits for the origin, waited behind it.
func (c *clientWatch) wait() {
	if c == nil {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.waiting = true
	if c.timer == nil {
		c.timer = time.AfterFunc(slowAfter, c.look)
	} else {
		c.timer.Reset(slowAfter)
	}
}

func (c *clientWatch) waited() {
	if c == nil {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.waiting = false
	c.timer.Stop()
}

// look begins to watch, again and again until the request has been read.
func (c *clientWatch) look() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.waiting {
		c.client.WatchDisconnect(c.abort)
		c.timer.Reset(slowAfter)
	}
}

func (c *clientWatch) abort() {
	c.gone.Store(true)
	c.cancel()
}

func (c *clientWatch) end() {
	if c != nil {
		c.cancel()
	}
}

// body watches while b is read.
func (c *clientWatch) body(b io.ReadCloser) io.ReadCloser {
	if c == nil {
		return b
	}
	return &watchedBody{b, c}
}

type watchedBody struct {
	io.ReadCloser
	watch *clientWatch
}

func (b *watchedBody) Read(p []byte) (int, error) {
	b.watch.wait()
	defer b.watch.waited()
	return b.ReadCloser.Read(p)
}

func (b *watchedBody) Close() error {
	defer b.watch.end()
	return b.ReadCloser.Close()
}
