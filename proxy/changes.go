package proxy

import (
	"context"
	"net/http"
	"sync"
	"sync/atomic"

	"github.com/egressd/egressd/inject"
)

// changes are those of sources, for what has resolved its material already and is not among
// what is open yet, where a change would find it: between the two may lie a body that a
// sandbox sends as slowly as it likes. Safe for concurrent use.
type changes struct {
	mu   sync.Mutex
	last atomic.Pointer[change]
}

// change is one of them. Who holds one sees all later ones, and keeps only those in memory.
type change struct {
	team, name string // both "": any source
	below      uint64 // older versions end (CloseSource); 0: what is disabled or gone
	next       atomic.Pointer[change]
}

func newChanges() *changes {
	c := &changes{}
	c.last.Store(&change{})
	return c
}

// add comes before what is open is looked through.
func (c *changes) add(team, name string, below uint64) {
	next := &change{team: team, name: name, below: below}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.last.Load().next.Store(next)
	c.last.Store(next)
}

// now is what to ask later, from before material is resolved.
func (c *changes) now() *change { return c.last.Load() }

// ended says whether material with these stamps has been taken away since. It is asked when
// its user can be found among what is open. revoked may wait for a source.
func (c *change) ended(st stamps, revoked func() bool) bool {
	asked := false
	for c = c.next.Load(); c != nil; c = c.next.Load() {
		switch {
		case c.below > 0:
			if st.older(c.team, c.name, c.below) {
				return true
			}
		case !asked && st.from(c.team, c.name):
			if asked = true; revoked() {
				return true
			}
		}
	}
	return false
}

// older: material of a version of a source before one.
func (st stamps) older(team, name string, than uint64) bool {
	return st.team == team && (st.cred.of(name, than) || st.cert.of(name, than) || st.way.of(name, than))
}

// from: material of a source, or of any when both names are empty.
func (st stamps) from(team, name string) bool {
	if team == "" && name == "" {
		return st.cred.source != "" || st.cert.source != "" || st.way.source != ""
	}
	return st.team == team && (st.cred.source == name || st.cert.source == name || st.way.source == name)
}

// revoked says whether what x was resolved with has been disabled or is gone.
func (x *record) revoked() bool { return x.held().revoked(x.tunnel.ctx) }

func (u uses) revoked(ctx context.Context) bool {
	for _, h := range u {
		if h.revoked(ctx) {
			return true
		}
	}
	return false
}

// takenAway answers a request whose material ended while the request was still coming.
func takenAway() *refusal {
	return &refusal{status: http.StatusServiceUnavailable, code: inject.CodeSourceUnavailable, close: true,
		detail: "the source was rotated, disabled or deleted while the request came"}
}
