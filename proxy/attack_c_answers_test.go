package proxy_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/egressd/egressd/internal/audit"
	"github.com/egressd/egressd/internal/testbed"
	"github.com/egressd/egressd/proxy"
	"github.com/egressd/egressd/store"
)

// scripted is an origin for good.test whose answers are the test's own bytes.
func scripted(t *testing.T, g *rig, hold bool, answers ...string) *testbed.Raw {
	return testbed.NewRaw(t, testbed.RawOptions{CA: g.bed.CA, Serve: testbed.Answer(hold, answers...)})
}

// rawGet asks a scripted origin through the proxy and returns every byte of the answer.
func (g *rig) rawGet(t *testing.T, port uint16, method, path, fields string) ([]byte, bool) {
	t.Helper()
	host := fmt.Sprintf("good.test:%d", port)
	return g.talk(g.tls(t, host, "good.test"), method+" "+path+" HTTP/1.1\r\nHost: "+host+"\r\n"+fields+"\r\n", 2*time.Second)
}

func TestAttack_C15_expect_continue(t *testing.T) {
	t.Parallel() // it mostly waits
	g := attacked(t, options{})
	head := func(path string) string {
		return "POST " + path + " HTTP/1.1\r\nHost: " + g.goodHost() + "\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n"
	}
	t.Run("C15 the body never comes", func(t *testing.T) {
		start := time.Now()
		got, closed := g.talk(g.good(t), head("/upload"), 6*time.Second)
		if d := time.Since(start); !closed || d > 5*time.Second || strings.Contains(string(got), " 200 ") {
			t.Errorf("closed=%v after %v: %q", closed, d, got)
		}
	})
	t.Run("C15 the body comes unasked", func(t *testing.T) {
		got, _ := g.talk(g.good(t), head("/upload")+"hello", time.Second)
		if s := string(got); !strings.HasSuffix(s, "\r\n\r\n5\n") || strings.Count(s, " 200 OK") != 1 {
			t.Errorf("%q", got)
		}
	})
	t.Run("C15 a denial comes before 100", func(t *testing.T) {
		g.use(pathPolicy)
		g.untouched(t, func() {
			got, closed := g.talk(g.good(t), head("/admin"), time.Second)
			refusedOnce(t, got, http.StatusForbidden, "policy_denied")
			_ = closed
		})
		g.use(basePolicy)
	})
	for name, answer := range map[string]string{
		"C15 early 417": "HTTP/1.1 417 Expectation Failed\r\nContent-Length: 0\r\n\r\n", "C15 early 401": "HTTP/1.1 401 Unauthorized\r\nContent-Length: 2\r\n\r\nno",
	} {
		t.Run(name, func(t *testing.T) {
			o := scripted(t, g, false, answer)
			host := fmt.Sprintf("good.test:%d", o.Port())
			got, _ := g.talk(g.tls(t, host, "good.test"), "POST / HTTP/1.1\r\nHost: "+host+"\r\nContent-Length: 100000\r\n\r\nsome", 2*time.Second)
			if a := answers(t, got); len(a) == 0 || a[len(a)-1].status != 417 && a[len(a)-1].status != 401 {
				t.Errorf("%q", got)
			}
		})
	}
	t.Run("C15 h2", func(t *testing.T) {
		if a := newH2(t, g, g.good(t, "h2")).post(g.goodHost(), "/upload", "hello", nil, "expect", "200-maybe"); a.status != http.StatusExpectationFailed {
			t.Errorf("unknown: %+v", a)
		}
		if a := newH2(t, g, g.good(t, "h2")).post(g.goodHost(), "/upload", "hello", nil, "expect", "100-continue"); a.status != http.StatusOK || a.body != "5\n" {
			t.Errorf("100-continue: %+v", a)
		}
	})
	g.safe(t)
}

func TestAttack_C16_interim_answers(t *testing.T) {
	g := attacked(t, options{})
	ok := "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
	hint := "HTTP/1.1 103 Early Hints\r\nLink: </x>\r\nSet-Cookie: s=" + canary + "\r\nAuthorization: x\r\n\r\n"
	for name, c := range map[string]struct {
		answer string
		status int
	}{
		"C16 twenty hints": {strings.Repeat(hint, 20) + ok, 200}, "C16 2,000 hints": {strings.Repeat(hint, 2000) + ok, 502}, "C16 100 for ever": {strings.Repeat("HTTP/1.1 100 Continue\r\n\r\n", 2000) + ok, 502},
		"C16 status 199":      {"HTTP/1.1 199 X\r\n\r\n" + ok, 200},
		"C16 unrequested 101": {"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nGET / HTTP/1.1\r\n\r\n", 502},
		"C16 framed 103":      {"HTTP/1.1 103 X\r\nContent-Length: 5\r\n\r\nhello" + ok, 502},
	} {
		t.Run(name, func(t *testing.T) {
			o := scripted(t, g, false, c.answer)
			got, _ := g.rawGet(t, o.Port(), "GET", "/", "Connection: close\r\n")
			n := strings.Count(string(got), "HTTP/1.1 1")
			if n > 5 || !strings.Contains(string(got), fmt.Sprintf("HTTP/1.1 %d ", c.status)) || strings.Contains(string(got), "Set-Cookie") {
				t.Errorf("%d interim: %.400q", n, got)
			}
			if c.status == 502 && strings.Contains(string(got), "HTTP/1.1 200") {
				t.Errorf("%.400q", got)
			}
		})
	}
	for _, h2 := range []bool{false, true} { // an h2 origin
		a := get(t, g.client("one", tokenOne, h2), g.bed.Good.URL("/hints?n=50"))
		if a.err != nil || a.status != http.StatusOK {
			t.Errorf("C16 h2=%v: %+v", h2, a)
		}
	}
	g.safe(t)
}

func TestAttack_C18_answers_without_a_body(t *testing.T) {
	t.Parallel() // it mostly waits
	g := attacked(t, options{})
	h1only := testbed.NewOrigin(t, g.bed.CA, testbed.OriginOptions{ALPN: []string{"http/1.1"}})
	for _, o := range []*testbed.Origin{g.bed.Good, h1only} {
		host := o.HostPort()
		if o == g.bed.Good { // teach the pool that it speaks h2
			get(t, g.client("one", tokenOne, true), o.URL("/"))
		}
		line := func(m, p string) string { return m + " " + p + " HTTP/1.1\r\nHost: " + host + "\r\n\r\n" }
		got, _ := g.talk(g.tls(t, host, "good.test"), line("GET", "/status/204")+line("GET", "/status/304")+line("HEAD", "/head")+line("HEAD", "/status/200")+line("GET", "/head"), 400*time.Millisecond)
		parts := strings.Split(string(got), "HTTP/1.1 ")
		if len(parts) != 6 || !strings.HasPrefix(parts[1], "204") || !strings.HasPrefix(parts[2], "304") || !strings.HasSuffix(parts[5], "\r\n\r\ntwelve bytes") {
			t.Fatalf("C18 %q", got)
		}
		for _, p := range parts[1:5] {
			if _, body, _ := strings.Cut(p, "\r\n\r\n"); body != "" {
				t.Errorf("C18 bytes behind an answer without a body: %q", p)
			}
		}
	}
	g.safe(t)
}

func TestAttack_C20_response_splitting(t *testing.T) {
	g := attacked(t, options{})
	for name, a := range map[string]string{
		"C20 CR in a value":      "HTTP/1.1 200 OK\r\nX: a\rSet-Cookie: b\r\nContent-Length: 0\r\n\r\n",
		"C20 LF in a value":      "HTTP/1.1 200 OK\r\nX: a\nSet-Cookie: b\r\nContent-Length: 0\r\n\r\n",
		"C20 bare LF":            "HTTP/1.1 200 OK\nContent-Length: 0\n\n",
		"C20 obs-fold":           "HTTP/1.1 200 OK\r\nX: a\r\n b\r\nContent-Length: 0\r\n\r\n",
		"C20 NUL":                "HTTP/1.1 200 OK\r\nX: a\x00b\r\nContent-Length: 0\r\n\r\n",
		"C20 64 KB field":        "HTTP/1.1 200 OK\r\nX: " + strings.Repeat("x", 64<<10) + "\r\nContent-Length: 0\r\n\r\n",
		"C20 1,000 Set-Cookie":   "HTTP/1.1 200 OK\r\n" + strings.Repeat("Set-Cookie: a=b\r\n", 1000) + "Content-Length: 0\r\n\r\n",
		"C20 status 99":          "HTTP/1.1 99 X\r\nContent-Length: 0\r\n\r\n",
		"C20 status 099":         "HTTP/1.1 099 X\r\nContent-Length: 0\r\n\r\n",
		"C20 status 1000":        "HTTP/1.1 1000 X\r\nContent-Length: 0\r\n\r\n",
		"C20 status +200":        "HTTP/1.1 +20 X\r\nContent-Length: 0\r\n\r\n",
		"C20 CR in the reason":   "HTTP/1.1 200 O\rK\r\nContent-Length: 0\r\n\r\n",
		"C20 two lengths":        "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nContent-Length: 5\r\n\r\nhello",
		"C20 equal lengths":      "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\nhello",
		"C20 CL and TE":          "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
		"C20 blank before colon": "HTTP/1.1 200 OK\r\nContent-Length : 5\r\n\r\nhello",
		"C20 length -1":          "HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\nhello",
		"C20 TE xchunked":        "HTTP/1.1 200 OK\r\nTransfer-Encoding: xchunked\r\n\r\nhello",
		"C20 HTTP/0.9":           "hello, world\r\n\r\n",
		"C20 HTTP/2.0":           "HTTP/2.0 200 OK\r\nContent-Length: 0\r\n\r\n",
		"C20 nothing":            "",
		"C20 half a head":        "HTTP/1.1 200 OK\r\nX: ",
		"C20 TLS inside":         "\x16\x03\x01\x00\x05hello\r\n\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			o := scripted(t, g, false, a)
			got, _ := g.rawGet(t, o.Port(), "GET", "/", "Connection: close\r\n")
			all := answers(t, got)
			if len(all) != 1 || all[0].status != http.StatusBadGateway {
				t.Fatalf("%.300q", got)
			}
			isProblem(t, all[0])
			c := g.client("one", tokenOne, true)
			if a := get(t, c, fmt.Sprintf("https://good.test:%d/", o.Port())); a.status != http.StatusBadGateway {
				t.Errorf("h2: %+v", a)
			}
		})
	}
	for name, a := range map[string]string{ // found only while the body is read: never a clean end
		"C20 bad chunk": "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\nzz\r\n", "C20 short body": "HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\nshort",
		"C20 chunks without an end": "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			o := scripted(t, g, false, a)
			for _, h2 := range []bool{false, true} {
				if a := get(t, g.client("one", tokenOne, h2), fmt.Sprintf("https://good.test:%d/", o.Port())); a.err == nil {
					t.Errorf("h2=%v: a clean end: %+v", h2, a)
				}
			}
		})
	}
	t.Run("C20 an answer that nobody asked for", func(t *testing.T) {
		o := scripted(t, g, true, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokHTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil", "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nnext")
		c := g.one()
		for range 4 {
			if a := get(t, c, fmt.Sprintf("https://good.test:%d/", o.Port())); a.body == "evil" {
				t.Errorf("the next request got it: %+v", a)
			}
		}
	})
	g.safe(t)
}

func TestAttack_C31_websocket_frames_are_opaque(t *testing.T) {
	t.Parallel() // it mostly waits
	g := attacked(t, options{})
	storm := bytes.Repeat([]byte{0x88, 0x80, 1, 2, 3, 4}, 1000)
	evil := bytes.Join([][]byte{
		frameHeader(0x82, true, 1<<63), frameHeader(0x82, false, 1<<63-1), {0x09, 0x80, 0, 0, 0, 0}, {0x89, 0x7e, 0xff, 0xff}, {0xf1, 0x00}, storm, []byte("GET / HTTP/1.1\r\nHost: evil.test\r\n\r\n"),
	}, nil)
	echo := testbed.NewRaw(t, testbed.RawOptions{CA: g.bed.CA, Serve: func(c *testbed.RawConn) {
		if _, err := c.ReadHead(); err != nil {
			return
		}
		_, _ = io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\nSet-Cookie: s="+canary+"\r\n\r\n")
		_, _ = io.Copy(c, c)
	}})
	host := fmt.Sprintf("good.test:%d", echo.Port())
	tc := g.tls(t, host, "good.test")
	up := "GET /ws HTTP/1.1\r\nHost: " + host + "\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
	got, _ := g.talk(tc, up+string(evil), time.Second)
	head, rest, _ := strings.Cut(string(got), "\r\n\r\n")
	if !strings.HasPrefix(head, "HTTP/1.1 101 ") || strings.Contains(head, "Set-Cookie") || rest != string(evil) {
		t.Errorf("C31 head %q, %d bytes of %d came back", head, len(rest), len(evil))
	}
	_ = tc.Close()
	g.records.wait(t, func(a audit.Record) bool {
		return a.Protocol == "websocket" && a.BytesIn == int64(len(evil)) && a.BytesOut == int64(len(evil)) && a.Source == "gh-source"
	})
	if sent := string(echo.Captured()); strings.Contains(sent, "evil.test") != strings.Contains(rest, "evil.test") || strings.Count(sent, canary) != 1 {
		t.Errorf("C31 the origin got the credential %d times", strings.Count(sent, canary))
	}
	for name, fields := range map[string]string{
		"C31 h2c":               "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n",
		"C31 two upgrades":      "Connection: Upgrade\r\nUpgrade: websocket\r\nUpgrade: h2c\r\n",
		"C31 upgrade list":      "Connection: Upgrade\r\nUpgrade: websocket, h2c\r\n",
		"C31 not nominated":     "Upgrade: websocket\r\n",
		"C31 TLS":               "Connection: Upgrade\r\nUpgrade: TLS/1.2\r\n",
		"C31 anything else":     "Connection: Upgrade\r\nUpgrade: tcp\r\n",
		"C31 with chunked body": "Connection: Upgrade\r\nUpgrade: tcp\r\nTransfer-Encoding: chunked\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			o := scripted(t, g, false, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n")
			body := ""
			if strings.Contains(fields, "chunked") {
				body = "0\r\n\r\n"
			}
			host := fmt.Sprintf("good.test:%d", o.Port())
			got, _ := g.talk(g.tls(t, host, "good.test"), "GET / HTTP/1.1\r\nHost: "+host+"\r\n"+fields+"\r\n"+body, 600*time.Millisecond)
			refusedOnce(t, got, http.StatusBadGateway, "upstream_failed")
			if sent := strings.ToLower(string(o.Captured())); strings.Contains(sent, "upgrade:") || strings.Contains(sent, "http2-settings") {
				t.Errorf("the origin saw %q", o.Captured())
			}
		})
	}
	g.safe(t)
}

func TestAttack_C32_streams_outlive_every_body_deadline(t *testing.T) {
	t.Parallel() // it mostly waits
	g := attacked(t, options{limits: proxy.Limits{SniffTimeout: 400 * time.Millisecond, HandshakeTimeout: 500 * time.Millisecond, StallTimeout: 600 * time.Millisecond, IdleTimeout: 1500 * time.Millisecond}})
	var wg sync.WaitGroup
	for _, h2 := range []bool{false, true} {
		for path, want := range map[string]int{"/sse?n=10&ms=300": 10, "/ndjson?n=10&ms=300": 10, "/wait?ms=1200": 1} {
			wg.Go(func() {
				a := get(t, g.client("one", tokenOne, h2), g.bed.Good.URL(path))
				lines := 0
				for line := range strings.Lines(a.body) {
					if strings.TrimSpace(line) != "" {
						lines++
					}
				}
				if a.err != nil || lines != want {
					t.Errorf("C32 h2=%v %s: %d of %d, %v", h2, path, lines, want, a.err)
				}
			})
		}
	}
	wg.Wait()
	c := newH2(t, g, g.good(t, "h2"))
	if a := c.post(g.goodHost(), "/trailers", "x", nil, "te", "trailers", "content-type", "application/grpc"); a.header.Get("X-Checksum") != "abc123" || a.header.Get("X-Late") != "yes" {
		t.Errorf("C32 trailers of a call: %+v", a)
	}
	g.safe(t)
}

func TestAttack_C33_nothing_is_cached(t *testing.T) {
	g := attacked(t, options{})
	n := 0
	var mu sync.Mutex
	count := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		n++
		if r.URL.Path == "/public" {
			w.Header().Set("Cache-Control", "public, max-age=3600")
		}
		w.Header().Set("ETag", `"x"`)
		_, _ = fmt.Fprint(w, n)
	})
	o := testbed.NewOrigin(t, g.bed.CA, testbed.OriginOptions{Handler: count})
	for i, path := range []string{"/public", "/public", "/plain", "/plain"} {
		a := get(t, g.client("one", tokenOne, i%2 == 1), o.URL(path))
		if a.body != fmt.Sprint(i+1) {
			t.Errorf("C33 answer %d is %q", i, a.body)
		}
		if cc := a.header.Get("Cache-Control"); path == "/plain" && cc != "private" {
			t.Errorf("C33 a credentialed answer goes out with Cache-Control %q", cc)
		}
	}
	g.safe(t)
}

func TestAttack_C34_error_pages(t *testing.T) {
	t.Parallel() // it mostly waits
	ns := testbed.NewNS(t)
	ns.On("drop.test", testbed.DNSAnswer{Drop: true})
	g := attacked(t, options{ns: []string{ns.Addr()}, hosts: map[string]string{"private.test": "10.1.2.3", "closed.test": "127.0.0.77"}})
	names := `domains: [good.test, drop.test, nx.test, private.test, closed.test]`
	g.use(strings.ReplaceAll(basePolicy, "domains: [good.test]", names))
	badTLS := testbed.NewOrigin(t, testbed.NewCA(t), testbed.OriginOptions{})
	garbage := scripted(t, g, false, "garbage "+canary+"\r\n\r\n")
	url := func(h string, port uint16) string { return fmt.Sprintf("https://%s:%d/secret/path?x=1", h, port) }
	for _, c := range []struct {
		name, url string
		status    int
		code      string
	}{
		{"C34 dial refused", url("closed.test", 1), 502, "upstream_unreachable"}, {"C34 no such name", url("nx.test", 443), 502, "no_such_host"},
		{"C34 DNS is silent", url("drop.test", 443), 502, "dns_failure"}, {"C34 forbidden address", url("private.test", 443), 403, "forbidden_address"},
		{"C34 TLS fails", url("good.test", badTLS.Port()), 502, "upstream_tls_failed"}, {"C34 garbage", url("good.test", garbage.Port()), 502, "upstream_failed"},
	} {
		t.Run(c.name, func(t *testing.T) {
			for _, h2 := range []bool{false, true} {
				a := get(t, g.client("one", tokenOne, h2), c.url)
				if a.err != nil || a.status != c.status || a.header.Get("X-Egressd-Error") != c.code {
					t.Fatalf("h2=%v: %+v %v", h2, a, a.err)
				}
				isProblem(t, a)
				page := fmt.Sprint(a.header, a.body)
				for _, tell := range []string{"10.1.2.3", "127.0.0.", ns.Addr(), ".test", "gh", "source", "acme", "goroutine", "secret", "x509", "dial", "lookup"} {
					if strings.Contains(page, tell) {
						t.Errorf("h2=%v: %q is in %s", h2, tell, page)
					}
				}
				g.note([]byte(page))
			}
		})
	}
	for _, status := range []store.Status{store.Disabled} {
		g.setStatus(t, "gh-source", status)
		a := get(t, g.one(), g.bed.Good.URL("/"))
		isProblem(t, a)
		if strings.Contains(a.body, "gh-source") || a.status != http.StatusServiceUnavailable {
			t.Errorf("C34 %+v", a)
		}
		g.setStatus(t, "gh-source", store.Active)
	}
	isProblem(t, get(t, g.client("one", tokenOne, true), g.bed.Good.URL("/reset")))
	g.use(basePolicy)
	g.safe(t)
}

func TestAttack_C35_log_injection(t *testing.T) {
	g := attacked(t, options{})
	send := []string{
		"GET /%0a%1b[2J%22%7d%7b%22admin%22:true HTTP/1.1\r\nHost: " + g.goodHost() + "\r\nUser-Agent: \x1b]0;owned\x07\r\nConnection: close\r\n\r\n",
		"GET /\x1b[2J HTTP/1.1\r\nHost: " + g.goodHost() + "\r\n\r\n", "GET / HTTP/1.1\r\nHost: \"}{\"admin\":true\r\n\r\n", "GET / HTTP/1.1\r\nHost: x\x1b[2J\r\n\r\n",
		"\"}{\"admin\":true / HTTP/1.1\r\nHost: x\r\n\r\n", "GET /" + strings.Repeat("%22", 3000) + " HTTP/1.1\r\nHost: " + g.goodHost() + "\r\nConnection: close\r\n\r\n",
	}
	for _, s := range send {
		g.talk(g.good(t), s, time.Second)
		g.talk(g.dial(t), strings.Replace(s, "GET /", "GET http://x/", 1), time.Second)
	}
	for _, sni := range []string{"a.test\nFAKE", "a\x1b[2J.test", `"}{"admin":true`} {
		g.talk(g.open(t, "good.test:GOODPORT"), string(clientHello(t, sni)), time.Second)
	}
	newH2(t, g, g.good(t, "h2")).request("GET", `"}{"admin":true`, "/")
	newH2(t, g, g.good(t, "h2")).request("A\x1b[2J", g.goodHost(), "/")
	g.connectAs(t, "\n\"}{\"admin\":true\x1b[2J", "wrong", g.goodHost())
	var out bytes.Buffer
	log, err := audit.NewWriter(&out, audit.Options{})
	if err != nil {
		t.Fatal(err)
	}
	all := g.records.list()
	for i := range all {
		log.Write(&all[i])
	}
	if err := log.Close(); err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSuffix(out.String(), "\n"), "\n")
	if len(lines) != len(all) || len(all) < 12 {
		t.Errorf("C35 %d lines for %d records", len(lines), len(all))
	}
	for _, line := range lines {
		var v map[string]any
		if err := json.Unmarshal([]byte(line), &v); err != nil || v["admin"] != nil || regexp.MustCompile(`[^ -~]`).MatchString(line) || len(line) > 8<<10 {
			t.Errorf("C35 %v: %q", err, line)
		}
	}
	for _, e := range g.logs.All() {
		if strings.ContainsAny(e.Message, "\x1b\n\"") {
			t.Errorf("C35 logged %q", e.Message)
		}
	}
	g.safe(t)
}

func TestAttack_C36_metrics_labels(t *testing.T) {
	g := attacked(t, options{})
	series := func() int { return strings.Count(string(g.metricsText(t)), "\n") }
	// Whatever codes there are are met once first.
	g.connectAs(t, "one", "wrong", "x.test:443")
	before := series()
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for j := range 40 {
				n := i*100 + j
				g.connectAs2(t, fmt.Sprintf("h%d.test:%d", n, 1000+n))
				got, _ := g.talk(g.dial(t), fmt.Sprintf("M%d http://h%d.test/p%d HTTP/1.1\r\nHost: h%d.test\r\n%s\r\n", n, n, n, n, proxyAuth(fmt.Sprint("u", n), "x")), 50*time.Millisecond)
				_ = got
			}
		})
	}
	wg.Wait()
	for i := range 20 {
		do(t, g.one(), fmt.Sprintf("M%d", i), g.bed.Good.URL(fmt.Sprintf("/status/%d", 200+i)), nil)
	}
	after := series()
	text := string(g.metricsText(t))
	if after > before+8 { // a refusal code and its like, seen for the first time
		t.Errorf("C36 %d lines of metrics, then %d", before, after)
	}
	if m := regexp.MustCompile(`h\d+\.test|M\d+|/p\d+|good\.test|gh-source|u\d\d`).FindString(text); m != "" {
		t.Errorf("C36 %q is in the metrics", m)
	}
	g.safe(t)
}

// connectAs2 is a refused CONNECT of sandbox one, for use in goroutines.
func (g *rig) connectAs2(t *testing.T, target string) {
	nc, err := net.Dial("tcp", g.addr)
	if err != nil {
		t.Error(err)
		return
	}
	defer func() { _ = nc.Close() }()
	got, _ := g.talk(nc, "CONNECT "+target+" HTTP/1.1\r\nHost: "+target+"\r\n"+proxyAuth("one", tokenOne)+"\r\n", time.Second)
	if !strings.HasPrefix(string(got), "HTTP/1.1 403 ") {
		t.Errorf("%s: %q", target, got)
	}
}
