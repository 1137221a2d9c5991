package proxy_test

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/egressd/egressd/internal/audit"
	"github.com/egressd/egressd/internal/testbed"
	"github.com/egressd/egressd/proxy"
	"github.com/egressd/egressd/store"
)

// rig is a stack under attack: every byte that the hostile clients of a test receive
// is kept for the canary scan.
type rig struct {
	*stack
	mu   sync.Mutex
	seen []byte
	bad  []*testbed.Origin // hostile origins that a test added

	quiet  []*testbed.Origin // of ways
	caught map[uint16]bool   // ports of elsewhere that are listened on
}

// quick are limits that let a test see a timeout.
func quick() proxy.Limits {
	return proxy.Limits{SniffTimeout: 800 * time.Millisecond, HandshakeTimeout: 4 * time.Second, StallTimeout: 2 * time.Second}
}

// attacked is the base policy with its source, and quick timeouts.
func attacked(t testing.TB, o options) *rig {
	t.Helper()
	if o.limits == (proxy.Limits{}) {
		o.limits = quick()
	}
	return &rig{stack: ready(t, o)}
}

func (g *rig) note(b []byte) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.seen = append(g.seen, b...)
}

// safe ends every attack: no canary with the attacker, in records, logs, metrics and
// what clients saw, and an honest sandbox is served as if nothing had been.
func (g *rig) safe(t testing.TB, clientBytes ...[]byte) {
	t.Helper()
	g.clean(t, clientBytes...)
	if a := get(t, g.one(), g.bed.Good.URL("/bearer")); a.err != nil || a.status != http.StatusOK || a.body != "authorized\n" {
		t.Errorf("the honest sandbox got %+v", a)
	}
}

// clean is the canary scan alone.
func (g *rig) clean(t testing.TB, clientBytes ...[]byte) {
	t.Helper()
	g.mu.Lock()
	seen := bytes.Clone(g.seen)
	g.mu.Unlock()
	scan := func(where string, data []byte) { testbed.NoLeak(t, where, data, canary, canary2) }
	scan("what clients saw", append(seen, bytes.Join(clientBytes, nil)...))
	scan("the attacker's capture", g.bed.Attacker())
	for _, o := range g.bad {
		scan("a hostile origin's capture", o.Captured())
	}
	scan("the audit records", fmt.Appendf(nil, "%+v", g.records.list()))
	var logs bytes.Buffer
	for _, e := range g.logs.All() {
		fmt.Fprintf(&logs, "%+v %v\n", e.Entry, e.ContextMap())
	}
	scan("the logs", logs.Bytes())
	scan("the metrics", g.metricsText(t))
}

func (g *rig) metricsText(t testing.TB) []byte {
	t.Helper()
	w := httptest.NewRecorder()
	promhttp.HandlerFor(g.registry, promhttp.HandlerOpts{}).ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/metrics", nil))
	if w.Code != http.StatusOK || !strings.Contains(w.Body.String(), "egressd_decisions_total") {
		t.Fatalf("metrics: %d %s", w.Code, w.Body)
	}
	return w.Body.Bytes()
}

// taped keeps what a hostile client reads.
type taped struct {
	net.Conn
	g *rig
}

func (c taped) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	c.g.note(p[:n])
	return n, err
}

// dial opens a connection to the proxy.
func (g *rig) dial(t testing.TB) net.Conn {
	t.Helper()
	nc, err := net.Dial("tcp", g.addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = nc.Close() })
	_ = nc.SetDeadline(time.Now().Add(15 * time.Second))
	return taped{nc, g}
}

func proxyAuth(user, token string) string {
	return "Proxy-Authorization: Basic " + base64.StdEncoding.EncodeToString([]byte(user+":"+token)) + "\r\n"
}

// open makes a tunnel for sandbox one and fails the test unless it is granted.
func (g *rig) open(t testing.TB, target string) net.Conn {
	t.Helper()
	target = g.expand(target)
	nc := g.dial(t)
	if _, err := fmt.Fprintf(nc, "CONNECT %s HTTP/1.1\r\nHost: %s\r\n%s\r\n", target, target, proxyAuth("one", tokenOne)); err != nil {
		t.Fatal(err)
	}
	want := "HTTP/1.1 200 Connection established\r\n\r\n"
	b := make([]byte, len(want))
	if _, err := io.ReadFull(nc, b); err != nil || string(b) != want {
		t.Fatalf("CONNECT %s: %q, %v", target, b, err)
	}
	return nc
}

// tls opens a tunnel to target and completes a handshake inside it.
func (g *rig) tls(t testing.TB, target, sni string, alpn ...string) *tls.Conn {
	t.Helper()
	tc := tls.Client(g.open(t, target), &tls.Config{ServerName: sni, RootCAs: g.roots(), NextProtos: alpn})
	if err := tc.Handshake(); err != nil {
		t.Fatalf("handshake with %s: %v", sni, err)
	}
	return tc
}

// good is a tunnel to good.test with TLS inside.
func (g *rig) good(t testing.TB, alpn ...string) *tls.Conn {
	t.Helper()
	return g.tls(t, "good.test:GOODPORT", "good.test", alpn...)
}

// goodHost is Host for requests to Good.
func (g *rig) goodHost() string { return g.bed.Good.HostPort() }

// talk writes b and reads what comes until the peer closes or is silent for wait;
// closed says which.
func (g *rig) talk(c net.Conn, b string, wait time.Duration) (got []byte, closed bool) {
	_ = c.SetWriteDeadline(time.Now().Add(5 * time.Second))
	_, _ = io.WriteString(c, b) // the peer may have closed already: what it said is what counts
	buf := make([]byte, 8<<10)
	for end := time.Now().Add(15 * time.Second); time.Now().Before(end); {
		_ = c.SetReadDeadline(time.Now().Add(wait))
		n, err := c.Read(buf)
		got = append(got, buf[:n]...)
		g.note(buf[:n])
		if err != nil {
			return got, !errors.Is(err, os.ErrDeadlineExceeded)
		}
	}
	return got, false
}

// answers takes raw bytes apart into responses.
func answers(t testing.TB, raw []byte) []answer {
	t.Helper()
	var out []answer
	const established = "HTTP/1.1 200 Connection established\r\n\r\n"
	if rest, ok := bytes.CutPrefix(raw, []byte(established)); ok { // CONNECT's, without a body
		out, raw = append(out, answer{status: http.StatusOK, header: http.Header{}}), rest
	}
	br := bufio.NewReader(bytes.NewReader(raw))
	for {
		if _, err := br.Peek(1); err != nil {
			return out
		}
		resp, err := http.ReadResponse(br, nil)
		if err != nil {
			t.Fatalf("not a response: %q: %v", raw, err)
		}
		b, err := io.ReadAll(resp.Body)
		out = append(out, answer{resp.StatusCode, resp.Header, string(b), err})
	}
}

// refusedOnce wants raw to be one refusal by egressd itself and nothing behind it.
func refusedOnce(t testing.TB, raw []byte, status int, code string) {
	t.Helper()
	all := answers(t, raw)
	if len(all) != 1 || all[0].status != status || code != "" && all[0].header.Get("X-Egressd-Error") != code {
		t.Errorf("want one %d %s, got %q", status, code, raw)
		return
	}
	isProblem(t, all[0])
}

// isProblem: the fixed shape of a refusal, with nothing in it but code and request id.
func isProblem(t testing.TB, a answer) {
	t.Helper()
	var body map[string]any
	if err := json.Unmarshal([]byte(a.body), &body); err != nil || a.header.Get("Content-Type") != "application/problem+json" {
		t.Errorf("not a problem: %v %q", a.header, a.body)
		return
	}
	want := map[string]any{"type": "about:blank", "title": http.StatusText(a.status), "status": float64(a.status),
		"code": a.header.Get("X-Egressd-Error"), "request_id": a.header.Get("X-Request-Id")}
	if fmt.Sprint(body) != fmt.Sprint(want) || body["request_id"] == "" {
		t.Errorf("problem is %v, want %v", body, want)
	}
}

// untouched fails when anything reached an origin while f ran.
func (g *rig) untouched(t testing.TB, f func()) {
	t.Helper()
	count := func() string {
		b := g.bed
		return fmt.Sprint(len(b.Good.Conns()), len(b.Good.Requests()), len(b.Plain.Conns()), len(b.Evil.Conns()), len(b.Evil.Requests()), b.Sink.Conns(), len(b.Other.Conns()), len(b.Shared.Conns()))
	}
	before := count()
	f()
	if after := count(); after != before {
		t.Errorf("origins were reached: %s before, %s after", before, after)
	}
}

// audited waits for a record with this code and detail.
func (g *rig) audited(t testing.TB, code, detail string) {
	t.Helper()
	g.records.wait(t, func(a audit.Record) bool { return a.Code == code && strings.Contains(a.Detail, detail) })
}

func (g *rig) forget() {
	g.records.mu.Lock()
	g.records.all = nil
	g.records.mu.Unlock()
}

// setStatus changes a source of team acme and waits until the data plane knows.
func (g *rig) setStatus(t testing.TB, name string, status store.Status) {
	t.Helper()
	m, err := g.store.Patch(t.Context(), "acme", name, store.Patch{Status: &status})
	if err == nil {
		err = g.resolver.WaitApplied(t.Context(), m.Rev)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// tlsOn completes a handshake for good.test on an open tunnel.
func tlsOn(t testing.TB, g *rig, nc net.Conn) *tls.Conn {
	t.Helper()
	tc := tls.Client(nc, &tls.Config{ServerName: "good.test", RootCAs: g.roots()})
	if err := tc.Handshake(); err != nil {
		t.Fatal(err)
	}
	return tc
}
