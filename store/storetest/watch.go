package storetest

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/egressd/egressd/store"
)

// patience bounds what should come at once; a loaded machine may be slow.
const patience = 20 * time.Second

// follow watches in the background until the test ends.
func follow(t *testing.T, r store.Reader, since store.Rev) <-chan store.Event {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	events, done := make(chan store.Event, 10_000), make(chan struct{})
	t.Cleanup(func() { cancel(); <-done })
	go func() {
		defer close(done)
		for e, err := range r.Watch(ctx, since) {
			if err != nil {
				t.Errorf("watch: %v", err)
				return
			}
			events <- e
		}
	}()
	return events
}

func next(t *testing.T, events <-chan store.Event) store.Event {
	t.Helper()
	select {
	case e := <-events:
		return e
	case <-time.After(patience):
		t.Fatal("no event came")
		return store.Event{}
	}
}

// take returns the next n events.
func take(t *testing.T, events <-chan store.Event, n int) []store.Event {
	t.Helper()
	var list []store.Event
	for range n {
		list = append(list, next(t, events))
	}
	return list
}

func testWatchOrder(t *testing.T, f *fixture) {
	early := follow(t, f, 0)
	const writers, each = 4, 10
	results := make(chan error, writers)
	for w := range writers {
		go func() {
			name := fmt.Sprintf("source-%d", w)
			_, err := f.Create(t.Context(), put(name, "0"))
			for i := 1; i < each && err == nil; i++ {
				_, _, err = f.Update(t.Context(), put(name, fmt.Sprint(i)))
			}
			results <- err
		}()
	}
	for range writers {
		if err := <-results; err != nil {
			t.Fatal(err)
		}
	}
	gone, err := f.Delete(t.Context(), team, "source-0", 0, "tester")
	if err != nil {
		t.Fatal(err)
	}
	got := take(t, early, writers*each+1)
	versions := map[string]uint64{}
	for i, e := range got {
		if e.Rev != store.Rev(i+1) || e.Team != team {
			t.Fatalf("event %d: %+v", i, e)
		}
		if versions[e.Name]++; e.Type == store.EventPut && e.Version != versions[e.Name] {
			t.Errorf("event %d: %+v, want version %d", i, e, versions[e.Name])
		}
	}
	last := store.Event{Type: store.EventDelete, Rev: gone.Rev, Team: team, Name: "source-0", Version: each}
	if d := cmp.Diff(last, got[len(got)-1]); d != "" {
		t.Errorf("last event (-want +got):\n%s", d)
	}
	if d := cmp.Diff(got, take(t, follow(t, f, 0), len(got))); d != "" {
		t.Errorf("a second watch saw something else (-first +second):\n%s", d)
	}
}

func testWatchSince(t *testing.T, f *fixture) {
	f.create(t, "a", "1")
	b := f.create(t, "b", "1")
	c := f.create(t, "c", "1")
	if e := next(t, follow(t, f, b.Rev)); e.Rev != c.Rev || e.Name != "c" {
		t.Errorf("after b: %+v", e)
	}
	live := follow(t, f, c.Rev)
	d := f.create(t, "d", "1")
	if e := next(t, live); e.Rev != d.Rev || e.Type != store.EventPut || e.Version != 1 {
		t.Errorf("live: %+v", e)
	}
	// A revision that the store never had: its caller knows of another history.
	ahead := follow(t, f, d.Rev+100)
	if e := next(t, ahead); e.Type != store.EventReset || e.Rev != d.Rev {
		t.Errorf("ahead: %+v", e)
	}
	m := f.update(t, "d", "2")
	if e := next(t, ahead); e.Type != store.EventPut || e.Rev != m.Rev || e.Version != 2 {
		t.Errorf("after the reset: %+v", e)
	}
	// An identical put is no event.
	if _, _, err := f.Update(t.Context(), put("d", "2")); err != nil {
		t.Fatal(err)
	}
	status := store.Disabled
	p, err := f.Patch(t.Context(), team, "d", store.Patch{Status: &status})
	if err != nil {
		t.Fatal(err)
	}
	if e := next(t, ahead); e.Type != store.EventPut || e.Rev != p.Rev || p.Rev != m.Rev+1 {
		t.Errorf("after the patch: %+v", e)
	}
}

func testWatchEnds(t *testing.T, f *fixture) {
	f.create(t, "a", "1")
	ended := make(chan error, 3)
	watch := func(ctx context.Context, stop bool) {
		var last error
		for _, err := range f.Watch(ctx, 0) {
			last = err
			if stop {
				break
			}
		}
		ended <- last
	}
	wait := func(what string) error {
		t.Helper()
		select {
		case err := <-ended:
			return err
		case <-time.After(patience):
			t.Fatalf("the watch did not end: %s", what)
			return nil
		}
	}
	go watch(t.Context(), true)
	if err := wait("loop left"); err != nil {
		t.Errorf("left by its caller: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	go watch(ctx, false)
	cancel()
	if err := wait("context"); err != nil {
		t.Errorf("ended by its context: %v", err)
	}
	go watch(t.Context(), false)
	time.Sleep(20 * time.Millisecond) // so that it is waiting, most of the time; either way it must end
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if err := wait("close"); !errors.Is(err, store.ErrUnavailable) {
		t.Errorf("ended by Close: %v", err)
	}
}

func testSharedWatch(t *testing.T, f *fixture, a, b store.Store) {
	fromA, fromB := follow(t, a, 0), follow(t, b, 0)
	const n = 20
	for i := range n {
		w := a
		if i%2 == 1 {
			w = b
		}
		if _, err := w.Create(t.Context(), put(fmt.Sprintf("shared-%d", i), "x")); err != nil {
			t.Fatal(err)
		}
	}
	seenA, seenB := take(t, fromA, n), take(t, fromB, n)
	if d := cmp.Diff(seenA, seenB); d != "" {
		t.Errorf("the handles saw different changes (-a +b):\n%s", d)
	}
	for i, e := range seenA {
		if e.Rev != store.Rev(i+1) || e.Name != fmt.Sprintf("shared-%d", i) {
			t.Errorf("event %d: %+v", i, e)
		}
	}
	s, err := b.Get(t.Context(), team, "shared-0", 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.opener.Open(s); err != nil {
		t.Error(err)
	}
}
