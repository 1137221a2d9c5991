package isolate

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// Supported looks for what is known to forbid Start: an error is ErrUnsupported and says
// what to do. Start may fail yet.
func Supported() error {
	if _, err := os.Stat("/proc/self/ns/user"); err != nil {
		return fmt.Errorf("%w: the kernel has no user namespaces (CONFIG_USER_NS), or /proc is not mounted", ErrUnsupported)
	}
	if sysctl("user/max_user_namespaces") == "0" || sysctl("user/max_net_namespaces") == "0" {
		return fmt.Errorf("%w: user.max_user_namespaces or user.max_net_namespaces is 0: raise it with sysctl -w user.max_user_namespaces=1000", ErrUnsupported)
	}
	caps, err := effective()
	if err != nil || caps&(1<<unix.CAP_SYS_ADMIN) != 0 {
		return err
	}
	if sysctl("kernel/unprivileged_userns_clone") == "0" {
		return fmt.Errorf("%w: only root may: sysctl -w kernel.unprivileged_userns_clone=1", ErrUnsupported)
	}
	return nil
}

func sysctl(name string) string {
	b, err := os.ReadFile("/proc/sys/" + name)
	if err != nil {
		return "" // this kernel does not have it
	}
	return strings.TrimSpace(string(b))
}

// explain says what to do about a process that could not be cloned into namespaces.
func explain(err error) error {
	if !errors.Is(err, fs.ErrPermission) && !errors.Is(err, syscall.ENOSPC) && !errors.Is(err, syscall.EINVAL) && !errors.Is(err, syscall.ENOSYS) {
		return err
	}
	return fmt.Errorf("%w: %w: %s", ErrUnsupported, err, hint())
}

// explainSetup says what to do about a namespace that could not be furnished.
func explainSetup(r report) error {
	if r.Denied {
		return fmt.Errorf("%w: %s: %s", ErrUnsupported, r.Error, hint())
	}
	if strings.HasPrefix(r.Error, rulesStep) {
		return fmt.Errorf("%w: %s: the kernel needs nftables with nat, redirect and reject for both families: modprobe nft_redir nft_reject_inet nft_ct nft_chain_nat", ErrUnsupported, r.Error)
	}
	return errors.New(r.Error)
}

func hint() string {
	if sysctl("kernel/apparmor_restrict_unprivileged_userns") == "1" && os.Geteuid() != 0 {
		return "AppArmor restricts user namespaces: give egressd a profile with the rule \"userns,\", or sysctl -w kernel.apparmor_restrict_unprivileged_userns=0"
	}
	if caps, err := effective(); err == nil && os.Geteuid() == 0 && caps&(1<<unix.CAP_SETFCAP) == 0 {
		return "root without CAP_SETFCAP may not take itself along: give it the capability, or run egressd as another user"
	}
	return "a container's seccomp profile, a chroot or a security module may forbid namespaces (in Docker: --security-opt seccomp=unconfined --security-opt apparmor=unconfined)"
}
