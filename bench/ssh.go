package main

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/crypto/ssh"
)

// sshName is where the SSH origin is; every proxy logs in there with a key of its own.
const sshName = "ssh.bench.test"

// sshKeys are Ed25519 all. The proxies read user and host from files of these names.
type sshKeys struct{ host, user, sandbox ssh.Signer }

const (
	sshUserFile = "ssh-user.key" // what the origin lets in, which the sandbox does not have
	sshHostFile = "ssh-host.pub" // the origin's, as authorized_keys has it
)

func newSSHKeys(dir string) (k sshKeys, err error) {
	for _, s := range []*ssh.Signer{&k.host, &k.user, &k.sandbox} {
		_, key, err := ed25519.GenerateKey(rand.Reader)
		if err != nil {
			return k, err
		}
		if *s, err = ssh.NewSignerFromKey(key); err != nil {
			return k, err
		}
		if s != &k.user {
			continue
		}
		block, err := ssh.MarshalPrivateKey(key, "bench")
		if err != nil {
			return k, err
		}
		if err := os.WriteFile(filepath.Join(dir, sshUserFile), pem.EncodeToMemory(block), 0o600); err != nil {
			return k, err
		}
	}
	return k, os.WriteFile(filepath.Join(dir, sshHostFile), ssh.MarshalAuthorizedKey(k.host.PublicKey()), 0o600)
}

// authorized is a public key in one line.
func authorized(s ssh.Signer) string {
	return strings.TrimSpace(string(ssh.MarshalAuthorizedKey(s.PublicKey())))
}

// sshOrigin is a server that lets in nothing but the proxies' key. Commands:
//
//	true     ends with status 0
//	down N   N bytes
//	up       reads its input, prints its length
type sshOrigin struct {
	ln     net.Listener
	config *ssh.ServerConfig
	wg     sync.WaitGroup
	mu     sync.Mutex
	open   map[net.Conn]struct{}
}

func startSSHOrigin(k sshKeys) (*sshOrigin, error) {
	ln, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	want := k.user.PublicKey().Marshal()
	o := &sshOrigin{ln: ln, open: map[net.Conn]struct{}{}, config: &ssh.ServerConfig{
		PublicKeyCallback: func(_ ssh.ConnMetadata, key ssh.PublicKey) (*ssh.Permissions, error) {
			if !bytes.Equal(key.Marshal(), want) {
				return nil, errNotInjected
			}
			return &ssh.Permissions{}, nil
		},
	}}
	o.config.AddHostKey(k.host)
	o.wg.Go(o.accept)
	return o, nil
}

func (o *sshOrigin) port() int { return o.ln.Addr().(*net.TCPAddr).Port }

func (o *sshOrigin) close() {
	_ = o.ln.Close()
	o.mu.Lock()
	for c := range o.open {
		_ = c.Close()
	}
	o.mu.Unlock()
	o.wg.Wait()
}

func (o *sshOrigin) accept() {
	for {
		c, err := o.ln.Accept()
		if err != nil {
			return
		}
		o.mu.Lock()
		o.open[c] = struct{}{}
		o.mu.Unlock()
		o.wg.Go(func() {
			o.serve(c)
			_ = c.Close()
			o.mu.Lock()
			delete(o.open, c)
			o.mu.Unlock()
		})
	}
}

func (o *sshOrigin) serve(c net.Conn) {
	conn, chans, reqs, err := ssh.NewServerConn(c, o.config)
	if err != nil {
		return
	}
	defer func() { _ = conn.Close() }()
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() { ssh.DiscardRequests(reqs) })
	for n := range chans {
		ch, asks, err := n.Accept()
		if err != nil {
			return
		}
		wg.Go(func() {
			defer func() { _ = ch.Close() }()
			for r := range asks {
				if r.Type != "exec" || len(r.Payload) < 4 {
					_ = r.Reply(false, nil)
					continue
				}
				_ = r.Reply(true, nil)
				if sshCommand(ch, string(r.Payload[4:])) == nil {
					_, _ = ch.SendRequest("exit-status", false, make([]byte, 4))
				}
				return
			}
		})
	}
}

func sshCommand(ch ssh.Channel, command string) error {
	verb, arg, _ := strings.Cut(command, " ")
	switch verb {
	case "true":
		return nil
	case "down":
		n, err := strconv.ParseInt(arg, 10, 64)
		if err != nil {
			return err
		}
		return copyBulk(ch, newText(n))
	case "up":
		n, err := io.CopyBuffer(io.Discard, struct{ io.Reader }{ch}, make([]byte, 64<<10))
		if err == nil {
			_, err = fmt.Fprint(ch, n)
		}
		return err
	}
	return errors.New("no such command")
}

// dialSSH logs in through t. The origin lets in nobody but a proxy that has its key.
func (b *bench) dialSSH(t *target) (*ssh.Client, error) {
	d := b.dialer(t)
	d.port = b.ssh.port()
	raw, err := d.tunnel(b.ctx, sshName)
	if err != nil {
		return nil, err
	}
	_ = raw.SetDeadline(time.Now().Add(20 * time.Second))
	origin := b.sshKeys.host.PublicKey().Marshal()
	conn, chans, reqs, err := ssh.NewClientConn(raw, sshName, &ssh.ClientConfig{
		User: "sandbox", Auth: []ssh.AuthMethod{ssh.PublicKeys(b.sshKeys.sandbox)},
		HostKeyAlgorithms: []string{ssh.KeyAlgoED25519},
		HostKeyCallback: func(_ string, _ net.Addr, key ssh.PublicKey) error {
			if bytes.Equal(key.Marshal(), origin) {
				return errors.New("the origin's host key: nothing is between")
			}
			return nil
		},
	})
	if err != nil {
		_ = raw.Close()
		return nil, fmt.Errorf("ssh: %w", err)
	}
	_ = raw.SetDeadline(time.Time{})
	return ssh.NewClient(conn, chans, reqs), nil
}

// sshSession is connect, log in, run a command, read its status.
func (b *bench) sshSession(t *target) error {
	c, err := b.dialSSH(t)
	if err != nil {
		return err
	}
	defer func() { _ = c.Close() }()
	s, err := c.NewSession()
	if err != nil {
		return err
	}
	return s.Run("true")
}

func sshSessions(b *bench, t *target, _ int) (float64, error) {
	if err := b.sshSession(t); err != nil { // what is read and parsed once
		return 0, err
	}
	return b.perCPU(t, func(ctx context.Context) (int64, error) {
		return parallel(ctx, 8, func(int) error { return b.sshSession(t) })
	})
}

// sshBytes moves a quarter of the plan's bulk through one session.
func sshBytes(transfer func(*ssh.Session, int64) error) func(*bench, *target, int) (float64, error) {
	return func(b *bench, t *target, _ int) (float64, error) {
		c, err := b.dialSSH(t)
		if err != nil {
			return 0, err
		}
		defer func() { _ = c.Close() }()
		end := time.AfterFunc(time.Minute, func() { _ = c.Close() })
		defer end.Stop()
		s, err := c.NewSession()
		if err != nil {
			return 0, err
		}
		size := b.plan.bulk / 4
		return b.perGiB(t, size, func() error { return transfer(s, size) })
	}
}

func sshDown(s *ssh.Session, size int64) error {
	out, err := s.StdoutPipe()
	if err != nil {
		return err
	}
	if err := s.Start(fmt.Sprintf("down %d", size)); err != nil {
		return err
	}
	n, err := io.CopyBuffer(io.Discard, struct{ io.Reader }{out}, make([]byte, 64<<10))
	if err == nil && n != size {
		err = fmt.Errorf("%d bytes came of %d", n, size)
	}
	return errors.Join(err, s.Wait())
}

func sshUp(s *ssh.Session, size int64) error {
	var out bytes.Buffer
	s.Stdin, s.Stdout = struct{ io.Reader }{newText(size)}, &out
	if err := s.Run("up"); err != nil {
		return err
	}
	if out.String() != strconv.FormatInt(size, 10) {
		return fmt.Errorf("the origin got %q bytes of %d", out.String(), size)
	}
	return nil
}
