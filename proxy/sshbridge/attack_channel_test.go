package sshbridge

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/egressd/egressd/policy"
)

func payload(v any) []byte { return ssh.Marshal(v) }

type oneString struct{ S string }

// session is a channel of a logged-in client.
func (r *rig) session() (ssh.Channel, <-chan *ssh.Request) {
	r.t.Helper()
	return openSession(r.t, r.client())
}

func openSession(t testing.TB, c *ssh.Client) (ssh.Channel, <-chan *ssh.Request) {
	t.Helper()
	ch, reqs, err := c.OpenChannel("session", nil)
	if err != nil {
		t.Fatal(err)
	}
	return ch, reqs
}

// TestAttack_E03_agent_forwarding: agents and X11 are refused, whoever asks, whatever the
// policy.
func TestAttack_E03_agent_forwarding(t *testing.T) {
	t.Run("requests", func(t *testing.T) {
		o := newOrigin(t)
		ch, reqs := o.rig().session()
		go ssh.DiscardRequests(reqs)
		for _, name := range []string{"auth-agent-req@openssh.com", "auth-agent-req", "x11-req"} {
			for _, p := range [][]byte{nil, {0}, bytes.Repeat([]byte{0xff}, 100)} {
				if ok, err := ch.SendRequest(name, true, p); ok || err != nil {
					t.Errorf("%s: %v %v", name, ok, err)
				}
			}
		}
		if ok, err := ch.SendRequest("shell", true, nil); !ok || err != nil {
			t.Errorf("an honest request after them: %v %v", ok, err)
		}
		if got := o.seen(&o.requests); !slices.Equal(got, []string{"shell"}) {
			t.Errorf("the origin has seen %v", got)
		}
	})
	t.Run("channels that the origin opens", func(t *testing.T) {
		o := newOrigin(t)
		answers := make(chan error, 8)
		o.ready = func(c *ssh.ServerConn) {
			for _, kind := range []string{"auth-agent@openssh.com", "x11", "forwarded-tcpip", "session", "forwarded-streamlocal@openssh.com"} {
				_, _, err := c.OpenChannel(kind, nil)
				answers <- err
			}
		}
		r := o.rig()
		c := r.client()
		opened := c.HandleChannelOpen("auth-agent@openssh.com")
		for range 5 {
			if refused, ok := (<-answers).(*ssh.OpenChannelError); !ok || refused.Reason != ssh.Prohibited { //nolint:errorlint // what it gives
				t.Errorf("answer %v", refused)
			}
		}
		select {
		case <-opened:
			t.Error("a channel came to the sandbox")
		default:
		}
	})
	t.Run("ssh -A -X", func(t *testing.T) {
		d := startSSHD(t)
		r := newRig(t, d)
		g := r.ssh("", "-A", "-X", host, "echo ${SSH_AUTH_SOCK:-none} ${DISPLAY:-none}")
		g.want(t, 0, "none none\n")
	})
}

// TestAttack_E05_forwarding: remote forwarding never, local forwarding by policy.
func TestAttack_E05_forwarding(t *testing.T) {
	o := newOrigin(t)
	r := o.rig(func(r *rig) {
		r.options.Allow = func(q policy.SSHRequest) bool { return q.Kind != policy.SSHForwarding }
	})
	c := r.client()
	for _, name := range []string{"tcpip-forward", "cancel-tcpip-forward", "streamlocal-forward@openssh.com", "cancel-streamlocal-forward@openssh.com", "no-such@x"} {
		for _, p := range [][]byte{nil, {0, 0}, payload(oneString{"0.0.0.0"}), {0xff, 0xff, 0xff, 0xff}} {
			if ok, _, err := c.SendRequest(name, true, p); ok || err != nil {
				t.Errorf("%s: %v %v", name, ok, err)
			}
		}
	}
	forward := payload(struct {
		Host     string
		Port     uint32
		From     string
		FromPort uint32
	}{"127.0.0.1", 80, "127.0.0.1", 1})
	for kind, p := range map[string][]byte{
		"direct-tcpip": forward, "direct-streamlocal@openssh.com": payload(oneString{"/run/x"}), "tun@openssh.com": nil, "x11": nil,
		"auth-agent@openssh.com": nil, "forwarded-tcpip": forward, "": nil,
	} {
		if _, _, err := c.OpenChannel(kind, p); err == nil {
			t.Errorf("%q is open", kind)
		}
	}
	if got := append(o.seen(&o.globals), o.seen(&o.channels)...); len(got) != 0 {
		t.Errorf("the origin has seen %v", got)
	}
	t.Run("allowed", func(t *testing.T) {
		o := newOrigin(t)
		c := o.rig().client()
		for _, p := range [][]byte{nil, forward[:7], payload(struct {
			Host     string
			Port     uint32
			From     string
			FromPort uint32
		}{"a\nb", 80, "", 0})} {
			if _, _, err := c.OpenChannel("direct-tcpip", p); err == nil {
				t.Errorf("%q is open", p)
			}
		}
		ch, reqs, err := c.OpenChannel("direct-tcpip", forward)
		if err != nil {
			t.Fatal(err)
		}
		go ssh.DiscardRequests(reqs)
		if ok, err := ch.SendRequest("exec", true, payload(oneString{"id"})); ok || err != nil {
			t.Errorf("a command in it: %v %v", ok, err)
		}
		if _, err := ch.Write([]byte("through")); err != nil {
			t.Fatal(err)
		}
		_ = ch.CloseWrite()
		if b, err := io.ReadAll(ch); string(b) != "through" || err != nil {
			t.Errorf("%q, %v", b, err)
		}
	})
	t.Run("OpenSSH", func(t *testing.T) {
		d := startSSHD(t)
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = ln.Close() }()
		go func() {
			if c, err := ln.Accept(); err == nil {
				_, _ = c.Write([]byte("from inside\n"))
				_ = c.Close()
			}
		}()
		for _, allowed := range []bool{false, true} {
			r := newRig(t, d, func(r *rig) {
				r.options.Allow = func(q policy.SSHRequest) bool { return allowed || q.Kind != policy.SSHForwarding }
			})
			g := r.ssh("", "-W", ln.Addr().String(), host)
			if (g.stdout == "from inside\n") != allowed {
				t.Errorf("allowed %v: %+v", allowed, g)
			}
			if g := r.ssh("", "-o", "ExitOnForwardFailure=yes", "-R", freePort(t)+":127.0.0.1:1", host, "echo in"); g.status != 255 || g.stdout != "" {
				t.Errorf("-R: %+v", g)
			}
		}
	})
}

// TestAttack_E06_requests: what policy refuses, what is malformed, and what nobody knows
// does not reach the origin.
func TestAttack_E06_requests(t *testing.T) {
	t.Run("policy decides on each", func(t *testing.T) {
		o := newOrigin(t)
		r := o.rig(func(r *rig) {
			r.options.Allow = func(q policy.SSHRequest) bool {
				return q == policy.SSHRequest{Kind: policy.SSHExec, Text: "git-upload-pack 'a.git'"}
			}
		})
		c := r.client()
		refused := []struct {
			kind string
			p    []byte
		}{
			{"shell", nil}, {"exec", payload(oneString{"id"})}, {"subsystem", payload(oneString{"sftp"})},
			{"exec", payload(oneString{"git-upload-pack 'a.git'; id"})}, {"exec", payload(oneString{"git-upload-pack 'a.git'\x00"})},
			{"exec", append(payload(oneString{"git-upload-pack 'a.git'"}), 'x')}, {"exec", nil}, {"exec", []byte{0, 0, 1, 0}},
			{"shell", []byte("x")}, {"exec", payload(oneString{strings.Repeat("x", maxCommand+1)})}, {"EXEC", payload(oneString{"git-upload-pack 'a.git'"})},
		}
		for i := 0; i < len(refused); i += 4 {
			ch, reqs := openSession(t, c)
			go ssh.DiscardRequests(reqs)
			for _, q := range refused[i:min(i+4, len(refused))] {
				if ok, err := ch.SendRequest(q.kind, true, q.p); ok || err != nil {
					t.Errorf("%s %.40q: %v %v", q.kind, q.p, ok, err)
				}
				_, _ = ch.SendRequest(q.kind, false, q.p)
			}
			_ = ch.Close()
		}
		ch, reqs := openSession(t, c)
		go ssh.DiscardRequests(reqs)
		if ok, err := ch.SendRequest("exec", true, payload(oneString{"git-upload-pack 'a.git'"})); !ok || err != nil {
			t.Errorf("the one that is allowed: %v %v", ok, err)
		}
		for _, kind := range []string{"exec", "shell"} { // one per session
			if ok, _ := ch.SendRequest(kind, true, payload(oneString{"git-upload-pack 'a.git'"})); ok {
				t.Errorf("a second %s in one session", kind)
			}
		}
		if got := o.seen(&o.requests); !slices.Equal(got, []string{"exec"}) {
			t.Errorf("the origin has seen %v", got)
		}
	})
	t.Run("environment", func(t *testing.T) {
		type env struct{ Name, Value string }
		for e, want := range map[env]bool{
			{"LANG", "C"}: true, {"LC_ALL", "de_DE.UTF-8"}: true, {"GIT_PROTOCOL", "version=2"}: true, {"TERM", "xterm"}: true, {"LC_", ""}: true, {"OWN_X", "1"}: true,
			{"LD_PRELOAD", "/x"}: false, {"GIT_PROXY_COMMAND", "x"}: false, {"GIT_SSH_COMMAND", "x"}: false, {"PATH", "x"}: false, {"BASH_ENV", "x"}: false,
			{"lang", "C"}: false, {"LANG=x", "C"}: false, {"LC_A=B", "C"}: false, {"", "C"}: false, {"LANG", "a\nb"}: false, {"LANG", "a\x1b[0m"}: false,
			{"LANG", strings.Repeat("x", maxEnvValue+1)}: false, {"LC_" + strings.Repeat("x", 100), ""}: false, {"OWN", "1"}: false, {"LC_A B", "C"}: false, {"LC_A\x00", "C"}: false,
		} {
			if got := envAllowed(payload(e), []string{"OWN_*"}); got != want {
				t.Errorf("%.60q: %v", e, got)
			}
		}
		for _, p := range [][]byte{nil, {0, 0, 0, 4, 'L'}, append(payload(env{"LANG", "C"}), 'x')} {
			if envAllowed(p, nil) {
				t.Errorf("%q", p)
			}
		}
	})
	t.Run("malformed and unknown", func(t *testing.T) {
		o := newOrigin(t)
		ch, reqs := o.rig().session()
		go ssh.DiscardRequests(reqs)
		pty := payload(struct {
			Term       string
			C, R, W, H uint32
			Modes      string
		}{"x", 1, 1, 1, 1, "\x01\x00"})
		for _, q := range []struct {
			kind string
			p    []byte
		}{
			{"pty-req", nil}, {"pty-req", pty}, {"window-change", []byte("x")}, {"signal", nil}, {"signal", payload(oneString{"KILL\n"})}, {"break", nil},
			{"eow@openssh.com", []byte("x")}, {"exit-status", []byte{0, 0, 0, 1}}, {"exit-signal", nil}, {"xon-xoff", []byte{1}}, {"keepalive@openssh.com", nil},
			{"hostkeys-00@openssh.com", nil}, {"", nil}, {"no-such", nil},
		} {
			if ok, err := ch.SendRequest(q.kind, true, q.p); ok || err != nil {
				t.Errorf("%s %q: %v %v", q.kind, q.p, ok, err)
			}
		}
		if got := o.seen(&o.requests); len(got) != 0 {
			t.Errorf("the origin has seen %v", got)
		}
	})
}

// TestRequests_pass: what is well-formed arrives as it was sent, in its order.
func TestRequests_pass(t *testing.T) {
	o := newOrigin(t)
	type got struct {
		kind string
		p    []byte
	}
	seen := make(chan got, 32)
	o.session = func(ch ssh.Channel, reqs <-chan *ssh.Request) {
		for r := range reqs {
			seen <- got{r.Type, r.Payload}
			_ = r.Reply(true, nil)
			if r.Type != "eow@openssh.com" {
				continue
			}
			_, _ = ch.SendRequest("xon-xoff", false, []byte{1})
			_, _ = ch.SendRequest("xon-xoff", false, []byte{1, 2}) // malformed
			_, _ = ch.SendRequest("no-such", false, nil)
			_, _ = ch.SendRequest("auth-agent-req@openssh.com", true, nil)
			ok, err := ch.SendRequest("keepalive@openssh.com", true, nil)
			seen <- got{fmt.Sprint("alive ", ok, err), nil}
			_, _ = ch.SendRequest("eow@openssh.com", false, nil)
			_, _ = ch.Write(bytes.Repeat([]byte("o"), 1<<20))
			_, _ = ch.Stderr().Write([]byte("err"))
			_, _ = ch.SendRequest("exit-signal", false, payload(struct {
				Name string
				Core bool
				M, L string
			}{"SEGV", true, "a\x1b[2Jb\nc", "en"}))
			_ = ch.Close()
		}
	}
	ch, reqs := o.rig().session()
	pty := payload(struct {
		Term       string
		C, R, W, H uint32
		Modes      string
	}{"xterm", 80, 24, 0, 0, "\x35\x00\x00\x00\x01\x80\x00\x00\x96\x00\x00"})
	sent := []got{
		{"env", payload(struct{ N, V string }{"LANG", "C"})}, {"pty-req", pty}, {"shell", nil}, {"window-change", make([]byte, 16)},
		{"signal", payload(oneString{"INT"})}, {"signal", payload(oneString{"x@y"})}, {"break", []byte{0, 0, 1, 0}}, {"eow@openssh.com", nil},
	}
	for _, q := range sent {
		if ok, err := ch.SendRequest(q.kind, q.kind != "eow@openssh.com", q.p); err != nil || !ok && q.kind != "eow@openssh.com" {
			t.Errorf("%s: %v %v", q.kind, ok, err)
		}
	}
	for _, want := range append(sent, got{"alive false<nil>", nil}) {
		if g := <-seen; g.kind != want.kind && !strings.HasPrefix(g.kind, "alive") || !bytes.Equal(g.p, want.p) {
			t.Errorf("%s %q, want %s %q", g.kind, g.p, want.kind, want.p)
		}
	}
	stderr := make(chan string, 1)
	go func() {
		b, _ := io.ReadAll(ch.Stderr())
		stderr <- string(b)
	}()
	var order []string
	done := make(chan struct{})
	go func() {
		defer close(done)
		for r := range reqs {
			order = append(order, fmt.Sprintf("%s %q", r.Type, r.Payload))
		}
	}()
	b, err := io.ReadAll(ch)
	if len(b) != 1<<20 || err != nil {
		t.Errorf("%d bytes, %v", len(b), err)
	}
	if e := <-stderr; e != "err" {
		t.Errorf("stderr %q", e)
	}
	<-done
	want := []string{`xon-xoff "\x01"`, `eow@openssh.com ""`, fmt.Sprintf("exit-signal %q", payload(struct {
		Name string
		Core bool
		M, L string
	}{"SEGV", true, "a[2Jb c", ""}))}
	if !slices.Equal(order, want) {
		t.Errorf("%q", order)
	}
}

// TestAttack_E11_channels: no more channels than allowed, and they can be used again.
func TestAttack_E11_channels(t *testing.T) {
	o := newOrigin(t)
	c := o.rig().client()
	var open []ssh.Channel
	for range MaxChannels {
		ch, reqs := openSession(t, c)
		go ssh.DiscardRequests(reqs)
		open = append(open, ch)
	}
	for range 50 {
		_, _, err := c.OpenChannel("session", nil)
		if refused, ok := err.(*ssh.OpenChannelError); !ok || refused.Reason != ssh.ResourceShortage { //nolint:errorlint // what it gives
			t.Fatalf("%v", err)
		}
	}
	if n := len(o.seen(&o.channels)); n != MaxChannels {
		t.Errorf("%d channels upstream", n)
	}
	for _, ch := range open {
		_ = ch.Close()
	}
	for i := 0; ; i++ {
		ch, _, err := c.OpenChannel("session", nil)
		if err == nil {
			_ = ch.Close()
			break
		}
		if i > 500 {
			t.Fatal("closed channels are still counted")
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func FuzzRequests(f *testing.F) {
	for _, p := range [][]byte{
		nil, payload(oneString{"id"}), payload(struct{ A, B string }{"LANG", "C"}), payload(struct {
			Term       string
			C, R, W, H uint32
			Modes      string
		}{"xterm", 80, 24, 0, 0, "\x01\x00\x00\x00\x01\x00"}), payload(struct {
			N    string
			C    bool
			M, L string
		}{"TERM", false, "m", ""}), {0, 0, 0, 1}, bytes.Repeat([]byte{0xff}, 40),
	} {
		f.Add(p)
	}
	f.Fuzz(func(t *testing.T, p []byte) {
		for _, kind := range []string{"exec", "subsystem", "shell"} {
			q, err := asked(kind, p)
			if err != nil {
				continue
			}
			if again := payload(oneString{q.Text}); kind != "shell" && !bytes.Equal(again, p) || strings.ContainsRune(q.Text, 0) {
				t.Fatalf("%s: policy sees %q of %q", kind, q.Text, p)
			}
		}
		if clean, err := exitSignal(p); err == nil {
			if bytes.ContainsAny(clean[4:], "\x1b\x07") {
				t.Fatalf("%q", clean)
			}
			if again, err := exitSignal(clean); err != nil || !bytes.Equal(again, clean) {
				t.Fatalf("%q, then %q", clean, again)
			}
		}
		_ = checkPty(p)
		_ = checkSignal(p)
		_ = checkForward(p)
		_ = envAllowed(p, []string{"X*"})
	})
}

func FuzzKexWatch(f *testing.F) {
	f.Add(kexInit(f, strictClient), byte(3))
	f.Add([]byte("SSH-2.0-x\r\n\x00\x00\x00\x0c\x04\x14"), byte(1))
	f.Fuzz(func(t *testing.T, b []byte, step byte) {
		w := watchKex(&scripted{data: slices.Clone(b), step: int(step)}, strictClient)
		got, _ := io.ReadAll(io.LimitReader(w, 1<<20))
		if !bytes.HasPrefix(b, got) {
			t.Fatalf("%q of %q", got, b)
		}
		if w.strict.Load() && !bytes.Contains(b, []byte(strictClient)) {
			t.Fatal("strict, out of nothing")
		}
	})
}
