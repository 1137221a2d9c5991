package sqlite

import (
	"context"
	"crypto/hmac"
	"database/sql"
	"errors"
	"fmt"

	"github.com/egressd/egressd/store"
)

//nolint:gosec // names of columns
const tokenColumns = `name, hash, role, team, created_by, created, expires, mac`

// CreateToken implements store.Tokens.
func (d *DB) CreateToken(ctx context.Context, tok store.Token) error {
	if err := store.CheckName(tok.Team, tok.Name); err != nil {
		return err
	}
	tok.CreatedAt, tok.ExpiresAt = store.Stamp(tok.CreatedAt), store.Stamp(tok.ExpiresAt)
	return d.write(ctx, "create token "+quote(tok.Name), func(ctx context.Context, t *tx) error {
		var n int
		err := t.QueryRowContext(ctx, `SELECT count(*) FROM tokens WHERE name = ? OR hash = ?`, tok.Name, tok.Hash[:]).Scan(&n)
		if err != nil {
			return err
		}
		if n > 0 {
			return store.ErrExists
		}
		if err := t.exec(ctx, `INSERT INTO tokens (`+tokenColumns+`) VALUES (?, ?, ?, ?, ?, ?, ?, ?)`,
			tok.Name, tok.Hash[:], tok.Role, tok.Team, tok.CreatedBy,
			micros(tok.CreatedAt), micros(tok.ExpiresAt), d.macToken(tok)); err != nil {
			return err
		}
		return t.act(ctx, store.Activity{Actor: tok.CreatedBy, Action: "token.create", Team: tok.Team, Name: tok.Name})
	})
}

// TokenByHash implements store.Tokens; ErrNotFound if there is none, ErrCorrupt for one
// that was not written by a key holder.
func (d *DB) TokenByHash(ctx context.Context, hash [32]byte) (store.Token, error) {
	row := d.reader.QueryRowContext(ctx, `SELECT `+tokenColumns+` FROM tokens WHERE hash = ?`, hash[:])
	tok, err := d.scanToken(row.Scan)
	if errors.Is(err, sql.ErrNoRows) {
		return store.Token{}, fmt.Errorf("token: %w", store.ErrNotFound)
	}
	if err != nil {
		return store.Token{}, fmt.Errorf("token: %w", classify(err))
	}
	return tok, nil
}

// ListTokens implements store.Tokens, by name. A token that fails authentication, and so
// lets nobody in, is not listed.
func (d *DB) ListTokens(ctx context.Context) ([]store.Token, error) {
	rows, err := d.reader.QueryContext(ctx, `SELECT `+tokenColumns+` FROM tokens ORDER BY name`)
	if err != nil {
		return nil, fmt.Errorf("list tokens: %w", classify(err))
	}
	defer func() { _ = rows.Close() }() // rows.Err says what went wrong
	list := []store.Token{}
	for rows.Next() {
		tok, err := d.scanToken(rows.Scan)
		if errors.Is(err, store.ErrCorrupt) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("list tokens: %w", classify(err))
		}
		list = append(list, tok)
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("list tokens: %w", classify(err))
	}
	return list, nil
}

// DeleteToken implements store.Tokens.
func (d *DB) DeleteToken(ctx context.Context, name string) error {
	return d.write(ctx, "delete token "+quote(name), func(ctx context.Context, t *tx) error {
		var team string
		err := t.QueryRowContext(ctx, `DELETE FROM tokens WHERE name = ? RETURNING team`, name).Scan(&team)
		if errors.Is(err, sql.ErrNoRows) {
			return store.ErrNotFound
		}
		if err != nil {
			return err
		}
		return t.act(ctx, store.Activity{Action: "token.delete", Team: team, Name: name})
	})
}

func (d *DB) scanToken(scan func(...any) error) (store.Token, error) {
	var tok store.Token
	var hash, mac []byte
	var created, expires int64
	err := scan(&tok.Name, &hash, &tok.Role, &tok.Team, &tok.CreatedBy, &created, &expires, &mac)
	if err != nil {
		return store.Token{}, err
	}
	if len(hash) != len(tok.Hash) {
		return store.Token{}, fmt.Errorf("%w: token %q", store.ErrCorrupt, tok.Name)
	}
	tok.Hash = [32]byte(hash)
	tok.CreatedAt, tok.ExpiresAt = fromMicros(created), fromMicros(expires)
	if !hmac.Equal(mac, d.macToken(tok)) {
		return store.Token{}, fmt.Errorf("%w: token %q", store.ErrCorrupt, tok.Name)
	}
	return tok, nil
}

// macToken keeps who can write the file from giving himself a token or a role.
func (d *DB) macToken(t store.Token) []byte {
	mac := d.sealer.Authenticate(store.NewRecord("token/1").Str(t.Name).Bytes(t.Hash[:]).Str(t.Role).Str(t.Team).
		Str(t.CreatedBy).Uint(uint64(micros(t.CreatedAt))).Uint(uint64(micros(t.ExpiresAt))))
	return mac[:]
}

// Recall implements store.Idempotency.
func (d *DB) Recall(ctx context.Context, key string) (status int, body []byte, bodyHash [32]byte, ok bool, err error) {
	var hash []byte
	err = d.reader.QueryRowContext(ctx, `SELECT status, body, body_hash FROM idempotency WHERE key = ? AND expires > ?`,
		key, micros(d.opts.Now())).Scan(&status, &body, &hash)
	if errors.Is(err, sql.ErrNoRows) {
		return 0, nil, bodyHash, false, nil
	}
	if err == nil && len(hash) != len(bodyHash) {
		err = fmt.Errorf("%w: body hash", store.ErrCorrupt)
	}
	if err != nil {
		return 0, nil, bodyHash, false, fmt.Errorf("recall answer: %w", classify(err))
	}
	return status, body, [32]byte(hash), true, nil
}

// Remember implements store.Idempotency.
func (d *DB) Remember(ctx context.Context, key string, bodyHash [32]byte, status int, body []byte) error {
	return d.write(ctx, "remember answer", func(ctx context.Context, t *tx) error {
		return t.remember(ctx, store.Answer{Key: key, BodyHash: bodyHash, Status: status, Body: body})
	})
}

func (t *tx) remember(ctx context.Context, a store.Answer) error {
	if err := t.exec(ctx, `DELETE FROM idempotency WHERE expires <= ?`, micros(t.now)); err != nil {
		return err
	}
	body := a.Body
	if body == nil {
		body = []byte{} // the driver writes nil as NULL
	}
	return t.exec(ctx, `INSERT INTO idempotency (key, body_hash, status, body, expires) VALUES (?, ?, ?, ?, ?)
		ON CONFLICT (key) DO NOTHING`, a.Key, a.BodyHash[:], a.Status, body, micros(t.now.Add(store.IdempotencyTTL)))
}

// Activity implements store.Activities.
func (d *DB) Activity(ctx context.Context, limit int) ([]store.Activity, error) {
	rows, err := d.reader.QueryContext(ctx,
		`SELECT time, actor, action, team, name, version, rev FROM activity ORDER BY id DESC LIMIT ?`, max(limit, 0))
	if err != nil {
		return nil, fmt.Errorf("read activity: %w", classify(err))
	}
	defer func() { _ = rows.Close() }() // rows.Err says what went wrong
	list := []store.Activity{}
	for rows.Next() {
		var a store.Activity
		var at, version, rev int64
		if err := rows.Scan(&at, &a.Actor, &a.Action, &a.Team, &a.Name, &version, &rev); err != nil {
			return nil, fmt.Errorf("read activity: %w", classify(err))
		}
		a.Time, a.Version, a.Rev = fromMicros(at), uint64(version), store.Rev(rev)
		list = append(list, a)
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("read activity: %w", classify(err))
	}
	return list, nil
}
