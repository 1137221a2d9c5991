package sqlite

import (
	"context"
	"database/sql"
	"fmt"
	"iter"
	"sync"
	"time"

	"github.com/egressd/egressd/store"
)

// bell wakes this process's watchers at once after a commit.
type bell struct {
	mu sync.Mutex
	ch chan struct{}
}

// next returns a channel that the next ring closes.
func (b *bell) next() <-chan struct{} {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.ch == nil {
		b.ch = make(chan struct{})
	}
	return b.ch
}

func (b *bell) ring() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.ch != nil {
		close(b.ch)
		b.ch = nil
	}
}

const watchBatch = 1000

// Watch implements store.Reader. Changes of this process come at once, those of others
// within Options.Poll. It yields EventReset, with the revision to go on from, when
// since is older than the log or newer than the store, or the log has a gap. An error
// ends it; the end of ctx ends it without one.
func (d *DB) Watch(ctx context.Context, since store.Rev) iter.Seq2[store.Event, error] {
	return func(yield func(store.Event, error) bool) {
		tick := time.NewTicker(d.opts.Poll)
		defer tick.Stop()
		for {
			ring := d.bell.next() // before reading: a commit after the read rings this one
			events, err := d.changesAfter(ctx, since)
			if ctx.Err() != nil {
				return
			}
			if err != nil {
				yield(store.Event{}, fmt.Errorf("watch: %w", classify(err)))
				return
			}
			for _, e := range events {
				if e.Type != store.EventReset {
					d.seen.raise(key{e.Team, e.Name}, e.Rev)
				}
				if !yield(e, nil) {
					return
				}
				since = e.Rev
			}
			if len(events) > 0 {
				continue
			}
			select {
			case <-ctx.Done():
				return
			case <-d.closed:
				yield(store.Event{}, fmt.Errorf("watch: %w: closed", store.ErrUnavailable))
				return
			case <-ring:
			case <-tick.C:
			}
		}
	}
}

// changesAfter returns the next events, none if since is the latest revision.
func (d *DB) changesAfter(ctx context.Context, since store.Rev) ([]store.Event, error) {
	now, err := d.Rev(ctx)
	if err != nil || now == since {
		return nil, err
	}
	rows, err := d.reader.QueryContext(ctx,
		`SELECT rev, type, team, name, version FROM changes WHERE rev > ? ORDER BY rev LIMIT ?`, int64(since), watchBatch)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	events, whole, err := scanEvents(rows, since)
	if err != nil {
		return nil, err
	}
	if !whole {
		// A gap, or since is ahead of the store. Whatever is missing was committed
		// before now was read.
		return []store.Event{{Type: store.EventReset, Rev: now}}, nil
	}
	return events, nil
}

// scanEvents reads events; whole is false if one between since and the last is missing.
func scanEvents(rows *sql.Rows, since store.Rev) (events []store.Event, whole bool, err error) {
	for rows.Next() {
		var rev, version int64
		var e store.Event
		if err := rows.Scan(&rev, &e.Type, &e.Team, &e.Name, &version); err != nil {
			return nil, false, err
		}
		e.Rev, e.Version = store.Rev(rev), uint64(version)
		if e.Rev != since+1 || e.Type != store.EventPut && e.Type != store.EventDelete {
			return nil, false, rows.Err()
		}
		since = e.Rev
		events = append(events, e)
	}
	return events, len(events) > 0, rows.Err()
}
