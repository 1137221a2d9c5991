package proxy_test

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/egressd/egressd/internal/audit"
	"github.com/egressd/egressd/internal/testbed"
	"github.com/egressd/egressd/proxy"
)

func TestAttack_B27_no_policy(t *testing.T) {
	g := attacked(t, options{})
	refuses := func(t *testing.T) {
		t.Helper()
		g.untouched(t, func() {
			for _, user := range []string{"one", "two", ""} {
				token := map[string]string{"one": tokenOne, "two": tokenTwo}[user]
				if status, _, _ := g.connect(g.goodHost(), user, token); status < 400 {
					t.Errorf("CONNECT as %q: %d", user, status)
				}
				got := g.absoluteAs(t, user, token, g.bed.Plain.HostPort())
				if all := answers(t, got); len(all) != 1 || all[0].status < 400 {
					t.Errorf("absolute as %q: %q", user, got)
				}
			}
		})
	}
	keep := g.one()
	if a := get(t, keep, g.bed.Good.URL("/bearer")); a.status != http.StatusOK {
		t.Fatalf("%+v", a)
	}
	for name, rules := range map[string]*proxy.Ruleset{
		"B27 none": nil, "B27 ruleset without a policy": {}, "B27 empty policy": g.mustCompile(t, "apiVersion: egressd/v1\n"),
		"B27 policy of others":        g.mustCompile(t, "apiVersion: egressd/v1\nsandboxes: [{id: nobody, identify: {sourceCIDRs: [10.9.9.9/32]}}]\n"),
		"B27 sandboxes without rules": g.mustCompile(t, "apiVersion: egressd/v1\nsandboxes: [{id: one, identify: {proxyTokens: [\"TOKENONE\"]}}]\n"),
	} {
		t.Run(name, func(t *testing.T) {
			g.srv.Use(rules)
			refuses(t)
			g.untouched(t, func() { // a connection from better days
				if a := get(t, keep, g.bed.Good.URL("/bearer")); a.err == nil && a.status < 400 {
					t.Errorf("on the open connection: %+v", a)
				}
			})
		})
	}
	g.use(basePolicy)
	g.safe(t)

	fresh := newStack(t, "", options{})
	if status, _, _ := fresh.connect(fresh.bed.Good.HostPort(), "one", tokenOne); status != http.StatusForbidden {
		t.Errorf("B27 before the first policy: %d", status)
	}
	fresh.records.wait(t, func(a audit.Record) bool { return a.Code == "no_policy" })
}

const pathPolicy = `
apiVersion: egressd/v1
sandboxes:
  - id: one
    team: acme
    identify: {proxyTokens: ["TOKENONE"]}
    network:
      egress:
        trafficRules:
          - {name: good, action: allow, domains: [good.test]}
          - {name: evil, action: allow, domains: [evil.test]}
        protocolRules:
          - name: narrow
            protocol: http
            domains: [good.test]
            http: {methods: {denied: [DELETE]}, paths: {deniedPrefixes: [/admin], denied: [/one]}}
          - name: narrower
            protocol: http
            domains: [evil.test]
            http: {methods: {allowed: [GET, POST]}, paths: {allowedPrefixes: [/anything/public]}}
        credentialRules:
          - {name: good-token, credentialRef: gh, domains: [good.test], allowCleartext: true, httpMatch: {pathPrefixes: [/anything/, /bearer]}}
      credentialBindings:
        - ref: gh
          sourceRef: gh-source
          projection:
            type: http_headers
            httpHeaders: {headers: [{name: Authorization, valueTemplate: "Bearer {{ .token }}"}]}
`

// verdict is what became of one request, however it came: status and code, and what
// the origin was asked for.
type verdict struct {
	status     int
	code       string
	target     string
	credential bool
}

// ways are all the ways in which a request can come. Each returns the verdict and
// takes the request's method, target and fields as they go on the wire.
func (g *rig) ways(t *testing.T) map[string]func(method, target string, fields ...string) verdict {
	judge := func(o *testbed.Origin, before int, a answer) verdict {
		v := verdict{status: a.status, code: a.header.Get("X-Egressd-Error")}
		if reqs := o.Requests(); len(reqs) > before {
			last := reqs[len(reqs)-1]
			v.target = last.Target
			v.credential = strings.Contains(last.Header.Get("Authorization"), canary)
		}
		return v
	}
	raw := func(o *testbed.Origin, open func() net.Conn, line, host, extra string, fields []string) verdict {
		n := len(o.Requests())
		b := line + " HTTP/1.1\r\nHost: " + host + "\r\n" + extra
		for i := 0; i+1 < len(fields); i += 2 {
			b += fields[i] + ": " + fields[i+1] + "\r\n"
		}
		got, _ := g.talk(open(), b+"Connection: close\r\n\r\n", 3*time.Second)
		all := answers(t, got)
		if len(all) != 1 { // closed without a word: no protocol at all
			all = []answer{{header: http.Header{}}}
		}
		return judge(o, n, all[0])
	}
	quiet := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "quiet\n") }) // reflects nothing
	good := testbed.NewOrigin(t, g.bed.CA, testbed.OriginOptions{Handler: quiet})
	plain := testbed.NewOrigin(t, g.bed.CA, testbed.OriginOptions{Handler: quiet, Plain: true})
	g.quiet = []*testbed.Origin{good, plain}
	return map[string]func(method, target string, fields ...string) verdict{
		"tls h1": func(m, p string, f ...string) verdict {
			return raw(good, func() net.Conn { return g.tls(t, good.HostPort(), "good.test") }, m+" "+p, good.HostPort(), "", f)
		},
		"tls h2": func(m, p string, f ...string) verdict {
			n := len(good.Requests())
			c := newH2(t, g, g.tls(t, good.HostPort(), "good.test", "h2"))
			return judge(good, n, c.request(m, good.HostPort(), p, f...))
		},
		"absolute": func(m, p string, f ...string) verdict {
			return raw(plain, func() net.Conn { return g.dial(t) }, m+" http://"+plain.HostPort()+p, plain.HostPort(), proxyAuth("one", tokenOne), f)
		},
		"connect, clear": func(m, p string, f ...string) verdict {
			return raw(plain, func() net.Conn { return g.open(t, plain.HostPort()) }, m+" "+p, plain.HostPort(), "", f)
		},
		"socks5 tls": func(m, p string, f ...string) verdict {
			return raw(good, func() net.Conn { return g.tlsOver(t, g.socks(t, "one", tokenOne, good.HostPort()), "good.test") }, m+" "+p, good.HostPort(), "", f)
		},
		"socks5, clear": func(m, p string, f ...string) verdict {
			return raw(plain, func() net.Conn { return g.socks(t, "one", tokenOne, plain.HostPort()) }, m+" "+p, plain.HostPort(), "", f)
		},
		"socks5 by address": func(m, p string, f ...string) verdict {
			return raw(good, func() net.Conn {
				return g.tlsOver(t, g.socks(t, "one", tokenOne, fmt.Sprint("192.0.2.9:", good.Port())), "good.test")
			}, m+" "+p, good.HostPort(), "", f)
		},
		"transparent tls": func(m, p string, f ...string) verdict {
			return raw(good, func() net.Conn { return g.tlsOver(t, g.aimedAt(t, "one", tokenOne, good.Port()), "good.test") }, m+" "+p, good.HostPort(), "", f)
		},
		"transparent, clear": func(m, p string, f ...string) verdict {
			return raw(plain, func() net.Conn { return g.aimedAt(t, "one", tokenOne, plain.Port()) }, m+" "+p, plain.HostPort(), "", f)
		},
	}
}

func TestAttack_B30_B31_B32_every_way_in_decides_alike(t *testing.T) {
	g := attacked(t, options{})
	g.use(pathPolicy)
	ways := g.ways(t)
	denied := verdict{status: 403, code: "policy_denied"}
	badPath := verdict{status: 400, code: "bad_path"}
	bad := verdict{status: 400, code: "bad_request"}
	ok := func(target string) verdict { return verdict{status: 200, target: target, credential: true} }
	for _, c := range []struct {
		id, method, target string
		want               verdict
	}{
		{"B30", "GET", "/anything/x", ok("/anything/x")}, {"B30", "POST", "/anything/x?q=%2e", ok("/anything/x?q=%2e")},
		{"B30", "DELETE", "/anything/x", denied}, {"B30", "GET", "/admin", denied}, {"B30", "GET", "/admin/x", denied}, {"B30", "GET", "/one", denied},
		{"B31", "GET", "/anything/../admin", denied}, {"B31", "GET", "/anything/%2e%2e/admin", denied}, {"B31", "GET", "/anything/.%2E/admin/", denied},
		{"B31", "GET", "/%61dmin", denied}, {"B31", "GET", "/anything//../../admin", denied}, {"B31", "GET", "/./admin", denied}, {"B31", "GET", "/admin;x=1", denied},
		{"B31", "GET", "/anything/..;/admin", badPath}, {"B31", "GET", "/admin%2f", badPath}, {"B31", "GET", "/admin%2Fx", badPath}, {"B31", "GET", "/admin%00", badPath},
		{"B31", "GET", "/a%5cb", badPath}, {"B31", "GET", "/a%c0%af", badPath},
		{"B31", "GET", "//admin", bad}, {"B31", "GET", "//evil.test/x", bad}, {"B31", "GET", "/a\\b", bad}, {"B31", "GET", "/a#frag", bad},
		{"B31", "GET", "/anything/a/./b/../c", ok("/anything/a/c")}, {"B31", "GET", "/anything/%7Ea%2b", ok("/anything/~a%2B")}, {"B31", "GET", "/anything//x", ok("/anything/x")},
		{"B32", "get", "/anything/x", bad}, {"B32", "delete", "/anything/x", bad}, {"B32", "Delete", "/anything/x", bad},
		{"B32", "TRACE", "/anything/x", verdict{status: 405, code: "method_not_allowed"}}, {"B32", "TRACK", "/anything/x", verdict{status: 405, code: "method_not_allowed"}},
		{"B32", "PROPFIND", "/anything/x", ok("/anything/x")},
	} {
		t.Run(c.id+" "+c.method+" "+c.target, func(t *testing.T) {
			for name, way := range ways {
				if v := way(c.method, c.target); v != c.want {
					t.Errorf("%s: %+v, want %+v", name, v, c.want)
				}
			}
		})
	}
	t.Run("B32 methods that are no token", func(t *testing.T) {
		for name, way := range ways {
			for _, m := range []string{"G(T", "G@T", "\xc9T", "{}"} {
				if v := way(m, "/anything/x"); v.status != 0 && v.status != 400 || v.target != "" {
					t.Errorf("%s: %q: %+v", name, m, v)
				}
			}
		}
	})
	t.Run("B32 overriding headers", func(t *testing.T) {
		for name, way := range ways {
			if v := way("POST", "/anything/x", "x-http-method-override", "DELETE", "x-http-method", "DELETE", "x-method-override", "DELETE",
				"x_http_method_override", "DELETE", "x_http-method", "DELETE", "x_method_override", "DELETE"); v != ok("/anything/x") {
				t.Errorf("%s: %+v", name, v)
			}
			for _, o := range g.quiet {
				for _, r := range o.Requests() {
					if strings.Contains(fmt.Sprint(r.Header), "DELETE") {
						t.Errorf("%s: the origin saw %v", name, r.Header)
					}
				}
			}
		}
	})
	t.Run("B30 unknown methods and allow lists", func(t *testing.T) {
		c := g.one()
		for target, want := range map[string]int{"/anything/public/x": 200, "/anything/publicx": 403, "/anything/public/../private": 403} {
			if a := get(t, c, g.bed.Evil.URL(target)); a.status != want {
				t.Errorf("%s: %+v", target, a)
			}
		}
		if a := do(t, c, "PROPFIND", g.bed.Evil.URL("/anything/public/x"), nil); a.status != http.StatusForbidden {
			t.Errorf("PROPFIND: %+v", a)
		}
	})
	g.safe(t)
}

func TestAttack_B32_request_line_in_an_h2_method(t *testing.T) {
	g := attacked(t, options{})
	h1only := testbed.NewOrigin(t, g.bed.CA, testbed.OriginOptions{Names: []string{"good.test"}, ALPN: []string{"http/1.1"}})
	for _, m := range []string{"GET /admin HTTP/1.1", "GET /x", "GET\t/x", "GÉT", "GET:", "G ET"} {
		tc := g.tls(t, h1only.HostPort(), "good.test", "h2")
		if a := newH2(t, g, tc).request(m, h1only.HostPort(), "/"); a.status == http.StatusOK {
			t.Errorf("B32 :method %q: %+v", m, a)
		}
	}
	for _, p := range []string{"/ HTTP/1.1", "/\x7f", "x", "http://evil.test/", "*", "//evil.test/"} {
		tc := g.tls(t, h1only.HostPort(), "good.test", "h2")
		if a := newH2(t, g, tc).request("GET", h1only.HostPort(), p); a.status == http.StatusOK {
			t.Errorf("B32 :path %q: %+v", p, a)
		}
	}
	if n := len(h1only.Requests()); n != 0 {
		t.Errorf("B32 %d requests reached the origin: %s", n, h1only.Requests()[0].Target)
	}
	g.safe(t)
}
