package proxy

import (
	"cmp"
	"net/netip"
	"slices"
	"time"

	"github.com/egressd/egressd/inject"
)

// about is what is known of an open connection beside whose it is; guarded by the registry.
type about struct {
	dest     string
	protocol string
	rule     string
	stamps   stamps
}

// stamp is one version of a source that is in use.
type stamp struct {
	source  string
	version uint64
}

func (st stamp) of(name string, below uint64) bool { return st.source == name && st.version < below }

// stamps are those of one connection or exchange.
type stamps struct {
	team            string
	cred, cert, way stamp // way: the login of egress.proxy
}

func stampOf(p *inject.Projection) stamp {
	if p == nil {
		return stamp{}
	}
	return stamp{p.Source, p.Version}
}

func (x *record) stamps() stamps {
	return stamps{team: x.plan.key.team, cred: stampOf(x.source), cert: stampOf(x.cert), way: stampOf(x.plan.route.login)}
}

// Connection is one open connection of a client.
type Connection struct {
	ID          uint64 // unique in this process
	Sandbox     string // "": not identified yet
	Team        string
	Way         string // connect, absolute, socks5, redirect, tproxy
	Client      netip.Addr
	Destination string // host:port; "": none yet
	Protocol    string
	Rule        string
	Since       time.Time
	Source      string // what it has logged in with; "": nothing
	Version     uint64
	Exchanges   []Exchange // under way on it, oldest first
}

// Exchange is one request that is under way.
type Exchange struct {
	ID          string // the request id
	Destination string
	Method      string
	Rule        string
	Source      string
	Version     uint64
	Since       time.Time
}

// describe tells what a connection has become.
func (r *registry) describe(e *entry, a about) {
	r.mu.Lock()
	e.about = a
	r.mu.Unlock()
}

// Connections lists what is open, oldest first.
func (s *Server) Connections() []Connection {
	entries := s.live.entries()
	out := make([]Connection, 0, len(entries))
	for _, e := range entries {
		c := e.view()
		e.tunnel.flights.each(func(x *record) {
			c.Exchanges = append(c.Exchanges, x.view())
		})
		slices.SortFunc(c.Exchanges, func(a, b Exchange) int { return a.Since.Compare(b.Since) })
		out = append(out, c)
	}
	slices.SortFunc(out, func(a, b Connection) int { return cmp.Compare(a.ID, b.ID) })
	return out
}

func (e *entry) view() Connection {
	e.reg.mu.Lock()
	defer e.reg.mu.Unlock()
	c := Connection{
		ID: e.id, Way: e.way.String(), Client: e.tunnel.client, Destination: e.about.dest,
		Protocol: e.about.protocol, Rule: e.about.rule, Since: e.since,
	}
	if e.sess != nil {
		c.Sandbox = e.sandbox
		if b := e.sess.bound.Load(); b != nil {
			c.Team = b.sandbox.Team
		}
	}
	st := e.about.stamps.cred
	if st.source == "" {
		st = e.about.stamps.cert
	}
	c.Source, c.Version = st.source, st.version
	return c
}

// view is called with the record in flight, when nothing that it reads changes.
func (x *record) view() Exchange {
	v := Exchange{ID: x.id, Destination: x.dest.String(), Method: x.method, Rule: x.decision.Rule, Since: x.start}
	st := stampOf(x.source)
	if x.decision.Credential != nil && st.source != "" {
		v.Rule = x.decision.Credential.Name
	}
	if st.source == "" {
		st = stampOf(x.cert)
	}
	v.Source, v.Version = st.source, st.version
	return v
}

// CloseConnection ends a connection and all that is on it; false when there is none.
func (s *Server) CloseConnection(id uint64) bool {
	for _, e := range s.live.entries() {
		if e.id == id {
			e.cut()
			return true
		}
	}
	return false
}
