package sqlite

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/egressd/egressd/store"
)

// keep copies rows of a table aside; put back writes them over what is there.
const (
	keepRows = `CREATE TABLE kept_%[1]s AS SELECT * FROM %[1]s WHERE name = 'api'`
	putBack  = `INSERT OR REPLACE INTO %[1]s SELECT * FROM kept_%[1]s`
)

func (s *state) keep(t *testing.T, tables ...string) {
	t.Helper()
	for _, table := range tables {
		s.tamper(t, fmt.Sprintf(keepRows, table))
	}
}

func (s *state) putBack(t *testing.T, tables ...string) {
	t.Helper()
	for _, table := range tables {
		s.tamper(t, fmt.Sprintf(putBack, table))
	}
}

func TestAttack_G02_swapped_rows_are_refused(t *testing.T) {
	for name, attack := range map[string]string{
		"envelope of another team": `UPDATE versions SET envelope =
			(SELECT envelope FROM versions WHERE team = 'red') WHERE team = 'blue' AND name = 'api' AND version = 2`,
		"whole version of another team": `UPDATE versions SET (kind, rev, created, digest, mac, envelope) =
			(SELECT kind, rev, created, digest, mac, envelope FROM versions WHERE team = 'red')
			WHERE team = 'blue' AND name = 'api' AND version = 2`,
		"whole version of another source": `UPDATE versions SET (kind, rev, created, digest, mac, envelope) =
			(SELECT kind, rev, created, digest, mac, envelope FROM versions WHERE team = 'blue' AND name = 'other')
			WHERE team = 'blue' AND name = 'api' AND version = 2`,
		"kind": `UPDATE sources SET kind = 'static_username_password' WHERE team = 'blue' AND name = 'api'`,
		"kind of source and version": `UPDATE sources SET kind = 'x' WHERE team = 'blue' AND name = 'api';
			UPDATE versions SET kind = 'x' WHERE team = 'blue' AND name = 'api'`,
		"destinations": `UPDATE sources SET doc = replace(doc, 'good.test', 'evil.test') WHERE team = 'blue' AND name = 'api'`,
		"status":       `UPDATE sources SET status = 'active' WHERE team = 'blue' AND name = 'api'`,
		"row of another source": `UPDATE sources SET (kind, version, status, rev, born, doc) =
			(SELECT kind, version, status, rev, born, doc FROM sources WHERE name = 'other') WHERE team = 'blue' AND name = 'api'`,
		"row and head of another source": `UPDATE sources SET (kind, version, status, rev, born, doc, created, updated, rotated) =
			(SELECT kind, version, status, rev, born, doc, created, updated, rotated FROM sources WHERE name = 'other')
			WHERE team = 'blue' AND name = 'api';
			UPDATE heads SET (version, rev, mac) = (SELECT version, rev, mac FROM heads WHERE name = 'other')
			WHERE team = 'blue' AND name = 'api'`,
		"current version removed": `DELETE FROM versions WHERE team = 'blue' AND name = 'api' AND version = 2`,
	} {
		t.Run(name, func(t *testing.T) {
			s := newState(t)
			s.mustCreate(t, "api", "one")
			s.mustUpdate(t, "api", "two")
			s.mustCreate(t, "other", "another")
			red := put("api", "red's")
			red.Team = "red"
			if _, err := s.Create(t.Context(), red); err != nil {
				t.Fatal(err)
			}
			off := store.Disabled
			if _, err := s.Patch(t.Context(), "blue", "api", store.Patch{Status: &off}); err != nil {
				t.Fatal(err)
			}
			s.tamper(t, attack)
			s.refuses(t, "api", 0)
			s.reopen(t)
			s.refuses(t, "api", 0)
			if got, err := s.spec(t.Context(), "other", 0); err != nil || got != "another" {
				t.Errorf("the source beside it: %q, %v", got, err)
			}
		})
	}
}

// refuses fails unless the data plane gets ErrCorrupt.
func (s *state) refuses(t *testing.T, name string, version uint64) {
	t.Helper()
	if got, err := s.spec(t.Context(), name, version); !errors.Is(err, store.ErrCorrupt) {
		t.Errorf("%s version %d: %q, %v; want ErrCorrupt", name, version, got, err)
	}
}

func TestAttack_G03_rollback_is_refused(t *testing.T) {
	set := func(query string) func(*testing.T, *state) {
		return func(t *testing.T, s *state) { s.tamper(t, query) }
	}
	for name, attack := range map[string]func(*testing.T, *state){
		"current_version = 1": set(`UPDATE sources SET version = 1`),
		"current_version and head = 1": set(`UPDATE sources SET version = 1;
			UPDATE heads SET version = 1`),
		"yesterday's row": func(t *testing.T, s *state) { s.putBack(t, "sources") },
		"yesterday's row and versions": func(t *testing.T, s *state) {
			s.putBack(t, "sources", "versions")
		},
		"yesterday's head":         func(t *testing.T, s *state) { s.putBack(t, "heads") },
		"yesterday's row, no head": func(t *testing.T, s *state) { s.putBack(t, "sources"); s.tamper(t, `DELETE FROM heads`) },
		"old envelope as new": set(`UPDATE versions SET (digest, mac, envelope) =
			(SELECT digest, mac, envelope FROM versions WHERE version = 1) WHERE version = 2`),
	} {
		t.Run(name, func(t *testing.T) {
			s := newState(t)
			s.mustCreate(t, "api", "leaked long ago")
			s.keep(t, "sources", "heads", "versions")
			s.mustUpdate(t, "api", "rotated")
			attack(t, s)
			s.refuses(t, "api", 0)
			s.reopen(t) // the head record is enough
			s.refuses(t, "api", 0)
			if _, _, err := s.Update(t.Context(), put("api", "x")); err != nil && !errors.Is(err, store.ErrCorrupt) {
				t.Errorf("update: %v", err)
			}
		})
	}
}

func TestAttack_G03_rollback_of_head_and_all_is_refused_while_running(t *testing.T) {
	all := []string{"sources", "heads", "versions"}
	t.Run("seen by Get", func(t *testing.T) {
		s := newState(t)
		s.mustCreate(t, "api", "one")
		s.keep(t, all...)
		s.mustUpdate(t, "api", "two")
		s.reopen(t)
		if got, err := s.spec(t.Context(), "api", 0); err != nil || got != "two" {
			t.Fatalf("%q, %v", got, err)
		}
		s.putBack(t, all...)
		s.refuses(t, "api", 0)
	})
	t.Run("seen by Watch", func(t *testing.T) {
		s := newState(t)
		s.mustCreate(t, "api", "one")
		s.keep(t, all...)
		s.mustUpdate(t, "api", "two")
		s.reopen(t)
		for e, err := range s.Watch(t.Context(), 1) {
			if err != nil || e.Rev != 2 {
				t.Errorf("%+v, %v", e, err)
			}
			break
		}
		s.putBack(t, all...)
		s.refuses(t, "api", 0)
	})
	t.Run("undelete", func(t *testing.T) {
		s := newState(t)
		s.mustCreate(t, "api", "one")
		s.keep(t, all...)
		if _, err := s.Delete(t.Context(), "blue", "api", 0, "tester"); err != nil {
			t.Fatal(err)
		}
		s.putBack(t, all...)
		s.refuses(t, "api", 0)
	})
	t.Run("the store's revision", func(t *testing.T) {
		s := newState(t)
		s.mustCreate(t, "api", "one")
		s.mustUpdate(t, "api", "two")
		s.tamper(t, `UPDATE store SET rev = 0`)
		if _, err := s.Create(t.Context(), put("new", "x")); !errors.Is(err, store.ErrCorrupt) {
			t.Errorf("revisions would be handed out twice: %v", err)
		}
		for e, err := range s.Watch(t.Context(), 2) {
			if err != nil || e.Type != store.EventReset {
				t.Errorf("a watcher is told %+v, %v", e, err)
			}
			break
		}
	})
}

func TestAttack_G03_versions_of_an_earlier_source_are_refused(t *testing.T) {
	s := newState(t)
	s.mustCreate(t, "api", "old one")
	s.mustUpdate(t, "api", "old two")
	s.keep(t, "versions", "sources", "heads")
	if _, err := s.Delete(t.Context(), "blue", "api", 0, "tester"); err != nil {
		t.Fatal(err)
	}
	s.tamper(t, `INSERT INTO versions SELECT * FROM kept_versions`)
	if _, err := s.Get(t.Context(), "blue", "api", 1); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("versions without a source: %v", err)
	}
	s.tamper(t, `DELETE FROM versions`)
	s.mustCreate(t, "api", "new one")
	s.tamper(t, `INSERT OR REPLACE INTO versions SELECT * FROM kept_versions`)
	s.reopen(t)
	s.refuses(t, "api", 0) // version 1 is the old one now
	s.refuses(t, "api", 1)
	if _, err := s.Get(t.Context(), "blue", "api", 2); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("a version that this source never had: %v", err)
	}
}

func TestAttack_G03_removed_versions_stay_away(t *testing.T) {
	s := newState(t)
	s.mustCreate(t, "api", "spec 1")
	s.keep(t, "versions")
	for i := range store.KeptVersions {
		s.mustUpdate(t, "api", fmt.Sprintf("spec %d", i+2))
	}
	s.putBack(t, "versions")
	if _, err := s.Get(t.Context(), "blue", "api", 1); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("a version beyond the last %d: %v", store.KeptVersions, err)
	}
}

func TestCorruptSourceIsContained(t *testing.T) {
	s := newState(t)
	s.mustCreate(t, "api", "one")
	s.mustCreate(t, "fine", "one")
	s.tamper(t, `UPDATE sources SET doc = '{"description":"I am fine"}' WHERE name = 'api'`)
	if _, err := s.Meta(t.Context(), "blue", "api"); !errors.Is(err, store.ErrCorrupt) {
		t.Errorf("meta: %v", err)
	}
	list, err := s.List(t.Context(), "blue")
	if err != nil || len(list) != 2 {
		t.Fatalf("list: %v, %v", list, err)
	}
	if list[0].Description != "" || list[0].Status != store.Disabled || !strings.Contains(list[0].Health, "failed authentication") {
		t.Errorf("listed as %+v", list[0])
	}
	if list[1].Health != "ok" {
		t.Errorf("listed as %+v", list[1])
	}
	for what, try := range map[string]func() error{
		"update": func() error { _, _, err := s.Update(t.Context(), put("api", "two")); return err },
		"patch": func() error {
			on := store.Active
			_, err := s.Patch(t.Context(), "blue", "api", store.Patch{Status: &on})
			return err
		},
	} {
		if err := try(); !errors.Is(err, store.ErrCorrupt) {
			t.Errorf("%s gave the forged row a good head: %v", what, err)
		}
	}
	if _, err := s.Create(t.Context(), put("api", "two")); !errors.Is(err, store.ErrExists) {
		t.Errorf("create: %v", err)
	}
	// The way out.
	if _, err := s.Delete(t.Context(), "blue", "api", 0, "tester"); err != nil {
		t.Fatal(err)
	}
	s.mustCreate(t, "api", "two")
	if got, err := s.spec(t.Context(), "api", 0); err != nil || got != "two" {
		t.Errorf("%q, %v", got, err)
	}
}

func TestDamagedVersionIsMendedByUpdate(t *testing.T) {
	s := newState(t)
	s.mustCreate(t, "api", "one")
	s.tamper(t, `UPDATE versions SET envelope = zeroblob(100)`)
	s.refuses(t, "api", 0)
	if m := s.mustUpdate(t, "api", "one"); m.CurrentVersion != 2 {
		t.Errorf("the same spec over a damaged version: %+v", m)
	}
	if got, err := s.spec(t.Context(), "api", 0); err != nil || got != "one" {
		t.Errorf("%q, %v", got, err)
	}
}

func TestForgedTokensAreRefused(t *testing.T) {
	s := newState(t)
	hash := sha256.Sum256([]byte("value"))
	if err := s.CreateToken(t.Context(), store.Token{Name: "ci", Role: "read", Hash: hash}); err != nil {
		t.Fatal(err)
	}
	mine := sha256.Sum256([]byte("mine"))
	s.tamper(t, `INSERT INTO tokens SELECT 'mine', ?, 'admin', '', '', created, expires, mac FROM tokens`, mine[:])
	if _, err := s.TokenByHash(t.Context(), mine); !errors.Is(err, store.ErrCorrupt) {
		t.Errorf("a planted token: %v", err)
	}
	list, err := s.ListTokens(t.Context())
	if err != nil || len(list) != 1 || list[0].Name != "ci" {
		t.Errorf("list %+v, %v", list, err)
	}
	s.tamper(t, `UPDATE tokens SET role = 'admin' WHERE name = 'ci'`)
	if _, err := s.TokenByHash(t.Context(), hash); !errors.Is(err, store.ErrCorrupt) {
		t.Errorf("a raised role: %v", err)
	}
}

// bytesOf reads the store's files by way of another process: opening and closing them
// in this one would drop SQLite's locks.
func bytesOf(t *testing.T, path string) []byte {
	t.Helper()
	var all []byte
	for _, suffix := range []string{"", "-wal", "-shm"} {
		if _, err := os.Stat(path + suffix); err != nil {
			continue
		}
		out, err := exec.CommandContext(t.Context(), "cat", path+suffix).Output()
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, out...)
	}
	return all
}

func TestAttack_G06_no_secret_in_the_files(t *testing.T) {
	s := newState(t)
	random := make([]byte, 24)
	if _, err := rand.Read(random); err != nil {
		t.Fatal(err)
	}
	canary := "canary+/" + base64.StdEncoding.EncodeToString(random)
	spec := func(i int) string {
		return fmt.Sprintf(`{"staticHeaders":{"values":{"token":%q,"n":"%d"}}}`, canary, i)
	}
	check := func(when string) {
		t.Helper()
		files := bytesOf(t, s.path)
		if !bytes.Contains(files, []byte("SQLite format 3")) || !bytes.Contains(files, []byte("good.test")) {
			t.Fatalf("%s: this is not the store's content", when)
		}
		for form, want := range forms(canary) {
			if bytes.Contains(files, []byte(want)) {
				t.Errorf("%s: the secret is in the files as %s", when, form)
			}
		}
	}
	s.mustCreate(t, "api", spec(0))
	s.mustCreate(t, "stays", spec(0))
	for i := range 20 {
		s.mustUpdate(t, "api", spec(i+1))
	}
	check("after writes")
	if _, err := s.Delete(t.Context(), "blue", "api", 0, "tester"); err != nil {
		t.Fatal(err)
	}
	check("after the deletion")
	backup := filepath.Join(s.dir, "backup.db")
	s.tamper(t, `VACUUM INTO ?`, backup)
	s.reopen(t)
	check("after a restart")
	s.path, backup = backup, s.path
	check("in a backup")
	s.path = backup
}

// forms are the guises a secret may go in.
func forms(secret string) map[string]string {
	all := map[string]string{
		"itself": secret, "hex": hex.EncodeToString([]byte(secret)), "HEX": strings.ToUpper(hex.EncodeToString([]byte(secret))),
		"URL": url.QueryEscape(secret),
	}
	for shift := range 3 {
		encoded := base64.RawStdEncoding.EncodeToString([]byte(strings.Repeat("x", shift) + secret))
		inner := encoded[4 : len(encoded)-4]
		all[fmt.Sprintf("base64 shifted by %d", shift)] = inner
		all[fmt.Sprintf("base64url shifted by %d", shift)] = strings.NewReplacer("+", "-", "/", "_").Replace(inner)
	}
	return all
}

func TestAttack_G25_deletion_destroys_the_envelopes(t *testing.T) {
	s := newState(t)
	s.mustCreate(t, "api", strings.Repeat("long spec, over several pages ", 1000))
	s.mustUpdate(t, "api", "short")
	s.mustCreate(t, "stays", "x")
	var pieces [][]byte
	for version := uint64(1); version <= 2; version++ {
		sealed, err := s.Get(t.Context(), "blue", "api", version)
		if err != nil {
			t.Fatal(err)
		}
		for at := 100; at+32 < len(sealed.Envelope); at += 500 {
			pieces = append(pieces, sealed.Envelope[at:at+32])
		}
	}
	found := func() (n int) {
		files := bytesOf(t, s.path)
		for _, p := range pieces {
			if bytes.Contains(files, p) {
				n++
			}
		}
		return n
	}
	if n := found(); n < len(pieces)*9/10 { // some straddle pages
		t.Fatalf("only %d of %d pieces are there to be destroyed", n, len(pieces))
	}
	if _, err := s.Delete(t.Context(), "blue", "api", 0, "tester"); err != nil {
		t.Fatal(err)
	}
	if n := found(); n > 0 {
		t.Errorf("%d of %d pieces are left", n, len(pieces))
	}
}

func TestAttack_G25_deletion_waits_for_no_reader_but_is_finished_later(t *testing.T) {
	s := newState(t)
	s.mustCreate(t, "api", "x")
	sealed, err := s.Get(t.Context(), "blue", "api", 0)
	if err != nil {
		t.Fatal(err)
	}
	piece := sealed.Envelope[100:132]
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	reader, err := s.raw.BeginTx(ctx, nil)
	if err != nil {
		t.Fatal(err)
	}
	var n int
	if err := reader.QueryRow(`SELECT count(*) FROM versions`).Scan(&n); err != nil || n != 1 {
		t.Fatal(n, err)
	}
	if _, err := s.Delete(t.Context(), "blue", "api", 0, "tester"); err != nil {
		t.Fatal(err)
	}
	if !s.scrub.due.Load() {
		t.Error("a reader of the old state did not keep the log from being emptied")
	}
	if err := reader.Rollback(); err != nil {
		t.Fatal(err)
	}
	s.mustCreate(t, "next", "x")
	if s.scrub.due.Load() || bytes.Contains(bytesOf(t, s.path), piece) {
		t.Error("the envelope is still there after the next write")
	}
}
