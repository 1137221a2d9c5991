package postgres

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"go.uber.org/goleak"

	"github.com/egressd/egressd/inject"
	"github.com/egressd/egressd/internal/secret"
	"github.com/egressd/egressd/internal/testbed"
	"github.com/egressd/egressd/proxy/wire"
)

// real holds the servers that all tests share; they are expensive.
var real = &parts{}

func TestMain(m *testing.M) {
	code := m.Run()
	for _, s := range []*server{real.tls, real.noTLS} {
		if s != nil {
			s.stop()
		}
	}
	if err := goleak.Find(); err != nil && code == 0 {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

func (p *parts) start(t testing.TB) {
	t.Helper()
	p.once.Do(func() {
		p.ca = testbed.NewCA(t)
		p.tls = startServer(t, p.ca, true)
		p.noTLS = startServer(t, p.ca, false)
	})
	if p.noTLS == nil {
		t.Fatal("the servers did not start")
	}
}

// door stands where the proxy stands: it listens for a sandbox and serves one session per
// connection.
type door struct {
	session wire.Session // a template
	user    string
	secret  string
	origin  string
	inTLS   bool
	ca      *testbed.CA // of what the sandbox sees
	trust   *testbed.CA // of what egressd sees
	ln      net.Listener

	asked  atomic.Int32 // for the credential
	opened atomic.Int32
	mu     sync.Mutex
	errs   []error
	wg     sync.WaitGroup
	conns  map[net.Conn]bool
}

type doorOption func(*door)

// newDoor opens a door to origin where egressd logs in as user.
func newDoor(t testing.TB, origin, user, password string, opts ...doorOption) *door {
	t.Helper()
	d := &door{user: user, secret: password, origin: origin, ca: testbed.NewCA(t), trust: real.ca, conns: map[net.Conn]bool{}}
	if d.trust == nil {
		d.trust = testbed.NewCA(t)
	}
	d.session.HandshakeTimeout = 10 * time.Second
	for _, o := range opts {
		o(d)
	}
	ln, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	d.ln = ln
	ctx, cancel := context.WithCancel(context.Background())
	leaf := d.ca.Leaf(t, serverName)
	d.wg.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			d.mu.Lock()
			d.conns[c] = true
			d.mu.Unlock()
			d.wg.Go(func() { d.serve(ctx, c, leaf) })
		}
	})
	t.Cleanup(func() {
		cancel()
		_ = ln.Close()
		d.mu.Lock()
		for c := range d.conns {
			_ = c.Close()
		}
		d.mu.Unlock()
		d.wg.Wait()
	})
	return d
}

func (d *door) serve(ctx context.Context, c net.Conn, leaf tls.Certificate) {
	defer func() { _ = c.Close() }()
	s := d.session
	s.Client, s.InTLS, s.Host, s.Port = c, d.inTLS, serverName, 5432
	serverTLS := &tls.Config{Certificates: []tls.Certificate{leaf}, NextProtos: []string{"postgresql"}}
	clientTLS := &tls.Config{RootCAs: d.trust.Pool(), ServerName: serverName, NextProtos: []string{"postgresql"}}
	s.AcceptTLS = func(ctx context.Context, c net.Conn) (net.Conn, error) {
		t := tls.Server(c, serverTLS)
		return t, t.HandshakeContext(ctx)
	}
	s.StartTLS = func(ctx context.Context, c net.Conn) (net.Conn, error) {
		t := tls.Client(c, clientTLS)
		return t, t.HandshakeContext(ctx)
	}
	s.Dial = func(ctx context.Context) (net.Conn, error) {
		up, err := new(net.Dialer).DialContext(ctx, "tcp4", d.origin)
		if err != nil || !d.inTLS {
			return up, err
		}
		return s.StartTLS(ctx, up)
	}
	if d.inTLS {
		var err error
		if s.Client, err = s.AcceptTLS(ctx, c); err != nil {
			return
		}
	}
	if s.Credential == nil {
		s.Credential = func(context.Context) (*inject.Projection, error) {
			d.asked.Add(1)
			return &inject.Projection{Source: "db", Login: &inject.Login{Username: d.user, Password: secret.New(d.secret)}}, nil
		}
	}
	s.Opened = func(net.Conn) { d.opened.Add(1) }
	s.Pipe = pipe
	err := Serve(ctx, &s)
	d.mu.Lock()
	d.errs = append(d.errs, err)
	d.mu.Unlock()
}

// pipe is what the proxy's does, without its limits.
func pipe(a, b net.Conn) error {
	half := func(dst, src net.Conn) error {
		_, err := io.Copy(dst, src)
		if hc, ok := dst.(interface{ CloseWrite() error }); ok && err == nil {
			_ = hc.CloseWrite()
		} else {
			_ = dst.Close()
			_ = src.Close()
		}
		if errors.Is(err, net.ErrClosed) {
			return nil
		}
		return err
	}
	var wg sync.WaitGroup
	wg.Go(func() { _ = half(b, a) })
	err := half(a, b)
	wg.Wait()
	return err
}

func (d *door) port() int { return d.ln.Addr().(*net.TCPAddr).Port }

// wait is the error of the n-th session that has ended, from 1.
func (d *door) wait(t testing.TB, n int) error {
	t.Helper()
	for range 500 {
		d.mu.Lock()
		if len(d.errs) >= n {
			err := d.errs[n-1]
			d.mu.Unlock()
			return err
		}
		d.mu.Unlock()
		time.Sleep(20 * time.Millisecond)
	}
	t.Fatalf("session %d has not ended", n)
	return nil
}

// raw connects as a sandbox whose bytes are the test's own.
func (d *door) raw(t testing.TB) net.Conn {
	t.Helper()
	c, err := net.Dial("tcp4", d.ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	_ = c.SetDeadline(time.Now().Add(15 * time.Second))
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// config is a pgx client's, which checks egressd's certificate unless tls is false.
func (d *door) config(t testing.TB, user, password string, withTLS bool) *pgx.ConnConfig {
	t.Helper()
	c, err := pgx.ParseConfig(fmt.Sprintf("host=127.0.0.1 port=%d dbname=app user=%s sslmode=disable", d.port(), user))
	if err != nil {
		t.Fatal(err)
	}
	c.Password, c.ConnectTimeout = password, 10*time.Second
	if withTLS {
		c.TLSConfig = &tls.Config{RootCAs: d.ca.Pool(), ServerName: serverName}
	}
	return c
}

func (d *door) connect(t testing.TB, user, password string, withTLS bool) *pgx.Conn {
	t.Helper()
	c, err := pgx.ConnectConfig(t.Context(), d.config(t, user, password, withTLS))
	if err != nil {
		d.mu.Lock()
		defer d.mu.Unlock()
		t.Fatalf("connect: %v; egressd: %v", err, d.errs)
	}
	t.Cleanup(func() { _ = c.Close(context.Background()) })
	return c
}

func codeIs(t testing.TB, err error, want string) {
	t.Helper()
	if got := codeOf(err); got != want {
		t.Errorf("egressd ended with %v (code %q), want code %q", err, got, want)
	}
}

func cleartext(d *door) { d.session.Cleartext = true }
