package source_test

import (
	"context"
	"encoding/json"
	"fmt"
	"iter"
	"sync"
	"testing"

	"github.com/egressd/egressd/source"
	"github.com/egressd/egressd/source/static"
	"github.com/egressd/egressd/store"
)

// fakeStore is a store.Reader and store.Opener whose failures a test can arrange. Its
// envelopes are the specs themselves.
type fakeStore struct {
	mu      sync.Mutex
	rev     store.Rev
	byName  map[string]store.Sealed
	log     []store.Event
	changed chan struct{}
	gets    int

	failGet   error
	failWatch error
	failRev   error
	gate      chan struct{} // if set, Get reads, then waits for it
	openPanic bool
	corrupt   bool
}

func newFake() *fakeStore {
	return &fakeStore{byName: map[string]store.Sealed{}, changed: make(chan struct{})}
}

func (f *fakeStore) notify() {
	close(f.changed)
	f.changed = make(chan struct{})
}

// put makes a new version and returns its revision.
func (f *fakeStore) put(team, name, kind, spec string) store.Rev {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.rev++
	s := f.byName[team+"/"+name]
	s.Team, s.Name, s.Kind, s.Version, s.Rev = team, name, kind, s.Version+1, f.rev
	s.Status, s.Envelope = store.Active, []byte(spec)
	f.byName[team+"/"+name] = s
	f.log = append(f.log, store.Event{Type: store.EventPut, Rev: f.rev, Team: team, Name: name, Version: s.Version})
	f.notify()
	return f.rev
}

func token(value string) string {
	out, _ := json.Marshal(map[string]any{"staticHeaders": map[string]any{"values": map[string]string{"token": value}}})
	return string(out)
}

func (f *fakeStore) token(team, name, value string) store.Rev {
	return f.put(team, name, static.Headers, token(value))
}

func (f *fakeStore) edit(team, name string, change func(*store.Sealed)) store.Rev {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.rev++
	s := f.byName[team+"/"+name]
	change(&s)
	s.Rev = f.rev
	f.byName[team+"/"+name] = s
	f.log = append(f.log, store.Event{Type: store.EventPut, Rev: f.rev, Team: team, Name: name})
	f.notify()
	return f.rev
}

func (f *fakeStore) remove(team, name string) store.Rev {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.rev++
	delete(f.byName, team+"/"+name)
	f.log = append(f.log, store.Event{Type: store.EventDelete, Rev: f.rev, Team: team, Name: name})
	f.notify()
	return f.rev
}

func (f *fakeStore) reset() store.Rev {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.rev++
	f.log = append(f.log, store.Event{Type: store.EventReset, Rev: f.rev})
	f.notify()
	return f.rev
}

// set changes the fake's behaviour and wakes its watchers to it.
func (f *fakeStore) set(change func(*fakeStore)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change(f)
	f.notify()
}

func (f *fakeStore) reads() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.gets
}

func (f *fakeStore) Get(ctx context.Context, team, name string, version uint64) (store.Sealed, error) {
	f.mu.Lock()
	f.gets++
	s, ok := f.byName[team+"/"+name]
	err, gate := f.failGet, f.gate
	f.mu.Unlock()
	if gate != nil {
		select {
		case <-gate:
		case <-ctx.Done():
			return store.Sealed{}, ctx.Err()
		}
	}
	if err != nil {
		return store.Sealed{}, err
	}
	if !ok || version != 0 && version != s.Version {
		return store.Sealed{}, fmt.Errorf("get: %w", store.ErrNotFound)
	}
	return s, nil
}

func (f *fakeStore) Watch(ctx context.Context, since store.Rev) iter.Seq2[store.Event, error] {
	return func(yield func(store.Event, error) bool) {
		for {
			f.mu.Lock()
			var due []store.Event
			for _, ev := range f.log {
				if ev.Rev > since {
					due = append(due, ev)
				}
			}
			err, changed := f.failWatch, f.changed
			f.mu.Unlock()
			if err != nil {
				yield(store.Event{}, err)
				return
			}
			for _, ev := range due {
				since = ev.Rev
				if !yield(ev, nil) {
					return
				}
			}
			if len(due) > 0 {
				continue
			}
			select {
			case <-changed:
			case <-ctx.Done():
				return
			}
		}
	}
}

func (f *fakeStore) Rev(context.Context) (store.Rev, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.rev, f.failRev
}

func (f *fakeStore) Open(s store.Sealed) ([]byte, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.openPanic {
		panic("opener met " + string(s.Envelope))
	}
	if f.corrupt {
		return nil, store.ErrCorrupt
	}
	return append([]byte(nil), s.Envelope...), nil
}

func registry(t testing.TB) *source.Registry {
	t.Helper()
	r, err := source.NewRegistry(static.Kinds()...)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// start gives a Resolver whose watch is up, and ends it with the test.
func start(t testing.TB, f *fakeStore, opts source.Options) *source.Resolver {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	r := source.NewResolver(f, f, registry(t), opts)
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
		r.Close()
	})
	for !r.Live() {
		pause(t)
	}
	return r
}
