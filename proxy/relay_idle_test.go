package proxy

import (
	"bytes"
	"io"
	"net"
	"testing"
	"time"
)

func tcpPair(t *testing.T) (client, server net.Conn) {
	t.Helper()
	ln, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = ln.Close() }()
	if client, err = net.Dial("tcp4", ln.Addr().String()); err != nil {
		t.Fatal(err)
	}
	if server, err = ln.Accept(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = client.Close(); _ = server.Close() })
	return client, server
}

// H10: a relay in which one side only listens, as in a long download, is not idle; one
// in which nothing moves, or in which nothing is taken, is.
func TestPipeIdle(t *testing.T) {
	const idle = 200 * time.Millisecond
	start := func() (client, origin net.Conn, over chan struct{}) {
		client, near := tcpPair(t)
		far, origin := tcpPair(t)
		over = make(chan struct{})
		go func() {
			defer close(over)
			_, _, _ = pipe(near, far, idle)
		}()
		return client, origin, over
	}
	ends := func(over chan struct{}) {
		t.Helper()
		select {
		case <-over:
		case <-time.After(10 * idle):
			t.Error("the relay never ended")
		}
	}
	for name, swap := range map[string]bool{"download": false, "upload": true} {
		to, from, over := start()
		if swap {
			to, from = from, to
		}
		go func() {
			for range 20 {
				_, _ = io.WriteString(from, "x")
				time.Sleep(idle / 4)
			}
			_ = from.Close()
		}()
		_ = to.SetReadDeadline(time.Now().Add(5 * time.Second))
		if b, err := io.ReadAll(to); len(b) != 20 {
			t.Errorf("%s in 5 times the idle limit: %d of 20 bytes, %v", name, len(b), err)
		}
		_ = to.Close()
		ends(over)
	}
	_, _, over := start()
	ends(over)
	_, origin, over := start()
	_ = origin.SetWriteDeadline(time.Now().Add(5 * time.Second))
	_, _ = io.Copy(origin, bytes.NewReader(make([]byte, 64<<20))) // until the client's buffers are full, and on
	ends(over)
	client, origin, over := start()
	_ = client.(*net.TCPConn).CloseWrite() // nobody is left in the other direction to see it
	_ = origin.SetWriteDeadline(time.Now().Add(5 * time.Second))
	_, _ = io.Copy(origin, bytes.NewReader(make([]byte, 64<<20)))
	ends(over)
}
