package isolate

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// makeMounts puts /dev/null over each of the sockets: connecting gives ECONNREFUSED. For
// root, it also makes the kernel's settings read-only: some name programs that the kernel
// runs outside.
func makeMounts(hide []string) error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SLAVE, ""); err != nil {
		return fmt.Errorf("mount /: %w", err)
	}
	for _, path := range hide {
		if err := cover(path); err != nil {
			return fmt.Errorf("hide the socket %s: %w", path, err)
		}
	}
	if os.Geteuid() != 0 {
		return nil
	}
	for _, path := range []string{"/proc/sys", "/sys"} {
		if err := readOnly(path); err != nil {
			return fmt.Errorf("make %s read-only: %w", path, err)
		}
	}
	if _, err := os.Stat("/proc/sysrq-trigger"); err != nil {
		return nil //nolint:nilerr // it is not there
	}
	if err := unix.Mount("/dev/null", "/proc/sysrq-trigger", "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("hide /proc/sysrq-trigger: %w", err)
	}
	return nil
}

// cover hides one socket. One that is gone, or that we cannot get at, nobody can connect to.
func cover(path string) error {
	var st unix.Stat_t
	switch err := unix.Stat(path, &st); {
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENOTDIR), errors.Is(err, unix.EACCES):
		return nil
	case err != nil:
		return err
	case st.Mode&unix.S_IFMT != unix.S_IFSOCK: // by another name already
		return nil
	}
	err := unix.Mount("/dev/null", path, "", unix.MS_BIND, "")
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	return err
}

// readOnly makes a mount of path and of all below it.
func readOnly(path string) error {
	if _, err := os.Stat(path); err != nil {
		return nil //nolint:nilerr // what is not mounted cannot be written
	}
	if err := unix.Mount(path, path, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return err
	}
	return unix.MountSetattr(unix.AT_FDCWD, path, unix.AT_RECURSIVE, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY})
}
