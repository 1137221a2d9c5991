package sshbridge

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/egressd/egressd/inject"
	"github.com/egressd/egressd/internal/certs"
	"github.com/egressd/egressd/policy"
	"github.com/egressd/egressd/proxy/wire"
)

const host = "good.test"

// tool finds a program that the tests cannot do without.
func tool(t testing.TB, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		for _, dir := range []string{"/usr/sbin/", "/usr/lib/openssh/"} {
			if _, err := os.Stat(dir + name); err == nil {
				return dir + name
			}
		}
		t.Fatalf("%s is missing: run scripts/deps.sh", name)
	}
	return path
}

func run(t testing.TB, name string, args ...string) string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), tool(t, name), args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %v: %v\n%s", name, args, err, out)
	}
	return string(out)
}

func write(t testing.TB, file, text string) string {
	t.Helper()
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// keygen makes a key pair with ssh-keygen and returns the private one's file.
func keygen(t testing.TB, file string, args ...string) string {
	t.Helper()
	run(t, "ssh-keygen", append([]string{"-q", "-N", "", "-C", "test", "-f", file}, args...)...)
	return file
}

func publicLine(t testing.TB, file string) string {
	t.Helper()
	b, err := os.ReadFile(file + ".pub")
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(b))
}

func parsePublic(t testing.TB, line string) ssh.PublicKey {
	t.Helper()
	key, _, _, _, err := ssh.ParseAuthorizedKey([]byte(line))
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func parsePrivate(t testing.TB, file, passphrase string) ssh.Signer {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var s ssh.Signer
	if passphrase == "" {
		s, err = ssh.ParsePrivateKey(b)
	} else {
		s, err = ssh.ParsePrivateKeyWithPassphrase(b, []byte(passphrase))
	}
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func newSigner(t testing.TB) ssh.Signer {
	t.Helper()
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	s, err := ssh.NewSignerFromSigner(key)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// sshd is a real OpenSSH server on loopback that lets root in with userKey.
type sshd struct {
	dir, addr string
	userKey   string // private key file
	hostKey   string // private key file, Ed25519
	log       string
}

// startSSHD adds lines of config in front of its own, since the first one counts.
func startSSHD(t testing.TB, config ...string) *sshd {
	t.Helper()
	dir := t.TempDir()
	d := &sshd{dir: dir, userKey: keygen(t, dir+"/user", "-t", "ed25519"), hostKey: keygen(t, dir+"/host_ed25519", "-t", "ed25519"), log: dir + "/sshd.log"}
	write(t, dir+"/authorized_keys", publicLine(t, d.userKey)+"\n")
	_ = os.MkdirAll("/run/sshd", 0o755)
	port := freePort(t)
	d.addr = net.JoinHostPort("127.0.0.1", port)
	lines := append(config,
		"Port "+port, "ListenAddress 127.0.0.1", "PidFile none", "StrictModes no", "UsePAM no", "PermitRootLogin prohibit-password",
		"PasswordAuthentication no", "AuthorizedKeysFile "+dir+"/authorized_keys", "HostKey "+d.hostKey, "AcceptEnv LANG LC_* GIT_PROTOCOL EVIL LD_PRELOAD",
		"Subsystem sftp "+tool(t, "sftp-server"), "LogLevel VERBOSE", "MaxStartups 100", "PrintMotd no", "PrintLastLog no")
	conf := write(t, dir+"/sshd_config", strings.Join(lines, "\n")+"\n")
	cmd := exec.Command(tool(t, "sshd"), "-D", "-f", conf, "-E", d.log)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		_ = cmd.Wait()
		if t.Failed() {
			b, _ := os.ReadFile(d.log)
			t.Logf("sshd:\n%s", tail(string(b), 4000))
		}
	})
	for range 200 {
		if c, err := net.DialTimeout("tcp", d.addr, time.Second); err == nil {
			_ = c.Close()
			return d
		}
		time.Sleep(20 * time.Millisecond)
	}
	b, _ := os.ReadFile(d.log)
	t.Fatalf("sshd does not listen: %s", b)
	return nil
}

func tail(s string, n int) string { return s[max(0, len(s)-n):] }

func freePort(t testing.TB) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = ln.Close() }()
	_, port, err := net.SplitHostPort(ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	return port
}

// rig is a bridge on a listener, with one client key and everything allowed unless a test
// says otherwise.
type rig struct {
	t         testing.TB
	dir       string
	addr      string
	ca        *certs.SSHAuthority
	clientKey string // private key file of the sandbox

	// What the bridge works with; set before the first connection.
	host       string
	dial       func(ctx context.Context) (net.Conn, error)
	credential func(ctx context.Context) (*inject.Projection, error)
	options    Options
	idle       time.Duration
	handshake  time.Duration

	mu     sync.Mutex
	asked  []policy.SSHRequest
	errs   []error
	opened int
	served chan error
}

// newRig bridges to d; login is replaced by a test that has no sshd.
func newRig(t testing.TB, d *sshd, change ...func(*rig)) *rig {
	t.Helper()
	ca, err := certs.NewEphemeralSSH()
	if err != nil {
		t.Fatal(err)
	}
	r := &rig{t: t, dir: t.TempDir(), ca: ca, host: host, served: make(chan error, 256)}
	r.clientKey = keygen(t, r.dir+"/sandbox", "-t", "ed25519")
	r.options = Options{HostSigners: ca.HostSigners, Allow: func(policy.SSHRequest) bool { return true }}
	if d != nil {
		r.dial = dialer(d.addr)
		r.use(r.login("root", parsePrivate(t, d.userKey, ""), host+" "+publicLine(t, d.hostKey)))
	}
	for _, f := range change {
		f(r)
	}
	allow := r.options.Allow
	r.options.Allow = func(q policy.SSHRequest) bool {
		r.mu.Lock()
		r.asked = append(r.asked, q)
		r.mu.Unlock()
		return allow(q)
	}
	r.listen()
	return r
}

func dialer(addr string) func(context.Context) (net.Conn, error) {
	return func(ctx context.Context) (net.Conn, error) { return new(net.Dialer).DialContext(ctx, "tcp", addr) }
}

func (r *rig) login(user string, signer ssh.Signer, knownHosts ...string) func(context.Context) (*inject.Projection, error) {
	r.t.Helper()
	known, err := inject.ParseKnownHosts(knownHosts)
	if err != nil {
		r.t.Fatal(err)
	}
	p := &inject.Projection{SSH: &inject.SSHLogin{Username: user, Signer: signer, SandboxKeys: []ssh.PublicKey{parsePublic(r.t, publicLine(r.t, r.clientKey))}, KnownHosts: known}}
	return func(context.Context) (*inject.Projection, error) { return p, nil }
}

func (r *rig) listen() {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		r.t.Fatal(err)
	}
	r.addr = ln.Addr().String()
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			wg.Go(func() { r.serve(ctx, c) })
		}
	})
	r.t.Cleanup(func() {
		cancel()
		_ = ln.Close()
		wg.Wait()
	})
}

// use sets what connections from now on log in with.
func (r *rig) use(credential func(context.Context) (*inject.Projection, error)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.credential = credential
}

func (r *rig) serve(ctx context.Context, c net.Conn) {
	defer func() { _ = c.Close() }()
	r.mu.Lock()
	credential := r.credential
	r.mu.Unlock()
	s := &wire.Session{
		Client: c, Host: r.host, Port: 22, Dial: r.dial, Credential: credential,
		Opened:           func(net.Conn) { r.mu.Lock(); r.opened++; r.mu.Unlock() },
		HandshakeTimeout: r.handshake, IdleTimeout: r.idle,
	}
	err := Serve(ctx, s, r.options)
	r.mu.Lock()
	r.errs = append(r.errs, err)
	r.mu.Unlock()
	select {
	case r.served <- err:
	default:
	}
}

// ended waits for a connection to end and returns Serve's error.
func (r *rig) ended() error {
	r.t.Helper()
	select {
	case err := <-r.served:
		return err
	case <-time.After(30 * time.Second):
		r.t.Fatal("the connection does not end")
		return nil
	}
}

func (r *rig) requests() []policy.SSHRequest {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]policy.SSHRequest(nil), r.asked...)
}

// code is the word of a Refusal.
func code(err error) string {
	var ref *wire.Refusal
	if errors.As(err, &ref) {
		return ref.Code
	}
	return fmt.Sprint(err)
}

// config writes an ssh_config for real clients and returns its file. The destination's
// name is what they know; where they connect to is the bridge.
func (r *rig) config(lines ...string) string {
	r.t.Helper()
	h, port, err := net.SplitHostPort(r.addr)
	if err != nil {
		r.t.Fatal(err)
	}
	known := write(r.t, r.dir+"/known_hosts", r.ca.KnownHostsLine()+"\n")
	all := append(lines,
		"Host "+r.host, "  HostName "+h, "  Port "+port, "  HostKeyAlias "+r.host, "  CheckHostIP no", "  User anybody", "  IdentityFile "+r.clientKey, "  IdentitiesOnly yes",
		"  UserKnownHostsFile "+known, "  GlobalKnownHostsFile /dev/null", "  StrictHostKeyChecking yes", "  BatchMode yes", "  UpdateHostKeys yes")
	return write(r.t, r.dir+"/ssh_config", strings.Join(all, "\n")+"\n")
}

// result is what a program has done.
type result struct {
	stdout, stderr string
	status         int
}

// command runs a client program with the rig's configuration, `-F config` first.
func (r *rig) command(stdin string, name string, args ...string) result {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(r.t.Context(), 90*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, tool(r.t, name), args...)
	cmd.Dir = r.dir
	cmd.Env = append(os.Environ(), "HOME="+r.dir, "LC_ALL=C", "SSH_AUTH_SOCK=")
	var out, errs bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(stdin), &out, &errs
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		r.t.Fatalf("%s: %v", name, err)
	}
	return result{out.String(), errs.String(), cmd.ProcessState.ExitCode()}
}

// ssh runs `ssh -F config args…`.
func (r *rig) ssh(stdin string, args ...string) result {
	r.t.Helper()
	return r.command(stdin, "ssh", append([]string{"-F", r.config()}, args...)...)
}

// want checks a result.
func (g result) want(t testing.TB, status int, stdout string) {
	t.Helper()
	if g.status != status || g.stdout != stdout {
		t.Errorf("status %d, stdout %q (%d bytes); want %d, %q\nstderr: %s", g.status, tail(g.stdout, 300), len(g.stdout), status, tail(stdout, 300), tail(g.stderr, 2000))
	}
}

// client logs in with x/crypto/ssh.
func (r *rig) client() *ssh.Client {
	r.t.Helper()
	c, err := r.tryClient(&ssh.ClientConfig{Auth: []ssh.AuthMethod{ssh.PublicKeys(parsePrivate(r.t, r.clientKey, ""))}})
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { _ = c.Close() })
	return c
}

func (r *rig) tryClient(config *ssh.ClientConfig) (*ssh.Client, error) {
	r.t.Helper()
	signers, err := r.ca.HostSigners(r.host, 22)
	if err != nil {
		r.t.Fatal(err)
	}
	config.HostKeyCallback = ssh.FixedHostKey(signers[1].PublicKey())
	config.HostKeyAlgorithms = []string{ssh.KeyAlgoED25519}
	if config.User == "" {
		config.User = "anybody"
	}
	config.Timeout = 10 * time.Second
	return ssh.Dial("tcp", r.addr, config)
}
