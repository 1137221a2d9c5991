package sshbridge

import (
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/egressd/egressd/inject"
	"github.com/egressd/egressd/policy"
	"github.com/egressd/egressd/proxy/wire"
)

func TestServe_needs_its_options(t *testing.T) {
	for _, o := range []Options{{}, {Allow: func(policy.SSHRequest) bool { return true }}, {HostSigners: func(string, uint16) ([]ssh.Signer, error) { return nil, nil }}} {
		if err := Serve(t.Context(), &wire.Session{}, o); err == nil {
			t.Error("it serves")
		}
	}
	o, err := Options{HostSigners: func(string, uint16) ([]ssh.Signer, error) { return nil, nil }, Allow: func(policy.SSHRequest) bool { return false }, MaxChannels: 1000, RekeyBytes: 1}.withDefaults()
	if err != nil || o.MaxChannels != MaxChannels || o.RekeyBytes != leastRekey || o.KeepAlive != defaultAlive {
		t.Errorf("%+v, %v", o, err)
	}
}

// TestServe_order: the sandbox is let in after the login upstream, Opened is called
// between, and only when both are in.
func TestServe_order(t *testing.T) {
	o := newOrigin(t)
	hold := make(chan struct{})
	o.config.PublicKeyCallback = func(ssh.ConnMetadata, ssh.PublicKey) (*ssh.Permissions, error) {
		<-hold
		return &ssh.Permissions{}, nil
	}
	r := o.rig()
	in := make(chan error, 1)
	go func() {
		c, err := r.tryClient(r.clientConfig())
		if err == nil {
			_ = c.Close()
		}
		in <- err
	}()
	select {
	case err := <-in:
		t.Errorf("in before the login upstream: %v", err)
	case <-time.After(300 * time.Millisecond):
	}
	r.mu.Lock()
	if r.opened != 0 {
		t.Error("opened already")
	}
	r.mu.Unlock()
	close(hold)
	if err := <-in; err != nil {
		t.Error(err)
	}
	if err := r.ended(); err != nil {
		t.Error(err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.opened != 1 {
		t.Errorf("opened %d times", r.opened)
	}
}

func TestServe_host_keys_that_fail(t *testing.T) {
	r := newOrigin(t).rig(func(r *rig) {
		r.options.HostSigners = func(string, uint16) ([]ssh.Signer, error) { return nil, errors.New("no key") }
	})
	dialRaw(t, r.addr)
	if err := r.ended(); err == nil || !strings.Contains(err.Error(), "no key") {
		t.Error(err)
	}
}

// TestServe_panics: a panic in what the proxy hands in ends the connection alone.
func TestServe_panics(t *testing.T) {
	for name, change := range map[string]func(*rig){
		"policy":      func(r *rig) { r.options.Allow = func(policy.SSHRequest) bool { panic("fake") } },
		"host keys":   func(r *rig) { r.options.HostSigners = func(string, uint16) ([]ssh.Signer, error) { panic("fake") } },
		"credentials": func(r *rig) { r.credential = func(context.Context) (*inject.Projection, error) { panic("fake") } },
	} {
		t.Run("E11 "+name, func(t *testing.T) {
			r := newOrigin(t).rig(change)
			c, err := r.tryClient(r.clientConfig())
			if err == nil {
				s, err := c.NewSession()
				if err == nil {
					err = s.Run("x")
				}
				if err == nil {
					t.Error("it went on")
				}
				_ = c.Close()
			}
			_ = r.ended()
		})
	}
}

// TestServe_ends with either end, with its context, and with silence.
func TestServe_ends(t *testing.T) {
	t.Run("the proxy cuts upstream", func(t *testing.T) {
		o := newOrigin(t)
		raw := make(chan net.Conn, 1)
		r := o.rig(func(r *rig) {
			r.dial = func(ctx context.Context) (net.Conn, error) {
				c, err := o.dial(ctx)
				raw <- c
				return c, err
			}
		})
		ch, _ := r.session()
		start := time.Now()
		_ = (<-raw).Close()
		_, _ = io.Copy(io.Discard, ch)
		if err := r.ended(); err != nil || time.Since(start) > time.Second {
			t.Errorf("%v after %v", err, time.Since(start))
		}
	})
	t.Run("the sandbox goes while its command runs", func(t *testing.T) {
		o := newOrigin(t)
		gone := make(chan struct{})
		o.session = func(ch ssh.Channel, reqs <-chan *ssh.Request) {
			defer close(gone)
			for q := range reqs {
				_ = q.Reply(true, nil)
			}
		}
		r := o.rig()
		c := r.client()
		s, err := c.NewSession()
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Start("sleep"); err != nil {
			t.Fatal(err)
		}
		start := time.Now()
		_ = c.Close()
		if err := r.ended(); err != nil || time.Since(start) > 2*time.Second {
			t.Errorf("%v after %v", err, time.Since(start))
		}
		<-gone
	})
	t.Run("the origin goes, and what it had sent arrives", func(t *testing.T) {
		const size = 3 << 20 // more than the window of one leg
		o := newOrigin(t)
		var conn *ssh.ServerConn
		ready := make(chan struct{})
		o.ready = func(c *ssh.ServerConn) { conn = c; close(ready) }
		o.session = func(ch ssh.Channel, reqs <-chan *ssh.Request) {
			for q := range reqs {
				_ = q.Reply(true, nil)
				_, _ = ch.Write(make([]byte, size))
				_, _ = ch.SendRequest("exit-status", false, []byte{0, 0, 0, 6})
				_ = ch.Close()
				<-ready
				_, _, _ = conn.SendRequest("keepalive@openssh.com", true, nil) // the answer says that all has been read
				_ = conn.Close()
			}
		}
		r := o.rig()
		s, err := r.client().NewSession()
		if err != nil {
			t.Fatal(err)
		}
		out, err := s.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Start("x"); err != nil {
			t.Fatal(err)
		}
		time.Sleep(300 * time.Millisecond)
		if n, err := io.Copy(io.Discard, out); n != size || err != nil {
			t.Errorf("%d bytes, %v", n, err)
		}
		var exit *ssh.ExitError
		if err := s.Wait(); !errors.As(err, &exit) || exit.ExitStatus() != 6 {
			t.Error(err)
		}
		if err := r.ended(); err != nil {
			t.Error(err)
		}
	})
	t.Run("one that reads nothing", func(t *testing.T) {
		o := newOrigin(t)
		o.session = func(ch ssh.Channel, reqs <-chan *ssh.Request) {
			go func() {
				for q := range reqs {
					_ = q.Reply(true, nil)
				}
			}()
			b := make([]byte, 1<<20)
			for {
				if _, err := ch.Write(b); err != nil {
					return
				}
			}
		}
		r := o.rig()
		c := r.client()
		s, err := c.NewSession()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := s.StdoutPipe(); err != nil {
			t.Fatal(err)
		}
		if err := s.Start("flood"); err != nil {
			t.Fatal(err)
		}
		time.Sleep(200 * time.Millisecond)
		s2, err := c.NewSession() // the other channels live
		if err != nil {
			t.Fatal(err)
		}
		_ = s2.Close()
		_ = c.Close()
		if err := r.ended(); err != nil {
			t.Error(err)
		}
	})
	t.Run("an end that gives no sign of life", func(t *testing.T) {
		o := newOrigin(t)
		r := o.rig(func(r *rig) { r.options.KeepAlive = 50 * time.Millisecond })
		near, far := net.Pipe()
		up, err := net.Dial("tcp", r.addr)
		if err != nil {
			t.Fatal(err)
		}
		stop := make(chan struct{})
		go func() { _, _ = io.Copy(up, far) }()
		go func() {
			b := make([]byte, 4096)
			for {
				n, err := up.Read(b)
				if err != nil {
					_ = far.Close()
					return
				}
				select {
				case <-stop: // frozen: nothing arrives any more
					continue
				default:
				}
				_, _ = far.Write(b[:n])
			}
		}()
		config := r.clientConfig()
		config.User, config.HostKeyCallback = "x", ssh.FixedHostKey(mustSigners(t, r)[1].PublicKey())
		config.HostKeyAlgorithms = []string{ssh.KeyAlgoED25519}
		c, chans, reqs, err := ssh.NewClientConn(near, r.addr, config)
		if err != nil {
			t.Fatal(err)
		}
		go ssh.DiscardRequests(reqs)
		go func() {
			for range chans {
			}
		}()
		time.Sleep(500 * time.Millisecond) // it answers and lives
		select {
		case err := <-r.served:
			t.Fatalf("ended while it answered: %v", err)
		default:
		}
		close(stop)
		start := time.Now()
		if err := r.ended(); err != nil || time.Since(start) > leastSilence+3*time.Second {
			t.Errorf("%v after %v", err, time.Since(start))
		}
		_ = c.Close()
	})
	t.Run("nothing open for the idle limit", func(t *testing.T) {
		o := newOrigin(t)
		r := o.rig(func(r *rig) { r.idle = 300 * time.Millisecond })
		c := r.client()
		if err := r.ended(); err != nil {
			t.Error(err)
		}
		_ = c.Close()
	})
	t.Run("a channel that is open is not idle", func(t *testing.T) {
		o := newOrigin(t)
		r := o.rig(func(r *rig) { r.idle = 100 * time.Millisecond })
		ch, reqs := r.session()
		go ssh.DiscardRequests(reqs)
		time.Sleep(700 * time.Millisecond)
		if ok, err := ch.SendRequest("shell", true, nil); !ok || err != nil {
			t.Errorf("%v %v", ok, err)
		}
	})
}

func mustSigners(t testing.TB, r *rig) []ssh.Signer {
	t.Helper()
	s, err := r.ca.HostSigners(r.host, 22)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// TestServe_exit_status: it comes after the output and before the close, whatever the
// origin's order and however slow the sandbox reads.
func TestServe_exit_status(t *testing.T) {
	const size = 5 << 20
	for name, after := range map[string]func(ch ssh.Channel){
		"status, then end": func(ch ssh.Channel) {
			_, _ = ch.SendRequest("exit-status", false, []byte{0, 0, 0, 9})
			_ = ch.CloseWrite()
			_ = ch.Close()
		},
		"end, then status": func(ch ssh.Channel) {
			_ = ch.CloseWrite()
			time.Sleep(50 * time.Millisecond)
			_, _ = ch.SendRequest("exit-status", false, []byte{0, 0, 0, 9})
			_ = ch.Close()
		},
		"status, then close": func(ch ssh.Channel) {
			_, _ = ch.SendRequest("exit-status", false, []byte{0, 0, 0, 9})
			_ = ch.Close()
		},
	} {
		t.Run(name, func(t *testing.T) {
			o := newOrigin(t)
			o.session = func(ch ssh.Channel, reqs <-chan *ssh.Request) {
				for q := range reqs {
					_ = q.Reply(true, nil)
					_, _ = ch.Write(make([]byte, size))
					after(ch)
				}
			}
			r := o.rig()
			ch, reqs := r.session()
			if ok, err := ch.SendRequest("exec", true, payload(oneString{"x"})); !ok || err != nil {
				t.Fatal(ok, err)
			}
			_ = ch.CloseWrite()
			n := 0
			b := make([]byte, 64<<10)
			for {
				m, err := ch.Read(b)
				n += m
				if err != nil {
					break
				}
				if n%(1<<20) < m {
					time.Sleep(30 * time.Millisecond)
				}
			}
			q, ok := <-reqs
			if n != size || !ok || q.Type != "exit-status" || q.Payload[3] != 9 {
				t.Errorf("%d bytes, %v %v", n, ok, q)
			}
		})
	}
}
