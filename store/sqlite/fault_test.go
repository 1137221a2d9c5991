package sqlite

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/egressd/egressd/store"
)

func TestFileIsPrivate(t *testing.T) {
	s := newState(t)
	s.mustCreate(t, "api", "x")
	for _, suffix := range []string{"", "-wal", "-shm"} {
		info, err := os.Stat(s.path + suffix)
		if err != nil {
			t.Fatal(err)
		}
		if info.Mode().Perm() != 0o600 {
			t.Errorf("store.db%s has mode %04o", suffix, info.Mode().Perm())
		}
	}
}

func TestConnectionsAreSetUp(t *testing.T) {
	s := newState(t)
	for pragma, want := range map[string]string{
		"journal_mode": "wal", "synchronous": "2", "secure_delete": "1", "busy_timeout": "5000", "trusted_schema": "0",
	} {
		var got string
		if err := s.writer.QueryRow("PRAGMA " + pragma).Scan(&got); err != nil || got != want {
			t.Errorf("%s is %s, %v; want %s", pragma, got, err, want)
		}
	}
	if _, err := s.reader.Exec(`DELETE FROM sources`); err == nil {
		t.Error("a reading connection can write")
	}
}

func TestAttack_H21_what_cannot_be_used_is_refused_with_what_to_do(t *testing.T) {
	for name, c := range map[string]struct {
		spoil func(t *testing.T, s *state)
		is    error
		want  string
	}{
		"newer schema": {func(t *testing.T, s *state) { s.tamper(t, `UPDATE store SET schema = 2`) }, store.ErrTooNew, "run the newer egressd"},
		"older schema": {func(t *testing.T, s *state) { s.tamper(t, `UPDATE store SET schema = 0`) }, store.ErrCorrupt, "restore it from a backup"},
		"no schema":    {func(t *testing.T, s *state) { s.tamper(t, `DELETE FROM store`) }, store.ErrCorrupt, "restore it from a backup"},
		"other keys": {func(t *testing.T, s *state) {
			if err := os.RemoveAll(filepath.Join(s.dir, "keys")); err != nil {
				t.Fatal(err)
			}
		}, store.ErrWrongKeys, "restore the key files"},
		"planted trigger": {func(t *testing.T, s *state) {
			s.tamper(t, `CREATE TRIGGER spy AFTER INSERT ON versions BEGIN DELETE FROM activity; END`)
		}, store.ErrCorrupt, "triggers"},
		"another program's": {func(t *testing.T, s *state) { s.tamper(t, `PRAGMA application_id = 1`) }, store.ErrInvalid, "another program"},
		"not a database": {func(t *testing.T, s *state) {
			overwrite(t, s.path, []byte(strings.Repeat("this is no database\n", 1000)))
		}, store.ErrCorrupt, "restore it from a backup"},
		"half a database": {func(t *testing.T, s *state) {
			b, err := os.ReadFile(s.path)
			if err != nil {
				t.Fatal(err)
			}
			overwrite(t, s.path, b[:len(b)/2])
		}, store.ErrCorrupt, "restore it from a backup"},
		"open to others": {func(t *testing.T, s *state) {
			if err := os.Chmod(s.path, 0o644); err != nil {
				t.Fatal(err)
			}
		}, store.ErrUnavailable, "chmod 600"},
		"a directory": {func(t *testing.T, s *state) {
			if err := errors.Join(os.Remove(s.path), os.Mkdir(s.path, 0o700)); err != nil {
				t.Fatal(err)
			}
		}, store.ErrUnavailable, "not a regular file"},
	} {
		t.Run(name, func(t *testing.T) {
			s := newState(t)
			s.mustCreate(t, "api", strings.Repeat("x", 100_000))
			if err := s.DB.Close(); err != nil {
				t.Fatal(err)
			}
			c.spoil(t, s)
			if err := s.raw.Close(); err != nil {
				t.Fatal(err)
			}
			d, _, err := openDir(t.Context(), s.dir, Options{})
			if err == nil {
				_ = d.Close()
			}
			if !errors.Is(err, c.is) || !strings.Contains(fmt.Sprint(err), c.want) || !strings.Contains(fmt.Sprint(err), s.path) {
				t.Errorf("error: %v\nwant %v, the path and %q", err, c.is, c.want)
			}
		})
	}
}

func overwrite(t *testing.T, path string, b []byte) {
	t.Helper()
	for _, suffix := range []string{"-wal", "-shm"} {
		if err := os.Remove(path + suffix); err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
}

// Whatever bits flip in the file: a source is read as it was written, or not at all.
func TestAttack_H21_flipped_bits_never_give_another_spec(t *testing.T) {
	s := newState(t)
	const sources = 5
	for i := range sources {
		s.mustCreate(t, fmt.Sprintf("api-%d", i), fmt.Sprintf("spec %d", i))
	}
	if err := errors.Join(s.raw.Close(), s.DB.Close()); err != nil {
		t.Fatal(err)
	}
	good, err := os.ReadFile(s.path)
	if err != nil {
		t.Fatal(err)
	}
	rng := rand.New(rand.NewPCG(3, 5))
	var refused, denied, served int
	for range 150 {
		bad := append([]byte(nil), good...)
		for range 1 + rng.IntN(16) {
			bad[rng.IntN(len(bad))] ^= 1 << rng.IntN(8)
		}
		overwrite(t, s.path, bad)
		d, opener, err := openDir(t.Context(), s.dir, Options{})
		if err != nil {
			refused++
			continue
		}
		s.DB, s.opener = d, opener
		for i := range sources {
			got, err := s.spec(t.Context(), fmt.Sprintf("api-%d", i), 0)
			switch {
			case err != nil:
				denied++
			case got != fmt.Sprintf("spec %d", i):
				t.Fatalf("source %d became %q", i, got)
			default:
				served++
			}
		}
		if err := d.Close(); err != nil && !errors.Is(err, store.ErrCorrupt) {
			t.Logf("close: %v", err)
		}
	}
	if refused == 0 || denied == 0 || served == 0 {
		t.Errorf("%d refused, %d denied, %d served: the test did not try much", refused, denied, served)
	}
}

func TestAttack_H03_full_or_read_only_store_recovers(t *testing.T) {
	for name, c := range map[string]struct{ on, off string }{
		"full":      {"PRAGMA max_page_count = 1", "PRAGMA max_page_count = 1000000"},
		"read-only": {"PRAGMA query_only = 1", "PRAGMA query_only = 0"},
	} {
		t.Run(name, func(t *testing.T) {
			s := newState(t)
			s.mustCreate(t, "api", "one")
			set := func(pragma string) {
				t.Helper()
				if _, err := s.writer.Exec(pragma); err != nil {
					t.Fatal(err)
				}
			}
			for i := range 3 {
				set(c.on) // each time: what failed may have cost the connection
				_, err := s.Create(t.Context(), put(fmt.Sprintf("big-%d", i), strings.Repeat("x", 100_000)))
				if !errors.Is(err, store.ErrUnavailable) {
					t.Fatalf("create: %v", err)
				}
			}
			if got, err := s.spec(t.Context(), "api", 0); err != nil || got != "one" {
				t.Errorf("reads go on: %q, %v", got, err)
			}
			set(c.off)
			s.mustUpdate(t, "api", "two")
			if list, err := s.List(t.Context(), "blue"); err != nil || len(list) != 1 {
				t.Errorf("a refused write left something: %v, %v", list, err)
			}
			if rev, err := s.Rev(t.Context()); err != nil || rev != 2 {
				t.Errorf("revision %d, %v", rev, err)
			}
		})
	}
}

// The same with a real limit of the system, on a process of its own.
func TestAttack_H03_no_space_for_the_log(t *testing.T) {
	if out, err := child(t, "limited", t.TempDir()).Output(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}

// limitedChild runs into RLIMIT_FSIZE and must come out of it by itself.
func limitedChild(ctx context.Context, dir string) error {
	signal.Ignore(syscall.SIGXFSZ)
	d, opener, err := openDir(ctx, dir, Options{})
	if err != nil {
		return err
	}
	s := &state{DB: d, opener: opener}
	if _, err := s.Create(ctx, put("api", "one")); err != nil {
		return err
	}
	info, err := os.Stat(d.path + "-wal")
	if err != nil {
		return err
	}
	var before syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_FSIZE, &before); err != nil {
		return err
	}
	limited := before
	limited.Cur = uint64(info.Size())
	if err := syscall.Setrlimit(syscall.RLIMIT_FSIZE, &limited); err != nil {
		return err
	}
	for i := range 3 {
		if _, _, err := s.Update(ctx, put("api", fmt.Sprintf("full %d", i))); !errors.Is(err, store.ErrUnavailable) {
			return fmt.Errorf("update on a full disk: %w", err)
		}
		if got, err := s.spec(ctx, "api", 0); err != nil || got != "one" {
			return fmt.Errorf("read on a full disk: %q, %w", got, err)
		}
	}
	if err := syscall.Setrlimit(syscall.RLIMIT_FSIZE, &before); err != nil {
		return err
	}
	if _, _, err := s.Update(ctx, put("api", "two")); err != nil {
		return fmt.Errorf("with space again: %w", err)
	}
	if got, err := s.spec(ctx, "api", 0); err != nil || got != "two" {
		return fmt.Errorf("with space again: %q, %w", got, err)
	}
	return d.Close()
}

func TestChangeThatCannotBeRecordedIsNotMade(t *testing.T) {
	s := newState(t)
	s.mustCreate(t, "api", "one")
	s.tamper(t, `DROP TABLE activity`)
	if _, _, err := s.Update(t.Context(), put("api", "two")); !errors.Is(err, store.ErrUnavailable) {
		t.Errorf("update: %v", err)
	}
	if _, err := s.Delete(t.Context(), "blue", "api", 0, "tester"); !errors.Is(err, store.ErrUnavailable) {
		t.Errorf("delete: %v", err)
	}
	if err := s.CreateToken(t.Context(), store.Token{Name: "ci"}); !errors.Is(err, store.ErrUnavailable) {
		t.Errorf("token: %v", err)
	}
	if got, err := s.spec(t.Context(), "api", 0); err != nil || got != "one" {
		t.Errorf("%q, %v", got, err)
	}
}

func TestWatchResetsOnAShortOrBrokenLog(t *testing.T) {
	first := func(t *testing.T, s *state, since store.Rev) store.Event {
		t.Helper()
		for e, err := range s.Watch(t.Context(), since) {
			if err != nil {
				t.Fatal(err)
			}
			return e
		}
		t.Fatal("no event")
		return store.Event{}
	}
	t.Run("short", func(t *testing.T) {
		s := newState(t)
		s.opts.KeptChanges = 5
		s.mustCreate(t, "api", "0")
		for i := range 9 {
			s.mustUpdate(t, "api", fmt.Sprint(i+1))
		}
		for since, want := range map[store.Rev]store.Event{
			0: {Type: store.EventReset, Rev: 10},
			4: {Type: store.EventReset, Rev: 10},
			5: {Type: store.EventPut, Rev: 6, Team: "blue", Name: "api", Version: 6},
		} {
			if got := first(t, s, since); got != want {
				t.Errorf("since %d: %+v, want %+v", since, got, want)
			}
		}
	})
	t.Run("a hidden change", func(t *testing.T) {
		s := newState(t)
		s.mustCreate(t, "api", "0")
		s.mustUpdate(t, "api", "1")
		s.mustUpdate(t, "api", "2")
		for _, attack := range []string{`DELETE FROM changes WHERE rev = 2`, `DELETE FROM changes`} {
			s.tamper(t, attack)
			if got := first(t, s, 1); got.Type != store.EventReset || got.Rev != 3 {
				t.Errorf("%s: %+v", attack, got)
			}
		}
	})
	t.Run("a forged change", func(t *testing.T) {
		s := newState(t)
		s.mustCreate(t, "api", "0")
		s.tamper(t, `UPDATE changes SET type = 9`)
		if got := first(t, s, 0); got.Type != store.EventReset {
			t.Errorf("%+v", got)
		}
	})
}

// Daemon and command line at once, at the very first start.
func TestFirstStartsAtOnce(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	const processes, each = 4, 10
	type result struct {
		out []byte
		err error
	}
	results := make(chan result, processes)
	for i := range processes {
		cmd := child(t, "starter", dir, fmt.Sprintf("EGRESSD_STORE_TEST_NAME=p%d", i))
		go func() {
			out, err := cmd.Output()
			results <- result{out, err}
		}()
	}
	for range processes {
		if r := <-results; r.err != nil {
			t.Fatalf("%v\n%s", r.err, r.out)
		}
	}
	d, opener, err := openDir(t.Context(), dir, Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	s := &state{DB: d, opener: opener}
	for i := range processes {
		for n := range each {
			name := fmt.Sprintf("p%d-%d", i, n)
			if got, err := s.spec(t.Context(), name, 0); err != nil || got != name {
				t.Errorf("%s: %q, %v", name, got, err)
			}
		}
	}
	if rev, err := d.Rev(t.Context()); err != nil || rev != processes*each {
		t.Errorf("revision %d, %v", rev, err)
	}
}

// starterChild starts on a directory that may not be there and writes a little.
func starterChild(ctx context.Context, dir string) error {
	d, _, err := openDir(ctx, dir, Options{BusyTimeout: 20 * time.Second})
	if err != nil {
		return err
	}
	for n := range 10 {
		name := fmt.Sprintf("%s-%d", os.Getenv("EGRESSD_STORE_TEST_NAME"), n)
		if _, err := d.Create(ctx, put(name, name)); err != nil {
			return err
		}
	}
	return d.Close()
}

// Changes of another process reach a watcher within the polling interval or so.
func TestWatchSeesAnotherProcess(t *testing.T) {
	s := newState(t)
	cmd := child(t, "starter", s.dir, "EGRESSD_STORE_TEST_NAME=other")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	n := 0
	for e, err := range s.Watch(t.Context(), 0) {
		if err != nil {
			t.Fatal(err)
		}
		if want := fmt.Sprintf("other-%d", n); e.Name != want || e.Rev != store.Rev(n+1) {
			t.Errorf("%+v, want %s", e, want)
		}
		if n++; n == 10 {
			break
		}
	}
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
}
