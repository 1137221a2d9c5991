package redirect_test

import (
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/egressd/egressd/internal/redirect"
	"github.com/egressd/egressd/internal/testbed"
)

const (
	natPort    = 15001
	tproxyPort = 15002
	dnsPort    = 15053
	proxyPort  = 3128
)

// lab is the network of testbed with listeners that stand in for egressd on the router.
type lab struct {
	*testbed.Net
	seen *seen
}

// seen are the datagrams that came anywhere, as "where from text".
type seen struct {
	mu  sync.Mutex
	all []string
}

func (s *seen) add(line string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.all = append(s.all, line)
}

func (s *seen) lines() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.all)
}

// has tells whether text came, and waits for it when it is expected.
func (s *seen) has(text string, expected bool) bool {
	for end := time.Now().Add(2 * time.Second); ; time.Sleep(time.Millisecond) {
		s.mu.Lock()
		found := strings.Contains(strings.Join(s.all, "\n"), text)
		s.mu.Unlock()
		if found || !expected || time.Now().After(end) {
			return found
		}
	}
}

func newLab(t *testing.T) *lab {
	t.Helper()
	l := &lab{testbed.NewNet(t), &seen{}}
	serve(t, l.Router.Listen(t, "tcp4", fmt.Sprintf(":%d", natPort)), originalDst)
	serve(t, l.Router.Listen(t, "tcp6", fmt.Sprintf(":%d", natPort)), originalDst)
	for _, network := range []string{"tcp4", "tcp6"} {
		serve(t, l.transparent(t, network), func(c net.Conn) string { return c.LocalAddr().String() })
	}
	say := func(text string) func(net.Conn) string { return func(net.Conn) string { return text } }
	serve(t, l.Router.Listen(t, "tcp", fmt.Sprintf(":%d", dnsPort)), say("egressd's dns"))
	serve(t, l.Router.Listen(t, "tcp", fmt.Sprintf(":%d", proxyPort)), say("egressd's proxy"))
	for _, port := range []string{":22", ":9443"} {
		serve(t, l.Router.Listen(t, "tcp", port), say("router's own "+port))
	}
	for _, port := range []string{":22", ":53", ":80", ":443", ":853", ":65535"} {
		serve(t, l.World.Listen(t, "tcp", port), say("world"))
	}
	serve(t, l.SandboxB.Listen(t, "tcp", ":8080"), say("sandbox b"))
	serve(t, l.Sandbox.Listen(t, "tcp", ":8080"), say("sandbox"))
	l.echo(t, l.Router, dnsPort, "dns")
	l.echo(t, l.Router, 9999, "router")
	l.echo(t, l.SandboxB, 9999, "sandbox b")
	for _, port := range []uint16{53, 443, 9999} {
		l.echo(t, l.World, port, "world")
	}
	return l
}

// serve answers each connection with a text and ends it.
func serve(t *testing.T, ln net.Listener, text func(net.Conn) string) {
	t.Helper()
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				_, _ = io.WriteString(c, text(c))
				_ = c.(*net.TCPConn).CloseWrite()
				_ = c.SetReadDeadline(time.Now().Add(5 * time.Second))
				_, _ = io.Copy(io.Discard, c)
				_ = c.Close()
			})
		}
	})
	t.Cleanup(func() { _ = ln.Close(); wg.Wait() })
}

// echo answers each datagram with who it is, and remembers it.
func (l *lab) echo(t *testing.T, ns *testbed.NetNS, port uint16, who string) {
	t.Helper()
	pc := ns.ListenPacket(t, "udp", fmt.Sprintf(":%d", port))
	var wg sync.WaitGroup
	wg.Go(func() {
		b := make([]byte, 2048)
		for {
			n, from, err := pc.ReadFrom(b)
			if err != nil {
				return
			}
			l.seen.add(fmt.Sprintf("%s %s %s", who, from, b[:n]))
			_, _ = pc.WriteTo([]byte(who), from)
		}
	})
	t.Cleanup(func() { _ = pc.Close(); wg.Wait() })
}

// transparent is a listener of listen.tproxy's kind.
func (l *lab) transparent(t *testing.T, network string) net.Listener {
	t.Helper()
	lc := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var err error
		_ = c.Control(func(fd uintptr) {
			if network == "tcp6" {
				err = unix.SetsockoptInt(int(fd), unix.SOL_IPV6, unix.IPV6_TRANSPARENT, 1)
			} else {
				err = unix.SetsockoptInt(int(fd), unix.SOL_IP, unix.IP_TRANSPARENT, 1)
			}
		})
		return err
	}}
	var ln net.Listener
	l.Router.Do(t, func() {
		var err error
		if ln, err = lc.Listen(t.Context(), network, fmt.Sprintf(":%d", tproxyPort)); err != nil {
			t.Fatal(err)
		}
	})
	return ln
}

// originalDst is SO_ORIGINAL_DST and IP6T_SO_ORIGINAL_DST.
func originalDst(c net.Conn) string {
	raw, err := c.(*net.TCPConn).SyscallConn()
	if err != nil {
		return err.Error()
	}
	v4 := c.LocalAddr().(*net.TCPAddr).IP.To4() != nil
	var out string
	_ = raw.Control(func(fd uintptr) {
		const soOriginalDst = 80
		if v4 {
			m, err := unix.GetsockoptIPv6Mreq(int(fd), unix.SOL_IP, soOriginalDst)
			if err != nil {
				out = err.Error()
				return
			}
			out = netip.AddrPortFrom(netip.AddrFrom4([4]byte(m.Multiaddr[4:8])), binary.BigEndian.Uint16(m.Multiaddr[2:4])).String()
			return
		}
		m, err := unix.GetsockoptIPv6MTUInfo(int(fd), unix.SOL_IPV6, soOriginalDst)
		if err != nil {
			out = err.Error()
			return
		}
		port := binary.NativeEndian.AppendUint16(nil, m.Addr.Port)
		out = netip.AddrPortFrom(netip.AddrFrom16(m.Addr.Addr), binary.BigEndian.Uint16(port)).String()
	})
	return out
}

// tcp is what the other side of a new connection says, or "refused" when it ended at
// once, or the error.
func tcp(t *testing.T, from *testbed.NetNS, to string) string {
	t.Helper()
	c, err := from.Dial(t, "tcp", to, 3*time.Second)
	if isRefused(err) {
		return "refused"
	}
	if err != nil {
		return err.Error()
	}
	defer func() { _ = c.Close() }()
	_ = c.SetReadDeadline(time.Now().Add(3 * time.Second))
	b, err := io.ReadAll(c)
	if err != nil {
		return err.Error()
	}
	return string(b)
}

// udp sends text and gives what came back from there: "refused" for an ICMP error,
// "silence" for nothing.
func udp(t *testing.T, from *testbed.NetNS, to, text string, wait time.Duration) string {
	t.Helper()
	c, err := from.Dial(t, "udp", to, time.Second)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	if _, err := c.Write([]byte(text)); err != nil && !isRefused(err) {
		return err.Error()
	}
	_ = c.SetReadDeadline(time.Now().Add(wait))
	b := make([]byte, 2048)
	n, err := c.Read(b)
	switch {
	case isRefused(err):
		return "refused"
	case os.IsTimeout(err):
		return "silence"
	case err != nil:
		return err.Error()
	}
	return string(b[:n])
}

func isRefused(err error) bool {
	for _, e := range []error{syscall.ECONNREFUSED, syscall.ECONNRESET} {
		if err != nil && strings.Contains(err.Error(), e.Error()) {
			return true
		}
	}
	return false
}

// pings says whether one echo request was answered.
func pings(t *testing.T, from *testbed.NetNS, to string) bool {
	t.Helper()
	return from.Command(t, "ping", "-c", "1", "-W", "0.3", to).Run() == nil
}

func (l *lab) install(t *testing.T, s redirect.Spec) {
	t.Helper()
	l.Router.Do(t, func() {
		if err := redirect.Install(s); err != nil {
			t.Fatal(err)
		}
	})
}

func (l *lab) remove(t *testing.T) {
	t.Helper()
	l.Router.Do(t, func() {
		if err := redirect.Remove(); err != nil {
			t.Fatal(err)
		}
	})
}

func (l *lab) status(t *testing.T, s redirect.Spec) []string {
	t.Helper()
	var diffs []string
	l.Router.Do(t, func() {
		var err error
		if diffs, err = redirect.Status(s); err != nil {
			t.Fatal(err)
		}
	})
	return diffs
}

// run gives a program's output in the router.
func (l *lab) run(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := l.Router.Command(t, name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %v: %v\n%s", name, args, err, out)
	}
	return string(out)
}

// state is all that Install may change.
func (l *lab) state(t *testing.T) string {
	t.Helper()
	return l.run(t, "nft", "list", "ruleset") + l.run(t, "ip", "-4", "rule") + l.run(t, "ip", "-6", "rule") +
		l.run(t, "ip", "-4", "route", "show", "table", "all") + l.run(t, "ip", "-6", "route", "show", "table", "all", "type", "local") +
		l.run(t, "ip", "-br", "link")
}

// spec is for both sandboxes, by the way that the selector says.
func spec(mode redirect.Mode, selector string) redirect.Spec {
	s := redirect.Spec{Mode: mode, Port: natPort, DNSPort: dnsPort, ProxyPort: proxyPort}
	if mode == redirect.TProxy {
		s.Port = tproxyPort
	}
	if selector != "sources" {
		s.Interfaces = []string{testbed.SandboxLink, testbed.SandboxBLink}
	}
	if selector == "wildcard" {
		s.Interfaces = []string{"sandbox*"}
	}
	if selector == "sources" || selector == "both" {
		s.Sources = []netip.Prefix{netip.MustParsePrefix("10.77.1.2/32"), netip.MustParsePrefix("10.77.2.0/24"),
			netip.MustParsePrefix("fd77:1::2/128"), netip.MustParsePrefix("fd77:2::/64")}
	}
	return s
}
