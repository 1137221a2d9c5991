package sqlite

import (
	"context"
	"database/sql"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"go.uber.org/goleak"
	driver "modernc.org/sqlite"

	"github.com/egressd/egressd/store"
)

// The test binary runs itself as another process where a test needs one: to be killed,
// to be limited, to share the file.
const (
	childMode = "EGRESSD_STORE_TEST_CHILD"
	childDir  = "EGRESSD_STORE_TEST_DIR"
)

func TestMain(m *testing.M) {
	children := map[string]func(context.Context, string) error{
		"torture": tortureChild,
		"limited": limitedChild,
		"starter": starterChild,
	}
	if mode := os.Getenv(childMode); mode != "" {
		if err := children[mode](context.Background(), os.Getenv(childDir)); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	goleak.VerifyTestMain(m)
}

// child is this binary in another mode, on the store in dir.
func child(t *testing.T, mode, dir string, extra ...string) *exec.Cmd {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), self)
	cmd.Env = append(append(os.Environ(), childMode+"="+mode, childDir+"="+dir), extra...)
	cmd.Stderr = os.Stderr
	return cmd
}

// openDir opens the store of a state directory with the keys beside it.
func openDir(ctx context.Context, dir string, opts Options) (*DB, store.Opener, error) {
	sealer, opener, err := store.LoadOrCreateKeys(filepath.Join(dir, "keys"))
	if err != nil {
		return nil, nil, err
	}
	d, err := Open(ctx, filepath.Join(dir, "store.db"), sealer, opts)
	return d, opener, err
}

// state is a store that can be tampered with and opened again.
type state struct {
	*DB
	dir    string
	opener store.Opener
	raw    *sql.DB // a connection that knows no rules
}

func newState(t *testing.T) *state {
	t.Helper()
	s := &state{dir: t.TempDir()}
	s.open(t)
	c, err := driver.NewConnector("file:" + s.path + "?_busy_timeout=5000")
	if err != nil {
		t.Fatal(err)
	}
	s.raw = sql.OpenDB(c)
	t.Cleanup(func() {
		_ = s.raw.Close()
		_ = s.DB.Close()
	})
	return s
}

func (s *state) open(t *testing.T) {
	t.Helper()
	var err error
	if s.DB, s.opener, err = openDir(t.Context(), s.dir, Options{}); err != nil {
		t.Fatal(err)
	}
}

// reopen is a restart: what the process remembered is gone.
func (s *state) reopen(t *testing.T) {
	t.Helper()
	if err := s.DB.Close(); err != nil {
		t.Fatal(err)
	}
	s.open(t)
}

// tamper runs SQL as somebody who can write the file and has no key.
func (s *state) tamper(t *testing.T, query string, args ...any) {
	t.Helper()
	if _, err := s.raw.Exec(query, args...); err != nil {
		t.Fatalf("%s: %v", query, err)
	}
}

const kind = "static_headers"

func put(name, spec string) store.Put {
	return store.Put{
		Meta: store.Meta{
			Team: "blue", Name: name, Kind: kind,
			AllowedDestinations: []string{"https://good.test:443"}, Health: "ok",
		},
		Spec: []byte(spec), Actor: "tester",
	}
}

func (s *state) mustCreate(t *testing.T, name, spec string) store.Meta {
	t.Helper()
	m, err := s.Create(t.Context(), put(name, spec))
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func (s *state) mustUpdate(t *testing.T, name, spec string) store.Meta {
	t.Helper()
	m, _, err := s.Update(t.Context(), put(name, spec))
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// spec is what the data plane would use.
func (s *state) spec(ctx context.Context, name string, version uint64) (string, error) {
	sealed, err := s.Get(ctx, "blue", name, version)
	if err != nil {
		return "", err
	}
	b, err := s.opener.Open(sealed)
	return string(b), err
}
