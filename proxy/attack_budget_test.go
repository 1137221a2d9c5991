package proxy_test

import (
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/coder/websocket"

	"github.com/egressd/egressd/proxy"
)

// A sandbox begins many bodies that egressd has to read whole, and ends none.
func TestAttack_F07_H18_bodies_that_are_held_whole(t *testing.T) {
	g := attacked(t, options{limits: proxy.Limits{SniffTimeout: time.Second, HandshakeTimeout: 4 * time.Second, StallTimeout: 3 * time.Second, RewriteBodyBytes: 4096}})
	for name, policyYAML := range map[string]string{
		"placeholders": placeholderPolicy,
		"mcp":          strings.Replace(basePolicy, "credentialRules:", "protocolRules:\n          - {name: tools, protocol: mcp, domains: [good.test], mcp: {tools: {allowed: [look]}}}\n        credentialRules:", 1),
	} {
		t.Run("F07 "+name, func(t *testing.T) {
			g.use(policyYAML)
			c := g.client("one", tokenOne, true)
			const many = 90
			var refused, other atomic.Int32
			end := make(chan struct{})
			var wg sync.WaitGroup
			for range many {
				wg.Go(func() {
					pr, pw := io.Pipe()
					defer func() { _ = pw.Close() }()
					go func() {
						_, _ = pw.Write([]byte(`{"jsonrpc":"2.0",`))
						<-end
						_ = pw.CloseWithError(io.ErrUnexpectedEOF)
					}()
					req, err := http.NewRequest(http.MethodPost, g.bed.Good.URL("/echo"), pr)
					if err != nil {
						t.Error(err)
						return
					}
					req.Header.Set("Content-Type", "application/json")
					resp, err := c.Do(req)
					if err != nil {
						other.Add(1)
						return
					}
					_ = resp.Body.Close()
					if resp.StatusCode == http.StatusTooManyRequests && resp.Header.Get("X-Egressd-Error") == "connection_limit" {
						refused.Add(1)
					}
				})
			}
			for deadline := time.Now().Add(2 * time.Second); refused.Load()+other.Load() < many-64 && time.Now().Before(deadline); {
				time.Sleep(10 * time.Millisecond)
			}
			if n, o := refused.Load(), other.Load(); n == 0 || n+o < many-64 {
				t.Errorf("%d of %d were refused, %d failed", n, many, o)
			}
			close(end)
			wg.Wait()
			g.use(basePolicy)
			g.safe(t)
			g.use(policyYAML)
			// What was held has been given back.
			req, _ := http.NewRequest(http.MethodPost, g.bed.Good.URL("/echo"), strings.NewReader(`{"jsonrpc":"2.0","id":1,"method":"ping"}`))
			req.Header.Set("Content-Type", "application/json")
			for range 70 {
				req.Body, _ = req.GetBody()
				if resp, err := c.Do(req); err != nil || resp.StatusCode == http.StatusTooManyRequests {
					t.Fatalf("%v, %+v", err, resp)
				} else {
					_ = resp.Body.Close()
				}
			}
		})
	}
}

// The same in WebSocket messages.
func TestAttack_F07_C31_messages_that_are_held_whole(t *testing.T) {
	g := withFrames(t, framesPolicy, options{limits: proxy.Limits{SniffTimeout: time.Second, HandshakeTimeout: 4 * time.Second, StallTimeout: 5 * time.Second, RewriteBodyBytes: 64 << 10}})
	o := newWSOrigin(t, g, "")
	const many = 80
	refused := 0
	var open []*websocket.Conn
	for range many {
		c := o.dial(t, g)
		open = append(open, c)
		w, err := c.Writer(t.Context(), websocket.MessageText)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = w.Write([]byte(strings.Repeat("x", 48<<10))) // and no end
	}
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
	defer cancel()
	var wg sync.WaitGroup
	var mu sync.Mutex
	for _, c := range open {
		wg.Go(func() {
			_, _, err := c.Read(ctx)
			mu.Lock()
			defer mu.Unlock()
			if websocket.CloseStatus(err) == websocket.StatusTryAgainLater {
				refused++
			}
		})
	}
	wg.Wait()
	if refused < many-64 || refused == many {
		t.Errorf("F07 %d of %d WebSockets were ended", refused, many)
	}
	for _, c := range open {
		_ = c.CloseNow()
	}
	waitFor(t, func() bool { // what was held is given back
		c := o.dial(t, g)
		defer func() { _ = c.CloseNow() }()
		if err := c.Write(t.Context(), websocket.MessageText, []byte(strings.Repeat("y", 48<<10))); err != nil {
			return false
		}
		ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
		defer cancel()
		_, _, err := c.Read(ctx)
		return errors.Is(err, context.DeadlineExceeded) // nobody has ended it
	})
	g.use(basePolicy)
	g.safe(t)
}
