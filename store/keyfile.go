package store

import (
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
)

// audience is who may read a key file.
type audience fs.FileMode

const (
	ownerOnly     audience = 0o077 // the forbidden bits
	othersMayRead audience = 0o022
)

const maxKeyFile = 16 << 10

// errOtherContent: a derived file is there and holds something else.
var errOtherContent = errors.New("holds another key")

// readGuarded reads a key file after looking at who else may touch it. A missing file
// is fs.ErrNotExist; everything else wraps ErrKeys.
func readGuarded(path string, a audience) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrKeys, err)
	}
	defer func() { _ = f.Close() }() // only read
	info, err := f.Stat()            // of what was opened, not of what the name means by now
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrKeys, err)
	}
	if err := checkGuarded(path, info, a); err != nil {
		return nil, err
	}
	if err := checkDir(filepath.Dir(path)); err != nil {
		return nil, err
	}
	b, err := io.ReadAll(io.LimitReader(f, maxKeyFile))
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrKeys, err)
	}
	return b, nil
}

func checkGuarded(path string, info fs.FileInfo, a audience) error {
	if !info.Mode().IsRegular() {
		return fmt.Errorf("%w: %s is not a regular file", ErrKeys, path)
	}
	if info.Mode().Perm()&fs.FileMode(a) != 0 {
		return fmt.Errorf("%w: %s is open to group or others (mode %04o): run: chmod 600 %s",
			ErrKeys, path, info.Mode().Perm(), path)
	}
	return checkOwner(path, info)
}

func checkOwner(path string, info fs.FileInfo) error {
	st, ok := info.Sys().(*syscall.Stat_t)
	if ok && st.Uid != 0 && int(st.Uid) != os.Geteuid() {
		return fmt.Errorf("%w: %s belongs to user %d: run: chown %d %s",
			ErrKeys, path, st.Uid, os.Geteuid(), path)
	}
	return nil
}

// checkDir refuses a directory where others may swap key files.
func checkDir(dir string) error {
	info, err := os.Stat(dir)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrKeys, err)
	}
	if info.Mode().Perm()&0o022 != 0 && info.Mode()&fs.ModeSticky == 0 {
		return fmt.Errorf("%w: directory %s can be written by group or others (mode %04o): run: chmod 700 %s",
			ErrKeys, dir, info.Mode().Perm(), dir)
	}
	return checkOwner(dir, info)
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

// ensureFile makes the file or checks that it holds content.
func ensureFile(path string, content []byte) error {
	err := sameFile(path, content)
	if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	err = createFile(path, content)
	if errors.Is(err, fs.ErrExist) {
		return sameFile(path, content)
	}
	return err
}

func sameFile(path string, content []byte) error {
	a := ownerOnly
	if bytes.HasPrefix(content, []byte(publicTag)) {
		a = othersMayRead
	}
	got, err := readGuarded(path, a)
	if err != nil {
		return err
	}
	if !bytes.Equal(bytes.TrimSpace(got), bytes.TrimSpace(content)) {
		return errOtherContent
	}
	return nil
}

// createFile makes a file with its whole content at once, durably, or not at all;
// fs.ErrExist if it is there already.
func createFile(path string, content []byte) error {
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	if err := checkDir(dir); err != nil {
		return err
	}
	tmp := path + ".new-" + rand.Text()
	if err := writeNew(tmp, content); err != nil {
		return errors.Join(err, removeIfThere(tmp))
	}
	// A link, unlike a rename, does not replace what another process just made.
	if err := errors.Join(os.Link(tmp, path), os.Remove(tmp)); err != nil {
		return err
	}
	return syncDir(dir)
}

func writeNew(path string, content []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(content)
	return errors.Join(err, f.Sync(), f.Close())
}

func removeIfThere(path string) error {
	if err := os.Remove(path); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
