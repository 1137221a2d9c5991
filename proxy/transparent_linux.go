package proxy

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"syscall"

	"golang.org/x/sys/unix"
)

// soOriginalDst is SO_ORIGINAL_DST and IP6T_SO_ORIGINAL_DST (linux/netfilter_ipv4.h).
const soOriginalDst = 80

var errNotTCP = errors.New("not a TCP connection")

// originalDst is where the client of a transparent listener aimed.
func originalDst(c net.Conn, kind Kind) (netip.AddrPort, error) {
	tc, ok := c.(*net.TCPConn)
	if !ok {
		return netip.AddrPort{}, errNotTCP
	}
	local, ok := tc.LocalAddr().(*net.TCPAddr)
	if !ok {
		return netip.AddrPort{}, errNotTCP
	}
	if kind == TProxy {
		return local.AddrPort(), nil
	}
	raw, err := tc.SyscallConn()
	if err != nil {
		return netip.AddrPort{}, err
	}
	var aimed netip.AddrPort
	ctlErr := raw.Control(func(fd uintptr) { aimed, err = redirectedFrom(int(fd), local.AddrPort().Addr().Is4()) })
	if err := errors.Join(ctlErr, err); err != nil {
		return netip.AddrPort{}, fmt.Errorf("SO_ORIGINAL_DST: %w", err)
	}
	return aimed, nil
}

// redirectedFrom reads the option through calls of x/sys whose structures have its size:
// there is none for it.
func redirectedFrom(fd int, v4 bool) (netip.AddrPort, error) {
	if v4 { // sockaddr_in: family, port and address in the first 8 of 16 bytes
		m, err := unix.GetsockoptIPv6Mreq(fd, unix.IPPROTO_IP, soOriginalDst)
		if err != nil {
			return netip.AddrPort{}, err
		}
		a := m.Multiaddr
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte(a[4:8])), binary.BigEndian.Uint16(a[2:4])), nil
	}
	info, err := unix.GetsockoptIPv6MTUInfo(fd, unix.IPPROTO_IPV6, soOriginalDst)
	if err != nil {
		return netip.AddrPort{}, err
	}
	port := make([]byte, 2)
	binary.NativeEndian.PutUint16(port, info.Addr.Port) // as it lies in memory: network order
	return netip.AddrPortFrom(netip.AddrFrom16(info.Addr.Addr), binary.BigEndian.Uint16(port)), nil
}

// ListenTransparent opens the listeners of address, host:port: one per family where the host
// is unspecified, since a socket for both cannot be asked for the IPv4 address aimed at.
// TProxy needs CAP_NET_ADMIN.
func ListenTransparent(ctx context.Context, kind Kind, address string) ([]net.Listener, error) {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return nil, err
	}
	networks := []string{"tcp4", "tcp6"}
	if ip, err := netip.ParseAddr(host); err == nil && ip.Is4() {
		networks = networks[:1]
	} else if err == nil && !ip.IsUnspecified() {
		networks = networks[1:]
	}
	lc := net.ListenConfig{}
	if kind == TProxy {
		lc.Control = setTransparent
	}
	var out []net.Listener
	for _, network := range networks {
		at := net.JoinHostPort(host, port)
		if len(networks) == 2 {
			at = net.JoinHostPort("", port)
		}
		ln, err := lc.Listen(ctx, network, at)
		if err != nil {
			if network == "tcp6" && len(out) == 1 && errors.Is(err, syscall.EAFNOSUPPORT) {
				break // a machine without IPv6
			}
			for _, l := range out {
				_ = l.Close()
			}
			return nil, fmt.Errorf("listen on %s: %w", at, err)
		}
		out = append(out, ln)
		if tcp, ok := ln.Addr().(*net.TCPAddr); ok && port == "0" {
			port = fmt.Sprint(tcp.Port) // both families alike
		}
	}
	return out, nil
}

func setTransparent(network, _ string, c syscall.RawConn) error {
	var err error
	ctlErr := c.Control(func(fd uintptr) {
		if network == "tcp6" {
			err = unix.SetsockoptInt(int(fd), unix.SOL_IPV6, unix.IPV6_TRANSPARENT, 1)
			return
		}
		err = unix.SetsockoptInt(int(fd), unix.SOL_IP, unix.IP_TRANSPARENT, 1)
	})
	if errors.Is(err, unix.EPERM) {
		return errors.New("IP_TRANSPARENT needs CAP_NET_ADMIN")
	}
	return errors.Join(ctlErr, err)
}
