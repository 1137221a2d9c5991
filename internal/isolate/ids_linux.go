package isolate

import (
	"bufio"
	"fmt"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// attributes are those of the init: namespaces of its own in which each id is itself. It
// may do to them what it needs for building; nothing outside of them is theirs.
func attributes() (*syscall.SysProcAttr, error) {
	a := &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWUSER | unix.CLONE_NEWNET | unix.CLONE_NEWNS,
		Pdeathsig:  unix.SIGKILL,
		AmbientCaps: []uintptr{
			unix.CAP_NET_ADMIN, // addresses, routes, rules
			unix.CAP_SYS_ADMIN, // mounts
			unix.CAP_SETPCAP,   // giving up all for good
		},
	}
	mapAll, err := mayMapAll()
	if err != nil {
		return nil, err
	}
	if !mapAll {
		a.UidMappings = []syscall.SysProcIDMap{{ContainerID: os.Geteuid(), HostID: os.Geteuid(), Size: 1}}
		a.GidMappings = []syscall.SysProcIDMap{{ContainerID: os.Getegid(), HostID: os.Getegid(), Size: 1}}
		return a, nil
	}
	a.GidMappingsEnableSetgroups = true
	if a.UidMappings, err = allIDs("/proc/self/uid_map"); err != nil {
		return nil, err
	}
	a.GidMappings, err = allIDs("/proc/self/gid_map")
	return a, err
}

// mayMapAll: who may become anybody may have everybody in a namespace (user_namespaces(7)).
func mayMapAll() (bool, error) {
	caps, err := effective()
	if err != nil {
		return false, err
	}
	for _, c := range []int{unix.CAP_SETUID, unix.CAP_SETGID, unix.CAP_SETFCAP} {
		if caps&(1<<c) == 0 {
			return false, nil
		}
	}
	return true, nil
}

func effective() (uint64, error) {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil {
		return 0, fmt.Errorf("capget: %w", err)
	}
	return uint64(data[0].Effective) | uint64(data[1].Effective)<<32, nil
}

// maxInt31 keeps sizes in what an int has on any machine.
const maxInt31 = 1<<31 - 1

// allIDs maps each id of our own namespace to itself.
func allIDs(file string) ([]syscall.SysProcIDMap, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }() // only read
	var out []syscall.SysProcIDMap
	for lines := bufio.NewScanner(f); lines.Scan(); {
		var inside, outside, size int64
		if _, err := fmt.Sscan(lines.Text(), &inside, &outside, &size); err != nil {
			return nil, fmt.Errorf("%s: %w", file, err)
		}
		size = min(size, maxInt31-inside)
		if size > 0 {
			out = append(out, syscall.SysProcIDMap{ContainerID: int(inside), HostID: int(inside), Size: int(size)})
		}
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("%s is empty", file)
	}
	return out, nil
}
