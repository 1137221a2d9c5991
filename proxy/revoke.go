package proxy

import (
	"context"
	"io"
	"sync"
	"time"

	"github.com/egressd/egressd/inject"
)

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

func (e *entry) unwatch() {
	e.reg.mu.Lock()
	e.allowed, e.far, e.revoked = nil, nil, nil
	e.about.stamps = stamps{}
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

// flights are the exchanges that are under way on one connection.
type flights struct {
	mu   sync.Mutex
	one  *record // on HTTP/1.1 there is no other
	more map[*record]struct{}
}

func (fl *flights) add(x *record) {
	fl.mu.Lock()
	defer fl.mu.Unlock()
	if fl.one == nil {
		fl.one = x
		return
	}
	if fl.more == nil {
		fl.more = map[*record]struct{}{}
	}
	fl.more[x] = struct{}{}
}

// remove comes before x is anybody else's.
func (fl *flights) remove(x *record) {
	fl.mu.Lock()
	defer fl.mu.Unlock()
	if fl.one == x {
		fl.one = nil
		return
	}
	delete(fl.more, x)
}

// each holds the lock: do may read what does not change in a record while it flies, and
// cut it, and must not wait.
func (fl *flights) each(do func(x *record)) {
	fl.mu.Lock()
	defer fl.mu.Unlock()
	if fl.one != nil {
		do(fl.one)
	}
	for x := range fl.more {
		do(x)
	}
}

// cutFlight ends one exchange: an h2 stream alone, on HTTP/1.1 the connection. It is called while x flies.
func (e *entry) cutFlight(x *record) {
	if x.cancel != nil {
		x.cancel()
		return
	}
	e.cut()
}

// entries is what is open now.
func (r *registry) entries() []*entry {
	r.mu.Lock()
	defer r.mu.Unlock()
	all := make([]*entry, 0, len(r.open))
	for e := range r.open {
		all = append(all, e)
	}
	return all
}

// recheck asks for everything that is open whether the new ruleset lets it be, and ends
// what it forbids.
func (r *registry) recheck(rules *Ruleset) {
	for _, e := range r.entries() {
		switch {
		case e.stays(rules):
			e.recheckFlights()
		case e.onlyFlies():
			r.afterLastWord(func() {
				if !e.stays(e.tunnel.srv.rules.Load()) {
					e.cut()
				}
			})
		default:
			e.cut()
		}
	}
}

// lastWord is how long an exchange may still take that a change would not let begin any
// more: nearly all have ended by then, as what they are and not cut off, and those that go on
// (streams) end with it.
const lastWord = 500 * time.Millisecond

// afterLastWord does what is left to do. Shutdown waits for it.
func (r *registry) afterLastWord(do func()) {
	r.words.Add(1)
	time.AfterFunc(lastWord, func() {
		defer r.words.Done()
		do()
	})
}

// onlyFlies: nothing is open there but exchanges under way.
func (e *entry) onlyFlies() bool {
	e.reg.mu.Lock()
	more := e.allowed != nil
	e.reg.mu.Unlock()
	flying := false
	e.tunnel.flights.each(func(*record) { flying = true })
	return flying && !more
}

// recheckFlights ends the exchanges that the ruleset in force does not let be.
func (e *entry) recheckFlights() {
	e.tunnel.flights.each(func(x *record) {
		if !x.stays(e.tunnel.srv.rules.Load()) {
			e.endFlight(x, true)
		}
	})
}

// endFlight gives an exchange its last word. again: the ruleset may have come to allow it
// meanwhile. It is called while x flies.
func (e *entry) endFlight(x *record, again bool) {
	if x.ending {
		return
	}
	x.ending = true
	id := x.id
	e.reg.afterLastWord(func() {
		e.tunnel.flights.each(func(y *record) {
			switch {
			case y != x || y.id != id: // over, and maybe another one's record by now
			case again && y.stays(e.tunnel.srv.rules.Load()):
				y.ending = false
			default:
				e.cutFlight(y)
			}
		})
	})
}

// stays: whose the connection is has not changed, and what outlives requests on it is allowed.
func (e *entry) stays(rules *Ruleset) bool {
	e.reg.mu.Lock()
	sess, sandbox, allowed := e.sess, e.sandbox, e.allowed
	e.reg.mu.Unlock()
	if sess != nil {
		b, err := sess.bindTo(rules)
		if err != nil || b.sandbox.ID != sandbox {
			return false
		}
	}
	return allowed == nil || rules != nil && allowed(rules)
}

// stays asks a new ruleset about an exchange that is under way.
func (x *record) stays(rules *Ruleset) bool {
	b, err := x.sess.bindTo(rules)
	if err != nil {
		return false
	}
	f := x.flow
	f.Sandbox = b.sandbox
	d := rules.Policy.Decide(&f)
	return goesOn(&d, &x.decision)
}

// held is one use of a credential by something that is open.
type held struct {
	in   *inject.Injector
	host string
	port uint16
}

// cutRevoked ends what goes on with a credential that has been taken away. Asking may wait
// for a source, so it is done once for each credential and without a lock.
func (r *registry) cutRevoked() {
	verdicts := verdicts{}
	for _, e := range r.entries() {
		e.reg.mu.Lock()
		ask := e.revoked
		e.reg.mu.Unlock()
		if ask != nil && ask() {
			e.cut()
			continue
		}
		all := map[string]uses{} // by request id
		e.tunnel.flights.each(func(x *record) {
			if h := x.held(); h != (uses{}) {
				all[x.id] = h
			}
		})
		for id, h := range all {
			if !verdicts.gone(e.tunnel.ctx, h[0]) && !verdicts.gone(e.tunnel.ctx, h[1]) && !verdicts.gone(e.tunnel.ctx, h[2]) {
				delete(all, id)
			}
		}
		e.tunnel.flights.each(func(x *record) {
			if _, gone := all[x.id]; gone {
				e.endFlight(x, false)
			}
		})
	}
}

type verdicts map[held]bool

func (v verdicts) gone(ctx context.Context, h held) bool {
	if h.in == nil {
		return false
	}
	gone, known := v[h]
	if !known {
		if gone = h.revoked(ctx); ctx.Err() == nil {
			v[h] = gone
		}
	}
	return gone
}

func (h held) revoked(ctx context.Context) bool { return revoked(ctx, h.in, h.host, h.port) }

// uses are those of the credential, of the client certificate and of egress.proxy.
type uses [3]held

func (x *record) held() (h uses) {
	p := &x.plan
	if p.credFrom != nil {
		h[0] = held{p.credFrom, x.flow.Host, x.flow.Port}
	}
	if p.certFrom != nil {
		h[1] = held{p.certFrom, x.flow.Host, x.flow.Port}
	}
	h[2] = p.route.held()
	return h
}

// CloseSource ends what is open with material of a source that is older than version:
// requests under way, upgraded connections, logins. Idle upstream connections go as well.
func (s *Server) CloseSource(team, name string, version uint64) {
	s.changes.add(team, name, version)
	s.upstream.closeIdleOf(team, name)
	old := func(st stamps) bool { return st.older(team, name, version) }
	for _, e := range s.live.entries() {
		s.live.mu.Lock()
		cut := old(e.about.stamps)
		s.live.mu.Unlock()
		if cut {
			e.cut()
			continue
		}
		e.tunnel.flights.each(func(x *record) {
			if old(x.stamps()) {
				e.cutFlight(x)
			}
		})
	}
}
