package source_test

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/egressd/egressd/source"
	"github.com/egressd/egressd/source/static"
	"github.com/egressd/egressd/store"
)

// known are the values of a team, revealed.
func known(r *source.Resolver, team string) []string {
	values, _ := r.Known(team)
	var out []string
	for _, v := range values {
		out = append(out, v.Reveal())
	}
	return out
}

func block(name string, fields map[string]any) string {
	out, _ := json.Marshal(map[string]any{name: fields})
	return string(out)
}

// moved wants the generation to have changed since the last call.
type moved struct {
	r    *source.Resolver
	last uint64
}

func (m *moved) check(t *testing.T, what string, want bool) {
	t.Helper()
	now := m.r.Generation()
	if (now != m.last) != want {
		t.Errorf("%s: generation %d, then %d", what, m.last, now)
	}
	m.last = now
}

func TestKnown(t *testing.T) {
	f := newFake()
	f.token("acme", "gh", "fake-token-1")
	f.token("other", "gh", "fake-token-of-others")
	f.token("acme", "short", "1234567")
	f.put("acme", "login", static.UsernamePassword, block("staticUsernamePassword", map[string]any{"username": "a-long-user-name", "password": "fake-password"}))
	f.put("acme", "aws", static.AWSAccessKey, block("awsAccessKey", map[string]any{
		"accessKeyId": "FAKEKEYID0123456", "secretAccessKey": "fake-secret-access-key", "sessionToken": "fake-token-1"}))
	r := start(t, f, source.Options{})
	m := moved{r, r.Generation()}
	if got := known(r, "acme"); got != nil {
		t.Errorf("before anything was asked for: %d values", len(got))
	}
	for _, name := range []string{"gh", "short", "login", "aws"} {
		if _, err := r.Resolve(t.Context(), source.Ref{Team: "acme", Name: name}); err != nil {
			t.Fatal(err)
		}
		m.check(t, "resolved "+name, true)
	}
	value(t, r, source.Ref{Team: "other", Name: "gh"})
	m.check(t, "another team's", true)
	want := []string{"fake-secret-access-key", "fake-password", "fake-token-1"} // no names, nothing short, each once
	if diff := cmp.Diff(want, known(r, "acme")); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]string{"fake-token-of-others"}, known(r, "other")); diff != "" {
		t.Error(diff)
	}
	value(t, r, gh)
	m.check(t, "from memory", false)

	pinned := gh
	pinned.Version = 1
	value(t, r, pinned)
	wait(t, r, f.token("acme", "gh", "fake-token-2"))
	m.check(t, "rotated", true)
	if got := known(r, "acme"); len(got) != 3 { // the session token is still that of the old value
		t.Errorf("after the rotation: %d values", len(got))
	}
	value(t, r, gh)
	m.check(t, "resolved anew", true)
	if got := known(r, "acme"); len(got) != 4 {
		t.Errorf("%d values, want the new one too", len(got))
	}
	f.put("acme", "aws", static.Headers, token("tiny"))
	wait(t, r, f.edit("acme", "login", func(*store.Sealed) {}))
	m.check(t, "touched", true)
	wait(t, r, f.remove("acme", "gh"))
	m.check(t, "removed", true)
	if got := known(r, "acme"); got != nil {
		t.Errorf("after all went: %d values", len(got))
	}
	value(t, r, source.Ref{Team: "other", Name: "gh"})
	m.check(t, "nothing new", false)
	wait(t, r, f.reset())
	m.check(t, "reset", true)
	if got := known(r, "other"); got != nil {
		t.Errorf("after a reset: %d values", len(got))
	}
}

// A version that a binding is pinned to is in use and known, beside the current one.
func TestKnownPinned(t *testing.T) {
	db, r := realStore(t)
	for _, v := range []string{"fake-token-1", "fake-token-2"} {
		p := putToken(v)
		if m, err := db.Create(t.Context(), p); err == nil {
			wait(t, r, m.Rev)
			continue
		}
		m, _, err := db.Update(t.Context(), p)
		if err != nil {
			t.Fatal(err)
		}
		wait(t, r, m.Rev)
	}
	first := gh
	first.Version = 1
	m := moved{r, r.Generation()}
	value(t, r, gh)
	m.check(t, "current", true)
	value(t, r, first)
	m.check(t, "pinned", true)
	if diff := cmp.Diff([]string{"fake-token-1", "fake-token-2"}, known(r, "acme")); diff != "" {
		t.Error(diff)
	}
}

// A refetch after MaxAge that brings the same material is no change, and what a full cache
// forgets is one.
func TestKnownGeneration(t *testing.T) {
	f := newFake()
	for i := range 4 {
		f.token("acme", fmt.Sprint("s", i), fmt.Sprint("fake-token-", i))
	}
	r := start(t, f, source.Options{Size: 2})
	ref := source.Ref{Team: "acme", Name: "s0", MaxAge: 1}
	value(t, r, ref)
	m := moved{r, r.Generation()}
	before := f.reads()
	value(t, r, ref)
	if f.reads() == before {
		t.Fatal("nothing was fetched")
	}
	m.check(t, "the same again", false)
	for i := range 4 {
		value(t, r, source.Ref{Team: "acme", Name: fmt.Sprint("s", i)})
	}
	m.check(t, "a full cache", true)
	if got := known(r, "acme"); len(got) != 2 {
		t.Errorf("%d values of a cache of 2", len(got))
	}
}

// Who sees the newest generation has the newest values.
func TestKnownRace(t *testing.T) {
	f := newFake()
	f.token("acme", "gh", "fake-token-0")
	r := start(t, f, source.Options{})
	ctx, stop := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for ctx.Err() == nil {
				_, generation := r.Known("acme")
				if generation > r.Generation() {
					t.Error("a generation that is yet to come")
					return
				}
			}
		})
	}
	for i := range 200 {
		want := fmt.Sprint("fake-token-", i+1)
		wait(t, r, f.token("acme", "gh", want))
		if got := known(r, "acme"); got != nil {
			t.Errorf("known after the change: %d", len(got))
		}
		value(t, r, gh)
		if got := strings.Join(known(r, "acme"), " "); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
	stop()
	wg.Wait()
}

func TestKnownAllocatesNothingToPoll(t *testing.T) {
	r := start(t, newFake(), source.Options{})
	if n := testing.AllocsPerRun(100, func() { r.Generation() }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
