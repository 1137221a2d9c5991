package h1

import (
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
)

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
