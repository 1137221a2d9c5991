package selftest

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// rawKind is an IP protocol that needs a raw socket.
type rawKind struct {
	name  string
	proto int
}

func rawProbes() []rawKind {
	return []rawKind{{"ipip", unix.IPPROTO_IPIP}, {"gre", unix.IPPROTO_GRE}, {"sctp", unix.IPPROTO_SCTP}}
}

func sockaddr(ip netip.Addr) (domain int, to unix.Sockaddr) {
	if ip.Is4() {
		return unix.AF_INET, &unix.SockaddrInet4{Addr: ip.As4()}
	}
	return unix.AF_INET6, &unix.SockaddrInet6{Addr: ip.As16()}
}

// openTo opens a socket that talks to ip alone and waits no longer than ctx.
func openTo(ctx context.Context, ip netip.Addr, typ, proto int) (int, error) {
	domain, to := sockaddr(ip)
	fd, err := unix.Socket(domain, typ|unix.SOCK_CLOEXEC, proto)
	if err != nil {
		return -1, err
	}
	left := time.Second
	if d, ok := ctx.Deadline(); ok {
		left = max(time.Until(d), time.Millisecond)
	}
	tv := unix.NsecToTimeval(left.Nanoseconds())
	recvErr, level := unix.IP_RECVERR, unix.SOL_IP
	if domain == unix.AF_INET6 {
		recvErr, level = unix.IPV6_RECVERR, unix.SOL_IPV6
	}
	err = errors.Join(unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv), unix.SetsockoptInt(fd, level, recvErr, 1))
	if err == nil {
		err = unix.Connect(fd, to)
	}
	if err != nil {
		_ = unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// tryPing sends an echo request, by the kind of socket that is permitted.
func tryPing(ctx context.Context, ip netip.Addr) (Verdict, string) {
	proto, request, reply := unix.IPPROTO_ICMP, byte(8), byte(0)
	if !ip.Is4() {
		proto, request, reply = unix.IPPROTO_ICMPV6, 128, 129
	}
	fd, err := openTo(ctx, ip, unix.SOCK_DGRAM, proto)
	raw := false
	if errors.Is(err, unix.EACCES) || errors.Is(err, unix.EPERM) {
		raw = true
		fd, err = openTo(ctx, ip, unix.SOCK_RAW, proto)
	}
	if err != nil {
		return Blocked, why(err)
	}
	defer func() { _ = unix.Close(fd) }()
	if _, err := unix.Write(fd, echoRequest(request)); err != nil {
		return Blocked, why(err)
	}
	b := make([]byte, 512)
	for range 16 { // a raw socket sees others' too
		n, err := unix.Read(fd, b)
		switch {
		case errors.Is(err, unix.EAGAIN):
			return Blocked, "no answer"
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return Blocked, why(err)
		}
		skip := 0
		if raw && ip.Is4() && n > 0 {
			skip = int(b[0]&15) * 4 // the IP header comes along
		}
		if n > skip && b[skip] == reply {
			return Open, "the echo came back"
		}
	}
	return Blocked, "no answer"
}

// echoRequest is ICMP of type typ, with the checksum that IPv4 wants; the kernel makes that of
// IPv6.
func echoRequest(typ byte) []byte {
	b := []byte{typ, 0, 0, 0, 0, 0, 0, 1, 's', 'e', 'l', 'f'}
	_, _ = rand.Read(b[4:6]) // an identity that no firewall has let pass before; it never fails
	var sum uint32
	for pair := range slices.Chunk(b, 2) {
		sum += uint32(binary.BigEndian.Uint16(pair))
	}
	sum = sum>>16 + sum&0xffff
	sum += sum >> 16
	b[2], b[3] = byte(^sum>>8), byte(^sum)
	return b
}

// tryRaw sends a packet of a protocol that hardly anybody speaks. The target's kernel says
// so, and that proves that it got there.
func tryRaw(ctx context.Context, ip netip.Addr, proto int) (Verdict, string) {
	fd, err := openTo(ctx, ip, unix.SOCK_RAW, proto)
	if err != nil {
		return Blocked, why(err)
	}
	defer func() { _ = unix.Close(fd) }()
	if _, err := unix.Write(fd, make([]byte, 32)); err != nil {
		return Blocked, why(err)
	}
	_, err = unix.Read(fd, make([]byte, 512))
	switch {
	case err == nil:
		return Open, "somebody answered"
	case errors.Is(err, unix.ENOPROTOOPT), errors.Is(err, unix.ECONNREFUSED), errors.Is(err, unix.EPROTO):
		return Open, "the target says that it does not speak it" // ICMP 3/2, ICMPv6 4/1
	case errors.Is(err, unix.EAGAIN):
		return Unclear, "a raw packet was sent, and nobody answered"
	}
	return Blocked, why(err)
}

// tryVsock opens the device and asks whether there is a host to talk to; it does not talk.
func tryVsock(context.Context) (Verdict, string) {
	fd, err := unix.Socket(unix.AF_VSOCK, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return Blocked, why(err)
	}
	_ = unix.Close(fd)
	dev, err := os.Open("/dev/vsock")
	if err != nil {
		return Unclear, "a VSOCK socket can be had; whether there is a host is not known"
	}
	defer func() { _ = dev.Close() }()
	cid, err := unix.IoctlGetUint32(int(dev.Fd()), unix.IOCTL_VM_SOCKETS_GET_LOCAL_CID)
	if err != nil || cid <= unix.VMADDR_CID_HOST || cid == unix.VMADDR_CID_ANY {
		return Blocked, "a VSOCK socket can be had, but there is no host"
	}
	return Open, fmt.Sprintf("the host can be talked to past any network (this is guest %d)", cid)
}
