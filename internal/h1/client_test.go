package h1

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

const okAnswer = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"

func TestRetryable(t *testing.T) {
	closes := func(t *testing.T) string { return origin(t, func(nc *net.TCPConn) { _, _ = readHead(nc) }) }
	for _, c := range []struct {
		name   string
		origin func(t *testing.T) string
		req    func() *http.Request
		want   bool
	}{
		{"closed without a byte", closes, func() *http.Request { return request("GET", nil, 0) }, true},
		{"reset without a byte", func(t *testing.T) string {
			return origin(t, func(nc *net.TCPConn) { _, _ = readHead(nc); _ = nc.SetLinger(0) })
		}, func() *http.Request { return request("GET", nil, 0) }, true},
		{"closed within the head", func(t *testing.T) string { return answering(t, "HTTP/1.1 200 OK\r\nX", true) },
			func() *http.Request { return request("GET", nil, 0) }, false},
		{"closed behind an interim answer", func(t *testing.T) string { return answering(t, "HTTP/1.1 103 Early Hints\r\n\r\n", true) },
			func() *http.Request { return request("GET", nil, 0) }, false},
		{"small body consumed", closes, func() *http.Request { return request("PUT", strings.NewReader("hello"), 5) }, false},
		{"large body consumed", closes, func() *http.Request { return request("PUT", strings.NewReader(strings.Repeat("x", 1<<20)), 1<<20) }, false},
		{"body of unknown length", closes, func() *http.Request { return request("PUT", strings.NewReader("hello"), -1) }, false},
		{"header that cannot be sent", closes, func() *http.Request {
			r := request("GET", nil, 0)
			r.Header["X-A"] = []string{"a\r\nX-Evil: 1"}
			return r
		}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			cl := newClient(t, c.origin(t))
			_, err := cl.RoundTrip(c.req(), cl.options())
			if err == nil || Retryable(err) != c.want || cl.done != 0 {
				t.Fatalf("%v, retryable %v, done %d", err, Retryable(err), cl.done)
			}
			if _, err := cl.RoundTrip(c.req(), cl.options()); err == nil {
				t.Fatal("used again")
			}
		})
	}
	t.Run("stale pooled connection", func(t *testing.T) {
		cl := newClient(t, answering(t, okAnswer, true))
		if _, _, err := cl.get("GET"); err != nil || !cl.reusable {
			t.Fatal(err)
		}
		waitDead(t, cl.ClientConn)
		if _, _, err := cl.get("GET"); err == nil || !Retryable(err) {
			t.Fatalf("%v, retryable %v", err, Retryable(err))
		}
	})
}

// TestAttack_C13_what_cannot_be_sent: nothing goes out, nothing is replaced.
func TestAttack_C13_what_cannot_be_sent(t *testing.T) {
	var got atomic.Int64
	addr := origin(t, func(nc *net.TCPConn) {
		n, _ := io.Copy(io.Discard, nc)
		got.Add(n)
	})
	for name, change := range map[string]func(*http.Request, *RoundTripOptions){
		"CRLF in a value":    func(r *http.Request, _ *RoundTripOptions) { r.Header["Authorization"] = []string{"x\r\nX-Evil: 1"} },
		"LF in a value":      func(r *http.Request, _ *RoundTripOptions) { r.Header["Authorization"] = []string{"x\n"} },
		"NUL in a value":     func(r *http.Request, _ *RoundTripOptions) { r.Header["Authorization"] = []string{"x\x00"} },
		"blank in a name":    func(r *http.Request, _ *RoundTripOptions) { r.Header["X A"] = []string{"x"} },
		"empty name":         func(r *http.Request, _ *RoundTripOptions) { r.Header[""] = []string{"x"} },
		"CRLF in the target": func(_ *http.Request, o *RoundTripOptions) { o.Target = "/ HTTP/1.1\r\nX: y" },
		"absolute target":    func(_ *http.Request, o *RoundTripOptions) { o.Target = "http://a/" },
		"no target":          func(_ *http.Request, o *RoundTripOptions) { o.Target = "" },
		"CRLF in Host":       func(_ *http.Request, o *RoundTripOptions) { o.Host = "a\r\nX: y" },
		"no Host":            func(_ *http.Request, o *RoundTripOptions) { o.Host = "" },
		"blank in a method":  func(r *http.Request, _ *RoundTripOptions) { r.Method = "GET /x" },
	} {
		t.Run(name, func(t *testing.T) {
			c := newClient(t, addr)
			req, opts := request("GET", nil, 0), c.options()
			change(req, opts)
			if _, err := c.RoundTrip(req, opts); !errors.Is(err, errBadField) || Retryable(err) {
				t.Fatal(err)
			}
			_ = c.nc.Close()
		})
	}
	if got.Load() != 0 {
		t.Fatal("bytes reached the origin")
	}
}

func waitDead(t *testing.T, c *ClientConn) {
	t.Helper()
	for end := time.Now().Add(3 * time.Second); c.Alive(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("still alive")
		}
	}
}

func TestAlive(t *testing.T) {
	t.Run("plain", func(t *testing.T) {
		say := make(chan string)
		c := newClient(t, origin(t, func(nc *net.TCPConn) {
			for s := range say {
				if s == "" {
					return
				}
				_, _ = readHead(nc)
				_, _ = io.WriteString(nc, s)
			}
		}))
		defer close(say)
		if !c.Alive() {
			t.Fatal("a new connection is dead")
		}
		go func() { say <- okAnswer }()
		opts := c.options()
		opts.Slow, opts.SlowAfter = func() {}, 20*time.Millisecond // leaves a deadline that passes
		resp, err := c.RoundTrip(request("GET", nil, 0), opts)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.ReadAll(resp.Body)
		time.Sleep(50 * time.Millisecond)
		if !c.reusable || !c.Alive() {
			t.Fatal("an idle connection is dead")
		}
		say <- ""
		waitDead(t, c.ClientConn)
	})
	t.Run("unasked bytes", func(t *testing.T) {
		c := newClient(t, origin(t, func(nc *net.TCPConn) { _, _ = io.WriteString(nc, okAnswer); _, _ = readHead(nc) }))
		waitDead(t, c.ClientConn)
	})
	for name, version := range map[string]uint16{"TLS 1.2": tls.VersionTLS12, "TLS 1.3": tls.VersionTLS13} {
		for _, how := range []string{"close_notify", "FIN"} {
			t.Run(name+" "+how, func(t *testing.T) { testAliveTLS(t, version, how) })
		}
	}
}

// testAliveTLS: session tickets that wait do not make a connection dead; an end
// behind them does.
func testAliveTLS(t *testing.T, version uint16, how string) {
	srv, cl := tlsConfigs(t, version)
	end := make(chan bool)
	addr := origin(t, func(nc *net.TCPConn) {
		tc := tls.Server(nc, srv)
		if tc.Handshake() != nil {
			return
		}
		<-end
		if how == "close_notify" {
			_ = tc.CloseWrite()
			_, _ = io.Copy(io.Discard, nc)
		}
	})
	c := NewClientConn(dialTLS(t, addr, cl), DefaultLimits())
	time.Sleep(50 * time.Millisecond) // tickets arrive
	if !c.Alive() {
		t.Fatal("dead")
	}
	end <- true
	waitDead(t, c)
	_ = c.nc.Close()
}

func TestSlowHook(t *testing.T) {
	addr := origin(t, func(nc *net.TCPConn) {
		for {
			if _, err := readHead(nc); err != nil {
				return
			}
			time.Sleep(150 * time.Millisecond)
			_, _ = io.WriteString(nc, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n")
			time.Sleep(150 * time.Millisecond)
			_, _ = io.WriteString(nc, "ok")
		}
	})
	c := newClient(t, addr)
	for _, after := range []time.Duration{40 * time.Millisecond, 2 * time.Second, 40 * time.Millisecond} {
		slow := 0
		opts := c.options()
		opts.SlowAfter, opts.Slow = after, func() { slow++ }
		resp, err := c.RoundTrip(request("GET", nil, 0), opts)
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(resp.Body)
		if want := map[bool]int{true: 1, false: 0}[after < time.Second]; string(b) != "ok" || err != nil || slow != want || !c.reusable {
			t.Fatalf("%q, %v, slow %d times, want %d", b, err, slow, want)
		}
	}
}

// TestSlowHookWaitsForTheRequest: while a request is on its way its sender is heard
// from by that; the hook comes when only the answer is missing.
func TestSlowHookWaitsForTheRequest(t *testing.T) {
	addr := origin(t, func(nc *net.TCPConn) {
		_, _ = io.Copy(io.Discard, io.LimitReader(nc, 1<<20))
		time.Sleep(150 * time.Millisecond)
		_, _ = io.WriteString(nc, okAnswer)
	})
	c := newClient(t, addr)
	pr, pw := io.Pipe()
	var sent atomic.Bool
	go func() {
		for range 8 {
			time.Sleep(20 * time.Millisecond)
			_, _ = pw.Write(make([]byte, 128<<10))
		}
		sent.Store(true)
		_ = pw.Close()
	}()
	slow := 0
	opts := c.options()
	opts.SlowAfter, opts.Slow = 30*time.Millisecond, func() {
		if slow++; !sent.Load() {
			t.Error("slow before the request was out")
		}
	}
	resp, err := c.RoundTrip(request("POST", pr, 1<<20), opts)
	if err != nil || slow != 1 {
		t.Fatal(err, slow)
	}
	_ = resp.Body.Close()
}

func TestHeaderTimeout(t *testing.T) {
	for name, drip := range map[string]string{"silence": "", "C16 interim answers": "HTTP/1.1 102 Processing\r\n\r\n", "C23 one byte at a time": "H"} {
		t.Run(name, func(t *testing.T) {
			addr := origin(t, func(nc *net.TCPConn) {
				for {
					if _, err := nc.Write([]byte(drip)); err != nil {
						return
					}
					time.Sleep(30 * time.Millisecond)
					_ = nc.SetReadDeadline(time.Now().Add(time.Millisecond))
					if _, err := nc.Read(make([]byte, 4096)); err == io.EOF {
						return
					}
				}
			})
			c := newClient(t, addr)
			opts := c.options()
			opts.HeaderTimeout = 300 * time.Millisecond
			slow := 0
			opts.SlowAfter, opts.Slow = 50*time.Millisecond, func() { slow++ }
			start := time.Now()
			if name == "C23 one byte at a time" {
				opts.Slow = nil
			}
			_, err := c.RoundTrip(request("GET", nil, 0), opts)
			took := time.Since(start)
			if name == "C23 one byte at a time" && reasonOf(err) == "line_too_long" {
				t.Fatal(err)
			}
			if !errors.Is(err, context.DeadlineExceeded) || Retryable(err) || took < 290*time.Millisecond || took > 800*time.Millisecond {
				t.Fatalf("%v after %v", err, took)
			}
			if slow > 1 || name == "silence" && slow != 1 {
				t.Fatalf("slow %d times", slow)
			}
			_ = c.nc.Close()
		})
	}
}

func TestBodyIdleTimeout(t *testing.T) {
	c := newClient(t, answering(t, "HTTP/1.1 200 OK\r\nContent-Length: 20\r\n\r\nok", false))
	opts := c.options()
	opts.IdleTimeout = 100 * time.Millisecond
	resp, err := c.RoundTrip(request("GET", nil, 0), opts)
	if err != nil {
		t.Fatal(err)
	}
	_, err = io.ReadAll(resp.Body)
	_ = resp.Body.Close()
	if !errors.Is(err, context.DeadlineExceeded) || c.done != 1 || c.reusable {
		t.Fatal(err, c.done, c.reusable)
	}
}

func TestAttack_H11_truncated_answers(t *testing.T) {
	for name, answer := range map[string]string{
		"half of the length": "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf.", "within a chunk": "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab",
		"between chunks": "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n", "within the last chunk": "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n0\r\n",
		"within the trailers": "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX: y\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			c := newClient(t, answering(t, answer, true))
			status, _, err := c.get("GET")
			if status != 200 || !errors.Is(err, io.ErrUnexpectedEOF) || c.done != 1 || c.reusable {
				t.Fatal(status, err, c.done, c.reusable)
			}
		})
	}
}

// TestUntilClose: over TLS a body that ends with its connection is whole only if
// the origin said so.
func TestUntilClose(t *testing.T) {
	const answer = "HTTP/1.1 200 OK\r\n\r\nall of it"
	c := newClient(t, answering(t, answer, true))
	if _, body, err := c.get("GET"); body != "all of it" || err != nil || c.reusable {
		t.Fatal(body, err, c.reusable)
	}
	srv, cl := tlsConfigs(t, tls.VersionTLS13)
	for _, notify := range []bool{true, false} {
		addr := origin(t, func(nc *net.TCPConn) {
			tc := tls.Server(nc, srv)
			_, _ = readHead(tc)
			_, _ = io.WriteString(tc, answer)
			if notify {
				_ = tc.CloseWrite()
			}
		})
		c := &client{ClientConn: NewClientConn(dialTLS(t, addr, cl), DefaultLimits())}
		_, body, err := c.get("GET")
		if body != "all of it" || (err == nil) != notify || !notify && !errors.Is(err, io.ErrUnexpectedEOF) || c.reusable || c.done != 1 {
			t.Fatalf("close_notify %v: %q, %v", notify, body, err)
		}
	}
}

func TestNotReusable(t *testing.T) {
	for name, answer := range map[string]string{
		"close":                   "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok",
		"Close among others":      "HTTP/1.1 200 OK\r\nConnection: x, Close\r\nContent-Length: 2\r\n\r\nok",
		"HTTP 1.0":                "HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok",
		"bytes behind the answer": okAnswer + "HTTP/1.1 200 OK\r\n",
		"body on a 204":           "HTTP/1.1 204 No Content\r\nContent-Length: 2\r\n\r\nok",
	} {
		t.Run(name, func(t *testing.T) {
			c := newClient(t, answering(t, answer, false))
			if _, _, err := c.get("GET"); err != nil || c.done != 1 || c.reusable {
				t.Fatal(err, c.done, c.reusable)
			}
		})
	}
	t.Run("given up", func(t *testing.T) {
		c := newClient(t, answering(t, okAnswer, false))
		resp, err := c.RoundTrip(request("GET", nil, 0), c.options())
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
		_ = resp.Body.Close()
		if _, err := resp.Body.Read(make([]byte, 1)); !errors.Is(err, http.ErrBodyReadAfterClose) || c.done != 1 || c.reusable {
			t.Fatal(err, c.done)
		}
	})
}

// TestBodyErrors: an error of the caller's body comes back as it is, and the origin
// never sees a clean end of that body.
func TestBodyErrors(t *testing.T) {
	for _, length := range []int64{10, 1 << 20, -1} {
		ended := make(chan error, 1)
		s := testServer(func(_ http.ResponseWriter, r *http.Request) {
			_, err := io.ReadAll(r.Body)
			ended <- err
		})
		c := newClient(t, serve(t, s))
		body := io.MultiReader(strings.NewReader("part"), errReader{})
		_, err := c.RoundTrip(request("POST", body, length), c.options())
		_ = c.nc.Close()
		if !errors.Is(err, errTest) || Retryable(err) || c.done != 0 {
			t.Fatalf("length %d: %v", length, err)
		}
		if length > smallBody || length < 0 {
			if err := <-ended; err == nil {
				t.Fatalf("length %d: the origin saw a clean end", length)
			}
		}
		short := newClient(t, serve(t, testServer(echo)))
		if length > 0 {
			_, err = short.RoundTrip(request("POST", strings.NewReader("part"), length), short.options())
			if !errors.Is(err, io.ErrUnexpectedEOF) {
				t.Fatalf("length %d: %v", length, err)
			}
		}
		_ = short.nc.Close()
	}
}

type errReader struct{}

func (errReader) Read([]byte) (int, error) { return 0, errTest }
