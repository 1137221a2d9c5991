package isolate

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// rootKeeps are the capabilities that leave root what it may do to files and ids. None of
// them has a say over the namespace.
const rootKeeps = 1<<unix.CAP_CHOWN | 1<<unix.CAP_DAC_OVERRIDE | 1<<unix.CAP_FOWNER | 1<<unix.CAP_FSETID |
	1<<unix.CAP_KILL | 1<<unix.CAP_SETGID | 1<<unix.CAP_SETUID

// giveUp takes from this thread, and from all that it will ever start, the capabilities over
// the namespaces, the way back to them (set-user-ID programs, file capabilities), and
// sockets of families that are of no network namespace.
func giveUp() error {
	var keep uint64
	if os.Geteuid() == 0 {
		have, err := effective()
		if err != nil {
			return err
		}
		keep = rootKeeps & have
	}
	for c := uintptr(0); c < 64; c++ {
		if keep&(1<<c) != 0 {
			continue
		}
		if err := unix.Prctl(unix.PR_CAPBSET_DROP, c, 0, 0, 0); errors.Is(err, unix.EINVAL) {
			break // the kernel has no more
		} else if err != nil {
			return fmt.Errorf("PR_CAPBSET_DROP: %w", err)
		}
	}
	if err := unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0); err != nil {
		return fmt.Errorf("PR_CAP_AMBIENT: %w", err)
	}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("PR_SET_NO_NEW_PRIVS: %w", err)
	}
	if err := filterSockets(); err != nil {
		return err
	}
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	data := [2]unix.CapUserData{
		{Effective: uint32(keep), Permitted: uint32(keep)},
		{Effective: uint32(keep >> 32), Permitted: uint32(keep >> 32)},
	}
	if err := unix.Capset(&header, &data[0]); err != nil {
		return fmt.Errorf("capset: %w", err)
	}
	return nil
}

// keepDescriptors closes on exec what egressd inherited and what leads out: sockets, which
// belong to the namespace that they were made in, and directories, which show the mounts as
// they were. The standard streams are the command's whatever they are, and pipes and files
// stay: shells hand them over.
func keepDescriptors() error {
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return err
	}
	for _, e := range entries {
		fd, err := strconv.Atoi(e.Name())
		if err != nil || fd <= 2 {
			continue
		}
		var st unix.Stat_t
		if err := unix.Fstat(fd, &st); err != nil {
			continue // the directory that was just read
		}
		target, _ := os.Readlink("/proc/self/fd/" + e.Name())
		switch kind := st.Mode & unix.S_IFMT; {
		case kind == unix.S_IFSOCK, kind == unix.S_IFDIR, strings.HasPrefix(target, "net:["), strings.HasPrefix(target, "mnt:["):
			unix.CloseOnExec(fd)
		}
	}
	return nil
}
