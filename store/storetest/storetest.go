// Package storetest is the contract of a store backend: Run for any, RunShared for one
// whose storage several processes use at once.
package storetest

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/egressd/egressd/store"
)

// Env is what the suite gives a backend.
type Env struct {
	Sealer store.Sealer
	Now    func() time.Time // the clock to go by
}

// Open makes an empty store that the test's cleanup closes.
type Open func(t *testing.T, env Env) store.Store

// Run runs the contract.
func Run(t *testing.T, open Open) {
	for _, c := range []struct {
		name string
		test func(*testing.T, *fixture)
	}{
		{"create and get", testCreate},
		{"invalid records are refused", testInvalid},
		{"update makes a version only for another spec", testUpdate},
		{"kind is immutable", testKind},
		{"conditions", testConditions},
		{"patch", testPatch},
		{"the last versions are kept", testKept},
		{"G25 delete and create again", testDelete},
		{"teams are apart", testTeams},
		{"list", testList},
		{"watch is in order", testWatchOrder},
		{"watch starts anywhere", testWatchSince},
		{"watch ends", testWatchEnds},
		{"G15 one of 1000 writers wins", testOneWins},
		{"G17 idempotency", testIdempotency},
		{"G17 answer and change are one", testAnswer},
		{"tokens", testTokens},
		{"activity", testActivity},
		{"a cancelled call changes nothing", testCancelled},
		{"closed", testClosed},
		{"H01 linearizable", testLinearizable},
	} {
		t.Run(c.name, func(t *testing.T) { c.test(t, newFixture(t, open)) })
	}
}

// RunShared runs what two handles on one storage owe each other.
func RunShared(t *testing.T, open func(t *testing.T, env Env) (a, b store.Store)) {
	f := newFixture(t, func(t *testing.T, env Env) store.Store {
		t.Helper()
		return nil
	})
	a, b := open(t, f.env)
	t.Run("each sees the other's writes in order", func(t *testing.T) { testSharedWatch(t, f, a, b) })
	t.Run("G15 one of many writers on two handles wins", func(t *testing.T) { testSharedOneWins(t, f, a, b) })
}

// fixture is one empty store with its clock and keys.
type fixture struct {
	store.Store
	env    Env
	opener store.Opener

	mu  sync.Mutex
	now time.Time
}

func newFixture(t *testing.T, open Open) *fixture {
	t.Helper()
	sealer, opener, err := store.EphemeralKeys()
	if err != nil {
		t.Fatal(err)
	}
	f := &fixture{opener: opener, now: time.Date(2026, 11, 21, 3, 0, 0, 0, time.UTC)}
	f.env = Env{Sealer: sealer, Now: f.clock}
	f.Store = open(t, f.env)
	return f
}

func (f *fixture) clock() time.Time {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.now
}

func (f *fixture) pass(d time.Duration) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.now = f.now.Add(d)
}

const (
	team = "blue"
	kind = "static_headers"
)

// put is a plausible write; spec need not be a real one here.
func put(name, spec string) store.Put {
	return store.Put{
		Meta: store.Meta{
			Team: team, Name: name, Kind: kind, Description: "of " + name,
			Labels:              map[string]string{"env": "test"},
			AllowedDestinations: []string{"https://good.test:443"},
			Fields:              []store.Field{{Path: "staticHeaders.values.token", Set: true, Origin: "local"}},
			Health:              "ok",
		},
		Spec:  []byte(spec),
		Actor: "tester",
	}
}

func (f *fixture) create(t *testing.T, name, spec string) store.Meta {
	t.Helper()
	m, err := f.Create(t.Context(), put(name, spec))
	if err != nil {
		t.Fatalf("create %s: %v", name, err)
	}
	return m
}

func (f *fixture) update(t *testing.T, name, spec string) store.Meta {
	t.Helper()
	m, unchanged, err := f.Update(t.Context(), put(name, spec))
	if err != nil || unchanged {
		t.Fatalf("update %s: unchanged %v, %v", name, unchanged, err)
	}
	return m
}

// spec reads and opens what is stored.
func (f *fixture) spec(t *testing.T, name string, version uint64) string {
	t.Helper()
	s, err := f.Get(t.Context(), team, name, version)
	if err != nil {
		t.Fatalf("get %s version %d: %v", name, version, err)
	}
	b, err := f.opener.Open(s)
	if err != nil {
		t.Fatalf("open %s version %d: %v", name, version, err)
	}
	return string(b)
}

func wantErr(t *testing.T, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Fatalf("error is %v, want %v", err, want)
	}
}

func testCreate(t *testing.T, f *fixture) {
	p := put("api", `{"a":1}`)
	p.ExpiresAt = f.clock().Add(time.Hour)
	p.Annotations = map[string]string{}
	p.ExternalRefs = []byte(`{ "x": [ ] }`)
	made, err := f.Create(t.Context(), p)
	if err != nil {
		t.Fatal(err)
	}
	want := p.Meta
	want.CurrentVersion, want.Status, want.Rev = 1, store.Active, 1
	want.CreatedAt, want.UpdatedAt, want.LastRotatedAt = f.clock(), f.clock(), f.clock()
	want.Annotations = nil
	want.ExternalRefs = []byte(`{"x":[]}`)
	if d := cmp.Diff(want, made); d != "" {
		t.Errorf("created (-want +got):\n%s", d)
	}
	read, err := f.Meta(t.Context(), team, "api")
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(want, read); d != "" {
		t.Errorf("read (-want +got):\n%s", d)
	}
	s, err := f.Get(t.Context(), team, "api", 0)
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(s.Envelope), `{"a":1}`) {
		t.Error("the envelope holds the spec in the clear")
	}
	s.Envelope = nil
	wantSealed := store.Sealed{
		Team: team, Name: "api", Kind: kind, Version: 1, Rev: 1, Status: store.Active,
		AllowedDestinations: want.AllowedDestinations,
	}
	if d := cmp.Diff(wantSealed, s); d != "" {
		t.Errorf("sealed (-want +got):\n%s", d)
	}
	if got := f.spec(t, "api", 0); got != `{"a":1}` {
		t.Errorf("spec %s", got)
	}
	_, err = f.Create(t.Context(), p)
	wantErr(t, err, store.ErrExists)
	_, err = f.Get(t.Context(), team, "other", 0)
	wantErr(t, err, store.ErrNotFound)
	_, err = f.Meta(t.Context(), team, "other")
	wantErr(t, err, store.ErrNotFound)
	_, err = f.Get(t.Context(), team, "api", 2)
	wantErr(t, err, store.ErrNotFound)
}

func testInvalid(t *testing.T, f *fixture) {
	for name, spoil := range map[string]func(*store.Put){
		"no name":       func(p *store.Put) { p.Name = "" },
		"long name":     func(p *store.Put) { p.Name = strings.Repeat("n", store.MaxNameBytes+1) },
		"NUL":           func(p *store.Put) { p.Name = "a\x00b" },
		"not text":      func(p *store.Put) { p.Team = "\xff" },
		"no kind":       func(p *store.Put) { p.Kind = "" },
		"no spec":       func(p *store.Put) { p.Spec = nil },
		"long spec":     func(p *store.Put) { p.Spec = make([]byte, store.MaxSpecBytes+1) },
		"external refs": func(p *store.Put) { p.ExternalRefs = []byte("{") },
	} {
		p := put("api", "{}")
		spoil(&p)
		if _, err := f.Create(t.Context(), p); !errors.Is(err, store.ErrInvalid) {
			t.Errorf("create, %s: %v", name, err)
		}
		if _, _, err := f.Update(t.Context(), p); !errors.Is(err, store.ErrInvalid) {
			t.Errorf("update, %s: %v", name, err)
		}
	}
	if rev, err := f.Rev(t.Context()); err != nil || rev != 0 {
		t.Errorf("revision %d, %v", rev, err)
	}
}

func testCancelled(t *testing.T, f *fixture) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := f.Create(ctx, put("api", "one"))
	wantErr(t, err, context.Canceled)
	_, err = f.Get(ctx, team, "api", 0)
	wantErr(t, err, context.Canceled)
	if rev, err := f.Rev(t.Context()); err != nil || rev != 0 {
		t.Errorf("revision %d, %v", rev, err)
	}
}

func testClosed(t *testing.T, f *fixture) {
	f.create(t, "api", "one")
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Errorf("closed twice: %v", err)
	}
	_, err := f.Get(t.Context(), team, "api", 0)
	wantErr(t, err, store.ErrUnavailable)
	_, err = f.Create(t.Context(), put("other", "one"))
	wantErr(t, err, store.ErrUnavailable)
	_, err = f.Meta(t.Context(), team, "api")
	wantErr(t, err, store.ErrUnavailable)
}
