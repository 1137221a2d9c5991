package source

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"

	"github.com/egressd/egressd/store"
)

// Options of a Resolver; the zero value is usable.
type Options struct {
	Size         int           // sources kept in memory; default 4096
	FetchTimeout time.Duration // of one read of the store; default 10 s
	MinBackoff   time.Duration // before the watch is begun anew; default 50 ms
	MaxBackoff   time.Duration // its greatest value; default 5 s
	// OnInvalidate are told of each change after the cache has forgotten the source
	// and before WaitApplied returns for it; team and name are "" when everything was
	// forgotten. They run on the watch's goroutine and must not block.
	OnInvalidate []func(team, name string)
	// OnWatch, if set, is told when the watch comes up (nil) and why it went down.
	OnWatch func(err error)
}

// negativeTTL bounds how long a refusal is answered from memory. It too is forgotten
// at once when the source changes; the bound is for what no change announces, such as
// a repaired key file.
const negativeTTL = time.Second

// maxPinned bounds how many versions of one source are kept beside the current one.
const maxPinned = 16

// Resolver turns references into material, from memory while nothing has changed.
//
// What is in memory is what no change since the fetch has touched: Run follows the
// store's revisions, forgets what a change names, and a fetch that a change overtook
// is answered to those who asked before the change but not kept. While Run does not
// follow (not begun, ended, or its watch broken) nothing is answered from memory.
//
// Safe for concurrent use. Resolve of cached material takes one read lock and
// allocates nothing.
type Resolver struct {
	reader store.Reader
	opener store.Opener
	kinds  *Registry
	opts   Options

	live  atomic.Bool // the watch follows; set under mu
	cache *lru.Cache[id, *cached]

	mu      sync.Mutex
	epoch   uint64 // raised when all that is known or under way loses its worth
	flights map[flightKey]*flight
	floors  *lru.Cache[id, store.Rev]

	resolved *lru.Cache[id, time.Time] // when a source was last read with success
	closed   bool
	running  sync.WaitGroup // flights; added to only under mu and not closed

	generation atomic.Uint64 // see Generation

	applied atomic.Uint64 // the last revision that the watch loop has dealt with
	woken   atomic.Pointer[chan struct{}]
}

// id of a source.
type id struct{ team, name string }

// cached is what is known of one source. Immutable but for uses.
type cached struct {
	current *outcome
	pinned  map[uint64]*outcome
	uses    atomic.Uint32
}

// outcome of a fetch. Immutable.
type outcome struct {
	material *Material
	err      error
	at       time.Time
}

// NewResolver makes a resolver; without Run it works, but reads the store each time.
func NewResolver(r store.Reader, o store.Opener, kinds *Registry, opts Options) *Resolver {
	def := func(d *time.Duration, v time.Duration) {
		if *d <= 0 {
			*d = v
		}
	}
	if opts.Size <= 0 {
		opts.Size = 4096
	}
	def(&opts.FetchTimeout, 10*time.Second)
	def(&opts.MinBackoff, 50*time.Millisecond)
	def(&opts.MaxBackoff, 5*time.Second)
	res := &Resolver{reader: r, opener: o, kinds: kinds, opts: opts, flights: map[flightKey]*flight{}}
	// lru.New fails on a size below 1 only.
	res.cache, _ = lru.New[id, *cached](opts.Size)
	res.floors, _ = lru.New[id, store.Rev](4 * opts.Size)
	res.resolved, _ = lru.New[id, time.Time](4 * opts.Size)
	first := make(chan struct{})
	res.woken.Store(&first)
	return res
}

// Resolve returns the material that ref names. Errors wrap ErrNotFound, ErrDisabled,
// ErrCorrupt, ErrInvalid or ErrUnavailable (also when ctx ends first); none holds
// anything of the material.
func (r *Resolver) Resolve(ctx context.Context, ref Ref) (*Material, error) {
	if out := r.lookup(ref); out != nil {
		return out.material, out.err
	}
	if ref.Team == "" || ref.Name == "" {
		return nil, ErrNotFound
	}
	c, err := r.join(ctx, flightKey{id{ref.Team, ref.Name}, ref.Version}, ref.MaxAge)
	if err != nil {
		return nil, err
	}
	select {
	case <-c.done:
		return c.out.material, c.out.err
	case <-ctx.Done():
		return nil, fmt.Errorf("%w: %w", ErrUnavailable, context.Cause(ctx))
	}
}

// lookup is the hot path.
func (r *Resolver) lookup(ref Ref) *outcome {
	if !r.live.Load() {
		return nil
	}
	key := id{ref.Team, ref.Name}
	c, ok := r.cache.Peek(key) // a read lock; Get would take the write lock each time
	if !ok {
		return nil
	}
	if c.uses.Add(1)%64 == 1 {
		r.cache.Get(key) // now and then it counts as recently used
	}
	out := c.version(ref.Version)
	if out == nil || !out.fresh(ref.MaxAge) {
		return nil
	}
	return out
}

func (c *cached) version(n uint64) *outcome {
	if n == 0 {
		return c.current
	}
	return c.pinned[n]
}

func (o *outcome) fresh(maxAge time.Duration) bool {
	if o.err != nil && (maxAge <= 0 || maxAge > negativeTTL) {
		maxAge = negativeTTL
	}
	return maxAge <= 0 || time.Since(o.at) <= maxAge
}

// LastResolved is when the source was last read and opened by this process; zero if it
// was not.
func (r *Resolver) LastResolved(team, name string) time.Time {
	at, _ := r.resolved.Peek(id{team, name})
	return at
}

// Live tells whether the watch follows the store; Applied how far it has come.
func (r *Resolver) Live() bool { return r.live.Load() }

// Applied is the last revision whose change is in force.
func (r *Resolver) Applied() store.Rev { return store.Rev(r.applied.Load()) }

// WaitApplied returns nil once every Resolve that begins from now on answers with
// what revision rev made of its source, or newer: when the watch loop has dealt with
// rev, or at once while it is down, as nothing is then answered from memory.
// The error is that of ctx.
func (r *Resolver) WaitApplied(ctx context.Context, rev store.Rev) error {
	for {
		woken := *r.woken.Load()
		if r.Applied() >= rev || !r.Live() {
			return nil
		}
		select {
		case <-woken:
		case <-ctx.Done():
			return fmt.Errorf("revision %d is not in force yet: %w", rev, context.Cause(ctx))
		}
	}
}

// wake lets all who wait look again. Called by the watch loop alone.
func (r *Resolver) wake() {
	next := make(chan struct{})
	close(*r.woken.Swap(&next))
}

// Close refuses new fetches and waits for those under way, each at most
// Options.FetchTimeout.
func (r *Resolver) Close() {
	r.mu.Lock()
	r.closed = true
	r.mu.Unlock()
	r.running.Wait()
}

// KindOf is the resolverKind of an active source, for the checks of policy against
// sources; ErrNotFound when there is none that may be bound. It opens nothing.
func KindOf(ctx context.Context, r store.Reader, team, name string) (string, error) {
	sealed, err := r.Get(ctx, team, name, 0)
	switch {
	case errors.Is(err, store.ErrNotFound):
		return "", ErrNotFound
	case err != nil:
		return "", fmt.Errorf("%w: %w", ErrUnavailable, err)
	case sealed.Status != store.Active && sealed.Status != store.Disabled:
		return "", ErrNotFound
	}
	return sealed.Kind, nil
}
