package sshbridge

import (
	"context"
	"io"
	"net"
	"sync"
	"testing"

	"golang.org/x/crypto/ssh"

	"github.com/egressd/egressd/inject"
	"github.com/egressd/egressd/internal/certs"
	"github.com/egressd/egressd/policy"
	"github.com/egressd/egressd/proxy/wire"
)

// The benchmarks compare the bridge with the plain relay that anyone would write with
// x/crypto/ssh, its defaults and its order, in one run. Client and origin are in the same
// process and cost the same on both sides.

// benchBed is a client, an origin, and something between.
type benchBed struct {
	addr   string
	client *ssh.ClientConfig
}

func pipeOrigin(b *testing.B) (*origin, *ssh.ClientConfig) {
	b.Helper()
	o := newOrigin(b)
	o.session = func(ch ssh.Channel, reqs <-chan *ssh.Request) {
		for r := range reqs {
			_ = r.Reply(true, nil)
			if r.Type == "exec" {
				go func() {
					_, _ = io.Copy(ch, ch)
					_, _ = ch.SendRequest("exit-status", false, []byte{0, 0, 0, 0})
					_ = ch.Close()
				}()
			}
		}
	}
	return o, &ssh.ClientConfig{User: "x", Auth: []ssh.AuthMethod{ssh.PublicKeys(newSigner(b))}}
}

func listenAll(b *testing.B, serve func(net.Conn)) string {
	b.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			wg.Go(func() { defer func() { _ = c.Close() }(); serve(c) })
		}
	})
	b.Cleanup(func() { _ = ln.Close(); wg.Wait() })
	return ln.Addr().String()
}

// bridged: a known_hosts of the usual size, a host certificate as in production; the client
// asks for the plain key, as x/crypto's knows no authority here.
func bridged(b *testing.B) benchBed {
	o, client := pipeOrigin(b)
	ca, err := certs.NewEphemeralSSH()
	if err != nil {
		b.Fatal(err)
	}
	known, err := inject.ParseKnownHosts([]string{"other.test " + publicOf(newSigner(b)), host + " " + publicOf(o.signer)})
	if err != nil {
		b.Fatal(err)
	}
	sandbox := newSigner(b)
	client.Auth = []ssh.AuthMethod{ssh.PublicKeys(sandbox)}
	p := &inject.Projection{SSH: &inject.SSHLogin{Username: "git", Signer: o.user, SandboxKeys: []ssh.PublicKey{sandbox.PublicKey()}, KnownHosts: known}}
	signers, err := ca.HostSigners(host, 22)
	if err != nil {
		b.Fatal(err)
	}
	client.HostKeyCallback, client.HostKeyAlgorithms = ssh.FixedHostKey(signers[1].PublicKey()), []string{ssh.KeyAlgoED25519}
	options := Options{HostSigners: ca.HostSigners, Allow: func(policy.SSHRequest) bool { return true }}
	return benchBed{listenAll(b, func(c net.Conn) {
		_ = Serve(b.Context(), &wire.Session{
			Client: c, Host: host, Port: 22, Dial: o.dial, Opened: func(net.Conn) {},
			Credential: func(context.Context) (*inject.Projection, error) { return p, nil },
		}, options)
	}), client}
}

// relayed is the plain relay.
func relayed(b *testing.B) benchBed {
	o, client := pipeOrigin(b)
	hostSigner := newSigner(b)
	client.HostKeyCallback, client.HostKeyAlgorithms = ssh.FixedHostKey(hostSigner.PublicKey()), []string{ssh.KeyAlgoED25519}
	return benchBed{listenAll(b, func(c net.Conn) { plainRelay(o, hostSigner, c) }), client}
}

func plainRelay(o *origin, hostSigner ssh.Signer, c net.Conn) {
	config := &ssh.ServerConfig{PublicKeyCallback: func(ssh.ConnMetadata, ssh.PublicKey) (*ssh.Permissions, error) { return &ssh.Permissions{}, nil }}
	config.AddHostKey(hostSigner)
	conn, chans, reqs, err := ssh.NewServerConn(c, config)
	if err != nil {
		return
	}
	defer func() { _ = conn.Close() }()
	go ssh.DiscardRequests(reqs)
	raw, err := o.dial(context.Background())
	if err != nil {
		return
	}
	up, upChans, upReqs, err := ssh.NewClientConn(raw, host, &ssh.ClientConfig{
		User: "git", Auth: []ssh.AuthMethod{ssh.PublicKeys(o.user)}, HostKeyCallback: ssh.FixedHostKey(o.signer.PublicKey()),
	})
	if err != nil {
		return
	}
	defer func() { _ = up.Close() }()
	go ssh.DiscardRequests(upReqs)
	go func() {
		for n := range upChans {
			_ = n.Reject(ssh.Prohibited, "")
		}
	}()
	var wg sync.WaitGroup
	for n := range chans {
		there, tells, err := up.OpenChannel(n.ChannelType(), n.ExtraData())
		if err != nil {
			_ = n.Reject(ssh.ConnectionFailed, "")
			continue
		}
		here, asks, err := n.Accept()
		if err != nil {
			return
		}
		wg.Go(func() { relayRequests(there, asks); _ = there.Close() })
		wg.Go(func() {
			var out sync.WaitGroup
			out.Go(func() { _, _ = io.Copy(here, there) })
			out.Go(func() { _, _ = io.Copy(here.Stderr(), there.Stderr()) })
			relayRequests(here, tells)
			out.Wait()
			_ = here.Close()
		})
		wg.Go(func() { _, _ = io.Copy(there, here); _ = there.CloseWrite() })
	}
	wg.Wait()
}

func relayRequests(to ssh.Channel, from <-chan *ssh.Request) {
	for r := range from {
		ok, _ := to.SendRequest(r.Type, r.WantReply, r.Payload)
		_ = r.Reply(ok, nil)
	}
}

func (d benchBed) session(b *testing.B) (*ssh.Client, *ssh.Session) {
	c, err := ssh.Dial("tcp", d.addr, d.client)
	if err != nil {
		b.Fatal(err)
	}
	s, err := c.NewSession()
	if err != nil {
		b.Fatal(err)
	}
	return c, s
}

// BenchmarkSession is a whole session: connect, log in, run a command, get its status.
func BenchmarkSession(b *testing.B) {
	for name, bed := range map[string]func(*testing.B) benchBed{"bridge": bridged, "plain relay": relayed} {
		b.Run(name, func(b *testing.B) {
			d := bed(b)
			b.ReportAllocs()
			for b.Loop() {
				c, s := d.session(b)
				if err := s.Run("true"); err != nil {
					b.Fatal(err)
				}
				_ = c.Close()
			}
		})
	}
}

// BenchmarkBytes is 64 MiB through one session and back.
func BenchmarkBytes(b *testing.B) {
	const size = 64 << 20
	for name, bed := range map[string]func(*testing.B) benchBed{"bridge": bridged, "plain relay": relayed} {
		b.Run(name, func(b *testing.B) {
			d := bed(b)
			b.SetBytes(2 * size)
			for b.Loop() {
				c, s := d.session(b)
				in, err := s.StdinPipe()
				if err != nil {
					b.Fatal(err)
				}
				out, err := s.StdoutPipe()
				if err != nil {
					b.Fatal(err)
				}
				if err := s.Start("cat"); err != nil {
					b.Fatal(err)
				}
				go func() {
					_, _ = io.CopyN(in, zeros{}, size)
					_ = in.Close()
				}()
				if n, err := io.Copy(io.Discard, out); n != size || err != nil {
					b.Fatal(n, err)
				}
				if err := s.Wait(); err != nil {
					b.Fatal(err)
				}
				_ = c.Close()
			}
		})
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { return len(p), nil }
