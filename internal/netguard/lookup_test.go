package netguard

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/miekg/dns"
)

var cmpAddr = cmp.Comparer(func(a, b netip.Addr) bool { return a == b })

func lookup(t *testing.T, g *Guard, host string) []netip.Addr {
	t.Helper()
	got, err := g.Lookup(t.Context(), host)
	if err != nil {
		t.Fatalf("Lookup(%q): %v", host, err)
	}
	return got
}

func TestLookup(t *testing.T) {
	long := make([]string, 60)
	for i := range long {
		long[i] = fmt.Sprintf("many.test. 60 A 192.0.2.%d", i)
	}
	ns := newNameserver(t, func(_ int, q dns.Question, network string) *dns.Msg {
		a := q.Qtype == dns.TypeA
		switch q.Name {
		case "good.test.":
			if a {
				return records(t, "good.test. 60 A 192.0.2.1", "good.test. 60 A 192.0.2.2")
			}
			return records(t, "good.test. 60 AAAA 2001:db8::1")
		case "v4.test.":
			if a {
				return records(t, "v4.test. 60 A 192.0.2.4")
			}
			return records(t)
		case "v6.test.":
			if a {
				return rcode(dns.RcodeServerFailure)
			}
			return records(t, "v6.test. 60 AAAA 2001:db8::6")
		case "alias.test.":
			if a {
				return records(t, "ALIAS.test. 60 CNAME b.test.", "c.test. 60 A 192.0.2.7", "b.test. 60 CNAME c.test.", "other.test. 60 A 192.0.2.66")
			}
			return records(t, "alias.test. 60 CNAME b.test.")
		case "loop.test.":
			return records(t, "loop.test. 60 CNAME pool.test.", "pool.test. 60 CNAME loop.test.")
		case "stray.test.":
			return records(t, "evil.test. 60 A 192.0.2.66", "evil.test. 60 AAAA 2001:db8::66")
		case "many.test.":
			if !a {
				return records(t)
			}
			if network == "udp" {
				return &dns.Msg{MsgHdr: dns.MsgHdr{Truncated: true}}
			}
			return records(t, long...)
		case "_svc.under-score.test.":
			return records(t, "_svc.under-score.test. 60 A 192.0.2.9")
		case "empty.test.":
			return records(t)
		case "half.test.":
			if a {
				return records(t)
			}
			return rcode(dns.RcodeServerFailure)
		case "broken.test.":
			return rcode(dns.RcodeServerFailure)
		case "refused.test.":
			return rcode(dns.RcodeRefused)
		case "question.test.":
			r := records(t, "question.test. 60 A 192.0.2.66")
			r.SetQuestion("another.test.", q.Qtype)
			r.Answer = records(t, "question.test. 60 A 192.0.2.66").Answer
			return r
		}
		return rcode(dns.RcodeNameError)
	})
	g := guard(t, Options{
		Resolvers: []string{ns.addr}, LookupTimeout: 2 * time.Second,
		Hosts: map[string]netip.Addr{"Pinned.Test": netip.MustParseAddr("::ffff:192.0.2.99"), "single": netip.MustParseAddr("192.0.2.98")},
	})
	for _, tc := range []struct {
		host string
		want []netip.Addr
		err  error
	}{
		{"good.test", addrs("192.0.2.1", "192.0.2.2", "2001:db8::1"), nil},
		{"GOOD.Test.", addrs("192.0.2.1", "192.0.2.2", "2001:db8::1"), nil},
		{"v4.test", addrs("192.0.2.4"), nil},
		{"v6.test", addrs("2001:db8::6"), nil},
		{"alias.test", addrs("192.0.2.7"), nil},
		{"_svc.under-score.test", addrs("192.0.2.9"), nil},
		{"pinned.test", addrs("192.0.2.99"), nil},
		{"single", addrs("192.0.2.98"), nil},
		{"192.0.2.5", addrs("192.0.2.5"), nil},
		{"2001:db8::5", addrs("2001:db8::5"), nil},
		{"::ffff:192.0.2.5", addrs("192.0.2.5"), nil},
		{"nx.test", nil, ErrNoSuchHost},
		{"empty.test", nil, ErrNoSuchHost},
		{"loop.test", nil, ErrNoSuchHost},
		{"stray.test", nil, ErrNoSuchHost},
		{"half.test", nil, ErrLookup},
		{"broken.test", nil, ErrLookup},
		{"refused.test", nil, ErrLookup},
		{"question.test", nil, ErrLookup},
		{"", nil, ErrBadName},
		{"a..test", nil, ErrBadName},
		{".test", nil, ErrBadName},
		{"a b.test", nil, ErrBadName},
		{"a\x00.test", nil, ErrBadName},
		{"*.test", nil, ErrBadName},
		{"münchen.test", nil, ErrBadName},
		{strings.Repeat("a", 64) + ".test", nil, ErrBadName},
		{strings.Repeat("a.", 127) + "test", nil, ErrBadName},
		{"[::1]", nil, ErrBadName},
	} {
		t.Run(tc.host, func(t *testing.T) {
			got, err := g.Lookup(t.Context(), tc.host)
			if !errors.Is(err, tc.err) {
				t.Fatalf("error %v, want %v", err, tc.err)
			}
			if d := cmp.Diff(tc.want, got, cmpAddr); d != "" {
				t.Errorf("(-want +got):\n%s", d)
			}
		})
	}
	t.Run("answer is bounded and fetched over tcp", func(t *testing.T) {
		if got := lookup(t, g, "many.test"); len(got) != maxAddrs {
			t.Errorf("%d addresses, want %d", len(got), maxAddrs)
		}
	})
	for _, q := range ns.questions() {
		if q.Qtype != dns.TypeA && q.Qtype != dns.TypeAAAA {
			t.Errorf("B15: asked for %s", dns.TypeToString[q.Qtype])
		}
	}
}

func TestAttack_B04_numeric_host_forms(t *testing.T) {
	ns := newNameserver(t, func(_ int, q dns.Question, _ string) *dns.Msg { return records(t, q.Name+" 60 A 127.0.0.1") })
	g := guard(t, Options{Resolvers: []string{ns.addr}})
	for _, host := range []string{"2130706433", "0x7f.1", "017700000001", "127.1", "0177.0.0.1", "127.0.0.1.", "0x7f000001", "1.0x", "a.0xAB", "a.1"} {
		if got, err := g.Lookup(t.Context(), host); !errors.Is(err, ErrBadName) {
			t.Errorf("%s: %v, %v; want ErrBadName", host, got, err)
		}
	}
	if n := len(ns.questions()); n != 0 {
		t.Errorf("DNS was asked %d times", n)
	}
}

func TestAttack_B11_zones(t *testing.T) {
	g := guard(t, Options{Resolvers: []string{"127.0.0.1:1"}})
	for _, host := range []string{"fe80::1%eth0", "fe80::1%25eth0", "[fe80::1%25eth0]", "::1%lo"} {
		if got, err := g.Lookup(t.Context(), host); !errors.Is(err, ErrBadName) {
			t.Errorf("%s: %v, %v; want ErrBadName", host, got, err)
		}
	}
}

func TestAttack_B10_names_are_rooted_and_hosts_file_is_ignored(t *testing.T) {
	ns := newNameserver(t, func(_ int, q dns.Question, _ string) *dns.Msg {
		if strings.HasSuffix(q.Name, ".search.test.") {
			return records(t, q.Name+" 60 A 10.0.0.1")
		}
		return rcode(dns.RcodeNameError)
	})
	conf := filepath.Join(t.TempDir(), "resolv.conf")
	host, port, _ := strings.Cut(ns.addr, ":")
	if err := os.WriteFile(conf, []byte("search search.test\noptions ndots:5\nnameserver "+host+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	g := guard(t, Options{})
	g.servers.file = conf
	// The file cannot say a port: what was read from it is pointed at the test's server.
	list, err := g.servers.list()
	if err != nil || len(list) != 1 || list[0] != host+":53" {
		t.Fatalf("servers %q, %v", list, err)
	}
	g.servers.fixed = []string{host + ":" + port}
	for _, name := range []string{"kubernetes.default.svc", "good.test", "metadata.google.internal"} {
		if got, err := g.Lookup(t.Context(), name); !errors.Is(err, ErrNoSuchHost) {
			t.Errorf("%s: %v, %v; want ErrNoSuchHost", name, got, err)
		}
	}
	asked := map[string]bool{}
	for _, q := range ns.questions() {
		asked[q.Name] = true
	}
	if d := cmp.Diff(map[string]bool{"kubernetes.default.svc.": true, "good.test.": true, "metadata.google.internal.": true}, asked); d != "" {
		t.Errorf("questions (-want +got):\n%s", d)
	}
	// localhost is in every /etc/hosts, and this machine's own name in most.
	self, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"vault", "localhost", "localhost.", "x.localhost", "LOCALHOST", self} {
		if got, err := g.Lookup(t.Context(), name); err == nil {
			t.Errorf("%s: %v", name, got)
		}
	}
}

func TestSpecialName(t *testing.T) {
	for name, want := range map[string]bool{
		"vault": true, "localhost": true, "a.localhost": true, "printer.local": true, "metadata.google.internal": true, "x.home.arpa": true,
		"good.test": false, "local.test": false, "notlocal": true, "a.notlocal": false,
	} {
		if got := SpecialName(name); got != want {
			t.Errorf("SpecialName(%q) = %v", name, got)
		}
	}
}

func TestAttack_B07_rebinding(t *testing.T) {
	origin := listener(t, "127.0.0.3:0")
	ns := newNameserver(t, func(n int, q dns.Question, _ string) *dns.Msg {
		switch {
		case q.Qtype != dns.TypeA:
			return records(t)
		case n == 1:
			return records(t, q.Name+" 0 A 127.0.0.3")
		}
		return records(t, q.Name+" 0 A 127.0.0.1")
	})
	// 127.0.0.3 stands for an address that is allowed, 127.0.0.1 for one that is not.
	g := guard(t, Options{Resolvers: []string{ns.addr}, AllowCIDRs: prefixes("127.0.0.3/32")})
	first := lookup(t, g, "flip.test")
	c, err := g.Dial(t.Context(), first, origin.Port())
	if err != nil {
		t.Fatalf("first dial: %v", err)
	}
	if got := c.RemoteAddr().String(); got != origin.String() {
		t.Errorf("connected to %s, checked %s", got, origin)
	}
	_ = c.Close()
	if n := len(ns.questions()); n != 2 { // one A, one AAAA
		t.Errorf("%d questions for one decision", n)
	}
	second := lookup(t, g, "flip.test") // TTL 0: asked again
	if d := cmp.Diff(addrs("127.0.0.1"), second, cmpAddr); d != "" {
		t.Fatalf("second lookup (-want +got):\n%s", d)
	}
	if c, err := g.Dial(t.Context(), second, origin.Port()); !errors.Is(err, ErrForbiddenAddress) {
		t.Errorf("dial of the flipped answer: %v, %v", c, err)
	}
	// Both at once: only the allowed one is dialled, whatever the order.
	c, err = g.Dial(t.Context(), addrs("127.0.0.1", "169.254.169.254", "127.0.0.3"), origin.Port())
	if err != nil {
		t.Fatalf("mixed set: %v", err)
	}
	if got := c.RemoteAddr().String(); got != origin.String() {
		t.Errorf("mixed set connected to %s", got)
	}
	_ = c.Close()
}

func TestLookup_cache(t *testing.T) {
	var ttl, fail atomic.Int64
	ns := newNameserver(t, func(_ int, q dns.Question, _ string) *dns.Msg {
		if fail.Load() == 1 {
			return rcode(dns.RcodeNameError)
		}
		if q.Qtype != dns.TypeA {
			return records(t)
		}
		return records(t, fmt.Sprintf("%s %d A 192.0.2.1", q.Name, ttl.Load()))
	})
	g := guard(t, Options{Resolvers: []string{ns.addr}})
	asked := func() int { return len(ns.questions()) }
	lookup(t, g, "zero.test")
	lookup(t, g, "zero.test")
	if n := asked(); n != 4 {
		t.Errorf("TTL 0: %d questions for two lookups", n)
	}
	ttl.Store(86400)
	lookup(t, g, "day.test")
	got := lookup(t, g, "day.test")
	if n := asked(); n != 6 {
		t.Errorf("TTL of a day: %d questions, want one lookup", n-4)
	}
	got[0] = netip.MustParseAddr("10.0.0.1")
	if again := lookup(t, g, "day.test"); again[0] == got[0] {
		t.Error("a caller can change what is cached")
	}
	if a, _ := g.cache.Get("day.test"); time.Until(a.until) > maxCached {
		t.Errorf("kept for %v", time.Until(a.until))
	}
	fail.Store(1)
	for range 2 {
		if _, err := g.Lookup(t.Context(), "nx.test"); !errors.Is(err, ErrNoSuchHost) {
			t.Fatal(err)
		}
	}
	if n := asked(); n != 8 {
		t.Errorf("negative: %d questions for two lookups", n-6)
	}
	if a, _ := g.cache.Get("nx.test"); time.Until(a.until) > negativeFor {
		t.Errorf("failure kept for %v", time.Until(a.until))
	}
}

func TestAttack_H08_lookups_are_shared(t *testing.T) {
	release := make(chan struct{})
	ns := newNameserver(t, func(_ int, q dns.Question, _ string) *dns.Msg {
		<-release
		return records(t, q.Name+" 0 A 192.0.2.1")
	})
	g := guard(t, Options{Resolvers: []string{ns.addr}, LookupTimeout: 20 * time.Second})
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	var ok, gone atomic.Int64
	for i := range 50 {
		wg.Go(func() {
			c := t.Context()
			if i%2 == 0 {
				c = ctx // these leave early
			}
			switch _, err := g.Lookup(c, "herd.test"); {
			case err == nil:
				ok.Add(1)
			case errors.Is(err, context.Canceled) && errors.Is(err, ErrLookup):
				gone.Add(1)
			default:
				t.Error(err)
			}
		})
	}
	deadline := time.Now().Add(soon)
	for len(ns.questions()) < 2 && time.Now().Before(deadline) {
		time.Sleep(time.Millisecond)
	}
	cancel()
	for gone.Load() < 25 && time.Now().Before(deadline) {
		time.Sleep(time.Millisecond)
	}
	close(release)
	wg.Wait()
	if ok.Load() != 25 || gone.Load() != 25 {
		t.Errorf("%d answered, %d left", ok.Load(), gone.Load())
	}
	if n := len(ns.questions()); n != 2 {
		t.Errorf("%d questions", n)
	}
}

func TestAttack_H19_silent_server(t *testing.T) {
	ns := newNameserver(t, func(_ int, q dns.Question, _ string) *dns.Msg {
		if strings.HasPrefix(q.Name, "dead") {
			return nil
		}
		if q.Qtype == dns.TypeAAAA && q.Name == "slow6.test." {
			return nil
		}
		return records(t, q.Name+" 60 A 192.0.2.1")
	})
	g := guard(t, Options{Resolvers: []string{ns.addr}, LookupTimeout: 1200 * time.Millisecond})
	var wg sync.WaitGroup
	for i := range 100 {
		wg.Go(func() {
			start := time.Now()
			_, err := g.Lookup(t.Context(), fmt.Sprintf("dead%d.test", i))
			if d := time.Since(start); !errors.Is(err, ErrLookup) || d > 4*time.Second {
				t.Errorf("after %v: %v", d, err)
			}
		})
	}
	start := time.Now()
	lookup(t, g, "alive.test")
	if d := time.Since(start); d > time.Second {
		t.Errorf("another name took %v", d)
	}
	start = time.Now()
	lookup(t, g, "slow6.test")
	if d := time.Since(start); d < otherFamily/2 || d > otherFamily+500*time.Millisecond {
		t.Errorf("half an answer took %v", d)
	}
	wg.Wait()
	start = time.Now()
	if _, err := g.Lookup(t.Context(), "dead0.test"); !errors.Is(err, ErrLookup) {
		t.Error(err)
	}
	if d := time.Since(start); d > time.Second {
		t.Errorf("a name known not to answer was asked again, for %v", d)
	}
}

func TestLookup_next_server(t *testing.T) {
	good := newNameserver(t, func(_ int, q dns.Question, _ string) *dns.Msg { return records(t, q.Name+" 60 A 192.0.2.1") })
	bad := newNameserver(t, func(int, dns.Question, string) *dns.Msg { return rcode(dns.RcodeServerFailure) })
	g := guard(t, Options{Resolvers: []string{bad.addr, good.addr}})
	lookup(t, g, "good.test")
}

func TestServers_follow_resolv_conf(t *testing.T) {
	file := filepath.Join(t.TempDir(), "resolv.conf")
	s := servers{file: file}
	if _, err := s.list(); !errors.Is(err, ErrLookup) || !strings.Contains(err.Error(), "upstream.resolvers") {
		t.Errorf("no file: %v", err)
	}
	write := func(data string, at time.Time) {
		if err := os.WriteFile(file, []byte(data), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(file, at, at); err != nil {
			t.Fatal(err)
		}
	}
	now := time.Now()
	write("# none\n", now.Add(-3*time.Hour))
	if _, err := s.list(); !errors.Is(err, ErrLookup) {
		t.Errorf("empty file: %v", err)
	}
	write("nameserver 192.0.2.53\n", now.Add(-2*time.Hour))
	want := func(w ...string) {
		t.Helper()
		got, err := s.list()
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(w, got); d != "" {
			t.Errorf("(-want +got):\n%s", d)
		}
	}
	want("192.0.2.53:53")
	write("nameserver 2001:db8::53\nnameserver 192.0.2.54\n", now.Add(-time.Hour))
	want("192.0.2.53:53") // looked at again only after a while
	s.checked = now.Add(-time.Minute)
	want("[2001:db8::53]:53", "192.0.2.54:53")
}

func TestClose(t *testing.T) {
	ns := newNameserver(t, func(int, dns.Question, string) *dns.Msg { return nil })
	g := guard(t, Options{Resolvers: []string{ns.addr}, LookupTimeout: time.Minute})
	got := make(chan error, 1)
	go func() {
		_, err := g.Lookup(t.Context(), "dead.test")
		got <- err
	}()
	for len(ns.questions()) == 0 {
		time.Sleep(time.Millisecond)
	}
	start := time.Now()
	g.Close()
	if d := time.Since(start); d > soon {
		t.Errorf("Close took %v", d)
	}
	if err := <-got; !errors.Is(err, ErrLookup) {
		t.Errorf("lookup under way: %v", err)
	}
	if _, err := g.Lookup(t.Context(), "other.test"); !errors.Is(err, ErrClosed) {
		t.Errorf("after Close: %v", err)
	}
	g.Close()
}

func FuzzRead(f *testing.F) {
	m := records(f, "a.test. 60 CNAME b.test.", "b.test. 60 A 192.0.2.1")
	m.SetQuestion("a.test.", dns.TypeA)
	b, err := m.Pack()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		var m dns.Msg
		if m.Unpack(b) != nil {
			return
		}
		a := read(&m, dns.Question{Name: "a.test.", Qtype: dns.TypeA, Qclass: dns.ClassINET})
		if len(a.addrs) > maxAddrs || (a.err == nil) != (len(a.addrs) > 0) || a.ttl > maxCached {
			t.Fatalf("%+v", a)
		}
		for _, x := range a.addrs {
			if !x.Is4() {
				t.Fatalf("%v for A", x)
			}
		}
	})
}
