package isolate

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// family is one of IPv4 and IPv6 as the namespace has it.
type family struct {
	domain   int
	loopback netip.Addr
	own      netip.Addr
	all      netip.Prefix
}

// makeNetwork makes every address local, and gives the families that can be used.
func makeNetwork() ([]family, error) {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return nil, fmt.Errorf("lo: %w", err)
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		return nil, fmt.Errorf("lo up: %w", err)
	}
	v4 := family{unix.AF_INET, netip.AddrFrom4([4]byte{127, 0, 0, 1}), own4(), netip.PrefixFrom(netip.IPv4Unspecified(), 0)}
	v6 := family{unix.AF_INET6, netip.IPv6Loopback(), own6(), netip.PrefixFrom(netip.IPv6Unspecified(), 0)}
	if err := v4.allLocal(lo); err != nil {
		return nil, fmt.Errorf("IPv4: %w", err)
	}
	switch err := v6.allLocal(lo); {
	case err == nil:
		return []family{v4, v6}, nil
	case withoutIPv6(err):
		return []family{v4}, nil // and no route: the command cannot use it either
	default:
		return nil, fmt.Errorf("IPv6: %w", err)
	}
}

// withoutIPv6: the kernel was started without it, or a sysctl forbids it.
func withoutIPv6(err error) bool {
	return errors.Is(err, unix.EAFNOSUPPORT) || errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EACCES)
}

// allLocal gives lo an address of the family and has it take all others.
func (f family) allLocal(lo netlink.Link) error {
	own := &netlink.Addr{IPNet: &net.IPNet{IP: f.own.AsSlice(), Mask: net.CIDRMask(f.own.BitLen(), f.own.BitLen())}, Flags: unix.IFA_F_NODAD}
	if err := netlink.AddrAdd(lo, own); err != nil {
		return fmt.Errorf("address: %w", err)
	}
	route := &netlink.Route{
		LinkIndex: lo.Attrs().Index, Type: unix.RTN_LOCAL, Table: unix.RT_TABLE_LOCAL, Scope: netlink.SCOPE_HOST,
		Dst: &net.IPNet{IP: f.all.Addr().AsSlice(), Mask: net.CIDRMask(0, f.all.Addr().BitLen())}, Src: f.own.AsSlice(),
	}
	if err := netlink.RouteAdd(route); err != nil {
		return fmt.Errorf("route: %w", err)
	}
	return nil
}

// backlog of the listeners: the parent accepts at once.
const backlog = 1024

// listenAll opens the listeners that makeRules leads to.
func listenAll(families []family) (kinds []string, files []*os.File, err error) {
	for _, f := range families {
		for _, l := range []struct {
			kind string
			typ  int
			port int
		}{
			{kindRedirect, unix.SOCK_STREAM, redirectPort},
			{kindDNS, unix.SOCK_DGRAM, dnsPort},
			{kindDNSTCP, unix.SOCK_STREAM, dnsPort},
		} {
			file, err := f.listen(l.typ, l.port)
			if err != nil {
				for _, open := range files {
					_ = open.Close()
				}
				return nil, nil, fmt.Errorf("listen for %s: %w", l.kind, err)
			}
			kinds, files = append(kinds, l.kind), append(files, file)
		}
	}
	return kinds, files, nil
}

func (f family) listen(typ, port int) (*os.File, error) {
	fd, err := unix.Socket(f.domain, typ|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	file := os.NewFile(uintptr(fd), "listener")
	var at unix.Sockaddr = &unix.SockaddrInet4{Port: port, Addr: [4]byte{127, 0, 0, 1}}
	if f.domain == unix.AF_INET6 {
		at = &unix.SockaddrInet6{Port: port, Addr: f.loopback.As16()}
		err = unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 1)
	}
	if err == nil {
		err = unix.Bind(fd, at)
	}
	if err == nil && typ == unix.SOCK_STREAM {
		err = unix.Listen(fd, backlog)
	}
	if err != nil {
		_ = file.Close()
		return nil, err
	}
	return file, nil
}
