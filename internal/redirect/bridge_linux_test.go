package redirect_test

import (
	"net"
	"os"
	"testing"
	"time"

	"github.com/egressd/egressd/internal/redirect"
	"github.com/egressd/egressd/internal/testbed"
)

// bridged joins both sandboxes to one bridge, as container networks do: 10.77.1.2 and .3.
func bridged(t *testing.T, filtered string) *lab {
	t.Helper()
	l := newLab(t)
	l.SandboxB.AddAddrs(t, "10.77.1.3", "fd77:1::3")
	for _, args := range [][]string{
		{"link", "add", "br0", "type", "bridge", "forward_delay", "0"},
		{"addr", "flush", "dev", testbed.SandboxLink}, {"addr", "flush", "dev", testbed.SandboxBLink},
		{"link", "set", testbed.SandboxLink, "master", "br0"}, {"link", "set", testbed.SandboxBLink, "master", "br0"},
		{"link", "set", "br0", "up"},
		{"addr", "add", "10.77.1.1/24", "dev", "br0"}, {"addr", "add", "fd77:1::1/64", "dev", "br0", "nodad"},
	} {
		l.run(t, "ip", args...)
	}
	l.Router.Do(t, func() {
		for _, name := range []string{"bridge-nf-call-iptables", "bridge-nf-call-ip6tables"} {
			if err := os.WriteFile("/proc/sys/net/bridge/"+name, []byte(filtered), 0o600); err != nil {
				t.Skipf("SKIPPED, NOT TESTED: this kernel has no br_netfilter: %v", err)
			}
		}
	})
	return l
}

// TestBridge holds what docs/transparent.md says of sandboxes on one bridge.
func TestBridge(t *testing.T) {
	for _, tc := range []struct {
		name, filtered string
		mode           redirect.Mode
	}{
		{"redirect", "0", redirect.NAT},
		{"redirect, br_netfilter", "1", redirect.NAT},
		{"tproxy", "0", redirect.TProxy},
	} {
		t.Run(tc.name, func(t *testing.T) {
			l := bridged(t, tc.filtered)
			s := spec(tc.mode, "interfaces")
			s.Interfaces = []string{"br0"}
			l.install(t, s)
			families(func(v6 bool, name string) {
				if to := l.World.HostPort(v6, 80); tcp(t, l.Sandbox, to) != to {
					t.Errorf("%s to the world: %s", name, tcp(t, l.Sandbox, to))
				}
				if got := udp(t, l.Sandbox, l.World.HostPort(v6, 53), "q", 2*time.Second); got != "dns" {
					t.Errorf("%s: DNS: %s", name, got)
				}
				if got := udp(t, l.Sandbox, l.World.HostPort(v6, 443), "quic", 2*time.Second); got != "refused" {
					t.Errorf("%s: QUIC: %s", name, got)
				}
			})
			// A switched frame is no routed packet: neighbours on a bridge meet below the rules ...
			if got := udp(t, l.Sandbox, "10.77.1.3:9999", "switched", time.Second); (got == "sandbox b") != (tc.filtered == "0") {
				t.Errorf("to the neighbour: %s", got)
			}
			// ... unless the ports are isolated.
			l.run(t, "bridge", "link", "set", "dev", testbed.SandboxLink, "isolated", "on")
			l.run(t, "bridge", "link", "set", "dev", testbed.SandboxBLink, "isolated", "on")
			for _, to := range []string{"10.77.1.3:9999", net.JoinHostPort("fd77:1::3", "9999")} {
				if got := udp(t, l.Sandbox, to, "isolated", 50*time.Millisecond); got != "silence" {
					t.Errorf("to the neighbour, isolated: %s", got)
				}
			}
			if l.seen.has("isolated", false) {
				t.Error("the neighbour got a datagram")
			}
			if to := l.World.HostPort(true, 80); tcp(t, l.Sandbox, to) != to {
				t.Error("isolated ports do not reach egressd")
			}
		})
	}
}
