package netguard

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"
)

const (
	maxFlights  = 4096            // names being looked up at once
	maxCached   = 5 * time.Second // however long the TTL is
	negativeFor = time.Second
	// otherFamily is how long an answer waits for the other address family's.
	otherFamily = 500 * time.Millisecond
)

// answer is what one lookup found.
type answer struct {
	addrs []netip.Addr
	ttl   time.Duration
	err   error
	until time.Time // of the cache
}

// flight is a lookup under way that any number of callers wait for.
type flight struct {
	done chan struct{} // closed when answer is set
	answer
}

// Lookup returns the addresses of host: an address itself, an entry of Options.Hosts, or
// what DNS says, IPv4 first, at most 32. Nothing is said about whether they may be dialled.
// Concurrent calls for a name share one lookup, which a caller that leaves does not
// disturb. Answers are kept for their TTL but no more than 5 s, failures for 1 s. Errors:
// ErrBadName, ErrNoSuchHost, ErrLookup.
func (g *Guard) Lookup(ctx context.Context, host string) ([]netip.Addr, error) {
	if addr, err := netip.ParseAddr(host); err == nil {
		if addr.Zone() != "" {
			return nil, fmt.Errorf("%w: address with a zone", ErrBadName)
		}
		return []netip.Addr{addr.Unmap()}, nil
	}
	name, err := canonical(host)
	if err != nil {
		return nil, err
	}
	if addr, ok := g.hosts[name]; ok {
		return []netip.Addr{addr}, nil
	}
	if neverAsked(name) {
		return nil, fmt.Errorf("%w: it is not a name of the public DNS", ErrBadName)
	}
	if a, ok := g.cache.Get(name); ok && time.Now().Before(a.until) {
		return slices.Clone(a.addrs), a.err
	}
	f, err := g.join(ctx, name)
	if err != nil {
		return nil, err
	}
	select {
	case <-f.done:
		return slices.Clone(f.addrs), f.err
	case <-ctx.Done():
		return nil, fmt.Errorf("%w: %w", ErrLookup, ctx.Err())
	}
}

// join returns the flight for name, and starts it if there is none.
func (g *Guard) join(ctx context.Context, name string) (*flight, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed {
		return nil, ErrClosed
	}
	if f := g.flights[name]; f != nil {
		return f, nil
	}
	if len(g.flights) >= maxFlights {
		return nil, fmt.Errorf("%w: %d lookups are under way", ErrLookup, maxFlights)
	}
	f := &flight{done: make(chan struct{})}
	g.flights[name] = f
	// The lookup belongs to all who wait, not to the one who came first.
	fctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), g.lookupTimeout)
	g.wg.Go(func() {
		select {
		case <-g.done:
			cancel()
		case <-fctx.Done():
		}
	})
	g.wg.Go(func() {
		defer cancel()
		g.fly(fctx, name, f)
	})
	return f, nil
}

func (g *Guard) fly(ctx context.Context, name string, f *flight) {
	f.answer = g.both(ctx, name)
	f.until = time.Now().Add(cacheFor(&f.answer))
	kept := f.answer
	g.cache.Add(name, &kept)
	g.mu.Lock()
	delete(g.flights, name)
	g.mu.Unlock()
	close(f.done)
}

// askSafely makes a fault in reading an answer that one lookup's, and not the process's.
func (g *Guard) askSafely(ctx context.Context, name string, typ uint16) (a answer) {
	defer func() {
		if recover() != nil {
			a = answer{err: fmt.Errorf("%w: answer could not be read", ErrLookup)}
		}
	}()
	return g.ask(ctx, name, typ)
}

func cacheFor(a *answer) time.Duration {
	if a.err != nil {
		return negativeFor
	}
	return min(a.ttl, maxCached)
}

// both asks for IPv4 and IPv6 addresses at once.
func (g *Guard) both(ctx context.Context, name string) answer {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	v4, v6 := make(chan answer, 1), make(chan answer, 1)
	g.wg.Go(func() { v4 <- g.askSafely(ctx, name, typeA) })
	g.wg.Go(func() { v6 <- g.askSafely(ctx, name, typeAAAA) })
	var a, b answer
	var late <-chan time.Time
	timer := time.NewTimer(otherFamily)
	defer timer.Stop()
	for v4 != nil || v6 != nil {
		select {
		case a = <-v4:
			v4 = nil
		case b = <-v6:
			v6 = nil
		case <-late:
			return merge(a, b)
		}
		if late == nil && len(a.addrs)+len(b.addrs) > 0 {
			timer.Reset(otherFamily)
			late = timer.C
		}
	}
	return merge(a, b)
}

// merge joins the answers of both families. One that has addresses is enough; a name
// does not exist only if both say so.
func merge(a, b answer) answer {
	switch {
	case len(a.addrs) > 0 && len(b.addrs) > 0:
		addrs := append(a.addrs, b.addrs...)
		return answer{addrs: addrs[:min(len(addrs), maxAddrs)], ttl: min(a.ttl, b.ttl)}
	case len(a.addrs) > 0:
		return a
	case len(b.addrs) > 0:
		return b
	case a.err != nil && !errors.Is(a.err, ErrNoSuchHost):
		return a
	}
	return b
}
