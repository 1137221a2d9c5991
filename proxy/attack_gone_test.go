package proxy_test

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"

	"github.com/egressd/egressd/internal/audit"
	"github.com/egressd/egressd/internal/testbed"
	"github.com/egressd/egressd/store"
)

// H10: a client of HTTP/1.1 that goes away ends its wait for an origin of h2 too, before
// the answer and in the middle of one.
func TestAttack_H10_clients_that_leave_an_h2_origin(t *testing.T) {
	g := attacked(t, options{})
	hang := make(chan struct{})
	defer close(hang)
	wait := func(r *http.Request) {
		select {
		case <-hang:
		case <-r.Context().Done():
		}
	}
	o := testbed.NewOrigin(t, g.bed.CA, testbed.OriginOptions{Mount: map[string]http.Handler{
		"/never": http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { wait(r) }),
		"/begun": http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			_, _ = w.Write([]byte("first"))
			_ = http.NewResponseController(w).Flush()
			wait(r)
		}),
	}})
	if a := get(t, g.client("one", tokenOne, true), o.URL("/")); a.err != nil { // the pool knows now what it speaks
		t.Fatal(a.err)
	}
	for _, path := range []string{"/never", "/begun"} {
		ctx, cancel := context.WithTimeout(context.Background(), 1500*time.Millisecond)
		req, _ := http.NewRequestWithContext(ctx, http.MethodGet, o.URL(path), nil)
		if resp, err := g.one().Do(req); err == nil {
			<-ctx.Done()
			_ = resp.Body.Close()
		}
		cancel()
		g.records.wait(t, func(a audit.Record) bool { return a.Path == path && a.Outcome == "aborted" })
	}
	g.safe(t)
}

// C07: what authenticates, or what a rule sets, does not get to an origin as a trailer
// that was not announced.
func TestAttack_C07_credentials_in_grpc_trailers(t *testing.T) {
	g := attacked(t, options{})
	g.use(strings.Replace(basePolicy, "headers: [", `headers: [{name: X-Tenant, valueTemplate: "acme"}, `, 1))
	o := testbed.NewOrigin(t, g.bed.CA, testbed.OriginOptions{Names: []string{"good.test"}, ALPN: []string{"http/1.1"}})
	tc := g.tls(t, o.HostPort(), "good.test", "http/1.1")
	got, _ := g.talk(tc, fmt.Sprintf("POST /status/200 HTTP/1.1\r\nHost: %s\r\nTE: trailers\r\nContent-Type: application/grpc\r\nTransfer-Encoding: chunked\r\n\r\n"+
		"1\r\nx\r\n0\r\nX-Api-Key: of-the-sandbox\r\nAuthorization: of-the-sandbox\r\nX_Tenant: of-the-sandbox\r\nX-Fine: kept\r\n\r\n", o.HostPort()), 500*time.Millisecond)
	if !strings.HasPrefix(string(got), "HTTP/1.1 200") {
		t.Fatalf("%q", got)
	}
	if raw := string(o.Captured()); strings.Contains(raw, "of-the-sandbox") || !strings.Contains(raw, "X-Fine: kept") {
		t.Errorf("C07 the origin got %q", raw[strings.Index(raw, "POST"):])
	}
	g.use(basePolicy)
	g.safe(t)
}

// G25: a WebSocket that was opened with a credential ends when that is taken away, and
// not when it is only rotated.
func TestAttack_G25_websockets_of_a_disabled_source(t *testing.T) {
	g := attacked(t, options{})
	ctx, cancel := context.WithTimeout(context.Background(), 15*time.Second)
	defer cancel()
	open := func(o *testbed.Origin) *websocket.Conn {
		t.Helper()
		c, _, err := websocket.Dial(ctx, strings.Replace(o.URL("/ws"), "https", "wss", 1), &websocket.DialOptions{HTTPClient: g.one()})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.CloseNow() })
		return c
	}
	alive := func(c *websocket.Conn) error {
		if err := c.Write(ctx, websocket.MessageText, []byte("ping")); err != nil {
			return err
		}
		_, _, err := c.Read(ctx)
		return err
	}
	with, without := open(g.bed.Good), open(g.bed.Evil)
	g.put("acme", "gh-source", "static_headers", headerSpec(canary+"-second"))
	g.use(basePolicy) // the rule it was opened by is of an older generation now
	time.Sleep(200 * time.Millisecond)
	if err := alive(with); err != nil {
		t.Errorf("G25 after a rotation: %v", err)
	}
	g.setStatus(t, "gh-source", store.Disabled)
	time.Sleep(500 * time.Millisecond)
	if err := alive(with); err == nil {
		t.Error("G25 a WebSocket lives on without its source")
	}
	if err := alive(without); err != nil {
		t.Errorf("G25 one that never had a credential: %v", err)
	}
	g.setStatus(t, "gh-source", store.Active)
	g.put("acme", "gh-source", "static_headers", headerSpec(canary))
	g.safe(t)
}
