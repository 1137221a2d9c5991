package source_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/egressd/egressd/source"
	"github.com/egressd/egressd/source/static"
	"github.com/egressd/egressd/store"
	"github.com/egressd/egressd/store/memory"
)

// realStore is the memory store with sealing, and a Resolver that follows it.
func realStore(t *testing.T) (*memory.Store, *source.Resolver) {
	t.Helper()
	sealer, opener, err := store.EphemeralKeys()
	if err != nil {
		t.Fatal(err)
	}
	db := memory.New(sealer)
	ctx, stop := context.WithCancel(t.Context())
	r := source.NewResolver(db, opener, registry(t), source.Options{})
	ended := make(chan error, 1)
	go func() { ended <- r.Run(ctx) }()
	t.Cleanup(func() {
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		r.Close()
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	})
	for !r.Live() {
		pause(t)
	}
	return db, r
}

func putToken(value string) store.Put {
	p := store.Put{Spec: []byte(token(value)), Actor: "test"}
	p.Team, p.Name, p.Kind = "acme", "gh", static.Headers
	return p
}

func TestWithStore(t *testing.T) {
	db, r := realStore(t)
	created, err := db.Create(t.Context(), putToken("one"))
	if err != nil {
		t.Fatal(err)
	}
	wait(t, r, created.Rev)
	if got := value(t, r, gh); got != "one" {
		t.Error(got)
	}
	updated, _, err := db.Update(t.Context(), putToken("two"))
	if err != nil {
		t.Fatal(err)
	}
	wait(t, r, updated.Rev)
	first := gh
	first.Version = 1
	if a, b := value(t, r, gh), value(t, r, first); a != "two" || b != "one" {
		t.Errorf("current %q, version 1 %q", a, b)
	}
	disabled, bounds := store.Disabled, []string{"good.test"}
	patched, err := db.Patch(t.Context(), "acme", "gh", store.Patch{AllowedDestinations: &bounds})
	if err != nil {
		t.Fatal(err)
	}
	wait(t, r, patched.Rev)
	for _, ref := range []source.Ref{gh, first} {
		if m, err := r.Resolve(t.Context(), ref); err != nil || len(m.AllowedDestinations) != 1 {
			t.Errorf("%v: %v, %v", ref, m, err)
		}
	}
	if patched, err = db.Patch(t.Context(), "acme", "gh", store.Patch{Status: &disabled}); err != nil {
		t.Fatal(err)
	}
	wait(t, r, patched.Rev)
	for _, ref := range []source.Ref{gh, first} {
		if _, err := r.Resolve(t.Context(), ref); !errors.Is(err, source.ErrDisabled) {
			t.Errorf("%v: %v", ref, err)
		}
	}
	deleted, err := db.Delete(t.Context(), "acme", "gh", 0, "test")
	if err != nil {
		t.Fatal(err)
	}
	wait(t, r, deleted.Rev)
	for _, ref := range []source.Ref{gh, first} {
		if _, err := r.Resolve(t.Context(), ref); !errors.Is(err, source.ErrNotFound) {
			t.Errorf("%v: %v", ref, err)
		}
	}
	// Version 1 of its namesake is not version 1 of before.
	if created, err = db.Create(t.Context(), putToken("three")); err != nil {
		t.Fatal(err)
	}
	wait(t, r, created.Rev)
	if got := value(t, r, first); got != "three" {
		t.Error(got)
	}
}

// 64 readers under 100 rotations: nobody gets a version older than what was in force
// when it asked, nobody fails, and the wait for a rotation is short.
func TestRotationUnderLoad(t *testing.T) {
	db, r := realStore(t)
	created, err := db.Create(t.Context(), putToken("v1"))
	if err != nil {
		t.Fatal(err)
	}
	wait(t, r, created.Rev)
	var floor atomic.Uint64
	floor.Store(1)
	ctx, stop := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	for range 64 {
		wg.Go(func() {
			for ctx.Err() == nil {
				want := floor.Load()
				m, err := r.Resolve(t.Context(), gh)
				if err != nil || m.Version < want || m.Values["token"].Reveal() != fmt.Sprint("v", m.Version) {
					t.Errorf("wanted %d: %v, %v", want, m, err)
					return
				}
				time.Sleep(50 * time.Microsecond)
			}
		})
	}
	for v := uint64(2); v <= 100; v++ {
		m, unchanged, err := db.Update(t.Context(), putToken(fmt.Sprint("v", v)))
		if err != nil || unchanged || m.CurrentVersion != v {
			t.Fatalf("%v, %v, %v", m.CurrentVersion, unchanged, err)
		}
		wait(t, r, m.Rev)
		floor.Store(v)
	}
	stop()
	wg.Wait()
}
