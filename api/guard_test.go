package api

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
)

func TestHostNames(t *testing.T) {
	r := newRig(t, func(o *Options) { o.Hosts = []string{"Egress.Example.", "192.0.2.7"} })
	_, port, err := net.SplitHostPort(r.addr)
	if err != nil {
		t.Fatal(err)
	}
	for _, h := range []string{"localhost", "LOCALHOST:80", "egressd", "egressd:9", "127.0.0.1:" + port, "127.0.0.1", "[::1]:1", "[::1]", "egress.example", "egress.example.", "192.0.2.7:9443"} {
		if g := r.dial("GET", base+"/whoami", nil, auth(r.read), host(h)); g.status != 200 {
			t.Errorf("Host %q over TCP: %d", h, g.status)
		}
		if g := r.do("GET", base+"/whoami", nil, host(h)); g.status != 200 {
			t.Errorf("Host %q over the socket: %d", h, g.status)
		}
	}
	for _, h := range []string{"evil.test", "localhost.evil.test", "evil-egressd", "192.0.2.8", "0.0.0.0", "[::]", "169.254.169.254", "127.1", "2130706433", "[fe80::1%25lo]", "localhost:x:y", "unix"} {
		r.dial("GET", base+"/whoami", nil, auth(r.read), host(h)).want(t, 421, CodeBadRequest, ReasonMisdirectedHost)
		r.do("GET", base+"/whoami", nil, host(h)).want(t, 421, CodeBadRequest, ReasonMisdirectedHost)
	}
}

func TestAttack_G10_csrf(t *testing.T) {
	r := newRig(t)
	body := `{"name":"gh","resolverKind":"static_headers","spec":{"staticHeaders":{"values":{"token":"x"}}}}`
	for name, opts := range map[string][]option{
		"cross-site fetch":        {head("Sec-Fetch-Site", "cross-site")},
		"same-site fetch":         {head("Sec-Fetch-Site", "same-site")},
		"foreign origin":          {head("Origin", "https://evil.test")},
		"null origin":             {head("Origin", "null")},
		"origin of another port":  {head("Origin", "http://localhost:8080")},
		"origin with userinfo":    {head("Origin", "http://localhost@evil.test")},
		"origin of another kind":  {head("Origin", "file://localhost")},
		"form post of a page":     {head("Origin", "https://evil.test"), head("Content-Type", "text/plain")},
		"rebound name and origin": {head("Origin", "http://evil.test"), host("evil.test")},
	} {
		t.Run(name, func(t *testing.T) {
			for _, g := range []*got{r.do("POST", at0, body, opts...), r.dial("POST", at0, body, append(opts, auth(r.admin))...), r.do("GET", at0, nil, opts...)} {
				if g.status != 403 && g.status != 421 {
					t.Errorf("status %d: %s", g.status, g.raw)
				}
				for _, h := range []string{"Access-Control-Allow-Origin", "Set-Cookie"} {
					if g.header.Get(h) != "" {
						t.Errorf("%s: %q", h, g.header.Get(h))
					}
				}
			}
		})
	}
	// Without Origin a form still cannot say application/json.
	for _, media := range []string{"text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"} {
		r.do("POST", at0, body, head("Content-Type", media)).want(t, 415, CodeBadRequest, ReasonMediaType)
	}
	g := r.do("OPTIONS", at0, nil, head("Origin", "https://evil.test"), head("Access-Control-Request-Method", "POST")).want(t, 403, CodeForbidden, ReasonCrossOrigin)
	for h := range g.header {
		if strings.HasPrefix(h, "Access-Control-") {
			t.Errorf("preflight answered with %s", h)
		}
	}
	if all, err := r.store.List(context.Background(), DefaultTeam); err != nil || len(all) != 0 {
		t.Fatalf("stored %v %v", all, err)
	}
	r.do("POST", at0, body, head("Origin", "http://localhost"), head("Sec-Fetch-Site", "same-origin")).want(t, 201, "", "")
}

func TestAnswersBearTheSecurityHeaders(t *testing.T) {
	r := newRig(t)
	for _, g := range []*got{
		r.do("GET", at0, nil), r.do("GET", "/", nil), r.do("GET", base+"/ca.pem", nil), r.dial("GET", at0, nil), r.do("GET", at0, nil, host("x.test")),
		r.send(r.tcp, "http://"+r.ops+"/metrics", "GET", nil), r.send(r.tcp, "http://"+r.ops+"/nope", "GET", nil),
	} {
		for h, want := range map[string]string{"X-Content-Type-Options": "nosniff", "Cache-Control": "no-store"} {
			if got := g.header.Get(h); got != want {
				t.Errorf("%d: %s %q", g.status, h, got)
			}
		}
	}
	a, b := r.do("GET", at0, nil, head("X-Request-Id", "mine")), r.do("GET", at0, nil)
	if id := a.header.Get("X-Request-Id"); id == b.header.Get("X-Request-Id") || id == "mine" {
		t.Errorf("request id %q", id)
	}
}

func TestAttack_G23_debug_pages(t *testing.T) {
	r := newRig(t)
	for _, path := range []string{"/debug/pprof/heap", "/debug/pprof/", "/debug/vars", "/metrics", "/healthz", "/api/v1/debug/pprof/heap", "/"} {
		r.do("GET", path, nil).want(t, 404, CodeNotFound, "")
		r.dial("GET", path, nil, auth(r.admin)).want(t, 404, CodeNotFound, "")
		r.dial("GET", path, nil, host("localhost")).want(t, 401, CodeUnauthorized, ReasonTokenMissing)
	}
	for _, path := range []string{"/debug/pprof/heap", "/debug/vars", base + "/tokens", at0, "/metrics/../debug", "//metrics"} {
		r.send(r.tcp, "http://"+r.ops+path, "GET", nil).want(t, 404, CodeNotFound, "")
	}
}

func TestOps(t *testing.T) {
	ready := error(nil)
	r := newRig(t, func(o *Options) { o.Ready = func(context.Context) error { return ready } })
	r.do("GET", at0, nil)
	ask := func(method, path string, opts ...option) *got {
		return r.send(r.tcp, "http://"+r.ops+path, method, nil, opts...)
	}
	ask("GET", "/healthz").want(t, 200, "", "")
	ask("GET", "/readyz").want(t, 200, "", "")
	if v := into[Version](t, ask("GET", base+"/version").want(t, 200, "", "")); v.Version != "v0.1.0" || v.APIVersion != "v1" {
		t.Errorf("%+v", v)
	}
	if g := ask("GET", "/metrics"); g.status != 200 || !strings.Contains(string(g.raw), `egressd_api_requests_total{method="GET",route="/api/v1/credential-sources",status="200"} 1`) {
		t.Errorf("%d %s", g.status, g.raw)
	}
	ready = fmt.Errorf("policy %s is broken", "SECRETDIR")
	if g := ask("GET", "/readyz").want(t, 503, CodeUnavailable, ReasonNotReady); strings.Contains(string(g.raw), "SECRETDIR") {
		t.Errorf("%s", g.raw)
	}
	ask("POST", "/healthz").want(t, 405, CodeBadRequest, ReasonMethod)
	ask("GET", "/metrics", host("evil.test")).want(t, 421, CodeBadRequest, ReasonMisdirectedHost)
	ask("GET", "/metrics", head("Sec-Fetch-Site", "cross-site")).want(t, 403, CodeForbidden, ReasonCrossOrigin)
	if g := ask("GET", "/metrics", host("10.1.2.3:9464")); g.status != 200 {
		t.Errorf("a scraper by address: %d", g.status)
	}
	if g := ask("HEAD", "/healthz"); g.status != 200 || len(g.raw) != 0 {
		t.Errorf("HEAD: %d %q", g.status, g.raw)
	}
}

func TestPathsAreTakenAsWritten(t *testing.T) {
	r := newRig(t)
	r.do("POST", at0, headers("gh", "token", "x")).want(t, 201, "", "")
	for _, path := range []string{at0 + "/", at0 + "//gh", at0 + "/gh/", at0 + "/%67h", at0 + "/./gh", at0 + "/x/../gh", "/api/v1//credential-sources", "/API/v1/credential-sources", at0 + "/gh%00", at0 + "/gh;x"} {
		g := r.do("GET", path, nil)
		if g.status != 404 || g.header.Get("Location") != "" {
			t.Errorf("%s: %d %v", path, g.status, g.header)
		}
	}
	if g := r.do("POST", at0+"/gh", `{}`).want(t, 405, CodeBadRequest, ReasonMethod); g.header.Get("Allow") != "DELETE, GET, HEAD, PATCH, PUT" {
		t.Errorf("Allow %q", g.header.Get("Allow"))
	}
	if g := r.do("HEAD", at0+"/gh", nil); g.status != 200 || len(g.raw) != 0 || g.header.Get("Etag") == "" {
		t.Errorf("HEAD: %d", g.status)
	}
	for _, m := range []string{"TRACE", "OPTIONS", "PROPFIND", "get"} {
		if g := r.do(m, at0, nil); g.status != 405 {
			t.Errorf("%s: %d", m, g.status)
		}
	}
}

func TestServerLimits(t *testing.T) {
	r := newRig(t)
	for _, srv := range []*http.Server{r.s.HTTPServer(), r.s.OpsServer()} {
		if srv.ReadHeaderTimeout == 0 || srv.ReadTimeout == 0 || srv.WriteTimeout == 0 || srv.IdleTimeout == 0 || srv.MaxHeaderBytes == 0 || !srv.DisableGeneralOptionsHandler {
			t.Errorf("%+v", srv)
		}
	}
	conn, err := net.Dial("tcp", r.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := fmt.Fprintf(conn, "GET / HTTP/1.1\r\nHost: localhost\r\nX: %s\r\n\r\n", strings.Repeat("x", 64<<10)); err != nil {
		t.Logf("write: %v", err) // it may hang up early
	}
	line, err := bufio.NewReader(conn).ReadString('\n')
	if err != nil || !strings.Contains(line, " 431 ") {
		t.Errorf("%q %v", line, err)
	}
}

func TestNewWantsAllItNeeds(t *testing.T) {
	r := newRig(t)
	for name, drop := range map[string]func(*Options){
		"writer": func(o *Options) { o.Writer = nil }, "tokens": func(o *Options) { o.Tokens = nil }, "idempotency": func(o *Options) { o.Idempotency = nil },
		"kinds": func(o *Options) { o.Kinds = nil }, "applied": func(o *Options) { o.Applied = nil }, "policies": func(o *Options) { o.Policies = nil },
		"references": func(o *Options) { o.References = nil }, "ca": func(o *Options) { o.CA = nil }, "log": func(o *Options) { o.Log = nil }, "registry": func(o *Options) { o.Registry = nil },
	} {
		opt := r.s.opt
		opt.Registry = prometheus.NewRegistry()
		drop(&opt)
		if _, err := New(opt); err == nil {
			t.Errorf("New without %s", name)
		}
	}
}

func FuzzPathAndHost(f *testing.F) {
	for _, s := range []string{"/api/v1/credential-sources/gh", "/api/v1/credential-sources/../x", "localhost:80", "[::1%25x]", "evil.test", "\x00"} {
		f.Add(s, s)
	}
	s := &Server{}
	s.hosts, s.addrs = ownNames(nil)
	rows := table()
	f.Fuzz(func(t *testing.T, path, hostport string) {
		if rt, name, _ := find(rows, "GET", path); rt != nil {
			if strings.Replace(rt.pattern, "{name}", name, 1) != path || strings.ContainsAny(name, "/\\%\x00") || strings.HasPrefix(name, ".") {
				t.Errorf("%q was found as %q with the name %q", path, rt.pattern, name)
			}
		}
		q := httptest.NewRequest("GET", "/", nil)
		q.Host = hostport
		if s.checkHost(q) == nil {
			h := hostOf(hostport)
			loopback := strings.HasPrefix(h, "127.") || strings.Contains(h, ":")
			if h != "localhost" && h != "egressd" && !loopback {
				t.Errorf("Host %q passes", hostport)
			}
		}
	})
}
