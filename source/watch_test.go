package source_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/egressd/egressd/source"
	"github.com/egressd/egressd/store"
)

func TestWatchDown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		f.token("acme", "gh", "one")
		var mu sync.Mutex
		var told []string
		r := start(t, f, source.Options{OnWatch: func(err error) {
			mu.Lock()
			defer mu.Unlock()
			told = append(told, fmt.Sprint(err))
		}})
		value(t, r, gh)
		f.set(func(f *fakeStore) { f.failWatch = errors.New("connection lost") })
		synctest.Wait()
		if r.Live() {
			t.Fatal("still live")
		}
		// Nothing announces this change, yet the next Resolve has it, and nobody waits.
		rev := f.token("acme", "gh", "two")
		wait(t, r, rev)
		if got := value(t, r, gh); got != "two" {
			t.Errorf("got %q", got)
		}
		before := f.reads()
		for range 3 {
			value(t, r, gh)
		}
		if f.reads() != before+3 {
			t.Errorf("%d reads for three while down", f.reads()-before)
		}
		f.set(func(f *fakeStore) { f.failGet = store.ErrUnavailable })
		if _, err := r.Resolve(t.Context(), gh); !errors.Is(err, source.ErrUnavailable) {
			t.Errorf("store and watch down: %v", err)
		}
		f.set(func(f *fakeStore) { f.failGet, f.failWatch = nil, nil })
		time.Sleep(6 * time.Second)
		synctest.Wait()
		if !r.Live() || r.Applied() != rev {
			t.Errorf("not followed up: live %v, applied %d of %d", r.Live(), r.Applied(), rev)
		}
		before = f.reads()
		value(t, r, gh)
		value(t, r, gh)
		if f.reads() != before+1 {
			t.Errorf("%d reads after the watch is back", f.reads()-before)
		}
		mu.Lock()
		defer mu.Unlock()
		if told[0] != "<nil>" || !strings.Contains(told[1], "connection lost") || told[len(told)-1] != "<nil>" {
			t.Errorf("told %q", told)
		}
	})
}

func TestWatchBackoffGrows(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		f.failRev = errors.New("no database")
		var at []time.Duration
		begun := time.Now()
		r := source.NewResolver(f, f, registry(t), source.Options{OnWatch: func(error) { at = append(at, time.Since(begun)) }})
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if err := r.Run(ctx); err != nil {
			t.Fatal(err)
		}
		// 50, 100, … ms, then 5 s, each between half and whole.
		if n := len(at); n < 14 || n > 40 {
			t.Fatalf("%d attempts in a minute: %v", n, at)
		}
		if gap := at[1] - at[0]; gap < 25*time.Millisecond || gap > 50*time.Millisecond {
			t.Errorf("first pause %v", gap)
		}
		last := at[len(at)-1] - at[len(at)-2]
		if last < 2500*time.Millisecond || last > 5*time.Second {
			t.Errorf("last pause %v", last)
		}
	})
}

func TestResetForgetsAll(t *testing.T) {
	f := newFake()
	f.token("acme", "gh", "one")
	f.token("acme", "other", "x")
	var mu sync.Mutex
	var told []string
	r := start(t, f, source.Options{OnInvalidate: []func(string, string){func(team, name string) {
		mu.Lock()
		defer mu.Unlock()
		told = append(told, team+"/"+name)
	}}})
	value(t, r, gh)
	value(t, r, source.Ref{Team: "acme", Name: "other"})
	wait(t, r, f.token("acme", "gh", "two"))
	value(t, r, gh)
	before := f.reads()
	wait(t, r, f.reset())
	value(t, r, gh)
	value(t, r, source.Ref{Team: "acme", Name: "other"})
	if f.reads() != before+2 {
		t.Errorf("%d reads after the reset", f.reads()-before)
	}
	mu.Lock()
	defer mu.Unlock()
	if !slices.Equal(told, []string{"acme/gh", "/"}) {
		t.Errorf("told %q", told)
	}
}
