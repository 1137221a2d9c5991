package policy

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"

	"go.uber.org/goleak"
)

// watched starts Watch on dir and gives a channel that gets one value per call.
func watched(t *testing.T, dir string) <-chan struct{} {
	t.Helper()
	calls := make(chan struct{}, 1000)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- Watch(ctx, dir, func() { calls <- struct{}{} }) }()
	t.Cleanup(func() {
		cancel()
		select {
		case err := <-done:
			if err != nil {
				t.Errorf("Watch: %v", err)
			}
		case <-time.After(5 * time.Second):
			t.Error("Watch does not end with its context")
		}
	})
	// Watching has begun when a file that is made again and again is seen.
	for {
		write(t, dir, ".begin", time.Now().String())
		select {
		case <-calls:
			drain(calls)
			return calls
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// drain waits until no call has come for a while.
func drain(calls <-chan struct{}) {
	for {
		select {
		case <-calls:
		case <-time.After(4 * quietTime):
			return
		}
	}
}

func wantCall(t *testing.T, calls <-chan struct{}, what string) {
	t.Helper()
	select {
	case <-calls:
	case <-time.After(5 * time.Second):
		t.Fatalf("%s: not seen", what)
	}
	drain(calls)
}

func TestWatch(t *testing.T) {
	defer goleak.VerifyNone(t)
	t.Run("changes", func(t *testing.T) {
		dir := t.TempDir()
		calls := watched(t, dir)
		write(t, dir, "a.yaml", minimal)
		wantCall(t, calls, "a new file")
		write(t, dir, "a.yaml", minimal+"sandboxes: []\n")
		wantCall(t, calls, "a write in place")
		write(t, t.TempDir(), "elsewhere.yaml", minimal)
		outside := filepath.Join(filepath.Dir(dir), "next.yaml")
		if err := os.WriteFile(outside, []byte(minimal), 0o600); err != nil {
			t.Fatal(err)
		}
		drain(calls)
		if err := os.Rename(outside, filepath.Join(dir, "a.yaml")); err != nil {
			t.Fatal(err)
		}
		wantCall(t, calls, "an atomic rename")
		if err := os.Remove(filepath.Join(dir, "a.yaml")); err != nil {
			t.Fatal(err)
		}
		wantCall(t, calls, "a removal")
		select {
		case <-calls:
			t.Error("a call without a change")
		case <-time.After(4 * quietTime):
		}
	})
	t.Run("kubernetes link swap", func(t *testing.T) {
		dir := t.TempDir()
		for _, v := range []string{"..1", "..2"} {
			if err := os.Mkdir(filepath.Join(dir, v), 0o700); err != nil {
				t.Fatal(err)
			}
			write(t, filepath.Join(dir, v), "p.yaml", minimal+"templates: [{name: t"+v[2:]+"}]\n")
		}
		link(t, dir, "..1", "..data")
		link(t, dir, "..data/p.yaml", "p.yaml")
		calls := watched(t, dir)
		link(t, dir, "..2", "..data_tmp")
		if err := os.Rename(filepath.Join(dir, "..data_tmp"), filepath.Join(dir, "..data")); err != nil {
			t.Fatal(err)
		}
		wantCall(t, calls, "the swap")
		set, _, err := LoadDir(dir)
		if err != nil || set.View().Templates[0].Name != "t2" {
			t.Errorf("%v, %v", set, err)
		}
	})
	t.Run("directory replaced", func(t *testing.T) {
		dir := filepath.Join(t.TempDir(), "policy")
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		calls := watched(t, dir)
		if err := os.Rename(dir, dir+".old"); err != nil {
			t.Fatal(err)
		}
		wantCall(t, calls, "its going")
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		wantCall(t, calls, "its coming back")
		write(t, dir, "a.yaml", minimal)
		wantCall(t, calls, "a file in the new one")
	})
	t.Run("a burst is one call or few", func(t *testing.T) {
		dir := t.TempDir()
		calls := watched(t, dir)
		start := time.Now()
		for range 200 {
			write(t, dir, "a.yaml", minimal)
		}
		// On a slow machine the writes themselves may lie further apart.
		most := 2 + int(time.Since(start)/quietTime)
		time.Sleep(10 * quietTime)
		if n := len(calls); n < 1 || n > most {
			t.Errorf("%d calls for 200 writes, at most %d may be", n, most)
		}
	})
	t.Run("missing", func(t *testing.T) {
		if err := Watch(context.Background(), filepath.Join(t.TempDir(), "missing"), func() {}); err == nil {
			t.Error("watches nothing")
		}
	})
}

func link(t *testing.T, dir, to, name string) {
	t.Helper()
	if err := os.Symlink(to, filepath.Join(dir, name)); err != nil {
		t.Fatal(err)
	}
}
