package selftest

import (
	"context"
	"encoding/json"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/egressd/egressd/internal/testbed"
)

// TestMain lets this binary also be the program in the sandbox.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == "role-selftest" {
		var o Options
		if err := json.Unmarshal([]byte(os.Args[2]), &o); err != nil {
			panic(err)
		}
		_ = json.NewEncoder(os.Stdout).Encode(Run(context.Background(), o))
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// echoWorld answers on every port that the probes use with what it gets.
func echoWorld(t *testing.T, world *testbed.NetNS, extra ...string) {
	t.Helper()
	for _, ip := range append([]string{world.V4.String(), world.V6.String()}, extra...) {
		for _, port := range []int{7, portHTTP, portDNS, portTLS, portDoT} {
			at := net.JoinHostPort(ip, strconv.Itoa(port))
			go accept(world.Listen(t, "tcp", at))
			go reflect(world.ListenPacket(t, "udp", at))
		}
	}
}

func accept(ln net.Listener) {
	for {
		c, err := ln.Accept()
		if err != nil {
			return
		}
		go func() {
			defer func() { _ = c.Close() }()
			_ = c.SetDeadline(time.Now().Add(5 * time.Second))
			_, _ = io.Copy(c, c)
		}()
	}
}

func reflect(pc net.PacketConn) {
	b := make([]byte, 2048)
	for {
		n, from, err := pc.ReadFrom(b)
		if err != nil {
			return
		}
		_, _ = pc.WriteTo(b[:n], from)
	}
}

// runIn runs the probes in a namespace.
func runIn(t *testing.T, ns *testbed.NetNS, o Options) []Result {
	t.Helper()
	arg, err := json.Marshal(o)
	if err != nil {
		t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := ns.Command(t, self, "role-selftest", string(arg))
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	var results []Result
	if err := json.Unmarshal(out, &results); err != nil {
		t.Fatal(err)
	}
	return results
}

func verdicts(results []Result, name string) []Verdict {
	var out []Verdict
	for _, r := range results {
		if r.Probe == name {
			out = append(out, r.Verdict)
		}
	}
	return out
}

func worldOptions(n *testbed.Net) Options {
	return Options{
		Target4: netip.AddrPortFrom(n.World.V4, 7), Target6: netip.AddrPortFrom(n.World.V6, 7),
		Peers: []string{n.SandboxB.V4.String() + ":22", "[" + n.SandboxB.V6.String() + "]:22"}, Timeout: 800 * time.Millisecond,
	}
}

// Every way that is open is found, and named: with nothing in between all of them are.
func TestAttack_B13_B14_B26_selftest_finds_open_ways(t *testing.T) {
	n := testbed.NewNet(t)
	echoWorld(t, n.World)
	n.World.Do(t, func() { addLoopback(t, "169.254.169.254/32") })
	n.Router.Do(t, func() { addRoute(t, "169.254.169.254/32", n.World.V4.String()) })
	go accept(n.World.Listen(t, "tcp", "169.254.169.254:80"))
	for _, at := range []string{n.SandboxB.HostPort(false, 22), n.SandboxB.HostPort(true, 22)} {
		go accept(n.SandboxB.Listen(t, "tcp", at))
	}
	api := n.Router.Listen(t, "tcp", n.Router.HostPort(false, 9443))
	go accept(api)
	socket := filepath.Join(t.TempDir(), "api.sock")
	unix, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Close() }()

	o := worldOptions(n)
	o.Own = []string{api.Addr().String(), "unix:" + socket}
	results := runIn(t, n.Sandbox, o)
	for _, name := range []string{
		"tcp-direct", "http-direct", "dns-tcp", "dns-udp", "dot", "doh", "quic", "udp-other", "icmp", "ipip", "gre", "sctp",
	} {
		for _, family := range []string{"-v4", "-v6"} {
			if got := verdicts(results, name+family); !slices.Equal(got, []Verdict{Open}) {
				t.Errorf("%s%s: %v, want open", name, family, got)
			}
		}
	}
	for _, name := range []string{"metadata-v4", "peer", "own-listener"} {
		if got := verdicts(results, name); !slices.Contains(got, Open) {
			t.Errorf("%s: %v, want open", name, got)
		}
	}
	if got := verdicts(results, "own-listener"); !slices.Equal(got, []Verdict{Open, Open}) {
		t.Errorf("egressd's listeners: %v, want open", got)
	}
	if open := Opened(results); !slices.Contains(open, "quic-v6") {
		t.Errorf("Opened: %v", open)
	}
	if t.Failed() {
		t.Log(text(results))
	}
}

// Where a firewall stands nothing is open; one hole in it is found.
func TestAttack_B26_selftest_finds_one_hole(t *testing.T) {
	for name, tc := range map[string]struct{ rule, open string }{
		"no hole": {"", ""},
		"ping":    {"ip6 nexthdr icmpv6 accept", "icmp-v6"},
		"QUIC":    {"udp dport 443 ip saddr 10.77.1.2 accept", "quic-v4"},
		"DoT":     {"tcp dport 853 ip6 saddr fd77:1::2 accept", "dot-v6"},
		"GRE":     {"ip protocol gre accept", "gre-v4"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			n := testbed.NewNet(t)
			echoWorld(t, n.World)
			nft(t, n.Router, "table inet fw { chain f { type filter hook forward priority 0; policy drop; ct state established,related accept; "+tc.rule+"\n }\n}")
			results := runIn(t, n.Sandbox, worldOptions(n))
			var want []string
			if tc.open != "" {
				want = append(want, tc.open)
			}
			open := slices.DeleteFunc(Opened(results), func(p string) bool {
				return p == "vsock" || p == "unix-socket" || tc.open == "icmp-v6" && p == "peer" // of this machine; and the hole is for both
			})
			if !slices.Equal(open, want) {
				t.Errorf("open are %v, want %v\n%s", open, want, text(results))
			}
		})
	}
}

// With rejects instead of silence nothing is taken for an answer of the target's.
func TestSelftestTakesNoRejectForAnAnswer(t *testing.T) {
	n := testbed.NewNet(t)
	nft(t, n.Router, "table inet fw { chain f { type filter hook forward priority 0; policy drop; meta l4proto tcp reject with tcp reset; reject with icmpx admin-prohibited;\n }\n}")
	results := runIn(t, n.Sandbox, worldOptions(n))
	if open := slices.DeleteFunc(Opened(results), func(p string) bool { return p == "vsock" || p == "unix-socket" }); len(open) > 0 {
		t.Errorf("open: %v\n%s", open, text(results))
	}
}

func nft(t *testing.T, ns *testbed.NetNS, rules string) {
	t.Helper()
	cmd := ns.Command(t, "nft", "-f", "-")
	cmd.Stdin = strings.NewReader("flush ruleset\n" + rules + "\n")
	run(t, cmd)
}

func run(t *testing.T, cmd *exec.Cmd) {
	t.Helper()
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", cmd, err, out)
	}
}

// addLoopback and addRoute run in the namespace of the thread.
func addLoopback(t *testing.T, prefix string) {
	t.Helper()
	run(t, exec.Command(testbed.Tool(t, "ip"), "addr", "add", prefix, "dev", "lo"))
}

func addRoute(t *testing.T, prefix, via string) {
	t.Helper()
	run(t, exec.Command(testbed.Tool(t, "ip"), "route", "add", prefix, "via", via))
}

func text(results []Result) string {
	var b strings.Builder
	for _, r := range results {
		b.WriteString(r.Probe + "\t" + r.Target + "\t" + string(r.Verdict) + "\t" + r.Detail + "\n")
	}
	return b.String()
}
