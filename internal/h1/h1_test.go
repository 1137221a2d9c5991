package h1

import (
	"bufio"
	"context"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"
)

// serve runs s on a loopback listener and returns its address.
func serve(t testing.TB, s *Server) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go s.ServeConn(ctx, ctx, c)
		}
	}()
	t.Cleanup(func() { cancel(); _ = ln.Close(); <-done })
	return ln.Addr().String()
}

func testServer(h http.HandlerFunc) *Server {
	return &Server{Handler: h, Limits: DefaultLimits(), HeadTimeout: 2 * time.Second, IdleTimeout: 5 * time.Second, BodyStall: 2 * time.Second, WriteStall: 2 * time.Second}
}

func TestNetHTTPClientAgainstServer(t *testing.T) {
	addr := serve(t, testServer(func(w http.ResponseWriter, r *http.Request) {
		b, err := io.ReadAll(r.Body)
		if err != nil {
			t.Errorf("body: %v", err)
		}
		w.Header().Set("X-Method", r.Method)
		_, _ = w.Write(b)
	}))
	for _, n := range []int{0, 1, 5000, 1 << 20} {
		for _, chunked := range []bool{false, true} {
			body := strings.Repeat("x", n)
			var rd io.Reader = strings.NewReader(body)
			if chunked {
				rd = struct{ io.Reader }{rd}
			}
			resp, err := http.Post("http://"+addr+"/a?b=c", "text/plain", rd)
			if err != nil {
				t.Fatal(err)
			}
			got, err := io.ReadAll(resp.Body)
			_ = resp.Body.Close()
			if err != nil || string(got) != body {
				t.Fatalf("n=%d chunked=%v: got %d bytes, %v", n, chunked, len(got), err)
			}
		}
	}
}

func TestClientConnAgainstNetHTTP(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		w.Header().Set("X-Auth", r.Header.Get("Authorization"))
		_, _ = w.Write(b)
	})}
	go func() { _ = srv.Serve(ln) }()
	defer func() { _ = srv.Close() }()
	nc, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	cc := NewClientConn(nc, DefaultLimits())
	for i, n := range []int{0, 10, 5000, 1 << 20, 0} {
		reusable := false
		req, _ := http.NewRequest(http.MethodPost, "http://x/", strings.NewReader(strings.Repeat("y", n)))
		req.Header.Set("Authorization", "v")
		resp, err := cc.RoundTrip(req, &RoundTripOptions{Target: "/", Host: "x", Done: func(ok bool) { reusable = ok }})
		if err != nil {
			t.Fatal(i, err)
		}
		b, err := io.ReadAll(resp.Body)
		if err != nil || len(b) != n || resp.Header.Get("X-Auth") != "v" {
			t.Fatal(i, len(b), err)
		}
		if !reusable {
			t.Fatal(i, "not reusable")
		}
		if !cc.Alive() {
			t.Fatal(i, "not alive")
		}
	}
}

func TestRawRefusals(t *testing.T) {
	addr := serve(t, testServer(func(w http.ResponseWriter, r *http.Request) { _, _ = io.Copy(io.Discard, r.Body) }))
	for name, c := range map[string]struct {
		raw  string
		want string
	}{
		"plain":                  {"GET / HTTP/1.1\r\nHost: a\r\n\r\n", "200"},
		"C01 cl and te":          {"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", "400"},
		"C03 dup cl":             {"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\nx", "400"},
		"C03 leading zero":       {"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0003\r\n\r\nxxx", "400"},
		"C03 blank after length": {"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3 \r\n\r\nxxx", "400"},
		"C04 obs-fold":           {"GET / HTTP/1.1\r\nHost: a\r\nX-A: b\r\n c\r\n\r\n", "400"},
		"C05 bare lf":            {"GET / HTTP/1.1\nHost: a\n\n", "400"},
		"C14 trace":              {"TRACE / HTTP/1.1\r\nHost: a\r\n\r\n", "405"},
		"C22 many headers":       {"GET / HTTP/1.1\r\nHost: a\r\n" + strings.Repeat("A: b\r\n", 10000) + "\r\n", "431"},
		"version":                {"GET / HTTP/9.9\r\nHost: a\r\n\r\n", "505"},
		"expect":                 {"GET / HTTP/1.1\r\nHost: a\r\nExpect: x\r\n\r\n", "417"},
	} {
		t.Run(name, func(t *testing.T) {
			nc, err := net.Dial("tcp", addr)
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = nc.Close() }()
			_, _ = nc.Write([]byte(c.raw))
			_ = nc.SetReadDeadline(time.Now().Add(5 * time.Second))
			line, err := bufio.NewReader(nc).ReadString('\n')
			if err != nil || !strings.Contains(line, " "+c.want+" ") {
				t.Fatalf("got %q, %v; want %s", line, err, c.want)
			}
		})
	}
}
