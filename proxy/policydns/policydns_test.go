package policydns

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/egressd/egressd/internal/netguard"
	"github.com/egressd/egressd/internal/testbed"
)

func want(t testing.TB, out string, parts ...string) {
	t.Helper()
	for _, p := range parts {
		if neg, ok := strings.CutPrefix(p, "!"); ok == strings.Contains(out, neg) && ok || !ok && !strings.Contains(out, p) {
			t.Errorf("want %q in\n%s", p, out)
		}
	}
}

func TestDig(t *testing.T) {
	b := newBed(t, nil)
	b.ns.On("good.test", testbed.DNSAnswer{IPs: []string{"192.0.2.1", "192.0.2.2", "2001:db8::1"}, TTL: 3600})
	b.ns.On("alias.good.test", testbed.DNSAnswer{CNAME: "hidden.elsewhere.test", IPs: []string{"192.0.2.3"}, TTL: 60})
	b.ns.On("four.good.test", testbed.DNSAnswer{IPs: []string{"192.0.2.4"}})
	b.ns.On("inside.good.test", testbed.DNSAnswer{IPs: []string{"10.0.0.1"}})
	b.ns.On("meta.good.test", testbed.DNSAnswer{IPs: []string{"169.254.169.254"}})
	b.ns.On("mixed.good.test", testbed.DNSAnswer{IPs: []string{"127.0.0.1", "192.0.2.5"}})
	b.ns.On("broken.good.test", testbed.DNSAnswer{Rcode: dns.RcodeServerFailure})
	for _, proto := range []string{"+notcp", "+tcp"} {
		t.Run(proto, func(t *testing.T) {
			for _, tc := range []struct {
				name string
				args []string
				want []string
			}{
				{"A", []string{"good.test", "A"}, []string{"NOERROR", "ANSWER: 2,", "30\tIN\tA\t192.0.2.1", "30\tIN\tA\t192.0.2.2", "qr rd ra;", "udp: 1232"}},
				{"AAAA", []string{"good.test", "AAAA"}, []string{"NOERROR", "ANSWER: 1,", "30\tIN\tAAAA\t2001:db8::1"}},
				{"case is kept", []string{"gOOd.TesT", "A"}, []string{"NOERROR", ";gOOd.TesT.", "gOOd.TesT.\t\t30\tIN\tA\t192.0.2.1"}},
				{"alias", []string{"alias.good.test", "A"}, []string{"alias.good.test.\t30\tIN\tA\t192.0.2.3", "!CNAME", "!elsewhere"}},
				{"no such family", []string{"four.good.test", "AAAA"}, []string{"NOERROR", "ANSWER: 0,"}},
				{"no such name", []string{"none.good.test", "A"}, []string{"NXDOMAIN"}},
				{"not allowed", []string{"evil.test", "A"}, []string{"REFUSED", "EDE: 15 (Blocked): (not allowed by policy)"}},
				{"another sandbox's", []string{"two.test", "A"}, []string{"REFUSED", "EDE: 15"}},
				{"private", []string{"inside.good.test", "A"}, []string{"REFUSED", "EDE: 15", "!10.0.0.1"}},
				{"metadata", []string{"meta.good.test", "A"}, []string{"REFUSED", "!169.254"}},
				{"mixed", []string{"mixed.good.test", "A"}, []string{"NOERROR", "192.0.2.5", "!A\t127.0.0.1"}},
				{"lookup fails", []string{"broken.good.test", "A"}, []string{"SERVFAIL", "EDE: 22"}},
				{"TXT", []string{"good.test", "TXT"}, []string{"NOERROR", "ANSWER: 0,"}},
				{"MX", []string{"good.test", "MX"}, []string{"NOERROR", "ANSWER: 0,"}},
				{"SVCB", []string{"good.test", "SVCB"}, []string{"NOERROR", "ANSWER: 0,"}},
				{"ANY", []string{"good.test", "ANY"}, []string{"REFUSED"}},
				{"IXFR", []string{"good.test", "-t", "IXFR=1", "+noall", "+comments"}, nil},
				{"chaos", []string{"version.bind", "TXT", "-c", "CH"}, []string{"REFUSED"}},
				{"root", []string{".", "NS"}, []string{"REFUSED"}},
				{"reverse", []string{"-x", "192.0.2.1"}, []string{"REFUSED"}},
				{"update", []string{"+opcode=update", "good.test"}, []string{"NOTIMP"}},
				{"notify", []string{"+opcode=notify", "good.test"}, []string{"NOTIMP"}},
				{"no EDNS", []string{"+noedns", "evil.test"}, []string{"REFUSED", "!EDE"}},
				{"EDNS 1", []string{"+edns=1", "+noednsneg", "good.test"}, []string{"BADVERS"}},
				{"DNSSEC wanted", []string{"+dnssec", "good.test"}, []string{"NOERROR", "!RRSIG"}},
			} {
				t.Run(tc.name, func(t *testing.T) { want(t, b.dig(t, "127.0.0.1", append(tc.args, proto)...), tc.want...) })
			}
		})
	}
	t.Run("AXFR", func(t *testing.T) { want(t, b.dig(t, "127.0.0.1", "good.test", "AXFR"), "Transfer failed") })
	t.Run("B14 nobody is asked for what is not answered", func(t *testing.T) {
		for _, q := range b.ns.Queries() {
			if q.Type != "A" && q.Type != "AAAA" && q.Type != "HTTPS" || !strings.HasSuffix(q.Name, "good.test") {
				t.Errorf("%+v was asked", q)
			}
		}
	})
}

func TestStrangers(t *testing.T) {
	b := newBed(t, nil)
	b.ns.On("good.test", testbed.DNSAnswer{IPs: []string{"192.0.2.1"}})
	want(t, b.dig(t, stranger, "good.test"), "REFUSED", "!192.0.2.1")
	if r := b.ask(t, "tcp", stranger, question("good.test", dns.TypeA)); r != nil {
		t.Errorf("by TCP: %v", r)
	}
	q, err := question("good.test", dns.TypeA).Pack()
	if err != nil {
		t.Fatal(err)
	}
	nc, err := (&net.Dialer{LocalAddr: &net.UDPAddr{IP: net.ParseIP(stranger)}}).Dial("udp", fmt.Sprintf("127.0.0.1:%d", b.port))
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	for range 300 {
		_, _ = nc.Write(q)
	}
	got, buf := 0, make([]byte, 1500)
	for {
		_ = nc.SetReadDeadline(time.Now().Add(300 * time.Millisecond))
		n, err := nc.Read(buf)
		if err != nil {
			break
		}
		if got++; n > len(q) {
			t.Errorf("%d bytes for %d", n, len(q))
		}
	}
	if got == 0 || got > unknownBurst+unknownRate*2 {
		t.Errorf("%d refusals", got)
	}
	if len(b.ns.Queries()) != 0 {
		t.Errorf("looked up: %v", b.ns.Queries())
	}
}

// TestAttack_B14_dns_tunnel tries to carry data out in names.
func TestAttack_B14_dns_tunnel(t *testing.T) {
	b := newBed(t, func(o *Options) {
		o.Limits = Limits{PerSecond: 1e6, Burst: 1e6, NewNames: 10}
	})
	t.Run("names", func(t *testing.T) {
		for i := range 100 {
			b.ask(t, "udp", "127.0.0.1", question(fmt.Sprintf("data%04d.good.test", i), dns.TypeAAAA))
		}
		asked := map[string]bool{}
		for _, q := range b.ns.Queries() {
			asked[q.Name] = true
		}
		if len(asked) < 15 || len(asked) > 23 {
			t.Errorf("%d names left of 100", len(asked))
		}
		if r := b.ask(t, "udp", "127.0.0.1", question("data0001.good.test", dns.TypeA)); r.Rcode != dns.RcodeNameError {
			t.Errorf("a name that was asked for before: %v", r)
		}
		if r := b.ask(t, "udp", "127.0.0.2", question("new.two.test", dns.TypeA)); r.Rcode != dns.RcodeNameError {
			t.Errorf("another sandbox: %v", r)
		}
	})
	before := len(b.ns.Queries())
	for _, tc := range []struct {
		name string
		typ  uint16
	}{
		{strings.Repeat("a", 51) + ".two.test", dns.TypeA},
		{strings.Repeat("abcdefgh.", 18) + "two.test", dns.TypeA},
		{strings.Repeat("a", 63) + "." + strings.Repeat("b", 63) + ".two.test", dns.TypeTXT},
		{"x.two.test", dns.TypeTXT}, {"x.two.test", dns.TypeNULL}, {"x.two.test", dns.TypeCNAME}, {"x.two.test", dns.TypePTR},
		{"x.evil.test", dns.TypeA}, {`a\000b.two.test`, dns.TypeA}, {`a\.b.two.test`, dns.TypeA}, {`\200\201.two.test`, dns.TypeA},
		{"192.0.2.1", dns.TypeA}, {"2130706433", dns.TypeA}, {"0x7f.1", dns.TypeA},
	} {
		r := b.ask(t, "udp", "127.0.0.2", question(tc.name, tc.typ))
		if r == nil || len(r.Answer) != 0 || r.Rcode != dns.RcodeRefused && r.Rcode != dns.RcodeSuccess {
			t.Errorf("%s: %v", tc.name, r)
		}
	}
	if n := len(b.ns.Queries()); n != before {
		t.Errorf("asked: %v", b.ns.Queries()[before:])
	}
	if b.outcomes()[Tunnel] < 77+2 {
		t.Errorf("reported %v", b.outcomes())
	}
}

func TestHTTPSRecords(t *testing.T) {
	b := newBed(t, nil)
	const ech = "ech=AEX+DQBBEQAgACCfM29tZUZha2VLZXlPZjMyQnl0ZXNGb3JUZXN0cwAEAAEAAQAAC2dvb2QuZXhhbXBsZQAA"
	for name, records := range map[string][]string{
		"full.good.test":      {"1 . alpn=h3,h3-29,h2,http/1.1 port=443 " + ech + " ipv4hint=192.0.2.9 ipv6hint=2001:db8::9"},
		"quic.good.test":      {"1 . alpn=h3 " + ech},
		"only.good.test":      {"1 . " + ech},
		"alias.good.test":     {"0 elsewhere.test."},
		"self.good.test":      {"0 self.good.test. alpn=h2"},
		"target.good.test":    {"1 elsewhere.test. alpn=h2"},
		"must.good.test":      {"1 . mandatory=ech alpn=h2 " + ech},
		"mustalpn.good.test":  {"1 . mandatory=alpn alpn=h2"},
		"nodefault.good.test": {"1 . alpn=h3 no-default-alpn"},
		"private.good.test":   {"1 . key65400=abc"},
		"several.good.test":   {"1 . alpn=h3", "2 . alpn=h2", "3 . port=8443"},
	} {
		var rrs []string
		for _, r := range records {
			rrs = append(rrs, name+". 9999 IN HTTPS "+r)
		}
		b.ns.On(name, testbed.DNSAnswer{IPs: []string{"192.0.2.1"}, RRs: rrs})
	}
	for _, tc := range []struct {
		name string
		want []string
	}{
		{"full", []string{"ANSWER: 1,", "30\tIN\tHTTPS\t1 . alpn=\"h2,http/1.1\" port=443\n"}},
		{"quic", []string{"NOERROR", "ANSWER: 0,"}},
		{"only", []string{"NOERROR", "ANSWER: 0,"}},
		{"alias", []string{"ANSWER: 0,", "!elsewhere"}},
		{"self", []string{"ANSWER: 0,"}},
		{"target", []string{"ANSWER: 0,", "!elsewhere"}},
		{"must", []string{"ANSWER: 0,"}},
		{"mustalpn", []string{"1 . mandatory=alpn alpn=\"h2\"\n"}},
		{"nodefault", []string{"ANSWER: 0,"}},
		{"private", []string{"ANSWER: 0,"}},
		{"several", []string{"ANSWER: 2,", "2 . alpn=\"h2\"\n", "3 . port=8443\n"}},
		{"none", []string{"NOERROR", "ANSWER: 0,"}},
	} {
		for _, id := range []string{"A18", "B15"} {
			t.Run(id+" "+tc.name, func(t *testing.T) {
				out := b.dig(t, "127.0.0.1", tc.name+".good.test", "HTTPS")
				want(t, out, append(tc.want, "!ech=", "!h3", "!hint")...)
			})
		}
	}
	if r := b.ask(t, "udp", "127.0.0.1", question("evil.test", dns.TypeHTTPS)); r.Rcode != dns.RcodeRefused {
		t.Errorf("%v", r)
	}
	t.Run("none asked for", func(t *testing.T) {
		b := newBed(t, func(o *Options) { o.HTTPS = nil })
		want(t, b.dig(t, "127.0.0.1", "good.test", "HTTPS"), "NOERROR", "ANSWER: 0,")
		if len(b.ns.Queries()) != 0 {
			t.Error("looked up")
		}
	})
}

// TestAttack_B29_names_only_from_own_answers: an address gets a name by what this server
// told this sandbox, and by nothing else.
func TestAttack_B29_names_only_from_own_answers(t *testing.T) {
	b := newBed(t, nil)
	b.ns.On("good.test", testbed.DNSAnswer{IPs: []string{"192.0.2.1", "2001:db8::1"}})
	b.ns.On("inside.good.test", testbed.DNSAnswer{IPs: []string{"10.0.0.1"}})
	b.ns.On("evil.test", testbed.DNSAnswer{IPs: []string{"192.0.2.66"}})
	b.ns.On("poison.good.test", testbed.DNSAnswer{IPs: []string{"192.0.2.7"}, RRs: []string{"good.test. 60 IN A 192.0.2.66"}})
	for _, name := range []string{"evil.test", "inside.good.test", "poison.good.test"} {
		b.ask(t, "udp", "127.0.0.1", question(name, dns.TypeA))
	}
	// An answer that the sandbox makes up itself, or an update, teaches nothing.
	m := question("good.test", dns.TypeA)
	rr, err := dns.NewRR("good.test. 60 IN A 192.0.2.66")
	if err != nil {
		t.Fatal(err)
	}
	for _, change := range []func(*dns.Msg){
		func(m *dns.Msg) { m.Answer = []dns.RR{rr} },
		func(m *dns.Msg) { m.Extra = []dns.RR{rr} },
		func(m *dns.Msg) { m.Ns, m.Opcode = []dns.RR{rr}, dns.OpcodeUpdate },
	} {
		q := m.Copy()
		change(q)
		b.ask(t, "udp", "127.0.0.1", q)
	}
	m.Response, m.Answer = true, []dns.RR{rr}
	packed, err := m.Pack()
	if err != nil {
		t.Fatal(err)
	}
	if got := b.raw(t, "udp", "127.0.0.1", packed, 200*time.Millisecond); got != nil {
		t.Errorf("an answer is answered: % x", got)
	}
	for _, addr := range []string{"192.0.2.66", "10.0.0.1"} {
		if name, ok := b.memory.Name("one", netip.MustParseAddr(addr)); ok {
			t.Errorf("%s is %s", addr, name)
		}
	}
	b.ask(t, "udp", "127.0.0.1", question("GOOD.test", dns.TypeA))
	for addr, wanted := range map[string]string{"192.0.2.1": "good.test", "::ffff:192.0.2.1": "good.test", "2001:db8::1": "", "192.0.2.66": "", "192.0.2.7": "poison.good.test"} {
		if name, _ := b.memory.Name("one", netip.MustParseAddr(addr)); name != wanted {
			t.Errorf("%s is %q, want %q", addr, name, wanted)
		}
	}
	if _, ok := b.memory.Name("two", netip.MustParseAddr("192.0.2.1")); ok {
		t.Error("a sandbox knows what another was told")
	}
}

// TestAttack_C36_reports_are_a_closed_set whatever names and types are asked for.
func TestAttack_C36_reports_are_a_closed_set(t *testing.T) {
	b := newBed(t, func(o *Options) { o.Limits = Limits{PerSecond: 1e6, Burst: 1e6} })
	for i := range 300 {
		b.ask(t, "udp", "127.0.0.1", question(fmt.Sprintf("h%d.evil.test", i), uint16(i)))
	}
	_ = b.raw(t, "udp", "127.0.0.1", []byte("not a question at all, but long enough"), answerTime)
	types := map[string]bool{}
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, e := range b.events {
		types[e.Type] = true
		switch e.Outcome {
		case Answered, Empty, Denied, Forbidden, Tunnel, Limited, Unknown, Malformed, Failed:
		default:
			t.Errorf("outcome %q", e.Outcome)
		}
		if len(e.Name) > 253 {
			t.Errorf("a name of %d bytes", len(e.Name))
		}
	}
	for typ := range types {
		if !strings.Contains(" A AAAA HTTPS other ", " "+typ+" ") && typ != "" {
			t.Errorf("type %q", typ)
		}
	}
}

func TestTruncation(t *testing.T) {
	var many []netip.Addr
	for i := range 60 {
		many = append(many, netip.AddrFrom16([16]byte{0x20, 1, 0xd, 0xb8, 15: byte(i)}))
	}
	name := strings.Repeat("long-label.", 12) + "good.test"
	b := newBed(t, func(o *Options) {
		o.Lookup = func(context.Context, string, string) ([]netip.Addr, error) { return many, nil }
	})
	q := question(name, dns.TypeAAAA)
	packed, err := q.Pack()
	if err != nil {
		t.Fatal(err)
	}
	if raw := b.raw(t, "udp", "127.0.0.1", packed, answerTime); len(raw) > plainUDP || len(raw) < headerLen || raw[2]&2 == 0 {
		t.Errorf("without EDNS: % x", raw)
	}
	if r := b.ask(t, "tcp", "127.0.0.1", q); r.Truncated || len(r.Answer) != maxAnswers {
		t.Errorf("by TCP: tc %v, %d records", r.Truncated, len(r.Answer))
	}
	for _, size := range []uint16{0, 100, 512, 1232, 4096, 65535} {
		e := q.Copy()
		e.SetEdns0(size, false)
		packed, err := e.Pack()
		if err != nil {
			t.Fatal(err)
		}
		limit := min(max(int(size), plainUDP), maxUDP)
		if raw := b.raw(t, "udp", "127.0.0.1", packed, answerTime); len(raw) == 0 || len(raw) > limit {
			t.Errorf("EDNS %d: %d bytes", size, len(raw))
		}
	}
	want(t, b.dig(t, "127.0.0.1", name, "AAAA", "+bufsize=512"), "ANSWER: 16,") // dig comes again by TCP
}

func TestRawPackets(t *testing.T) {
	b := newBed(t, nil)
	b.ns.On("good.test", testbed.DNSAnswer{IPs: []string{"192.0.2.1"}})
	pack := func(change func(*dns.Msg)) []byte {
		q := question("good.test", dns.TypeA)
		change(q)
		out, err := q.Pack()
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	opt := func() dns.RR { return &dns.OPT{Hdr: dns.RR_Header{Name: ".", Rrtype: dns.TypeOPT, Class: 1232}} }
	for _, tc := range []struct {
		name   string
		packet []byte
		rcode  int // -1: no answer
	}{
		{"good", pack(func(*dns.Msg) {}), dns.RcodeSuccess},
		{"a response", pack(func(m *dns.Msg) { m.Response = true }), -1},
		{"two questions", pack(func(m *dns.Msg) { m.Question = append(m.Question, m.Question[0]) }), dns.RcodeFormatError},
		{"no question", pack(func(m *dns.Msg) { m.Question = nil }), dns.RcodeFormatError},
		{"two OPT", pack(func(m *dns.Msg) { m.Extra = []dns.RR{opt(), opt()} }), dns.RcodeFormatError},
		{"status", pack(func(m *dns.Msg) { m.Opcode = dns.OpcodeStatus }), dns.RcodeNotImplemented},
		{"11 bytes", make([]byte, 11), -1},
		{"empty", nil, -1},
		{"header only", append([]byte{1, 2, 1, 0, 0, 1}, make([]byte, 6)...), dns.RcodeFormatError},
		{"a pointer to itself", append([]byte{1, 2, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0}, 0xc0, 12, 0, 1, 0, 1), dns.RcodeFormatError},
	} {
		t.Run(tc.name, func(t *testing.T) {
			limit := answerTime
			if tc.rcode < 0 {
				limit = 200 * time.Millisecond
			}
			raw := b.raw(t, "udp", "127.0.0.1", tc.packet, limit)
			if tc.rcode < 0 {
				if raw != nil {
					t.Errorf("answered % x", raw)
				}
				return
			}
			if len(raw) < headerLen || int(raw[3]&0xf) != tc.rcode || raw[0] != tc.packet[0] || raw[1] != tc.packet[1] || raw[2]&0x80 == 0 {
				t.Errorf("answered % x, want rcode %d", raw, tc.rcode)
			}
		})
	}
}

func TestRateLimit(t *testing.T) {
	b := newBed(t, func(o *Options) { o.Limits = Limits{PerSecond: 1, Burst: 20} })
	b.ns.On("good.test", testbed.DNSAnswer{IPs: []string{"192.0.2.1"}})
	b.ns.On("two.test", testbed.DNSAnswer{IPs: []string{"192.0.2.2"}})
	q, err := question("good.test", dns.TypeA).Pack()
	if err != nil {
		t.Fatal(err)
	}
	nc, err := net.Dial("udp", fmt.Sprintf("127.0.0.1:%d", b.port))
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	got, buf := 0, make([]byte, 1500)
	for range 60 {
		_, _ = nc.Write(q)
		_ = nc.SetReadDeadline(time.Now().Add(15 * time.Millisecond))
		if _, err := nc.Read(buf); err == nil {
			got++
		}
	}
	if got < 15 || got > 30 {
		t.Errorf("%d answers to 60 questions", got)
	}
	if r := b.ask(t, "tcp", "127.0.0.1", question("good.test", dns.TypeA)); r != nil && b.outcomes()[Limited] == 0 {
		t.Error("TCP has another limit")
	}
	if r := b.ask(t, "udp", "127.0.0.2", question("two.test", dns.TypeA)); r == nil || len(r.Answer) != 1 {
		t.Errorf("an honest neighbour got %v", r)
	}
	if b.outcomes()[Limited] < 25 {
		t.Errorf("reported %v", b.outcomes())
	}
}

// TestConcurrency: lookups that hang take a sandbox's own places and nobody else's.
func TestConcurrency(t *testing.T) {
	var most, now atomic.Int32
	stop := make(chan struct{})
	b := newBed(t, func(o *Options) {
		o.Limits = Limits{Concurrent: 4, Total: 6}
		o.Lookup = func(ctx context.Context, sandbox, _ string) ([]netip.Addr, error) {
			if sandbox == "two" {
				return []netip.Addr{netip.MustParseAddr("192.0.2.2")}, nil
			}
			if n := now.Add(1); n > most.Load() {
				most.Store(n)
			}
			defer now.Add(-1)
			select {
			case <-stop:
			case <-ctx.Done():
			}
			return nil, netguard.ErrLookup
		}
	})
	q, err := question("good.test", dns.TypeA).Pack()
	if err != nil {
		t.Fatal(err)
	}
	nc, err := net.Dial("udp", fmt.Sprintf("127.0.0.1:%d", b.port))
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	for range 50 {
		_, _ = nc.Write(q)
	}
	if r := b.ask(t, "udp", "127.0.0.2", question("two.test", dns.TypeA)); r == nil || len(r.Answer) != 1 {
		t.Errorf("an honest neighbour got %v", r)
	}
	for range 500 {
		if most.Load() > 0 {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	if n := most.Load(); n == 0 || n > 4 {
		t.Errorf("%d lookups at once", n)
	}
	close(stop)
}

func TestTCPConnections(t *testing.T) {
	b := newBed(t, func(o *Options) { o.Limits = Limits{Connections: 3} })
	b.ns.On("good.test", testbed.DNSAnswer{IPs: []string{"192.0.2.1"}})
	dial := func() *dns.Conn {
		nc, err := net.Dial("tcp4", fmt.Sprintf("127.0.0.1:%d", b.port))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = nc.Close() })
		_ = nc.SetDeadline(time.Now().Add(5 * time.Second))
		return &dns.Conn{Conn: nc}
	}
	var open []*dns.Conn
	for range 3 {
		c := dial()
		for range 3 { // several questions on one connection
			_ = c.WriteMsg(question("good.test", dns.TypeA))
			if r, err := c.ReadMsg(); err != nil || len(r.Answer) != 1 {
				t.Fatalf("%v: %v", r, err)
			}
		}
		open = append(open, c)
	}
	fourth := dial()
	_ = fourth.WriteMsg(question("good.test", dns.TypeA))
	if r, err := fourth.ReadMsg(); err == nil {
		t.Errorf("a fourth connection: %v", r)
	}
	_ = open[0].Close()
	for range 100 {
		c := dial()
		_ = c.WriteMsg(question("good.test", dns.TypeA))
		if _, err := c.ReadMsg(); err == nil {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Error("a place that was given back is not taken")
}

func TestTCPGarbage(t *testing.T) {
	b := newBed(t, nil)
	for _, sent := range []string{"\x00\x00", "\x00\x05hello", "\xff\xffGET / HTTP/1.1\r\n\r\n", "GET / HTTP/1.1\r\n\r\n"} {
		nc, err := net.Dial("tcp4", fmt.Sprintf("127.0.0.1:%d", b.port))
		if err != nil {
			t.Fatal(err)
		}
		_ = nc.SetDeadline(time.Now().Add(5 * time.Second))
		_, _ = nc.Write([]byte(sent))
		if n, err := nc.Read(make([]byte, 100)); err == nil || errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%q: %d bytes, %v", sent, n, err)
		}
		_ = nc.Close()
	}
}

// TestServeEnds: with a listener that is closed under it, and with one kind only.
func TestServeEnds(t *testing.T) {
	o := (&bed{ns: testbed.NewNS(t), memory: NewMemory()}).options(t, nil)
	t.Run("listener closed", func(t *testing.T) {
		pc, ln := listen(t)
		done := make(chan error, 1)
		go func() { done <- New(o).Serve(t.Context(), pc, ln) }()
		_ = ln.Close()
		if err := <-done; !errors.Is(err, net.ErrClosed) {
			t.Errorf("%v", err)
		}
	})
	t.Run("UDP only", func(t *testing.T) {
		pc, ln := listen(t)
		_ = ln.Close()
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- New(o).Serve(ctx, pc, nil) }()
		cancel()
		if err := <-done; err != nil {
			t.Errorf("%v", err)
		}
	})
}

// TestUnusualPacketConn: one that is no *net.UDPConn.
func TestUnusualPacketConn(t *testing.T) {
	b := newBed(t, nil)
	b.ns.On("good.test", testbed.DNSAnswer{IPs: []string{"192.0.2.1"}})
	pc, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- b.Serve(ctx, struct{ net.PacketConn }{pc}, nil) }()
	b.port = pc.LocalAddr().(*net.UDPAddr).Port
	if r := b.ask(t, "udp", "127.0.0.1", question("good.test", dns.TypeA)); r == nil || len(r.Answer) != 1 {
		t.Errorf("%v", r)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}
