package policy

import (
	"context"
	"fmt"
	"path/filepath"
	"time"

	"github.com/fsnotify/fsnotify"
)

const (
	quietTime = 50 * time.Millisecond // without events before changed is called
	longest   = time.Second           // that a stream of events may put it off
)

// Watch calls changed after anything in dir has changed and then been quiet for
// 50 ms, or a second at the latest: writes, renames over a file, the swap of the link
// through which Kubernetes mounts a volume, dir itself being replaced or coming back.
// An overflow of the kernel's queue counts as a change. A file outside dir that a
// link in it points to is not seen. Calls are made one after another from within
// Watch, which returns nil when ctx is done and an error when it cannot watch.
func Watch(ctx context.Context, dir string, changed func()) error {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return fmt.Errorf("watch policy directory: %w", err)
	}
	w, err := fsnotify.NewWatcher()
	if err != nil {
		return fmt.Errorf("watch policy directory: %w", err)
	}
	defer func() { _ = w.Close() }() // nothing is lost with it
	// The parent tells when dir itself is replaced.
	for _, name := range []string{dir, filepath.Dir(dir)} {
		if err := w.Add(name); err != nil {
			return fmt.Errorf("watch policy directory %s: %w", name, err)
		}
	}
	watcher := dirWatcher{w: w, dir: dir}
	watcher.run(ctx, changed)
	return nil
}

type dirWatcher struct {
	w     *fsnotify.Watcher
	dir   string
	since time.Time // of the first change not yet told; zero when there is none
}

func (d *dirWatcher) run(ctx context.Context, changed func()) {
	timer := time.NewTimer(quietTime)
	timer.Stop()
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case e := <-d.w.Events:
			if d.matters(e) {
				timer.Reset(d.delay())
			}
		case <-d.w.Errors: //nolint:errcheck // whatever it is, something may have been missed: look
			timer.Reset(d.delay())
		case <-timer.C:
			d.since = time.Time{}
			changed()
		}
	}
}

// delay puts the call off by the quiet time, within the longest wait.
func (d *dirWatcher) delay() time.Duration {
	now := time.Now()
	if d.since.IsZero() {
		d.since = now
	}
	return max(0, min(quietTime, longest-now.Sub(d.since)))
}

// matters passes over the other entries of the parent. A new dir is watched in place
// of the old.
func (d *dirWatcher) matters(e fsnotify.Event) bool {
	if filepath.Dir(e.Name) == d.dir {
		return true
	}
	if e.Name != d.dir {
		return false
	}
	if e.Has(fsnotify.Create) {
		// A failed Remove means that the old one is gone already; a failed Add that
		// this one is too, and then the next Create comes.
		_ = d.w.Remove(d.dir)
		_ = d.w.Add(d.dir)
	}
	return true
}
