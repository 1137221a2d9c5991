package proxy

import (
	"errors"
	"sync"

	lru "github.com/hashicorp/golang-lru/v2"
	"golang.org/x/time/rate"
)

// What one sandbox may make egressd sign: a wildcard rule lets it make up names, and each
// new one costs a signature and a place in the cache of leaves.
const (
	mintsPerSecond = 50
	mintsAtOnce    = 200
)

var errMints = errors.New("the sandbox asks for too many new names")

// mints bounds new leaves per sandbox. Safe for concurrent use.
type mints struct {
	mu sync.Mutex
	of *lru.Cache[string, *rate.Limiter]
}

func newMints() *mints {
	of, _ := lru.New[string, *rate.Limiter](paced) // fails on a size below 1 only
	return &mints{of: of}
}

func (m *mints) allow(sandbox string) bool {
	m.mu.Lock()
	l, ok := m.of.Get(sandbox)
	if !ok {
		l = rate.NewLimiter(mintsPerSecond, mintsAtOnce)
		m.of.Add(sandbox, l)
	}
	m.mu.Unlock()
	return l.Allow()
}

// leafCache is a LeafSource that knows which leaves cost nothing.
type leafCache interface {
	Has(host string) bool
}

// mayMint: the leaf for t's destination is there already, or t's sandbox may have one more.
func (s *Server) mayMint(t *tunnel) bool {
	if c, ok := s.leaves.(leafCache); ok && c.Has(t.dest.host) {
		return true
	}
	b := t.sess.bound.Load()
	return b != nil && s.mints.allow(b.sandbox.ID)
}
