package mqtt

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/egressd/egressd/inject"
	"github.com/egressd/egressd/internal/secret"
	"github.com/egressd/egressd/internal/testbed"
	"github.com/egressd/egressd/proxy/wire"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// gate stands where the proxy stands: it accepts on loopback, makes Sessions, and keeps
// what Serve returned and every byte that went to the sandbox.
type gate struct {
	addr string
	mu   sync.Mutex
	came int
	errs []error
	seen bytes.Buffer
}

// gateOptions shape the Sessions.
type gateOptions struct {
	upstream  string      // address
	serverTLS *tls.Config // towards the sandbox; nil: none, and upstream neither
	clientTLS *tls.Config
	noClear   bool
	login     func() (*inject.Login, error)
	require   func(username, password string) bool
}

// port is the gate's, as text.
func (g *gate) port() string {
	_, p, _ := net.SplitHostPort(g.addr)
	return p
}

// ended waits for all connections, one at least, and returns what Serve said of each.
func (g *gate) ended() []error {
	for range 2000 {
		g.mu.Lock()
		came, errs := g.came, g.errs
		g.mu.Unlock()
		if came > 0 && came == len(errs) {
			return errs
		}
		time.Sleep(5 * time.Millisecond)
	}
	return []error{errors.New("connections that do not end")}
}

// code is that of the one connection's Refusal.
func (g *gate) code(t testing.TB) string {
	t.Helper()
	errs := g.ended()
	if len(errs) != 1 {
		t.Fatalf("%d connections: %v", len(errs), errs)
	}
	var r *wire.Refusal
	if errors.As(errs[0], &r) {
		return r.Code
	}
	if errs[0] != nil {
		return errs[0].Error()
	}
	return ""
}

// toSandbox is what was sent to all sandboxes.
func (g *gate) toSandbox() []byte {
	g.mu.Lock()
	defer g.mu.Unlock()
	return bytes.Clone(g.seen.Bytes())
}

func newGate(t testing.TB, o gateOptions) *gate {
	t.Helper()
	ln, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	g := &gate{addr: ln.Addr().String()}
	ctx, cancel := context.WithCancel(context.Background())
	var acceptor, conns sync.WaitGroup
	acceptor.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			g.mu.Lock()
			g.came++
			g.mu.Unlock()
			conns.Go(func() { g.serve(ctx, c, o) })
		}
	})
	t.Cleanup(func() {
		_ = ln.Close()
		acceptor.Wait()
		cancel()
		conns.Wait()
	})
	return g
}

func (g *gate) serve(ctx context.Context, c net.Conn, o gateOptions) {
	defer c.Close()
	stop := context.AfterFunc(ctx, func() { _ = c.Close() })
	defer stop()
	if o.serverTLS != nil {
		c = tls.Server(c, o.serverTLS)
	}
	client := &tapped{Conn: c, g: g}
	var d net.Dialer
	err := Serve(ctx, &wire.Session{
		Client: client, InTLS: o.serverTLS != nil, Host: "good.test", Port: 1, Cleartext: !o.noClear,
		Dial: func(ctx context.Context) (net.Conn, error) {
			up, err := d.DialContext(ctx, "tcp", o.upstream)
			if err != nil || o.clientTLS == nil {
				return up, err
			}
			tc := tls.Client(up, o.clientTLS)
			return tc, tc.HandshakeContext(ctx)
		},
		Credential: func(context.Context) (*inject.Projection, error) {
			l, err := o.login()
			return &inject.Projection{Login: l}, err
		},
		Require:          o.require,
		Opened:           func(net.Conn) {},
		Pipe:             pipe,
		HandshakeTimeout: 5 * time.Second, IdleTimeout: 20 * time.Second,
	})
	g.mu.Lock()
	g.errs = append(g.errs, err)
	g.mu.Unlock()
}

// tapped keeps what is written to the sandbox.
type tapped struct {
	net.Conn
	g *gate
}

func (c *tapped) Write(p []byte) (int, error) {
	c.g.mu.Lock()
	c.g.seen.Write(p)
	c.g.mu.Unlock()
	return c.Conn.Write(p)
}

func (c *tapped) CloseWrite() error {
	return c.Conn.(interface{ CloseWrite() error }).CloseWrite()
}

// pipe does what the proxy's does: short read deadlines that interrupt reads anywhere,
// half-close, and both ends closed when one fails.
func pipe(a, b net.Conn) error {
	var wg sync.WaitGroup
	var ab, ba error
	wg.Go(func() { ab = half(b, a) })
	wg.Go(func() { ba = half(a, b) })
	wg.Wait()
	return errors.Join(ab, ba)
}

func half(dst, src net.Conn) error {
	limit := time.Now().Add(20 * time.Second)
	for {
		_ = src.SetReadDeadline(time.Now().Add(3 * time.Millisecond))
		_, err := io.Copy(dst, src)
		if errors.Is(err, os.ErrDeadlineExceeded) && time.Now().Before(limit) {
			continue
		}
		if err == nil && dst.(interface{ CloseWrite() error }).CloseWrite() == nil {
			return nil
		}
		_ = dst.Close()
		_ = src.Close()
		if errors.Is(err, net.ErrClosed) {
			return nil
		}
		return err
	}
}

// fixed gives one login.
func fixed(username, password string) func() (*inject.Login, error) {
	return func() (*inject.Login, error) {
		return &inject.Login{Username: username, Password: secret.New(password)}, nil
	}
}

// daemon runs a server until the test ends. It must stay in the foreground.
func daemon(t testing.TB, name string, args ...string) {
	t.Helper()
	cmd := exec.Command(tool(t, name), args...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if t.Failed() {
			t.Logf("%s said:\n%s", name, out.Bytes())
		}
	})
}

// tool also looks where Debian keeps servers.
func tool(t testing.TB, name string) string {
	t.Helper()
	if p := filepath.Join("/usr/sbin", name); fileExists(p) {
		return p
	}
	return testbed.Tool(t, name)
}

func fileExists(p string) bool {
	_, err := os.Stat(p)
	return err == nil
}

// run runs a client for at most 20 s.
func run(t testing.TB, stdin, name string, args ...string) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, tool(t, name), args...)
	cmd.Stdin = bytes.NewBufferString(stdin)
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// freePort is a port of 127.0.0.1 that nobody listens on now.
func freePort(t testing.TB) string {
	t.Helper()
	ln, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	return strconv.Itoa(ln.Addr().(*net.TCPAddr).Port)
}

// awaitPort waits until somebody listens.
func awaitPort(t testing.TB, port string) string {
	t.Helper()
	addr := net.JoinHostPort("127.0.0.1", port)
	for range 400 {
		c, err := net.Dial("tcp4", addr)
		if err == nil {
			_ = c.Close()
			return addr
		}
		time.Sleep(25 * time.Millisecond)
	}
	t.Fatalf("nobody listens on %s", addr)
	return ""
}

// write puts text into a file of the test's own.
func write(t testing.TB, name, text string) string {
	t.Helper()
	p := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(p, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return p
}

// secure is a certificate authority's both sides for good.test.
func secure(t testing.TB) (ca *testbed.CA, leaf tls.Certificate, server, client *tls.Config) {
	t.Helper()
	ca = testbed.NewCA(t)
	leaf = ca.Leaf(t, "good.test")
	return ca, leaf, &tls.Config{Certificates: []tls.Certificate{leaf}, MinVersion: tls.VersionTLS12},
		&tls.Config{RootCAs: ca.Pool(), ServerName: "good.test", MinVersion: tls.VersionTLS12}
}
