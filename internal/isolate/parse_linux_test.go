package isolate

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

func TestSocketLists(t *testing.T) {
	const list = `Num       RefCount Protocol Flags    Type St Inode Path
00000000140a1f6d: 00000003 00000000 00000000 0001 03  1585
00000000a32ac571: 00000002 00000000 00010000 0001 01  1586 /run/docker.sock
00000000a32ac572: 00000002 00000000 00010000 0001 01 12345678 @abstract
00000000a32ac573: 00000002 00000000 00010000 0001 01  9 /tmp/a b  c.sock
00000000a32ac574: 00000002 00000000 00010000 0001 01  9 relative
`
	if d := cmp.Diff([]string{"/run/docker.sock", "/tmp/a b  c.sock"}, listedSockets(strings.NewReader(list))); d != "" {
		t.Error(d)
	}
	const mounts = `22 1 0:21 / /proc rw - proc proc rw
23 1 0:5 /x /var/run/a\040b\134.sock rw shared:1 - tmpfs tmpfs rw
broken
`
	if d := cmp.Diff([]string{"/proc", `/var/run/a b\.sock`}, mountPoints(strings.NewReader(mounts))); d != "" {
		t.Error(d)
	}
}

func TestFrames(t *testing.T) {
	in := Command{Path: "/bin/x", Args: []string{"x", "\xff"}, Env: []string{"A=1"}}
	b, err := encodeFrame(in)
	if err != nil {
		t.Fatal(err)
	}
	var out Command
	if err := readFrame(bytes.NewReader(b), &out); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(in, out); d != "" {
		t.Error(d)
	}
	if err := readFrame(bytes.NewReader(nil), &out); !errors.Is(err, io.EOF) {
		t.Errorf("nothing: %v", err)
	}
	if err := readFrame(bytes.NewReader(b[:9]), &out); err == nil || errors.Is(err, io.EOF) {
		t.Errorf("cut: %v", err)
	}
	if err := readFrame(bytes.NewReader([]byte{255, 255, 255, 255}), &out); !errors.Is(err, errFrame) {
		t.Errorf("long: %v", err)
	}
}

// simulate runs a filter as the kernel does.
func simulate(t *testing.T, program []unix.SockFilter, arch, nr, arg0 uint32) uint32 {
	t.Helper()
	data := make([]byte, 64)
	binary.LittleEndian.PutUint32(data[dataNr:], nr)
	binary.LittleEndian.PutUint32(data[dataArch:], arch)
	binary.LittleEndian.PutUint32(data[dataArg0:], arg0)
	var a uint32
	for pc := 0; pc < len(program); pc++ {
		i := program[pc]
		skip := i.Jf
		switch i.Code {
		case unix.BPF_LD | unix.BPF_W | unix.BPF_ABS:
			a = binary.LittleEndian.Uint32(data[i.K:])
			continue
		case unix.BPF_RET | unix.BPF_K:
			return i.K
		case unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K:
			if a == i.K {
				skip = i.Jt
			}
		case unix.BPF_JMP | unix.BPF_JSET | unix.BPF_K:
			if a&i.K != 0 {
				skip = i.Jt
			}
		default:
			t.Fatalf("instruction %x", i.Code)
		}
		pc += int(skip)
	}
	t.Fatal("the program runs over its end")
	return 0
}

func TestSocketFilter(t *testing.T) {
	list := []abi{{arch: 1, socket: 41, foreign: 0x40000000}, {arch: 2, socket: 359, socketcall: 102}}
	program := socketFilter(list, socketFamilies())
	noFamily, none := uint32(errno|unix.EAFNOSUPPORT), uint32(errno|unix.ENOSYS)
	for _, tc := range []struct{ arch, nr, arg, want uint32 }{
		{1, 0, 0, allow}, {1, 41, unix.AF_INET, allow}, {1, 41, unix.AF_UNIX, allow}, {1, 41, unix.AF_ALG, allow},
		{1, 41, unix.AF_VSOCK, noFamily}, {1, 41, unix.AF_UNSPEC, noFamily}, {1, 41, unix.AF_BLUETOOTH, noFamily},
		{1, 41 | 0x40000000, unix.AF_INET, none}, {1, ioUringSetup, 0, none}, {1, 102, 1, allow}, {1, 359, unix.AF_VSOCK, allow},
		{2, 359, unix.AF_INET6, allow}, {2, 359, unix.AF_VSOCK, noFamily}, {2, ioUringSetup, 0, none},
		{2, 102, 1, none}, {2, 102, 3, allow}, {2, 41, unix.AF_VSOCK, allow}, {2, 0, 0, allow},
		{3, 0, 0, none},
	} {
		if got := simulate(t, program, tc.arch, tc.nr, tc.arg); got != tc.want {
			t.Errorf("%+v: %x", tc, got)
		}
	}
	if socketFilter(nil, socketFamilies()) != nil {
		t.Error("a filter for a machine that is not known")
	}
}

func FuzzFrame(f *testing.F) {
	if b, err := encodeFrame(report{Error: "x", Listeners: []string{kindDNS}}); err == nil {
		f.Add(b)
	}
	f.Add([]byte{0, 0, 0, 2, '{', '}'})
	f.Fuzz(func(t *testing.T, b []byte) {
		var r report
		if err := readFrame(bytes.NewReader(b), &r); err == nil {
			if _, err := encodeFrame(r); err != nil {
				t.Error(err)
			}
		}
	})
}

func FuzzSocketLists(f *testing.F) {
	f.Add("00000000a32ac573: 00000002 00000000 00010000 0001 01  9 /tmp/a b")
	f.Add(`23 1 0:5 /x /var/run/a\040b rw shared:1 - tmpfs tmpfs rw`)
	f.Fuzz(func(t *testing.T, s string) {
		for _, p := range listedSockets(strings.NewReader(s)) {
			if p[0] != '/' {
				t.Errorf("%q", p)
			}
		}
		mountPoints(strings.NewReader(s))
	})
}
