// Package audit writes one JSON line per decision of the data plane, without making the
// data plane wait for a disk.
//
// Write encodes a record into a bounded queue in memory; one goroutine takes the queue to
// the file, in order, at least every 100 ms. A file that takes nothing (disk full, pipe
// full) is tried again until it does, so that what is queued is lost only with the
// process. While the queue is full, records are dropped and counted, or Write blocks,
// and with it the traffic: the operator's choice.
package audit

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

// Overflow says what Write does while the queue is full.
type Overflow string

// The values of audit.overflow; the zero value is Drop.
const (
	Drop  Overflow = "drop"  // drop the record and count it
	Block Overflow = "block" // wait for room: no decision without its record
)

const (
	defaultQueue  = 4 << 20 // about 10,000 records
	minQueue      = 64 << 10
	bigEnough     = 64 << 10 // is written at once
	flushEvery    = 100 * time.Millisecond
	retryAfter    = 100 * time.Millisecond
	closePatience = 5 * time.Second // with a file that neither takes nor refuses
)

// ErrClosed: the log was closed.
var ErrClosed = errors.New("audit log is closed")

// Options of a Log.
type Options struct {
	// File is opened for appending and made with mode 0600.
	File string
	// Overflow is Drop if empty.
	Overflow Overflow
	// QueueBytes bounds the queue: 4 MiB if zero, 64 KiB at least. Twice that may be held.
	QueueBytes int
	// OnError, if set, is told once when writing begins to fail, and with nil when it
	// works again. It is called on the log's own goroutine and must not call the log.
	OnError func(error)
}

// Log is safe for concurrent use.
type Log struct {
	file     string // "" if it is not a file of ours to reopen
	block    bool
	limit    int
	onError  func(error)
	patience time.Duration // of Close
	pool     sync.Pool

	mu      sync.Mutex
	room    sync.Cond
	queue   []byte
	urgent  bool           // do not wait for more records
	next    io.WriteCloser // to write to from now on
	waiting []chan error   // callers of Flush
	closed  bool

	kick    chan struct{}  // one token: there is something to do
	done    chan struct{}  // closed when run has ended
	out     io.WriteCloser // written to by run alone, replaced under mu
	spare   []byte         // the buffer that is not the queue; run's own
	failure atomic.Pointer[error]
	dropped atomic.Uint64
	written atomic.Uint64
}

// Open opens the file and starts the goroutine that Close ends.
func Open(o Options) (*Log, error) {
	f, err := openFile(o.File)
	if err != nil {
		return nil, err
	}
	l, err := newLog(f, o)
	if err != nil {
		_ = f.Close() // the first error is the one to tell
		return nil, err
	}
	l.file = o.File
	return l, nil
}

// NewWriter is Open for a writer that is there already; o.File is not used, and w stays
// open.
func NewWriter(w io.Writer, o Options) (*Log, error) { return newLog(nopCloser{w}, o) }

type nopCloser struct{ io.Writer }

func (nopCloser) Close() error { return nil }

func newLog(w io.WriteCloser, o Options) (*Log, error) {
	if o.QueueBytes == 0 {
		o.QueueBytes = defaultQueue
	}
	if o.QueueBytes < minQueue {
		return nil, fmt.Errorf("audit queue of %d bytes: must be %d at least", o.QueueBytes, minQueue)
	}
	switch o.Overflow {
	case "", Drop, Block:
	default:
		return nil, fmt.Errorf("audit.overflow: %q: must be drop or block", o.Overflow)
	}
	if o.OnError == nil {
		o.OnError = func(error) {}
	}
	l := &Log{
		block: o.Overflow == Block, limit: o.QueueBytes, onError: o.OnError, patience: closePatience,
		kick: make(chan struct{}, 1), done: make(chan struct{}), out: w,
	}
	l.room.L = &l.mu
	l.pool.New = func() any { return new(make([]byte, 0, 1024)) }
	go l.run()
	return l, nil
}

// openFile opens for appending. If the last line is torn, as after a crash, it is ended,
// so that the next record has a line of its own.
func openFile(name string) (*os.File, error) {
	f, err := os.OpenFile(name, os.O_RDWR|os.O_APPEND|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("audit log: %w", err)
	}
	st, err := f.Stat()
	if err == nil && st.Mode().IsRegular() && st.Size() > 0 {
		var last [1]byte
		if _, err = f.ReadAt(last[:], st.Size()-1); err == nil && last[0] != '\n' {
			_, err = f.Write([]byte{'\n'})
		}
	}
	if err != nil {
		_ = f.Close() // the first error is the one to tell
		return nil, fmt.Errorf("audit log: %w", err)
	}
	return f, nil
}

// Write queues r and keeps nothing of it. It does not wait for the disk; with Block it
// waits for room in the queue. After Close, records count as dropped.
func (l *Log) Write(r *Record) {
	buf := l.pool.Get().(*[]byte)
	*buf = r.appendJSON((*buf)[:0])
	l.enqueue(*buf)
	l.pool.Put(buf)
}

func (l *Log) enqueue(line []byte) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for !l.closed && len(l.queue) > 0 && len(l.queue)+len(line) > l.limit {
		if !l.block {
			l.dropped.Add(1)
			return
		}
		l.room.Wait()
	}
	if l.closed {
		l.dropped.Add(1)
		return
	}
	before := len(l.queue)
	l.queue = append(l.queue, line...)
	if before == 0 || (before < bigEnough && len(l.queue) >= bigEnough) {
		l.urgent = l.urgent || len(l.queue) >= bigEnough
		l.wake()
	}
}

// wake leaves a token for run; the caller holds mu.
func (l *Log) wake() {
	select {
	case l.kick <- struct{}{}:
	default:
	}
}

// Dropped is how many records were not and will not be written.
func (l *Log) Dropped() uint64 { return l.dropped.Load() }

// Written is how many records the file has taken.
func (l *Log) Written() uint64 { return l.written.Load() }

// Failing is the error of a file that takes nothing now, nil if it does.
func (l *Log) Failing() error {
	if p := l.failure.Load(); p != nil {
		return *p
	}
	return nil
}

// Flush returns when all records queued before it are in the file, or with ctx's error.
func (l *Log) Flush(ctx context.Context) error {
	ack := make(chan error, 1)
	l.mu.Lock()
	if l.closed {
		l.mu.Unlock()
		return ErrClosed
	}
	l.waiting = append(l.waiting, ack)
	l.urgent = true
	l.wake()
	l.mu.Unlock()
	select {
	case err := <-ack:
		return err
	case <-ctx.Done():
		return fmt.Errorf("flushing the audit log: %w", ctx.Err())
	}
}

// Reopen opens the file by its name again, for a rotation that moved the old one away.
// What was queued before goes to the old one, if that still takes it. On error the old
// one stays in use. A Log of NewWriter has nothing to reopen.
func (l *Log) Reopen() error {
	if l.file == "" {
		return nil
	}
	f, err := openFile(l.file)
	if err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		_ = f.Close() // nothing was written to it
		return ErrClosed
	}
	if l.next != nil {
		_ = l.next.Close() // an earlier Reopen that run had no time for
	}
	l.next = f
	l.urgent = true
	l.wake()
	return nil
}

// Close writes what is queued, once, and closes the file. It gives up after 5 s, for a
// file that neither takes bytes nor refuses them. What could not be written is counted.
func (l *Log) Close() error {
	l.mu.Lock()
	if l.closed {
		l.mu.Unlock()
		<-l.done
		return nil
	}
	l.closed, l.urgent = true, true
	l.room.Broadcast()
	l.wake()
	l.mu.Unlock()
	timer := time.NewTimer(l.patience)
	defer timer.Stop()
	select {
	case <-l.done:
	case <-timer.C:
		l.mu.Lock()
		_ = l.out.Close() // ends a write to a pipe; its error is what was waited for
		l.mu.Unlock()
		return fmt.Errorf("closing the audit log: it took nothing for %v", l.patience)
	}
	if err := l.Failing(); err != nil {
		return fmt.Errorf("closing the audit log: %w", err)
	}
	return nil
}

// batch is what run takes from under the lock at once.
type batch struct {
	lines   []byte
	next    io.WriteCloser
	waiting []chan error
	closed  bool
}

func (l *Log) take() batch {
	l.mu.Lock()
	defer l.mu.Unlock()
	b := batch{lines: l.queue, next: l.next, waiting: l.waiting, closed: l.closed}
	l.queue, l.next, l.waiting, l.urgent = l.spare[:0], nil, nil, false
	l.room.Broadcast()
	return b
}

// run is the one goroutine that touches the file.
func (l *Log) run() {
	defer close(l.done)
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		<-l.kick
		l.mu.Lock()
		urgent := l.urgent
		l.mu.Unlock()
		if !urgent { // a first record: others will follow
			timer.Reset(flushEvery)
			select {
			case <-timer.C:
			case <-l.kick:
			}
		}
		b := l.take()
		l.deliver(b.lines)
		l.spare = b.lines
		if b.next != nil {
			l.swap(b.next)
		}
		for _, ack := range b.waiting {
			ack <- l.Failing()
		}
		if b.closed {
			l.finish()
			return
		}
		l.rearm()
	}
}

// deliver writes lines, trying again until they are taken, or once if the log is closed.
func (l *Log) deliver(lines []byte) {
	for off := 0; off < len(lines); {
		n, err := l.out.Write(lines[off:])
		l.written.Add(uint64(countLines(lines[off : off+n])))
		off += n
		if err == nil && off == len(lines) {
			break
		}
		if err == nil {
			err = io.ErrShortWrite
		}
		l.failed(err)
		next, closed := l.pause()
		switch {
		case next != nil: // the line that was torn starts anew there
			l.swap(next)
			off = bytes.LastIndexByte(lines[:off], '\n') + 1
		case closed:
			l.dropped.Add(uint64(countLines(lines[off:])))
			return
		}
	}
	if len(lines) > 0 && l.failure.Swap(nil) != nil {
		l.onError(nil)
	}
}

func countLines(b []byte) int { return bytes.Count(b, []byte{'\n'}) }

func (l *Log) failed(err error) {
	err = fmt.Errorf("writing the audit log: %w", err)
	if l.failure.Swap(&err) == nil {
		l.onError(err)
	}
}

// pause waits a moment before another attempt; a Reopen or Close ends it.
func (l *Log) pause() (next io.WriteCloser, closed bool) {
	timer := time.NewTimer(retryAfter)
	defer timer.Stop()
	for waited := false; !waited; {
		select {
		case <-timer.C:
			waited = true
		case <-l.kick:
		}
		l.mu.Lock()
		next, l.next = l.next, nil
		closed = l.closed
		l.mu.Unlock()
		waited = waited || next != nil || closed
	}
	return next, closed
}

// rearm puts back the token that pause may have taken.
func (l *Log) rearm() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.queue) > 0 || l.urgent {
		l.wake()
	}
}

func (l *Log) swap(next io.WriteCloser) {
	if err := l.out.Close(); err != nil {
		l.failed(err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.out = next
}

// finish makes a regular file durable; pipes and terminals have nothing to sync.
func (l *Log) finish() {
	if f, ok := l.out.(*os.File); ok {
		if st, err := f.Stat(); err == nil && st.Mode().IsRegular() {
			if err := f.Sync(); err != nil {
				l.failed(err)
			}
		}
	}
	if err := l.out.Close(); err != nil {
		l.failed(err)
	}
}
