package h1

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// serve runs s on a loopback listener and returns its address. At the end of the
// test every connection has ended: within 5 s, or the test fails.
func serve(t testing.TB, s *Server) string {
	t.Helper()
	return serveTLS(t, s, nil)
}

func serveTLS(t testing.TB, s *Server, conf *tls.Config) string {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	return serveUntil(t, s, conf, ctx, cancel)
}

// serveUntil is serveTLS with a drain of the test's own; stop ends it.
func serveUntil(t testing.TB, s *Server, conf *tls.Config, drain context.Context, stop func()) string {
	t.Helper()
	ln := listen(t)
	var conns sync.WaitGroup
	conns.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			conns.Go(func() {
				if conf != nil {
					tc := tls.Server(c, conf)
					if tc.Handshake() != nil {
						_ = c.Close()
						return
					}
					c = tc
				}
				s.ServeConn(context.Background(), drain, c)
			})
		}
	})
	t.Cleanup(func() {
		stop()
		_ = ln.Close()
		within(t, 5*time.Second, "connections to end", conns.Wait)
	})
	return ln.Addr().String()
}

func listen(t testing.TB) net.Listener {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = ln.Close() })
	return ln
}

// within fails the test if f takes longer than d.
func within(t testing.TB, d time.Duration, what string, f func()) {
	t.Helper()
	done := make(chan struct{})
	go func() { defer close(done); f() }()
	select {
	case <-done:
	case <-time.After(d):
		t.Fatalf("waited %v for %s", d, what)
	}
}

func testServer(h http.HandlerFunc) *Server {
	return &Server{Handler: h, Limits: DefaultLimits(), HeadTimeout: 2 * time.Second, IdleTimeout: 5 * time.Second, BodyStall: 2 * time.Second, WriteStall: 2 * time.Second}
}

// echo answers with the request's body.
func echo(w http.ResponseWriter, r *http.Request) {
	b, err := io.ReadAll(r.Body)
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	w.Header()["X-Method"] = []string{r.Method}
	_, _ = w.Write(b)
}

func dial(t testing.TB, addr string) *net.TCPConn {
	t.Helper()
	nc, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = nc.Close() })
	_ = nc.SetDeadline(time.Now().Add(10 * time.Second))
	tc, _ := nc.(*net.TCPConn)
	return tc
}

// raw sends bytes and returns all that comes back until the connection ends, and how
// it ended (nil: cleanly).
func raw(t testing.TB, addr, send string) (string, error) {
	t.Helper()
	nc := dial(t, addr)
	defer func() { _ = nc.Close() }()
	go func() { _, _ = io.WriteString(nc, send); _ = nc.CloseWrite() }()
	b, err := io.ReadAll(nc)
	return string(b), err
}

// statuses lists the status codes of the answers in what raw returned.
func statuses(answer string) string {
	var all []string
	for _, line := range strings.Split(answer, "\r\n") {
		// an answer's body may end without a line end of its own
		if i := strings.Index(line, "HTTP/1.1 "); i >= 0 && len(line) >= i+12 {
			all = append(all, line[i+9:i+12])
		}
	}
	return strings.Join(all, " ")
}

// origin runs f for each connection to a raw origin. It waits for all f.
func origin(t testing.TB, f func(nc *net.TCPConn)) string {
	t.Helper()
	ln := listen(t)
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			nc, err := ln.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer func() { _ = nc.Close() }()
				_ = nc.SetDeadline(time.Now().Add(10 * time.Second))
				tc, _ := nc.(*net.TCPConn)
				f(tc)
			})
		}
	})
	t.Cleanup(func() { _ = ln.Close(); within(t, 12*time.Second, "origin to end", wg.Wait) })
	return ln.Addr().String()
}

// readHead reads a head from nc, byte by byte so that nothing behind it is lost.
func readHead(nc net.Conn) (string, error) {
	var b bytes.Buffer
	one := make([]byte, 1)
	for !bytes.HasSuffix(b.Bytes(), []byte("\r\n\r\n")) {
		if _, err := nc.Read(one); err != nil {
			return b.String(), err
		}
		b.Write(one)
	}
	return b.String(), nil
}

// answering is an origin that answers every request head on every connection with
// the same bytes and then, if it should, closes.
func answering(t testing.TB, answer string, thenClose bool) string {
	return origin(t, func(nc *net.TCPConn) {
		for {
			if _, err := readHead(nc); err != nil {
				return
			}
			if _, err := io.WriteString(nc, answer); err != nil || thenClose {
				return
			}
		}
	})
}

// client is a ClientConn with the outcome of its last exchange.
type client struct {
	*ClientConn
	done     int
	reusable bool
}

func newClient(t testing.TB, addr string) *client {
	t.Helper()
	return &client{ClientConn: NewClientConn(dial(t, addr), DefaultLimits())}
}

func (c *client) options() *RoundTripOptions {
	c.done = 0
	return &RoundTripOptions{Target: "/", Host: "origin.test", HeaderTimeout: 5 * time.Second, StallTimeout: 5 * time.Second, IdleTimeout: 5 * time.Second,
		Done: func(ok bool) { c.done++; c.reusable = ok }}
}

func request(method string, body io.Reader, length int64) *http.Request {
	r := &http.Request{Method: method, Header: http.Header{}, ContentLength: length}
	if body != nil {
		rc, ok := body.(io.ReadCloser)
		if !ok {
			rc = io.NopCloser(body)
		}
		r.Body = rc
	}
	return r
}

// get makes one exchange and returns status, body and the error of either.
func (c *client) get(method string) (int, string, error) {
	resp, err := c.RoundTrip(request(method, nil, 0), c.options())
	if err != nil {
		return 0, "", err
	}
	defer func() { _ = resp.Body.Close() }()
	b, err := io.ReadAll(resp.Body)
	return resp.StatusCode, string(b), err
}

// reasonOf is the reason of a ProtocolError, or "".
func reasonOf(err error) string {
	var pe *ProtocolError
	if errors.As(err, &pe) {
		return pe.Reason
	}
	return ""
}

// tlsConfigs makes a certificate and returns a server's and a client's configuration.
func tlsConfigs(t testing.TB, version uint16) (server, client *tls.Config) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), DNSNames: []string{"origin.test"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(leaf)
	server = &tls.Config{MinVersion: version, MaxVersion: version, Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}}
	return server, &tls.Config{MinVersion: version, RootCAs: pool, ServerName: "origin.test"}
}

// dialTLS connects with a transport whose end is tracked.
func dialTLS(t testing.TB, addr string, conf *tls.Config) *tls.Conn {
	t.Helper()
	tc := tls.Client(TrackEOF(dial(t, addr)), conf)
	if err := tc.Handshake(); err != nil {
		t.Fatal(err)
	}
	return tc
}

// memConn is a connection whose peer has sent all it will send.
type memConn struct {
	in     *bytes.Reader
	out    bytes.Buffer
	mu     sync.Mutex
	closed bool
}

func newMemConn(in []byte) *memConn { return &memConn{in: bytes.NewReader(in)} }

func (m *memConn) Read(p []byte) (int, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return 0, net.ErrClosed
	}
	return m.in.Read(p)
}

func (m *memConn) Write(p []byte) (int, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return 0, net.ErrClosed
	}
	return m.out.Write(p)
}

func (m *memConn) Close() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.closed = true
	return nil
}

func (m *memConn) LocalAddr() net.Addr              { return &net.TCPAddr{} }
func (m *memConn) RemoteAddr() net.Addr             { return &net.TCPAddr{} }
func (m *memConn) SetDeadline(time.Time) error      { return nil }
func (m *memConn) SetReadDeadline(time.Time) error  { return nil }
func (m *memConn) SetWriteDeadline(time.Time) error { return nil }

var errTest = errors.New("a test's own error")

func isCut(err error) bool {
	return err != nil && !errors.Is(err, os.ErrDeadlineExceeded)
}
