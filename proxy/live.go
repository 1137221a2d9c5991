package proxy

import (
	"container/list"
	"io"
	"sync"
)

// registry knows every open client connection: how many there are, whose they are,
// and which relays a new ruleset must be asked about.
type registry struct {
	mu         sync.Mutex
	max        int
	maxSandbox int
	slots      int
	open       map[*entry]struct{}
	peak       int // most that were open since the last shrink
	perSandbox map[string]int
	waiting    map[string]*list.List // of connections without an identity, by address, oldest first
}

// entry is one open client connection.
type entry struct {
	reg     *registry
	tunnel  *tunnel
	sandbox string
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
	e, address := &entry{reg: r, tunnel: t}, "address "+t.sess.claims.addr.String()
	oldest := r.makeRoom(e, address)
	if oldest != nil {
		t.srv.metrics.refusals.WithLabelValues(codeLimit).Inc()
		oldest.cut()
	}
	if !r.bind(e, address) {
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
func (r *registry) bind(e *entry, sandbox string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if e.sandbox == sandbox {
		return true
	}
	if r.perSandbox[sandbox] >= r.maxSandbox {
		return false
	}
	r.unbind(e)
	e.sandbox = sandbox
	r.perSandbox[sandbox]++
	return true
}

// watch makes recheck ask allowed and close both sides when it says no. The ruleset
// may have changed between the decision and this call, so it is asked at once.
func (e *entry) watch(allowed func(*Ruleset) bool, far io.Closer) {
	e.reg.mu.Lock()
	e.allowed, e.far = allowed, far
	e.reg.mu.Unlock()
	if rules := e.tunnel.srv.rules.Load(); rules == nil || !allowed(rules) {
		e.cut()
	}
}

// watchCredential makes cutRevoked ask revoked, which may wait for a source.
func (e *entry) watchCredential(revoked func() bool) {
	e.reg.mu.Lock()
	e.revoked = revoked
	e.reg.mu.Unlock()
	if revoked() {
		e.cut()
	}
}

// cutRevoked ends what was opened with a credential that has been taken away.
func (r *registry) cutRevoked() {
	asks := map[*entry]func() bool{}
	r.mu.Lock()
	for e := range r.open {
		if e.revoked != nil {
			asks[e] = e.revoked
		}
	}
	r.mu.Unlock()
	for e, revoked := range asks {
		if revoked() {
			e.cut()
		}
	}
}

func (e *entry) unwatch() {
	e.reg.mu.Lock()
	e.allowed, e.far, e.revoked = nil, nil, nil
	e.reg.mu.Unlock()
}

func (e *entry) cut() {
	e.reg.mu.Lock()
	far := e.far
	e.reg.mu.Unlock()
	if far != nil {
		_ = far.Close()
	}
	_ = e.tunnel.raw.Close()
}

// recheck asks every relay under the new ruleset and closes those it forbids.
func (r *registry) recheck(rules *Ruleset) {
	type asked struct {
		e       *entry
		allowed func(*Ruleset) bool
	}
	var all []asked
	r.mu.Lock()
	for e := range r.open {
		if e.allowed != nil {
			all = append(all, asked{e, e.allowed})
		}
	}
	r.mu.Unlock()
	for _, a := range all {
		if rules == nil || !a.allowed(rules) {
			a.e.cut()
		}
	}
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
