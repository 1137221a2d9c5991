package hardening

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// HardenProcess keeps other processes of the same user from reading this one's memory
// (ptrace, /proc/pid/mem) and the kernel from writing it to a core file. Programs that this
// one starts are not affected. Call it first thing, before any secret is read.
func HardenProcess() error {
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return fmt.Errorf("making the process undumpable: %w", err)
	}
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_CORE, &limit); err != nil {
		return fmt.Errorf("reading the core file limit: %w", err)
	}
	// Only the soft limit: programs that are started may still raise theirs.
	limit.Cur = 0
	if err := unix.Setrlimit(unix.RLIMIT_CORE, &limit); err != nil {
		return fmt.Errorf("setting the core file limit: %w", err)
	}
	return nil
}

// RaiseFileLimit sets the soft limit of open files to the hard one and returns it. The Go
// runtime has done so at start already, unless a parent or a build says otherwise; then,
// programs that are started get the raised limit too.
func RaiseFileLimit() (uint64, error) {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return 0, fmt.Errorf("reading the limit of open files: %w", err)
	}
	if limit.Cur >= limit.Max {
		return limit.Cur, nil
	}
	limit.Cur = limit.Max
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return 0, fmt.Errorf("raising the limit of open files: %w", err)
	}
	return limit.Cur, nil
}
