package testbed

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
)

// Bed is the usual cast of security.md.
type Bed struct {
	CA *CA
	// Good is good.test, Other is other.test: honest origins on one address each.
	Good, Other *Origin
	// Evil is evil.test with a valid certificate of the same CA.
	Evil *Origin
	// Shared answers for good.test and evil.test with one certificate, as a CDN does.
	Shared *Origin
	// Plain is good.test without TLS.
	Plain *Origin
	// Sink is evil.test's plain port: it records and answers nothing.
	Sink *Sink
}

// New starts the cast. Every name's own address differs: good.test is 127.0.0.2,
// evil.test 127.0.0.3, other.test 127.0.0.4; Shared is on 127.0.0.5.
func New(t testing.TB) *Bed {
	t.Helper()
	ca := NewCA(t)
	return &Bed{
		CA:     ca,
		Good:   NewOrigin(t, ca, OriginOptions{IP: "127.0.0.2", Names: []string{"good.test"}}),
		Plain:  NewOrigin(t, ca, OriginOptions{IP: "127.0.0.2", Names: []string{"good.test"}, Plain: true}),
		Evil:   NewOrigin(t, ca, OriginOptions{IP: "127.0.0.3", Names: []string{"evil.test"}}),
		Sink:   NewSink(t, "127.0.0.3"),
		Other:  NewOrigin(t, ca, OriginOptions{IP: "127.0.0.4", Names: []string{"other.test"}}),
		Shared: NewOrigin(t, ca, OriginOptions{IP: "127.0.0.5", Names: []string{"good.test", "evil.test"}}),
	}
}

// Hosts is upstream.hosts for the cast.
func (b *Bed) Hosts() map[string]string {
	return map[string]string{"good.test": "127.0.0.2", "evil.test": "127.0.0.3", "other.test": "127.0.0.4"}
}

// Attacker is every byte that evil.test got in any way.
func (b *Bed) Attacker() []byte {
	return append(b.Evil.Captured(), b.Sink.Captured()...)
}

// Sink accepts, records all that comes and never answers.
type Sink struct {
	ln   net.Listener
	in   tape
	wg   sync.WaitGroup
	mu   sync.Mutex
	open []net.Conn
	n    int
}

// NewSink listens on a free port of ip.
func NewSink(t testing.TB, ip string) *Sink {
	t.Helper()
	ln, err := net.Listen("tcp4", net.JoinHostPort(ip, "0"))
	if err != nil {
		t.Fatalf("testbed: listen on %s: %v", ip, err)
	}
	s := &Sink{ln: ln}
	s.wg.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			s.mu.Lock()
			s.open, s.n = append(s.open, c), s.n+1
			s.mu.Unlock()
			s.wg.Go(func() { _, _ = io.Copy(io.Discard, &tapedConn{Conn: c, in: &s.in}) })
		}
	})
	t.Cleanup(func() {
		_ = ln.Close()
		s.mu.Lock()
		for _, c := range s.open {
			_ = c.Close()
		}
		s.mu.Unlock()
		s.wg.Wait()
	})
	return s
}

// Port is where the sink listens.
func (s *Sink) Port() uint16 { return s.ln.Addr().(*net.TCPAddr).AddrPort().Port() }

// Captured is what came, at most 1 MiB.
func (s *Sink) Captured() []byte { return s.in.bytes() }

// Conns counts the accepted connections.
func (s *Sink) Conns() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.n
}

// HeadOf cuts the first HTTP head out of captured bytes, for messages.
func HeadOf(b []byte) string {
	if i := bytes.Index(b, []byte("\r\n\r\n")); i >= 0 {
		b = b[:i]
	}
	return strings.ToValidUTF8(fmt.Sprintf("%.2048s", b), "?")
}
