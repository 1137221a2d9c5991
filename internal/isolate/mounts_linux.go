package isolate

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// makeMounts puts /dev/null over each of the sockets: connecting gives ECONNREFUSED. It
// replaces resolv.conf, whose search list is of the network outside: each of its names would
// be asked for, and refused, before the one that was meant. For root, it also makes the kernel's settings read-only: some name programs that the kernel
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
	if err := nameServer(); err != nil {
		return fmt.Errorf("replace %s: %w", resolvConf, err)
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

const resolvConf = "/etc/resolv.conf"

// nameServer puts a file of its own over resolv.conf. The file is on a file system that no
// name leads to once it is mounted.
func nameServer() error {
	if _, err := os.Stat(resolvConf); err != nil {
		return nil //nolint:nilerr // without it, resolvers ask 127.0.0.1, and have no search list
	}
	const scratch = "/tmp" // for this moment
	if err := unix.Mount("tmpfs", scratch, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "size=64k,mode=755"); err != nil {
		return err
	}
	file := scratch + "/resolv.conf"
	err := os.WriteFile(file, []byte("# egressd answers, whatever the address\nnameserver 127.0.0.1\n"), 0o644) //nolint:gosec // everybody reads it
	if err == nil {
		err = unix.Mount(file, resolvConf, "", unix.MS_BIND, "")
	}
	if err == nil {
		err = unix.Mount("", resolvConf, "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY|unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "")
	}
	return errors.Join(err, unix.Unmount(scratch, unix.MNT_DETACH))
}
