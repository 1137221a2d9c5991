package isolate

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"syscall"
	"time"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// playCommand is what runs in the namespace. It says on stderr what is not as it should be.
func playCommand(args []string) int {
	if err := act(args[0], args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

func act(what string, args []string) error {
	switch what {
	case "ask":
		return each(args, ask)
	case "refused":
		return each(args, refused)
	case "unix":
		return askUnix(args[0])
	case "ping":
		return errors.Join(ping(unix.AF_INET), ping(unix.AF_INET6))
	case "sockets":
		return sockets()
	case "powers":
		return powers()
	case "leave":
		return leave()
	case "loopback":
		return errors.Join(talk("127.0.0.1:0"), talk("127.0.0.9:0"), talk("[::1]:0"), talk(own4().String()+":0"), talk("["+own6().String()+"]:0"))
	case "resolv.conf":
		b, err := os.ReadFile(resolvConf)
		if err != nil || !strings.HasSuffix(string(b), "\nnameserver 127.0.0.1\n") || os.WriteFile(resolvConf, nil, 0) == nil {
			return fmt.Errorf("%q, %w", b, err)
		}
		return nil
	case "interfaces":
		return interfaces()
	case "descriptors":
		return descriptors()
	}
	return errors.New("no such part")
}

// each runs f for each pair of network and address.
func each(args []string, f func(network, to string) error) error {
	var errs []error
	for i := 0; i+1 < len(args); i += 2 {
		errs = append(errs, f(args[i], args[i+1]))
	}
	return errors.Join(errs...)
}

// ask prints what the other side answers.
func ask(network, to string) error {
	c, err := net.DialTimeout(network, to, 5*time.Second)
	if err != nil {
		return err
	}
	defer func() { _ = c.Close() }()
	if network == "udp" {
		if _, err := io.WriteString(c, "question"); err != nil {
			return err
		}
	}
	_ = c.SetDeadline(time.Now().Add(5 * time.Second))
	b := make([]byte, 512)
	n, err := c.Read(b)
	fmt.Printf("%s\n", strings.TrimSpace(string(b[:n])))
	return err
}

// refused wants an error within a second.
func refused(network, to string) error {
	begun := time.Now()
	c, err := net.DialTimeout(network, to, 5*time.Second)
	if err == nil {
		defer func() { _ = c.Close() }()
		_ = c.SetDeadline(time.Now().Add(5 * time.Second))
		if _, err = io.WriteString(c, "x"); err == nil {
			_, err = c.Read(make([]byte, 9))
		}
	}
	if err == nil || errors.Is(err, os.ErrDeadlineExceeded) || time.Since(begun) > time.Second {
		return fmt.Errorf("%s %s: %w after %v", network, to, err, time.Since(begun))
	}
	return nil
}

func askUnix(name string) error {
	c, err := net.DialTimeout("unix", name, 5*time.Second)
	if errors.Is(err, syscall.ECONNREFUSED) {
		fmt.Println("refused")
		return nil
	}
	if err != nil {
		return err
	}
	defer func() { _ = c.Close() }()
	_, err = io.Copy(os.Stdout, c)
	return err
}

// ping sends an echo request, by which socket it can, that nothing must answer.
func ping(domain int) error {
	proto, request := unix.IPPROTO_ICMP, []byte{8, 0, 0xf7, 0xff, 0, 0, 0, 0}
	var to unix.Sockaddr = &unix.SockaddrInet4{Addr: [4]byte{192, 0, 2, 7}}
	if domain == unix.AF_INET6 {
		proto, request = unix.IPPROTO_ICMPV6, []byte{128, 0, 0, 0, 0, 0, 0, 0}
		to = &unix.SockaddrInet6{Addr: [16]byte{0x20, 1, 0xd, 0xb8, 15: 7}}
	}
	for _, typ := range []int{unix.SOCK_DGRAM, unix.SOCK_RAW} {
		fd, err := unix.Socket(domain, typ|unix.SOCK_CLOEXEC, proto)
		if err != nil {
			continue
		}
		defer func() { _ = unix.Close(fd) }()
		_ = unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 300000})
		if err := unix.Sendto(fd, request, 0, to); err != nil {
			continue
		}
		b := make([]byte, 200)
		if n, _, err := unix.Recvfrom(fd, b, 0); err == nil {
			return fmt.Errorf("ICMP is answered: %x", b[:n])
		}
	}
	return nil
}

// sockets tries kinds of sockets that must not be had.
func sockets() error {
	for name, s := range map[string][3]int{
		"raw":         {unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_RAW},
		"raw6":        {unix.AF_INET6, unix.SOCK_RAW, unix.IPPROTO_RAW},
		"IP in IP":    {unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_IPIP},
		"raw SCTP":    {unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_SCTP},
		"packet":      {unix.AF_PACKET, unix.SOCK_RAW, 0},
		"VSOCK":       {unix.AF_VSOCK, unix.SOCK_STREAM, 0},
		"VSOCK dgram": {unix.AF_VSOCK, unix.SOCK_DGRAM, 0},
		"bluetooth":   {unix.AF_BLUETOOTH, unix.SOCK_RAW, 1},
		"TIPC":        {unix.AF_TIPC, unix.SOCK_STREAM, 0},
	} {
		if fd, err := unix.Socket(s[0], s[1], s[2]); err == nil {
			_ = unix.Close(fd)
			return fmt.Errorf("a socket for %s can be had", name)
		} else if s[0] == unix.AF_VSOCK && !errors.Is(err, unix.EAFNOSUPPORT) {
			return fmt.Errorf("VSOCK: %w", err)
		}
	}
	if _, _, errno := unix.Syscall(ioUringSetup, 1, 0, 0); errno != unix.ENOSYS {
		return fmt.Errorf("io_uring: %w", errno)
	}
	// SCTP, where the kernel has it, is a socket as any: what it sends is refused.
	if fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_NONBLOCK, unix.IPPROTO_SCTP); err == nil {
		defer func() { _ = unix.Close(fd) }()
		err = unix.Connect(fd, &unix.SockaddrInet4{Port: 9, Addr: [4]byte{192, 0, 2, 7}})
		if err == nil {
			return errors.New("SCTP connects")
		}
	}
	return nil
}

// powers wants no capability over namespaces, and no way to any.
func powers() error {
	b, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return err
	}
	keep := uint64(0)
	if os.Geteuid() == 0 {
		keep = rootKeeps
	}
	for _, field := range []string{"CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"} {
		_, after, _ := strings.Cut(string(b), field+":")
		var caps uint64
		if _, err := fmt.Sscanf(after, "%x", &caps); err != nil || caps&^keep != 0 {
			return fmt.Errorf("%s is %x, %w", field, caps, err)
		}
	}
	if !strings.Contains(string(b), "NoNewPrivs:\t1") || !strings.Contains(string(b), "Seccomp:\t2") {
		return fmt.Errorf("no_new_privs or the filter is missing:\n%s", b)
	}
	if c, err := nftables.New(); err == nil {
		c.FlushRuleset()
		if err := c.Flush(); !errors.Is(err, unix.EPERM) {
			return fmt.Errorf("nftables: %w", err)
		}
	}
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	if err := netlink.LinkSetDown(lo); !errors.Is(err, unix.EPERM) {
		return fmt.Errorf("lo can be set down: %w", err)
	}
	if err := unix.Mount("none", "/tmp", "tmpfs", 0, ""); !errors.Is(err, unix.EPERM) {
		return fmt.Errorf("mount: %w", err)
	}
	if os.Geteuid() == 0 {
		if err := os.WriteFile("/proc/sys/kernel/core_pattern", nil, 0); !errors.Is(err, unix.EROFS) {
			return fmt.Errorf("core_pattern can be written: %w", err)
		}
	}
	return nil
}

// leave tries the namespaces of the parent and of the machine.
func leave() error {
	for _, pid := range []string{os.Getenv("PARENT"), "1"} {
		f, err := os.Open("/proc/" + pid + "/ns/net")
		if err == nil {
			err = unix.Setns(int(f.Fd()), unix.CLONE_NEWNET)
			_ = f.Close()
		}
		if !errors.Is(err, os.ErrPermission) {
			return fmt.Errorf("the namespace of %s: %w", pid, err)
		}
		if _, err := os.ReadDir("/proc/" + pid + "/root/"); !errors.Is(err, os.ErrPermission) {
			return fmt.Errorf("the root directory of %s: %w", pid, err)
		}
		if _, err := os.ReadFile("/proc/" + pid + "/mem"); !errors.Is(err, os.ErrPermission) {
			return fmt.Errorf("the memory of %s: %w", pid, err)
		}
	}
	return nil
}

// talk has two sides of this process talk to each other.
func talk(at string) error {
	ln, err := net.Listen("tcp", at)
	if err != nil {
		return err
	}
	defer func() { _ = ln.Close() }()
	pc, err := net.ListenPacket("udp", at)
	if err != nil {
		return err
	}
	defer func() { _ = pc.Close() }()
	go func() {
		if c, err := ln.Accept(); err == nil {
			_, _ = io.WriteString(c, "own")
			_ = c.Close()
		}
	}()
	go func() {
		b := make([]byte, 9)
		if n, from, err := pc.ReadFrom(b); err == nil {
			_, _ = pc.WriteTo(b[:n], from)
		}
	}()
	for _, to := range []net.Addr{ln.Addr(), pc.LocalAddr()} {
		c, err := net.DialTimeout(to.Network(), to.String(), 5*time.Second)
		if err != nil {
			return err
		}
		_ = c.SetDeadline(time.Now().Add(5 * time.Second))
		_, _ = io.WriteString(c, "own")
		b := make([]byte, 9)
		n, err := c.Read(b)
		_ = c.Close()
		if string(b[:n]) != "own" {
			return fmt.Errorf("%s %s: %q, %w", to.Network(), to, b[:n], err)
		}
	}
	return nil
}

func interfaces() error {
	links, err := netlink.LinkList()
	if err != nil {
		return err
	}
	for _, l := range links { // the kernel makes some that lead nowhere for each namespace; they are down
		if l.Attrs().Name != "lo" && l.Attrs().Flags&net.FlagUp != 0 {
			return fmt.Errorf("interface %s is up", l.Attrs().Name)
		}
	}
	return nil
}

// descriptors looks for what the test has left open: 3 is a socket, 4 a pipe, 5 a directory.
func descriptors() error {
	for _, fd := range []int{3, 5} {
		var st unix.Stat_t
		if err := unix.Fstat(fd, &st); err == nil && (st.Mode&unix.S_IFMT == unix.S_IFSOCK || st.Mode&unix.S_IFMT == unix.S_IFDIR) {
			return fmt.Errorf("descriptor %d was inherited", fd)
		}
	}
	_, err := unix.Write(4, []byte("through the pipe"))
	return err
}
