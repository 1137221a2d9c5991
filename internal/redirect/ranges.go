package redirect

import (
	"net/netip"
	"slices"
)

// span is a range of addresses of one family, both ends included.
type span struct{ lo, hi netip.Addr }

// spansOf gives the prefixes of one family in order, joined where they overlap or touch:
// the kernel's interval sets take no overlaps.
func spansOf(prefixes []netip.Prefix, v6 bool) []span {
	var all []span
	for _, p := range prefixes {
		if p.Addr().Is6() == v6 {
			all = append(all, span{p.Masked().Addr(), last(p)})
		}
	}
	slices.SortFunc(all, func(a, b span) int { return a.lo.Compare(b.lo) })
	var out []span
	for _, s := range all {
		if n := len(out) - 1; n >= 0 {
			if next := out[n].hi.Next(); !next.IsValid() || s.lo.Compare(next) <= 0 {
				if out[n].hi.Less(s.hi) {
					out[n].hi = s.hi
				}
				continue
			}
		}
		out = append(out, s)
	}
	return out
}

// last is the highest address of p.
func last(p netip.Prefix) netip.Addr {
	b := p.Masked().Addr().AsSlice()
	for i := p.Bits(); i < 8*len(b); i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}

// String is as nft lists it: an address, a prefix, or both ends.
func (s span) String() string {
	if s.lo == s.hi {
		return s.lo.String()
	}
	for bits := range s.lo.BitLen() {
		if p := netip.PrefixFrom(s.lo, bits); p.Masked() == p && last(p) == s.hi {
			return p.String()
		}
	}
	return s.lo.String() + "-" + s.hi.String()
}
