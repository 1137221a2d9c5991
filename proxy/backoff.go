package proxy

import (
	"net/netip"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"
)

// Failed proxy logins: after freeFailures an address is told to wait, twice as long each time.
const (
	freeFailures   = 10
	firstWait      = time.Second
	longestWait    = time.Minute
	trackedSources = 4096
)

// backoff slows guessing of proxy tokens down, per source address and without an
// exemption for loopback. Bounded: an attacker with many addresses evicts only others' counts.
type backoff struct {
	failures *lru.Cache[netip.Addr, failures]
}

type failures struct {
	n     int
	until time.Time
}

func newBackoff() *backoff {
	c, err := lru.New[netip.Addr, failures](trackedSources)
	if err != nil {
		panic(err) // only for a size that is not positive
	}
	return &backoff{failures: c}
}

// failed counts a wrong token from a and says whether a is over its free failures.
// A right token is accepted all the same: others may share the address, and 256
// random bits need no lock-out.
func (b *backoff) failed(a netip.Addr) (blocked bool) {
	now := time.Now()
	f, _ := b.failures.Get(a)
	blocked = now.Before(f.until)
	if f.n > freeFailures && now.Sub(f.until) > 10*longestWait {
		f = failures{}
	}
	f.n++
	if over := f.n - freeFailures; over > 0 {
		f.until = now.Add(min(firstWait<<min(over-1, 10), longestWait))
	}
	b.failures.Add(a, f)
	return blocked
}
