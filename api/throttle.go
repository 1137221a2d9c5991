package api

import (
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"
)

// A source may guess wrong freeGuesses times; then it waits 1 s, 2 s, 4 s … up to maxWait
// after each further one. forgetAfter without a wrong guess clears it.
const (
	freeGuesses = 10
	maxWait     = 5 * time.Minute
	forgetAfter = 15 * time.Minute
	maxSources  = 4096
	maxProven   = 1024
)

// throttle slows down the guessing of tokens by where the guesses come from. Loopback is no
// exception: in a container everything may look like loopback. So that a guesser does not
// lock out an honest client at the same address, a token that was good before may pass; it
// is still looked up. Safe for concurrent use.
type throttle struct {
	mu     sync.Mutex
	fails  *lru.Cache[string, guesses]
	proven *lru.Cache[[32]byte, struct{}]
}

type guesses struct {
	n     int
	last  time.Time
	until time.Time
}

func newThrottle() (*throttle, error) {
	fails, err := lru.New[string, guesses](maxSources)
	if err != nil {
		return nil, fmt.Errorf("api: %w", err)
	}
	proven, err := lru.New[[32]byte, struct{}](maxProven)
	if err != nil {
		return nil, fmt.Errorf("api: %w", err)
	}
	return &throttle{fails: fails, proven: proven}, nil
}

// wait is how long from must wait before a token with this hash is looked at; 0 for now.
func (t *throttle) wait(from string, hash [32]byte) time.Duration {
	t.mu.Lock()
	defer t.mu.Unlock()
	g, ok := t.fails.Get(from)
	if !ok {
		return 0
	}
	left := time.Until(g.until)
	if left <= 0 || t.proven.Contains(hash) {
		return 0
	}
	return left
}

func (t *throttle) failed(from string, hash [32]byte) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.proven.Remove(hash)
	g, _ := t.fails.Get(from)
	now := time.Now()
	if now.Sub(g.last) > forgetAfter {
		g = guesses{}
	}
	g.n, g.last = g.n+1, now
	if over := g.n - freeGuesses; over >= 0 {
		g.until = now.Add(min(maxWait, time.Second<<min(over, 16)))
	}
	t.fails.Add(from, g)
}

func (t *throttle) succeeded(hash [32]byte) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.proven.Add(hash, struct{}{})
}

// guesser is whom a guess is counted against: an IPv4 address, an IPv6 /64, or a local uid.
func guesser(remoteAddr string, uid uint32, local bool) string {
	if local {
		return fmt.Sprintf("uid:%d", uid)
	}
	ap, err := netip.ParseAddrPort(remoteAddr)
	if err != nil {
		return "unknown"
	}
	a := ap.Addr().Unmap().WithZone("")
	if a.Is4() {
		return a.String()
	}
	p, err := a.Prefix(64)
	if err != nil {
		return strings.ToLower(a.String())
	}
	return p.String()
}
