package proxy_test

import (
	"bufio"
	"encoding/base64"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/egressd/egressd/internal/audit"
	"github.com/egressd/egressd/internal/testbed"
	"github.com/egressd/egressd/proxy"
	"github.com/egressd/egressd/store"
)

// hop is an HTTP proxy that keeps what it is asked.
type hop struct {
	port uint16
	mu   sync.Mutex
	asks []hopAsk
	open []net.Conn
}

type hopAsk struct{ target, login string }

func newHop(t testing.TB) *hop {
	t.Helper()
	ln, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	h := &hop{port: ln.Addr().(*net.TCPAddr).AddrPort().Port()}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			wg.Go(func() { h.serve(c) })
		}
	})
	t.Cleanup(func() {
		_ = ln.Close()
		h.mu.Lock()
		for _, c := range h.open {
			_ = c.Close()
		}
		h.mu.Unlock()
		wg.Wait()
	})
	return h
}

func (h *hop) serve(c net.Conn) {
	defer func() { _ = c.Close() }()
	h.mu.Lock()
	h.open = append(h.open, c)
	h.mu.Unlock()
	br := bufio.NewReader(c)
	req, err := http.ReadRequest(br)
	if err != nil {
		return
	}
	login, _ := base64.StdEncoding.DecodeString(strings.TrimPrefix(req.Header.Get("Proxy-Authorization"), "Basic "))
	h.mu.Lock()
	h.asks = append(h.asks, hopAsk{req.RequestURI, string(login)})
	h.mu.Unlock()
	up, err := net.Dial("tcp4", req.RequestURI)
	if err != nil {
		_, _ = io.WriteString(c, "HTTP/1.1 502 No\r\n\r\n")
		return
	}
	defer func() { _ = up.Close() }()
	_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\n\r\n")
	done := make(chan struct{})
	go func() {
		_, _ = io.Copy(up, br)
		_ = up.(*net.TCPConn).CloseWrite()
		close(done)
	}()
	_, _ = io.Copy(c, up)
	_ = c.Close()
	<-done
}

func (h *hop) asked() []hopAsk {
	h.mu.Lock()
	defer h.mu.Unlock()
	return append([]hopAsk(nil), h.asks...)
}

// leavesBy puts an egress.proxy, with a login, into the text of a sandbox.
func leavesBy(typ string, port uint16) func(string) string {
	return func(s string) string {
		s = strings.Replace(s, "egress:\n", fmt.Sprintf("egress:\n        proxy: {type: %s, address: \"127.0.0.1:%d\", credentialRef: way}\n", typ, port), 1)
		return strings.Replace(s, "credentialBindings:\n", "credentialBindings:\n        - {ref: way, sourceRef: way, projection: {type: username_password}}\n", 1)
	}
}

const wayPassword = "egressd-fake-password-of-the-way-out"

// Everything of a sandbox leaves by its egress.proxy, a real one that wants a login.
func TestEgressProxy(t *testing.T) {
	f := newFarm(t, proxy.Limits{})
	for _, team := range []string{"acme", "other"} {
		f.put(team, "way", "static_username_password", basicSpec("app", wayPassword))
	}
	for _, p := range []struct {
		typ   string
		start func(testing.TB, string) uint16
	}{{"socks5", microsocks}, {"http", tinyproxy}} {
		t.Run(p.typ, func(t *testing.T) {
			f.t = t
			f.use(f.policy(leavesBy(p.typ, p.start(t, wayPassword))))
			open := func() []*living {
				all := f.openAll(t, sandboxOne)
				for _, l := range all {
					if err := l.ping(); err != nil {
						t.Errorf("%s: %v", l.name, err)
					}
				}
				return all
			}
			opened := open()
			m := f.put("acme", "way", "static_username_password", basicSpec("app", wayPassword+"2"))
			f.srv.CloseSource("acme", "way", m.CurrentVersion)
			allEnd(t, opened)
			f.put("acme", "way", "static_username_password", basicSpec("app", wayPassword))
			opened = open()
			f.setStatus(t, "way", store.Disabled)
			allEnd(t, opened)
			if a := get(t, f.one(), "https://"+f.at("api.test")+"/"); a.status != http.StatusServiceUnavailable || a.header.Get("X-Egressd-Error") != "source_disabled" {
				t.Errorf("without a login for the proxy: %+v", a)
			}
			f.setStatus(t, "way", store.Active)
		})
		t.Run(p.typ+", wrong login", func(t *testing.T) {
			f.t = t
			f.put("acme", "way", "static_username_password", basicSpec("app", "wrong"))
			defer f.put("acme", "way", "static_username_password", basicSpec("app", wayPassword))
			f.use(f.policy(leavesBy(p.typ, p.start(t, wayPassword))))
			before := len(f.api.Conns())
			bothVersions(t, f.stack, func(t *testing.T, c *http.Client) {
				a := get(t, c, "https://"+f.at("api.test")+"/")
				if a.status != http.StatusBadGateway || a.header.Get("X-Egressd-Error") != "upstream_unreachable" {
					t.Errorf("%+v", a)
				}
			})
			c := f.tunnel(t, sandboxOne, f.at("redis.test"))
			if got, closed := f.talk(c, "*1\r\n$4\r\nPING\r\n", 3*time.Second); !closed || !strings.HasPrefix(string(got), "-ERR egressd: upstream_unreachable") {
				t.Errorf("%q %v", got, closed)
			}
			if len(f.api.Conns()) != before {
				t.Error("the origin was reached past the proxy")
			}
		})
	}
	f.clean(t)
	testbed.NoLeak(t, "what clients saw, and the records", fmt.Appendf(f.seenBytes(), "%+v", f.records.list()), wayPassword)
}

// allEnd wants all of them to end within one second.
func allEnd(t *testing.T, all []*living) {
	t.Helper()
	deadline := time.Now().Add(time.Second)
	for _, l := range all {
		select {
		case <-l.done:
		case <-time.After(max(time.Until(deadline), 50*time.Millisecond)):
			t.Errorf("%s goes on", l.name)
		}
	}
}

func (g *rig) seenBytes() []byte {
	g.mu.Lock()
	defer g.mu.Unlock()
	return append([]byte(nil), g.seen...)
}

// viaPolicy is two sandboxes, each with a way out of its own.
func viaPolicy(one, two *hop) string {
	block := func(id, team, token string, h *hop) string {
		return strings.NewReplacer("ID", id, "TEAM", team, "TOKEN", tokenHash(token), "PORT", fmt.Sprint(h.port)).Replace(`
  - id: ID
    team: TEAM
    identify: {proxyTokens: ["TOKEN"]}
    network:
      egress:
        proxy: {type: http, address: "127.0.0.1:PORT", credentialRef: way}
        trafficRules:
          - {name: inner, action: allow, domains: [inner.test], cidrs: [127.0.0.2/32]}
          - {name: all, action: allow, domains: [good.test, plain.test, meta.test]}
          - {name: meta, action: allow, cidrs: [169.254.169.254/32]}
        credentialRules:
          - {name: token, credentialRef: tok, protocol: https, domains: [good.test]}
        credentialBindings:
          - {ref: way, sourceRef: way, projection: {type: username_password}}
          - ref: tok
            sourceRef: tok
            projection: {type: http_headers, httpHeaders: {headers: [{name: Authorization, valueTemplate: "Bearer {{ .token }}"}]}}
`)
	}
	return strings.ReplaceAll("apiVersion: egressd/v1\nsandboxes:\n"+block("one", "acme", tokenOne, one)+block("two", "other", tokenTwo, two), "        credentialBindings", "      credentialBindings")
}

// The proxy is told addresses that were checked, and one sandbox's connections by it are no
// other's, nor its own by another proxy or login.
func TestAttack_A21_by_egress_proxy(t *testing.T) {
	t.Parallel()
	g := attacked(t, options{hosts: map[string]string{"meta.test": "169.254.169.254", "inner.test": "127.0.0.2"}})
	one, two, third := newHop(t), newHop(t), newHop(t)
	for _, team := range []string{"acme", "other"} {
		g.put(team, "way", "static_username_password", basicSpec(team, "v1"))
		g.put(team, "tok", "static_headers", headerSpec(canary))
	}
	g.use(viaPolicy(one, two))
	target := fmt.Sprintf("127.0.0.2:%d", g.bed.Good.Port())
	ask := func(t *testing.T, w who, h2 bool) {
		t.Helper()
		for range 2 {
			if a := get(t, g.client(w.id, w.token, h2), g.bed.Good.URL("/bearer")); a.status != http.StatusOK {
				t.Errorf("%+v", a)
			}
		}
	}
	for _, h2 := range []bool{false, true} {
		ask(t, sandboxOne, h2)
		ask(t, sandboxTwo, h2)
	}
	// One connection for each sandbox and version of HTTP, by its own proxy with its own login.
	wants := func(t *testing.T, what string, h *hop, logins ...string) {
		t.Helper()
		var want []hopAsk
		for _, l := range logins {
			want = append(want, hopAsk{target, l})
		}
		if got := h.asked(); fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("%s: %v, want %v", what, got, want)
		}
	}
	wants(t, "one's", one, "acme:v1", "acme:v1")
	wants(t, "two's", two, "other:v1", "other:v1")
	for _, c := range g.bed.Good.Conns() {
		if len(c.App) == 0 {
			t.Errorf("a connection without a request: %+v", c)
		}
	}

	t.Run("A21 the login of the proxy rotates", func(t *testing.T) {
		g.put("acme", "way", "static_username_password", basicSpec("acme", "v2"))
		ask(t, sandboxOne, false)
		wants(t, "one's", one, "acme:v1", "acme:v1", "acme:v2")
		ask(t, sandboxTwo, false)
		wants(t, "two's", two, "other:v1", "other:v1")
	})
	t.Run("A21 another proxy", func(t *testing.T) {
		g.use(viaPolicy(third, two))
		ask(t, sandboxOne, false)
		ask(t, sandboxOne, true)
		wants(t, "one's", one, "acme:v1", "acme:v1", "acme:v2")
		wants(t, "its new one", third, "acme:v2", "acme:v2")
	})
	t.Run("A21 the same proxy for two", func(t *testing.T) {
		g.use(viaPolicy(third, third))
		ask(t, sandboxTwo, false)
		wants(t, "it", third, "acme:v2", "acme:v2", "other:v1")
	})
	t.Run("B05 metadata is not asked for", func(t *testing.T) {
		before := len(third.asked())
		for _, host := range []string{"meta.test", "169.254.169.254"} {
			if a := get(t, g.one(), "http://"+host+"/latest/meta-data/"); a.status != http.StatusForbidden || a.header.Get("X-Egressd-Error") != "forbidden_address" {
				t.Errorf("%s: %+v", host, a)
			}
			if status, nc, _ := g.connect(host+":443", "one", tokenOne); status == http.StatusOK {
				if got, closed := g.talk(nc, string(clientHello(t, "meta.test")), 3*time.Second); !closed || len(got) > 7 {
					t.Errorf("%s: %q", host, got)
				}
			}
		}
		if got := third.asked()[before:]; len(got) != 0 {
			t.Errorf("the proxy was asked for %v", got)
		}
	})
	t.Run("a rule with an address knows the destination's", func(t *testing.T) {
		c := g.tunnel(t, sandboxOne, fmt.Sprintf("inner.test:%d", g.bed.Good.Port()))
		got, _ := g.talk(c, string(clientHello(t, "inner.test")), time.Second)
		if len(got) == 0 || got[0] != 22 {
			t.Fatalf("no handshake: %q", got)
		}
		g.use(viaPolicy(third, third) + "\n# the same\n")
		if _, closed := g.talk(c, "", 500*time.Millisecond); closed {
			t.Error("it was closed by a policy that allows it")
		}
		_ = c.Close()
		a := g.records.wait(t, func(a audit.Record) bool { return strings.HasPrefix(a.Destination, "inner.test:") })
		if a.Address.String() != "127.0.0.2" {
			t.Errorf("%+v", a)
		}
	})
	g.clean(t)
}
