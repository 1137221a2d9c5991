package sqlite

import (
	"context"
	"crypto/hmac"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/egressd/egressd/store"
)

const (
	schemaVersion = 1
	applicationID = 0x65677264 // "egrd", in the file's header
)

// schema is version 1. heads is the rollback watermark: what sources and versions may
// not be older than. Times are microseconds since 1970, 0 for none.
const schema = `
CREATE TABLE store (
	id       INTEGER PRIMARY KEY CHECK (id = 1),
	schema   INTEGER NOT NULL,
	rev      INTEGER NOT NULL,
	keycheck BLOB NOT NULL
) STRICT;
CREATE TABLE sources (
	team TEXT NOT NULL, name TEXT NOT NULL, kind TEXT NOT NULL,
	version INTEGER NOT NULL, status TEXT NOT NULL,
	rev INTEGER NOT NULL, born INTEGER NOT NULL,
	doc TEXT NOT NULL,
	created INTEGER NOT NULL, updated INTEGER NOT NULL, rotated INTEGER NOT NULL, expires INTEGER NOT NULL,
	PRIMARY KEY (team, name)
) STRICT, WITHOUT ROWID;
CREATE TABLE heads (
	team TEXT NOT NULL, name TEXT NOT NULL,
	version INTEGER NOT NULL, rev INTEGER NOT NULL, tombstone INTEGER NOT NULL,
	mac BLOB NOT NULL,
	PRIMARY KEY (team, name)
) STRICT, WITHOUT ROWID;
CREATE TABLE versions (
	team TEXT NOT NULL, name TEXT NOT NULL, version INTEGER NOT NULL, kind TEXT NOT NULL,
	rev INTEGER NOT NULL, created INTEGER NOT NULL,
	digest BLOB NOT NULL, mac BLOB NOT NULL, envelope BLOB NOT NULL,
	UNIQUE (team, name, version)
) STRICT;
CREATE TABLE changes (
	rev INTEGER PRIMARY KEY, type INTEGER NOT NULL,
	team TEXT NOT NULL, name TEXT NOT NULL, version INTEGER NOT NULL
) STRICT;
CREATE TABLE tokens (
	name TEXT PRIMARY KEY, hash BLOB NOT NULL UNIQUE, role TEXT NOT NULL, team TEXT NOT NULL,
	created_by TEXT NOT NULL, created INTEGER NOT NULL, expires INTEGER NOT NULL, mac BLOB NOT NULL
) STRICT;
CREATE TABLE idempotency (
	key TEXT PRIMARY KEY, body_hash BLOB NOT NULL, status INTEGER NOT NULL, body BLOB NOT NULL,
	expires INTEGER NOT NULL
) STRICT;
CREATE INDEX idempotency_expires ON idempotency (expires);
CREATE TABLE activity (
	id INTEGER PRIMARY KEY AUTOINCREMENT, time INTEGER NOT NULL, actor TEXT NOT NULL, action TEXT NOT NULL,
	team TEXT NOT NULL, name TEXT NOT NULL, version INTEGER NOT NULL, rev INTEGER NOT NULL
) STRICT;
`

// prepareFile makes the file, so that it is never there with another mode than 0600,
// or checks the one that is there without opening it (see the package comment).
func prepareFile(path string) error {
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("%w: store %s: %w", store.ErrUnavailable, path, err)
	}
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if errors.Is(err, fs.ErrExist) {
		return checkFile(path)
	}
	if err != nil {
		return fmt.Errorf("%w: store %s: %w", store.ErrUnavailable, path, err)
	}
	err = f.Close()
	d, dirErr := os.Open(dir)
	if dirErr == nil {
		dirErr = errors.Join(d.Sync(), d.Close())
	}
	if err := errors.Join(err, dirErr); err != nil {
		return fmt.Errorf("%w: store %s: %w", store.ErrUnavailable, path, err)
	}
	return nil
}

func checkFile(path string) error {
	info, err := os.Stat(path)
	if err != nil {
		return fmt.Errorf("%w: store %s: %w", store.ErrUnavailable, path, err)
	}
	if !info.Mode().IsRegular() {
		return fmt.Errorf("%w: store %s is not a regular file", store.ErrUnavailable, path)
	}
	if info.Mode().Perm()&0o077 != 0 {
		return fmt.Errorf("%w: store %s is open to group or others (mode %04o): run: chmod 600 %s*",
			store.ErrUnavailable, path, info.Mode().Perm(), path)
	}
	return nil
}

// migrate brings the file to schemaVersion. Two processes at first start: one makes
// the tables, the other waits and finds them.
func (d *DB) migrate(ctx context.Context) error {
	err := d.migrateOnce(ctx)
	// Turning WAL on does not wait for a lock as other statements do.
	for end := time.Now().Add(d.opts.BusyTimeout); isBusy(err) && time.Now().Before(end); {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(10 * time.Millisecond):
		}
		err = d.migrateOnce(ctx)
	}
	return d.refusal(err)
}

func (d *DB) migrateOnce(ctx context.Context) error {
	tx, err := d.writer.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer tx.Rollback() //nolint:errcheck // after Commit it has nothing to do
	var app, tables, code int
	err = tx.QueryRowContext(ctx, `SELECT (SELECT application_id FROM pragma_application_id),
		(SELECT count(*) FROM sqlite_schema), (SELECT count(*) FROM sqlite_schema WHERE type IN ('trigger', 'view'))`).
		Scan(&app, &tables, &code)
	switch {
	case err != nil:
		return err
	case app == applicationID && code == 0:
		return d.checkMade(ctx, tx)
	case app == applicationID:
		return fmt.Errorf("%w: it holds triggers or views, which egressd never makes", store.ErrCorrupt)
	case app != 0 || tables != 0:
		return fmt.Errorf("%w: it is a database of another program", store.ErrInvalid)
	}
	check := d.keycheck()
	for _, step := range []func() (sql.Result, error){
		func() (sql.Result, error) { return tx.ExecContext(ctx, schema) },
		func() (sql.Result, error) {
			return tx.ExecContext(ctx, fmt.Sprintf("PRAGMA application_id = %d", applicationID))
		},
		func() (sql.Result, error) {
			return tx.ExecContext(ctx, `INSERT INTO store (id, schema, rev, keycheck) VALUES (1, ?, 0, ?)`, schemaVersion, check)
		},
	} {
		if _, err := step(); err != nil {
			return err
		}
	}
	return tx.Commit()
}

// checkMade looks at a file that egressd made before.
func (d *DB) checkMade(ctx context.Context, tx *sql.Tx) error {
	var version int
	var check []byte
	err := tx.QueryRowContext(ctx, `SELECT schema, keycheck FROM store WHERE id = 1`).Scan(&version, &check)
	switch {
	case errors.Is(err, sql.ErrNoRows):
		return fmt.Errorf("%w: its first table is empty", store.ErrCorrupt)
	case err != nil:
		return err
	case version > schemaVersion:
		return fmt.Errorf("%w: schema %d, this one knows %d", store.ErrTooNew, version, schemaVersion)
	case version < schemaVersion:
		return fmt.Errorf("%w: schema %d was never released", store.ErrCorrupt, version)
	case !hmac.Equal(check, d.keycheck()):
		return store.ErrWrongKeys
	}
	return nil
}

func (d *DB) keycheck() []byte {
	mac := d.sealer.Authenticate(store.NewRecord("keycheck/1"))
	return mac[:]
}

// refusal says which file cannot be used and what to do about it.
func (d *DB) refusal(err error) error {
	if err == nil {
		return nil
	}
	err = classify(err)
	var hint string
	switch {
	case errors.Is(err, store.ErrCorrupt):
		hint = "restore it from a backup, or move it away to start empty"
	case errors.Is(err, store.ErrTooNew):
		hint = "run the newer egressd, or restore the backup made before the upgrade"
	case errors.Is(err, store.ErrWrongKeys):
		hint = "restore the key files that belong to it"
	case errors.Is(err, store.ErrInvalid):
		hint = "choose another path"
	default:
		return fmt.Errorf("store %s: %w", d.path, err)
	}
	return fmt.Errorf("store %s cannot be used: %w: %s", d.path, err, hint)
}

// checkIntegrity looks through the file's pages for as long as a start may take; rows
// have MACs of their own, so what a large file leaves unseen is found when it is read.
func (d *DB) checkIntegrity(ctx context.Context) error {
	limited, cancel := context.WithTimeout(ctx, d.opts.IntegrityTime)
	defer cancel()
	var result string
	err := d.reader.QueryRowContext(limited, `PRAGMA quick_check(1)`).Scan(&result)
	if err != nil && limited.Err() != nil && ctx.Err() == nil {
		return nil
	}
	if err == nil && result != "ok" {
		err = fmt.Errorf("%w: %s", store.ErrCorrupt, result)
	}
	return d.refusal(err)
}
