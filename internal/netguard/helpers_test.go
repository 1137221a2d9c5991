package netguard

import (
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func guard(t testing.TB, o Options) *Guard {
	t.Helper()
	g, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(g.Close)
	return g
}

// nameserver answers each question with what script returns; nil drops it.
type nameserver struct {
	addr   string
	script func(n int, q dns.Question, network string) *dns.Msg

	mu    sync.Mutex
	asked []dns.Question
}

// newNameserver serves UDP and TCP on one port of loopback.
func newNameserver(t testing.TB, script func(n int, q dns.Question, network string) *dns.Msg) *nameserver {
	t.Helper()
	ns := &nameserver{script: script}
	pc, ln := bothOnOnePort(t)
	ns.addr = pc.LocalAddr().String()
	var wg sync.WaitGroup
	for network, s := range map[string]*dns.Server{"udp": {PacketConn: pc}, "tcp": {Listener: ln}} {
		started := make(chan struct{})
		s.NotifyStartedFunc = func() { close(started) }
		s.Handler = dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) { ns.serve(w, q, network) })
		wg.Go(func() { _ = s.ActivateAndServe() })
		<-started
		t.Cleanup(func() { _ = s.Shutdown() })
	}
	t.Cleanup(func() { _ = ln.Close(); _ = pc.Close(); wg.Wait() })
	return ns
}

// bothOnOnePort tries until a port is free for UDP and TCP.
func bothOnOnePort(t testing.TB) (net.PacketConn, net.Listener) {
	t.Helper()
	for range 100 {
		pc, err := net.ListenPacket("udp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		if ln, err := net.Listen("tcp", pc.LocalAddr().String()); err == nil {
			return pc, ln
		}
		_ = pc.Close()
	}
	t.Fatal("no port is free for both UDP and TCP")
	return nil, nil
}

func (ns *nameserver) serve(w dns.ResponseWriter, q *dns.Msg, network string) {
	ns.mu.Lock()
	ns.asked = append(ns.asked, q.Question[0])
	n := 0
	for _, seen := range ns.asked {
		if seen == q.Question[0] {
			n++
		}
	}
	ns.mu.Unlock()
	r := ns.script(n, q.Question[0], network)
	if r == nil {
		return
	}
	r.Id, r.Response = q.Id, true
	if r.Question == nil {
		r.Question = q.Question
	}
	_ = w.WriteMsg(r)
}

func (ns *nameserver) questions() []dns.Question {
	ns.mu.Lock()
	defer ns.mu.Unlock()
	return append([]dns.Question(nil), ns.asked...)
}

// answer makes a message of records in zone-file form.
func records(t testing.TB, lines ...string) *dns.Msg {
	t.Helper()
	m := new(dns.Msg)
	for _, l := range lines {
		rr, err := dns.NewRR(l)
		if err != nil {
			t.Fatal(err)
		}
		m.Answer = append(m.Answer, rr)
	}
	return m
}

func rcode(code int) *dns.Msg {
	m := new(dns.Msg)
	m.Rcode = code
	return m
}

// listener accepts and closes; it returns its address.
func listener(t testing.TB, address string) netip.AddrPort {
	t.Helper()
	ln, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			_ = c.Close()
		}
	})
	t.Cleanup(func() { _ = ln.Close(); wg.Wait() })
	return netip.MustParseAddrPort(ln.Addr().String())
}

// deafAddr is a loopback address whose connections hang: a listener with a full backlog.
func deafAddr(t testing.TB) netip.AddrPort {
	t.Helper()
	ap, closeAll := deaf(t)
	t.Cleanup(closeAll)
	return ap
}

func prefixes(ss ...string) []netip.Prefix {
	var out []netip.Prefix
	for _, s := range ss {
		out = append(out, netip.MustParsePrefix(s))
	}
	return out
}

func addrs(ss ...string) []netip.Addr {
	var out []netip.Addr
	for _, s := range ss {
		out = append(out, netip.MustParseAddr(s))
	}
	return out
}

const soon = 5 * time.Second
