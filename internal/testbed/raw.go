package testbed

import (
	"bytes"
	"crypto/tls"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"
)

// Raw is an origin whose bytes are written by the test: hostile answers that no HTTP
// library would send.
type Raw struct {
	ln   net.Listener
	tls  *tls.Config
	in   tape
	wg   sync.WaitGroup
	mu   sync.Mutex
	open map[net.Conn]struct{}
	n    int
}

// RawOptions shape a Raw origin. Without CA it speaks no TLS.
type RawOptions struct {
	IP   string // default 127.0.0.2
	CA   *CA
	Name string   // of the certificate, default good.test
	ALPN []string // default http/1.1
	// Serve owns the connection (after TLS) until it returns; then it is closed.
	Serve func(c *RawConn)
}

// RawConn is one connection of a Raw origin, 10 s at most.
type RawConn struct {
	net.Conn
	buf []byte
}

// NewRaw starts the origin; it ends with the test.
func NewRaw(t testing.TB, opts RawOptions) *Raw {
	t.Helper()
	if opts.IP == "" {
		opts.IP = "127.0.0.2"
	}
	if opts.Name == "" {
		opts.Name = "good.test"
	}
	if opts.ALPN == nil {
		opts.ALPN = []string{"http/1.1"}
	}
	ln, err := net.Listen("tcp4", net.JoinHostPort(opts.IP, "0"))
	if err != nil {
		t.Fatalf("testbed: listen on %s: %v", opts.IP, err)
	}
	r := &Raw{ln: ln, open: map[net.Conn]struct{}{}}
	if opts.CA != nil {
		r.tls = &tls.Config{Certificates: []tls.Certificate{opts.CA.Leaf(t, opts.Name)}, NextProtos: opts.ALPN}
	}
	r.wg.Go(func() { r.accept(opts.Serve) })
	t.Cleanup(func() {
		_ = ln.Close()
		r.mu.Lock()
		for c := range r.open {
			_ = c.Close()
		}
		r.mu.Unlock()
		r.wg.Wait()
	})
	return r
}

// Answer makes a Serve function: after the n-th request head the n-th answer is written
// exactly as it stands (the last one for all that follow), then the connection is
// closed, or held open until the peer closes when hold is set.
func Answer(hold bool, answers ...string) func(*RawConn) {
	return func(c *RawConn) {
		for i := 0; ; i++ {
			if _, err := c.ReadHead(); err != nil {
				return
			}
			if _, err := c.Write([]byte(answers[min(i, len(answers)-1)])); err != nil {
				return
			}
			if !hold {
				return
			}
		}
	}
}

func (r *Raw) accept(serve func(*RawConn)) {
	for {
		raw, err := r.ln.Accept()
		if err != nil {
			return
		}
		r.mu.Lock()
		r.n++
		r.open[raw] = struct{}{}
		r.mu.Unlock()
		r.wg.Go(func() {
			defer func() {
				_ = raw.Close()
				r.mu.Lock()
				delete(r.open, raw)
				r.mu.Unlock()
			}()
			_ = raw.SetDeadline(time.Now().Add(10 * time.Second))
			c := raw
			if r.tls != nil {
				tc := tls.Server(raw, r.tls)
				if tc.Handshake() != nil {
					return
				}
				defer func() { _ = tc.CloseWrite() }()
				c = tc
			}
			serve(&RawConn{Conn: &tapedConn{Conn: c, in: &r.in}})
		})
	}
}

// ReadHead reads up to and with the empty line that ends a request head; what came
// behind it is kept for the next call.
func (c *RawConn) ReadHead() ([]byte, error) {
	chunk := make([]byte, 4096)
	for {
		if i := bytes.Index(c.buf, []byte("\r\n\r\n")); i >= 0 {
			head := append([]byte(nil), c.buf[:i+4]...)
			c.buf = c.buf[i+4:]
			return head, nil
		}
		n, err := c.Conn.Read(chunk)
		c.buf = append(c.buf, chunk[:n]...)
		if err != nil {
			return nil, err
		}
	}
}

// Read returns first what ReadHead left over.
func (c *RawConn) Read(p []byte) (int, error) {
	if len(c.buf) > 0 {
		n := copy(p, c.buf)
		c.buf = c.buf[n:]
		return n, nil
	}
	return c.Conn.Read(p)
}

// Addr is where the origin listens.
func (r *Raw) Addr() netip.AddrPort { return r.ln.Addr().(*net.TCPAddr).AddrPort() }

// Port is Addr's port.
func (r *Raw) Port() uint16 { return r.Addr().Port() }

// Captured is what came, after TLS.
func (r *Raw) Captured() []byte { return r.in.bytes() }

// Conns counts the accepted connections.
func (r *Raw) Conns() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.n
}
