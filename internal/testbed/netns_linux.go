package testbed

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// Net is a network of its own, made of namespaces without a name that end with the test
// (or with its process, however that ends):
//
//	Sandbox  10.77.1.2, fd77:1::2 ─┐ sandbox0
//	                               Router ─ world0 ── World 192.0.2.2, 2001:db8:77::2
//	SandboxB 10.77.2.2, fd77:2::2 ─┘ sandbox1
//
// The router, .1 and ::1 in each network, forwards, so that without rules everybody
// reaches everybody. Nothing leads out.
type Net struct{ Sandbox, SandboxB, Router, World *NetNS }

// Names of the router's interfaces.
const (
	SandboxLink  = "sandbox0"
	SandboxBLink = "sandbox1"
	WorldLink    = "world0"
)

// NetNS is one network namespace. Its methods may be called from several goroutines.
type NetNS struct {
	Name   string
	V4, V6 netip.Addr // its own; of the router: those towards Sandbox
	link   string
	fd     netns.NsHandle
}

// NewNet makes the network. A kernel that forbids namespaces skips the test, and nothing
// else does.
func NewNet(t testing.TB) *Net {
	t.Helper()
	n := &Net{
		Sandbox:  newNetNS(t, "sandbox", "10.77.1.2", "fd77:1::2"),
		SandboxB: newNetNS(t, "sandbox b", "10.77.2.2", "fd77:2::2"),
		Router:   newNetNS(t, "router", "10.77.1.1", "fd77:1::1"),
		World:    newNetNS(t, "world", "192.0.2.2", "2001:db8:77::2"),
	}
	n.Router.forward(t)
	n.Router.connect(t, n.Sandbox, SandboxLink, "10.77.1.1", "fd77:1::1")
	n.Router.connect(t, n.SandboxB, SandboxBLink, "10.77.2.1", "fd77:2::1")
	n.Router.connect(t, n.World, WorldLink, "192.0.2.1", "2001:db8:77::1")
	n.Router.awaitUp(t, SandboxLink, SandboxBLink, WorldLink)
	return n
}

func newNetNS(t testing.TB, name, v4, v6 string) *NetNS {
	t.Helper()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	back, err := netns.Get()
	if err != nil {
		t.Fatalf("testbed: this thread's network namespace: %v", err)
	}
	defer func() { _ = back.Close() }()
	fd, err := netns.New()
	switch {
	case errors.Is(err, syscall.EPERM):
		t.Skip("testbed: SKIPPED, NOT TESTED: the kernel forbids network namespaces here; run the tests as root")
	case err != nil:
		t.Fatalf("testbed: network namespace: %v", err)
	}
	if err := netns.Set(back); err != nil {
		runtime.LockOSThread() // once more, so that the thread ends with its goroutine
		t.Fatalf("testbed: back to the test's namespace: %v", err)
	}
	t.Cleanup(func() { _ = fd.Close() })
	ns := &NetNS{Name: name, V4: netip.MustParseAddr(v4), V6: netip.MustParseAddr(v6), link: "eth0", fd: fd}
	ns.Do(t, func() {
		ns.sysctl(t, "net/ipv6/conf/all/accept_dad", "0") // addresses are usable at once
		ns.sysctl(t, "net/ipv6/conf/default/accept_dad", "0")
		ns.sysctl(t, "net/ipv4/icmp_ratelimit", "0")
		ns.sysctl(t, "net/ipv6/icmp/ratelimit", "0")
		must(t, up("lo"))
	})
	return ns
}

// Do runs f on a thread that is in the namespace, where f may open sockets and start
// processes; what f starts as a goroutine is elsewhere. f may call t.Fatal.
func (n *NetNS) Do(t testing.TB, f func()) {
	t.Helper()
	runtime.LockOSThread()
	back, err := netns.Get()
	if err != nil {
		runtime.UnlockOSThread()
		t.Fatalf("testbed: this thread's network namespace: %v", err)
	}
	defer func() {
		if err := netns.Set(back); err != nil {
			t.Errorf("testbed: back from namespace %s: %v", n.Name, err) // the thread stays locked and ends
		} else {
			runtime.UnlockOSThread()
		}
		_ = back.Close()
	}()
	if err := netns.Set(n.fd); err != nil {
		t.Fatalf("testbed: into namespace %s: %v", n.Name, err)
	}
	f()
}

// Path is a file that stands for the namespace as long as the test runs, for `nsenter --net=`.
func (n *NetNS) Path() string { return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), int(n.fd)) }

// Command is a program to be run in the namespace.
func (n *NetNS) Command(t testing.TB, name string, args ...string) *exec.Cmd {
	t.Helper()
	return exec.Command(Tool(t, "nsenter"), append([]string{"--net=" + n.Path(), "--", Tool(t, name)}, args...)...)
}

// CommandContext is Command that ends with ctx.
func (n *NetNS) CommandContext(ctx context.Context, t testing.TB, name string, args ...string) *exec.Cmd {
	t.Helper()
	return exec.CommandContext(ctx, Tool(t, "nsenter"), append([]string{"--net=" + n.Path(), "--", Tool(t, name)}, args...)...)
}

// Listen accepts in the namespace until the test ends. The address is a literal.
func (n *NetNS) Listen(t testing.TB, network, address string) net.Listener {
	t.Helper()
	var ln net.Listener
	n.Do(t, func() {
		var err error
		if ln, err = net.Listen(network, address); err != nil {
			t.Fatalf("testbed: listen on %s in %s: %v", address, n.Name, err)
		}
	})
	t.Cleanup(func() { _ = ln.Close() })
	return ln
}

// ListenPacket is Listen for datagrams.
func (n *NetNS) ListenPacket(t testing.TB, network, address string) net.PacketConn {
	t.Helper()
	var pc net.PacketConn
	n.Do(t, func() {
		var err error
		if pc, err = net.ListenPacket(network, address); err != nil {
			t.Fatalf("testbed: listen on %s in %s: %v", address, n.Name, err)
		}
	})
	t.Cleanup(func() { _ = pc.Close() })
	return pc
}

// Dial connects from the namespace within timeout. The address is a literal.
func (n *NetNS) Dial(t testing.TB, network, address string, timeout time.Duration) (net.Conn, error) {
	t.Helper()
	var c net.Conn
	var err error
	n.Do(t, func() { c, err = net.DialTimeout(network, address, timeout) })
	return c, err
}

// DialContext is Dial for a client that takes a dial function; every call of it locks a
// thread for its time.
func (n *NetNS) DialContext(t testing.TB) func(ctx context.Context, network, address string) (net.Conn, error) {
	return func(ctx context.Context, network, address string) (c net.Conn, err error) {
		n.Do(t, func() { c, err = new(net.Dialer).DialContext(ctx, network, address) })
		return c, err
	}
}

// AddAddrs gives the namespace more addresses on its link, for several origins. Those of
// World are to be of 192.0.2.0/24 and 2001:db8:77::/64, which the router knows.
func (n *NetNS) AddAddrs(t testing.TB, addrs ...string) {
	t.Helper()
	n.Do(t, func() {
		for _, a := range addrs {
			must(t, addAddr(n.link, netip.MustParseAddr(a)))
		}
	})
}

// forward makes a router. Error messages of ICMP are not rationed, so that tests which
// wait for one can follow each other.
func (n *NetNS) forward(t testing.TB) {
	t.Helper()
	n.Do(t, func() {
		n.sysctl(t, "net/ipv4/ip_forward", "1")
		n.sysctl(t, "net/ipv6/conf/all/forwarding", "1")
	})
}

// connect joins a host to the router and gives the host its default routes.
func (n *NetNS) connect(t testing.TB, host *NetNS, link, v4, v6 string) {
	t.Helper()
	n.Do(t, func() {
		must(t, netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: link}, PeerName: host.link, PeerNamespace: netlink.NsFd(int(host.fd))}))
		must(t, addAddr(link, netip.MustParseAddr(v4)))
		must(t, addAddr(link, netip.MustParseAddr(v6)))
		must(t, up(link))
	})
	host.Do(t, func() {
		must(t, up(host.link))
		must(t, addAddr(host.link, host.V4))
		must(t, addAddr(host.link, host.V6))
		for _, via := range []string{v4, v6} {
			must(t, netlink.RouteAdd(&netlink.Route{Gw: netip.MustParseAddr(via).AsSlice()}))
		}
	})
}

// awaitUp waits until the links carry packets.
func (n *NetNS) awaitUp(t testing.TB, links ...string) {
	t.Helper()
	n.Do(t, func() {
		for _, name := range links {
			for end := time.Now().Add(5 * time.Second); ; time.Sleep(time.Millisecond) {
				l, err := netlink.LinkByName(name)
				must(t, err)
				if l.Attrs().OperState == netlink.OperUp {
					break
				}
				if time.Now().After(end) {
					t.Fatalf("testbed: link %s is not up after 5 s", name)
				}
			}
		}
	})
}

func up(link string) error {
	l, err := netlink.LinkByName(link)
	if err != nil {
		return err
	}
	return netlink.LinkSetUp(l)
}

func addAddr(link string, a netip.Addr) error {
	l, err := netlink.LinkByName(link)
	if err != nil {
		return err
	}
	bits, flags := 24, 0
	if a.Is6() {
		bits, flags = 64, unix.IFA_F_NODAD
	}
	return netlink.AddrAdd(l, &netlink.Addr{IPNet: &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(bits, a.BitLen())}, Flags: flags})
}

func (n *NetNS) sysctl(t testing.TB, name, value string) {
	t.Helper()
	must(t, os.WriteFile("/proc/sys/"+name, []byte(value), 0o600))
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatalf("testbed: network: %v", err)
	}
}

// HostPort writes an address of the namespace with a port: of IPv6 when v6.
func (n *NetNS) HostPort(v6 bool, port uint16) string {
	a := n.V4
	if v6 {
		a = n.V6
	}
	return net.JoinHostPort(a.String(), strconv.Itoa(int(port)))
}
