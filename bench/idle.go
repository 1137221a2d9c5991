package main

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"
)

// idleTunnels measures what an intercepted tunnel costs after its handshake, in fresh
// processes.
func idleTunnels(b *bench) error {
	for _, name := range b.measured([]string{relay, library, hijack, egressd, before}) {
		if err := b.idleOne(name); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	return nil
}

func (b *bench) idleOne(name string) error {
	t, err := b.start(name)
	if err != nil {
		return err
	}
	defer t.stop()
	before, err := b.warm(t)
	if err != nil {
		return err
	}
	conns, err := b.hold(t, b.plan.idle)
	defer closeClients(conns)
	if err != nil {
		return err
	}
	time.Sleep(time.Second) // for what the handshakes left behind
	after, err := t.rss()
	if err != nil {
		return err
	}
	b.add("idle", name, (after-before)/float64(len(conns))/1024)
	return nil
}

// closedTunnels opens tunnels in a fresh daemon, closes all of them, and waits up to
// the plan's patience for its memory to come back; then once more, which tells a leak
// from what the Go runtime keeps of its own (descriptors of goroutines and spans).
func closedTunnels(b *bench) error {
	for _, name := range b.measured([]string{hijack, egressd}) {
		t, err := b.start(name)
		if err != nil {
			return err
		}
		err = b.closedOne(t)
		t.stop()
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	return nil
}

func (b *bench) closedOne(t *target) error {
	start, err := b.warm(t)
	if err != nil {
		return err
	}
	once, err := b.openAndClose(t, start)
	if err != nil {
		return err
	}
	b.add("closed", t.name, once/start)
	if t.name != egressd {
		return nil
	}
	again, err := b.openAndClose(t, once)
	b.add("closed-again", t.name, again/once)
	return err
}

// openAndClose gives the memory when it is within 20 % of what it was, or at the end of
// the patience.
func (b *bench) openAndClose(t *target, was float64) (float64, error) {
	conns, err := b.hold(t, b.plan.closed)
	closeClients(conns)
	if err != nil {
		return 0, err
	}
	limit := b.plan.patience
	if t.name != egressd {
		limit = 5 * time.Second // for the table only
	}
	for end := time.Now().Add(limit); ; time.Sleep(500 * time.Millisecond) {
		now, err := t.rss()
		if err != nil || now <= 1.2*was || time.Now().After(end) || b.ctx.Err() != nil {
			return now, errors.Join(err, b.ctx.Err())
		}
	}
}

// warm makes a fresh process touch what it needs under some load, and gives its memory then.
func (b *bench) warm(t *target) (float64, error) {
	for range 3 {
		conns, closeAll, err := b.dialMany(t, apiName, 64)
		if err != nil {
			return 0, err
		}
		ctx, stop := context.WithTimeout(b.ctx, 300*time.Millisecond)
		_, err = parallel(ctx, len(conns), func(i int) error { return conns[i].small() })
		stop()
		closeAll()
		if err != nil {
			return 0, err
		}
	}
	time.Sleep(time.Second)
	return t.rss()
}

// hold opens n tunnels, 16 at a time, and leaves them alone.
func (b *bench) hold(t *target, n int) ([]*client, error) {
	d := b.dialer(t)
	var mu sync.Mutex
	var out []*client
	errs := make([]error, 16)
	var wg sync.WaitGroup
	for w := range errs {
		wg.Go(func() {
			for i := w; i < n; i += len(errs) {
				c, err := d.dial(b.ctx, apiName)
				if err != nil {
					errs[w] = err
					return
				}
				mu.Lock()
				out = append(out, c)
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	return out, errors.Join(errs...)
}

func closeClients(conns []*client) {
	for _, c := range conns {
		_ = c.NetConn().Close()
	}
}
