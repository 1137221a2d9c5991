package sshbridge

import (
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"testing"

	"golang.org/x/crypto/ssh"
)

// origin is an SSH server that does as a test says, where OpenSSH would not.
type origin struct {
	t      testing.TB
	signer ssh.Signer // its host key, shown by the default configuration
	user   ssh.Signer // who may come in
	config *ssh.ServerConfig
	// session serves one channel; nil: echo.
	session func(ch ssh.Channel, reqs <-chan *ssh.Request)
	// ready is called with each connection.
	ready func(c *ssh.ServerConn)

	mu       sync.Mutex
	methods  []string // of authentication that were tried
	users    []string
	globals  []string
	channels []string
	requests []string
	tries    int
}

func newOrigin(t testing.TB) *origin {
	o := &origin{t: t, signer: newSigner(t), user: newSigner(t)}
	o.config = &ssh.ServerConfig{
		PublicKeyCallback: func(c ssh.ConnMetadata, key ssh.PublicKey) (*ssh.Permissions, error) {
			o.mu.Lock()
			o.users = append(o.users, c.User())
			o.mu.Unlock()
			if string(key.Marshal()) != string(o.user.PublicKey().Marshal()) {
				return nil, errors.New("not this key")
			}
			return &ssh.Permissions{}, nil
		},
		AuthLogCallback: func(_ ssh.ConnMetadata, method string, _ error) {
			o.mu.Lock()
			o.methods = append(o.methods, method)
			o.mu.Unlock()
		},
	}
	return o
}

// dial is a connection to a new instance.
func (o *origin) dial(context.Context) (net.Conn, error) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	defer func() { _ = ln.Close() }()
	c, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		return nil, err
	}
	server, err := ln.Accept()
	if err != nil {
		return nil, err
	}
	o.mu.Lock()
	o.tries++
	o.mu.Unlock()
	go o.serve(server)
	return c, nil
}

func (o *origin) serve(c net.Conn) {
	config := *o.config
	if o.signer != nil {
		config.AddHostKey(o.signer)
	}
	conn, channels, requests, err := ssh.NewServerConn(c, &config)
	if err != nil {
		return
	}
	defer func() { _ = conn.Close() }()
	if o.ready != nil {
		go o.ready(conn)
	}
	go func() {
		for r := range requests {
			o.record(&o.globals, r.Type)
			_ = r.Reply(true, nil)
		}
	}()
	for n := range channels {
		o.record(&o.channels, n.ChannelType())
		ch, reqs, err := n.Accept()
		if err != nil {
			return
		}
		if o.session != nil {
			go o.session(ch, o.recorded(reqs))
			continue
		}
		go echo(ch, o.recorded(reqs))
	}
}

func (o *origin) record(to *[]string, what string) {
	o.mu.Lock()
	*to = append(*to, what)
	o.mu.Unlock()
}

func (o *origin) recorded(in <-chan *ssh.Request) <-chan *ssh.Request {
	out := make(chan *ssh.Request)
	go func() {
		defer close(out)
		for r := range in {
			o.record(&o.requests, r.Type)
			out <- r
		}
	}()
	return out
}

func (o *origin) seen(what *[]string) []string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return append([]string(nil), *what...)
}

// echo answers every request with yes, gives back what comes in, and exits with 0.
func echo(ch ssh.Channel, reqs <-chan *ssh.Request) {
	go func() {
		for r := range reqs {
			_ = r.Reply(true, nil)
		}
	}()
	_, _ = io.Copy(ch, ch)
	_, _ = ch.SendRequest("exit-status", false, []byte{0, 0, 0, 0})
	_ = ch.Close()
}

// rig is a bridge to the origin.
func (o *origin) rig(change ...func(*rig)) *rig {
	o.t.Helper()
	return newRig(o.t, nil, append([]func(*rig){func(r *rig) {
		r.dial = o.dial
		r.use(r.login("git", o.user, host+" "+publicOf(o.signer)))
	}}, change...)...)
}

func publicOf(s ssh.Signer) string {
	return string(ssh.MarshalAuthorizedKey(s.PublicKey()))
}
