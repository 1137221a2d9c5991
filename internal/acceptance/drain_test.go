package acceptance

import (
	"bytes"
	"io"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/egressd/egressd/internal/testbed"
)

const drainPolicy = `
apiVersion: egressd/v1
sandboxes:
  - id: one
    identify: {proxyTokens: ["TOKEN"]}
    network:
      egress:
        trafficRules:
          - {name: good, action: allow, domains: [good.test]}
        credentialRules:
          - {name: good, credentialRef: tok, protocol: https, domains: [good.test]}
      credentialBindings:
        - ref: tok
          sourceRef: tok
          projection:
            type: http_headers
            httpHeaders: {headers: [{name: Authorization, valueTemplate: "Bearer {{ .token }}"}]}
`

// gate is an origin whose answers wait until it is opened.
type gate struct {
	waiting atomic.Int64
	open    chan struct{}
	origin  *testbed.Origin
	d       *daemon
}

func newGate(t *testing.T, config string) *gate {
	g := &gate{open: make(chan struct{})}
	ca := testbed.NewCA(t)
	g.origin = testbed.NewOrigin(t, ca, testbed.OriginOptions{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/now" {
			return
		}
		g.waiting.Add(1)
		defer g.waiting.Add(-1)
		select {
		case <-g.open:
			_, _ = io.WriteString(w, "drained "+r.Header.Get("Authorization"))
		case <-r.Context().Done():
		}
	})})
	g.d = serve(t, settings{ca: ca, hosts: map[string]string{"good.test": "127.0.0.2"}, policy: drainPolicy, config: config})
	g.d.add("tok", "static_headers", tokenSpec("drain-token-0123456789"))
	return g
}

// H13: SIGTERM with 1,000 requests in flight, 300 of them on connections of their own and
// 700 on h2 streams. None fails, though new connections are refused meanwhile and readiness
// is taken back; the daemon ends with 0.
func TestAttack_H13_drain_with_1000_in_flight(t *testing.T) {
	g := newGate(t, "")
	const h1, streams, conns = 300, 100, 7
	var wg sync.WaitGroup
	var good atomic.Int64
	var mu sync.Mutex
	var faults []string
	ask := func(c *sandbox) {
		a := c.get(g.origin.URL("/"))
		if a.status == http.StatusOK && string(a.body) == "drained Bearer drain-token-0123456789" {
			good.Add(1)
			return
		}
		mu.Lock()
		defer mu.Unlock()
		faults = append(faults, a.String())
	}
	for range h1 {
		c := g.d.sandbox(false)
		wg.Go(func() { ask(c) })
	}
	for range conns {
		c := g.d.sandbox(true)
		if a := c.get(g.origin.URL("/now")); a.status != http.StatusOK { // so that all share the connection
			t.Fatalf("before the drain: %s", a)
		}
		for range streams {
			wg.Go(func() { ask(c) })
		}
	}
	if !waitFor(func() bool { return g.waiting.Load() == h1+streams*conns }) {
		t.Fatalf("%d requests are in flight; %q", g.waiting.Load(), faults)
	}

	g.d.signal(syscall.SIGTERM)
	begin := time.Now()
	if !waitFor(func() bool {
		resp, err := http.Get("http://" + g.d.ops + "/readyz")
		if err != nil {
			return false
		}
		defer func() { _ = resp.Body.Close() }()
		return resp.StatusCode == http.StatusServiceUnavailable
	}) {
		t.Error("readiness was not taken back")
	}
	if !waitFor(func() bool {
		c, err := net.Dial("tcp", g.d.proxy)
		if err != nil {
			return true
		}
		defer func() { _ = c.Close() }()
		_ = c.SetDeadline(time.Now().Add(time.Second))
		_, err = c.Read(make([]byte, 1))
		return err == io.EOF
	}) {
		t.Error("new connections are still taken")
	}
	if n := g.waiting.Load(); n != h1+streams*conns {
		t.Errorf("%d requests are in flight after SIGTERM", n)
	}
	close(g.open)
	wg.Wait()
	if good.Load() != h1+streams*conns {
		t.Errorf("%d of %d requests were answered; %.3000q", good.Load(), h1+streams*conns, faults)
	}
	if !g.d.waitGone(30 * time.Second) {
		t.Fatalf("the daemon did not end: %s", g.d.tail())
	}
	if code := g.d.exitCode(); code != 0 {
		t.Errorf("exit code %d: %s", code, g.d.tail())
	}
	t.Logf("drained in %v", time.Since(begin))
	g.d.sane()
}

// H13: what does not end is cut when the drain's time is over, and the daemon ends with 0.
func TestAttack_H13_drain_ends_in_time(t *testing.T) {
	g := newGate(t, "limits: {drainTimeout: 1s}\n")
	done := g.hang(t)
	begin := time.Now()
	g.d.signal(syscall.SIGTERM)
	if !g.d.waitGone(10 * time.Second) {
		t.Fatalf("the daemon did not end: %s", g.d.tail())
	}
	if took := time.Since(begin); took < time.Second || took > 5*time.Second || g.d.exitCode() != 0 {
		t.Errorf("ended after %v with %d", took, g.d.exitCode())
	}
	if a := <-done; a.err == nil && a.status == http.StatusOK {
		t.Errorf("a request that was cut looks whole: %s", a)
	}
	g.d.sane()
}

// H13: a second signal ends it at once.
func TestAttack_H13_second_signal_exits_at_once(t *testing.T) {
	for _, s := range []syscall.Signal{syscall.SIGTERM, syscall.SIGINT} {
		t.Run(s.String(), func(t *testing.T) {
			g := newGate(t, "")
			done := g.hang(t)
			g.d.signal(s)
			if !waitFor(func() bool { return bytes.Contains(g.d.errout.since(0), []byte("draining")) }) {
				t.Fatalf("no drain: %s", g.d.tail())
			}
			if g.d.waitGone(200 * time.Millisecond) {
				t.Fatal("the first signal did not wait for the request")
			}
			begin := time.Now()
			g.d.signal(s)
			if !g.d.waitGone(5 * time.Second) {
				t.Fatal("the second signal did not end it")
			}
			if took := time.Since(begin); took > time.Second*slack || g.d.exitCode() != 128+int(s) {
				t.Errorf("ended after %v with %d, want at once with %d", took, g.d.exitCode(), 128+int(s))
			}
			<-done
		})
	}
}

// hang starts a request that the origin does not answer.
func (g *gate) hang(t *testing.T) <-chan reply {
	t.Helper()
	c, done := g.d.sandbox(false), make(chan reply, 1)
	go func() { done <- c.get(g.origin.URL("/hang")) }()
	if !waitFor(func() bool { return g.waiting.Load() == 1 }) {
		t.Fatal("the request did not reach the origin")
	}
	return done
}
