package policydns

import (
	"context"
	"net/netip"
	"strings"
	"testing"

	"github.com/miekg/dns"

	"github.com/egressd/egressd/internal/netguard"
)

// FuzzAnswer: whatever a sandbox sends, what it gets is an answer to that, not above the
// size, with addresses for an allowed name alone, and nobody is asked for another.
func FuzzAnswer(f *testing.F) {
	for _, m := range []*dns.Msg{
		question("good.test", dns.TypeA), question("x.good.test", dns.TypeHTTPS), question("evil.test", dns.TypeAAAA),
		question(`a\.b.good.test`, dns.TypeA), question("good.test", dns.TypeANY), question("GOOD.test", dns.TypeAAAA).SetEdns0(4096, true),
	} {
		b, err := m.Pack()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b, false)
		f.Add(b, true)
	}
	addrs := []netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1"), {}}
	allowed := func(host string) bool { return host == "good.test" || strings.HasSuffix(host, ".good.test") }
	rr, err := dns.NewRR("good.test. 60 IN HTTPS 1 . alpn=h3,h2 ipv4hint=192.0.2.9")
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, packet []byte, tcp bool) {
		memory := NewMemory()
		check := func(host string) {
			if !allowed(host) {
				t.Errorf("%q is looked up", host)
			}
		}
		reports := 0
		s := New(Options{
			MayName: func(_, host string) bool { return allowed(host) },
			Lookup: func(_ context.Context, _, host string) ([]netip.Addr, error) {
				check(host)
				if strings.HasPrefix(host, "no") {
					return nil, netguard.ErrNoSuchHost
				}
				return addrs, nil
			},
			HTTPS: func(_ context.Context, _, host string) ([]dns.RR, error) {
				check(host)
				return []dns.RR{rr}, nil
			},
			Memory: memory, Report: func(Event) { reports++ },
		})
		reply := s.answer(context.Background(), s.clients.get("one"), packet, tcp)
		if reports != 1 {
			t.Errorf("%d reports", reports)
		}
		name, known := memory.Name("one", addrs[0])
		if known && !allowed(name) {
			t.Errorf("remembers %q", name)
		}
		if reply == nil {
			return
		}
		if len(reply) < headerLen || reply[0] != packet[0] || reply[1] != packet[1] || reply[2]&0x80 == 0 || !tcp && len(reply) > maxUDP {
			t.Fatalf("% x is no answer to % x", reply, packet)
		}
		r := new(dns.Msg)
		if err := r.Unpack(reply); err != nil {
			t.Fatalf("% x: %v", reply, err)
		}
		if len(r.Answer) > 0 && (r.Rcode != dns.RcodeSuccess || len(r.Question) != 1) {
			t.Errorf("%v", r)
		}
		for _, rr := range r.Answer {
			if rr.Header().Name != r.Question[0].Name || rr.Header().Rrtype != r.Question[0].Qtype || strings.Contains(rr.String(), "h3") {
				t.Errorf("%v", r)
			}
		}
	})
}
