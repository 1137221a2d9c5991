package policydns

import (
	"net/netip"
	"sync"
	"time"

	"github.com/hashicorp/golang-lru/v2/simplelru"
)

const (
	// remembered is for how long at least: clients keep addresses beyond the TTL.
	remembered   = time.Hour
	maxBooks     = 8192    // sandboxes
	maxPerBook   = 4096    // addresses of one
	maxAddresses = 1 << 17 // of all
)

// Memory knows by which name a sandbox asked for an address, from the answers that it was
// given here and from nothing else (B29). It is safe for concurrent use. At its bounds
// (4,096 addresses of a sandbox, 131,072 in all) what was used longest ago goes first.
type Memory struct {
	mu    sync.Mutex
	books *simplelru.LRU[string, *book]
	total int
}

// book is one sandbox's.
type book = simplelru.LRU[netip.Addr, noted]

type noted struct {
	name  string
	until time.Time
}

// NewMemory makes an empty Memory.
func NewMemory() *Memory {
	m := &Memory{}
	m.books = newLRU(maxBooks, func(_ string, b *book) { m.total -= b.Len() })
	return m
}

// newLRU is for sizes that are constants, or else not positive by mistake.
func newLRU[K comparable, V any](size int, evicted func(K, V)) *simplelru.LRU[K, V] {
	l, err := simplelru.NewLRU(max(size, 1), evicted)
	if err != nil {
		panic(err) // only for a size below 1
	}
	return l
}

// Remember notes that sandbox was told addrs for name, for an hour or for ttl, whichever is
// longer. An address that had another name has this one from now on.
func (m *Memory) Remember(sandbox, name string, addrs []netip.Addr, ttl time.Duration) {
	if len(addrs) == 0 {
		return
	}
	n := noted{name: name, until: time.Now().Add(max(ttl, remembered))}
	m.mu.Lock()
	defer m.mu.Unlock()
	b, ok := m.books.Get(sandbox)
	if !ok {
		b = newLRU[netip.Addr, noted](maxPerBook, nil)
		m.books.Add(sandbox, b)
	}
	before := b.Len()
	for _, a := range addrs {
		b.Add(a.Unmap(), n)
	}
	m.total += b.Len() - before
	for m.total > maxAddresses {
		m.forgetOldest()
	}
}

func (m *Memory) forgetOldest() {
	sandbox, b, ok := m.books.GetOldest()
	if !ok {
		m.total = 0
		return
	}
	if _, _, ok := b.RemoveOldest(); ok {
		m.total--
	}
	if b.Len() == 0 {
		m.books.Remove(sandbox)
	}
}

// Name is the name by which sandbox asked last when it was told addr.
func (m *Memory) Name(sandbox string, addr netip.Addr) (name string, ok bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	b, ok := m.books.Get(sandbox)
	if !ok {
		return "", false
	}
	n, ok := b.Get(addr.Unmap())
	if !ok {
		return "", false
	}
	if time.Now().After(n.until) {
		b.Remove(addr.Unmap())
		m.total--
		return "", false
	}
	return n.name, true
}

// Forget is for a sandbox that has ended: who has its name next knows nothing of it.
func (m *Memory) Forget(sandbox string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.books.Remove(sandbox)
}
