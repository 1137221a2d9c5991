package proxy_test

import (
	"strings"
	"testing"
	"time"
)

// A client that says no protocol in its ClientHello, and speaks none of HTTP inside, is
// refused at once and in its own words, where only HTTP has rules too.
func TestRefusalInsideTLSInTheProtocolsWords(t *testing.T) {
	g := attacked(t, options{})
	got, closed := g.talk(g.good(t), "*1\r\n$4\r\nPING\r\n", 3*time.Second)
	if !closed || !strings.HasPrefix(string(got), "-ERR egressd: protocol_not_allowed, request ") {
		t.Errorf("closed %v, %q", closed, got)
	}
	got, _ = g.talk(g.good(t), "GET /bearer HTTP/1.1\r\nHost: "+g.goodHost()+"\r\n\r\n", 500*time.Millisecond)
	if !strings.HasPrefix(string(got), "HTTP/1.1 200 OK\r\n") {
		t.Errorf("HTTP without ALPN: %q", got)
	}
}
