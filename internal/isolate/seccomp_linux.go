package isolate

import (
	"fmt"
	"reflect"
	"runtime"

	"golang.org/x/sys/unix"
)

// Offsets in struct seccomp_data, and what a filter returns (seccomp(2)).
const (
	dataNr   = 0
	dataArch = 4
	dataArg0 = 16 // the low half: the machines below are little-endian
	allow    = 0x7fff0000
	errno    = 0x00050000
)

// abi is one way to call the kernel on a machine.
type abi struct {
	arch       uint32 // AUDIT_ARCH_*
	socket     uint32 // number of socket(2)
	socketcall uint32 // 0: it has none
	foreign    uint32 // bit of numbers of yet another way, refused
}

// ioUringSetup has one number everywhere.
const ioUringSetup = 425

// abis are those of the machine that this was built for. Where none are known sockets are
// not filtered.
func abis() []abi {
	switch runtime.GOARCH {
	case "amd64":
		return []abi{
			{arch: 0xc000003e, socket: unix.SYS_SOCKET, foreign: 0x40000000}, // x32
			{arch: 0x40000003, socket: 359, socketcall: 102},
		}
	case "arm64":
		return []abi{
			{arch: 0xc00000b7, socket: unix.SYS_SOCKET},
			{arch: 0x40000028, socket: 281, socketcall: 102},
		}
	}
	return nil
}

// families that a command needs: each is of the network namespace, or of none because it
// talks to the kernel alone.
func socketFamilies() []uint32 {
	return []uint32{unix.AF_UNIX, unix.AF_INET, unix.AF_INET6, unix.AF_NETLINK, unix.AF_PACKET, unix.AF_ALG}
}

// filterSockets refuses other families, VSOCK first of all: it reaches the host of a virtual
// machine from any network namespace. io_uring goes too, since it makes sockets past any
// filter.
func filterSockets() error {
	program := socketFilter(abis(), socketFamilies())
	if program == nil {
		return nil
	}
	prog := &unix.SockFprog{Len: uint16(len(program)), Filter: &program[0]}
	var pin runtime.Pinner
	defer pin.Unpin()
	pin.Pin(prog)
	pin.Pin(&program[0])
	address := reflect.ValueOf(prog).Pointer() // pinned: it stays what it is
	if err := unix.Prctl(unix.PR_SET_SECCOMP, unix.SECCOMP_MODE_FILTER, address, 0, 0); err != nil {
		return fmt.Errorf("PR_SET_SECCOMP: %w", err)
	}
	return nil
}

// socketFilter is the program, nil without abis. Each abi is one block; a call by an abi
// that is not known fails with ENOSYS.
func socketFilter(abis []abi, families []uint32) []unix.SockFilter {
	if len(abis) == 0 {
		return nil
	}
	load := func(k uint32) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: k}
	}
	jump := func(op uint16, k uint32, yes, no int) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_JMP | op | unix.BPF_K, K: k, Jt: uint8(yes), Jf: uint8(no)}
	}
	ret := func(k uint32) unix.SockFilter { return unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: k} }
	none, noFamily := ret(errno|uint32(unix.ENOSYS)), ret(errno|uint32(unix.EAFNOSUPPORT))

	var out []unix.SockFilter
	for _, a := range abis {
		block := []unix.SockFilter{load(dataNr)}
		refuse := func(op uint16, k uint32) { block = append(block, jump(op, k, 0, 1), none) }
		if a.foreign != 0 {
			refuse(unix.BPF_JSET, a.foreign)
		}
		refuse(unix.BPF_JEQ, ioUringSetup)
		if a.socketcall != 0 { // its arguments are out of sight; 1 makes a socket
			block = append(block, jump(unix.BPF_JEQ, a.socketcall, 0, 3), load(dataArg0), jump(unix.BPF_JEQ, 1, 0, 1), none, load(dataNr))
		}
		block = append(block, jump(unix.BPF_JEQ, a.socket, 1, 0), ret(allow), load(dataArg0))
		for i, f := range families {
			block = append(block, jump(unix.BPF_JEQ, f, len(families)-i, 0))
		}
		block = append(block, noFamily, ret(allow))
		out = append(out, load(dataArch), jump(unix.BPF_JEQ, a.arch, 0, len(block)))
		out = append(out, block...)
	}
	return append(out, none)
}
