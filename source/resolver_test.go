package source_test

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/egressd/egressd/source"
	"github.com/egressd/egressd/store"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// pause lets other goroutines run, also within a synctest bubble.
func pause(testing.TB) {
	runtime.Gosched()
	time.Sleep(time.Millisecond)
}

var gh = source.Ref{Team: "acme", Name: "gh"}

func value(t testing.TB, r *source.Resolver, ref source.Ref) string {
	t.Helper()
	m, err := r.Resolve(t.Context(), ref)
	if err != nil {
		t.Fatalf("Resolve(%v): %v", ref, err)
	}
	return m.Values["token"].Reveal()
}

func wait(t testing.TB, r *source.Resolver, rev store.Rev) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	if err := r.WaitApplied(ctx, rev); err != nil {
		t.Fatal(err)
	}
}

func TestResolveKeepsUntilChange(t *testing.T) {
	f := newFake()
	f.token("acme", "gh", "one")
	r := start(t, f, source.Options{})
	first, err := r.Resolve(t.Context(), gh)
	if err != nil {
		t.Fatal(err)
	}
	if first.Team != "acme" || first.Name != "gh" || first.Version != 1 || first.Kind != "static_headers" || first.ID == 0 || first.Rev != 1 {
		t.Errorf("material is %v", first)
	}
	again, _ := r.Resolve(t.Context(), gh)
	if again != first || f.reads() != 1 {
		t.Errorf("second Resolve: same pointer %v, %d reads", again == first, f.reads())
	}
	wait(t, r, f.token("acme", "other", "x"))
	if again, _ = r.Resolve(t.Context(), gh); again != first {
		t.Error("a change to another source replaced the material")
	}
	wait(t, r, f.token("acme", "gh", "two"))
	next, _ := r.Resolve(t.Context(), gh)
	if next == first || next.Version != 2 || next.ID == first.ID || next.Values["token"].Reveal() != "two" {
		t.Errorf("after rotation: %v", next)
	}
}

func TestResolveStatus(t *testing.T) {
	for _, tc := range []struct {
		name   string
		change func(f *fakeStore) store.Rev
		want   error
		code   string
	}{
		{"disabled", func(f *fakeStore) store.Rev {
			return f.edit("acme", "gh", func(s *store.Sealed) { s.Status = store.Disabled })
		}, source.ErrDisabled, "source_disabled"},
		{"archived", func(f *fakeStore) store.Rev {
			return f.edit("acme", "gh", func(s *store.Sealed) { s.Status = store.Archived })
		}, source.ErrDisabled, "source_disabled"},
		{"no status", func(f *fakeStore) store.Rev {
			return f.edit("acme", "gh", func(s *store.Sealed) { s.Status = "" })
		}, source.ErrDisabled, "source_disabled"},
		{"tombstone", func(f *fakeStore) store.Rev {
			return f.edit("acme", "gh", func(s *store.Sealed) { s.Status = store.Deleted })
		}, source.ErrNotFound, "source_not_found"},
		{"deleted", func(f *fakeStore) store.Rev { return f.remove("acme", "gh") }, source.ErrNotFound, "source_not_found"},
		{"corrupt", func(f *fakeStore) store.Rev {
			f.set(func(f *fakeStore) { f.corrupt = true })
			return f.token("acme", "gh", "two")
		}, source.ErrCorrupt, "source_corrupt"},
		{"unknown kind", func(f *fakeStore) store.Rev { return f.put("acme", "gh", "quantum", "{}") }, source.ErrInvalid, "source_invalid"},
		{"C13 stored value with a line end", func(f *fakeStore) store.Rev {
			return f.token("acme", "gh", "x\r\nX-Evil: 1")
		}, source.ErrInvalid, "source_invalid"},
		{"other record", func(f *fakeStore) store.Rev {
			return f.edit("acme", "gh", func(s *store.Sealed) { s.Team = "other" })
		}, source.ErrCorrupt, "source_corrupt"},
		{"store down", func(f *fakeStore) store.Rev {
			f.set(func(f *fakeStore) { f.failGet = store.ErrUnavailable })
			return f.token("acme", "gh", "two")
		}, source.ErrUnavailable, "source_unavailable"},
		{"panic", func(f *fakeStore) store.Rev {
			f.set(func(f *fakeStore) { f.openPanic = true })
			return f.token("acme", "gh", "CANARY")
		}, source.ErrUnavailable, "source_unavailable"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			f := newFake()
			f.token("acme", "gh", "one")
			r := start(t, f, source.Options{})
			if got := value(t, r, gh); got != "one" {
				t.Fatalf("before: %q", got)
			}
			wait(t, r, tc.change(f))
			m, err := r.Resolve(t.Context(), gh)
			if m != nil || !errors.Is(err, tc.want) || source.Code(err) != tc.code {
				t.Fatalf("Resolve = %v, %v (%s), want %v", m, err, source.Code(err), tc.want)
			}
			if strings.Contains(err.Error(), "CANARY") || strings.Contains(err.Error(), "X-Evil") {
				t.Errorf("the error repeats the secret: %v", err)
			}
		})
	}
}

func TestRefusalIsForgottenByItsChange(t *testing.T) {
	f := newFake()
	r := start(t, f, source.Options{})
	for range 3 {
		if _, err := r.Resolve(t.Context(), gh); !errors.Is(err, source.ErrNotFound) {
			t.Fatal(err)
		}
	}
	if f.reads() != 1 {
		t.Errorf("%d reads for three refusals", f.reads())
	}
	wait(t, r, f.token("acme", "gh", "one"))
	if got := value(t, r, gh); got != "one" {
		t.Errorf("got %q", got)
	}
}

func TestUnavailableIsNotKept(t *testing.T) {
	f := newFake()
	f.token("acme", "gh", "one")
	f.failGet = store.ErrUnavailable
	r := start(t, f, source.Options{})
	if _, err := r.Resolve(t.Context(), gh); !errors.Is(err, source.ErrUnavailable) {
		t.Fatal(err)
	}
	f.set(func(f *fakeStore) { f.failGet = nil })
	if got := value(t, r, gh); got != "one" {
		t.Errorf("got %q", got)
	}
}

func TestPinnedVersions(t *testing.T) {
	f := newFake()
	f.token("acme", "gh", "one")
	r := start(t, f, source.Options{})
	pinned := source.Ref{Team: "acme", Name: "gh", Version: 1}
	if got := value(t, r, pinned); got != "one" {
		t.Fatal(got)
	}
	if value(t, r, pinned); f.reads() != 1 {
		t.Errorf("%d reads", f.reads())
	}
	wait(t, r, f.token("acme", "gh", "two"))
	if got := value(t, r, gh); got != "two" {
		t.Error(got)
	}
	if _, err := r.Resolve(t.Context(), pinned); !errors.Is(err, source.ErrNotFound) {
		t.Errorf("the fake keeps no history, so version 1 is gone: %v", err)
	}
}

// A team's reference never reaches another team's source, and an empty one nothing.
func TestAttack_F05_cross_team_reference(t *testing.T) {
	f := newFake()
	f.token("acme", "gh", "CANARY")
	r := start(t, f, source.Options{})
	value(t, r, gh) // in memory already
	for _, ref := range []source.Ref{
		{Team: "evil", Name: "gh"}, {Team: "evil", Name: "../acme/gh"}, {Team: "evil", Name: "acme/gh"},
		{Team: "", Name: "acme/gh"}, {Team: "acme/gh"}, {Team: "", Name: "gh"}, {},
		{Team: "evil/../acme", Name: "gh"}, {Team: "ACME", Name: "gh"}, {Team: "acme", Name: "GH"}, {Team: "evil", Name: "1"},
	} {
		if m, err := r.Resolve(t.Context(), ref); !errors.Is(err, source.ErrNotFound) {
			t.Errorf("%v: %v, %v", ref, m, err)
		}
	}
}

// Many waiters cost one read; one who leaves fails nobody else.
func TestAttack_H08_thundering_herd(t *testing.T) {
	f := newFake()
	f.token("acme", "gh", "one")
	f.gate = make(chan struct{})
	r := start(t, f, source.Options{})

	impatient, leave := context.WithCancel(t.Context())
	left := make(chan error)
	go func() { _, err := r.Resolve(impatient, gh); left <- err }()
	for f.reads() == 0 {
		pause(t)
	}
	const herd = 5000
	var got atomic.Int64
	var wg sync.WaitGroup
	for range herd {
		wg.Go(func() {
			if m, err := r.Resolve(t.Context(), gh); err == nil && m.Values["token"].Reveal() == "one" {
				got.Add(1)
			}
		})
	}
	leave() // the one whose call it was
	if err := <-left; !errors.Is(err, context.Canceled) || !errors.Is(err, source.ErrUnavailable) {
		t.Errorf("the one who left: %v", err)
	}
	close(f.gate)
	wg.Wait()
	if got.Load() != herd || f.reads() != 1 {
		t.Errorf("%d of %d answered, %d reads", got.Load(), herd, f.reads())
	}
}

// A fetch that began before a change answers only those who asked before it.
func TestOvertakenFetchIsNotKept(t *testing.T) {
	f := newFake()
	f.token("acme", "gh", "one")
	gate := make(chan struct{})
	f.gate = gate
	r := start(t, f, source.Options{})
	early := make(chan string)
	go func() { early <- value(t, r, gh) }()
	for f.reads() == 0 {
		pause(t)
	}
	wait(t, r, f.token("acme", "gh", "two"))
	f.set(func(f *fakeStore) { f.gate = nil })
	late := make(chan string)
	go func() { late <- value(t, r, gh) }()
	pause(t)
	close(gate)
	if got := <-early; got != "one" && got != "two" {
		t.Errorf("early: %q", got)
	}
	if got := <-late; got != "two" {
		t.Errorf("late: %q, which it asked for after the change", got)
	}
	if got := value(t, r, gh); got != "two" {
		t.Errorf("kept: %q", got)
	}
}

// As above, when nobody asks again before the overtaken fetch has ended.
func TestOvertakenFetchAloneIsNotKept(t *testing.T) {
	f := newFake()
	f.token("acme", "gh", "one")
	gate := make(chan struct{})
	f.gate = gate
	r := start(t, f, source.Options{})
	early := make(chan string)
	go func() { early <- value(t, r, gh) }()
	for f.reads() == 0 {
		pause(t)
	}
	wait(t, r, f.token("acme", "gh", "two"))
	f.set(func(f *fakeStore) { f.gate = nil })
	close(gate)
	<-early
	if got := value(t, r, gh); got != "two" {
		t.Errorf("kept: %q", got)
	}
}

// A fetch from before the watch came up may have missed a change that the watch does
// not repeat: it is neither kept nor shared.
func TestFetchFromBeforeTheWatchIsNotKept(t *testing.T) {
	for _, again := range []bool{false, true} {
		f := newFake()
		f.token("acme", "gh", "one")
		gate := make(chan struct{})
		f.gate = gate
		r := source.NewResolver(f, f, registry(t), source.Options{})
		early := make(chan string)
		go func() { early <- value(t, r, gh) }()
		for f.reads() == 0 {
			pause(t)
		}
		f.token("acme", "gh", "two")
		ctx, stop := context.WithCancel(t.Context())
		ended := make(chan error)
		go func() { ended <- r.Run(ctx) }()
		for !r.Live() {
			pause(t)
		}
		f.set(func(f *fakeStore) { f.gate = nil })
		late := make(chan string, 1)
		if again {
			go func() { late <- value(t, r, gh) }()
			pause(t)
		}
		close(gate)
		<-early
		if !again {
			late <- value(t, r, gh)
		}
		if got := <-late; got != "two" {
			t.Errorf("asked again before it ended %v: %q", again, got)
		}
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		r.Close()
	}
}

func TestOlderThanFloorIsRefused(t *testing.T) {
	f := newFake()
	f.token("acme", "gh", "one")
	r := start(t, f, source.Options{})
	f.mu.Lock()
	old := f.byName["acme/gh"]
	f.mu.Unlock()
	wait(t, r, f.token("acme", "gh", "two"))
	f.set(func(f *fakeStore) { f.byName["acme/gh"] = old }) // a replica that lags
	if m, err := r.Resolve(t.Context(), gh); !errors.Is(err, source.ErrUnavailable) {
		t.Errorf("%v, %v", m, err)
	}
}

func TestMaxAge(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		f.token("acme", "gh", "one")
		r := start(t, f, source.Options{})
		aged := gh
		aged.MaxAge = time.Minute
		first, err := r.Resolve(t.Context(), aged)
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(59 * time.Second)
		value(t, r, aged)
		if f.reads() != 1 {
			t.Errorf("%d reads before the bound", f.reads())
		}
		time.Sleep(2 * time.Second)
		second, err := r.Resolve(t.Context(), aged)
		if err != nil || f.reads() != 2 {
			t.Errorf("%v, %d reads after the bound", err, f.reads())
		}
		if second != first {
			t.Error("the refetch of what had not changed made new material")
		}
		time.Sleep(2 * time.Minute)
		f.set(func(f *fakeStore) { f.failGet = store.ErrUnavailable })
		if _, err := r.Resolve(t.Context(), aged); !errors.Is(err, source.ErrUnavailable) {
			t.Errorf("served past its bound: %v", err)
		}
		if got := value(t, r, gh); got != "one" {
			t.Errorf("without a bound: %q", got)
		}
	})
}

func TestWaitAppliedEnds(t *testing.T) {
	f := newFake()
	r := start(t, f, source.Options{})
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if err := r.WaitApplied(ctx, 99); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
}

func TestCloseEndsFetches(t *testing.T) {
	f := newFake()
	f.token("acme", "gh", "one")
	f.gate = make(chan struct{})
	r := source.NewResolver(f, f, registry(t), source.Options{FetchTimeout: 30 * time.Millisecond})
	if _, err := r.Resolve(t.Context(), gh); !errors.Is(err, source.ErrUnavailable) {
		t.Errorf("a store that does not answer: %v", err)
	}
	r.Close()
	if _, err := r.Resolve(t.Context(), gh); !errors.Is(err, source.ErrUnavailable) {
		t.Errorf("after Close: %v", err)
	}
}

func TestBounded(t *testing.T) {
	f := newFake()
	for i := range 40 {
		f.token("acme", fmt.Sprint("s", i), "x")
	}
	r := start(t, f, source.Options{Size: 8})
	for range 2 {
		for i := range 40 {
			value(t, r, source.Ref{Team: "acme", Name: fmt.Sprint("s", i)})
		}
	}
	if f.reads() != 80 {
		t.Errorf("%d reads: 8 entries cannot hold 40 sources in turn", f.reads())
	}
}

// After WaitApplied(rev) no Resolve gives an older version, whatever happens at once.
func TestHotReloadRace(t *testing.T) {
	f := newFake()
	f.token("acme", "gh", "v1")
	r := start(t, f, source.Options{})
	var floor atomic.Uint64
	floor.Store(1)
	ctx, stop := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	var asked, old atomic.Int64
	for range 16 {
		wg.Go(func() {
			for ctx.Err() == nil {
				want := floor.Load()
				m, err := r.Resolve(t.Context(), gh)
				if err != nil {
					t.Errorf("Resolve: %v", err)
					return
				}
				if m.Version < want || m.Values["token"].Reveal() != fmt.Sprint("v", m.Version) {
					old.Add(1)
				}
				asked.Add(1)
			}
		})
	}
	wg.Go(func() { // unrelated changes, lost watches and resets in between
		for i := 0; ctx.Err() == nil; i++ {
			switch i % 4 {
			case 0, 1:
				f.token("acme", "noise", "x")
			case 2:
				f.reset()
			case 3:
				f.set(func(f *fakeStore) { f.failWatch = errors.New("lost") })
				time.Sleep(time.Millisecond)
				f.set(func(f *fakeStore) { f.failWatch = nil })
			}
			time.Sleep(300 * time.Microsecond)
		}
	})
	for v := uint64(2); v <= 300; v++ {
		rev := f.token("acme", "gh", fmt.Sprint("v", v))
		wait(t, r, rev)
		floor.Store(v)
		time.Sleep(100 * time.Microsecond)
	}
	stop()
	wg.Wait()
	if old.Load() != 0 || asked.Load() == 0 {
		t.Errorf("%d of %d answers were older than what was in force", old.Load(), asked.Load())
	}
}

func TestResolveAllocatesNothing(t *testing.T) {
	f := newFake()
	f.token("acme", "gh", "one")
	r := start(t, f, source.Options{})
	ctx := t.Context()
	value(t, r, gh)
	if n := testing.AllocsPerRun(1000, func() { _, _ = r.Resolve(ctx, gh) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func TestKindOf(t *testing.T) {
	f := newFake()
	f.token("acme", "gh", "one")
	if kind, err := source.KindOf(t.Context(), f, "acme", "gh"); kind != "static_headers" || err != nil {
		t.Errorf("%q, %v", kind, err)
	}
	f.edit("acme", "gh", func(s *store.Sealed) { s.Status = store.Archived })
	if _, err := source.KindOf(t.Context(), f, "acme", "gh"); !errors.Is(err, source.ErrNotFound) {
		t.Errorf("archived: %v", err)
	}
	f.failGet = errors.New("down")
	if _, err := source.KindOf(t.Context(), f, "acme", "gh"); !errors.Is(err, source.ErrUnavailable) {
		t.Errorf("down: %v", err)
	}
}

func BenchmarkResolve(b *testing.B) {
	f := newFake()
	f.token("acme", "gh", "one")
	r := start(b, f, source.Options{})
	ctx := b.Context()
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if _, err := r.Resolve(ctx, gh); err != nil {
				b.Fatal(err)
			}
		}
	})
}
