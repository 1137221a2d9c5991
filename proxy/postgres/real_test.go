package postgres

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/egressd/egressd/internal/testbed"
	"github.com/egressd/egressd/proxy/wire"
)

func TestLoginsAtARealServer(t *testing.T) {
	real.start(t)
	for _, tc := range []struct {
		role string
		tls  bool // of the server
		code string
	}{
		{"by_scram", true, ""}, {"by_md5", true, ""}, {"by_clear", true, ""}, {"by_trust", true, ""},
		{"by_scram", false, ""}, {"by_md5", false, ""}, {"by_trust", false, ""},
		{"by_clear", false, wire.CodePlaintext},
	} {
		for _, clientTLS := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s tls %v sandbox tls %v", tc.role, tc.tls, clientTLS), func(t *testing.T) {
				s := real.tls
				var opts []doorOption
				if !tc.tls {
					s, opts = real.noTLS, []doorOption{cleartext}
				}
				d := newDoor(t, s.addr, tc.role, s.password, opts...)
				if tc.code != "" {
					_, err := pgx.ConnectConfig(t.Context(), d.config(t, "agent", "", clientTLS))
					wantState(t, err, stateRefused, tc.code)
					codeIs(t, d.wait(t, 1), tc.code)
					return
				}
				c := d.connect(t, "agent", "", clientTLS)
				var who, database string
				var encrypted bool
				err := c.QueryRow(t.Context(), "SELECT current_user, current_database(), ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()").Scan(&who, &database, &encrypted)
				if err != nil || who != tc.role || database != "app" || encrypted != tc.tls {
					t.Errorf("in as %q at %q, tls %v: %v", who, database, encrypted, err)
				}
				_ = c.Close(t.Context())
				if err := d.wait(t, 1); err != nil || d.opened.Load() != 1 {
					t.Errorf("session: %v, opened %d times", err, d.opened.Load())
				}
			})
		}
	}
}

func wantState(t testing.TB, err error, state, code string) {
	t.Helper()
	var pe *pgconn.PgError
	if !errors.As(err, &pe) {
		t.Fatalf("client got %v, want an ErrorResponse", err)
	}
	if pe.Code != state || pe.Severity != "FATAL" || !strings.HasSuffix(pe.Message, ": "+code) {
		t.Errorf("client got %s %s %q, want FATAL %s and %s", pe.Severity, pe.Code, pe.Message, state, code)
	}
}

func TestServerRefusesTheCredential(t *testing.T) {
	real.start(t)
	for _, role := range []string{"by_scram", "by_md5", "by_clear", "nobody_here"} {
		t.Run(role, func(t *testing.T) {
			wrong := testbed.NewCanary()
			d := newDoor(t, real.tls.addr, role, wrong)
			_, err := pgx.ConnectConfig(t.Context(), d.config(t, "agent", "", true))
			wantState(t, err, stateRefused, wire.CodeUpstreamLogin)
			got := d.wait(t, 1)
			codeIs(t, got, wire.CodeUpstreamLogin)
			if !errors.Is(got, wire.ErrLogin) || d.opened.Load() != 0 {
				t.Errorf("ended with %v, opened %d", got, d.opened.Load())
			}
			testbed.NoLeak(t, "the sandbox's error", []byte(err.Error()), wrong)
			testbed.NoLeak(t, "the operator's error", []byte(got.Error()), wrong)
			if strings.Contains(err.Error(), role) {
				t.Errorf("the sandbox learns the user name: %v", err)
			}
		})
	}
}

func TestServerWithoutTLSGetsNothing(t *testing.T) {
	real.start(t)
	d := newDoor(t, real.noTLS.addr, "by_scram", real.noTLS.password)
	_, err := pgx.ConnectConfig(t.Context(), d.config(t, "agent", "", true))
	wantState(t, err, stateRefused, wire.CodePlaintext)
	if got := d.wait(t, 1); !errors.Is(got, wire.ErrCleartext) || d.asked.Load() != 0 {
		t.Errorf("ended with %v, credential asked for %d times", got, d.asked.Load())
	}
}

func TestAttack_D08_server_with_another_certificate_gets_nothing(t *testing.T) {
	real.start(t)
	d := newDoor(t, real.tls.addr, "by_scram", real.tls.password, func(d *door) { d.trust = testbed.NewCA(t) })
	_, err := pgx.ConnectConfig(t.Context(), d.config(t, "agent", "", true))
	wantState(t, err, stateConnection, wire.CodeUpstreamTLS)
	if codeIs(t, d.wait(t, 1), wire.CodeUpstreamTLS); d.asked.Load() != 0 {
		t.Errorf("credential asked for %d times", d.asked.Load())
	}
}

func TestUnreachableServer(t *testing.T) {
	d := newDoor(t, fmt.Sprintf("127.0.0.1:%d", freePort(t)), "x", "x")
	_, err := pgx.ConnectConfig(t.Context(), d.config(t, "agent", "", true))
	wantState(t, err, stateConnection, wire.CodeUnreachable)
	codeIs(t, d.wait(t, 1), wire.CodeUnreachable)
}

// TestDatabaseOfTheSandboxesUser: without a name the database is called like the user that
// the sandbox named, not like the credential's.
func TestDatabaseOfTheSandboxesUser(t *testing.T) {
	real.start(t)
	d := newDoor(t, real.tls.addr, "by_scram", real.tls.password)
	cfg := d.config(t, "app", "", true)
	cfg.Database = ""
	c, err := pgx.ConnectConfig(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close(context.Background()) }()
	var name string
	if err := c.QueryRow(t.Context(), "SELECT current_database()").Scan(&name); err != nil || name != "app" {
		t.Errorf("database %q: %v", name, err)
	}
	// What the server says after the login is its own: the sandbox must see it.
	cfg.Database = "no_such_database"
	_, err = pgx.ConnectConfig(t.Context(), cfg)
	var pe *pgconn.PgError
	if !errors.As(err, &pe) || pe.Code != "3D000" {
		t.Errorf("a database that is not there: %v", err)
	}
}

func TestSandboxLogin(t *testing.T) {
	real.start(t)
	require := func(d *door) {
		d.session.Require = func(user, password string) bool { return user == "agent" && password == "placeholder-1" }
	}
	for _, tc := range []struct {
		user, password string
		ok             bool
	}{{"agent", "placeholder-1", true}, {"agent", "other", false}, {"root", "placeholder-1", false}, {"agent", "", false}} {
		t.Run(tc.user+" "+tc.password, func(t *testing.T) {
			d := newDoor(t, real.tls.addr, "by_scram", real.tls.password, require)
			c, err := pgx.ConnectConfig(t.Context(), d.config(t, tc.user, tc.password, true))
			if tc.ok {
				if err != nil {
					t.Fatal(err)
				}
				_ = c.Close(context.Background())
				return
			}
			wantState(t, err, statePassword, wire.CodeAuthRequired)
			if codeIs(t, d.wait(t, 1), wire.CodeAuthRequired); d.asked.Load() != 0 {
				t.Error("the credential was asked for")
			}
		})
	}
	t.Run("whatever it sends", func(t *testing.T) {
		d := newDoor(t, real.tls.addr, "by_scram", real.tls.password)
		d.connect(t, "anybody", "anything", true)
	})
}

// psql runs the client that Debian ships.
func psql(t *testing.T, d *door, conninfo string, args ...string) (string, error) {
	t.Helper()
	ca := d.ca.File(t)
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, testbed.Tool(t, "psql"), append([]string{"-X", "-A", "-t", "-w", "-v", "ON_ERROR_STOP=1",
		fmt.Sprintf("host=%s hostaddr=127.0.0.1 port=%d dbname=app user=agent sslrootcert=%s %s", serverName, d.port(), ca, conninfo)}, args...)...)
	cmd.Env = []string{"HOME=" + t.TempDir(), "PATH=" + os.Getenv("PATH"), "LC_ALL=C"}
	out, err := cmd.CombinedOutput()
	return strings.TrimSpace(string(out)), err
}

func TestPsql(t *testing.T) {
	real.start(t)
	for _, conninfo := range []string{"sslmode=disable", "sslmode=prefer", "sslmode=require", "sslmode=verify-full", "sslmode=verify-full gssencmode=disable"} {
		t.Run(conninfo, func(t *testing.T) {
			d := newDoor(t, real.tls.addr, "by_scram", real.tls.password)
			if out, err := psql(t, d, conninfo, "-c", "SELECT current_user"); err != nil || out != "by_scram" {
				t.Errorf("psql: %v: %s", err, out)
			}
			if err := d.wait(t, 1); err != nil {
				t.Error(err)
			}
		})
	}
	t.Run("another CA", func(t *testing.T) {
		d := newDoor(t, real.tls.addr, "by_scram", real.tls.password)
		d.ca = testbed.NewCA(t)
		if out, err := psql(t, d, "sslmode=verify-full", "-c", "SELECT 1"); err == nil {
			t.Errorf("psql took a certificate that it cannot know: %s", out)
		}
		if d.wait(t, 1) == nil || d.asked.Load() != 0 {
			t.Error("the credential was asked for")
		}
	})
	t.Run("refused", func(t *testing.T) {
		d := newDoor(t, real.tls.addr, "by_scram", "wrong")
		out, err := psql(t, d, "sslmode=require", "-c", "SELECT 1")
		if err == nil || !strings.Contains(out, "FATAL:  egressd refused the connection: upstream_login_refused") {
			t.Errorf("psql: %v: %s", err, out)
		}
	})
}

// TestCopy carries 48 MB both ways and compares.
func TestCopy(t *testing.T) {
	real.start(t)
	for _, withTLS := range []bool{true, false} {
		t.Run(fmt.Sprintf("sandbox tls %v", withTLS), func(t *testing.T) {
			d := newDoor(t, real.tls.addr, "by_scram", real.tls.password)
			c := d.connect(t, "agent", "", withTLS)
			if _, err := c.Exec(t.Context(), "CREATE TEMP TABLE big (line text)"); err != nil {
				t.Fatal(err)
			}
			const lines = 400_000
			line := strings.Repeat("0123456789abcdef", 7)
			var in bytes.Buffer
			for i := range lines {
				fmt.Fprintf(&in, "%08d%s\n", i, line)
			}
			want := sha256.Sum256(in.Bytes())
			tag, err := c.PgConn().CopyFrom(t.Context(), &in, "COPY big FROM STDIN")
			if err != nil || tag.RowsAffected() != lines {
				t.Fatalf("copy in: %v, %d rows", err, tag.RowsAffected())
			}
			h := sha256.New()
			if _, err := c.PgConn().CopyTo(t.Context(), h, "COPY (SELECT line FROM big ORDER BY line) TO STDOUT"); err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(h.Sum(nil), want[:]) {
				t.Error("what came back is not what went in")
			}
		})
	}
}

func TestCancel(t *testing.T) {
	real.start(t)
	t.Run("pgx", func(t *testing.T) {
		for _, withTLS := range []bool{true, false} {
			d := newDoor(t, real.tls.addr, "by_scram", real.tls.password)
			c := d.connect(t, "agent", "", withTLS)
			done := make(chan error, 1)
			go func() {
				_, err := c.Exec(context.Background(), "SELECT pg_sleep(30)")
				done <- err
			}()
			waitActive(t)
			if err := c.PgConn().CancelRequest(t.Context()); err != nil {
				t.Fatal(err)
			}
			var pe *pgconn.PgError
			if err := <-done; !errors.As(err, &pe) || pe.Code != "57014" {
				t.Errorf("the query ended with %v", err)
			}
			if err := d.wait(t, 1); err != nil || d.asked.Load() != 1 || d.opened.Load() != 1 {
				t.Errorf("cancel: %v, credential asked for %d times, opened %d", err, d.asked.Load(), d.opened.Load())
			}
		}
	})
	t.Run("psql", func(t *testing.T) {
		d := newDoor(t, real.tls.addr, "by_scram", real.tls.password)
		cmd := exec.Command(testbed.Tool(t, "psql"), "-X", "-w", "-c", "SELECT pg_sleep(30)",
			fmt.Sprintf("host=%s hostaddr=127.0.0.1 port=%d dbname=app user=agent sslmode=require", serverName, d.port()))
		cmd.Env = []string{"HOME=" + t.TempDir(), "LC_ALL=C"}
		var out bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &out
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		waitActive(t)
		_ = cmd.Process.Signal(syscall.SIGINT)
		if err := cmd.Wait(); err == nil || !strings.Contains(out.String(), "canceling statement due to user request") {
			t.Errorf("psql: %v: %s", err, out.String())
		}
	})
	t.Run("without TLS", func(t *testing.T) {
		d := newDoor(t, real.noTLS.addr, "by_scram", real.noTLS.password)
		c := d.raw(t)
		_, _ = c.Write([]byte{0, 0, 0, 16, 0x04, 0xd2, 0x16, 0x2e, 0, 0, 0, 1, 0, 0, 0, 2})
		if b, err := io.ReadAll(c); err != nil || len(b) != 0 {
			t.Errorf("a cancel is answered: %q, %v", b, err)
		}
		if err := d.wait(t, 1); !errors.Is(err, wire.ErrCleartext) {
			t.Errorf("a key went out in clear: %v", err)
		}
	})
}

// waitActive waits until a query sleeps.
func waitActive(t *testing.T) {
	t.Helper()
	for range 200 {
		ok := real.tls.admin("DO $$ BEGIN IF NOT EXISTS (SELECT FROM pg_stat_activity WHERE wait_event = 'PgSleep') THEN RAISE 'not yet'; END IF; END $$")
		if ok == nil {
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
	t.Fatal("no query sleeps")
}

func TestListenNotify(t *testing.T) {
	real.start(t)
	d := newDoor(t, real.tls.addr, "by_scram", real.tls.password)
	c := d.connect(t, "agent", "", true)
	if _, err := c.Exec(t.Context(), "LISTEN news"); err != nil {
		t.Fatal(err)
	}
	time.AfterFunc(300*time.Millisecond, func() { _ = real.tls.adminIn("app", "NOTIFY news, 'hello'") })
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	n, err := c.WaitForNotification(ctx)
	if err != nil || n.Payload != "hello" {
		t.Errorf("%v: %v", n, err)
	}
}

// TestPrepared: the extended protocol, batches and errors inside a session are the server's.
func TestPrepared(t *testing.T) {
	real.start(t)
	d := newDoor(t, real.tls.addr, "by_md5", real.tls.password)
	c := d.connect(t, "agent", "", true)
	b := &pgx.Batch{}
	for i := range 50 {
		b.Queue("SELECT $1::int + 1", i)
	}
	res := c.SendBatch(t.Context(), b)
	for i := range 50 {
		var n int
		if err := res.QueryRow().Scan(&n); err != nil || n != i+1 {
			t.Fatalf("%d: %v", n, err)
		}
	}
	_ = res.Close()
	_, err := c.Exec(t.Context(), "SELECT * FROM no_such_table")
	var pe *pgconn.PgError
	if !errors.As(err, &pe) || pe.Code != "42P01" {
		t.Errorf("%v", err)
	}
}

// TestPgDump: a client that opens several connections and reads catalogues.
func TestPgDump(t *testing.T) {
	real.start(t)
	d := newDoor(t, real.tls.addr, "by_scram", real.tls.password)
	out := filepath.Join(t.TempDir(), "dump.sql")
	cmd := exec.Command(tool(t, "pg_dump"), "-w", "-f", out, "--schema-only",
		fmt.Sprintf("host=%s hostaddr=127.0.0.1 port=%d dbname=app user=agent sslmode=verify-full sslrootcert=%s", serverName, d.port(), d.ca.File(t)))
	cmd.Env = []string{"HOME=" + t.TempDir(), "LC_ALL=C"}
	if msg, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("pg_dump: %v: %s", err, msg)
	}
	if b, _ := os.ReadFile(out); !bytes.Contains(b, []byte("PostgreSQL database dump complete")) {
		t.Error("the dump is not complete")
	}
}
