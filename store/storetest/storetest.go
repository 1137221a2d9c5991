// Package storetest is the contract of a store backend: Run for any, RunShared for one
// whose storage several processes use at once.
package storetest

import (
	"context"
	"errors"
	"fmt"
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

func testUpdate(t *testing.T, f *fixture) {
	first := f.create(t, "api", "one")
	f.pass(time.Minute)
	second := f.update(t, "api", "two")
	if second.CurrentVersion != 2 || second.Rev <= first.Rev || !second.LastRotatedAt.Equal(f.clock()) ||
		!second.UpdatedAt.Equal(f.clock()) || !second.CreatedAt.Equal(first.CreatedAt) {
		t.Errorf("second: %+v", second)
	}
	if got := f.spec(t, "api", 0) + f.spec(t, "api", 1) + f.spec(t, "api", 2); got != "twoonetwo" {
		t.Errorf("specs %q", got)
	}

	f.pass(time.Minute)
	same, unchanged, err := f.Update(t.Context(), put("api", "two"))
	if err != nil || !unchanged {
		t.Fatalf("identical: unchanged %v, %v", unchanged, err)
	}
	if d := cmp.Diff(second, same); d != "" {
		t.Errorf("an identical put changed something (-before +after):\n%s", d)
	}

	p := put("api", "two")
	p.Description = "described anew"
	p.Labels = nil
	meta, unchanged, err := f.Update(t.Context(), p)
	if err != nil || !unchanged {
		t.Fatalf("metadata only: unchanged %v, %v", unchanged, err)
	}
	if meta.CurrentVersion != 2 || meta.Rev <= second.Rev || meta.Description != "described anew" || meta.Labels != nil ||
		!meta.LastRotatedAt.Equal(second.LastRotatedAt) || !meta.UpdatedAt.Equal(f.clock()) {
		t.Errorf("metadata only: %+v", meta)
	}

	// Back to an earlier spec is a change; only the current one is compared.
	back := f.update(t, "api", "one")
	if back.CurrentVersion != 3 || f.spec(t, "api", 3) != "one" {
		t.Errorf("back: %+v", back)
	}
	_, _, err = f.Update(t.Context(), put("other", "x"))
	wantErr(t, err, store.ErrNotFound)
}

func testKind(t *testing.T, f *fixture) {
	f.create(t, "api", "one")
	p := put("api", "two")
	p.Kind = "static_username_password"
	_, _, err := f.Update(t.Context(), p)
	wantErr(t, err, store.ErrKindImmutable)
	if f.spec(t, "api", 0) != "one" {
		t.Error("a refused update changed the spec")
	}
}

func testConditions(t *testing.T, f *fixture) {
	first := f.create(t, "api", "one")
	p := put("new", "x")
	p.IfVersion = 1
	_, err := f.Create(t.Context(), p)
	wantErr(t, err, store.ErrStale)

	p = put("api", "two")
	p.IfVersion = 2
	_, _, err = f.Update(t.Context(), p)
	wantErr(t, err, store.ErrStale)
	d := "x"
	_, err = f.Patch(t.Context(), team, "api", store.Patch{Description: &d, IfVersion: 2})
	wantErr(t, err, store.ErrStale)
	_, err = f.Delete(t.Context(), team, "api", 2, "tester")
	wantErr(t, err, store.ErrStale)

	// The revision moves with metadata, where the version does not.
	if _, err := f.Patch(t.Context(), team, "api", store.Patch{Description: &d, IfVersion: 1, IfRev: first.Rev}); err != nil {
		t.Fatal(err)
	}
	_, err = f.Patch(t.Context(), team, "api", store.Patch{Description: &d, IfRev: first.Rev})
	wantErr(t, err, store.ErrStale)
	p = put("api", "two")
	p.IfVersion, p.IfRev = 1, first.Rev
	_, _, err = f.Update(t.Context(), p)
	wantErr(t, err, store.ErrStale)
	p.IfRev = 0
	if _, _, err := f.Update(t.Context(), p); err != nil {
		t.Fatal(err)
	}
	if _, err := f.Delete(t.Context(), team, "api", 2, "tester"); err != nil {
		t.Fatal(err)
	}
}

func testPatch(t *testing.T, f *fixture) {
	before := f.create(t, "api", "one")
	f.pass(time.Minute)
	description, status := "patched", store.Disabled
	labels, destinations := map[string]string{"a": "b"}, []string{"https://other.test:443"}
	expires := f.clock().Add(time.Hour)
	got, err := f.Patch(t.Context(), team, "api", store.Patch{
		Description: &description, Status: &status, Labels: &labels,
		AllowedDestinations: &destinations, ExpiresAt: &expires,
	})
	if err != nil {
		t.Fatal(err)
	}
	want := before
	want.Description, want.Status, want.Labels = description, status, labels
	want.AllowedDestinations, want.ExpiresAt = destinations, expires
	want.UpdatedAt, want.Rev = f.clock(), before.Rev+1
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("patched (-want +got):\n%s", d)
	}
	s, err := f.Get(t.Context(), team, "api", 0)
	if err != nil || s.Status != store.Disabled || s.Rev != got.Rev || !cmp.Equal(s.AllowedDestinations, destinations) {
		t.Errorf("the data plane reads %+v, %v", s, err)
	}
	if f.spec(t, "api", 0) != "one" {
		t.Error("a patch changed the spec")
	}
	if m := f.update(t, "api", "two"); m.Status != store.Disabled {
		t.Errorf("an update enabled a disabled source: %s", m.Status)
	}
	for _, bad := range []store.Status{store.Deleted, "", "enabled"} {
		_, err = f.Patch(t.Context(), team, "api", store.Patch{Status: &bad})
		wantErr(t, err, store.ErrInvalid)
	}
	for _, good := range []store.Status{store.Archived, store.Active} {
		if m, err := f.Patch(t.Context(), team, "api", store.Patch{Status: &good}); err != nil || m.Status != good {
			t.Errorf("status %s: %+v, %v", good, m, err)
		}
	}
	rev, err := f.Rev(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if m, err := f.Patch(t.Context(), team, "api", store.Patch{}); err != nil || m.Rev != rev {
		t.Errorf("an empty patch changed something: %+v, %v", m, err)
	}
	_, err = f.Patch(t.Context(), team, "other", store.Patch{Description: &description})
	wantErr(t, err, store.ErrNotFound)
}

func testKept(t *testing.T, f *fixture) {
	f.create(t, "api", "spec 1")
	const last = store.KeptVersions + 3
	for i := 2; i <= last; i++ {
		f.update(t, "api", fmt.Sprintf("spec %d", i))
	}
	for i := uint64(1); i <= last; i++ {
		_, err := f.Get(t.Context(), team, "api", i)
		if i <= last-store.KeptVersions {
			wantErr(t, err, store.ErrNotFound)
			continue
		}
		if got := f.spec(t, "api", i); got != fmt.Sprintf("spec %d", i) {
			t.Errorf("version %d holds %q", i, got)
		}
	}
}

func testDelete(t *testing.T, f *fixture) {
	f.create(t, "api", "one")
	before := f.update(t, "api", "two")
	f.pass(time.Minute)
	gone, err := f.Delete(t.Context(), team, "api", 0, "tester")
	if err != nil {
		t.Fatal(err)
	}
	if gone.Status != store.Deleted || gone.Rev <= before.Rev || gone.Name != "api" {
		t.Errorf("tombstone: %+v", gone)
	}
	for version := uint64(0); version <= 2; version++ {
		_, err = f.Get(t.Context(), team, "api", version)
		wantErr(t, err, store.ErrNotFound)
	}
	_, err = f.Meta(t.Context(), team, "api")
	wantErr(t, err, store.ErrNotFound)
	if list, err := f.List(t.Context(), team); err != nil || len(list) != 0 {
		t.Errorf("list %v, %v", list, err)
	}
	_, err = f.Delete(t.Context(), team, "api", 0, "tester")
	wantErr(t, err, store.ErrNotFound)
	_, _, err = f.Update(t.Context(), put("api", "x"))
	wantErr(t, err, store.ErrNotFound)
	status := store.Active
	_, err = f.Patch(t.Context(), team, "api", store.Patch{Status: &status})
	wantErr(t, err, store.ErrNotFound)

	p := put("api", "three")
	p.Kind = "static_username_password" // a new source, not the old one
	again, err := f.Create(t.Context(), p)
	if err != nil {
		t.Fatal(err)
	}
	if again.CurrentVersion != 1 || again.Rev <= gone.Rev || again.Status != store.Active || !again.CreatedAt.Equal(f.clock()) {
		t.Errorf("created again: %+v", again)
	}
	if f.spec(t, "api", 0) != "three" {
		t.Error("not the new spec")
	}
	_, err = f.Get(t.Context(), team, "api", 2)
	wantErr(t, err, store.ErrNotFound)
	// Twice round, so that it holds of what was itself created again.
	if _, err := f.Delete(t.Context(), team, "api", 1, "tester"); err != nil {
		t.Fatal(err)
	}
	f.create(t, "api", "four")
	if f.spec(t, "api", 1) != "four" {
		t.Error("not the newest spec")
	}
}

func testTeams(t *testing.T, f *fixture) {
	f.create(t, "api", "blue's")
	red := put("api", "red's")
	red.Team = "red"
	if _, err := f.Create(t.Context(), red); err != nil {
		t.Fatal(err)
	}
	if _, err := f.Delete(t.Context(), "red", "api", 0, "tester"); err != nil {
		t.Fatal(err)
	}
	if f.spec(t, "api", 0) != "blue's" {
		t.Error("a team's deletion reached another")
	}
	_, err := f.Get(t.Context(), "green", "api", 0)
	wantErr(t, err, store.ErrNotFound)
}

func testList(t *testing.T, f *fixture) {
	list, err := f.List(t.Context(), team)
	if err != nil || list == nil || len(list) != 0 {
		t.Errorf("empty list: %#v, %v", list, err)
	}
	var want []store.Meta
	for _, name := range []string{"a", "b", "c"} {
		want = append(want, store.Meta{Name: name})
	}
	for _, name := range []string{"c", "a", "b"} {
		m := f.create(t, name, "spec of "+name)
		want[name[0]-'a'] = m
	}
	list, err = f.List(t.Context(), team)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(want, list); d != "" {
		t.Errorf("list (-want +got):\n%s", d)
	}
	// What was returned shares nothing with the store.
	list[0].Labels["env"] = "spoiled"
	list[0].AllowedDestinations[0] = "spoiled"
	if m, err := f.Meta(t.Context(), team, "a"); err != nil || !m.Same(want[0]) {
		t.Errorf("the store changed with what it had returned: %+v, %v", m, err)
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
