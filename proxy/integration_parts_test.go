package proxy_test

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/tls"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"golang.org/x/crypto/ssh"

	"github.com/egressd/egressd/internal/testbed"
)

// Real servers, each on a port of 127.0.0.1 of its own. Whoever logs in is "app", with the
// canary as the password.

// tool also looks where Debian keeps servers.
func tool(t testing.TB, name string) string {
	t.Helper()
	found, _ := filepath.Glob("/usr/lib/postgresql/*/bin/" + name)
	slices.Sort(found)
	for _, p := range append(found, "/usr/sbin/"+name, "/usr/lib/openssh/"+name) {
		if _, err := os.Stat(p); err == nil {
			return p
		}
	}
	return testbed.Tool(t, name)
}

// fileOf writes a file of the test's own.
func fileOf(t testing.TB, name, text string) string {
	t.Helper()
	p := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(p, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return p
}

// started runs a server in the foreground until the test ends and waits until it listens.
func started(t testing.TB, port uint16, cmd *exec.Cmd) uint16 {
	t.Helper()
	var out output
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGQUIT)
		time.AfterFunc(2*time.Second, func() { _ = cmd.Process.Kill() })
		_ = cmd.Wait()
		if t.Failed() {
			t.Logf("%s:\n%.3000s", cmd.Path, out.String())
		}
	})
	for range 500 {
		if c, err := net.Dial("tcp4", fmt.Sprintf("127.0.0.1:%d", port)); err == nil {
			_ = c.Close()
			return port
		}
		time.Sleep(20 * time.Millisecond)
	}
	t.Fatalf("%s does not listen: %s", cmd.Path, out.String())
	return 0
}

type output struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.String()
}

func freePort(t testing.TB) uint16 {
	t.Helper()
	ln, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = ln.Close() }()
	return ln.Addr().(*net.TCPAddr).AddrPort().Port()
}

// pair is a certificate for name with its key, as files.
func pair(t testing.TB, ca *testbed.CA, name string) (cert, key string) {
	t.Helper()
	leaf := ca.Leaf(t, name)
	return fileOf(t, "cert.pem", testbed.CertPEM(leaf)), fileOf(t, "key.pem", testbed.KeyPEM(t, leaf))
}

// redisServer knows app and, with the password behind it, other. With a CA it speaks TLS.
func redisServer(t testing.TB, ca *testbed.CA, name string, more ...string) uint16 {
	t.Helper()
	port := freePort(t)
	lines := append([]string{"bind 127.0.0.1", `save ""`, "appendonly no", "dir " + t.TempDir(), "requirepass " + rand.Text(),
		"user app on >" + canary + " >" + canary2 + " ~* &* +@all"}, more...)
	if ca == nil {
		lines = append(lines, fmt.Sprint("port ", port))
	} else {
		cert, key := pair(t, ca, name)
		lines = append(lines, "port 0", fmt.Sprint("tls-port ", port), "tls-cert-file "+cert, "tls-key-file "+key, "tls-ca-cert-file "+ca.File(t))
		if !slices.ContainsFunc(more, func(s string) bool { return strings.HasPrefix(s, "tls-auth-clients") }) {
			lines = append(lines, "tls-auth-clients no")
		}
	}
	return started(t, port, exec.Command(tool(t, "redis-server"), fileOf(t, "redis.conf", strings.Join(lines, "\n")+"\n")))
}

// broker is a mosquitto that lets app in. With a CA it speaks TLS.
func broker(t testing.TB, ca *testbed.CA, name string, more ...string) uint16 {
	t.Helper()
	users := fileOf(t, "users", "")
	if out, err := exec.Command(tool(t, "mosquitto_passwd"), "-b", users, "app", canary).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	port := freePort(t)
	lines := []string{fmt.Sprintf("listener %d 127.0.0.1", port), "user root", "log_dest stdout"}
	if len(more) == 0 {
		lines = append(lines, "allow_anonymous false", "password_file "+users)
	}
	if ca != nil {
		cert, key := pair(t, ca, name)
		lines = append(lines, "certfile "+cert, "keyfile "+key, "cafile "+ca.File(t))
	}
	lines = append(lines, more...)
	return started(t, port, exec.Command(tool(t, "mosquitto"), "-c", fileOf(t, "mosquitto.conf", strings.Join(lines, "\n")+"\n")))
}

// microsocks and tinyproxy want a login.
func microsocks(t testing.TB, password string) uint16 {
	t.Helper()
	port := freePort(t)
	return started(t, port, exec.Command(tool(t, "microsocks"), "-i", "127.0.0.1", "-p", fmt.Sprint(port), "-u", "app", "-P", password))
}

func tinyproxy(t testing.TB, password string) uint16 {
	t.Helper()
	port := freePort(t)
	conf := fmt.Sprintf("Port %d\nListen 127.0.0.1\nTimeout 30\nMaxClients 50\nLogLevel Error\nBasicAuth app %s\n", port, password)
	return started(t, port, exec.Command(tool(t, "tinyproxy"), "-d", "-c", fileOf(t, "tinyproxy.conf", conf)))
}

// sshServer is OpenSSH's, with the key that lets root in and what known_hosts says of it.
type sshServer struct {
	port    uint16
	userKey string // PEM
	hostKey string // authorized_keys form
}

func startSSH(t testing.TB) *sshServer {
	t.Helper()
	dir := t.TempDir()
	d := &sshServer{port: freePort(t)}
	var public string
	d.userKey, public = newSSHKey(t)
	hostPEM, hostLine := newSSHKey(t)
	d.hostKey = hostLine
	host, keys := filepath.Join(dir, "host"), filepath.Join(dir, "authorized_keys")
	if err := errors.Join(os.WriteFile(host, []byte(hostPEM), 0o600), os.WriteFile(keys, []byte(public+"\n"), 0o600), os.MkdirAll("/run/sshd", 0o755)); err != nil {
		t.Fatal(err)
	}
	conf := fileOf(t, "sshd_config", strings.Join([]string{fmt.Sprint("Port ", d.port), "ListenAddress 127.0.0.1", "PidFile none", "StrictModes no", "UsePAM no",
		"PermitRootLogin prohibit-password", "PasswordAuthentication no", "AuthorizedKeysFile " + keys, "HostKey " + host, "MaxStartups 100",
		"AcceptEnv GIT_PROTOCOL", "PrintMotd no", "Subsystem sftp internal-sftp", "LogLevel VERBOSE"}, "\n")+"\n")
	started(t, d.port, exec.Command(tool(t, "sshd"), "-D", "-e", "-f", conf))
	return d
}

// newSSHKey is an Ed25519 key, private in OpenSSH's PEM and public as a line.
func newSSHKey(t testing.TB) (private, public string) {
	t.Helper()
	_, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	block, err := ssh.MarshalPrivateKey(key, "")
	if err != nil {
		t.Fatal(err)
	}
	signer, err := ssh.NewSignerFromKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(block)), strings.TrimSpace(string(ssh.MarshalAuthorizedKey(signer.PublicKey())))
}

// postgresServer lets app in by SCRAM, over TLS and without, with a certificate for name.
func postgresServer(t testing.TB, ca *testbed.CA, name string) uint16 {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "egd-int-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	u, err := user.Lookup("postgres")
	if err != nil {
		t.Fatal(err)
	}
	uid, _ := strconv.Atoi(u.Uid)
	gid, _ := strconv.Atoi(u.Gid)
	as := &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}}
	leaf := ca.Leaf(t, name)
	for file, text := range map[string]string{"s.crt": testbed.CertPEM(leaf), "s.key": testbed.KeyPEM(t, leaf), "hba": "local all postgres trust\nhost all app 127.0.0.1/32 scram-sha-256\n"} {
		p := filepath.Join(dir, file)
		if err := errors.Join(os.WriteFile(p, []byte(text), 0o600), os.Chown(p, uid, gid), os.Chown(dir, uid, gid)); err != nil {
			t.Fatal(err)
		}
	}
	data := filepath.Join(dir, "data")
	initdb := exec.Command(tool(t, "initdb"), "-D", data, "-U", "postgres", "-A", "trust", "-N", "-E", "UTF8", "--locale=C")
	initdb.Dir, initdb.SysProcAttr = dir, as
	if out, err := initdb.CombinedOutput(); err != nil {
		t.Fatalf("initdb: %v\n%s", err, out)
	}
	port := freePort(t)
	cmd := exec.Command(tool(t, "postgres"), "-D", data, "-k", dir, "-h", "127.0.0.1", "-p", fmt.Sprint(port), "-F", "-c", "hba_file="+dir+"/hba",
		"-c", "ssl=on", "-c", "ssl_cert_file="+dir+"/s.crt", "-c", "ssl_key_file="+dir+"/s.key")
	cmd.Dir, cmd.SysProcAttr = dir, as
	started(t, port, cmd)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	for range 100 {
		var c *pgx.Conn
		if c, err = pgx.Connect(ctx, fmt.Sprintf("host=%s port=%d user=postgres dbname=postgres", dir, port)); err == nil {
			_, err = c.Exec(ctx, "CREATE ROLE app LOGIN PASSWORD '"+canary+"'")
			_, err2 := c.Exec(ctx, "CREATE DATABASE app OWNER app")
			err = errors.Join(err, err2)
			_ = c.Close(ctx)
			break
		}
		time.Sleep(50 * time.Millisecond)
	}
	if err != nil {
		t.Fatal(err)
	}
	return port
}

// echoServer says what it hears.
func echoServer(t testing.TB) uint16 {
	t.Helper()
	ln, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	var mu sync.Mutex
	var open []net.Conn
	wg.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			open = append(open, c)
			mu.Unlock()
			wg.Go(func() {
				_, _ = io.Copy(c, c)
				_ = c.Close()
			})
		}
	})
	t.Cleanup(func() {
		_ = ln.Close()
		mu.Lock()
		for _, c := range open {
			_ = c.Close()
		}
		mu.Unlock()
		wg.Wait()
	})
	return ln.Addr().(*net.TCPAddr).AddrPort().Port()
}

// duplex answers a request's body while it comes.
func duplex(w http.ResponseWriter, r *http.Request) {
	rc := http.NewResponseController(w)
	_ = rc.EnableFullDuplex()
	w.WriteHeader(http.StatusOK)
	_ = rc.Flush()
	for b := make([]byte, 1024); ; {
		n, err := r.Body.Read(b)
		if n > 0 {
			_, _ = w.Write(b[:n])
			_ = rc.Flush()
		}
		if err != nil {
			return
		}
	}
}

// who is a sandbox with its token.
type who struct{ id, token string }

var (
	sandboxOne = who{"one", tokenOne}
	sandboxTwo = who{"two", tokenTwo}
)

// tunnel is a CONNECT tunnel of w's to target, which must be granted.
func (g *rig) tunnel(t testing.TB, w who, target string) net.Conn {
	t.Helper()
	nc := g.dial(t)
	if _, err := fmt.Fprintf(nc, "CONNECT %s HTTP/1.1\r\nHost: %s\r\n%s\r\n", target, target, proxyAuth(w.id, w.token)); err != nil {
		t.Fatal(err)
	}
	want := "HTTP/1.1 200 Connection established\r\n\r\n"
	b := make([]byte, len(want))
	if _, err := io.ReadFull(nc, b); err != nil || string(b) != want {
		t.Fatalf("CONNECT %s: %q, %v", target, b, err)
	}
	_ = nc.SetDeadline(time.Time{})
	return nc
}

// tunnelTLS is one with TLS inside, for the name of target.
func (g *rig) tunnelTLS(t testing.TB, w who, target string, alpn ...string) *tls.Conn {
	t.Helper()
	host, _, _ := net.SplitHostPort(target)
	tc := tls.Client(g.tunnel(t, w, target), &tls.Config{ServerName: host, RootCAs: g.roots(), NextProtos: alpn})
	if err := tc.Handshake(); err != nil {
		t.Fatalf("%s: %v", target, err)
	}
	return tc
}

// logsIn puts the login into team's source "login".
func (s *stack) logsIn(team, password string) {
	s.t.Helper()
	s.put(team, "login", "static_username_password", basicSpec("app", password))
}
