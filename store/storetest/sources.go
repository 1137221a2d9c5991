package storetest

import (
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/egressd/egressd/store"
)

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
