package sqlite

import (
	"context"
	"crypto/hmac"
	"database/sql"
	"database/sql/driver"
	"fmt"
	"time"

	"github.com/egressd/egressd/store"
)

// tx is one change being made. The write lock is held from its beginning.
type tx struct {
	*sql.Tx
	d       *DB
	now     time.Time
	changed *change // what to tell watchers after the commit, nil if nothing changed
}

type change struct {
	key
	rev     store.Rev
	deleted bool
}

// write runs fn in a transaction and commits if it returns nil. A caller's context
// ends the wait for the turn; once begun, a write is finished, so that an error
// always means that nothing was written.
func (d *DB) write(ctx context.Context, what string, fn func(context.Context, *tx) error) error {
	err := d.tryWrite(ctx, fn)
	if err != nil {
		return fmt.Errorf("%s: %w", what, classify(err))
	}
	return nil
}

func (d *DB) tryWrite(ctx context.Context, fn func(context.Context, *tx) error) error {
	conn, err := d.writer.Conn(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }() // back to the pool
	ctx = context.WithoutCancel(ctx)
	stx, err := conn.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	t := &tx{Tx: stx, d: d, now: d.opts.Now()}
	if err := fn(ctx, t); err != nil {
		if t.Rollback() != nil {
			discard(conn) // SQLite ended the transaction itself, or cannot
		}
		return err
	}
	if err := t.Commit(); err != nil {
		return err
	}
	if t.changed != nil {
		d.seen.raise(t.changed.key, t.changed.rev)
		d.bell.ring()
	}
	// Destroyed means gone from the log too, and the turn is still ours.
	d.scrub.after(ctx, conn, t.changed != nil && t.changed.deleted, d.opts.BusyTimeout)
	return nil
}

// discard closes a connection instead of giving it back to its pool.
func discard(conn *sql.Conn) {
	_ = conn.Raw(func(any) error { return driver.ErrBadConn })
}

// Create implements store.Writer.
func (d *DB) Create(ctx context.Context, p store.Put) (store.Meta, error) {
	if err := p.Check(); err != nil {
		return store.Meta{}, err
	}
	var made store.Meta
	err := d.write(ctx, "create source "+quote(p.Name), func(ctx context.Context, t *tx) error {
		k := key{p.Team, p.Name}
		h, r, err := d.loadUnverified(ctx, t, k)
		if err != nil {
			return err
		}
		if r != nil || h != nil && !h.tombstone {
			return store.ErrExists // be it corrupt: delete it first
		}
		if p.IfVersion != 0 || p.IfRev != 0 {
			return store.ErrStale
		}
		if made, err = t.save(ctx, "create", p.Actor, &row{Meta: p.First(t.now)}, true, p.Spec); err != nil {
			return err
		}
		if p.Answer == nil {
			return nil
		}
		answer, err := p.Answer(made.Clone())
		if err != nil {
			return err
		}
		return t.remember(ctx, answer)
	})
	if err != nil {
		return store.Meta{}, err
	}
	return made.Clone(), nil
}

// Update implements store.Writer.
func (d *DB) Update(ctx context.Context, p store.Put) (store.Meta, bool, error) {
	if err := p.Check(); err != nil {
		return store.Meta{}, false, err
	}
	var made store.Meta
	var unchanged bool
	err := d.write(ctx, "update source "+quote(p.Name), func(ctx context.Context, t *tx) error {
		r, err := d.load(ctx, t, key{p.Team, p.Name})
		if err != nil {
			return err
		}
		if err := r.Guard(p.IfVersion, p.IfRev); err != nil {
			return err
		}
		if r.Kind != p.Kind {
			return fmt.Errorf("%w: it is %s", store.ErrKindImmutable, r.Kind)
		}
		if unchanged, err = t.holds(ctx, r, p.Spec); err != nil {
			return err
		}
		next := r.Replaced(p)
		if unchanged && next.Same(r.Meta) {
			made = r.Meta
			return nil
		}
		next = next.Touched(!unchanged, t.now)
		made, err = t.save(ctx, "update", p.Actor, &row{Meta: next, born: r.born}, !unchanged, p.Spec)
		return err
	})
	if err != nil {
		return store.Meta{}, false, err
	}
	return made.Clone(), unchanged, nil
}

// Patch implements store.Writer.
func (d *DB) Patch(ctx context.Context, team, name string, p store.Patch) (store.Meta, error) {
	var made store.Meta
	err := d.write(ctx, "patch source "+quote(name), func(ctx context.Context, t *tx) error {
		r, err := d.load(ctx, t, key{team, name})
		if err != nil {
			return err
		}
		if err := r.Guard(p.IfVersion, p.IfRev); err != nil {
			return err
		}
		next, err := r.Patched(p)
		if err != nil {
			return err
		}
		if next.Same(r.Meta) {
			made = r.Meta
			return nil
		}
		made, err = t.save(ctx, "patch", p.Actor, &row{Meta: next.Touched(false, t.now), born: r.born}, false, nil)
		return err
	})
	if err != nil {
		return store.Meta{}, err
	}
	return made.Clone(), nil
}

// Delete implements store.Writer. It also removes a source that fails authentication;
// that is how one gets rid of it.
func (d *DB) Delete(ctx context.Context, team, name string, ifVersion uint64, actor string) (store.Meta, error) {
	var gone store.Meta
	err := d.write(ctx, "delete source "+quote(name), func(ctx context.Context, t *tx) error {
		k := key{team, name}
		h, r, err := d.loadUnverified(ctx, t, k)
		if err != nil {
			return err
		}
		if r == nil && (h == nil || h.tombstone) {
			return store.ErrNotFound
		}
		gone = store.Meta{Team: team, Name: name}
		if r != nil && r.decodeDoc() == nil {
			gone = r.Meta
		}
		if err := gone.Guard(ifVersion, 0); err != nil {
			return err
		}
		gone.Status, gone.UpdatedAt = store.Deleted, store.Stamp(t.now)
		gone.Rev, err = t.bury(ctx, k, h, gone.CurrentVersion, actor)
		return err
	})
	if err != nil {
		return store.Meta{}, err
	}
	return gone.Clone(), nil
}

// holds says whether spec is what the current version already holds. A version that
// fails authentication holds nothing: putting a spec anew is how one mends it.
func (t *tx) holds(ctx context.Context, r *row, spec []byte) (bool, error) {
	v, err := t.d.version(ctx, t, key{r.Team, r.Name}, r.CurrentVersion)
	if err != nil {
		return false, err
	}
	if v == nil || t.d.verifyVersion(r, v) != nil {
		return false, nil //nolint:nilerr // what does not authenticate is not the same: it is written anew
	}
	digest := t.d.sealer.Digest(r.Team, r.Name, r.Kind, spec)
	return hmac.Equal(v.digest, digest[:]), nil
}

// save writes a source's row and head, its new version if rotated, and what happened.
func (t *tx) save(ctx context.Context, action, actor string, r *row, rotated bool, spec []byte) (store.Meta, error) {
	k := key{r.Team, r.Name}
	rev, err := t.nextRev(ctx, k)
	if err != nil {
		return store.Meta{}, err
	}
	r.Rev = rev
	if r.born == 0 {
		r.born = rev
	}
	if err := r.encodeDoc(); err != nil {
		return store.Meta{}, err
	}
	if rotated {
		if err := t.addVersion(ctx, r, spec); err != nil {
			return store.Meta{}, err
		}
	}
	if err := t.exec(ctx, `INSERT OR REPLACE INTO sources
		(team, name, kind, version, status, rev, born, doc, created, updated, rotated, expires)
		VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)`,
		r.Team, r.Name, r.Kind, int64(r.CurrentVersion), string(r.Status), int64(r.Rev), int64(r.born), string(r.doc),
		micros(r.CreatedAt), micros(r.UpdatedAt), micros(r.LastRotatedAt), micros(r.ExpiresAt)); err != nil {
		return store.Meta{}, err
	}
	if err := t.saveHead(ctx, k, head{version: r.CurrentVersion, rev: rev}, r); err != nil {
		return store.Meta{}, err
	}
	err = t.record(ctx, store.EventPut, store.Activity{
		Actor: actor, Action: action, Team: r.Team, Name: r.Name, Version: r.CurrentVersion, Rev: rev,
	})
	return r.Meta, err
}

// addVersion seals spec as the row's current version and drops what is too old.
func (t *tx) addVersion(ctx context.Context, r *row, spec []byte) error {
	k := key{r.Team, r.Name}
	envelope, err := t.d.sealer.Seal(r.Team, r.Name, r.Kind, r.CurrentVersion, spec)
	if err != nil {
		return fmt.Errorf("seal: %w", err)
	}
	digest := t.d.sealer.Digest(r.Team, r.Name, r.Kind, spec)
	v := &version{
		number: r.CurrentVersion, kind: r.Kind, rev: r.Rev, created: r.UpdatedAt,
		digest: digest[:], envelope: envelope,
	}
	if err := t.exec(ctx, `INSERT OR REPLACE INTO versions
		(team, name, version, kind, rev, created, digest, mac, envelope) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)`,
		k.team, k.name, int64(v.number), v.kind, int64(v.rev), micros(v.created), v.digest, t.d.macVersion(k, v), v.envelope,
	); err != nil {
		return err
	}
	return t.exec(ctx, `DELETE FROM versions WHERE team = ? AND name = ? AND version <= ?`,
		k.team, k.name, int64(r.CurrentVersion)-store.KeptVersions)
}

// bury removes a source and all its envelopes and leaves a tombstone.
func (t *tx) bury(ctx context.Context, k key, h *head, number uint64, actor string) (store.Rev, error) {
	rev, err := t.nextRev(ctx, k)
	if err != nil {
		return 0, err
	}
	if h != nil && h.version > number {
		number = h.version
	}
	for _, table := range []string{"versions", "sources"} {
		if err := t.exec(ctx, `DELETE FROM `+table+` WHERE team = ? AND name = ?`, k.team, k.name); err != nil {
			return 0, err
		}
	}
	if err := t.saveHead(ctx, k, head{version: number, rev: rev, tombstone: true}, nil); err != nil {
		return 0, err
	}
	return rev, t.record(ctx, store.EventDelete, store.Activity{
		Actor: actor, Action: "delete", Team: k.team, Name: k.name, Version: number, Rev: rev,
	})
}

func (t *tx) saveHead(ctx context.Context, k key, h head, r *row) error {
	return t.exec(ctx, `INSERT OR REPLACE INTO heads (team, name, version, rev, tombstone, mac) VALUES (?, ?, ?, ?, ?, ?)`,
		k.team, k.name, int64(h.version), int64(h.rev), h.tombstone, t.d.macHead(k, h, r))
}

// nextRev takes the next revision of the store. It must lie above all that is known of
// the source: a store set back would otherwise hand out revisions twice.
func (t *tx) nextRev(ctx context.Context, k key) (store.Rev, error) {
	var rev, last int64
	err := t.QueryRowContext(ctx, `UPDATE store SET rev = rev + 1 WHERE id = 1
		RETURNING rev, max(coalesce((SELECT rev FROM heads WHERE team = ? AND name = ?), 0),
			coalesce((SELECT max(rev) FROM changes), 0))`, k.team, k.name).Scan(&rev, &last)
	if err != nil {
		return 0, err
	}
	if rev <= last || store.Rev(rev) <= t.d.seen.of(k) {
		return 0, fmt.Errorf("%w: the store's revision was set back", store.ErrCorrupt)
	}
	return store.Rev(rev), nil
}

// record writes the change to the log that Watch reads and to the activity.
func (t *tx) record(ctx context.Context, e store.EventType, a store.Activity) error {
	if err := t.exec(ctx, `INSERT INTO changes (rev, type, team, name, version) VALUES (?, ?, ?, ?, ?)`,
		int64(a.Rev), int64(e), a.Team, a.Name, int64(a.Version)); err != nil {
		return err
	}
	if err := t.exec(ctx, `DELETE FROM changes WHERE rev <= ?`, int64(a.Rev)-int64(t.d.opts.KeptChanges)); err != nil {
		return err
	}
	t.changed = &change{key: key{a.Team, a.Name}, rev: a.Rev, deleted: e == store.EventDelete}
	return t.act(ctx, a)
}

// act records activity; a change that cannot be recorded is not made.
func (t *tx) act(ctx context.Context, a store.Activity) error {
	if err := t.exec(ctx, `INSERT INTO activity (time, actor, action, team, name, version, rev) VALUES (?, ?, ?, ?, ?, ?, ?)`,
		micros(store.Stamp(t.now)), a.Actor, a.Action, a.Team, a.Name, int64(a.Version), int64(a.Rev)); err != nil {
		return err
	}
	return t.exec(ctx, `DELETE FROM activity WHERE id <= (SELECT max(id) FROM activity) - ?`, int64(t.d.opts.KeptActivity))
}

func (t *tx) exec(ctx context.Context, query string, args ...any) error {
	_, err := t.ExecContext(ctx, query, args...)
	return err
}

func quote(s string) string { return fmt.Sprintf("%q", s) }
