// Package memory is the store for one-shot runs and tests: the contract of store.Store
// without a file. Specs are sealed here too, so that nothing above it can tell.
package memory

import (
	"cmp"
	"context"
	"crypto/hmac"
	"fmt"
	"io"
	"iter"
	"slices"
	"sync"
	"time"

	"github.com/egressd/egressd/store"
)

const (
	keptChanges  = 10_000
	keptActivity = 10_000
)

// Store is a store.Store. Safe for concurrent use.
type Store struct {
	sealer store.Sealer
	now    func() time.Time

	mu       sync.Mutex
	rev      store.Rev
	sources  map[key]*source
	changes  []store.Event // contiguous, up to rev
	activity []store.Activity
	tokens   map[string]store.Token
	answers  map[string]answer
	ring     chan struct{} // closed at the next change
	closed   bool
}

var _ store.Store = (*Store)(nil)

type key struct{ team, name string }

type source struct {
	meta     store.Meta
	versions []version // oldest first
}

type version struct {
	number   uint64
	digest   [32]byte
	envelope []byte
}

type answer struct {
	store.Answer
	expires time.Time
}

// New returns an empty store.
func New(s store.Sealer) *Store { return NewAt(s, time.Now) }

// NewAt is New with another clock.
func NewAt(s store.Sealer, now func() time.Time) *Store {
	return &Store{
		sealer: s, now: now, ring: make(chan struct{}),
		sources: make(map[key]*source), tokens: make(map[string]store.Token), answers: make(map[string]answer),
	}
}

// Close ends watches with an error; every later call returns store.ErrUnavailable.
func (s *Store) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.closed {
		s.closed = true
		close(s.ring)
	}
	return nil
}

// Format keeps a Store from being printed with what it holds.
func (s *Store) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, "memory store") }

// lock returns with the lock held, unless it returns an error.
func (s *Store) lock(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return fmt.Errorf("%w: closed", store.ErrUnavailable)
	}
	return nil
}

// Get implements store.Reader.
func (s *Store) Get(ctx context.Context, team, name string, number uint64) (store.Sealed, error) {
	if err := s.lock(ctx); err != nil {
		return store.Sealed{}, err
	}
	defer s.mu.Unlock()
	src := s.sources[key{team, name}]
	if src == nil {
		return store.Sealed{}, fmt.Errorf("source %q: %w", name, store.ErrNotFound)
	}
	for _, v := range slices.Backward(src.versions) {
		if number == 0 || v.number == number {
			m := src.meta.Clone()
			return store.Sealed{
				Team: team, Name: name, Kind: m.Kind, Version: v.number, Rev: m.Rev, Status: m.Status,
				AllowedDestinations: m.AllowedDestinations, Envelope: slices.Clone(v.envelope),
			}, nil
		}
	}
	return store.Sealed{}, fmt.Errorf("version %d of source %q: %w", number, name, store.ErrNotFound)
}

// Rev implements store.Reader.
func (s *Store) Rev(ctx context.Context) (store.Rev, error) {
	if err := s.lock(ctx); err != nil {
		return 0, err
	}
	defer s.mu.Unlock()
	return s.rev, nil
}

// Watch implements store.Reader.
func (s *Store) Watch(ctx context.Context, since store.Rev) iter.Seq2[store.Event, error] {
	return func(yield func(store.Event, error) bool) {
		for {
			events, ring, err := s.after(ctx, since)
			if ctx.Err() != nil {
				return
			}
			if err != nil {
				yield(store.Event{}, fmt.Errorf("watch: %w", err))
				return
			}
			for _, e := range events {
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
			case <-ring:
			}
		}
	}
}

// after returns the changes after since and what rings at the next one.
func (s *Store) after(ctx context.Context, since store.Rev) ([]store.Event, <-chan struct{}, error) {
	if err := s.lock(ctx); err != nil {
		return nil, nil, err
	}
	defer s.mu.Unlock()
	missed := uint64(s.rev) - uint64(since)
	if since > s.rev || missed > uint64(len(s.changes)) {
		return []store.Event{{Type: store.EventReset, Rev: s.rev}}, s.ring, nil
	}
	return slices.Clone(s.changes[uint64(len(s.changes))-missed:]), s.ring, nil
}

// Create implements store.Writer.
func (s *Store) Create(ctx context.Context, p store.Put) (store.Meta, error) {
	if err := p.Check(); err != nil {
		return store.Meta{}, err
	}
	if err := s.lock(ctx); err != nil {
		return store.Meta{}, err
	}
	defer s.mu.Unlock()
	k := key{p.Team, p.Name}
	if s.sources[k] != nil {
		return store.Meta{}, fmt.Errorf("create source %q: %w", p.Name, store.ErrExists)
	}
	if p.IfVersion != 0 || p.IfRev != 0 {
		return store.Meta{}, fmt.Errorf("create source %q: %w", p.Name, store.ErrStale)
	}
	now := s.now()
	src := &source{meta: p.First(now)}
	if err := s.seal(src, p.Spec); err != nil {
		return store.Meta{}, err
	}
	src.meta.Rev = s.rev + 1
	if p.Answer != nil {
		a, err := p.Answer(src.meta.Clone())
		if err != nil {
			return store.Meta{}, fmt.Errorf("create source %q: %w", p.Name, err)
		}
		s.remember(a, now)
	}
	s.sources[k] = src
	s.record(store.EventPut, "create", p.Actor, src.meta, now)
	return src.meta.Clone(), nil
}

// Update implements store.Writer.
func (s *Store) Update(ctx context.Context, p store.Put) (store.Meta, bool, error) {
	if err := p.Check(); err != nil {
		return store.Meta{}, false, err
	}
	if err := s.lock(ctx); err != nil {
		return store.Meta{}, false, err
	}
	defer s.mu.Unlock()
	src, err := s.find(p.Team, p.Name, p.IfVersion, p.IfRev)
	if err != nil {
		return store.Meta{}, false, fmt.Errorf("update source %q: %w", p.Name, err)
	}
	if src.meta.Kind != p.Kind {
		return store.Meta{}, false, fmt.Errorf("update source %q: %w: it is %s", p.Name, store.ErrKindImmutable, src.meta.Kind)
	}
	digest := s.sealer.Digest(p.Team, p.Name, p.Kind, p.Spec)
	last := src.versions[len(src.versions)-1]
	unchanged := hmac.Equal(digest[:], last.digest[:])
	next := src.meta.Replaced(p)
	if unchanged && next.Same(src.meta) {
		return src.meta.Clone(), true, nil
	}
	now := s.now()
	changed := &source{meta: next.Touched(!unchanged, now), versions: slices.Clone(src.versions)}
	if !unchanged {
		if err := s.seal(changed, p.Spec); err != nil {
			return store.Meta{}, false, err
		}
	}
	changed.meta.Rev = s.rev + 1
	s.sources[key{p.Team, p.Name}] = changed
	s.record(store.EventPut, "update", p.Actor, changed.meta, now)
	return changed.meta.Clone(), unchanged, nil
}

// Patch implements store.Writer.
func (s *Store) Patch(ctx context.Context, team, name string, p store.Patch) (store.Meta, error) {
	if err := s.lock(ctx); err != nil {
		return store.Meta{}, err
	}
	defer s.mu.Unlock()
	src, err := s.find(team, name, p.IfVersion, p.IfRev)
	if err != nil {
		return store.Meta{}, fmt.Errorf("patch source %q: %w", name, err)
	}
	next, err := src.meta.Patched(p)
	if err != nil {
		return store.Meta{}, fmt.Errorf("patch source %q: %w", name, err)
	}
	if next.Same(src.meta) {
		return src.meta.Clone(), nil
	}
	now := s.now()
	src.meta = next.Touched(false, now)
	src.meta.Rev = s.rev + 1
	s.record(store.EventPut, "patch", p.Actor, src.meta, now)
	return src.meta.Clone(), nil
}

// Delete implements store.Writer.
func (s *Store) Delete(ctx context.Context, team, name string, ifVersion uint64, actor string) (store.Meta, error) {
	if err := s.lock(ctx); err != nil {
		return store.Meta{}, err
	}
	defer s.mu.Unlock()
	src, err := s.find(team, name, ifVersion, 0)
	if err != nil {
		return store.Meta{}, fmt.Errorf("delete source %q: %w", name, err)
	}
	for _, v := range src.versions {
		clear(v.envelope)
	}
	now := s.now()
	gone := src.meta
	gone.Status, gone.UpdatedAt, gone.Rev = store.Deleted, store.Stamp(now), s.rev+1
	delete(s.sources, key{team, name})
	s.record(store.EventDelete, "delete", actor, gone, now)
	return gone.Clone(), nil
}

// Meta implements store.Writer.
func (s *Store) Meta(ctx context.Context, team, name string) (store.Meta, error) {
	if err := s.lock(ctx); err != nil {
		return store.Meta{}, err
	}
	defer s.mu.Unlock()
	src, err := s.find(team, name, 0, 0)
	if err != nil {
		return store.Meta{}, fmt.Errorf("source %q: %w", name, err)
	}
	return src.meta.Clone(), nil
}

// List implements store.Writer, by name.
func (s *Store) List(ctx context.Context, team string) ([]store.Meta, error) {
	if err := s.lock(ctx); err != nil {
		return nil, err
	}
	defer s.mu.Unlock()
	list := []store.Meta{}
	for k, src := range s.sources {
		if k.team == team {
			list = append(list, src.meta.Clone())
		}
	}
	slices.SortFunc(list, func(a, b store.Meta) int { return cmp.Compare(a.Name, b.Name) })
	return list, nil
}

func (s *Store) find(team, name string, ifVersion uint64, ifRev store.Rev) (*source, error) {
	src := s.sources[key{team, name}]
	if src == nil {
		return nil, store.ErrNotFound
	}
	return src, src.meta.Guard(ifVersion, ifRev)
}

// seal adds the source's current version and drops what is too old.
func (s *Store) seal(src *source, spec []byte) error {
	m := src.meta
	envelope, err := s.sealer.Seal(m.Team, m.Name, m.Kind, m.CurrentVersion, spec)
	if err != nil {
		return fmt.Errorf("seal source %q: %w", m.Name, err)
	}
	src.versions = append(src.versions, version{
		number: m.CurrentVersion, digest: s.sealer.Digest(m.Team, m.Name, m.Kind, spec), envelope: envelope,
	})
	src.versions = src.versions[max(0, len(src.versions)-store.KeptVersions):]
	return nil
}

// record makes m's revision the store's.
func (s *Store) record(t store.EventType, action, actor string, m store.Meta, now time.Time) {
	s.rev = m.Rev
	s.changes = append(s.changes, store.Event{Type: t, Rev: m.Rev, Team: m.Team, Name: m.Name, Version: m.CurrentVersion})
	s.changes = trim(s.changes, keptChanges)
	s.act(store.Activity{
		Time: store.Stamp(now), Actor: actor, Action: action,
		Team: m.Team, Name: m.Name, Version: m.CurrentVersion, Rev: m.Rev,
	})
	close(s.ring)
	s.ring = make(chan struct{})
}

func (s *Store) act(a store.Activity) {
	s.activity = trim(append(s.activity, a), keptActivity)
}

// trim keeps the last n, copying only now and then.
func trim[T any](list []T, n int) []T {
	if len(list) < 2*n {
		return list
	}
	return slices.Clone(list[len(list)-n:])
}
