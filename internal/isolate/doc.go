// Package isolate puts a command into a network namespace in which a process outside of
// it, the parent, is the only way out.
//
// The namespace has one interface, lo, to which every address of both families is local:
// no packet can leave it. Its nftables rules lead TCP to any address to Namespace.Redirect
// and port 53 of any address to Namespace.DNS; the rest is refused at once. The command's
// processes talk to each other over loopback as ever. The listeners are made inside and
// given to the parent, which accepts on them while it dials from its own namespace. The
// parent needs no privilege: a user namespace that maps each id to itself has it.
//
// The program starts itself anew as the init of the namespace (Init), which becomes the
// command when all stands: its process id, signals, terminal and exit code are the
// command's.
//
// Before that, Init gives up all capabilities over the namespaces for good, and closes what
// else leads out of a network namespace: the Unix sockets that the file system shows, and
// kinds of sockets that are of no namespace (VSOCK).
package isolate

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"syscall"
)

// Argument is the hidden subcommand that runs Init.
const Argument = "__isolate-init"

// Inside the namespace. The ports lie outside of the range that the kernel gives to clients.
const (
	redirectPort = 65001
	dnsPort      = 65053
)

// Addresses of the sandbox inside: some programs do without a family that has nothing but
// loopback. Benchmarking range (RFC 2544) and a local one (RFC 4193).
func own4() netip.Addr { return netip.AddrFrom4([4]byte{198, 18, 0, 1}) }
func own6() netip.Addr { return netip.MustParseAddr("fd65:6772:6573:7364::1") }

// ErrUnsupported: this machine, or who may do what on it, does not allow namespaces.
var ErrUnsupported = errors.New("no network namespace can be made")

// Program is how the caller of Start has to start the init of the namespace. The standard
// streams are the command's, and the caller's to choose.
type Program struct {
	Path  string
	Args  []string
	Files []*os.File // descriptors from 3 on
	Attr  *syscall.SysProcAttr
}

// Options of Start.
type Options struct {
	// Start starts p with no environment, from a thread that lives for as long as p: p is
	// killed when it ends. Waiting for p is the caller's.
	Start func(p Program) error
	// KeepSockets are paths of Unix sockets that the command may use.
	KeepSockets []string
}

// Command is what the namespace is for.
type Command struct {
	Path string   // not searched for
	Args []string // with the name of the program
	Env  []string
}

// Namespace is a namespace that stands; its init waits for Exec. The listeners are the
// caller's to close; those of a family that the kernel has not are missing.
type Namespace struct {
	// Redirect accepts what was aimed at any address: SO_ORIGINAL_DST tells which.
	Redirect []net.Listener
	DNS      []net.PacketConn
	DNSTCP   []net.Listener

	conn *net.UnixConn
}

// ExecError is why a command could not be begun: an errno of execve(2).
type ExecError struct {
	Path string
	Err  syscall.Errno
}

func (e *ExecError) Error() string { return fmt.Sprintf("exec %s: %v", e.Path, e.Err) }

func (e *ExecError) Unwrap() error { return e.Err }
