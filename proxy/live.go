package proxy

import (
	"container/list"
	"io"
	"sync"
	"time"
)

// registry knows every open client connection: how many there are, whose they are,
// and which relays a new ruleset must be asked about.
type registry struct {
	mu         sync.Mutex
	max        int
	maxSandbox int
	slots      int
	open       map[*entry]struct{}
	lastID     uint64
	words      sync.WaitGroup // last ones, see revoke.go
	peak       int            // most that were open since the last shrink
	perSandbox map[string]int
	waiting    map[string]*list.List // of connections without an identity, by address, oldest first
}

// entry is one open client connection.
type entry struct {
	reg     *registry
	tunnel  *tunnel
	id      uint64
	since   time.Time
	about   about
	way     way
	sandbox string
	sess    *session            // who it is; nil: not identified
	waits   *list.Element       // in reg.waiting[sandbox]; nil: identified
	allowed func(*Ruleset) bool // nil: nothing that outlives a request
	far     io.Closer           // upstream side of a relay
	revoked func() bool         // nil: it carries no credential
}

func newRegistry(maxConns, maxSandbox int) *registry {
	return &registry{max: maxConns, maxSandbox: maxSandbox, open: map[*entry]struct{}{}, perSandbox: map[string]int{}, waiting: map[string]*list.List{}}
}

// reserve takes a slot before anything is spent on a connection.
func (r *registry) reserve() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.slots >= r.max {
		return false
	}
	r.slots++
	return true
}

func (r *registry) release() {
	r.mu.Lock()
	r.slots--
	r.mu.Unlock()
}

// add registers a connection. Until its client is identified it counts for its
// address, so that one address cannot take every slot without an identity. Sandboxes may
// share one, and an honest client says at once who it is: what has waited longest gives
// way to a new connection.
func (r *registry) add(t *tunnel) (*entry, bool) {
	e, address := &entry{reg: r, tunnel: t, since: time.Now()}, "address "+t.client.String()
	oldest := r.makeRoom(e, address)
	if oldest != nil {
		t.srv.metrics.refusals.WithLabelValues(codeLimit).Inc()
		oldest.cut()
	}
	if !r.bind(e, address, nil) {
		return e, false
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.waiting[address] == nil {
		r.waiting[address] = list.New()
	}
	e.waits = r.waiting[address].PushBack(e)
	return e, true
}

// makeRoom enters e and gives the connection that must go for it, which is counted no more.
func (r *registry) makeRoom(e *entry, address string) (oldest *entry) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.lastID++
	e.id = r.lastID
	r.open[e] = struct{}{}
	r.peak = max(r.peak, len(r.open))
	if l := r.waiting[address]; l != nil && r.perSandbox[address] >= r.maxSandbox {
		oldest, _ = l.Front().Value.(*entry)
		r.unbind(oldest)
	}
	return oldest
}

func (r *registry) remove(e *entry) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.open, e)
	r.unbind(e)
}

func (r *registry) unbind(e *entry) {
	if e.sandbox == "" {
		return
	}
	if r.perSandbox[e.sandbox]--; r.perSandbox[e.sandbox] <= 0 {
		delete(r.perSandbox, e.sandbox)
	}
	if e.waits != nil {
		l := r.waiting[e.sandbox]
		if l.Remove(e.waits); l.Len() == 0 {
			delete(r.waiting, e.sandbox)
		}
		e.waits = nil
	}
	e.sandbox = ""
}

// bind counts the connection for its sandbox; false when the sandbox has too many.
func (r *registry) bind(e *entry, sandbox string, sess *session) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if e.sandbox == sandbox {
		e.sess, e.way = sess, e.tunnel.way
		return true
	}
	if r.perSandbox[sandbox] >= r.maxSandbox {
		return false
	}
	r.unbind(e)
	e.sandbox, e.sess, e.way = sandbox, sess, e.tunnel.way
	r.perSandbox[sandbox]++
	return true
}

// closeAll cuts everything: the drain is over.
func (r *registry) closeAll() {
	var all []*entry
	r.mu.Lock()
	for e := range r.open {
		all = append(all, e)
	}
	r.mu.Unlock()
	for _, e := range all {
		e.cut()
	}
}

// shrink says whether most of what was open has closed since it last said so, and
// drops the memory that the registry kept for it.
func (r *registry) shrink() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.peak < 512 || len(r.open) > r.peak/2 {
		return false
	}
	r.peak = len(r.open)
	r.open = fresh(r.open)
	r.perSandbox = fresh(r.perSandbox)
	return true
}

// fresh is m in a map of its size: one that was larger, and a clone of it, keep the room.
func fresh[K comparable, V any](m map[K]V) map[K]V {
	out := make(map[K]V, len(m))
	for k, v := range m {
		out[k] = v
	}
	return out
}
