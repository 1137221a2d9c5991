package h1

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"
)

// both runs a test on a plain and on a TLS connection. dial gives a connection to s.
func both(t *testing.T, f func(t *testing.T, dialTo func(s *Server) net.Conn)) {
	t.Helper()
	t.Run("plain", func(t *testing.T) {
		f(t, func(s *Server) net.Conn { return dial(t, serve(t, s)) })
	})
	t.Run("TLS", func(t *testing.T) {
		srv, cl := tlsConfigs(t, tls.VersionTLS13)
		f(t, func(s *Server) net.Conn { return dialTLS(t, serveTLS(t, s, srv), cl) })
	})
}

func TestWatchDisconnect(t *testing.T) {
	both(t, func(t *testing.T, dialTo func(s *Server) net.Conn) {
		watching, release, aborted := make(chan bool), make(chan bool), make(chan bool)
		s := testServer(func(w http.ResponseWriter, r *http.Request) {
			_, _ = io.Copy(io.Discard, r.Body)
			if r.URL.Path == "/plain" {
				return
			}
			w.(DisconnectWatcher).WatchDisconnect(func() { close(aborted) }) // twice would panic
			watching <- true
			select {
			case <-release:
			case <-aborted:
			}
		})
		nc := dialTo(s)
		br := bufio.NewReader(nc)
		answer := func() {
			t.Helper()
			resp, err := http.ReadResponse(br, nil)
			if err != nil || resp.StatusCode != 200 {
				t.Fatal(resp, err)
			}
			_ = resp.Body.Close()
		}
		for _, body := range []string{"", "hello"} { // the client stays: no abort, and the connection goes on
			_, _ = io.WriteString(nc, post("Content-Length: "+map[string]string{"": "0", "hello": "5"}[body]+"\r\n", body))
			<-watching
			time.Sleep(10 * time.Millisecond)
			release <- true
			answer()
		}
		// a pipelined request is not lost
		_, _ = io.WriteString(nc, get(""))
		<-watching
		_, _ = io.WriteString(nc, "GET /plain HTTP/1.1\r\nHost: a\r\n\r\n")
		time.Sleep(10 * time.Millisecond)
		release <- true
		answer()
		answer()
		select {
		case <-aborted:
			t.Fatal("abort was called though the client was there")
		default:
		}
		_, _ = io.WriteString(nc, get(""))
		<-watching
		_ = nc.Close()
		within(t, 2*time.Second, "abort", func() { <-aborted })
	})
}

// TestWatchDisconnectBesideABody: a body that is still being read is never touched,
// also where a handler has wrapped it.
func TestWatchDisconnectBesideABody(t *testing.T) {
	s := testServer(func(w http.ResponseWriter, r *http.Request) {
		body := r.Body
		r.Body = io.NopCloser(body)
		w.(DisconnectWatcher).WatchDisconnect(func() { t.Error("abort") })
		echo(w, r)
	})
	nc := dial(t, serve(t, s))
	_, _ = io.WriteString(nc, post("Content-Length: 6\r\nConnection: close\r\n", "abc"))
	time.Sleep(20 * time.Millisecond)
	_, _ = io.WriteString(nc, "def")
	if b, err := io.ReadAll(nc); err != nil || !strings.HasSuffix(string(b), "\r\n6\r\nabcdef\r\n0\r\n\r\n") {
		t.Fatalf("%q, %v", b, err)
	}
}

func TestDrain(t *testing.T) {
	drain, stop := context.WithCancel(context.Background())
	entered, release := make(chan bool), make(chan bool)
	s := testServer(func(_ http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/wait" {
			entered <- true
			<-release
		}
	})
	srv, cl := tlsConfigs(t, tls.VersionTLS13)
	addr := serveUntil(t, s, srv, drain, stop)
	var idle []net.Conn
	for _, wait := range []time.Duration{0, warmIdle + 200*time.Millisecond} { // with a buffer, and without
		c := dialTLS(t, addr, cl)
		_, _ = io.WriteString(c, get(""))
		if resp, err := http.ReadResponse(bufio.NewReader(c), nil); err != nil || resp.Close {
			t.Fatal(resp, err)
		}
		time.Sleep(wait)
		idle = append([]net.Conn{c}, idle...)
	}
	idle = append(idle, dialTLS(t, addr, cl)) // never used
	busy := dialTLS(t, addr, cl)
	_, _ = io.WriteString(busy, "GET /wait HTTP/1.1\r\nHost: a\r\n\r\n"+get(""))
	<-entered
	start := time.Now()
	stop()
	for i, c := range idle {
		if _, err := c.Read(make([]byte, 1)); err != io.EOF || cutShort(c) {
			t.Fatalf("idle connection %d: %v", i, err)
		}
	}
	if d := time.Since(start); d > time.Second {
		t.Fatalf("idle connections took %v", d)
	}
	release <- true
	b, err := io.ReadAll(busy)
	if err != nil || statuses(string(b)) != "200" || !strings.Contains(string(b), "Connection: close") {
		t.Fatalf("in flight: %q, %v", b, err)
	}
}

func TestIdleTimeout(t *testing.T) {
	both(t, func(t *testing.T, dialTo func(s *Server) net.Conn) {
		for _, d := range []time.Duration{100 * time.Millisecond, warmIdle + 300*time.Millisecond} {
			s := testServer(func(http.ResponseWriter, *http.Request) {})
			s.IdleTimeout = d
			nc := dialTo(s)
			_, _ = io.WriteString(nc, get(""))
			start := time.Now()
			b, err := io.ReadAll(nc)
			if took := time.Since(start); err != nil || statuses(string(b)) != "200" || took < d*3/4 || took > d+500*time.Millisecond {
				t.Fatalf("%v: %q, %v after %v", d, b, err, took)
			}
		}
	})
}

// TestIdleWithoutABuffer: a connection that was idle for long serves on.
func TestIdleWithoutABuffer(t *testing.T) {
	both(t, func(t *testing.T, dialTo func(s *Server) net.Conn) {
		nc := dialTo(testServer(echo))
		br := bufio.NewReader(nc)
		for range 2 {
			_, _ = io.WriteString(nc, post("Content-Length: 2\r\n", "hi"))
			resp, err := http.ReadResponse(br, nil)
			if err != nil {
				t.Fatal(err)
			}
			if b, err := io.ReadAll(resp.Body); string(b) != "hi" || err != nil {
				t.Fatal(string(b), err)
			}
			time.Sleep(warmIdle + 100*time.Millisecond)
		}
	})
}

func TestAttack_C23_slow_head(t *testing.T) {
	both(t, func(t *testing.T, dialTo func(s *Server) net.Conn) {
		s := testServer(func(http.ResponseWriter, *http.Request) { t.Error("served") })
		s.HeadTimeout = 300 * time.Millisecond
		nc := dialTo(s)
		start := time.Now()
		stop := make(chan bool)
		go func() {
			defer close(stop)
			for _, c := range []byte("GET / HTTP/1.1\r\nHost: a\r\nX: " + strings.Repeat("a", 1000)) {
				if _, err := nc.Write([]byte{c}); err != nil {
					return
				}
				time.Sleep(20 * time.Millisecond)
			}
		}()
		b, _ := io.ReadAll(nc)
		took := time.Since(start)
		_ = nc.Close()
		<-stop
		if statuses(string(b)) != "408" || took < 250*time.Millisecond || took > 1500*time.Millisecond {
			t.Fatalf("%q after %v", b, took)
		}
	})
}

func TestAttack_C23_body_stall(t *testing.T) {
	both(t, func(t *testing.T, dialTo func(s *Server) net.Conn) {
		failed := make(chan error, 1)
		s := testServer(func(_ http.ResponseWriter, r *http.Request) {
			_, err := io.ReadAll(r.Body)
			failed <- err
		})
		s.BodyStall = 200 * time.Millisecond
		nc := dialTo(s)
		_, _ = io.WriteString(nc, post("Content-Length: 10\r\n", "abc"))
		within(t, 2*time.Second, "the stall", func() {
			if err := <-failed; !isTimeout(err) {
				t.Errorf("got %v", err)
			}
		})
	})
}

func TestAttack_C23_client_that_does_not_read(t *testing.T) {
	for _, length := range []string{"", "67108864"} {
		failed := make(chan error, 1)
		s := testServer(func(w http.ResponseWriter, _ *http.Request) {
			if length != "" {
				w.Header().Set("Content-Length", length)
			}
			_, err := w.Write(make([]byte, 64<<20))
			failed <- err
		})
		s.WriteStall = 300 * time.Millisecond
		nc := dial(t, serve(t, s))
		_ = nc.SetReadBuffer(4 << 10)
		_, _ = io.WriteString(nc, get(""))
		within(t, 3*time.Second, "the stall", func() {
			if err := <-failed; !errors.Is(err, errFailed) {
				t.Errorf("got %v", err)
			}
		})
	}
}

// TestSlowButSteady: a client that reads slowly is not one that does not read, however
// much a handler writes at once. (The kernel tells the writer of progress by the MiB.)
func TestSlowButSteady(t *testing.T) {
	const size = 16 << 20
	s := testServer(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Length", "16777216")
		_, _ = w.Write(make([]byte, size))
	})
	s.WriteStall = 1200 * time.Millisecond
	nc := dial(t, serve(t, s))
	_ = nc.SetReadBuffer(64 << 10)
	_, _ = io.WriteString(nc, get("Connection: close\r\n"))
	n, buf, start := 0, make([]byte, 64<<10), time.Now()
	for {
		m, err := nc.Read(buf)
		if n += m; err == io.EOF {
			break
		} else if err != nil {
			t.Fatalf("after %d bytes and %v: %v", n, time.Since(start), err)
		}
		time.Sleep(10 * time.Millisecond)
	}
	if took := time.Since(start); n < size || took < s.WriteStall {
		t.Fatalf("%d bytes in %v", n, took)
	}
}

// TestAttack_H11_abort_is_no_clean_end: neither a last chunk nor close_notify, on a
// body that only the end of the connection ends.
func TestAttack_H11_abort_is_no_clean_end(t *testing.T) {
	srv, cl := tlsConfigs(t, tls.VersionTLS13)
	for _, clean := range []bool{true, false} {
		s := testServer(func(w http.ResponseWriter, _ *http.Request) {
			_, _ = io.WriteString(w, "abc")
			if !clean {
				panic(http.ErrAbortHandler)
			}
		})
		tc := dialTLS(t, serveTLS(t, s, srv), cl)
		_, _ = io.WriteString(tc, "GET / HTTP/1.0\r\n\r\n")
		b, err := io.ReadAll(tc)
		if ended := err == nil && !cutShort(tc); ended != clean || clean && !strings.HasSuffix(string(b), "abc") {
			t.Fatalf("clean %v: %q, %v, cut %v", clean, b, err, cutShort(tc))
		}
		if b, err := raw(t, serve(t, s), "GET / HTTP/1.0\r\n\r\n"); (err == nil) != clean {
			t.Fatalf("clean %v: %q, %v", clean, b, err)
		}
	}
}

func TestPanicInReject(t *testing.T) {
	s := testServer(nil)
	panics := make(chan any, 1)
	s.Reject = func(context.Context, *ProtocolError) (string, []byte, http.Header) { panic("in reject") }
	s.Panicked = func(v any) { panics <- v }
	addr := serve(t, s)
	if _, err := raw(t, addr, "x\r\n\r\n"); !isCut(err) || <-panics != "in reject" {
		t.Fatal(err)
	}
	s2 := testServer(nil)
	s2.Reject = func(_ context.Context, e *ProtocolError) (string, []byte, http.Header) {
		return "application/problem+json", []byte(e.Reason), http.Header{"X-Id": {"7"}}
	}
	answer, err := raw(t, serve(t, s2), "x\r\n\r\n")
	if err != nil || statuses(answer) != "400" || !strings.Contains(answer, "X-Id: 7\r\n") || !strings.HasSuffix(answer, "\r\n\r\nbad_request_line") {
		t.Fatalf("%q, %v", answer, err)
	}
}
