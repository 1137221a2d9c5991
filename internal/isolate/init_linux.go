package isolate

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"
)

// Init is the program that Start has started: it furnishes the namespaces that it was born
// in and becomes the command. It returns nil when that fails, which it has told the parent, or
// when the parent wants no command any more.
func Init() error {
	runtime.LockOSThread() // what is given up is a thread's, and exec makes this thread the process
	if t, err := unix.GetsockoptInt(initFD, unix.SOL_SOCKET, unix.SO_DOMAIN); err != nil || t != unix.AF_UNIX {
		return errors.New(Argument + " is for egressd itself: use `egressd run --isolate`")
	}
	unix.CloseOnExec(initFD)
	parent := os.NewFile(initFD, "parent")
	var s setup
	if err := readFrame(parent, &s); err != nil {
		return ended(err)
	}
	kinds, files, failed := furnish(s)
	if err := answer(kinds, files, failed); err != nil || failed != nil {
		return err
	}
	var c Command
	if err := readFrame(parent, &c); err != nil {
		return ended(err)
	}
	err := become(s.Parent, c)
	o := outcome{Error: err.Error()}
	var x *ExecError
	if errors.As(err, &x) {
		o.Errno = int(x.Err)
	}
	b, encErr := encodeFrame(o)
	if encErr != nil {
		return encErr
	}
	_, _ = parent.Write(b) // a parent that is gone has ended us
	return nil
}

// ended makes nothing of a parent that has closed the connection.
func ended(err error) error {
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}

// furnish makes all that the namespace needs.
func furnish(s setup) (kinds []string, files []*os.File, err error) {
	families, err := makeNetwork()
	if err != nil {
		return nil, nil, err
	}
	if err := makeRules(); err != nil {
		return nil, nil, fmt.Errorf(rulesStep+"%w", err)
	}
	if err := makeMounts(s.Hide); err != nil {
		return nil, nil, err
	}
	return listenAll(families)
}

// answer tells the parent, and gives it the listeners, which this process keeps not.
func answer(kinds []string, files []*os.File, failed error) error {
	r := report{Listeners: kinds}
	if failed != nil {
		r.Error, r.Denied = failed.Error(), errors.Is(failed, fs.ErrPermission)
	}
	b, err := encodeFrame(r)
	if err != nil {
		return err
	}
	var fds []int
	for _, f := range files {
		fds = append(fds, int(f.Fd()))
	}
	var rights []byte
	if len(fds) > 0 {
		rights = unix.UnixRights(fds...)
	}
	if err := unix.Sendmsg(initFD, b, rights, nil, 0); err != nil {
		return fmt.Errorf("sendmsg: %w", err)
	}
	for _, f := range files {
		_ = f.Close() // the parent has them
	}
	return nil
}

// become gives up every power and turns this process into c.
func become(parent int, c Command) error {
	if err := keepDescriptors(); err != nil {
		return err
	}
	if err := giveUp(); err != nil {
		return err
	}
	if err := unix.Prctl(unix.PR_SET_PDEATHSIG, uintptr(unix.SIGKILL), 0, 0, 0); err != nil {
		return fmt.Errorf("PR_SET_PDEATHSIG: %w", err)
	}
	if os.Getppid() != parent {
		return errors.New("the parent has ended")
	}
	err := syscall.Exec(c.Path, c.Args, c.Env) //nolint:gosec // it is what the namespace was made for
	var errno syscall.Errno
	if errors.As(err, &errno) {
		return &ExecError{Path: c.Path, Err: errno}
	}
	return err
}
