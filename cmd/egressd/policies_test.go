package main

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
	"go.uber.org/zap"

	"github.com/egressd/egressd/api"
	"github.com/egressd/egressd/policy"
	"github.com/egressd/egressd/proxy"
	"github.com/egressd/egressd/store"
	"github.com/egressd/egressd/store/memory"
)

// fixture is a policies over a memory store whose next load is text.
type fixture struct {
	*policies
	store     *memory.Store
	text      string
	published []*proxy.Ruleset
}

func newFixture(t *testing.T) *fixture {
	t.Helper()
	sealer, _, err := store.EphemeralKeys()
	if err != nil {
		t.Fatal(err)
	}
	f := &fixture{store: memory.New(sealer), text: openPolicy}
	t.Cleanup(func() { _ = f.store.Close() })
	f.policies = &policies{
		load: func() (*policy.Set, []policy.Warning, error) {
			return policy.Compile([]policy.File{{Name: "p.yaml", Data: []byte(f.text)}})
		},
		dir: "dir", resolver: unresolved{}, sources: f.store, log: zap.NewNop(),
		publish: func(r *proxy.Ruleset) { f.published = append(f.published, r) },
	}
	return f
}

func (f *fixture) put(t *testing.T, kind string, destinations ...string) {
	t.Helper()
	_, err := f.store.Create(t.Context(), store.Put{Meta: store.Meta{Team: "default", Name: "api", Kind: kind, AllowedDestinations: destinations}, Spec: []byte("{}"), Actor: "test"})
	if err != nil {
		t.Fatal(err)
	}
}

func TestReload(t *testing.T) {
	f := newFixture(t)
	ctx := t.Context()
	if _, err := f.View(ctx, api.AllTeams); !errors.Is(err, errNoPolicy) {
		t.Errorf("before the first load: %v", err)
	}
	first, err := f.reload(ctx, true)
	if err != nil || len(f.published) != 1 {
		t.Fatalf("%v, %d published", err, len(f.published))
	}
	if r := f.published[0]; r.Policy != first.set || r.Injectors != first.table {
		t.Error("policy and injectors published are not of one generation")
	}
	if g, err := f.reload(ctx, false); err != nil || g != first || len(f.published) != 1 {
		t.Errorf("the same files were put in force again: %v, %d published", err, len(f.published))
	}

	f.text = "apiVersion: egressd/v1\nsandboxs: []\n"
	rep, err := f.Reload(ctx)
	if err != nil || rep.OK || len(rep.Problems) != 1 || rep.Problems[0].Line != 2 || rep.Problems[0].File != "p.yaml" || rep.Problems[0].Path == "" {
		t.Errorf("a broken file: %+v, %v", rep, err)
	}
	if f.current.Load() != first || len(f.published) != 1 {
		t.Error("a broken file changed what is in force")
	}
	if v, err := f.View(ctx, api.AllTeams); err != nil || len(v.Problems) != 1 || len(v.Sandboxes) != 1 {
		t.Errorf("the view does not say so: %+v, %v", v, err)
	}

	f.text = openPolicy // mended without a change: the problems go
	if _, err := f.reload(ctx, false); err != nil {
		t.Error(err)
	}
	if v, err := f.View(ctx, api.AllTeams); err != nil || len(v.Problems) != 0 {
		t.Errorf("the view still has problems: %+v, %v", v, err)
	}
	if v, err := f.View(ctx, "other"); err != nil || len(v.Sandboxes) != 0 {
		t.Errorf("another team sees %+v, %v", v.Sandboxes, err)
	}
}

// What a rule may not do with its source keeps the policy out of force.
func TestReloadChecksSources(t *testing.T) {
	archived := store.Archived
	for name, c := range map[string]struct {
		prepare func(t *testing.T, f *fixture)
		want    string
	}{
		"kind":        {func(t *testing.T, f *fixture) { f.put(t, "static_tls_client_certificate") }, "does not suit"},
		"destination": {func(t *testing.T, f *fixture) { f.put(t, "static_headers", "elsewhere.test") }, "may not be sent to good.test"},
		"archived": {func(t *testing.T, f *fixture) {
			f.put(t, "static_headers")
			if _, err := f.store.Patch(t.Context(), "default", "api", store.Patch{Status: &archived, Actor: "test"}); err != nil {
				t.Fatal(err)
			}
		}, "is archived"},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t)
			c.prepare(t, f)
			if _, err := f.reload(t.Context(), true); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want %q", err, c.want)
			}
			rep, err := f.Check(t.Context(), []api.PolicyFile{{Name: "p.yaml", Content: openPolicy}})
			if err != nil || rep.OK || !strings.Contains(rep.Problems[0].Message, c.want) {
				t.Errorf("check: %+v, %v", rep, err)
			}
			f.bootUnfit = true
			if _, err := f.reload(t.Context(), true); err != nil || len(f.published) != 1 {
				t.Errorf("at a daemon's boot: %v", err)
			}
			if _, err := f.reload(t.Context(), true); err == nil {
				t.Error("after the boot it was put in force again")
			}
		})
	}
}

// While somebody relies on the bindings in force, no other policy comes in force.
func TestReferrersHoldReloads(t *testing.T) {
	f := newFixture(t)
	if _, err := f.reload(t.Context(), true); err != nil {
		t.Fatal(err)
	}
	f.text = "apiVersion: egressd/v1\nsandboxes: []\n"
	reloaded := make(chan error, 1)
	err := f.WithReferrers("default", "api", func(refs []api.Referrer) error {
		if len(refs) != 1 || refs[0].Binding != "api" || refs[0].Line == 0 {
			t.Errorf("referrers: %+v", refs)
		}
		go func() {
			_, err := f.reload(context.Background(), true)
			reloaded <- err
		}()
		select {
		case <-reloaded:
			t.Error("a reload went on meanwhile")
		case <-time.After(50 * time.Millisecond):
		}
		return errDraining
	})
	if !errors.Is(err, errDraining) {
		t.Errorf("the function's error is lost: %v", err)
	}
	if err := <-reloaded; err != nil {
		t.Error(err)
	}
	if refs := f.Referrers("default", "api"); len(refs) != 0 {
		t.Errorf("after the reload: %+v", refs)
	}
}

func TestCheckBound(t *testing.T) {
	f := newFixture(t)
	if err := f.checkBound("default", "api", "static_headers", nil); err != nil {
		t.Errorf("without a policy: %v", err)
	}
	if _, err := f.reload(t.Context(), true); err != nil {
		t.Fatal(err)
	}
	if err := f.checkBound("default", "api", "static_headers", []string{"token"}); err != nil {
		t.Errorf("with the key: %v", err)
	}
	var missing *api.MissingKeysError
	if err := f.checkBound("default", "api", "static_headers", []string{"key"}); !errors.As(err, &missing) || !slices.Equal(missing.Keys, []string{"token"}) || len(missing.Referrers) != 1 {
		t.Errorf("without the key: %v", err)
	}
}

// A daemon that has ended has left no goroutine, no socket and no lock.
func TestServeLeavesNothingBehind(t *testing.T) {
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent(), goleak.IgnoreTopFunction("os/signal.signal_recv"), goleak.IgnoreTopFunction("os/signal.loop"))
	dir := shortTempDir(t)
	pol := filepath.Join(dir, "policy")
	if err := errors.Join(os.Mkdir(pol, 0o700), os.WriteFile(filepath.Join(pol, "p.yaml"), []byte(openPolicy), 0o600)); err != nil {
		t.Fatal(err)
	}
	for range 2 { // the second finds nothing of the first in its way
		ctx, cancel := context.WithCancel(t.Context())
		var stderr bytes.Buffer
		ended := make(chan int)
		go func() {
			ended <- Run(ctx, []string{"serve", "--state-dir", filepath.Join(dir, "s"), "--policy-dir", pol, "--listen-proxy", "127.0.0.1:0", "--listen-ops", "127.0.0.1:0", "--api-listen", "127.0.0.1:0"}, strings.NewReader(""), &stderr, &stderr, nil)
		}()
		socket := filepath.Join(dir, "s", "api.sock")
		for end := time.Now().Add(10 * time.Second); ; time.Sleep(5 * time.Millisecond) {
			if code := Run(ctx, []string{"version", "--server", "--addr", "unix:" + socket}, strings.NewReader(""), &bytes.Buffer{}, &bytes.Buffer{}, nil); code == exitOK {
				break
			}
			if time.Now().After(end) {
				t.Fatal("the daemon does not answer")
			}
		}
		cancel()
		if code := <-ended; code != exitOK {
			t.Fatalf("exit code %d: %s", code, stderr.String())
		}
		if _, err := os.Stat(socket); !os.IsNotExist(err) {
			t.Errorf("the socket is still there: %v", err)
		}
	}
}
