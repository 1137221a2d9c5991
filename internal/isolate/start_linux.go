package isolate

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// patience bounds what the init may take for each of its steps.
const patience = 15 * time.Second

// initFD is where the init finds its connection to the parent.
const initFD = 3

// Start makes a namespace. Its init ends when the Namespace is closed before Exec. Call it
// before the process makes itself undumpable: the kernel would not let it map ids then.
// The error is one line that says what to do where something can be done.
func Start(ctx context.Context, o Options) (*Namespace, error) {
	if err := Supported(); err != nil {
		return nil, err
	}
	attr, err := attributes()
	if err != nil {
		return nil, err
	}
	ours, theirs, err := socketpair()
	if err != nil {
		return nil, err
	}
	p := Program{Path: "/proc/self/exe", Args: []string{filepath.Base(os.Args[0]), Argument}, Files: []*os.File{theirs}, Attr: attr}
	err = o.Start(p)
	_ = theirs.Close() // the init has its own, and its end is seen only so
	if err != nil {
		_ = ours.Close()
		return nil, explain(err)
	}
	n := &Namespace{conn: ours}
	if err := n.open(ctx, setup{Hide: socketsToHide(ctx, o.KeepSockets), Parent: os.Getpid()}); err != nil {
		n.Close()
		return nil, err
	}
	return n, nil
}

func socketpair() (ours *net.UnixConn, theirs *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("socketpair: %w", err)
	}
	mine := os.NewFile(uintptr(fds[0]), "isolate parent")
	theirs = os.NewFile(uintptr(fds[1]), "isolate init")
	c, err := net.FileConn(mine)
	_ = mine.Close() // FileConn has its own
	uc, ok := c.(*net.UnixConn)
	if err != nil || !ok {
		_ = theirs.Close()
		return nil, nil, fmt.Errorf("socketpair: %w", err)
	}
	return uc, theirs, nil
}

// open has the init build the namespace, and takes its listeners.
func (n *Namespace) open(ctx context.Context, s setup) error {
	done, err := n.bounded(ctx)
	if err != nil {
		return err
	}
	defer done()
	if err := n.send(s); err != nil {
		return fmt.Errorf("the init of the namespace ended: %w", err)
	}
	rights := &rightsReader{conn: n.conn}
	defer rights.close()
	var r report
	if err := readFrame(rights, &r); err != nil {
		if errors.Is(err, io.EOF) {
			err = errors.New("it ended")
		}
		return fmt.Errorf("the init of the namespace: %w", err)
	}
	if r.Error != "" {
		return explainSetup(r)
	}
	return n.take(r.Listeners, rights.files)
}

// bounded gives what follows its deadline, and ends it with ctx.
func (n *Namespace) bounded(ctx context.Context) (done func(), err error) {
	if err := n.conn.SetDeadline(time.Now().Add(patience)); err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { _ = n.conn.SetDeadline(time.Unix(1, 0)) })
	return func() { stop() }, nil
}

func (n *Namespace) send(v any) error {
	b, err := encodeFrame(v)
	if err != nil {
		return err
	}
	_, err = n.conn.Write(b)
	return err
}

// take makes listeners of descriptors.
func (n *Namespace) take(kinds []string, files []*os.File) error {
	if len(kinds) != len(files) {
		return fmt.Errorf("%d descriptors came for %d listeners", len(files), len(kinds))
	}
	for i, kind := range kinds {
		if kind == kindDNS {
			pc, err := net.FilePacketConn(files[i])
			if err != nil {
				return fmt.Errorf("%s: %w", kind, err)
			}
			n.DNS = append(n.DNS, pc)
			continue
		}
		ln, err := net.FileListener(files[i])
		if err != nil {
			return fmt.Errorf("%s: %w", kind, err)
		}
		if kind == kindDNSTCP {
			n.DNSTCP = append(n.DNSTCP, ln)
		} else {
			n.Redirect = append(n.Redirect, ln)
		}
	}
	if len(n.Redirect) == 0 || len(n.DNS) == 0 || len(n.DNSTCP) == 0 {
		return errors.New("a listener is missing")
	}
	return nil
}

// Exec makes the init become c. It returns when c has begun, or an *ExecError. To be called
// once.
func (n *Namespace) Exec(ctx context.Context, c Command) error {
	defer func() { _ = n.conn.Close() }()
	done, err := n.bounded(ctx)
	if err != nil {
		return err
	}
	defer done()
	if err := n.send(c); err != nil {
		return fmt.Errorf("the init of the namespace ended: %w", err)
	}
	var o outcome
	switch err := readFrame(n.conn, &o); {
	case errors.Is(err, io.EOF): // closed by exec
		return nil
	case err != nil:
		return fmt.Errorf("the init of the namespace: %w", err)
	case o.Errno != 0:
		return &ExecError{Path: c.Path, Err: syscall.Errno(o.Errno)}
	}
	return errors.New(o.Error)
}

// Close closes the listeners, and ends the init if it has not become the command. It may
// be called again.
func (n *Namespace) Close() {
	_ = n.conn.Close()
	for _, l := range n.Redirect {
		_ = l.Close()
	}
	for _, l := range n.DNSTCP {
		_ = l.Close()
	}
	for _, l := range n.DNS {
		_ = l.Close()
	}
}

// rightsReader reads a stream and keeps the descriptors that come with it.
type rightsReader struct {
	conn  *net.UnixConn
	files []*os.File
}

// maxRights is the most descriptors of one message: three for each family.
const maxRights = 6

func (r *rightsReader) Read(p []byte) (int, error) {
	oob := make([]byte, unix.CmsgSpace(maxRights*4))
	n, oobn, _, _, err := r.conn.ReadMsgUnix(p, oob)
	if oobn > 0 {
		if err := r.keep(oob[:oobn]); err != nil {
			return n, err
		}
	}
	if n == 0 && err == nil {
		err = io.EOF
	}
	return n, err
}

func (r *rightsReader) keep(oob []byte) error {
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return err
	}
	for _, m := range messages {
		fds, err := unix.ParseUnixRights(&m)
		if err != nil {
			return err
		}
		for _, fd := range fds {
			r.files = append(r.files, os.NewFile(uintptr(fd), "isolate listener"))
		}
	}
	return nil
}

func (r *rightsReader) close() {
	for _, f := range r.files {
		_ = f.Close() // the listeners have their own
	}
}
