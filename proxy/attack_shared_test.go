package proxy_test

import (
	"io"
	"net"
	"net/http"
	"testing"
	"time"

	"github.com/egressd/egressd/proxy"
)

// Sandboxes that share an address (one host, one NAT) cannot shut each other out with
// connections that never say whose they are.
func TestAttack_F07_silent_connections_of_a_shared_address(t *testing.T) {
	l := quick()
	l.ConnectionsPerSandbox = 8
	g := attacked(t, options{limits: l})
	var held []net.Conn
	for range 40 {
		nc := g.dial(t)
		_, _ = io.WriteString(nc, "GET http://good.test/ HTT") // some begin, none ends
		held = append(held, nc)
	}
	time.Sleep(50 * time.Millisecond)
	if a := get(t, g.client("two", tokenTwo, false), g.bed.Good.URL("/")); a.status != http.StatusOK {
		t.Errorf("F07 beside silent connections of its address: %+v", a)
	}
	waitFor(t, func() bool { return g.live(t) <= 8+2 })
	for _, c := range held {
		_ = c.Close()
	}
	waitFor(t, func() bool { return g.live(t) <= 2 })
	g.safe(t)
}

// F07: giving way costs a connection that is identified nothing, and the count holds
// after many have come and gone.
func TestSilentConnectionsGiveWayInOrder(t *testing.T) {
	s := ready(t, options{limits: proxy.Limits{ConnectionsPerSandbox: 4}})
	c := s.one()
	for range 3 {
		if a := get(t, c, s.bed.Good.URL("/bearer")); a.status != http.StatusOK {
			t.Fatalf("%+v", a)
		}
		var last []net.Conn
		for range 20 {
			nc, err := net.Dial("tcp", s.addr)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = nc.Close() })
			last = append(last, nc)
		}
		open := 0
		for _, nc := range last {
			_ = nc.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
			if _, err := nc.Read(make([]byte, 1)); isTimeout(err) {
				open++
			}
		}
		if open != 4 {
			t.Errorf("%d silent connections are open, want 4", open)
		}
	}
}
