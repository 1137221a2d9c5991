package main

import (
	"bytes"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"sync"
	"time"
)

// origin is one HTTP/1.1 server over TLS for all names, written by hand so that it costs
// the load's core little. It answers 401 to a request without exactly the credential.
//
//	/small        1 KiB
//	/down?n=N     N bytes
//	/up           reads the body, answers its length
//	/sse, /ndjson ?n=N events 2 ms apart, each with the nanosecond at which it left
type origin struct {
	ln    net.Listener
	tls   *tls.Config
	start time.Time
	wg    sync.WaitGroup
	mu    sync.Mutex
	open  map[net.Conn]struct{}
}

func startOrigin(p *pki) (*origin, error) {
	ln, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	o := &origin{
		ln: ln, start: time.Now(), open: map[net.Conn]struct{}{},
		tls: &tls.Config{Certificates: []tls.Certificate{p.origin}, NextProtos: []string{"http/1.1"}},
	}
	o.wg.Go(o.accept)
	return o, nil
}

func (o *origin) port() int { return o.ln.Addr().(*net.TCPAddr).Port }

func (o *origin) close() {
	_ = o.ln.Close()
	o.mu.Lock()
	for c := range o.open {
		_ = c.Close()
	}
	o.mu.Unlock()
	o.wg.Wait()
}

func (o *origin) accept() {
	for {
		c, err := o.ln.Accept()
		if err != nil {
			return
		}
		o.mu.Lock()
		o.open[c] = struct{}{}
		o.mu.Unlock()
		o.wg.Go(func() {
			_ = o.serve(tls.Server(c, o.tls)) // ends with the client
			_ = c.Close()
			o.mu.Lock()
			delete(o.open, c)
			o.mu.Unlock()
		})
	}
}

const smallBody = 1024

var (
	smallAnswer  = []byte("HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 1024\r\n\r\n" + strings.Repeat("x", smallBody))
	unauthorized = []byte("HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n")
	wantAuth     = []byte("Bearer " + token)
)

func (o *origin) serve(c *tls.Conn) error {
	in := newHeadReader(c)
	for {
		m, err := in.next()
		if err != nil {
			return err
		}
		line, _, _ := bytes.Cut(m.head, crlf)
		parts := bytes.SplitN(line, []byte(" "), 3)
		if len(parts) != 3 {
			return fmt.Errorf("request line %q", line)
		}
		if !bytes.Equal(field(m.head, "authorization"), wantAuth) || bytes.Count(bytes.ToLower(m.head), []byte("\r\nauthorization:")) != 1 {
			_, err = c.Write(unauthorized)
		} else {
			err = o.answer(c, in, m, parts[1])
		}
		if err != nil {
			return err
		}
	}
}

func (o *origin) answer(c *tls.Conn, in *headReader, m message, target []byte) error {
	if bytes.Equal(target, []byte("/small")) {
		_, err := c.Write(smallAnswer)
		return err
	}
	path, query, _ := strings.Cut(string(target), "?n=")
	n, _ := strconv.ParseInt(query, 10, 64) // absent: 0
	switch path {
	case "/down":
		if _, err := fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n", n); err != nil {
			return err
		}
		return copyBulk(c, newText(n))
	case "/up":
		got, err := io.CopyBuffer(io.Discard, struct{ io.Reader }{io.LimitReader(in, m.length)}, make([]byte, 64<<10))
		if err != nil {
			return err
		}
		body := strconv.FormatInt(got, 10)
		_, err = fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
		return err
	case "/sse":
		return o.stream(c, n, "text/event-stream", "data: %d\n\n")
	case "/ndjson":
		return o.stream(c, n, "application/x-ndjson", "{\"t\": %d}\n")
	}
	return fmt.Errorf("no such path %q", path)
}

func (o *origin) stream(c *tls.Conn, n int64, kind, format string) error {
	if _, err := fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nContent-Type: %s\r\nTransfer-Encoding: chunked\r\n\r\n", kind); err != nil {
		return err
	}
	for range n {
		time.Sleep(2 * time.Millisecond)
		event := fmt.Sprintf(format, time.Since(o.start).Nanoseconds())
		if _, err := fmt.Fprintf(c, "%x\r\n%s\r\n", len(event), event); err != nil {
			return err
		}
	}
	_, err := c.Write([]byte("0\r\n\r\n"))
	return err
}

func copyBulk(w io.Writer, r io.Reader) error {
	_, err := io.CopyBuffer(struct{ io.Writer }{w}, struct{ io.Reader }{r}, make([]byte, 64<<10))
	return err
}
