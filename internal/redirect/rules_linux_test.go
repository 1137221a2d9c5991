package redirect_test

import (
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/netip"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/egressd/egressd/internal/redirect"
	"github.com/egressd/egressd/internal/testbed"
)

// each runs f in every mode, for every way to say whose traffic is meant.
func each(t *testing.T, f func(t *testing.T, l *lab, s redirect.Spec)) {
	for _, mode := range []redirect.Mode{redirect.NAT, redirect.TProxy} {
		for _, selector := range []string{"interfaces", "wildcard", "sources", "both"} {
			t.Run(mode.String()+" by "+selector, func(t *testing.T) {
				l := newLab(t)
				s := spec(mode, selector)
				l.install(t, s)
				f(t, l, s)
			})
		}
	}
}

func families(f func(v6 bool, name string)) {
	f(false, "IPv4")
	f(true, "IPv6")
}

// TestEveryPortReachesEgressd: TCP of both families to any port lands on the listener,
// which learns where it was meant to go.
func TestEveryPortReachesEgressd(t *testing.T) {
	each(t, func(t *testing.T, l *lab, _ redirect.Spec) {
		families(func(v6 bool, name string) {
			for _, port := range []uint16{22, 80, 443, 853, 5432, 65535} {
				to := l.World.HostPort(v6, port)
				for _, from := range []*testbed.NetNS{l.Sandbox, l.SandboxB} {
					if got := tcp(t, from, to); got != to {
						t.Errorf("%s to %s: %s", from.Name, to, got)
					}
				}
			}
		})
		if got := tcp(t, l.World, "192.0.2.1:22"); got != "router's own :22" {
			t.Errorf("the world to the router: %s", got)
		}
	})
}

func TestAttack_B13_quic_falls_back(t *testing.T) {
	each(t, func(t *testing.T, l *lab, _ redirect.Spec) {
		families(func(v6 bool, name string) {
			start := time.Now()
			if got := udp(t, l.Sandbox, l.World.HostPort(v6, 443), "quic initial", 3*time.Second); got != "refused" {
				t.Errorf("%s: %s", name, got)
			}
			if d := time.Since(start); d > time.Second {
				t.Errorf("%s: refused after %s", name, d)
			}
			for _, port := range []uint16{3478, 9999} { // STUN; anything
				if got := udp(t, l.Sandbox, l.World.HostPort(v6, port), "other udp", 50*time.Millisecond); got != "silence" {
					t.Errorf("%s port %d: %s", name, port, got)
				}
			}
		})
		if l.seen.has("quic initial", false) || l.seen.has("other udp", false) {
			t.Error("the world got it")
		}
	})
}

func TestAttack_B14_dns_goes_to_egressd(t *testing.T) {
	each(t, func(t *testing.T, l *lab, s redirect.Spec) {
		families(func(v6 bool, name string) {
			for _, to := range []*testbed.NetNS{l.World, l.Router} {
				if got := udp(t, l.Sandbox, to.HostPort(v6, 53), "a query", 2*time.Second); got != "dns" {
					t.Errorf("%s: DNS over UDP to %s: %s", name, to.Name, got)
				}
				if got := tcp(t, l.Sandbox, to.HostPort(v6, 53)); got != "egressd's dns" {
					t.Errorf("%s: DNS over TCP to %s: %s", name, to.Name, got)
				}
			}
			if to := l.World.HostPort(v6, 853); tcp(t, l.Sandbox, to) != to {
				t.Errorf("%s: DNS over TLS goes past egressd", name)
			}
			if got := udp(t, l.Sandbox, l.World.HostPort(v6, 853), "dns over quic", 50*time.Millisecond); got != "silence" {
				t.Errorf("%s: DNS over QUIC: %s", name, got)
			}
		})
		s.DNSPort = 0
		l.install(t, s)
		families(func(v6 bool, name string) {
			if got := udp(t, l.Sandbox, l.World.HostPort(v6, 53), "a late query", 50*time.Millisecond); got != "silence" {
				t.Errorf("%s: DNS without listen.dns: %s", name, got)
			}
			if to := l.World.HostPort(v6, 53); tcp(t, l.Sandbox, to) != to {
				t.Errorf("%s: without listen.dns, DNS over TCP goes past egressd", name)
			}
		})
		if l.seen.has("world", false) || l.seen.has("a late query", false) {
			t.Error("DNS went past egressd")
		}
	})
}

func TestAttack_B06_the_hosts_own_ports(t *testing.T) {
	each(t, func(t *testing.T, l *lab, s redirect.Spec) {
		families(func(v6 bool, name string) {
			inner, outer := l.Router.HostPort(v6, 0), "192.0.2.1:0"
			if v6 {
				outer = "[2001:db8:77::1]:0"
			}
			for _, at := range []string{inner, outer} {
				host := strings.TrimSuffix(at, ":0")
				for _, port := range []uint16{22, 9443, natPort, tproxyPort} { // transparent listeners take what was brought to them
					if got := tcp(t, l.Sandbox, fmt.Sprintf("%s:%d", host, port)); got != "refused" {
						t.Errorf("port %d of %s: %s", port, host, got)
					}
				}
				if got := tcp(t, l.Sandbox, fmt.Sprintf("%s:%d", host, proxyPort)); got != "egressd's proxy" {
					t.Errorf("the explicit proxy at %s: %s", host, got)
				}
				if got := udp(t, l.Sandbox, host+":9999", "to the router", 50*time.Millisecond); got != "silence" {
					t.Errorf("UDP to %s: %s", host, got)
				}
			}
		})
		if l.seen.has("to the router", false) {
			t.Error("the router got a datagram")
		}
		s.ProxyPort = 0
		l.install(t, s)
		if got := tcp(t, l.Sandbox, l.Router.HostPort(false, proxyPort)); got != "refused" {
			t.Errorf("the explicit proxy, not opened: %s", got)
		}
	})
}

// rawPackets are what is neither TCP nor UDP.
var rawPackets = []struct {
	name   string
	number int
}{{"SCTP", 132}, {"IP in IP", 4}, {"IPv6 in IP", 41}, {"GRE", 47}, {"ESP", 50}, {"UDP-Lite", 136}, {"experimental", 253}}

func TestAttack_B26_no_other_protocol_gets_out(t *testing.T) {
	l := newLab(t)
	for _, p := range rawPackets {
		families(func(v6 bool, name string) {
			l.sniff(t, l.World, v6, p.number, p.name)
			l.sniff(t, l.Router, v6, p.number, p.name)
			if v6 && (p.number == 4 || p.number == 41) {
				return // as IPv6's next header these are tunnels too, and the kernel takes the first for itself
			}
			text := p.name + " before " + name
			l.sendRaw(t, v6, p.number, text)
			if !l.seen.has("world "+text, true) || !l.seen.has("router "+text, true) {
				t.Errorf("%s over %s is not forwarded even without rules: the test shows nothing", p.name, name)
			}
		})
	}
	for _, mode := range []redirect.Mode{redirect.NAT, redirect.TProxy} {
		t.Run(mode.String(), func(t *testing.T) {
			l.install(t, spec(mode, "interfaces"))
			families(func(v6 bool, name string) {
				for _, p := range rawPackets {
					l.sendRaw(t, v6, p.number, p.name+" after "+name)
				}
				for _, ns := range []*testbed.NetNS{l.World, l.Router, l.SandboxB} {
					if host, _, _ := net.SplitHostPort(ns.HostPort(v6, 1)); pings(t, l.Sandbox, host) {
						t.Errorf("%s: ping to the %s is answered", name, ns.Name)
					}
				}
				l.run(t, "ip", "neigh", "flush", "all")
				if out, err := l.Sandbox.Command(t, "ip", "neigh", "flush", "all").CombinedOutput(); err != nil {
					t.Fatalf("%s %v", out, err)
				}
				if to := l.World.HostPort(v6, 80); tcp(t, l.Sandbox, to) != to {
					t.Errorf("%s: neighbours are not found any more", name)
				}
			})
			if l.seen.has(" after ", false) {
				t.Errorf("got out: %v", l.seen.lines())
			}
		})
	}
}

// sniff remembers payloads of an IP protocol that reach a namespace.
func (l *lab) sniff(t *testing.T, ns *testbed.NetNS, v6 bool, proto int, name string) {
	t.Helper()
	network := fmt.Sprintf("ip4:%d", proto)
	if v6 {
		network = fmt.Sprintf("ip6:%d", proto)
	}
	pc := ns.ListenPacket(t, network, "")
	done := make(chan struct{})
	go func() {
		defer close(done)
		b := make([]byte, 2048)
		for {
			n, _, err := pc.ReadFrom(b)
			if err != nil {
				return
			}
			l.seen.add(ns.Name + " " + string(b[:n]))
		}
	}()
	t.Cleanup(func() { _ = pc.Close(); <-done })
}

// sendRaw sends text as a packet of an IP protocol to the world and to the router.
func (l *lab) sendRaw(t *testing.T, v6 bool, proto int, text string) {
	t.Helper()
	network := fmt.Sprintf("ip4:%d", proto)
	if v6 {
		network = fmt.Sprintf("ip6:%d", proto)
	}
	for _, ns := range []*testbed.NetNS{l.World, l.Router} {
		host, _, _ := net.SplitHostPort(ns.HostPort(v6, 1))
		c, err := l.Sandbox.Dial(t, network, host, time.Second)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(c, text); err != nil {
			t.Fatalf("%s to %s: %v", text, host, err)
		}
		_ = c.Close()
	}
}

// TestAttack_B26_icmp_errors: an error about one's own connection would carry a payload
// to where that connection was meant to go.
func TestAttack_B26_icmp_errors(t *testing.T) {
	for _, mode := range []redirect.Mode{redirect.NAT, redirect.TProxy} {
		t.Run(mode.String(), func(t *testing.T) {
			l := newLab(t)
			l.sniff(t, l.World, false, unix.IPPROTO_ICMP, "ICMP")
			l.sendError(t, "error before")
			if !l.seen.has("error before", true) {
				t.Error("not forwarded even without rules: the test shows nothing")
			}
			l.install(t, spec(mode, "interfaces"))
			l.sendError(t, "error after")
			time.Sleep(50 * time.Millisecond)
			if l.seen.has("error after", false) {
				t.Error("got out")
			}
		})
	}
}

// sendError opens a connection to the world and sends "port unreachable" about it.
func (l *lab) sendError(t *testing.T, text string) {
	t.Helper()
	c, err := l.Sandbox.Dial(t, "tcp", l.World.HostPort(false, 80), 3*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	_, _ = io.ReadAll(c)
	inner := make([]byte, 28, 128)
	inner[0], inner[8], inner[9] = 0x45, 64, unix.IPPROTO_TCP
	copy(inner[12:], l.World.V4.AsSlice())
	copy(inner[16:], l.Sandbox.V4.AsSlice())
	binary.BigEndian.PutUint16(inner[20:], 80)
	binary.BigEndian.PutUint16(inner[22:], uint16(c.LocalAddr().(*net.TCPAddr).Port))
	inner = append(inner, text...)
	binary.BigEndian.PutUint16(inner[2:], uint16(len(inner)))
	binary.BigEndian.PutUint16(inner[10:], checksum(inner[:20]))
	icmp := append([]byte{3, 3, 0, 0, 0, 0, 0, 0}, inner...)
	binary.BigEndian.PutUint16(icmp[2:], checksum(icmp))
	raw, err := l.Sandbox.Dial(t, "ip4:icmp", l.World.V4.String(), time.Second)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = raw.Close() }()
	if _, err := raw.Write(icmp); err != nil {
		t.Fatal(err)
	}
}

func checksum(b []byte) uint16 {
	var sum uint32
	for i := 0; i < len(b); i += 2 {
		if i+1 < len(b) {
			sum += uint32(b[i])<<8 | uint32(b[i+1])
		} else {
			sum += uint32(b[i]) << 8
		}
	}
	for sum>>16 != 0 {
		sum = sum&0xffff + sum>>16
	}
	return ^uint16(sum)
}

// TestSandboxesDoNotReachEachOther: what is for a neighbour goes to egressd, which knows
// policy, or nowhere.
func TestSandboxesDoNotReachEachOther(t *testing.T) {
	each(t, func(t *testing.T, l *lab, _ redirect.Spec) {
		families(func(v6 bool, name string) {
			if to := l.SandboxB.HostPort(v6, 8080); tcp(t, l.Sandbox, to) != to {
				t.Errorf("%s: %s", name, tcp(t, l.Sandbox, to))
			}
			if got := udp(t, l.Sandbox, l.SandboxB.HostPort(v6, 9999), "neighbour", 50*time.Millisecond); got != "silence" {
				t.Errorf("%s: UDP: %s", name, got)
			}
		})
		if l.seen.has("neighbour", false) {
			t.Error("the neighbour got a datagram")
		}
	})
}

// TestRepliesPass: who may connect to a sandbox gets answers.
func TestRepliesPass(t *testing.T) {
	each(t, func(t *testing.T, l *lab, _ redirect.Spec) {
		families(func(v6 bool, name string) {
			for _, from := range []*testbed.NetNS{l.Router, l.World} {
				if got := tcp(t, from, l.Sandbox.HostPort(v6, 8080)); got != "sandbox" {
					t.Errorf("%s: %s to the sandbox: %s", name, from.Name, got)
				}
			}
		})
	})
}

// TestForgedSources: a sandbox that writes another's address on its packets is not heard.
func TestForgedSources(t *testing.T) {
	l := newLab(t)
	forge := func(text string) {
		for _, f := range []struct{ source, to string }{
			{"10.77.2.2", l.Router.HostPort(false, dnsPort)},
			{"fd77:2::2", l.Router.HostPort(true, dnsPort)},
		} {
			l.forge(t, f.source, f.to, text)
		}
	}
	forge("early")
	for _, source := range []string{"dns 10.77.2.2", "dns [fd77:2::2]"} {
		if !l.seen.has(source, true) {
			t.Errorf("%s is not heard even without rules: the test shows nothing", source)
		}
	}
	for _, mode := range []redirect.Mode{redirect.NAT, redirect.TProxy} {
		for _, selector := range []string{"interfaces", "sources", "both"} {
			l.install(t, spec(mode, selector))
			text := mode.String() + " " + selector
			forge(text)
			if got := udp(t, l.Sandbox, l.World.HostPort(false, 53), "honest "+text, time.Second); got != "dns" {
				t.Errorf("%s: an honest query after it: %s", text, got)
			}
			for _, line := range l.seen.lines() {
				if strings.HasSuffix(line, text) && !strings.Contains(line, "honest") {
					t.Errorf("heard: %s", line)
				}
			}
		}
	}
	// A sandbox's address from the world's side.
	l.install(t, spec(redirect.NAT, "both"))
	pc := nonlocal(t, l.World, "10.77.1.2")
	if _, err := pc.WriteTo([]byte("from the world"), &net.UDPAddr{IP: net.ParseIP("192.0.2.1"), Port: dnsPort}); err != nil {
		t.Fatal(err)
	}
	time.Sleep(50 * time.Millisecond)
	if l.seen.has("from the world", false) {
		t.Error("the world spoke as a sandbox")
	}
}

// TestSourcesBelongToInterfaces: where both are given, neither is believed without the other.
func TestSourcesBelongToInterfaces(t *testing.T) {
	for _, mode := range []redirect.Mode{redirect.NAT, redirect.TProxy} {
		l := newLab(t)
		s := spec(mode, "interfaces")
		s.Sources = append(prefixes("10.77.1.2/32", "fd77:1::2/128"), prefixes("192.0.2.2/32", "2001:db8:77::2/128")...)
		l.install(t, s)
		families(func(v6 bool, name string) {
			router := "192.0.2.1:15053"
			if v6 {
				router = "[2001:db8:77::1]:15053"
			}
			for _, tc := range []struct {
				from     *testbed.NetNS
				to, want string
			}{
				{l.Sandbox, l.World.HostPort(v6, 53), "dns"},
				{l.SandboxB, l.World.HostPort(v6, 53), "silence"},
				{l.World, router, "silence"},
			} {
				wait := 2 * time.Second
				if tc.want == "silence" {
					wait = 50 * time.Millisecond
				}
				if got := udp(t, tc.from, tc.to, "x", wait); got != tc.want {
					t.Errorf("%s, %s: %s to %s: %s", mode, name, tc.from.Name, tc.to, got)
				}
			}
		})
	}
}

func (l *lab) forge(t *testing.T, source, to, text string) {
	t.Helper()
	pc := nonlocal(t, l.Sandbox, source)
	addr := net.UDPAddrFromAddrPort(netip.MustParseAddrPort(to))
	if _, err := pc.WriteTo([]byte(text), addr); err != nil {
		t.Fatal(err)
	}
	_ = pc.Close()
}

// nonlocal is a socket with an address that is not the host's own.
func nonlocal(t *testing.T, ns *testbed.NetNS, source string) net.PacketConn {
	t.Helper()
	lc := net.ListenConfig{Control: func(network, _ string, c syscall.RawConn) error {
		var err error
		_ = c.Control(func(fd uintptr) {
			if network == "udp6" {
				err = unix.SetsockoptInt(int(fd), unix.SOL_IPV6, unix.IPV6_TRANSPARENT, 1)
			} else {
				err = unix.SetsockoptInt(int(fd), unix.SOL_IP, unix.IP_TRANSPARENT, 1)
			}
		})
		return err
	}}
	var pc net.PacketConn
	ns.Do(t, func() {
		var err error
		if pc, err = lc.ListenPacket(t.Context(), "udp", net.JoinHostPort(source, "0")); err != nil {
			t.Fatal(err)
		}
	})
	t.Cleanup(func() { _ = pc.Close() })
	return pc
}

// TestOldConnectionsEnd: what was open before the rules does not go on past them.
func TestOldConnectionsEnd(t *testing.T) {
	each(t, func(t *testing.T, l *lab, s redirect.Spec) {
		l.remove(t)
		families(func(v6 bool, name string) {
			ln := l.World.Listen(t, "tcp", l.World.HostPort(v6, 7000))
			old, err := l.Sandbox.Dial(t, "tcp", l.World.HostPort(v6, 7000), 3*time.Second)
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = old.Close() }()
			server, err := ln.Accept()
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = server.Close() }()
			l.install(t, s)
			_, _ = io.WriteString(old, "secret")
			_ = old.SetReadDeadline(time.Now().Add(3 * time.Second))
			if _, err := old.Read(make([]byte, 1)); !isRefused(err) {
				t.Errorf("%s: the old connection was not ended: %v", name, err)
			}
			_ = server.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
			if n, _ := server.Read(make([]byte, 64)); n > 0 {
				t.Errorf("%s: the world got %d bytes", name, n)
			}
			l.remove(t)
		})
	})
}

// TestNobodyListens: without egressd there is no way out, and clients learn it at once.
func TestNobodyListens(t *testing.T) {
	for _, mode := range []redirect.Mode{redirect.NAT, redirect.TProxy} {
		t.Run(mode.String(), func(t *testing.T) {
			l := newLab(t)
			s := spec(mode, "interfaces")
			s.Port = 15999
			l.install(t, s)
			families(func(v6 bool, name string) {
				if got := tcp(t, l.Sandbox, l.World.HostPort(v6, 80)); got != "refused" {
					t.Errorf("%s: %s", name, got)
				}
			})
		})
	}
}

// TestLocalUsers: processes of a uid, and only those, are brought to egressd.
func TestLocalUsers(t *testing.T) {
	l := newLab(t)
	s := redirect.Spec{Mode: redirect.NAT, Port: natPort, DNSPort: dnsPort, ProxyPort: proxyPort, UIDs: []uint32{12345}}
	l.install(t, s)
	as := func(uid, host string, port int) string {
		script := fmt.Sprintf("exec 3<>/dev/tcp/%s/%d && cat <&3", host, port)
		cmd := l.Router.Command(t, "setpriv", "--reuid="+uid, "--clear-groups", "timeout", "3", "bash", "-c", script)
		out, err := cmd.Output()
		if err != nil {
			return "failed"
		}
		return string(out)
	}
	for _, tc := range []struct {
		uid, host string
		port      int
		want      string
	}{
		{"12345", "192.0.2.2", 80, "192.0.2.2:80"},
		{"12345", "192.0.2.2", 65535, "192.0.2.2:65535"},
		{"12345", "2001:db8:77::2", 443, "[2001:db8:77::2]:443"},
		{"12345", "192.0.2.2", 53, "egressd's dns"},
		{"12345", "127.0.0.1", proxyPort, "egressd's proxy"},
		{"12345", "127.0.0.1", 9443, "failed"},
		{"12345", "::1", 9443, "failed"},
		{"12345", "192.0.2.1", 22, "failed"},
		{"12345", "127.0.0.1", natPort, "failed"},
		{"12346", "192.0.2.2", 80, "world"},
		{"12346", "127.0.0.1", 9443, "router's own :9443"},
	} {
		if got := as(tc.uid, tc.host, tc.port); got != tc.want {
			t.Errorf("uid %s to %s port %d: %q, want %q", tc.uid, tc.host, tc.port, got, tc.want)
		}
	}
	send := func(uid, host string, port int) {
		_ = l.Router.Command(t, "setpriv", "--reuid="+uid, "--clear-groups", "bash", "-c", fmt.Sprintf("echo uid %s > /dev/udp/%s/%d", uid, host, port)).Run()
	}
	for _, host := range []string{"192.0.2.2", "2001:db8:77::2"} {
		send("12345", host, 9999)
		send("12345", host, 443)
		send("12346", host, 9999)
	}
	if !l.seen.has("uid 12346", true) || l.seen.has("uid 12345", false) {
		t.Errorf("the world saw %v", l.seen.lines())
	}
	if diffs := l.status(t, s); len(diffs) > 0 {
		t.Errorf("status: %v", diffs)
	}
}

// TestPrivilege: what is missing is said.
func TestPrivilege(t *testing.T) {
	l := newLab(t)
	done := make(chan error, 3)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends without its capability
		l.Router.Do(t, func() {
			hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
			var caps [2]unix.CapUserData
			if err := unix.Capget(&hdr, &caps[0]); err != nil {
				t.Error(err)
			}
			all := caps
			caps[0].Effective &^= 1 << unix.CAP_NET_ADMIN
			if err := unix.Capset(&hdr, &caps[0]); err != nil {
				t.Error(err)
			}
			_, err := redirect.Status(spec(redirect.NAT, "interfaces"))
			done <- err
			done <- redirect.Install(spec(redirect.NAT, "interfaces"))
			done <- redirect.Remove()
			if err := unix.Capset(&hdr, &all[0]); err != nil {
				t.Error(err)
			}
		})
	}()
	for range 3 {
		if err := <-done; err == nil || !strings.Contains(err.Error(), "CAP_NET_ADMIN") {
			t.Errorf("got %v", err)
		}
	}
}
