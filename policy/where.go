package policy

import (
	"cmp"
	"net/netip"
	"slices"
	"strings"
)

// target is the destination of a flow, derived once per decision.
type target struct {
	host     string
	name     bool // host is a name, not an address
	special  bool
	addr     netip.Addr // unmapped, no zone; invalid when not resolved
	port     uint16
	protocol Protocol
	carrier  Protocol // what traffic rules ask for: TLS, where protocol is inside it
}

func newTarget(f *Flow) target {
	t := target{host: f.Host, port: f.Port, protocol: f.Protocol, carrier: f.Protocol, name: !isAddress(f.Host)}
	if f.InTLS {
		t.carrier = TLS
	}
	if !t.name {
		// The host is the one identity: an Addr that says otherwise is not looked at.
		t.addr, _ = netip.ParseAddr(f.Host)
		t.addr = plainAddr(t.addr)
		return t
	}
	t.addr = plainAddr(f.Addr)
	t.special = IsSpecialName(f.Host)
	return t
}

// malformed reports what CanonicalHost would never have given.
func (t *target) malformed() bool {
	return t.host == "" || t.host[0] == '.' || strings.Contains(t.host, "..")
}

// plainAddr makes equal addresses compare equal: netip.Prefix contains neither
// IPv4-mapped nor zoned ones, and a deny rule must not be missed for that.
func plainAddr(a netip.Addr) netip.Addr {
	return a.Unmap().WithZone("")
}

// fit says whether a rule's destination lists hold for a target.
type fit uint8

const (
	fitNo    fit = iota
	fitMaybe     // they would for some addresses, and the address is not known
	fitYes
)

// where is the part of a rule that says which destinations it is about: lists are
// AND-ed, values OR-ed, an empty list matches all.
type where struct {
	domains []DomainPattern
	cidrs   prefixSet
	ports   []portRange
	// udpPorts are for show: in ports an empty range stands for each.
	udpPorts []portRange
}

type portRange struct{ lo, hi uint16 }

func (w *where) everywhere() bool { return len(w.domains) == 0 }

// domain reports whether the host is among the domains, and whether by a pattern
// other than "*".
func (w *where) domain(t *target) (ok, explicit bool) {
	if len(w.domains) == 0 {
		return true, false
	}
	for _, p := range w.domains {
		if p.Match(t.host) {
			ok = true
			explicit = explicit || p.kind != matchAll
		}
	}
	return ok, explicit
}

func (w *where) port(t *target) bool {
	for _, r := range w.ports {
		if r.lo <= t.port && t.port <= r.hi {
			return true
		}
	}
	return len(w.ports) == 0
}

// rest judges ports and cidrs. inCIDR: the index has found the address already.
func (w *where) rest(t *target, inCIDR bool) fit {
	switch {
	case !w.port(t):
		return fitNo
	case inCIDR || w.cidrs.empty():
		return fitYes
	case !t.addr.IsValid():
		return fitMaybe
	case w.cidrs.contains(t.addr):
		return fitYes
	}
	return fitNo
}

// prefixSet holds disjoint prefixes in order, so that one binary search answers.
type prefixSet struct{ v4, v6 []netip.Prefix }

func newPrefixSet(ps []netip.Prefix) prefixSet {
	var s prefixSet
	sorted := slices.Clone(ps)
	slices.SortFunc(sorted, func(a, b netip.Prefix) int {
		return cmp.Or(a.Addr().Compare(b.Addr()), cmp.Compare(a.Bits(), b.Bits()))
	})
	for _, p := range sorted {
		list := &s.v4
		if p.Addr().Is6() {
			list = &s.v6
		}
		if n := len(*list); n > 0 && (*list)[n-1].Contains(p.Addr()) {
			continue // a wider one that starts earlier covers it
		}
		*list = append(*list, p)
	}
	return s
}

func (s *prefixSet) empty() bool { return len(s.v4) == 0 && len(s.v6) == 0 }

func (s *prefixSet) contains(a netip.Addr) bool {
	list := s.v4
	if a.Is6() {
		list = s.v6
	}
	i, found := slices.BinarySearchFunc(list, a, func(p netip.Prefix, a netip.Addr) int {
		return p.Addr().Compare(a)
	})
	return found || i > 0 && list[i-1].Contains(a)
}

// each calls f for every prefix.
func (s *prefixSet) each(f func(netip.Prefix)) {
	for _, p := range s.v4 {
		f(p)
	}
	for _, p := range s.v6 {
		f(p)
	}
}

// overlaps reports whether some destination could match both, by name, port and
// address.
func (w *where) overlaps(o *where) bool {
	return overlapping(w.domains, o.domains, DomainPattern.overlaps) &&
		overlapping(w.ports, o.ports, func(a, b portRange) bool { return a.lo <= b.hi && b.lo <= a.hi }) &&
		w.cidrs.overlaps(&o.cidrs)
}

func (s *prefixSet) overlaps(o *prefixSet) bool {
	if s.empty() || o.empty() {
		return true
	}
	meet := func(a, b []netip.Prefix) bool {
		return len(a) > 0 && len(b) > 0 && overlapping(a, b, netip.Prefix.Overlaps)
	}
	return meet(s.v4, o.v4) || meet(s.v6, o.v6)
}

// overlapping: an empty list matches all.
func overlapping[T any](as, bs []T, meet func(a, b T) bool) bool {
	if len(as) == 0 || len(bs) == 0 {
		return true
	}
	for _, a := range as {
		for _, b := range bs {
			if meet(a, b) {
				return true
			}
		}
	}
	return false
}
