package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"fmt"

	"github.com/egressd/egressd/store"
)

const (
	headColumns   = `h.version, h.rev, h.tombstone, h.mac`
	sourceColumns = `s.kind, s.version, s.status, s.rev, s.born, s.doc, s.created, s.updated, s.rotated, s.expires`
	// One row always, so that head, source and version come from one snapshot of the file.
	loadQuery = `SELECT ` + headColumns + `, ` + sourceColumns + `
		FROM (SELECT ?1 AS team, ?2 AS name) k
		LEFT JOIN heads h ON h.team = k.team AND h.name = k.name
		LEFT JOIN sources s ON s.team = k.team AND s.name = k.name`
	getQuery = `SELECT ` + headColumns + `, ` + sourceColumns + `,
			v.version, v.kind, v.rev, v.created, v.digest, v.mac, v.envelope
		FROM (SELECT ?1 AS team, ?2 AS name) k
		LEFT JOIN heads h ON h.team = k.team AND h.name = k.name
		LEFT JOIN sources s ON s.team = k.team AND s.name = k.name
		LEFT JOIN versions v ON v.team = k.team AND v.name = k.name AND v.version = iif(?3 = 0, s.version, ?3)`
	versionQuery = `SELECT version, kind, rev, created, digest, mac, envelope FROM versions
		WHERE team = ? AND name = ? AND version = ?`
	listQuery = `SELECT s.team, s.name, ` + headColumns + `, ` + sourceColumns + `
		FROM sources s LEFT JOIN heads h ON h.team = s.team AND h.name = s.name
		WHERE s.team = ? ORDER BY s.name`
)

// nullable scan targets of the three tables' columns; each gives nil for a row that is not there.
type scanHead struct {
	version, rev, tombstone sql.NullInt64
	mac                     []byte
}

func (s *scanHead) into() []any { return []any{&s.version, &s.rev, &s.tombstone, &s.mac} }

func (s *scanHead) head() *head {
	if !s.rev.Valid {
		return nil
	}
	return &head{
		version: uint64(s.version.Int64), rev: store.Rev(s.rev.Int64),
		tombstone: s.tombstone.Int64 != 0, mac: s.mac,
	}
}

type scanSource struct {
	kind, status                                           sql.NullString
	version, rev, born, created, updated, rotated, expires sql.NullInt64
	doc                                                    []byte
}

func (s *scanSource) into() []any {
	return []any{&s.kind, &s.version, &s.status, &s.rev, &s.born, &s.doc, &s.created, &s.updated, &s.rotated, &s.expires}
}

func (s *scanSource) row(k key) *row {
	if !s.rev.Valid {
		return nil
	}
	return &row{
		Meta: store.Meta{
			Team: k.team, Name: k.name, Kind: s.kind.String,
			CurrentVersion: uint64(s.version.Int64), Status: store.Status(s.status.String), Rev: store.Rev(s.rev.Int64),
			CreatedAt: fromMicros(s.created.Int64), UpdatedAt: fromMicros(s.updated.Int64),
			LastRotatedAt: fromMicros(s.rotated.Int64), ExpiresAt: fromMicros(s.expires.Int64),
		},
		born: store.Rev(s.born.Int64),
		doc:  s.doc,
	}
}

type scanVersion struct {
	number, rev, created  sql.NullInt64
	kind                  sql.NullString
	digest, mac, envelope []byte
}

func (s *scanVersion) into() []any {
	return []any{&s.number, &s.kind, &s.rev, &s.created, &s.digest, &s.mac, &s.envelope}
}

func (s *scanVersion) version() *version {
	if !s.rev.Valid {
		return nil
	}
	return &version{
		number: uint64(s.number.Int64), kind: s.kind.String, rev: store.Rev(s.rev.Int64),
		created: fromMicros(s.created.Int64), digest: s.digest, mac: s.mac, envelope: s.envelope,
	}
}

// Get implements store.Reader. One statement, so head, source and version are of one
// moment. ErrCorrupt for whatever is not what a key holder wrote last.
func (d *DB) Get(ctx context.Context, team, name string, number uint64) (store.Sealed, error) {
	k := key{team, name}
	floor := d.seen.of(k) // before the read: what the read returns may not be older
	var sh scanHead
	var ss scanSource
	var sv scanVersion
	err := d.get.QueryRowContext(ctx, team, name, int64(number)).Scan(append(append(sh.into(), ss.into()...), sv.into()...)...)
	if err != nil {
		return store.Sealed{}, fmt.Errorf("get source %q: %w", name, classify(err))
	}
	h, r, v := sh.head(), ss.row(k), sv.version()
	exists, err := d.verify(k, h, r, floor)
	if err != nil {
		return store.Sealed{}, err
	}
	if h != nil {
		d.seen.raise(k, h.rev)
	}
	if !exists {
		return store.Sealed{}, fmt.Errorf("source %q: %w", name, store.ErrNotFound)
	}
	if err := d.checkVersion(r, v, number); err != nil {
		return store.Sealed{}, err
	}
	if err := r.decodeDoc(); err != nil {
		return store.Sealed{}, err
	}
	return store.Sealed{
		Team: team, Name: name, Kind: r.Kind, Version: v.number, Rev: r.Rev, Status: r.Status,
		AllowedDestinations: r.AllowedDestinations, Envelope: v.envelope,
	}, nil
}

// checkVersion judges the version that was found for the wanted number, 0 the current one.
func (d *DB) checkVersion(r *row, v *version, wanted uint64) error {
	if wanted > r.CurrentVersion || wanted != 0 && wanted+store.KeptVersions <= r.CurrentVersion {
		return fmt.Errorf("version %d of source %q: %w", wanted, r.Name, store.ErrNotFound)
	}
	if v == nil && (wanted == 0 || wanted == r.CurrentVersion) {
		return corrupt(key{r.Team, r.Name}, "its current version is missing")
	}
	if v == nil {
		return fmt.Errorf("version %d of source %q: %w", wanted, r.Name, store.ErrNotFound)
	}
	return d.verifyVersion(r, v)
}

// Rev implements store.Reader.
func (d *DB) Rev(ctx context.Context) (store.Rev, error) {
	var rev int64
	err := d.reader.QueryRowContext(ctx, `SELECT rev FROM store WHERE id = 1`).Scan(&rev)
	if err != nil {
		return 0, fmt.Errorf("read revision: %w", classify(err))
	}
	return store.Rev(rev), nil
}

// Meta implements store.Writer. ErrCorrupt for a source that was tampered with.
func (d *DB) Meta(ctx context.Context, team, name string) (store.Meta, error) {
	r, err := d.load(ctx, d.reader, key{team, name})
	if err != nil {
		return store.Meta{}, err
	}
	return r.Clone(), nil
}

// querier is a pool or a transaction.
type querier interface {
	QueryRowContext(ctx context.Context, query string, args ...any) *sql.Row
}

// load reads and verifies a live source; ErrNotFound if there is none.
func (d *DB) load(ctx context.Context, q querier, k key) (*row, error) {
	floor := d.seen.of(k)
	h, r, err := d.loadUnverified(ctx, q, k)
	if err != nil {
		return nil, err
	}
	exists, err := d.verify(k, h, r, floor)
	if err != nil {
		return nil, err
	}
	if !exists {
		return nil, fmt.Errorf("source %q: %w", k.name, store.ErrNotFound)
	}
	return r, r.decodeDoc()
}

func (d *DB) loadUnverified(ctx context.Context, q querier, k key) (*head, *row, error) {
	var sh scanHead
	var ss scanSource
	err := q.QueryRowContext(ctx, loadQuery, k.team, k.name).Scan(append(sh.into(), ss.into()...)...)
	if err != nil {
		return nil, nil, fmt.Errorf("load source %q: %w", k.name, classify(err))
	}
	return sh.head(), ss.row(k), nil
}

// List implements store.Writer, by name. A source that fails authentication is listed
// with what its key alone says, and Health saying so: one bad row hides no other.
func (d *DB) List(ctx context.Context, team string) ([]store.Meta, error) {
	rows, err := d.reader.QueryContext(ctx, listQuery, team)
	if err != nil {
		return nil, fmt.Errorf("list sources: %w", classify(err))
	}
	defer func() { _ = rows.Close() }() // rows.Err says what went wrong
	list := []store.Meta{}
	for rows.Next() {
		var k key
		var sh scanHead
		var ss scanSource
		if err := rows.Scan(append(append([]any{&k.team, &k.name}, sh.into()...), ss.into()...)...); err != nil {
			return nil, fmt.Errorf("list sources: %w", classify(err))
		}
		list = append(list, d.listed(k, sh.head(), ss.row(k)))
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("list sources: %w", classify(err))
	}
	return list, nil
}

func (d *DB) listed(k key, h *head, r *row) store.Meta {
	_, err := d.verify(k, h, r, 0)
	if err == nil {
		err = r.decodeDoc()
	}
	if err == nil {
		return r.Clone()
	}
	return store.Meta{
		Team: k.team, Name: k.name, Kind: r.Kind, Status: store.Disabled,
		Health: "failed authentication: the store was changed from outside; delete it and create it again",
	}
}

// version reads one version inside a transaction, nil if it is not there.
func (d *DB) version(ctx context.Context, q querier, k key, number uint64) (*version, error) {
	var sv scanVersion
	err := q.QueryRowContext(ctx, versionQuery, k.team, k.name, int64(number)).Scan(sv.into()...)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("load version %d of source %q: %w", number, k.name, classify(err))
	}
	return sv.version(), nil
}
