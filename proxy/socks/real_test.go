package socks

import (
	"context"
	"crypto/tls"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/egressd/egressd/inject"
	"github.com/egressd/egressd/internal/testbed"
	"github.com/egressd/egressd/proxy/wire"
)

// origin is a SOCKS5 server that wants user and password, written apart from the package:
// whatever name it is asked for, it dials target. It keeps the logins it saw.
type origin struct {
	addr, target string
	user, pass   string
	mu           sync.Mutex
	logins       []string
	asked        []string
}

func newOrigin(t *testing.T, user, pass, target string) *origin {
	t.Helper()
	o := &origin{target: target, user: user, pass: pass}
	ln, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	o.addr = ln.Addr().String()
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			wg.Go(func() { o.serve(c) })
		}
	})
	t.Cleanup(func() { _ = ln.Close(); wg.Wait() })
	return o
}

func (o *origin) serve(c net.Conn) {
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(10 * time.Second))
	read := func(n int) []byte {
		b := make([]byte, n)
		if _, err := io.ReadFull(c, b); err != nil {
			return make([]byte, n)
		}
		return b
	}
	h := read(2)
	if methods := read(int(h[1])); h[0] != 5 || !strings.Contains(string(methods), "\x02") {
		_, _ = c.Write([]byte{5, 0xff})
		return
	}
	_, _ = c.Write([]byte{5, 2})
	user := string(read(int(read(2)[1])))
	pass := string(read(int(read(1)[0])))
	o.mu.Lock()
	o.logins = append(o.logins, user+":"+pass)
	o.mu.Unlock()
	if user != o.user || pass != o.pass {
		_, _ = c.Write([]byte{1, 9})
		return
	}
	_, _ = c.Write([]byte{1, 0})
	h = read(5)
	host := string(read(int(h[4])))
	port := binary.BigEndian.Uint16(read(2))
	if h[1] != 1 || h[3] != 3 {
		_, _ = c.Write([]byte{5, 7, 0, 1, 0, 0, 0, 0, 0, 0})
		return
	}
	o.mu.Lock()
	o.asked = append(o.asked, fmt.Sprint(host, ":", port))
	o.mu.Unlock()
	up, err := net.Dial("tcp", o.target)
	if err != nil {
		_, _ = c.Write([]byte{5, 5, 0, 1, 0, 0, 0, 0, 0, 0})
		return
	}
	defer up.Close()
	_, _ = c.Write([]byte{5, 0, 0, 3, 4, 'h', 'o', 's', 't', 0, 80})
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, _ = io.Copy(up, c)
		_ = up.(*net.TCPConn).CloseWrite()
	}()
	_, _ = io.Copy(c, up)
	_ = c.(*net.TCPConn).CloseWrite()
	<-done
}

func (o *origin) saw() (logins, asked []string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.logins, o.asked
}

func web(t *testing.T) string {
	t.Helper()
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		_, _ = fmt.Fprintf(w, "%s %s %d", r.Host, r.Method, len(body))
	}))
	t.Cleanup(s.Close)
	return s.Listener.Addr().String()
}

// TestServe_curl: curl talks SOCKS5 to an origin through egressd, with a login of its own
// or none, and the origin sees the credential's.
func TestServe_curl(t *testing.T) {
	pass := testbed.NewToken()
	target := web(t)
	for _, own := range []string{"", "sandbox:dummy", "sandbox:"} {
		t.Run("login "+own, func(t *testing.T) {
			o := newOrigin(t, "real", pass, target)
			g := newGate(t, gateOptions{upstream: o.addr, login: fixed("real", pass)})
			url := "socks5h://" + g.addr
			if own != "" {
				url = "socks5h://" + own + "@" + g.addr
			}
			out, err := run(t, "", "curl", "-sS", "--proxy", url, "-d", strings.Repeat("x", 100000), "http://inner.test/")
			if err != nil || out != "inner.test POST 100000" {
				t.Fatalf("%v: %s", err, out)
			}
			logins, asked := o.saw()
			if fmt.Sprint(logins, asked) != "[real:"+pass+"] [inner.test:80]" {
				t.Errorf("the origin saw %q, %q", logins, asked)
			}
			if code := g.code(t); code != "" {
				t.Error(code)
			}
			testbed.NoLeak(t, "what the sandbox got", g.toSandbox(), pass)
		})
	}
}

func TestServe_refusals(t *testing.T) {
	pass := testbed.NewToken()
	addr := newOrigin(t, "real", pass, web(t)).addr
	answering := func(s string) string {
		return testbed.NewRaw(t, testbed.RawOptions{IP: "127.0.0.1", Serve: func(c *testbed.RawConn) {
			_, _ = c.Read(make([]byte, 3))
			_, _ = io.WriteString(c, s)
		}}).Addr().String()
	}
	gone := func() (*inject.Login, error) { return nil, &wire.Refusal{Code: inject.CodeSourceDisabled} }
	require := func(u, p string) bool { return u == "sb" && p == "tok" }
	real := fixed("real", pass)
	for _, tc := range []struct {
		name, in, want, code string
		o                    gateOptions
	}{
		{"A08 cleartext", "\x05\x01\x00", "\x05\xff", wire.CodePlaintext, gateOptions{upstream: addr, login: real, noClear: true}},
		{"wrong password", "\x05\x01\x00", "\x05\xff", wire.CodeUpstreamLogin, gateOptions{upstream: addr, login: fixed("real", "wrong")}},
		{"wrong password, login given", "\x05\x01\x02" + login, "\x05\x02\x01\x01", wire.CodeUpstreamLogin, gateOptions{upstream: addr, login: fixed("real", "wrong")}},
		{"source gone", "\x05\x01\x00", "\x05\xff", inject.CodeSourceDisabled, gateOptions{upstream: addr, login: gone}},
		{"another projection", "\x05\x01\x00", "\x05\xff", wire.CodeUpstreamLogin, gateOptions{upstream: addr, login: func() (*inject.Login, error) { return nil, nil }}},
		{"an origin without login", "\x05\x01\x00", "\x05\xff", wire.CodeUpstream, gateOptions{upstream: answering("\x05\x00"), login: real}},
		{"an origin of another protocol", "\x05\x01\x00", "\x05\xff", wire.CodeUpstream, gateOptions{upstream: answering("HTTP/1.1 400\r\n"), login: real}},
		{"no methods", "\x05\x00", "\x05\xff", wire.CodeBadRequest, gateOptions{upstream: addr, login: real}},
		{"GSSAPI alone", "\x05\x01\x01", "\x05\xff", wire.CodeBadRequest, gateOptions{upstream: addr, login: real}},
		{"login of another version", "\x05\x01\x02\x05\x00", "\x05\x02\x01\x01", wire.CodeBadRequest, gateOptions{upstream: addr, login: real}},
		{"required and not offered", "\x05\x01\x00", "\x05\xff", wire.CodeAuthRequired, gateOptions{upstream: addr, login: real, require: require}},
		{"required and another", "\x05\x02\x00\x02\x01\x02sb\x03bad", "\x05\x02\x01\x01", wire.CodeAuthRequired, gateOptions{upstream: addr, login: real, require: require}},
		{"required and given, then BIND, which the origin refuses", "\x05\x02\x00\x02" + login + "\x05\x02\x00\x03\x01a\x00\x50", "\x05\x02\x01\x00" + rep(7), "", gateOptions{upstream: addr, login: real, require: require}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			g := newGate(t, tc.o)
			c, err := net.Dial("tcp4", g.addr)
			if err != nil {
				t.Fatal(err)
			}
			_ = c.SetDeadline(time.Now().Add(10 * time.Second))
			_, _ = io.WriteString(c, tc.in)
			out, err := io.ReadAll(c)
			_ = c.Close()
			if err != nil || string(out) != tc.want {
				t.Errorf("%q, %v; want %q", out, err, tc.want)
			}
			if code := g.code(t); code != tc.code {
				t.Errorf("code %q, want %q", code, tc.code)
			}
			testbed.NoLeak(t, "errors", []byte(fmt.Sprint(g.ended())), pass)
		})
	}
}

// TestServe_in_TLS: a SOCKS5 server behind TLS on both sides.
func TestServe_in_TLS(t *testing.T) {
	pass := testbed.NewToken()
	_, _, server, client := secure(t)
	seen := make(chan string, 1)
	ln, err := tls.Listen("tcp4", "127.0.0.1:0", server)
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		c, err := ln.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		b := make([]byte, 3+3+4+len(pass))
		_, _ = io.ReadFull(c, b[:3])
		_, _ = io.WriteString(c, "\x05\x02")
		_, _ = io.ReadFull(c, b[3:])
		seen <- string(b[3:])
		_, _ = io.WriteString(c, "\x01\x00")
	})
	t.Cleanup(func() { _ = ln.Close(); wg.Wait() })
	g := newGate(t, gateOptions{upstream: ln.Addr().String(), login: fixed("real", pass), serverTLS: server, clientTLS: client, noClear: true})
	c, err := (&tls.Dialer{Config: client}).DialContext(t.Context(), "tcp4", g.addr)
	if err != nil {
		t.Fatal(err)
	}
	_ = c.SetDeadline(time.Now().Add(10 * time.Second))
	_, _ = io.WriteString(c, "\x05\x01\x00")
	out, err := io.ReadAll(c)
	_ = c.Close()
	if err != nil || string(out) != "\x05\x00" {
		t.Errorf("%q, %v", out, err)
	}
	if got := <-seen; got != fmt.Sprintf("\x01\x04real%c%s", len(pass), pass) {
		t.Error("the origin got another login")
	}
}

// TestAccept_curl: curl comes in by SOCKS5 as it comes in at the proxy's port, by name and
// by address, with a token or known by its address.
func TestAccept_curl(t *testing.T) {
	target := web(t)
	_, targetPort, _ := net.SplitHostPort(target)
	var byAddr atomic.Bool
	var asked []Request // the acceptor's until it has ended
	ln, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			req, reply, err := Accept(context.WithoutCancel(t.Context()), c, 5*time.Second, allow("sb", "tok", byAddr.Load()))
			if err == nil {
				asked = append(asked, req)
				if req.Host == "denied.test" {
					_ = reply(NotAllowed)
				} else if up, err := net.Dial("tcp", target); err == nil {
					_ = reply(Succeeded)
					_ = pipe(c, up)
					_ = up.Close()
				}
			}
			_ = c.Close()
		}
	})
	t.Cleanup(func() { _ = ln.Close(); wg.Wait() })
	for _, tc := range []struct {
		proxy  string
		byAddr bool
		url    string
		want   string // of the output; "" for a refusal
	}{
		{"socks5h://sb:tok@", false, "http://inner.test/", "inner.test GET 0"},
		{"socks5h://", true, "http://inner.test/", "inner.test GET 0"},
		{"socks5://sb:tok@", false, "http://127.0.0.1:" + targetPort + "/", "127.0.0.1:" + targetPort + " GET 0"},
		{"socks5h://", true, "http://[::1]:81/", "[::1]:81 GET 0"},
		{"socks5h://", false, "http://inner.test/", ""},
		{"socks5h://sb:bad@", true, "http://inner.test/", ""},
		{"socks5h://sb:tok@", false, "http://denied.test/", ""},
	} {
		byAddr.Store(tc.byAddr)
		out, err := run(t, "", "curl", "-sS", "-m", "10", "--proxy", tc.proxy+ln.Addr().String(), tc.url)
		if tc.want == "" && err == nil || tc.want != "" && (err != nil || out != tc.want) {
			t.Errorf("%s %s: %v, %q", tc.proxy, tc.url, err, out)
		}
	}
	_ = ln.Close()
	wg.Wait()
	if got := fmt.Sprint(asked); got != fmt.Sprintf("[{inner.test 80} {inner.test 80} {127.0.0.1 %s} {::1 81} {denied.test 80}]", targetPort) {
		t.Errorf("asked for %s", got)
	}
}
