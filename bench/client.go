package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"time"
)

// client is one hand-written HTTP/1.1 client connection, through a proxy or directly.
// It allocates nothing per small request.
type client struct {
	*tls.Conn
	in   *headReader
	req  []byte // of /small
	auth string
	host string
}

// dialer opens connections through t to names that all mean the origin.
type dialer struct {
	t      *target
	origin *origin
	port   int // of the origin
	tls    *tls.Config
}

func (b *bench) dialer(t *target) *dialer {
	return &dialer{t: t, origin: b.origin, port: b.origin.port(), tls: &tls.Config{RootCAs: b.pki.roots, NextProtos: []string{"http/1.1"}}}
}

// tunnel gives the bytes towards name's port, without TLS.
func (d *dialer) tunnel(ctx context.Context, name string) (net.Conn, error) {
	addr := d.t.addr
	if addr == "" {
		addr = d.origin.ln.Addr().String()
	}
	c, err := (&net.Dialer{Timeout: 10 * time.Second}).DialContext(ctx, "tcp4", addr)
	if err != nil {
		return nil, err
	}
	if d.t.addr == "" {
		return c, nil
	}
	_ = c.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := fmt.Fprintf(c, "CONNECT %[1]s HTTP/1.1\r\nHost: %[1]s\r\n\r\n", d.hostPort(name)); err != nil {
		_ = c.Close()
		return nil, err
	}
	in := newHeadReader(c)
	m, err := in.next()
	if err == nil && !bytes.Contains(m.head[:min(len(m.head), 14)], []byte(" 200")) {
		err = fmt.Errorf("CONNECT: %q", m.head)
	}
	if err != nil {
		_ = c.Close()
		return nil, err
	}
	_ = c.SetDeadline(time.Time{})
	if in.i < in.j { // with TLS the server waits for the ClientHello; with SSH it need not
		return &early{Conn: c, got: in.buf[in.i:in.j]}, nil
	}
	return c, nil
}

// early is a connection of which something has been read already.
type early struct {
	net.Conn
	got []byte
}

func (e *early) Read(p []byte) (int, error) {
	if len(e.got) == 0 {
		return e.Conn.Read(p)
	}
	n := copy(p, e.got)
	e.got = e.got[n:]
	return n, nil
}

func (d *dialer) hostPort(name string) string { return name + ":" + strconv.Itoa(d.port) }

// dial opens a connection, TLS done. A passthrough name gets the credential from the client.
func (d *dialer) dial(ctx context.Context, name string) (*client, error) {
	raw, err := d.tunnel(ctx, name)
	if err != nil {
		return nil, err
	}
	cfg := d.tls.Clone()
	cfg.ServerName = name
	tc := tls.Client(raw, cfg)
	_ = raw.SetDeadline(time.Now().Add(20 * time.Second))
	if err := tc.HandshakeContext(ctx); err != nil {
		_ = raw.Close()
		return nil, fmt.Errorf("handshake for %s: %w", name, err)
	}
	_ = raw.SetDeadline(time.Time{})
	c := &client{Conn: tc, in: newHeadReader(tc), host: d.hostPort(name), auth: "placeholder"}
	if d.t.name == direct || name == passName {
		c.auth = token
	}
	c.req = c.head("GET", "/small", "")
	return c, nil
}

func (c *client) head(method, target, more string) []byte {
	return fmt.Appendf(nil, "%s %s HTTP/1.1\r\nHost: %s\r\nUser-Agent: bench/1\r\nAccept: */*\r\nAuthorization: Bearer %s\r\n%s\r\n",
		method, target, c.host, c.auth, more)
}

var errNotInjected = errors.New("the origin refused the credential, or another answered")

// small does one request for 1 KiB.
func (c *client) small() error {
	if _, err := c.Write(c.req); err != nil {
		return err
	}
	m, err := c.answer()
	if err != nil {
		return err
	}
	n := m.length
	if n != smallBody {
		return fmt.Errorf("a body of %d bytes", n)
	}
	for n > 0 {
		n -= int64(len(c.in.rest(n)))
		if n > 0 {
			if err := c.in.fill(); err != nil {
				return err
			}
		}
	}
	return nil
}

func (c *client) answer() (message, error) {
	m, err := c.in.next()
	if err == nil && !bytes.HasPrefix(m.head, []byte("HTTP/1.1 200")) {
		err = fmt.Errorf("%w: %q", errNotInjected, m.head[:min(len(m.head), 200)])
	}
	return m, err
}

// fill reads more when all is taken.
func (h *headReader) fill() error {
	h.i, h.j = 0, 0
	n, err := h.r.Read(h.buf)
	h.j = n
	if n > 0 {
		return nil
	}
	return err
}

// down transfers n bytes from the origin.
func (c *client) down(n int64) error {
	if _, err := c.Write(c.head("GET", "/down?n="+strconv.FormatInt(n, 10), "")); err != nil {
		return err
	}
	m, err := c.answer()
	if err != nil {
		return err
	}
	var body io.Reader = c.in
	if m.chunked {
		body = &chunkReader{r: bufio.NewReaderSize(c.in, 64<<10)}
	} else {
		body = io.LimitReader(body, m.length)
	}
	got, err := io.CopyBuffer(io.Discard, struct{ io.Reader }{body}, make([]byte, 64<<10))
	if err == nil && got != n {
		err = fmt.Errorf("%d bytes came of %d", got, n)
	}
	return err
}

// up transfers n bytes to the origin.
func (c *client) up(n int64) error {
	if _, err := c.Write(c.head("POST", "/up", fmt.Sprintf("Content-Length: %d\r\n", n))); err != nil {
		return err
	}
	if err := copyBulk(c, newText(n)); err != nil {
		return err
	}
	m, err := c.answer()
	if err != nil {
		return err
	}
	body := make([]byte, max(0, m.length))
	if _, err := io.ReadFull(c.in, body); err != nil {
		return err
	}
	if string(body) != strconv.FormatInt(n, 10) {
		return fmt.Errorf("the origin got %s bytes of %d", body, n)
	}
	return nil
}

// stream reads n events and returns the delay of each.
func (c *client) stream(o *origin, path string, n int) ([]time.Duration, error) {
	if _, err := c.Write(c.head("GET", fmt.Sprintf("%s?n=%d", path, n), "")); err != nil {
		return nil, err
	}
	m, err := c.answer()
	if err != nil {
		return nil, err
	}
	if !m.chunked {
		return nil, errors.New("the stream is not chunked")
	}
	body := bufio.NewReader(&chunkReader{r: bufio.NewReader(c.in)})
	var delays []time.Duration
	for {
		line, err := body.ReadSlice('\n')
		now := time.Since(o.start)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, err
		}
		digits := bytes.TrimFunc(line, func(r rune) bool { return r < '0' || r > '9' })
		if len(digits) == 0 {
			continue
		}
		sent, err := strconv.ParseInt(string(digits), 10, 64)
		if err != nil {
			return nil, err
		}
		delays = append(delays, now-time.Duration(sent))
	}
	if len(delays) != n {
		return nil, fmt.Errorf("%d events of %d", len(delays), n)
	}
	return delays, nil
}
