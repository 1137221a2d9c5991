package redirect_test

import (
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/egressd/egressd/internal/redirect"
	"github.com/egressd/egressd/internal/testbed"
)

// normal makes two scripts comparable: nft breaks long lists into lines.
func normal(script string) string {
	script = regexp.MustCompile(`(?m)^#.*$|^table inet egressd$|^delete table .*$`).ReplaceAllString(script, "")
	return strings.TrimSpace(regexp.MustCompile(`\s+`).ReplaceAllString(script, " "))
}

// specs cover every chain, term and kind of range.
func specs() map[string]redirect.Spec {
	out := map[string]redirect.Spec{
		"uid":        {Mode: redirect.NAT, Port: natPort, DNSPort: dnsPort, UIDs: []uint32{12345, 12346}},
		"bare":       {Mode: redirect.NAT, Port: natPort, Interfaces: []string{"docker0"}},
		"everything": {Mode: redirect.NAT, Port: natPort, DNSPort: 53, ProxyPort: 3128, Interfaces: []string{"br-0123456789ab", "tap*"}, UIDs: []uint32{7}, Sources: prefixes("10.0.0.0/8")},
		"only v6":    {Mode: redirect.TProxy, Port: tproxyPort, Interfaces: []string{"veth0"}, Sources: prefixes("fd00::/8"), Mark: 0x1234},
		"ranges":     {Mode: redirect.TProxy, Port: tproxyPort, Sources: prefixes("10.1.2.3/32", "10.1.2.0/30", "10.1.2.4/31", "10.9.0.0/16", "10.9.1.0/24", "255.255.255.0/24", "fd00::1/128", "fd00::2/127", "ffff::/16", "fd01::/64")},
		"many":       {Mode: redirect.NAT, Port: natPort, Sources: many()},
	}
	for _, mode := range []redirect.Mode{redirect.NAT, redirect.TProxy} {
		for _, selector := range []string{"interfaces", "wildcard", "sources", "both"} {
			out[mode.String()+" "+selector] = spec(mode, selector)
		}
	}
	return out
}

func prefixes(all ...string) []netip.Prefix {
	var out []netip.Prefix
	for _, p := range all {
		out = append(out, netip.MustParsePrefix(p))
	}
	return out
}

// many are more addresses than one netlink message holds.
func many() []netip.Prefix {
	var out []netip.Prefix
	for i := range 3000 {
		out = append(out, netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 1, byte(i >> 7), byte(i << 1)}), 32))
	}
	return out
}

// TestPrintIsInstalled: what Text says, what Install makes and what nft makes of Text are
// one, and Status knows it.
func TestPrintIsInstalled(t *testing.T) {
	for name, s := range specs() {
		t.Run(name, func(t *testing.T) {
			l := &lab{testbed.NewNet(t), &seen{}}
			text, err := s.Text()
			if err != nil {
				t.Fatal(err)
			}
			file := filepath.Join(t.TempDir(), "rules.nft")
			if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			l.run(t, "nft", "-c", "-f", file)
			l.install(t, s)
			listed := l.run(t, "nft", "list", "table", "inet", "egressd")
			if diff := cmp.Diff(normal(text), normal(listed)); diff != "" {
				t.Errorf("print and `nft list` (-print +list):\n%s\n%s", diff, listed)
			}
			if diffs := l.status(t, s); len(diffs) > 0 {
				t.Errorf("status after Install: %v", diffs)
			}
			once := l.state(t)
			l.install(t, s)
			if diff := cmp.Diff(once, l.state(t)); diff != "" {
				t.Errorf("installed twice (-once +twice):\n%s", diff)
			}
			l.run(t, "nft", "-f", file)
			if diffs := l.status(t, s); len(diffs) > 0 {
				t.Errorf("status after `nft -f`: %v", diffs)
			}
		})
	}
}

// TestRouteLinesAreInstalled: the commands that print shows for TPROXY make the route.
func TestRouteLinesAreInstalled(t *testing.T) {
	l := &lab{testbed.NewNet(t), &seen{}}
	s := spec(redirect.TProxy, "interfaces")
	text, err := s.Text()
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for line := range strings.Lines(text) {
		if command, ok := strings.CutPrefix(line, "# ip "); ok {
			n++
			l.run(t, "ip", strings.Fields(command)...)
		}
	}
	file := filepath.Join(t.TempDir(), "rules.nft")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	l.run(t, "nft", "-f", file)
	if diffs := l.status(t, s); len(diffs) > 0 || n != 4 {
		t.Errorf("%d commands, status: %v", n, diffs)
	}
}

// TestRemove: everything is as it was, other tables included, and the world is reached.
func TestRemove(t *testing.T) {
	for _, mode := range []redirect.Mode{redirect.NAT, redirect.TProxy} {
		t.Run(mode.String(), func(t *testing.T) {
			l := newLab(t)
			l.run(t, "nft", "add table inet other; add chain inet other input { type filter hook input priority 5; }")
			l.run(t, "ip", "rule", "add", "fwmark", "0x77", "lookup", "777", "priority", "500")
			before := l.state(t)
			reach := func() {
				t.Helper()
				families(func(v6 bool, name string) {
					host, _, _ := net6(l.World.HostPort(v6, 80))
					if got := tcp(t, l.Sandbox, l.World.HostPort(v6, 80)); got != "world" {
						t.Errorf("%s: TCP: %s", name, got)
					}
					if got := udp(t, l.Sandbox, l.World.HostPort(v6, 443), "x", 2e9); got != "world" {
						t.Errorf("%s: UDP: %s", name, got)
					}
					if !pings(t, l.Sandbox, host) {
						t.Errorf("%s: no ping", name)
					}
					if got := tcp(t, l.Sandbox, l.Router.HostPort(v6, 9443)); got != "router's own :9443" {
						t.Errorf("%s: router: %s", name, got)
					}
				})
			}
			l.remove(t) // nothing there
			reach()
			s := spec(mode, "both")
			l.install(t, s)
			l.remove(t)
			if diff := cmp.Diff(before, l.state(t)); diff != "" {
				t.Errorf("left behind (-before +after):\n%s", diff)
			}
			reach()
			diffs := l.status(t, s)
			if !slices.Contains(diffs, "table inet egressd is not installed") || mode == redirect.TProxy && len(diffs) != 5 {
				t.Errorf("status: %v", diffs)
			}
		})
	}
}

func net6(hostport string) (string, string, error) {
	i := strings.LastIndexByte(hostport, ':')
	return strings.Trim(hostport[:i], "[]"), hostport[i+1:], nil
}

// TestModesReplaceEachOther: nothing of the old one stays.
func TestModesReplaceEachOther(t *testing.T) {
	l := &lab{testbed.NewNet(t), &seen{}}
	fresh := map[string]string{}
	all := specs()
	for _, name := range []string{"redirect both", "tproxy sources", "only v6", "uid"} {
		l.install(t, all[name])
		fresh[name] = l.state(t)
		l.remove(t)
	}
	for _, from := range []string{"redirect both", "tproxy sources", "only v6", "uid"} {
		for to, want := range fresh {
			l.install(t, all[from])
			l.install(t, all[to])
			if diff := cmp.Diff(want, l.state(t)); diff != "" {
				t.Errorf("%s after %s (-fresh +got):\n%s", to, from, diff)
			}
			if diffs := l.status(t, all[from]); from != to && len(diffs) == 0 {
				t.Errorf("status takes %s for %s", to, from)
			}
		}
	}
}

// TestStatusSeesChanges: whatever somebody else changed.
func TestStatusSeesChanges(t *testing.T) {
	l := &lab{testbed.NewNet(t), &seen{}}
	s := spec(redirect.TProxy, "both")
	for _, tc := range []struct{ command, want string }{
		{"nft insert rule inet egressd input accept", "chain input has another rule where `iifname \"sandbox0\" goto to_host` should stand"},
		{"nft add rule inet egressd forward accept", "chain forward has rules that are not ours: 1"},
		{"nft flush chain inet egressd to_host", "chain to_host lacks `ct direction reply ct state established,related accept`"},
		{"nft add chain inet egressd more", "chain more is not ours"},
		{"nft add set inet egressd more { type mark; }", "set more is not ours"},
		{"nft delete element inet egressd sources4 { 10.77.1.2 }", "set sources4 holds other addresses"},
		{"nft add element inet egressd sources6 { fd99::/16 }", "set sources6 holds other addresses"},
		{"nft add table inet egressd { flags dormant; }", "table inet egressd is dormant or owned"},
		{"nft delete table inet egressd", "table inet egressd is not installed"},
		{"ip -4 rule del fwmark 0xe9d", "IPv4: the policy rule for mark 0xe9d is missing"},
		{"ip -6 rule del fwmark 0xe9d", "IPv6: the policy rule for mark 0xe9d is missing"},
		{"ip -4 route flush table 3741", "IPv4: the local route in table 3741 is missing"},
		{"ip -6 route flush table 3741", "IPv6: the local route in table 3741 is missing"},
		{"ip -4 rule add fwmark 0x99 lookup 99 protocol 233", "IPv4: a policy rule of another installation"},
		{"ip -6 route add local fd98::/64 dev lo table 99 proto 233", "IPv6: a route of another installation"},
	} {
		l.install(t, s)
		if diffs := l.status(t, s); len(diffs) > 0 {
			t.Fatalf("before %s: %v", tc.command, diffs)
		}
		words := strings.Fields(tc.command)
		l.run(t, words[0], words[1:]...)
		if diffs := l.status(t, s); !slices.Contains(diffs, tc.want) {
			t.Errorf("after %s: %q, want %q", tc.command, diffs, tc.want)
		}
	}
	l.install(t, s)
	if diffs := l.status(t, s); len(diffs) > 0 {
		t.Errorf("after the last Install: %v", diffs)
	}
}
