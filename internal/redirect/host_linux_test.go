package redirect_test

import (
	"os"
	"testing"
	"time"

	"github.com/egressd/egressd/internal/redirect"
)

// sysctl changes the router.
func (l *lab) sysctl(t *testing.T, name, value string) {
	t.Helper()
	l.Router.Do(t, func() {
		if err := os.WriteFile("/proc/sys/"+name, []byte(value), 0o600); err != nil {
			t.Fatal(err)
		}
	})
}

// TestWithoutForwarding: a host that is no router needs not become one.
func TestWithoutForwarding(t *testing.T) {
	for _, mode := range []redirect.Mode{redirect.NAT, redirect.TProxy} {
		t.Run(mode.String(), func(t *testing.T) {
			l := newLab(t)
			l.sysctl(t, "net/ipv4/ip_forward", "0")
			l.sysctl(t, "net/ipv6/conf/all/forwarding", "0")
			l.install(t, spec(mode, "interfaces"))
			families(func(v6 bool, name string) {
				if to := l.World.HostPort(v6, 80); tcp(t, l.Sandbox, to) != to {
					t.Errorf("%s: TCP: %s", name, tcp(t, l.Sandbox, to))
				}
				if got := udp(t, l.Sandbox, l.World.HostPort(v6, 53), "q", 2*time.Second); got != "dns" {
					t.Errorf("%s: DNS: %s", name, got)
				}
				if got := udp(t, l.Sandbox, l.World.HostPort(v6, 443), "quic", 2*time.Second); got != "refused" {
					t.Errorf("%s: QUIC: %s", name, got)
				}
			})
		})
	}
}

// TestWithoutIPv6: rules for both families are no trouble where there is one.
func TestWithoutIPv6(t *testing.T) {
	l := newLab(t)
	for _, name := range []string{"all", "default", "lo"} {
		l.sysctl(t, "net/ipv6/conf/"+name+"/disable_ipv6", "1")
	}
	s := spec(redirect.TProxy, "both")
	l.install(t, s)
	if diffs := l.status(t, s); len(diffs) > 0 {
		t.Errorf("status: %v", diffs)
	}
	if to := l.World.HostPort(false, 80); tcp(t, l.Sandbox, to) != to {
		t.Errorf("TCP: %s", tcp(t, l.Sandbox, to))
	}
	l.remove(t)
	for _, name := range []string{"all", "default", "lo"} {
		l.sysctl(t, "net/ipv6/conf/"+name+"/disable_ipv6", "0")
	}
	l.install(t, s)
	if to := l.World.HostPort(false, 80); tcp(t, l.Sandbox, to) != to {
		t.Errorf("TCP, with IPv6 again: %s", tcp(t, l.Sandbox, to))
	}
	if diffs := l.status(t, s); len(diffs) > 0 {
		t.Errorf("status, with IPv6 again: %v", diffs)
	}
}
