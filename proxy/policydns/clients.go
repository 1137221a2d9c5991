package policydns

import (
	"sync"
	"time"

	"github.com/hashicorp/golang-lru/v2/simplelru"
	"golang.org/x/time/rate"
)

const (
	maxClients   = 8192 // sandboxes that limits are kept for
	seenNames    = 2048 // of one sandbox
	unknownRate  = 20   // refusals a second to all who are no sandbox
	unknownBurst = 50
)

// client is what a Server keeps of one sandbox.
type client struct {
	sandbox string
	limit   *rate.Limiter
	lookups chan struct{} // a place per lookup under way
	conns   chan struct{} // and per TCP connection

	mu    sync.Mutex
	seen  *simplelru.LRU[string, struct{}]
	names *rate.Limiter
}

// clients finds or makes them; whose question is longest ago is given up first.
type clients struct {
	limits Limits

	mu   sync.Mutex
	byID *simplelru.LRU[string, *client]
}

func newClients(l Limits) *clients {
	return &clients{limits: l, byID: newLRU[string, *client](maxClients, nil)}
}

func (cs *clients) get(sandbox string) *client {
	cs.mu.Lock()
	defer cs.mu.Unlock()
	if c, ok := cs.byID.Get(sandbox); ok {
		return c
	}
	l := cs.limits
	c := &client{
		sandbox: sandbox,
		limit:   rate.NewLimiter(rate.Limit(l.PerSecond), l.Burst),
		lookups: make(chan struct{}, l.Concurrent),
		conns:   make(chan struct{}, l.Connections),
		seen:    newLRU[string, struct{}](seenNames, nil),
		names:   rate.NewLimiter(rate.Every(time.Minute/time.Duration(l.NewNames)), 2*l.NewNames),
	}
	cs.byID.Add(sandbox, c)
	return c
}

// bringsUp says whether the sandbox may ask for name: it has lately, or it has not brought
// up too many others.
func (c *client) bringsUp(name string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, ok := c.seen.Get(name); ok {
		return true
	}
	if !c.names.Allow() {
		return false
	}
	c.seen.Add(name, struct{}{})
	return true
}

// take reserves a place without waiting for one.
func take(places chan struct{}) bool {
	select {
	case places <- struct{}{}:
		return true
	default:
		return false
	}
}

func release(places chan struct{}) { <-places }
