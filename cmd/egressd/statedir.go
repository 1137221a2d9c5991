package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// stateDir is a daemon's claim on its state directory, so that no two daemons serve
// from one store, audit log and socket. The claim ends with the process at the latest.
type stateDir struct {
	path      string
	lock      *os.File
	tightened bool // its mode was wider than 0700
}

// claimStateDir makes dir (0700) and locks it.
func claimStateDir(dir string) (*stateDir, error) {
	err := os.MkdirAll(dir, 0o700)
	if err != nil {
		return nil, fail(exitStore, "stateDir cannot be made: %w: make it for this user, or set --state-dir", fileError(dir, err))
	}
	s := &stateDir{path: dir}
	if s.tightened, err = tighten(dir); err != nil {
		return nil, err
	}
	name := filepath.Join(dir, "lock")
	s.lock, err = os.OpenFile(name, os.O_RDWR|os.O_CREATE|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, fail(exitStore, "stateDir cannot be used: %w", fileError(name, err))
	}
	if err := unix.Flock(int(s.lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		holder, _ := readSmall(name)
		s.close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fail(exitConflict, "another egressd (process %s) uses stateDir %s: stop it, or set another --state-dir", strings.TrimSpace(string(holder)), dir)
		}
		return nil, fail(exitStore, "stateDir %s cannot be locked: %w", dir, err)
	}
	if err := s.lock.Truncate(0); err == nil {
		_, _ = fmt.Fprintf(s.lock, "%d\n", os.Getpid()) // for the message above only
	}
	return s, nil
}

// tighten refuses a directory where others may put files, and takes away from one of
// our own that others may look into it.
func tighten(dir string) (bool, error) {
	info, err := os.Stat(dir)
	switch {
	case err != nil:
		return false, fail(exitStore, "stateDir cannot be used: %w", fileError(dir, err))
	case !info.IsDir():
		return false, fail(exitStore, "stateDir %s is not a directory", dir)
	}
	mode := info.Mode().Perm()
	owner := info.Sys().(*syscall.Stat_t).Uid
	switch {
	case mode&0o022 != 0 || info.Mode()&fs.ModeSticky != 0:
		return false, fail(exitStore, "stateDir %s can be written by others (mode %04o): use a directory of its own, or chmod 700 it", dir, mode)
	case int(owner) != os.Geteuid() && os.Geteuid() != 0:
		return false, fail(exitStore, "stateDir %s belongs to user %d: chown it to %d, or set --state-dir", dir, owner, os.Geteuid())
	case mode&0o055 == 0:
		return false, nil
	}
	if err := os.Chmod(dir, 0o700); err != nil { //nolint:gosec // a directory
		return false, fail(exitStore, "stateDir %s is open to others (mode %04o) and that cannot be changed: %w", dir, mode, err)
	}
	return true, nil
}

func (s *stateDir) close() {
	_ = s.lock.Close() // releases the lock
}
