package proxy_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/coder/websocket"

	"github.com/egressd/egressd/internal/audit"
	"github.com/egressd/egressd/internal/testbed"
	"github.com/egressd/egressd/proxy"
)

// ready is a stack with the base policy and its source.
func ready(t testing.TB, o options) *stack {
	t.Helper()
	s := newStack(t, "", o)
	s.put("acme", "gh-source", "static_headers", headerSpec(canary))
	s.use(basePolicy)
	s.bed.Good.SetBearer(canary)
	return s
}

func bothVersions(t *testing.T, s *stack, f func(t *testing.T, c *http.Client)) {
	t.Helper()
	for _, h2 := range []bool{false, true} {
		t.Run(fmt.Sprintf("h2=%v", h2), func(t *testing.T) { f(t, s.client("one", tokenOne, h2)) })
	}
}

func TestStreamsLeaveAtOnce(t *testing.T) {
	s := ready(t, options{})
	bothVersions(t, s, func(t *testing.T, c *http.Client) {
		for _, path := range []string{"/sse?n=3&ms=400", "/ndjson?n=3&ms=400"} {
			resp, err := c.Get(s.bed.Good.URL(path))
			if err != nil {
				t.Fatal(err)
			}
			br := bufio.NewReader(resp.Body)
			start := time.Now()
			if _, err := br.ReadString('\n'); err != nil {
				t.Fatal(err)
			}
			// The origin holds the second event back for 400 ms: the first must not have waited for it.
			if d := time.Since(start); d > 300*time.Millisecond {
				t.Errorf("%s: first event after %v", path, d)
			}
			_ = resp.Body.Close()
		}
	})
}

func TestBodilessTrailersAndHints(t *testing.T) {
	s := ready(t, options{})
	bothVersions(t, s, func(t *testing.T, c *http.Client) {
		for _, m := range []struct {
			method, path string
			status       int
			body         string
		}{
			{http.MethodHead, "/head", 200, ""}, {http.MethodGet, "/head", 200, "twelve bytes"},
			{http.MethodGet, "/status/204", 204, ""}, {http.MethodGet, "/status/304", 304, ""}, {http.MethodGet, "/status/418", 418, "status 418\n"},
			{http.MethodGet, "/hints?n=3", 200, "hinted\n"},
		} {
			if a := do(t, c, m.method, s.bed.Good.URL(m.path), nil); a.status != m.status || a.body != m.body {
				t.Errorf("%s %s: %+v", m.method, m.path, a)
			}
		}
		resp, err := c.Get(s.bed.Good.URL("/trailers"))
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(resp.Body)
		_ = resp.Body.Close()
		if err != nil || string(b) != "body\n" || resp.Trailer.Get("X-Checksum") != "abc123" {
			t.Errorf("trailers: %q %v %v", b, err, resp.Trailer)
		}
	})
}

func TestLargeBodiesInBoundedMemory(t *testing.T) {
	s := ready(t, options{})
	const size = 128 << 20
	bothVersions(t, s, func(t *testing.T, c *http.Client) {
		runtime.GC() // what other tests left behind is not counted
		stop := make(chan struct{})
		var peak uint64
		var wg sync.WaitGroup
		wg.Go(func() {
			for {
				var m runtime.MemStats
				runtime.ReadMemStats(&m)
				peak = max(peak, m.HeapAlloc)
				select {
				case <-stop:
					return
				case <-time.After(20 * time.Millisecond):
				}
			}
		})
		resp, err := c.Get(s.bed.Good.URL(fmt.Sprintf("/download?n=%d", size)))
		if err != nil {
			t.Fatal(err)
		}
		n, err := io.Copy(io.Discard, resp.Body)
		_ = resp.Body.Close()
		if err != nil || n != size {
			t.Fatalf("download: %d, %v", n, err)
		}
		for _, known := range []bool{true, false} {
			body := io.LimitReader(testbed.Pattern(), size)
			req, _ := http.NewRequest(http.MethodPut, s.bed.Good.URL("/upload"), body)
			if known {
				req.ContentLength = size
			}
			resp, err = c.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			b, _ := io.ReadAll(resp.Body)
			_ = resp.Body.Close()
			if strings.TrimSpace(string(b)) != fmt.Sprint(size) {
				t.Fatalf("upload known=%v: %q", known, b)
			}
		}
		close(stop)
		wg.Wait()
		if peak > 64<<20 {
			t.Errorf("heap reached %d MiB while %d MiB passed", peak>>20, size>>20)
		}
	})
}

func TestExpectContinueAndEarlyAnswer(t *testing.T) {
	s := ready(t, options{})
	c := s.one()
	tr, _ := c.Transport.(*http.Transport)
	tr.ExpectContinueTimeout = 10 * time.Second
	start := time.Now()
	req, _ := http.NewRequest(http.MethodPost, s.bed.Good.URL("/upload"), strings.NewReader("hello"))
	req.Header.Set("Expect", "100-continue")
	resp, err := c.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	b, _ := io.ReadAll(resp.Body)
	_ = resp.Body.Close()
	if string(b) != "5\n" || time.Since(start) > 5*time.Second {
		t.Errorf("C15: %q after %v", b, time.Since(start))
	}
	req, _ = http.NewRequest(http.MethodPost, s.bed.Good.URL("/early"), io.LimitReader(testbed.Pattern(), 8<<20))
	resp, err = c.Do(req)
	if err == nil {
		_ = resp.Body.Close()
		if resp.StatusCode != http.StatusRequestEntityTooLarge {
			t.Errorf("early: %d", resp.StatusCode)
		}
	} else if !strings.Contains(err.Error(), "reset") && !strings.Contains(err.Error(), "broken pipe") {
		t.Errorf("early: %v", err) // net/http's client may see its own write fail first
	}
	if a := get(t, c, s.bed.Good.URL("/bearer")); a.status != http.StatusOK {
		t.Errorf("the next request: %+v", a)
	}
}

func TestTruncatedAnswersAreNoCleanEnd(t *testing.T) {
	s := ready(t, options{})
	bothVersions(t, s, func(t *testing.T, c *http.Client) {
		a := get(t, c, s.bed.Good.URL("/truncate?n=100000"))
		if a.err == nil {
			t.Errorf("H11: a truncated answer ended cleanly: %d bytes", len(a.body))
		}
		a = get(t, c, s.bed.Good.URL("/reset"))
		if a.err != nil || a.status != http.StatusBadGateway || a.header.Get("X-Egressd-Error") != "upstream_unreachable" && a.header.Get("X-Egressd-Error") != "upstream_failed" {
			t.Errorf("reset: %+v", a)
		}
	})
}

func TestWebSocket(t *testing.T) {
	s := ready(t, options{})
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	c, resp, err := websocket.Dial(ctx, strings.Replace(s.bed.Good.URL("/ws"), "https://", "wss://", 1), &websocket.DialOptions{HTTPClient: s.one()})
	if err != nil {
		t.Fatalf("%v %v", err, resp)
	}
	defer func() { _ = c.CloseNow() }()
	c.SetReadLimit(1 << 20)
	for _, n := range []int{0, 10, 1 << 16} {
		msg := bytes.Repeat([]byte("z"), n)
		if err := c.Write(ctx, websocket.MessageBinary, msg); err != nil {
			t.Fatal(err)
		}
		_, got, err := c.Read(ctx)
		if err != nil || !bytes.Equal(got, msg) {
			t.Fatalf("n=%d: %d bytes, %v", n, len(got), err)
		}
	}
	if auth := s.bed.Good.Last(t).Header.Get("Authorization"); auth != "Bearer "+canary {
		t.Errorf("the handshake left with %q", auth)
	}
	// A policy that no longer allows it ends it.
	s.use(strings.Replace(basePolicy, "action: allow, domains: [good.test]", "action: deny, domains: [good.test]", 1))
	if _, _, err := c.Read(ctx); err == nil || ctx.Err() != nil {
		t.Errorf("the WebSocket outlived the policy: %v", err)
	}
}

func TestRelayAndPolicyChange(t *testing.T) {
	s := ready(t, options{})
	status, nc, _ := s.connect(s.expand("evil.test:EVILPORT"), "one", tokenOne)
	if status != http.StatusOK {
		t.Fatal(status)
	}
	tc := tls.Client(nc, &tls.Config{ServerName: "evil.test", RootCAs: s.bed.CA.Pool()})
	if err := tc.Handshake(); err != nil {
		t.Fatalf("passthrough shows the origin's own certificate: %v", err)
	}
	_, _ = io.WriteString(tc, "GET / HTTP/1.1\r\nHost: evil.test\r\n\r\n")
	br := bufio.NewReader(tc)
	resp, err := http.ReadResponse(br, nil)
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Fatal(err)
	}
	_, _ = io.Copy(io.Discard, resp.Body)
	s.use(strings.Replace(basePolicy, "{name: evil, action: allow", "{name: evil, action: deny", 1))
	_ = tc.SetReadDeadline(time.Now().Add(3 * time.Second))
	if _, err := br.ReadByte(); err == nil || errors.Is(err, context.DeadlineExceeded) || isTimeout(err) {
		t.Errorf("the relay outlived the policy: %v", err)
	}
}

func isTimeout(err error) bool {
	var ne net.Error
	return errors.As(err, &ne) && ne.Timeout()
}

const serverFirst = `
apiVersion: egressd/v1
sandboxes:
  - id: one
    identify: {proxyTokens: ["TOKENONE"]}
    network:
      egress:
        trafficRules:
          - {name: db, action: allow, domains: [db.test], ports: [{port: DBPORT}]}
`

func TestServerFirstProtocolUnderAnL4Rule(t *testing.T) {
	s := newStack(t, "", options{hosts: map[string]string{"db.test": "127.0.0.9"}})
	ln, err := net.Listen("tcp", "127.0.0.9:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = ln.Close() }()
	go func() {
		c, err := ln.Accept()
		if err != nil {
			return
		}
		defer func() { _ = c.Close() }()
		_, _ = io.WriteString(c, "220 hello\r\n")
		_, _ = io.Copy(c, c)
	}()
	_, port, _ := net.SplitHostPort(ln.Addr().String())
	s.use(strings.ReplaceAll(serverFirst, "DBPORT", port))
	status, nc, br := s.connect("db.test:"+port, "one", tokenOne)
	if status != http.StatusOK {
		t.Fatal(status)
	}
	if line, err := br.ReadString('\n'); err != nil || line != "220 hello\r\n" {
		t.Fatalf("%q %v", line, err)
	}
	_, _ = io.WriteString(nc, "ping\n")
	if line, err := br.ReadString('\n'); err != nil || line != "ping\n" {
		t.Fatalf("%q %v", line, err)
	}
	if tcp, ok := nc.(*net.TCPConn); ok { // half-close passes through
		_ = tcp.CloseWrite()
	}
	if rest, err := io.ReadAll(br); err != nil || len(rest) != 0 {
		t.Fatalf("%q %v", rest, err)
	}
	s.records.wait(t, func(a audit.Record) bool { return a.Destination == "db.test:"+port && a.BytesIn == 5 })
}

func TestClientThatGoesAwayEndsTheWait(t *testing.T) {
	s := ready(t, options{})
	for _, h2 := range []bool{false, true} {
		ctx, cancel := context.WithTimeout(context.Background(), 1500*time.Millisecond)
		req, _ := http.NewRequestWithContext(ctx, http.MethodGet, s.bed.Good.URL("/wait?ms=15000"), nil)
		if _, err := s.client("one", tokenOne, h2).Do(req); err == nil {
			t.Error("no timeout")
		}
		cancel()
		s.records.wait(t, func(a audit.Record) bool { return a.Path == "/wait" && a.Outcome == "aborted" })
		s.records.mu.Lock()
		s.records.all = nil
		s.records.mu.Unlock()
	}
}

func TestDrain(t *testing.T) {
	s := ready(t, options{})
	c := s.one()
	done := make(chan answer, 1)
	go func() { done <- get(t, c, s.bed.Good.URL("/wait?ms=700")) }()
	s.bed.Good.WaitRequests(t, 1)
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	start := time.Now()
	if err := s.srv.Shutdown(ctx); err != nil {
		t.Errorf("shutdown: %v", err)
	}
	if time.Since(start) > 5*time.Second {
		t.Errorf("the drain waited %v", time.Since(start))
	}
	if a := <-done; a.status != http.StatusOK || a.body != "waited\n" {
		t.Errorf("H13: the request in flight got %+v", a)
	}
	if _, err := net.DialTimeout("tcp", s.addr, time.Second); err == nil {
		t.Error("still accepting")
	}
}

func TestOriginThatNeverAnswersIsATimeout(t *testing.T) {
	s := ready(t, options{limits: proxy.Limits{ResponseHeaderTimeout: 500 * time.Millisecond}})
	bothVersions(t, s, func(t *testing.T, c *http.Client) {
		a := get(t, c, s.bed.Good.URL("/wait?ms=10000"))
		if a.status != http.StatusGatewayTimeout || a.header.Get("X-Egressd-Error") != "upstream_timeout" {
			t.Errorf("%+v", a)
		}
	})
}
