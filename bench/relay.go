package main

import (
	"bytes"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"sync"
)

// relayProxy is the upper bound: what a proxy that injects a header must do at the
// least. It terminates TLS with a minted certificate, scans heads as bytes, replaces one
// header, keeps upstream TLS connections and writes each small message in one piece. It
// checks nothing.
type relayProxy struct {
	mint     *mint
	upstream *tls.Config
	mu       sync.Mutex
	idle     map[string][]*relayUp
	ssh      *sshRelay
}

type relayUp struct {
	*tls.Conn
	in *headReader
}

func (p *relayProxy) serve(ln net.Listener) error {
	for {
		c, err := ln.Accept()
		if err != nil {
			return err
		}
		go func() {
			defer func() { _ = c.Close() }()
			_ = p.conn(c.(*net.TCPConn)) // ends with the client
		}()
	}
}

func (p *relayProxy) conn(c *net.TCPConn) error {
	m, err := newHeadReader(c).next()
	if err != nil {
		return err
	}
	parts := bytes.SplitN(m.head, []byte(" "), 3)
	if len(parts) != 3 || string(parts[0]) != "CONNECT" {
		return fmt.Errorf("not CONNECT")
	}
	host, port, err := net.SplitHostPort(string(parts[1]))
	if err != nil {
		return err
	}
	switch host {
	case passName:
		return p.pass(c, port)
	case sshName:
		return p.ssh.serve(c, port)
	}
	if _, err := io.WriteString(c, "HTTP/1.1 200 OK\r\n\r\n"); err != nil {
		return err
	}
	down := tls.Server(c, p.mint.config(nil))
	return p.requests(down, host, port)
}

func (p *relayProxy) pass(c *net.TCPConn, port string) error {
	up, err := net.Dial("tcp4", "127.0.0.1:"+port)
	if err != nil {
		return err
	}
	defer func() { _ = up.Close() }()
	if _, err := io.WriteString(c, "HTTP/1.1 200 OK\r\n\r\n"); err != nil {
		return err
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, _ = io.Copy(up, c)
		_ = up.(*net.TCPConn).CloseWrite()
	}()
	_, err = io.Copy(c, up)
	_ = c.CloseWrite()
	<-done
	return err
}

var injected = []byte("Authorization: Bearer " + token + "\r\n")

func (p *relayProxy) requests(down *tls.Conn, host, port string) error {
	in := newHeadReader(down)
	out := make([]byte, 0, 16<<10)
	for {
		m, err := in.next()
		if err != nil {
			return err
		}
		up, err := p.get(host, port)
		if err != nil {
			return err
		}
		line, _ := find(m.head, "authorization")
		at := bytes.Index(m.head, line)
		if line == nil {
			at = len(m.head) - 2
		}
		out = append(append(append(out[:0], m.head[:at]...), injected...), m.head[at+len(line):]...)
		if err := forward(up, in, out, m); err != nil {
			return err
		}
		if m, err = up.in.next(); err != nil {
			return err
		}
		out = append(out[:0], m.head...)
		if err := forward(down, up.in, out, m); err != nil {
			return err
		}
		p.put(host, up)
	}
}

// forward writes a head and its body; what was read with the head goes in one write.
func forward(dst io.Writer, src *headReader, out []byte, m message) error {
	if m.chunked {
		return forwardChunked(dst, src, out)
	}
	if m.length < 0 {
		return fmt.Errorf("a body without a length")
	}
	body := src.rest(m.length)
	if _, err := dst.Write(append(out, body...)); err != nil {
		return err
	}
	left := m.length - int64(len(body))
	if left == 0 {
		return nil
	}
	_, err := io.CopyBuffer(struct{ io.Writer }{dst}, struct{ io.Reader }{io.LimitReader(src, left)}, make([]byte, 32<<10))
	return err
}

// forwardChunked passes a chunked body on as it comes. It takes the terminator for the
// end where it stands at the end of a read, which holds for the origin of this bench.
func forwardChunked(dst io.Writer, src *headReader, out []byte) error {
	if _, err := dst.Write(append(out, src.rest(1<<20)...)); err != nil {
		return err
	}
	for buf := make([]byte, 32<<10); ; {
		n, err := src.Read(buf)
		if n > 0 {
			if _, werr := dst.Write(buf[:n]); werr != nil {
				return werr
			}
		}
		if bytes.HasSuffix(buf[:n], []byte("0\r\n\r\n")) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

func (p *relayProxy) get(host, port string) (*relayUp, error) {
	p.mu.Lock()
	if s := p.idle[host]; len(s) > 0 {
		up := s[len(s)-1]
		p.idle[host] = s[:len(s)-1]
		p.mu.Unlock()
		return up, nil
	}
	p.mu.Unlock()
	raw, err := net.Dial("tcp4", "127.0.0.1:"+port)
	if err != nil {
		return nil, err
	}
	cfg := p.upstream.Clone()
	cfg.ServerName = host
	c := tls.Client(raw, cfg)
	return &relayUp{Conn: c, in: newHeadReader(c)}, nil
}

func (p *relayProxy) put(host string, up *relayUp) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.idle[host] = append(p.idle[host], up)
}
