package postgres

import (
	"bytes"
	"context"
	"errors"
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

	"github.com/jackc/pgx/v5"

	"github.com/egressd/egressd/internal/testbed"
)

// server is a real PostgreSQL on 127.0.0.1, with a role for each way to log in; each
// role's password is password.
type server struct {
	addr     string
	dir      string // unix socket, for the superuser postgres
	port     int
	password string
	log      *lockedBuffer
	stop     func()
}

const serverName = "db.test"

// parts are started once and stopped by TestMain.
type parts struct {
	once  sync.Once
	ca    *testbed.CA
	tls   *server
	noTLS *server
}

// roles, by how pg_hba.conf lets them in.
var roles = map[string]string{
	"by_scram": "scram-sha-256",
	"by_md5":   "md5",
	"by_clear": "password",
	"by_trust": "trust",
}

func tool(t testing.TB, name string) string {
	t.Helper()
	found, _ := filepath.Glob("/usr/lib/postgresql/*/bin/" + name)
	slices.Sort(found)
	if len(found) > 0 {
		return found[len(found)-1]
	}
	if dir, err := exec.Command(testbed.Tool(t, "pg_config"), "--bindir").Output(); err == nil {
		if path := filepath.Join(strings.TrimSpace(string(dir)), name); exists(path) {
			return path
		}
	}
	t.Fatalf("%s is needed: run `make deps`", name)
	return ""
}

func exists(path string) bool { _, err := os.Stat(path); return err == nil }

// account is who runs PostgreSQL, which refuses to be root.
func account(t testing.TB) *syscall.Credential {
	t.Helper()
	if os.Geteuid() != 0 {
		return nil
	}
	for _, name := range []string{"postgres", "nobody"} {
		if u, err := user.Lookup(name); err == nil {
			uid, err1 := strconv.ParseUint(u.Uid, 10, 32)
			gid, err2 := strconv.ParseUint(u.Gid, 10, 32)
			if err := errors.Join(err1, err2); err != nil {
				t.Fatal(err)
			}
			return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
		}
	}
	t.Fatal("neither postgres nor nobody is an account here")
	return nil
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// startServer makes a cluster in a directory of its own and runs it.
func startServer(t testing.TB, ca *testbed.CA, withTLS bool) *server {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "egd-pg-")
	if err != nil {
		t.Fatal(err)
	}
	s := &server{dir: dir, password: testbed.NewCanary(), log: &lockedBuffer{}}
	cred := account(t)
	write := func(name, content string) {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		own(t, path, cred)
	}
	own(t, dir, cred)
	leaf := ca.Leaf(t, serverName, "127.0.0.1")
	write("server.crt", testbed.CertPEM(leaf))
	write("server.key", testbed.KeyPEM(t, leaf))
	hba := "local all postgres trust\n"
	for role, method := range roles {
		hba += fmt.Sprintf("host all %s 127.0.0.1/32 %s\n", role, method)
	}
	write("hba.conf", hba)
	data := filepath.Join(dir, "data")
	initdb := exec.Command(tool(t, "initdb"), "-D", data, "-U", "postgres", "-A", "trust", "-N", "-E", "UTF8", "--locale=C")
	initdb.Dir, initdb.SysProcAttr = dir, &syscall.SysProcAttr{Credential: cred}
	if out, err := initdb.CombinedOutput(); err != nil {
		t.Fatalf("initdb: %v\n%s", err, out)
	}
	s.port = freePort(t)
	s.addr = net.JoinHostPort("127.0.0.1", strconv.Itoa(s.port))
	args := []string{"-D", data, "-k", dir, "-h", "127.0.0.1", "-p", strconv.Itoa(s.port), "-F",
		"-c", "hba_file=" + filepath.Join(dir, "hba.conf"), "-c", "max_connections=40", "-c", "shared_buffers=16MB"}
	if withTLS {
		args = append(args, "-c", "ssl=on", "-c", "ssl_cert_file="+filepath.Join(dir, "server.crt"), "-c", "ssl_key_file="+filepath.Join(dir, "server.key"))
	}
	cmd := exec.Command(tool(t, "postgres"), args...)
	cmd.Dir, cmd.SysProcAttr = dir, &syscall.SysProcAttr{Credential: cred}
	cmd.Stdout, cmd.Stderr = s.log, s.log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	s.stop = func() {
		_ = cmd.Process.Signal(syscall.SIGQUIT) // at once: nothing is kept
		_ = cmd.Wait()
		_ = os.RemoveAll(dir)
	}
	s.prepare(t)
	return s
}

func own(t testing.TB, path string, cred *syscall.Credential) {
	t.Helper()
	if cred == nil {
		return
	}
	if err := os.Chown(path, int(cred.Uid), int(cred.Gid)); err != nil {
		t.Fatal(err)
	}
}

func freePort(t testing.TB) int {
	t.Helper()
	ln, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	return ln.Addr().(*net.TCPAddr).Port
}

// prepare waits for the server and makes what the tests use.
func (s *server) prepare(t testing.TB) {
	t.Helper()
	quoted := "'" + strings.ReplaceAll(s.password, "'", "''") + "'"
	sql := []string{"CREATE DATABASE app"}
	for role, method := range roles {
		encryption := "scram-sha-256"
		if method == "md5" {
			encryption = "md5"
		}
		sql = append(sql, "SET password_encryption = '"+encryption+"'", "CREATE ROLE "+role+" LOGIN PASSWORD "+quoted,
			"GRANT ALL ON DATABASE app TO "+role)
	}
	var err error
	for range 100 {
		if err = s.admin("SELECT 1"); err == nil {
			break
		}
		time.Sleep(100 * time.Millisecond)
	}
	if err == nil {
		err = s.admin(sql...)
	}
	if err != nil {
		s.stop()
		t.Fatalf("postgres: %v\n%s", err, s.log)
	}
}

// admin runs statements as the superuser, past egressd.
func (s *server) admin(sql ...string) error { return s.adminIn("postgres", sql...) }

func (s *server) adminIn(database string, sql ...string) error {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	c, err := pgx.Connect(ctx, fmt.Sprintf("host=%s port=%d user=postgres dbname=%s", s.dir, s.port, database))
	if err != nil {
		return err
	}
	defer func() { _ = c.Close(ctx) }()
	for _, q := range sql {
		if _, err := c.Exec(ctx, q); err != nil {
			return err
		}
	}
	return nil
}
