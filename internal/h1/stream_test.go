package h1

import (
	"bytes"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// relay is a handler that forwards to addr as package proxy does.
func relay(t testing.TB, addr string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		nc, err := net.Dial("tcp", addr)
		if err != nil {
			t.Error(err)
			return
		}
		defer func() { _ = nc.Close() }()
		resp, err := NewClientConn(nc, DefaultLimits()).RoundTrip(r, &RoundTripOptions{
			Target: r.RequestURI, Host: r.Host, HeaderTimeout: 5 * time.Second, StallTimeout: 5 * time.Second, IdleTimeout: 5 * time.Second,
			Slow: func() { w.(DisconnectWatcher).WatchDisconnect(func() { _ = nc.Close() }) }, SlowAfter: 20 * time.Millisecond, Done: func(bool) {}})
		if err != nil {
			panic(http.ErrAbortHandler)
		}
		copyAnswer(w, resp)
	}
}

func copyAnswer(w http.ResponseWriter, resp *http.Response) {
	defer func() { _ = resp.Body.Close() }()
	h := w.Header()
	for k, v := range resp.Header {
		h[k] = v
	}
	w.WriteHeader(resp.StatusCode)
	if _, err := io.CopyBuffer(struct{ io.Writer }{w}, struct{ io.Reader }{resp.Body}, make([]byte, 32<<10)); err != nil {
		panic(http.ErrAbortHandler)
	}
}

type pattern struct{ n, at int64 } // n bytes that depend on where they are

func (p *pattern) Read(b []byte) (int, error) {
	if p.at >= p.n {
		return 0, io.EOF
	}
	m := int(min(int64(len(b)), p.n-p.at))
	for i := range m {
		b[i] = byte((p.at + int64(i)) * 7 >> 3)
	}
	p.at += int64(m)
	return m, nil
}

func samePattern(r io.Reader, n int64) error {
	want, a, b := &pattern{n: n}, make([]byte, 64<<10), make([]byte, 64<<10)
	for {
		m, err := io.ReadFull(r, a)
		k, _ := io.ReadFull(want, b[:m])
		if k != m || !bytes.Equal(a[:m], b[:m]) {
			return errors.New("bytes differ")
		}
		if err != nil {
			if want.at != n || err != io.EOF && err != io.ErrUnexpectedEOF {
				return errors.Join(err, errors.New("too few bytes"))
			}
			return nil
		}
	}
}

// TestLargeBodies: 64 MiB up and down through a relay, framed both ways, in memory
// that does not depend on the size.
func TestLargeBodies(t *testing.T) {
	const size = 64 << 20
	far := serve(t, testServer(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPost {
			if err := samePattern(r.Body, size); err != nil {
				t.Error(err)
			}
			return
		}
		if r.URL.Path == "/length" {
			w.Header().Set("Content-Length", "67108864")
		}
		_, _ = io.CopyBuffer(struct{ io.Writer }{w}, &pattern{n: size}, make([]byte, 100<<10))
	}))
	near := serve(t, testServer(relay(t, far)))
	c := newClient(t, near)
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	for _, length := range []int64{size, -1} {
		resp, err := c.RoundTrip(request("POST", &pattern{n: size}, length), c.options())
		if err != nil || resp.StatusCode != 200 {
			t.Fatal(length, err)
		}
		if _, err := io.ReadAll(resp.Body); err != nil || !c.reusable {
			t.Fatal(length, err, c.reusable)
		}
	}
	for _, path := range []string{"/length", "/chunked"} {
		opts := c.options()
		opts.Target = path
		resp, err := c.RoundTrip(request("GET", nil, 0), opts)
		if err != nil {
			t.Fatal(err)
		}
		if err := samePattern(resp.Body, size); err != nil || !c.reusable {
			t.Fatal(path, err, c.reusable)
		}
	}
	runtime.ReadMemStats(&after)
	if grown := after.TotalAlloc - before.TotalAlloc; !raceDetector && grown > 8<<20 { // under it sync.Pool forgets on purpose
		t.Fatalf("256 MiB were carried with %d KiB of allocations", grown>>10)
	}
}

// TestEarlyAnswer: the origin answers while a large upload runs. The answer arrives,
// nothing is left behind, and neither connection is used again.
func TestEarlyAnswer(t *testing.T) {
	for _, body := range []string{"", "denied"} {
		answer := "HTTP/1.1 413 Too Large\r\nContent-Length: " + map[string]string{"": "0", "denied": "6"}[body] + "\r\n\r\n" + body
		origins := map[string]func(nc *net.TCPConn){
			"origin stops reading": func(nc *net.TCPConn) {
				_, _ = readHead(nc)
				_, _ = io.WriteString(nc, answer)
				time.Sleep(100 * time.Millisecond)
			},
			"origin reads on": func(nc *net.TCPConn) {
				_, _ = readHead(nc)
				_, _ = io.WriteString(nc, answer)
				_, _ = io.Copy(io.Discard, nc)
			},
		}
		for name, f := range origins {
			t.Run(name+" "+body, func(t *testing.T) {
				far := origin(t, f)
				for _, length := range []int64{64 << 20, -1} {
					c := newClient(t, far)
					resp, err := c.RoundTrip(request("POST", &pattern{n: 64 << 20}, length), c.options())
					if err != nil || resp.StatusCode != 413 {
						t.Fatal(err)
					}
					if b, err := io.ReadAll(resp.Body); string(b) != body || err != nil || c.reusable || c.done != 1 {
						t.Fatalf("%q, %v, reusable %v", b, err, c.reusable)
					}
				}
				testEarlyThroughRelay(t, serve(t, testServer(relay(t, far))), body)
			})
		}
	}
}

// testEarlyThroughRelay: the sandbox sends a part of its body and then waits, so
// that the relay's upload is blocked in a read from the sandbox.
func testEarlyThroughRelay(t *testing.T, near, body string) {
	t.Helper()
	nc := dial(t, near)
	_, _ = io.WriteString(nc, post("Content-Length: 67108864\r\n", strings.Repeat("x", 10<<10)))
	b, err := io.ReadAll(nc)
	if statuses(string(b)) != "413" || !strings.HasSuffix(string(b), "\r\n\r\n"+body) || err != nil {
		t.Fatalf("%q, %v", b, err)
	}
}

// TestUploadAndAnswerTogether: an origin that answers while it reads loses nothing.
func TestUploadAndAnswerTogether(t *testing.T) {
	far := serve(t, testServer(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.CopyBuffer(struct{ io.Writer }{w}, r.Body, make([]byte, 10<<10))
	}))
	c := newClient(t, serve(t, testServer(relay(t, far))))
	for range 3 {
		resp, err := c.RoundTrip(request("POST", &pattern{n: 8 << 20}, -1), c.options())
		if err != nil {
			t.Fatal(err)
		}
		if err := samePattern(resp.Body, 8<<20); err != nil || !c.reusable {
			t.Fatal(err, c.reusable)
		}
	}
}

// TestUploadsKeepTheConnection: an answer that comes as soon as the last byte is in
// does not make the connection look unfinished.
func TestUploadsKeepTheConnection(t *testing.T) {
	c := newClient(t, serve(t, testServer(func(_ http.ResponseWriter, r *http.Request) { _, _ = io.Copy(io.Discard, r.Body) })))
	for i := range 300 {
		n := int64(5000 + 100*i)
		length := n
		if i%2 == 0 {
			length = -1
		}
		resp, err := c.RoundTrip(request("POST", &pattern{n: n}, length), c.options())
		if err != nil {
			t.Fatal(i, err)
		}
		if _, err := io.ReadAll(resp.Body); err != nil || !c.reusable {
			t.Fatal(i, err, c.reusable)
		}
	}
}

// TestClientGoesAway: during an upload and while the origin thinks.
func TestClientGoesAway(t *testing.T) {
	gone := make(chan bool, 4)
	far := origin(t, func(nc *net.TCPConn) {
		_, _ = io.Copy(io.Discard, nc)
		gone <- true
	})
	near := serve(t, testServer(relay(t, far)))
	for _, send := range []string{get(""), post("Content-Length: 3\r\n", "abc"), post("Content-Length: 100000\r\n", "abc"), post("Transfer-Encoding: chunked\r\n", "3\r\nabc\r\n")} {
		nc := dial(t, near)
		_, _ = io.WriteString(nc, send)
		time.Sleep(60 * time.Millisecond)
		_ = nc.Close()
		within(t, 2*time.Second, "the origin's end", func() { <-gone })
	}
}

// TestAttack_C06_broken_chunks_upstream: the head is upstream already when a chunk
// turns out to be broken. The origin sees no end, and its connection is not used again.
func TestAttack_C06_broken_chunks_upstream(t *testing.T) {
	seen := make(chan string, 1)
	far := origin(t, func(nc *net.TCPConn) {
		b, _ := io.ReadAll(nc)
		seen <- string(b)
	})
	near := serve(t, testServer(relay(t, far)))
	for _, broken := range []string{"3;a\nxx", "3\r\nabcXX", "0x3\r\n", "0\r\nContent-Length: 3\r\n\r\n"} {
		answer, err := raw(t, near, post("Transfer-Encoding: chunked\r\n", "5\r\nhello\r\n"+broken+"\r\n0\r\n\r\n"+smuggled))
		got := <-seen
		if strings.Contains(got, "\r\n0\r\n") || strings.Contains(got, "smug") || !isCut(err) || statuses(answer) != "" {
			t.Fatalf("%q: upstream %q, answer %q, %v", broken, got, answer, err)
		}
	}
}

func TestUpgrade(t *testing.T) {
	var hijackErr atomic.Value
	far := testServer(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Upgrade") != "websocket" || r.Header.Get("Connection") != "Upgrade" {
			t.Errorf("got %v", r.Header)
		}
		nc, _, err := w.(http.Hijacker).Hijack()
		if err != nil {
			hijackErr.Store(err)
			return
		}
		defer func() { _ = nc.Close() }()
		if _, _, err := w.(http.Hijacker).Hijack(); !errors.Is(err, http.ErrHijacked) {
			t.Error(err)
		}
		// the first frame leaves with the head, so that the client reads it ahead
		_, _ = io.WriteString(nc, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\nfirst")
		_, _ = io.Copy(nc, nc)
	})
	srv, cl := tlsConfigs(t, tls.VersionTLS13)
	for _, nc := range []net.Conn{dial(t, serve(t, far)), dialTLS(t, serveTLS(t, far, srv), cl)} {
		c := &client{ClientConn: NewClientConn(nc, DefaultLimits())}
		opts := c.options()
		opts.Upgrade = true
		resp, err := c.RoundTrip(request("GET", nil, 0), opts)
		if err != nil || resp.StatusCode != 101 || c.done != 0 {
			t.Fatal(err, c.done)
		}
		rw, _ := resp.Body.(io.ReadWriteCloser)
		buf := make([]byte, 5)
		if _, err := io.ReadFull(rw, buf); string(buf) != "first" || err != nil {
			t.Fatalf("%q %v", buf, err)
		}
		for _, s := range []string{"hello", "again"} {
			_, _ = io.WriteString(rw, s)
			if _, err := io.ReadFull(rw, buf); string(buf) != s || err != nil {
				t.Fatalf("%q %v", buf, err)
			}
		}
		if err := rw.(interface{ CloseWrite() error }).CloseWrite(); err != nil {
			t.Fatal(err)
		}
		if rest, err := io.ReadAll(rw); len(rest) > 0 || err != nil {
			t.Fatalf("%q %v", rest, err)
		}
		_ = rw.Close()
		if c.done != 1 || c.reusable {
			t.Fatal(c.done, c.reusable)
		}
	}
	// bytes behind the head are the hijacker's
	answer, err := raw(t, serve(t, far), get("Connection: Upgrade\r\nUpgrade: websocket\r\n")+"early")
	if err != nil || !strings.HasSuffix(answer, "firstearly") {
		t.Fatalf("%q, %v", answer, err)
	}
	_, _ = raw(t, serve(t, far), get("Connection: Upgrade\r\nUpgrade: websocket\r\nContent-Length: 9\r\n")+"early")
	if err, _ := hijackErr.Load().(error); !errors.Is(err, errHijackBody) {
		t.Fatal("hijacked beside a body", err)
	}
}

func TestAttack_C16_upgrades_refused(t *testing.T) {
	for name, answer := range map[string]string{
		"other protocol": "HTTP/1.1 101 X\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n", "no protocol": "HTTP/1.1 101 X\r\nConnection: Upgrade\r\n\r\n",
		"no Connection": "HTTP/1.1 101 X\r\nUpgrade: websocket\r\n\r\n", "with a body": "HTTP/1.1 101 X\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nContent-Length: 3\r\n\r\nabc",
	} {
		c := newClient(t, answering(t, answer, false))
		opts := c.options()
		opts.Upgrade = true
		if _, err := c.RoundTrip(request("GET", nil, 0), opts); reasonOf(err) == "" {
			t.Errorf("%s: %v", name, err)
		}
		_ = c.nc.Close()
	}
	c := newClient(t, answering(t, okAnswer, false)) // declined: an ordinary answer
	opts := c.options()
	opts.Upgrade = true
	resp, err := c.RoundTrip(request("GET", nil, 0), opts)
	if err != nil || resp.StatusCode != 200 {
		t.Fatal(err)
	}
	if _, err := io.ReadAll(resp.Body); err != nil || !c.reusable {
		t.Fatal(err)
	}
}
