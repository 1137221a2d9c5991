package source

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/egressd/egressd/store"
)

type flightKey struct {
	id
	version uint64
}

// flight is the one fetch under way for a key, and the one that follows it for those
// who may not have the answer of the first because it began too early for them. So a
// key costs the store one read at a time however many wait.
type flight struct{ now, next *call }

// call is one fetch. Its waiters may leave; it runs to its end without them.
type call struct {
	done  chan struct{}
	out   outcome // written before done is closed
	epoch uint64  // when it began; under mu
	stale bool    // a change to the source was seen since; under mu
}

// join finds or begins the fetch whose answer the caller may have.
func (r *Resolver) join(ctx context.Context, key flightKey, maxAge time.Duration) (*call, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return nil, fmt.Errorf("%w: shutting down", ErrUnavailable)
	}
	// Between the caller's look and the lock another's fetch may have ended.
	if out := r.lookup(Ref{key.team, key.name, key.version, maxAge}); out != nil {
		c := &call{done: make(chan struct{}), out: *out}
		close(c.done)
		return c, nil
	}
	f := r.flights[key]
	switch {
	case f == nil:
		f = &flight{now: r.newCall()}
		r.flights[key] = f
		r.running.Add(1)
		go r.fly(context.WithoutCancel(ctx), key, f)
		return f.now, nil
	case r.live.Load() && r.current(f.now):
		return f.now, nil
	case f.next == nil:
		f.next = r.newCall()
	}
	return f.next, nil
}

func (r *Resolver) newCall() *call { return &call{done: make(chan struct{}), epoch: r.epoch} }

// current: no change that came after its beginning can have escaped c. Under mu.
func (r *Resolver) current(c *call) bool { return !c.stale && c.epoch == r.epoch }

// fly runs the calls of one flight, one after the other.
func (r *Resolver) fly(ctx context.Context, key flightKey, f *flight) {
	defer r.running.Done()
	for c := f.now; c != nil; {
		floor := r.floor(key.id)
		c.out = r.fetch(ctx, key, floor)
		c = r.land(key, f, c)
	}
}

func (r *Resolver) floor(key id) store.Rev {
	r.mu.Lock()
	defer r.mu.Unlock()
	rev, _ := r.floors.Get(key)
	return rev
}

// land keeps what c brought if it may be kept, hands it out, and begins the next.
func (r *Resolver) land(key flightKey, f *flight, c *call) *call {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.live.Load() && r.current(c) && !errors.Is(c.out.err, ErrUnavailable) {
		r.keep(key, &c.out)
	}
	close(c.done)
	f.now, f.next = f.next, nil
	if f.now == nil {
		delete(r.flights, key)
		return nil
	}
	f.now.epoch, f.now.stale = r.epoch, false // it begins only now
	return f.now
}

// keep puts out into the cache. Material that a cached fetch already brought stays
// the same pointer, so that a refetch after MaxAge changes nothing downstream.
func (r *Resolver) keep(key flightKey, out *outcome) {
	old, _ := r.cache.Peek(key.id)
	if old == nil {
		old = &cached{}
	}
	was := old.version(key.version)
	if was == nil {
		was = &outcome{}
	}
	if same(was.material, out.material) {
		out.material = was.material
	}
	fresh := &cached{current: old.current, pinned: old.pinned}
	if key.version == 0 {
		fresh.current = out
	} else {
		fresh.pinned = make(map[uint64]*outcome, len(old.pinned)+1)
		if len(old.pinned) < maxPinned {
			maps.Copy(fresh.pinned, old.pinned)
		}
		fresh.pinned[key.version] = out
	}
	evicted := r.cache.Add(key.id, fresh)
	if evicted || was.material != out.material || len(fresh.pinned) < len(old.pinned) {
		r.changed()
	}
}

func same(a, b *Material) bool {
	return a != nil && b != nil && a.Kind == b.Kind && a.Rev == b.Rev && a.Version == b.Version &&
		slices.Equal(a.AllowedDestinations, b.AllowedDestinations)
}

// fetch reads, opens and parses. A panic of a backend or parser is an answer to those
// who wait, not the end of the process; its value may hold anything and is dropped.
func (r *Resolver) fetch(ctx context.Context, key flightKey, floor store.Rev) (out outcome) {
	ctx, cancel := context.WithTimeout(ctx, r.opts.FetchTimeout)
	defer cancel()
	defer func() {
		if recover() != nil {
			out = outcome{err: fmt.Errorf("%w: internal error", ErrUnavailable)}
		}
		out.at = time.Now()
	}()
	sealed, err := r.reader.Get(ctx, key.team, key.name, key.version)
	if err != nil {
		return outcome{err: fromStore(err)}
	}
	if err := admit(sealed, key, floor); err != nil {
		return outcome{err: err}
	}
	m, err := r.open(sealed)
	if err == nil {
		r.resolved.Add(key.id, time.Now())
	}
	return outcome{material: m, err: err}
}

func fromStore(err error) error {
	switch {
	case errors.Is(err, store.ErrNotFound):
		return ErrNotFound
	case errors.Is(err, store.ErrCorrupt):
		return fmt.Errorf("%w: %w", ErrCorrupt, err)
	default:
		return fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
}

// admit decides on what may be known without opening the envelope.
func admit(s store.Sealed, key flightKey, floor store.Rev) error {
	switch {
	case s.Team != key.team || s.Name != key.name || key.version != 0 && s.Version != key.version:
		return fmt.Errorf("%w: the store answered with another record", ErrCorrupt)
	case s.Rev < floor:
		return fmt.Errorf("%w: the store answered with a revision older than a change already seen", ErrUnavailable)
	case s.Status == store.Active:
		return nil
	case s.Status == store.Deleted:
		return ErrNotFound
	default:
		return ErrDisabled
	}
}

func (r *Resolver) open(s store.Sealed) (*Material, error) {
	kind, ok := r.kinds.Kind(s.Kind)
	if !ok {
		return nil, fmt.Errorf("%w: unknown kind", ErrInvalid)
	}
	spec, err := r.opener.Open(s)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	m, err := kind.Parse(spec)
	clear(spec) // short residence; best effort, as Go strings were made of it
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	m.Team, m.Name, m.Kind, m.Version, m.Rev = s.Team, s.Name, s.Kind, s.Version, s.Rev
	m.AllowedDestinations = slices.Clone(s.AllowedDestinations)
	m.ID = rand.Uint64() | 1
	return m, nil
}
