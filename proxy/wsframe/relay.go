package wsframe

import (
	"bufio"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

// Options of Relay. Limit and Idle are required.
type Options struct {
	FromClient, FromServer Rules
	Limit                  int64         // bytes of a message that Rules.Text gets
	Idle                   time.Duration // no byte moved either way
	Hold                   Hold          // nil: as many large messages as there may be
	Closing                time.Duration // the same after the first Close frame; default 30 s, at most Idle
}

// Hold asks whether n more bytes may be in memory, for a message that Rules.Text gets and
// that is longer than 32 KiB; release gives them back. It is called by both directions.
type Hold func(n int64) (release func(), ok bool)

// Result of Relay: bytes as they were on the wire of the client's side.
type Result struct{ In, Out int64 }

const (
	patience = 2 * time.Second // for a side that is to take its Close
	linger   = time.Second     // for a client to read it
	drained  = 1 << 20         // bytes of a client that are thrown away meanwhile
)

// Relay carries frames between client and server, behind the handshake, until both have
// sent a Close or one has ended, failed, or sent what it may not. It returns when all its
// goroutines have; both connections are then the caller's to close. The error is nil after
// a closing handshake, an *Error where a message or a frame was refused, io.EOF or
// io.ErrUnexpectedEOF where a side ended without a Close, os.ErrDeadlineExceeded after Idle,
// or what reading or writing failed with. To cut a relay, close a connection.
func Relay(client, server net.Conn, o Options) (Result, error) {
	act := &activity{start: time.Now()}
	act.limit.Store(int64(o.Idle))
	r := &relay{act: act, client: &side{conn: client, act: act}, server: &side{conn: server, act: act, masked: true}, closing: o.Closing}
	if r.closing <= 0 {
		r.closing = 30 * time.Second
	}
	up := &pump{from: newSource(client, act), to: r.server, fromClient: true, rules: o.FromClient, limit: o.Limit, hold: o.Hold}
	down := &pump{from: newSource(server, act), to: r.client, rules: o.FromServer, limit: o.Limit, hold: o.Hold}
	var wg sync.WaitGroup
	wg.Go(func() { r.over(down.run(), false) })
	r.over(up.run(), true)
	wg.Wait()
	var refused *Error
	if errors.As(r.err, &refused) {
		drain(client)
	}
	return Result{In: up.from.n, Out: r.client.n}, r.err
}

// relay is what both directions share.
type relay struct {
	act            *activity
	client, server *side
	closing        time.Duration

	mu     sync.Mutex
	closes int
	ended  bool
	err    error
}

// over is called when a direction has ended.
func (r *relay) over(err error, fromClient bool) {
	r.mu.Lock()
	if errors.Is(err, errClosed) {
		if r.closes++; r.closes == 1 && !r.ended { // the other side answers, when it has said the rest
			r.act.limit.Store(min(r.act.limit.Load(), int64(r.closing)))
			r.mu.Unlock()
			for _, s := range [...]*side{r.client, r.server} { // who is waiting sees the new limit soon
				_ = s.conn.SetReadDeadline(time.Now().Add(r.act.slice()))
			}
			return
		}
		err = nil
	}
	if err == io.EOF && r.closes > 0 { // who has had a Close may go without one of its own
		err = nil
	}
	if r.ended {
		r.mu.Unlock()
		return
	}
	var refused *Error
	if errors.As(err, &refused) {
		told := *refused
		told.FromClient = fromClient
		refused, err = &told, &told
	}
	r.ended, r.err = true, err
	r.mu.Unlock()
	r.act.over.Store(true)
	if refused != nil {
		r.client.end(refused.Code, refused.Reason)
		r.server.end(refused.Code, "")
		_ = r.server.conn.Close() // drain keeps the client's open for a while
	}
	r.act.stop(r.client.conn, r.server.conn)
}

// drain lets a client read its Close: bytes of it that nobody has read would make the
// kernel reset the connection, and the client lose what it was sent.
func drain(c net.Conn) {
	if c.SetDeadline(time.Now().Add(linger)) != nil {
		return
	}
	if hc, ok := c.(interface{ CloseWrite() error }); ok {
		_ = hc.CloseWrite()
	}
	_, _ = io.Copy(io.Discard, io.LimitReader(c, drained))
}

// activity is what both directions share: a side that only listens is not idle while the
// other speaks.
type activity struct {
	start time.Time
	moved atomic.Int64 // when a byte last moved, ns after start
	limit atomic.Int64 // ns
	over  atomic.Bool  // only Close frames are written any more
}

func (a *activity) idle() bool { return int64(time.Since(a.start))-a.moved.Load() >= a.limit.Load() }

func (a *activity) slice() time.Duration { return time.Duration(max(a.limit.Load()/4, 1)) }

func (a *activity) touch() { a.moved.Store(int64(time.Since(a.start))) }

// patience is how long one call may wait.
func (a *activity) patience() time.Duration {
	if a.over.Load() {
		return patience
	}
	return time.Duration(max(a.limit.Load(), 1))
}

// stop ends what both directions are waiting for.
func (a *activity) stop(conns ...net.Conn) {
	for _, c := range conns {
		_ = c.SetDeadline(time.Unix(1, 0))
	}
}

// source is one end as something to read frames from.
type source struct {
	*bufio.Reader
	n int64
}

func newSource(c net.Conn, act *activity) *source {
	s := &source{}
	s.Reader = bufio.NewReaderSize(&patient{c, act, s}, 4<<10)
	return s
}

// patient reads until both directions have been idle for too long.
type patient struct {
	conn net.Conn
	act  *activity
	of   *source
}

func (p *patient) Read(b []byte) (int, error) {
	for {
		if err := p.conn.SetReadDeadline(time.Now().Add(p.act.slice())); err != nil {
			return 0, err
		}
		if p.act.over.Load() { // behind the line above, so that stop cannot go unseen
			return 0, net.ErrClosed
		}
		n, err := p.conn.Read(b)
		if n > 0 {
			p.of.n += int64(n)
			p.act.touch()
			return n, nil // what failed will fail again
		}
		if !errors.Is(err, os.ErrDeadlineExceeded) || p.act.over.Load() || p.act.idle() {
			return 0, err
		}
	}
}
