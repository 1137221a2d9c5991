package policydns

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"
	"go.uber.org/goleak"

	"github.com/egressd/egressd/internal/netguard"
	"github.com/egressd/egressd/internal/testbed"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// The sandboxes of the tests, by the address of loopback that they ask from.
var sandboxes = map[string]string{"127.0.0.1": "one", "127.0.0.2": "two"}

const stranger = "127.0.0.9"

// bed is a Server on loopback over a real guard and a scripted name server.
type bed struct {
	*Server
	ns     *testbed.NS
	memory *Memory
	port   int

	mu     sync.Mutex
	events []Event
}

// newBed allows one to ask for whatever ends in "good.test", two for "two.test". change
// may be nil.
func newBed(t testing.TB, change func(*Options)) *bed {
	t.Helper()
	b := &bed{ns: testbed.NewNS(t), memory: NewMemory()}
	b.Server = New(b.options(t, change))
	pc, ln := listen(t)
	b.port = ln.Addr().(*net.TCPAddr).Port
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- b.Serve(ctx, pc, ln) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
	return b
}

func (b *bed) options(t testing.TB, change func(*Options)) Options {
	t.Helper()
	g, err := netguard.New(netguard.Options{Resolvers: []string{b.ns.Addr()}, LookupTimeout: 2 * time.Second,
		AllowCIDRs: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24"), netip.MustParsePrefix("2001:db8::/32")}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(g.Close)
	o := Options{
		Identify: func(a netip.Addr) (string, bool) { s, ok := sandboxes[a.String()]; return s, ok },
		MayName: func(sandbox, host string) bool {
			suffix := map[string]string{"one": "good.test", "two": "two.test"}[sandbox]
			return host == suffix || strings.HasSuffix(host, "."+suffix)
		},
		Lookup: func(ctx context.Context, _, host string) ([]netip.Addr, error) {
			addrs, err := g.Lookup(ctx, host)
			if err != nil {
				return nil, err
			}
			var last error
			addrs = slices.DeleteFunc(addrs, func(a netip.Addr) bool {
				err := g.Check(netip.AddrPortFrom(a, 443))
				last = err
				return err != nil
			})
			if len(addrs) == 0 {
				return nil, last
			}
			return addrs, nil
		},
		HTTPS:  func(ctx context.Context, _, host string) ([]dns.RR, error) { return g.HTTPS(ctx, host) },
		Memory: b.memory,
		Report: func(e Event) {
			b.mu.Lock()
			defer b.mu.Unlock()
			b.events = append(b.events, e)
		},
	}
	if change != nil {
		change(&o)
	}
	return o
}

// outcomes counts what was reported.
func (b *bed) outcomes() map[Outcome]int {
	b.mu.Lock()
	defer b.mu.Unlock()
	out := map[Outcome]int{}
	for _, e := range b.events {
		out[e.Outcome]++
	}
	return out
}

func listen(t testing.TB) (net.PacketConn, net.Listener) {
	t.Helper()
	for range 50 {
		ln, err := net.Listen("tcp", ":0")
		if err != nil {
			t.Fatal(err)
		}
		port := ln.Addr().(*net.TCPAddr).Port
		if pc, err := net.ListenPacket("udp", fmt.Sprintf(":%d", port)); err == nil {
			return pc, ln
		}
		_ = ln.Close()
	}
	t.Fatal("no port is free for UDP and TCP at once")
	return nil, nil
}

// dig asks as a resolver of Debian does, from an address of loopback.
func (b *bed) dig(t testing.TB, from string, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, testbed.Tool(t, "dig"), append([]string{"-r", "@127.0.0.3", "-b", from, "-p", strconv.Itoa(b.port),
		"+tries=1", "+time=5"}, args...)...)
	out, err := cmd.CombinedOutput()
	if err != nil && !strings.Contains(string(out), "no servers could be reached") && !strings.Contains(string(out), "connection reset") &&
		!strings.Contains(string(out), "end of file") {
		t.Fatalf("dig %v: %v\n%s", args, err, out)
	}
	return string(out)
}

// ask is one question over UDP or TCP as the test packs it.
func (b *bed) ask(t testing.TB, network, from string, q *dns.Msg) *dns.Msg {
	t.Helper()
	packed, err := q.Pack()
	if err != nil {
		t.Fatal(err)
	}
	raw := b.raw(t, network, from, packed, answerTime)
	if raw == nil {
		return nil
	}
	r := new(dns.Msg)
	if err := r.Unpack(raw); err != nil {
		t.Fatalf("the answer % x: %v", raw, err)
	}
	return r
}

// answerTime is for answers that must come.
const answerTime = 5 * time.Second

// raw is nil where nothing came back in time.
func (b *bed) raw(t testing.TB, network, from string, packet []byte, limit time.Duration) []byte {
	t.Helper()
	var local net.Addr = &net.UDPAddr{IP: net.ParseIP(from)}
	if network == "tcp" {
		local = &net.TCPAddr{IP: net.ParseIP(from)}
	}
	nc, err := (&net.Dialer{LocalAddr: local}).Dial(network, fmt.Sprintf("127.0.0.1:%d", b.port))
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	_ = nc.SetDeadline(time.Now().Add(limit))
	c := &dns.Conn{Conn: nc}
	if _, err := c.Write(packet); err != nil {
		return nil
	}
	buf := make([]byte, 1<<16)
	n, err := c.Read(buf)
	if err != nil {
		return nil
	}
	return buf[:n]
}

func question(name string, typ uint16) *dns.Msg {
	return new(dns.Msg).SetQuestion(dns.Fqdn(name), typ)
}
