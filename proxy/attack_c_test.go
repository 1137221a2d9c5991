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

// entrances are the ways in of HTTP/1.1. A request is written with {M} for what stands
// before a target, {H} for the host and {A} for what the edge wants to see.
func (g *rig) entrances(t *testing.T) map[string]func(request string, wait time.Duration) ([]byte, bool) {
	fill := func(request, prefix, host, auth string) string {
		return strings.NewReplacer("{M}", prefix, "{H}", host, "{A}", auth).Replace(request)
	}
	good, plain := g.bed.Good.HostPort(), g.bed.Plain.HostPort()
	return map[string]func(string, time.Duration) ([]byte, bool){
		"tls": func(r string, wait time.Duration) ([]byte, bool) {
			return g.talk(g.good(t), fill(r, "", good, ""), wait)
		},
		"clear": func(r string, wait time.Duration) ([]byte, bool) {
			return g.talk(g.open(t, plain), fill(r, "", plain, ""), wait)
		},
		"absolute": func(r string, wait time.Duration) ([]byte, bool) {
			return g.talk(g.dial(t), fill(r, "http://"+plain, plain, proxyAuth("one", tokenOne)), wait)
		},
	}
}

const smuggled = "GET {M}/anything/smuggled HTTP/1.1\r\nHost: {H}\r\n{A}\r\n"

func TestAttack_C01_C03_C04_C05_C22_heads(t *testing.T) {
	g := attacked(t, options{})
	g.use(pathPolicy)
	post := func(fields string) string {
		return "POST {M}/anything/x HTTP/1.1\r\nHost: {H}\r\n{A}" + fields + "\r\n"
	}
	for name, c := range map[string]struct {
		request string
		status  int
	}{
		"C01 CL and TE":              {post("Content-Length: 4\r\nTransfer-Encoding: chunked\r\n") + "0\r\n\r\n" + smuggled, 400},
		"C01 TE and CL":              {post("Transfer-Encoding: chunked\r\nContent-Length: 4\r\n") + "0\r\n\r\n" + smuggled, 400},
		"C01 TE twice":               {post("Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n") + "0\r\n\r\n" + smuggled, 400},
		"C01 TE list":                {post("Transfer-Encoding: gzip, chunked\r\n") + "0\r\n\r\n" + smuggled, 501},
		"C01 TE with blank":          {post("Transfer-Encoding : chunked\r\n") + "0\r\n\r\n" + smuggled, 400},
		"C01 TE with tab":            {post("Transfer-Encoding:\tchunked\x0b\r\n") + "0\r\n\r\n" + smuggled, 400},
		"C01 TE xchunked":            {post("Transfer-Encoding: xchunked\r\n") + "0\r\n\r\n" + smuggled, 501},
		"C01 TE folded":              {post("Transfer-Encoding:\r\n chunked\r\n") + "0\r\n\r\n" + smuggled, 400},
		"C01 TE on HTTP/1.0":         {strings.Replace(post("Transfer-Encoding: chunked\r\n"), "HTTP/1.1", "HTTP/1.0", 1) + "0\r\n\r\n" + smuggled, 400},
		"C03 3,3":                    {post("Content-Length: 3,3\r\n") + "abc" + smuggled, 400},
		"C03 twice the same":         {post("Content-Length: 3\r\nContent-Length: 3\r\n") + "abc" + smuggled, 400},
		"C03 twice":                  {post("Content-Length: 3\r\nContent-Length: 0\r\n") + "abc" + smuggled, 400},
		"C03 +3":                     {post("Content-Length: +3\r\n") + "abc" + smuggled, 400},
		"C03 0x3":                    {post("Content-Length: 0x3\r\n") + "abc" + smuggled, 400},
		"C03 -1":                     {post("Content-Length: -1\r\n") + "abc" + smuggled, 400},
		"C03 empty":                  {post("Content-Length: \r\n") + "abc" + smuggled, 400},
		"C03 0003":                   {post("Content-Length: 0003\r\n") + "abc" + smuggled, 400},
		"C03 1_0":                    {post("Content-Length: 1_0\r\n") + "abc" + smuggled, 400},
		"C03 trailing blank":         {post("Content-Length: 3 \r\n") + "abc" + smuggled, 400},
		"C03 19 digits":              {post("Content-Length: 9999999999999999999\r\n") + "abc" + smuggled, 400},
		"C03 blank before the colon": {post("Content-Length : 3\r\n") + "abc" + smuggled, 400},
		"C04 obs-fold":               {post("X-A: b\r\n c\r\n") + smuggled, 400},
		"C04 first line folded":      {"POST {M}/anything/x HTTP/1.1\r\n X: y\r\nHost: {H}\r\n{A}\r\n", 400},
		"C05 bare LF":                {"GET {M}/anything/x HTTP/1.1\nHost: {H}\n{A}\n", 400},
		"C05 bare LF in the block":   {"GET {M}/anything/x HTTP/1.1\r\nHost: {H}\r\n{A}X: a\nY: b\r\n\r\n", 400},
		"C05 bare CR":                {"GET {M}/anything/x HTTP/1.1\r\nHost: {H}\r\n{A}X: a\rY: b\r\n\r\n", 400},
		"C05 NUL":                    {"GET {M}/anything/x HTTP/1.1\r\nHost: {H}\r\n{A}X: a\x00b\r\n\r\n", 400},
		"C05 NUL in the target":      {"GET {M}/anything/\x00 HTTP/1.1\r\nHost: {H}\r\n{A}\r\n", 400},
		"C05 two blanks":             {"GET  {M}/anything/x HTTP/1.1\r\nHost: {H}\r\n{A}\r\n", 400},
		"C05 two hosts":              {"GET {M}/anything/x HTTP/1.1\r\nHost: {H}\r\nHost: evil.test\r\n{A}\r\n", 400},
		"C05 host list":              {"GET {M}/anything/x HTTP/1.1\r\nHost: {H}, evil.test\r\n{A}\r\n", 400},
		"C05 host with user":         {"GET {M}/anything/x HTTP/1.1\r\nHost: u@{H}\r\n{A}\r\n", 400},
		"C05 no colon":               {"GET {M}/anything/x HTTP/1.1\r\nHost: {H}\r\n{A}nonsense\r\n\r\n", 400},
		"C05 name with blank":        {"GET {M}/anything/x HTTP/1.1\r\nHost: {H}\r\n{A}X Y: 1\r\n\r\n", 400},
		"C05 HTTP/9.9":               {"GET {M}/anything/x HTTP/9.9\r\nHost: {H}\r\n{A}\r\n", 505},
		"C05 HTTP/2.0":               {"GET {M}/anything/x HTTP/2.0\r\nHost: {H}\r\n{A}\r\n", 505},
		"C14 TRACE":                  {"TRACE {M}/anything/x HTTP/1.1\r\nHost: {H}\r\n{A}\r\n", 405},
		"C14 TRACK":                  {"TRACK {M}/anything/x HTTP/1.1\r\nHost: {H}\r\n{A}\r\n", 405},
		"C15 unknown expectation":    {post("Content-Length: 3\r\nExpect: 200-maybe\r\n") + "abc" + smuggled, 417},
		"C22 many fields":            {"GET {M}/anything/x HTTP/1.1\r\nHost: {H}\r\n{A}" + strings.Repeat("A: b\r\n", 10000) + "\r\n", 431},
		"C22 1,000 cookies":          {"GET {M}/anything/x HTTP/1.1\r\nHost: {H}\r\n{A}" + strings.Repeat("Cookie: a=b\r\n", 1000) + "\r\n", 431},
		"C22 long field":             {"GET {M}/anything/x HTTP/1.1\r\nHost: {H}\r\n{A}X: " + strings.Repeat("x", 20<<10) + "\r\n\r\n", 431},
		"C22 large head":             {"GET {M}/anything/x HTTP/1.1\r\nHost: {H}\r\n{A}" + strings.Repeat("X: "+strings.Repeat("x", 1000)+"\r\n", 100) + "\r\n", 431},
		"C22 2 MiB":                  {"GET {M}/anything/x HTTP/1.1\r\nHost: {H}\r\n{A}X: " + strings.Repeat("x", 2<<20) + "\r\n\r\n", 431},
		"C22 long target":            {"GET {M}/anything/" + strings.Repeat("x", 20<<10) + " HTTP/1.1\r\nHost: {H}\r\n{A}\r\n", 414},
	} {
		t.Run(name, func(t *testing.T) {
			g.untouched(t, func() {
				for way, talk := range g.entrances(t) {
					got, closed := talk(c.request, 3*time.Second)
					all := answers(t, got)
					if !closed || len(all) != 1 || all[0].status != c.status {
						t.Errorf("%s: closed=%v %.300q", way, closed, got)
						continue
					}
					isProblem(t, all[0])
				}
			})
		})
	}
	g.use(basePolicy)
	g.safe(t)
}

func TestAttack_C06_chunks(t *testing.T) {
	g := attacked(t, options{})
	g.use(pathPolicy)
	quiet := testbed.NewOrigin(t, g.bed.CA, testbed.OriginOptions{ALPN: []string{"http/1.1"}})
	sink := testbed.NewOrigin(t, g.bed.CA, testbed.OriginOptions{})
	for name, body := range map[string]string{
		"C06 LF in extension": "3;a\nxx\r\nabc\r\n0\r\n\r\n", "C06 bare LF": "3\nabc\r\n0\r\n\r\n", "C06 0x3": "0x3\r\nabc\r\n0\r\n\r\n", "C06 17 digits": "00000000000000003\r\nabc\r\n0\r\n\r\n",
		"C06 huge": "ffffffffffffffff\r\nabc", "C06 20 KB extension": "3;" + strings.Repeat("x", 20<<10) + "\r\nabc\r\n0\r\n\r\n", "C06 other line end": "3\r\nabcXX0\r\n\r\n",
		"C06 empty size": "\r\nabc\r\n0\r\n\r\n", "C06 negative": "-3\r\nabc\r\n0\r\n\r\n", "C06 plus": "+3\r\nabc\r\n0\r\n\r\n", "C06 blank": " 3\r\nabc\r\n0\r\n\r\n",
		"C06 one more byte": "3\r\nabcd\r\n0\r\n\r\n", "C06 after a good chunk": "3\r\nabc\r\nzz\r\n", "C06 framing in a trailer": "0\r\nContent-Length: 5\r\n\r\n", "C06 10,000 trailers": "0\r\n" + strings.Repeat("X: y\r\n", 10000) + "\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			for _, o := range []*testbed.Origin{quiet, sink} {
				tc := g.tls(t, o.HostPort(), "good.test")
				got, closed := g.talk(tc, "POST /upload HTTP/1.1\r\nHost: "+o.HostPort()+"\r\nTransfer-Encoding: chunked\r\n\r\n"+body+strings.NewReplacer("{M}", "", "{H}", o.HostPort(), "{A}", "").Replace(smuggled), 3*time.Second)
				all := answers(t, got)
				if !closed || len(all) > 1 || len(all) == 1 && all[0].status < 400 {
					t.Errorf("closed=%v %.300q", closed, got)
				}
				// The upstream connection of a broken body is not used again.
				bad := -1
				for _, r := range o.Requests() {
					if strings.Contains(r.Target, "smuggled") {
						t.Errorf("the origin was asked for %s", r.Target)
					}
					if r.Target == "/upload" {
						bad = r.Conn
						if r.BodyErr == "" && r.BodySHA256 != "" && r.Trailer != nil {
							t.Errorf("the origin saw a whole body of %d bytes", r.BodyBytes)
						}
					}
				}
				next, _ := g.talk(g.tls(t, o.HostPort(), "good.test"), "GET /status/204 HTTP/1.1\r\nHost: "+o.HostPort()+"\r\nConnection: close\r\n\r\n", 3*time.Second)
				if a := answers(t, next); len(a) != 1 || a[0].status != http.StatusNoContent {
					t.Errorf("the next request: %q", next)
				}
				if last := o.Last(t); last.Conn == bad && last.Proto == "HTTP/1.1" && bad >= 0 {
					t.Error("the connection of the broken body was used again")
				}
			}
		})
	}
	g.use(basePolicy)
	g.safe(t)
}

func TestAttack_C07_trailers(t *testing.T) {
	g := attacked(t, options{})
	h1only := testbed.NewOrigin(t, g.bed.CA, testbed.OriginOptions{ALPN: []string{"http/1.1"}})
	h2too := testbed.NewOrigin(t, g.bed.CA, testbed.OriginOptions{})
	const evil = "evil-in-a-trailer"
	names := []string{"authorization", "host", "x-api-key", "cookie", "proxy-authorization", "x-other"}
	lines := ""
	for _, n := range names {
		lines += n + ": " + evil + "\r\n"
	}
	check := func(t *testing.T, o *testbed.Origin, grpc bool) {
		t.Helper()
		last := o.Last(t)
		for k, vs := range last.Trailer {
			if strings.Join(vs, "") != "" && (!grpc || k != "X-Other") {
				t.Errorf("the origin saw the trailer %s: %q", k, vs)
			}
		}
		if auth := last.Header["Authorization"]; len(auth) != 1 || auth[0] != "Bearer "+canary || strings.Contains(fmt.Sprint(last.Header), evil) {
			t.Errorf("the origin saw %v", last.Header)
		}
	}
	for _, o := range []*testbed.Origin{h1only, h2too} {
		t.Run("C07 h1", func(t *testing.T) {
			got, _ := g.talk(g.tls(t, o.HostPort(), "good.test"), "POST /upload HTTP/1.1\r\nHost: "+o.HostPort()+"\r\nTransfer-Encoding: chunked\r\nTrailer: Authorization, X-Api-Key, X-Other\r\nConnection: close\r\n\r\n3\r\nabc\r\n0\r\nauthorization: "+evil+"\r\nx-api-key: "+evil+"\r\nx-other: "+evil+"\r\n\r\n", 2*time.Second)
			if a := answers(t, got); len(a) != 1 || a[0].status != http.StatusOK {
				t.Fatalf("%q", got)
			}
			check(t, o, false)
		})
		t.Run("C07 h1 names that frame or route", func(t *testing.T) {
			got, closed := g.talk(g.tls(t, o.HostPort(), "good.test"), "POST /upload HTTP/1.1\r\nHost: "+o.HostPort()+"\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n"+lines+"content-length: 5\r\n\r\n", 2*time.Second)
			if a := answers(t, got); len(a) == 1 && a[0].status == http.StatusOK || !closed {
				t.Errorf("%q", got)
			}
		})
		for _, grpc := range []bool{false, true} {
			more := []string{"trailer", "x-api-key, x-other, authorization, host", "te", "trailers"}
			if grpc {
				more = append(more, "content-type", "application/grpc")
			}
			t.Run(fmt.Sprintf("C07 h2 grpc=%v", grpc), func(t *testing.T) {
				a := newH2(t, g, g.tls(t, o.HostPort(), "good.test", "h2")).post(o.HostPort(), "/upload", "abc", []string{"x-api-key", evil, "x-other", evil, "x-unannounced", evil}, more...)
				if a.status != http.StatusOK {
					t.Fatalf("%+v; %+v", a, g.records.list()[len(g.records.list())-1])
				}
				check(t, o, grpc)
				for _, name := range []string{"authorization", "host", "content-length", "transfer-encoding", ":path"} {
					if a := newH2(t, g, g.tls(t, o.HostPort(), "good.test", "h2")).post(o.HostPort(), "/upload", "abc", []string{name, evil}, more...); a.err == nil && a.status < 400 {
						t.Errorf("trailer %s: %+v", name, a)
					}
				}
				if strings.Contains(fmt.Sprint(o.Last(t).Trailer["Authorization"]), evil) {
					t.Error("the origin saw it")
				}
			})
		}
	}
	t.Run("C07 answers", func(t *testing.T) {
		raw := testbed.NewRaw(t, testbed.RawOptions{CA: g.bed.CA, Serve: testbed.Answer(false,
			"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum, Set-Cookie\r\n\r\n3\r\nabc\r\n0\r\nX-Sum: 1\r\nSet-Cookie: s="+canary+"\r\nAlt-Svc: h3\r\nConnection: x\r\n\r\n")})
		got, _ := g.talk(g.tls(t, fmt.Sprintf("good.test:%d", raw.Port()), "good.test"), fmt.Sprintf("GET / HTTP/1.1\r\nHost: good.test:%d\r\nTE: trailers\r\nConnection: close\r\n\r\n", raw.Port()), 2*time.Second)
		if s := string(got); !strings.Contains(s, "X-Sum: 1") || strings.Contains(s, "Set-Cookie") || strings.Contains(s, "Alt-Svc") {
			t.Errorf("%q", got)
		}
	})
	g.safe(t)
}

func TestAttack_C09_C10_C12_fields_that_end_here(t *testing.T) {
	t.Parallel() // it mostly waits
	g := attacked(t, options{})
	h1only := testbed.NewOrigin(t, g.bed.CA, testbed.OriginOptions{ALPN: []string{"http/1.1"}})
	const secret2 = "proxy-secret-on-the-inside"
	basic := strings.TrimSuffix(strings.TrimPrefix(proxyAuth("one", tokenOne), "Proxy-Authorization: "), "\r\n")
	fields := map[string]string{
		"Keep-Alive": "timeout=5", "Proxy-Connection": "keep-alive", "Via": "1.1 x", "X-Forwarded-For": "1.2.3.4", "X-Forwarded-Host": "evil.test", "X-Forwarded-Proto": "http",
		"Forwarded": "for=1.2.3.4;host=evil.test", "CDN-Loop": "x", "X-Real-IP": "1.2.3.4", "TE": "gzip, deflate;q=0.5", "Upgrade": "h2c", "HTTP2-Settings": "AAMAAABkAAQAAP__",
		"Connection": "keep-alive, Authorization, X-Nominated, Upgrade, HTTP2-Settings", "X-Nominated": "1", "Proxy-Authorization": basic, "Proxy-Authenticate": "Basic",
		"Authorization": "Bearer " + secret2, "authorization": "Bearer " + secret2,
	}
	gone := func(t *testing.T, r testbed.Request, secure bool) {
		t.Helper()
		for _, k := range []string{"Keep-Alive", "Proxy-Connection", "Via", "X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto", "Forwarded", "Cdn-Loop", "X-Real-Ip", "Te", "Upgrade",
			"Http2-Settings", "Connection", "X-Nominated", "Proxy-Authorization", "Proxy-Authenticate"} {
			if v := r.Header[k]; v != nil {
				t.Errorf("C09 C10 the origin saw %s: %q", k, v)
			}
		}
		if auth := r.Header["Authorization"]; secure && (len(auth) != 1 || auth[0] != "Bearer "+canary) {
			t.Errorf("C12 the origin saw Authorization %q", auth)
		}
	}
	text := ""
	for k, v := range fields {
		text += k + ": " + v + "\r\n"
	}
	for _, o := range []*testbed.Origin{h1only, g.bed.Good} {
		t.Run("C09 C10 C12 h1 in TLS", func(t *testing.T) {
			got, _ := g.talk(g.tls(t, o.HostPort(), "good.test"), "GET /status/200 HTTP/1.1\r\nHost: "+o.HostPort()+"\r\n"+text+"\r\n", 300*time.Millisecond)
			if a := answers(t, got); len(a) != 1 || a[0].status != http.StatusOK {
				t.Fatalf("%q", got)
			}
			gone(t, o.Last(t), true)
		})
		t.Run("C09 C10 C12 h2", func(t *testing.T) {
			var pairs []string
			for k, v := range fields {
				switch k {
				case "Connection", "Proxy-Connection", "Keep-Alive", "Upgrade", "TE": // refused as a whole, see below
				default:
					pairs = append(pairs, strings.ToLower(k), v)
				}
			}
			if a := newH2(t, g, g.tls(t, o.HostPort(), "good.test", "h2")).request("GET", o.HostPort(), "/status/200", pairs...); a.status != http.StatusOK {
				t.Fatalf("%+v", a)
			}
			r := o.Last(t)
			delete(r.Header, "X-Nominated") // nothing nominated it
			gone(t, r, true)
		})
	}
	t.Run("C09 connection-specific fields on h2", func(t *testing.T) {
		for _, f := range [][2]string{{"connection", "close"}, {"keep-alive", "x"}, {"proxy-connection", "x"}, {"upgrade", "h2c"}, {"te", "gzip"}, {"transfer-encoding", "chunked"}} {
			g.untouched(t, func() {
				if a := newH2(t, g, g.good(t, "h2")).request("GET", g.goodHost(), "/", f[0], f[1]); a.err == nil && a.status < 400 {
					t.Errorf("%v: %+v", f, a)
				}
			})
		}
	})
	t.Run("C03 lengths on h2", func(t *testing.T) {
		for _, cl := range [][]string{{"content-length", "3", "content-length", "3"}, {"content-length", "x"}, {"content-length", "+3"}, {"content-length", "2"}, {"content-length", "4"}, {"content-length", "3, 3"}, {"content-length", "03"}} {
			if a := newH2(t, g, g.tls(t, h1only.HostPort(), "good.test", "h2")).post(h1only.HostPort(), "/upload", "abc", nil, cl...); a.err == nil && a.status < 400 {
				t.Errorf("%v: %+v", cl, a)
			}
		}
	})
	t.Run("C10 absolute form", func(t *testing.T) {
		g.use(pathPolicy)
		plain := g.bed.Plain.HostPort()
		got, _ := g.talk(g.dial(t), "GET http://"+plain+"/status/200 HTTP/1.1\r\nHost: "+plain+"\r\n"+text+"\r\n", 300*time.Millisecond)
		if a := answers(t, got); len(a) != 1 || a[0].status != http.StatusOK {
			t.Fatalf("%q", got)
		}
		gone(t, g.bed.Plain.Last(t), false)
		g.untouched(t, func() {
			got, closed := g.talk(g.dial(t), "GET http://"+plain+"/ HTTP/1.1\r\nHost: "+plain+"\r\n"+proxyAuth("one", tokenOne)+"Proxy-authorization: Basic eDp5\r\n\r\n", time.Second)
			refusedOnce(t, got, http.StatusBadRequest, "bad_request")
			if !closed {
				t.Error("open")
			}
		})
	})
	for _, o := range []*testbed.Origin{h1only, g.bed.Good, g.bed.Plain, g.bed.Evil} {
		if s := string(o.Captured()); strings.Contains(s, tokenOne) || strings.Contains(s, strings.TrimPrefix(basic, "Basic ")) {
			t.Error("C10 the proxy token reached an origin")
		}
	}
	if s := fmt.Sprintf("%+v %+v", g.records.list(), g.logs.All()); strings.Contains(s, tokenOne) || strings.Contains(s, strings.TrimPrefix(basic, "Basic ")) || strings.Contains(s, secret2) {
		t.Error("C10 the proxy token, or a client's own, is in records or logs")
	}
	g.use(basePolicy)
	g.safe(t)
}

func TestAttack_C13_line_ends_in_a_secret(t *testing.T) {
	t.Parallel() // it mostly waits
	g := attacked(t, options{})
	// What the source check cannot see: a line end that comes out of the template.
	p := strings.Replace(basePolicy, `valueTemplate: "Bearer {{ .token }}"`, `valueTemplate: "{{ .token | b64dec }}"`, 1)
	for name, v := range map[string]string{
		"C13 CRLF": "eA0KWC1FdmlsOiAx", "C13 LF": "eApIb3N0OiBl", "C13 NUL": "eAA=", "C13 trailing line end": "eAo=", "C13 leading blank": "IHg=", "C13 empty": "Ig==", "C13 not UTF-8": "//79",
	} {
		t.Run(name, func(t *testing.T) {
			g.put("acme", "gh-source", "static_headers", headerSpec(v))
			g.use(p)
			if name == "C13 empty" {
				return // a quotation mark is a value
			}
			g.untouched(t, func() {
				for _, h2 := range []bool{false, true} {
					a := get(t, g.client("one", tokenOne, h2), g.bed.Good.URL("/status/200"))
					if a.status != http.StatusServiceUnavailable || a.header.Get("X-Egressd-Error") != "template_failed" {
						t.Errorf("h2=%v: %+v", h2, a)
					}
					isProblem(t, a)
				}
				got, _ := g.talk(g.good(t), "GET /ws HTTP/1.1\r\nHost: "+g.goodHost()+"\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n", 300*time.Millisecond)
				refusedOnce(t, got, http.StatusServiceUnavailable, "template_failed")
			})
		})
	}
	if _, err := g.compile(strings.Replace(basePolicy, `valueTemplate: "Bearer {{ .token }}"`, `valueTemplate: "Bearer {{ .token }}\r\nX-Evil: 1"`, 1)); err == nil {
		t.Error("C13 a template with a line end compiles")
	}
	g.put("acme", "gh-source", "static_headers", headerSpec(canary))
	g.use(basePolicy)
	g.safe(t)
}

func TestAttack_C21_no_connection_serves_two_sandboxes(t *testing.T) {
	g := attacked(t, options{})
	pol := basePolicy + strings.ReplaceAll(strings.ReplaceAll(basePolicy[strings.Index(basePolicy, "  - id: one"):strings.Index(basePolicy, "  - id: two")], "id: one", "id: three"), "TOKENONE", tokenHash(tokenThree))
	g.use(pol)
	origin := testbed.NewOrigin(t, g.bed.CA, testbed.OriginOptions{ALPN: []string{"http/1.1"}})
	half := "GET /anything/half HTTP/1.1\r\nX: "
	users := map[string][2]string{"one": {"one", tokenOne}, "three": {"three", tokenThree}}
	seen := map[int]string{}
	for round := range 3 {
		for user, login := range users {
			status, nc, _ := g.connect(origin.HostPort(), login[0], login[1])
			if status != http.StatusOK {
				t.Fatal(status)
			}
			tc := tlsOn(t, g, nc)
			// A body that is half a request, framed well, ill, and with its connection cut.
			switch round {
			case 0:
				g.talk(tc, fmt.Sprintf("POST /status/200 HTTP/1.1\r\nHost: %s\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s", origin.HostPort(), len(half), half), time.Second)
			case 1:
				g.talk(tc, fmt.Sprintf("POST /status/200 HTTP/1.1\r\nHost: %s\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%sX", origin.HostPort(), len(half), half), 300*time.Millisecond)
			case 2:
				_, _ = io.WriteString(tc, fmt.Sprintf("POST /upload HTTP/1.1\r\nHost: %s\r\nContent-Length: 5000\r\n\r\n%s", origin.HostPort(), half))
			}
			_ = tc.Close()
			if a := get(t, g.client(login[0], login[1], false), origin.URL("/bearer?user="+user)); a.err != nil || strings.Contains(a.body, "half") {
				t.Errorf("C21 %+v", a)
			}
		}
	}
	for _, r := range origin.Requests() {
		user := strings.TrimPrefix(r.Target, "/bearer?user=")
		if user == r.Target {
			continue
		}
		if was, ok := seen[r.Conn]; ok && was != user {
			t.Errorf("C21 connection %d carried %s's request after %s's", r.Conn, user, was)
		}
		seen[r.Conn] = user
		if auth := r.Header["Authorization"]; len(auth) != 1 || auth[0] != "Bearer "+canary {
			t.Errorf("C21 %s: %q", r.Target, auth)
		}
	}
	if len(seen) < 2 {
		t.Errorf("C21 nothing was tried: %v", seen)
	}
	g.safe(t)
}

func TestAttack_C23_slowloris(t *testing.T) {
	t.Parallel() // it mostly waits
	l := proxy.Limits{HandshakeTimeout: 700 * time.Millisecond, SniffTimeout: 500 * time.Millisecond, StallTimeout: 900 * time.Millisecond}
	g := attacked(t, options{limits: l})
	drip := func(c net.Conn, b string, every time.Duration) time.Duration {
		start := time.Now()
		go func() { // ends when the connection does
			for i := range b {
				if _, err := io.WriteString(c, b[i:i+1]); err != nil {
					return
				}
				time.Sleep(every)
			}
		}()
		_, _ = g.talk(c, "", 13*time.Second)
		return time.Since(start)
	}
	long := "GET / HTTP/1.1\r\nX: " + strings.Repeat("x", 500)
	t.Run("C23", func(t *testing.T) {
		for name, open := range map[string]func(t *testing.T) (net.Conn, string){
			"C23 head at the edge":      func(t *testing.T) (net.Conn, string) { return g.dial(t), long },
			"C23 head in TLS":           func(t *testing.T) (net.Conn, string) { return g.good(t), long },
			"C23 head in clear":         func(t *testing.T) (net.Conn, string) { return g.open(t, g.bed.Plain.HostPort()), long },
			"C23 CONNECT, then silence": func(t *testing.T) (net.Conn, string) { return g.open(t, g.goodHost()), "" },
			"C23 hello": func(t *testing.T) (net.Conn, string) {
				return g.open(t, g.goodHost()), string(clientHello(t, "good.test"))
			},
			"C23 hello, then silence": func(t *testing.T) (net.Conn, string) {
				return g.open(t, g.goodHost()), ""
			},
			"C23 body":                     func(t *testing.T) (net.Conn, string) { return g.good(t), "" },
			"C23 h2 preface, then silence": func(t *testing.T) (net.Conn, string) { return g.good(t, "h2"), "PRI * HT" },
		} {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				limit := 4 * time.Second
				if strings.Contains(name, "preface") {
					limit = 13 * time.Second // net/http's own 10 s
				}
				c, b := open(t)
				if name == "C23 hello, then silence" {
					_, _ = c.Write(clientHello(t, "good.test"))
				}
				if name == "C23 body" {
					_, _ = io.WriteString(c, "POST /upload HTTP/1.1\r\nHost: "+g.goodHost()+"\r\nContent-Length: 100\r\n\r\nabc")
				}
				if d := drip(c, b, 50*time.Millisecond); d > limit {
					t.Errorf("it lived for %v", d)
				}
			})
		}
		t.Run("C23 reading nothing", func(t *testing.T) {
			t.Parallel()
			tc := g.good(t)
			_, _ = io.WriteString(tc, "GET /download?n=200000000 HTTP/1.1\r\nHost: "+g.goodHost()+"\r\n\r\n")
			g.records.wait(t, func(a audit.Record) bool { return a.Path == "/download" && a.Outcome == "aborted" })
		})
	})
	g.safe(t)
}
