// Package sqlite is the embedded store: one SQLite file that the daemon and the command
// line share, durable per commit (WAL, synchronous=FULL), without cgo.
//
// Specs reach it sealed. Every row that says what a credential is and where it may go
// bears a MAC: the source's row by way of its head record (the rollback watermark, kept
// in a table of its own), each version, each API token. Someone who can write the file
// but has no key can make a source unusable, not usable otherwise. Restoring the whole
// file to an older state is noticed while a process runs, by the highest revision it
// has seen of each source, and not across a restart.
//
// Outside SQLite nothing in a process may open and close the database file while a DB
// on it is open: that would drop the locks that SQLite holds for the whole process.
package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"net/url"
	"path/filepath"
	"runtime"
	"sync"
	"time"

	driver "modernc.org/sqlite"
	lib "modernc.org/sqlite/lib"

	"github.com/egressd/egressd/store"
)

// Options of a DB; the zero value is what the daemon uses.
type Options struct {
	Now           func() time.Time // default time.Now
	Poll          time.Duration    // how often Watch looks for changes of other processes; default 50 ms
	KeptChanges   uint64           // revisions that Watch can catch up on; default 10,000
	KeptActivity  uint64           // rows of activity; default 100,000
	BusyTimeout   time.Duration    // wait for another process's write; default 5 s
	IntegrityTime time.Duration    // most time spent on the check at Open; default 500 ms
}

func (o Options) withDefaults() Options {
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Poll <= 0 {
		o.Poll = 50 * time.Millisecond
	}
	if o.KeptChanges == 0 {
		o.KeptChanges = 10_000
	}
	if o.KeptActivity == 0 {
		o.KeptActivity = 100_000
	}
	if o.BusyTimeout <= 0 {
		o.BusyTimeout = 5 * time.Second
	}
	if o.IntegrityTime <= 0 {
		o.IntegrityTime = 500 * time.Millisecond
	}
	return o
}

// DB is a store.Store. Safe for concurrent use, and with other processes on the file.
type DB struct {
	path   string
	sealer store.Sealer
	opts   Options
	writer *sql.DB // one connection
	reader *sql.DB
	get    *sql.Stmt // on reader
	seen   watermark
	bell   bell
	scrub  scrubber
	closed chan struct{}
	once   sync.Once
}

var _ store.Store = (*DB)(nil)

// Open opens or makes the store at path (mode 0600, its directory 0700). It refuses a
// damaged file, one of a newer egressd (store.ErrTooNew) and one made with other keys
// (store.ErrWrongKeys); messages name the file and what to do. The caller closes the DB.
func Open(ctx context.Context, path string, s store.Sealer, opts Options) (*DB, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return nil, fmt.Errorf("%w: store %s: %w", store.ErrUnavailable, path, err)
	}
	d := &DB{path: path, sealer: s, opts: opts.withDefaults(), closed: make(chan struct{})}
	if err := prepareFile(path); err != nil {
		return nil, err
	}
	if d.writer, err = open(path, d.opts, "immediate", writerPragmas()); err != nil {
		return nil, err
	}
	d.writer.SetMaxOpenConns(1)
	if d.reader, err = open(path, d.opts, "deferred", readerPragmas()); err != nil {
		return nil, errors.Join(err, d.writer.Close())
	}
	conns := max(4, runtime.GOMAXPROCS(0))
	d.reader.SetMaxOpenConns(conns)
	d.reader.SetMaxIdleConns(conns)
	if err := d.start(ctx); err != nil {
		return nil, errors.Join(err, d.Close())
	}
	return d, nil
}

func (d *DB) start(ctx context.Context) error {
	if err := d.migrate(ctx); err != nil {
		return err
	}
	if err := d.checkIntegrity(ctx); err != nil {
		return err
	}
	var err error
	d.get, err = d.reader.PrepareContext(ctx, getQuery)
	return classify(err)
}

// open prepares a pool; the pragmas hold for each of its connections.
func open(path string, o Options, txlock string, pragmas []string) (*sql.DB, error) {
	q := url.Values{"_txlock": {txlock}, "_defensive": {"1"}, "_dqs": {"0"}}
	q.Set("_busy_timeout", fmt.Sprint(o.BusyTimeout.Milliseconds()))
	q["_pragma"] = append([]string{"trusted_schema(0)", "cell_size_check(1)", "temp_store(memory)"}, pragmas...)
	u := url.URL{Scheme: "file", OmitHost: true, Path: path, RawQuery: q.Encode()}
	c, err := driver.NewConnector(u.String())
	if err != nil {
		return nil, fmt.Errorf("store %s: %w", path, err)
	}
	return sql.OpenDB(c), nil
}

func writerPragmas() []string {
	return []string{"journal_mode(wal)", "synchronous(full)", "secure_delete(1)", "journal_size_limit(8388608)"}
}

func readerPragmas() []string { return []string{"query_only(1)"} }

// Close ends watches with an error and closes the file. Calls still running end first.
func (d *DB) Close() error {
	var err error
	d.once.Do(func() {
		close(d.closed)
		if d.get != nil {
			err = d.get.Close()
		}
		err = errors.Join(err, d.reader.Close())
		d.scrub.last(d.writer)
		err = errors.Join(err, d.writer.Close())
	})
	return err
}

// Format keeps a DB from being printed with its keys.
func (d *DB) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, "sqlite store "+d.path) }

// classify gives an error of the database its sentinel; others pass as they are.
func classify(err error) error {
	var se *driver.Error
	switch {
	case err == nil, isContract(err):
		return err
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return err
	case errors.As(err, &se) && (se.Code()&0xff == lib.SQLITE_CORRUPT || se.Code()&0xff == lib.SQLITE_NOTADB):
		return fmt.Errorf("%w: %w", store.ErrCorrupt, err)
	default: // full, read-only, I/O error, busy, closed
		return fmt.Errorf("%w: %w", store.ErrUnavailable, err)
	}
}

func isContract(err error) bool {
	for _, target := range []error{
		store.ErrNotFound, store.ErrExists, store.ErrStale, store.ErrKindImmutable, store.ErrCorrupt,
		store.ErrUnavailable, store.ErrInvalid, store.ErrTooNew, store.ErrWrongKeys,
	} {
		if errors.Is(err, target) {
			return true
		}
	}
	return false
}

func isBusy(err error) bool {
	var se *driver.Error
	return errors.As(err, &se) && se.Code()&0xff == lib.SQLITE_BUSY
}
