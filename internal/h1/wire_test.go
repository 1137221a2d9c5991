package h1

import (
	"context"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
)

// countingConn counts the calls that are system calls on a plain connection.
type countingConn struct {
	net.Conn
	reads, writes atomic.Int64
}

func (c *countingConn) Read(p []byte) (int, error)  { c.reads.Add(1); return c.Conn.Read(p) }
func (c *countingConn) Write(p []byte) (int, error) { c.writes.Add(1); return c.Conn.Write(p) }

// chain is client → relay → origin over loopback, each on one connection that is kept.
type chain struct {
	client           *ClientConn
	near, up, origin *countingConn // the relay's two sides and the origin's
	clientSide       *countingConn
	wg               sync.WaitGroup
	stop             func()
}

// pipe gives both ends of a loopback connection.
func loopback(t testing.TB) (dialled, accepted *countingConn) {
	t.Helper()
	ln := listen(t)
	defer func() { _ = ln.Close() }()
	a, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	b, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	return &countingConn{Conn: a}, &countingConn{Conn: b}
}

func newChain(t testing.TB, body string) *chain {
	ch := &chain{}
	var ctx context.Context
	ctx, ch.stop = context.WithCancel(context.Background())
	ch.clientSide, ch.near = loopback(t)
	ch.up, ch.origin = loopback(t)
	answer := []byte(body)
	date := []string{"Sat, 21 Nov 2026 00:00:00 GMT"}
	far := testServer(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		w.Header()["Content-Length"] = []string{"1024"}
		w.Header()["Date"] = date
		_, _ = w.Write(answer)
	})
	upstream := NewClientConn(ch.up, DefaultLimits())
	done := func(bool) {}
	mid := testServer(func(w http.ResponseWriter, r *http.Request) {
		r.Header["Authorization"] = []string{"Bearer made-up"}
		resp, err := upstream.RoundTrip(r, &RoundTripOptions{Target: r.RequestURI, Host: r.Host, HeaderTimeout: testTimeout, StallTimeout: testTimeout,
			IdleTimeout: testTimeout, Slow: func() {}, SlowAfter: testTimeout, Done: done})
		if err != nil {
			panic(http.ErrAbortHandler)
		}
		h := w.Header()
		for k, v := range resp.Header {
			h[k] = v
		}
		w.WriteHeader(resp.StatusCode)
		buf, _ := copyBuffers.Get().(*[32 << 10]byte)
		defer copyBuffers.Put(buf)
		for {
			n, err := resp.Body.Read(buf[:])
			if n > 0 {
				_, _ = w.Write(buf[:n])
			}
			if err == io.EOF {
				return
			} else if err != nil {
				panic(http.ErrAbortHandler)
			}
		}
	})
	ch.wg.Go(func() { far.ServeConn(ctx, ctx, ch.origin) })
	ch.wg.Go(func() { mid.ServeConn(ctx, ctx, ch.near) })
	ch.client = NewClientConn(ch.clientSide, DefaultLimits())
	return ch
}

var copyBuffers = sync.Pool{New: func() any { return new([32 << 10]byte) }}

const testTimeout = 5e9

func (ch *chain) close() {
	ch.stop()
	_ = ch.clientSide.Close()
	_ = ch.up.Close()
	ch.wg.Wait()
}

func (ch *chain) exchange(req *http.Request, opts *RoundTripOptions, buf []byte) error {
	resp, err := ch.client.RoundTrip(req, opts)
	if err != nil {
		return err
	}
	for {
		if _, err := resp.Body.Read(buf); err == io.EOF {
			return nil
		} else if err != nil {
			return err
		}
	}
}

// TestOneWritePerMessage: a small exchange is one write and one read per message and
// hop (a read more at most where a connection was idle).
func TestOneWritePerMessage(t *testing.T) {
	ch := newChain(t, strings.Repeat("x", 1024))
	defer ch.close()
	reusable := 0
	opts := &RoundTripOptions{Target: "/path?q=1", Host: "origin.test", Done: func(ok bool) {
		if ok {
			reusable++
		}
	}}
	const n = 50
	buf := make([]byte, 4096)
	for i := range n {
		req := request("GET", nil, 0)
		if i%2 == 1 {
			req = request("POST", strings.NewReader(strings.Repeat("b", 1000)), 1000)
		}
		req.Header["Accept"] = []string{"*/*"}
		if err := ch.exchange(req, opts, buf); err != nil {
			t.Fatal(err)
		}
	}
	if reusable != n {
		t.Fatalf("reusable %d times", reusable)
	}
	ch.close()
	for name, c := range map[string]*countingConn{"client": ch.clientSide, "near": ch.near, "up": ch.up, "origin": ch.origin} {
		if w := c.writes.Load(); w != n {
			t.Errorf("%s: %d writes for %d messages", name, w, n)
		}
		if r := c.reads.Load(); r > n+2 {
			t.Errorf("%s: %d reads for %d messages", name, r, n)
		}
	}
}

func BenchmarkExchange(b *testing.B) {
	ch := newChain(b, strings.Repeat("x", 1024))
	defer ch.close()
	opts := &RoundTripOptions{Target: "/path?q=1", Host: "origin.test", Done: func(bool) {}}
	req := request("GET", nil, 0)
	req.Header["Accept"] = []string{"*/*"}
	req.Header["User-Agent"] = []string{"bench/1.0"}
	req.Header["Content-Type"] = []string{"application/json"}
	buf := make([]byte, 4096)
	b.ReportAllocs()
	for b.Loop() {
		if err := ch.exchange(req, opts, buf); err != nil {
			b.Fatal(err)
		}
	}
}
