package sqlite

import (
	"context"
	"database/sql"
	"fmt"
	"sync/atomic"
	"time"
)

// scrubWait is how long a scrub waits for readers of an older state, who hold the log.
const scrubWait = 100 * time.Millisecond

// scrubber empties the write-ahead log after a deletion. secure_delete overwrites what
// leaves the database file, but the log still holds the envelopes as they were written.
// What a reader prevents is tried again after each later write and at Close.
type scrubber struct{ due atomic.Bool }

// after runs when a write has committed and conn is still the writer's turn.
func (s *scrubber) after(ctx context.Context, conn *sql.Conn, deleted bool, busy time.Duration) {
	if deleted {
		s.due.Store(true)
	}
	if !s.due.Load() {
		return
	}
	setBusy := func(d time.Duration) error {
		_, err := conn.ExecContext(ctx, fmt.Sprintf("PRAGMA busy_timeout = %d", d.Milliseconds()))
		return err
	}
	// The change is committed whatever happens here; due stays set until it succeeds.
	if setBusy(scrubWait) == nil {
		var blocked, frames, done int
		err := conn.QueryRowContext(ctx, `PRAGMA wal_checkpoint(TRUNCATE)`).Scan(&blocked, &frames, &done)
		if err == nil && blocked == 0 {
			s.due.Store(false)
		}
	}
	_ = setBusy(busy)
}

// last runs at Close, when this process has no readers left.
func (s *scrubber) last(writer *sql.DB) {
	if s.due.Load() {
		_, _ = writer.Exec(`PRAGMA wal_checkpoint(TRUNCATE)`) //nolint:noctx // at Close nobody waits who could give up
	}
}
