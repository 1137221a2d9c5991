package testbed

import (
	"bytes"
	"crypto/tls"
	"fmt"
	"net"
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
)

// serverTool also looks where Debian keeps servers.
func serverTool(t testing.TB, name string) string {
	t.Helper()
	found, _ := filepath.Glob("/usr/lib/postgresql/*/bin/" + name)
	slices.Sort(found)
	slices.Reverse(found) // the newest first
	for _, path := range append(found, "/usr/sbin/"+name, "/usr/lib/openssh/"+name) {
		if executable(path) {
			return path
		}
	}
	return Tool(t, name)
}

// partDir is a directory for a server's files; whoever the server runs as may enter it.
func partDir(t testing.TB, as *syscall.Credential) string {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "egd-part-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	own(t, dir, as)
	return dir
}

func own(t testing.TB, path string, as *syscall.Credential) {
	t.Helper()
	if as == nil {
		return
	}
	if err := os.Chown(path, int(as.Uid), int(as.Gid)); err != nil {
		t.Fatal(err)
	}
}

// partFile writes a server's file.
func partFile(t testing.TB, as *syscall.Credential, path, text string) string {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	own(t, path, as)
	return path
}

// said is what a server has written so far.
type said struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *said) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *said) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()[max(0, s.b.Len()-4000):]
}

// run runs a server that stays in the foreground until the test ends.
func (n *NetNS) run(t testing.TB, as *syscall.Credential, dir, name string, args ...string) *said {
	t.Helper()
	cmd := exec.Command(serverTool(t, name), args...)
	out := &said{}
	cmd.Dir, cmd.Stdout, cmd.Stderr = dir, out, out
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: as}
	n.Do(t, func() {
		if err := cmd.Start(); err != nil {
			t.Fatalf("testbed: %s: %v", name, err)
		}
	})
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		end := time.AfterFunc(5*time.Second, func() { _ = cmd.Process.Kill() })
		_ = cmd.Wait()
		end.Stop()
		if t.Failed() {
			t.Logf("%s said:\n%s", name, out)
		}
	})
	return out
}

// await waits until somebody listens on the namespace's loopback.
func (n *NetNS) await(t testing.TB, out *said, ports ...uint16) {
	t.Helper()
	for _, port := range ports {
		at := net.JoinHostPort("127.0.0.1", strconv.Itoa(int(port)))
		for end := time.Now().Add(30 * time.Second); ; time.Sleep(20 * time.Millisecond) {
			c, err := n.Dial(t, "tcp", at, time.Second)
			if err == nil {
				_ = c.Close()
				break
			}
			if time.Now().After(end) {
				t.Fatalf("testbed: nobody listens on %s: %v\n%s", at, err, out)
			}
		}
	}
}

// Account is a user name and a password, made up.
type Account struct{ User, Password string }

// SSHD is a running OpenSSH server.
type SSHD struct {
	HostKey string // its public key, as a line
}

// StartSSHD runs sshd on all addresses of ns. It lets root in with any of the public keys;
// the variable WHO says which of them it was, by its name in keys.
func (n *NetNS) StartSSHD(t testing.TB, keys map[string]string, ports ...uint16) *SSHD {
	t.Helper()
	dir := partDir(t, nil)
	host := SSHKey(t, dir, "host")
	var authorized strings.Builder
	for who, line := range keys {
		fmt.Fprintf(&authorized, "environment=\"WHO=%s\" %s\n", who, line)
	}
	if err := os.MkdirAll("/run/sshd", 0o755); err != nil { // what sshd's own unit makes
		t.Fatal(err)
	}
	conf := []string{
		"PidFile none", "StrictModes no", "UsePAM no", "PermitRootLogin prohibit-password", "PasswordAuthentication no", "PermitUserEnvironment WHO",
		"AuthorizedKeysFile " + partFile(t, nil, filepath.Join(dir, "authorized_keys"), authorized.String()), "HostKey " + filepath.Join(dir, "host"),
		"Subsystem sftp " + serverTool(t, "sftp-server"), "MaxStartups 100", "PrintMotd no", "PrintLastLog no", "UseDNS no",
	}
	for _, p := range ports {
		conf = append(conf, fmt.Sprintf("Port %d", p))
	}
	out := n.run(t, nil, dir, "sshd", "-D", "-e", "-f", partFile(t, nil, filepath.Join(dir, "sshd_config"), strings.Join(conf, "\n")+"\n"))
	n.await(t, out, ports...)
	return &SSHD{HostKey: host}
}

// SSHKey makes an Ed25519 key pair, dir/name and dir/name.pub, and returns the public line.
func SSHKey(t testing.TB, dir, name string) string {
	t.Helper()
	file := filepath.Join(dir, name)
	if out, err := exec.Command(Tool(t, "ssh-keygen"), "-q", "-t", "ed25519", "-N", "", "-C", name, "-f", file).CombinedOutput(); err != nil {
		t.Fatalf("testbed: ssh-keygen: %v\n%s", err, out)
	}
	line, err := os.ReadFile(file + ".pub")
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(line))
}

// ServerTLS is how a server speaks TLS: with what certificate, and whose clients it knows.
type ServerTLS struct {
	Cert    tls.Certificate
	Clients *CA
}

// files writes the certificate, its key and the clients' CA.
func (s ServerTLS) files(t testing.TB, dir string, as *syscall.Credential) (cert, key, ca string) {
	t.Helper()
	return partFile(t, as, filepath.Join(dir, "server.crt"), CertPEM(s.Cert)), partFile(t, as, filepath.Join(dir, "server.key"), KeyPEM(t, s.Cert)),
		partFile(t, as, filepath.Join(dir, "clients.pem"), string(s.Clients.PEM()))
}

// StartRedis runs redis-server on all addresses: plain, if it is not 0, and with TLS, which
// asks for a client certificate when mutual is set. Who is none of accounts may do nothing.
func (n *NetNS) StartRedis(t testing.TB, tls ServerTLS, plain, secure uint16, mutual bool, accounts ...Account) {
	t.Helper()
	dir := partDir(t, nil)
	cert, key, ca := tls.files(t, dir, nil)
	clients := "no"
	if mutual {
		clients = "yes"
	}
	conf := []string{
		"bind * -::*", "protected-mode no", fmt.Sprintf("port %d", plain), fmt.Sprintf("tls-port %d", secure), `save ""`, "appendonly no", "daemonize no", "dir " + dir,
		"tls-cert-file " + cert, "tls-key-file " + key, "tls-ca-cert-file " + ca, "tls-auth-clients " + clients, "user default off",
	}
	for _, a := range accounts {
		conf = append(conf, "user "+a.User+" on >"+a.Password+" ~* &* +@all")
	}
	out := n.run(t, nil, dir, "redis-server", partFile(t, nil, filepath.Join(dir, "redis.conf"), strings.Join(conf, "\n")+"\n"))
	ports := []uint16{secure}
	if plain != 0 {
		ports = append(ports, plain)
	}
	n.await(t, out, ports...)
}

// StartMosquitto runs mosquitto on all addresses: in clear, with TLS, and with TLS that
// demands a client certificate. Each account reads and writes u/USER/# and nothing else.
func (n *NetNS) StartMosquitto(t testing.TB, tls ServerTLS, plain, secure, mutual uint16, accounts ...Account) {
	t.Helper()
	dir := partDir(t, nil)
	cert, key, ca := tls.files(t, dir, nil)
	users := partFile(t, nil, filepath.Join(dir, "users"), "")
	for _, a := range accounts {
		if out, err := exec.Command(serverTool(t, "mosquitto_passwd"), "-b", users, a.User, a.Password).CombinedOutput(); err != nil {
			t.Fatalf("testbed: mosquitto_passwd: %v\n%s", err, out)
		}
	}
	files := []string{"cafile " + ca, "certfile " + cert, "keyfile " + key}
	conf := []string{"user root", "log_dest stderr", "allow_anonymous false", "password_file " + users,
		"acl_file " + partFile(t, nil, filepath.Join(dir, "acl"), "pattern readwrite u/%u/#\n"), fmt.Sprintf("listener %d", plain), fmt.Sprintf("listener %d", secure)}
	conf = append(append(conf, files...), fmt.Sprintf("listener %d", mutual), "require_certificate true")
	conf = append(conf, files...)
	out := n.run(t, nil, dir, "mosquitto", "-c", partFile(t, nil, filepath.Join(dir, "mosquitto.conf"), strings.Join(conf, "\n")+"\n"))
	n.await(t, out, plain, secure, mutual)
}

// StartMicrosocks runs a SOCKS5 server on all addresses that lets one account in.
func (n *NetNS) StartMicrosocks(t testing.TB, port uint16, a Account) {
	t.Helper()
	n.await(t, n.run(t, nil, "/", "microsocks", "-i", "::", "-p", strconv.Itoa(int(port)), "-u", a.User, "-P", a.Password), port)
}

// StartPostgres runs PostgreSQL on all addresses, with a database app and a role for each
// account, which logs in by SCRAM. Of those in mutual it demands a client certificate too.
func (n *NetNS) StartPostgres(t testing.TB, tls ServerTLS, port uint16, mutual []string, accounts ...Account) {
	t.Helper()
	as := postgresAccount(t)
	dir := partDir(t, as)
	cert, key, ca := tls.files(t, dir, as)
	var hba, sql strings.Builder
	for _, a := range accounts {
		how := ""
		if slices.Contains(mutual, a.User) {
			how = " clientcert=verify-ca"
		}
		fmt.Fprintf(&hba, "hostssl app %s all scram-sha-256%s\n", a.User, how)
		fmt.Fprintf(&sql, "CREATE ROLE %s LOGIN PASSWORD '%s';\n", a.User, a.Password)
	}
	sql.WriteString("CREATE DATABASE app;\n")
	data := filepath.Join(dir, "data")
	postgresOnce(t, as, dir, "", "initdb", "-D", data, "-U", "postgres", "-A", "trust", "-N", "-E", "UTF8", "--locale=C")
	postgresOnce(t, as, dir, sql.String(), "postgres", "--single", "-D", data, "postgres")
	out := n.run(t, as, dir, "postgres", "-D", data, "-p", strconv.Itoa(int(port)), "-k", dir, "-h", "*",
		"-c", "hba_file="+partFile(t, as, filepath.Join(dir, "hba.conf"), hba.String()), "-c", "ssl=on", "-c", "ssl_cert_file="+cert, "-c", "ssl_key_file="+key,
		"-c", "ssl_ca_file="+ca, "-c", "fsync=off", "-c", "max_connections=50")
	n.await(t, out, port)
}

func postgresOnce(t testing.TB, as *syscall.Credential, dir, stdin, name string, args ...string) {
	t.Helper()
	cmd := exec.Command(serverTool(t, name), args...)
	cmd.Dir, cmd.Stdin = dir, strings.NewReader(stdin)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: as}
	if out, err := cmd.CombinedOutput(); err != nil || bytes.Contains(out, []byte("ERROR:")) {
		t.Fatalf("testbed: %s: %v\n%s", name, err, out)
	}
}

// postgresAccount is who runs PostgreSQL, which refuses to be root.
func postgresAccount(t testing.TB) *syscall.Credential {
	t.Helper()
	if os.Geteuid() != 0 {
		return nil
	}
	u, err := user.Lookup("postgres")
	if err != nil {
		t.Fatalf("testbed: %v: run `make deps`", err)
	}
	uid, err1 := strconv.ParseUint(u.Uid, 10, 32)
	gid, err2 := strconv.ParseUint(u.Gid, 10, 32)
	if err1 != nil || err2 != nil {
		t.Fatalf("testbed: the account postgres: %s %s", u.Uid, u.Gid)
	}
	return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
}
