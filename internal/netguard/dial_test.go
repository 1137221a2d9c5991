package netguard

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"
)

// deaf makes a listener that completes no further handshake: its backlog is full.
func deaf(t testing.TB) (netip.AddrPort, func()) {
	t.Helper()
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	syscall.CloseOnExec(fd)
	sa := &syscall.SockaddrInet4{Addr: [4]byte{127, 0, 0, 4}}
	if err := errors.Join(syscall.Bind(fd, sa), syscall.Listen(fd, 0)); err != nil {
		t.Fatal(err)
	}
	bound, err := syscall.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	ap := netip.AddrPortFrom(netip.AddrFrom4(sa.Addr), uint16(bound.(*syscall.SockaddrInet4).Port))
	var held []net.Conn
	for range 16 {
		c, err := net.DialTimeout("tcp4", ap.String(), 50*time.Millisecond)
		if err != nil {
			break
		}
		held = append(held, c)
	}
	return ap, func() {
		for _, c := range held {
			_ = c.Close()
		}
		_ = syscall.Close(fd)
	}
}

func TestDial_order(t *testing.T) {
	hang := deafAddr(t)
	origin := listener(t, fmt.Sprintf("127.0.0.3:%d", hang.Port()))
	refuses := netip.MustParseAddr("127.0.0.5")
	g := guard(t, Options{AllowCIDRs: prefixes("127.0.0.0/8"), DialTimeout: 3 * time.Second})
	for _, tc := range []struct {
		name     string
		addrs    []netip.Addr
		min, max time.Duration
	}{
		{"first answers", []netip.Addr{origin.Addr(), refuses}, 0, 250 * time.Millisecond},
		{"first refuses", []netip.Addr{refuses, origin.Addr()}, 0, 250 * time.Millisecond},
		{"first hangs", []netip.Addr{hang.Addr(), origin.Addr()}, nextAfter, nextAfter + time.Second},
		{"hangs, refuses, answers", []netip.Addr{hang.Addr(), refuses, origin.Addr()}, nextAfter, nextAfter + time.Second},
	} {
		t.Run(tc.name, func(t *testing.T) {
			start := time.Now()
			c, err := g.Dial(t.Context(), tc.addrs, origin.Port())
			d := time.Since(start)
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = c.Close() }()
			if got := c.RemoteAddr().String(); got != origin.String() {
				t.Errorf("connected to %s, want %s", got, origin)
			}
			if d < tc.min || d > tc.max {
				t.Errorf("took %v, want %v to %v", d, tc.min, tc.max)
			}
			if _, ok := c.(*net.TCPConn); !ok {
				t.Errorf("%T cannot be spliced", c)
			}
		})
	}
}

func TestDial_failures(t *testing.T) {
	hang := deafAddr(t)
	refuses := addrs("127.0.0.5", "127.0.0.6")
	g := guard(t, Options{AllowCIDRs: prefixes("127.0.0.0/8"), DialTimeout: 400 * time.Millisecond})
	if c, err := g.Dial(t.Context(), refuses, hang.Port()); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("all refuse: %v, %v", c, err)
	}
	start := time.Now()
	if c, err := g.Dial(t.Context(), []netip.Addr{hang.Addr()}, hang.Port()); err == nil || time.Since(start) > 2*time.Second {
		t.Errorf("hangs: %v, %v after %v", c, err, time.Since(start))
	}
	start = time.Now()
	if c, err := g.Dial(t.Context(), []netip.Addr{hang.Addr(), hang.Addr()}, hang.Port()); err == nil || time.Since(start) > 2*time.Second {
		t.Errorf("both hang: %v, %v after %v", c, err, time.Since(start))
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if c, err := g.Dial(ctx, append(refuses, refuses...), hang.Port()); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v, %v", c, err)
	}
	if c, err := g.Dial(t.Context(), nil, 443); !errors.Is(err, ErrForbiddenAddress) {
		t.Errorf("no addresses: %v, %v", c, err)
	}
	c, err := g.Dial(t.Context(), addrs("169.254.169.254", "10.0.0.1"), 80)
	if !errors.Is(err, ErrForbiddenAddress) || !strings.Contains(err.Error(), "metadata") {
		t.Errorf("B01: %v, %v", c, err)
	}
}

// TestDial_control skips Dial's own check: the socket's must hold by itself.
func TestDial_control(t *testing.T) {
	origin := listener(t, "127.0.0.1:0")
	g := guard(t, Options{})
	if c, err := g.dialOne(t.Context(), origin); !errors.Is(err, ErrForbiddenAddress) {
		t.Errorf("B07: %v, %v; want ErrForbiddenAddress", c, err)
	}
	if c, err := g.dialer.DialContext(t.Context(), "tcp", "localhost:1"); !errors.Is(err, ErrForbiddenAddress) {
		t.Errorf("B10: dialling by name: %v, %v", c, err)
	}
}

func TestDialContext(t *testing.T) {
	origin := listener(t, "127.0.0.3:0")
	g := guard(t, Options{
		Hosts:      map[string]netip.Addr{"good.test": origin.Addr(), "evil.test": netip.MustParseAddr("127.0.0.1")},
		AllowCIDRs: prefixes("127.0.0.3/32"),
	})
	for _, tc := range []struct {
		network, address string
		err              error
	}{
		{"tcp", fmt.Sprintf("good.test:%d", origin.Port()), nil},
		{"tcp", origin.String(), nil},
		{"tcp", fmt.Sprintf("evil.test:%d", origin.Port()), ErrForbiddenAddress},
		{"tcp", "good.test", ErrBadName},
		{"tcp", "good.test:99999", ErrBadName},
		{"tcp", "/var/run/docker.sock:0", ErrBadName},
		{"unix", "/var/run/docker.sock", net.UnknownNetworkError("unix")},
		{"udp", origin.String(), net.UnknownNetworkError("udp")},
	} {
		c, err := g.DialContext(t.Context(), tc.network, tc.address)
		if !errors.Is(err, tc.err) {
			t.Errorf("%s %s: %v, want %v", tc.network, tc.address, err, tc.err)
		}
		if c != nil {
			_ = c.Close()
		}
	}
}
