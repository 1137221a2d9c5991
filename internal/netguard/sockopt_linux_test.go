package netguard

import (
	"net"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestSocketOptions(t *testing.T) {
	origin := listener(t, "127.0.0.3:0")
	g := guard(t, Options{AllowCIDRs: prefixes("127.0.0.0/8"), UserTimeout: 45 * time.Second})
	c, err := g.Dial(t.Context(), addrs("127.0.0.3"), origin.Port())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	raw, err := c.(*net.TCPConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name          string
		level, option int
		want          int
	}{
		{"TCP_USER_TIMEOUT", unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, 45000},
		{"TCP_NODELAY", unix.IPPROTO_TCP, unix.TCP_NODELAY, 1},
		{"SO_KEEPALIVE", unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1},
		{"TCP_KEEPIDLE", unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, 30},
	} {
		var got int
		var serr error
		if err := raw.Control(func(fd uintptr) { got, serr = unix.GetsockoptInt(int(fd), tc.level, tc.option) }); err != nil || serr != nil {
			t.Fatal(err, serr)
		}
		if got != tc.want {
			t.Errorf("%s = %d, want %d", tc.name, got, tc.want)
		}
	}
}
