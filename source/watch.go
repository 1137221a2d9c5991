package source

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/egressd/egressd/store"
)

// errWatchEnded: a Watch that stopped without being asked to.
var errWatchEnded = errors.New("watch ended")

// Run follows the store until ctx ends and returns nil then. A watch that breaks
// empties the cache and is begun anew from the last revision, with a growing pause. It
// must not run twice at once.
func (r *Resolver) Run(ctx context.Context) error {
	since, known := store.Rev(0), false
	pause := r.opts.MinBackoff
	for {
		var err error
		if !known {
			if since, err = r.reader.Rev(ctx); err == nil {
				known = true
			}
		}
		if known {
			begun := time.Now()
			since, err = r.follow(ctx, since)
			if time.Since(begun) > r.opts.MaxBackoff {
				pause = r.opts.MinBackoff // it had worked
			}
		}
		if ctx.Err() != nil {
			return nil //nolint:nilerr // the watch ended because ctx did
		}
		if r.opts.OnWatch != nil {
			r.opts.OnWatch(err)
		}
		// Half of the pause is random, so that a fleet does not return as one.
		timer := time.NewTimer(pause/2 + rand.N(pause/2+1))
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil
		case <-timer.C:
		}
		pause = min(2*pause, r.opts.MaxBackoff)
	}
}

// follow runs one watch to its end and returns how far it came.
func (r *Resolver) follow(ctx context.Context, since store.Rev) (store.Rev, error) {
	r.up(since)
	defer r.down()
	if r.opts.OnWatch != nil {
		r.opts.OnWatch(nil)
	}
	for ev, err := range r.reader.Watch(ctx, since) {
		if err != nil {
			return r.Applied(), fmt.Errorf("watch the store: %w", err)
		}
		r.apply(ev)
	}
	return r.Applied(), errWatchEnded
}

// up: what is fetched from now on may be kept, as every change after since will be
// seen.
func (r *Resolver) up(since store.Rev) {
	r.mu.Lock()
	r.epoch++
	r.cache.Purge()
	r.changed()
	r.applied.Store(uint64(since))
	r.live.Store(true)
	r.mu.Unlock()
	r.wake()
}

func (r *Resolver) down() {
	r.mu.Lock()
	r.live.Store(false)
	r.epoch++
	r.cache.Purge()
	r.changed()
	r.mu.Unlock()
	r.wake()
}

// apply puts one change into force.
func (r *Resolver) apply(ev store.Event) {
	team, name := ev.Team, ev.Name
	r.mu.Lock()
	switch ev.Type {
	case store.EventPut, store.EventDelete:
		r.forget(id{team, name}, ev.Rev)
	default: // EventReset, or what this version does not know
		team, name = "", ""
		r.epoch++
		r.cache.Purge()
		r.changed()
		r.floors.Purge()
	}
	r.mu.Unlock()
	for _, tell := range r.opts.OnInvalidate {
		tell(team, name)
	}
	if ev.Type == store.EventReset && ev.Rev != 0 || uint64(ev.Rev) > r.applied.Load() {
		r.applied.Store(uint64(ev.Rev)) // a reset may also go back: a restored store
	}
	r.wake()
}

// forget drops a source and disowns the fetches of it that are under way. Under mu.
func (r *Resolver) forget(key id, rev store.Rev) {
	if r.cache.Remove(key) {
		r.changed()
	}
	if floor, _ := r.floors.Get(key); rev > floor {
		r.floors.Add(key, rev)
	}
	for k, f := range r.flights {
		if k.id == key {
			f.now.stale = true
		}
	}
}
