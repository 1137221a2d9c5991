package policy

import (
	"net/netip"
	"slices"
)

// MayName reports whether any flow of the sandbox to this canonical name could be
// allowed, on some port, by some protocol, at some address: whether the name may be
// resolved for it. A name that only refusing rules or block-all cover may not, nor a
// local one (see IsSpecialName) that no rule names. Where enforcement is report every
// name may. Addresses are no names. It does not allocate.
func (s *Set) MayName(sb *Sandbox, host string) bool {
	if sb = s.current(sb); sb == nil {
		return false
	}
	w := walk{net: sb.net, flow: &Flow{}, t: newTarget(&Flow{Host: host})}
	if !w.t.name || w.t.malformed() {
		return false
	}
	return w.net.report || w.mayName()
}

func (w *walk) mayName() bool {
	x := w.net.trafficIndex
	var c candidates
	x.find(&w.t, &c)
	c.skipDenies() // what refuses some addresses leaves the others
	for {
		id, kind := c.lowest()
		if id < 0 {
			return w.net.allowAll && !w.t.special
		}
		r := w.net.traffic[id]
		switch {
		case !r.allow && r.refusesAll():
			return false
		case !r.allow, w.t.special && kind&byName == 0:
		case !w.refusedBefore(r, id):
			return true
		}
	}
}

// refusesAll reports a rule that leaves nothing of the destinations it is about.
func (r *trafficRule) refusesAll() bool {
	return len(r.ports) == 0 && r.cidrs.empty() && r.protocols == 0
}

// refusedBefore reports that one earlier refusing rule takes all that r allows towards
// the name. Several that do so only together are not seen: a name too many is resolved
// then, and nothing is let through by that.
func (w *walk) refusedBefore(r *trafficRule, before int32) bool {
	var c candidates
	w.net.trafficIndex.find(&w.t, &c)
	if r.cidrs.empty() {
		c.skipDenies()
	}
	for {
		id, _ := c.lowest()
		if id < 0 || id >= before {
			return false
		}
		if d := w.net.traffic[id]; !d.allow && d.takes(r) {
			return true
		}
	}
}

// takes: ports, protocols and addresses of r all lie within those of d.
func (d *trafficRule) takes(r *trafficRule) bool {
	if len(d.ports) > 0 && (len(r.ports) == 0 || slices.ContainsFunc(r.ports, func(p portRange) bool { return !d.holds(p) })) {
		return false
	}
	if d.protocols != 0 && (r.protocols == 0 || r.protocols&^d.protocols != 0) {
		return false
	}
	return d.cidrs.empty() || !r.cidrs.empty() && d.cidrs.holds(&r.cidrs)
}

// holds reports whether one of the rule's ranges contains p.
func (w *where) holds(p portRange) bool {
	for _, q := range w.ports {
		if q.lo <= p.lo && p.hi <= q.hi {
			return true
		}
	}
	return false
}

// holds reports whether every prefix of o lies within one of s.
func (s *prefixSet) holds(o *prefixSet) bool {
	within := func(wide, narrow []netip.Prefix) bool {
		for _, p := range narrow {
			if !slices.ContainsFunc(wide, func(q netip.Prefix) bool { return q.Bits() <= p.Bits() && q.Contains(p.Addr()) }) {
				return false
			}
		}
		return true
	}
	return within(s.v4, o.v4) && within(s.v6, o.v6)
}

// Reports says that enforcement is report for the sandbox: what would be denied passes.
func (s *Set) Reports(sb *Sandbox) bool {
	sb = s.current(sb)
	return sb != nil && sb.net.report
}
