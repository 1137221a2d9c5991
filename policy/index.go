package policy

import (
	"net/netip"
	"slices"
	"strings"
)

// index finds the rules whose domains and cidrs can hold for a target, in the order
// of the rules, without looking at the others. It is a set of sorted lists of rule
// numbers, of which a target picks few and which are then merged.
type index struct {
	rules []*rule
	ids   []int32 // all lists, one behind the other

	exact  map[string]span // by name
	suffix map[string]span // by name, of the patterns "*.name"
	labels int             // the most labels of any name in suffix
	star   span            // patterns "*"
	open   span            // no domains and no cidrs

	// rules without domains, with cidrs
	cidr         map[netip.Prefix]span
	bits4, bits6 []uint8 // the prefix lengths in cidr
	cidrAllow    span    // all of them, for targets without an address
	cidrDeny     span
}

// span is a list in index.ids.
type span struct{ lo, hi int32 }

// newIndex builds an index. denies says which rules refuse; nil means none.
func newIndex(rules []*rule, denies func(i int) bool) *index {
	b := indexBuilder{exact: map[string][]int32{}, suffix: map[string][]int32{}, cidr: map[netip.Prefix][]int32{}}
	for i, r := range rules {
		b.add(int32(i), r, denies != nil && denies(i))
	}
	return b.build(rules)
}

type indexBuilder struct {
	exact, suffix map[string][]int32
	cidr          map[netip.Prefix][]int32
	star, open    []int32
	allow, deny   []int32
}

func (b *indexBuilder) add(id int32, r *rule, denies bool) {
	for _, p := range r.domains {
		switch p.kind {
		case matchExact:
			b.exact[p.name] = append(b.exact[p.name], id)
		case matchBelow:
			b.suffix[p.name] = append(b.suffix[p.name], id)
		case matchAll:
			b.star = append(b.star, id)
		}
	}
	switch {
	case len(r.domains) > 0:
	case r.cidrs.empty():
		b.open = append(b.open, id)
	default:
		r.cidrs.each(func(p netip.Prefix) { b.cidr[p] = append(b.cidr[p], id) })
		if denies {
			b.deny = append(b.deny, id)
		} else {
			b.allow = append(b.allow, id)
		}
	}
}

func (b *indexBuilder) build(rules []*rule) *index {
	x := &index{rules: rules, exact: map[string]span{}, suffix: map[string]span{}, cidr: map[netip.Prefix]span{}}
	for name, ids := range b.exact {
		x.exact[name] = x.put(ids)
	}
	for name, ids := range b.suffix {
		x.suffix[name] = x.put(ids)
		x.labels = max(x.labels, strings.Count(name, ".")+1)
	}
	for p, ids := range b.cidr {
		x.cidr[p] = x.put(ids)
		lengths := &x.bits4
		if p.Addr().Is6() {
			lengths = &x.bits6
		}
		if n := uint8(p.Bits()); !slices.Contains(*lengths, n) {
			*lengths = append(*lengths, n)
		}
	}
	x.star, x.open = x.put(b.star), x.put(b.open)
	x.cidrAllow, x.cidrDeny = x.put(b.allow), x.put(b.deny)
	return x
}

func (x *index) put(ids []int32) span {
	lo := int32(len(x.ids))
	x.ids = append(x.ids, slices.Compact(ids)...)
	return span{lo, int32(len(x.ids))}
}

// cursor is a list of which the ids before pos have been seen.
type cursor struct {
	pos, end int32
	kind     cursorKind
}

// cursorKind says what a rule's presence in the list proves.
type cursorKind uint8

const (
	byName    cursorKind = 1 << iota // a pattern other than "*" matches
	byAddress                        // a prefix contains the address
	maybeDeny                        // a refusing rule, if only its cidrs held
)

// inlineCursors is how many lists a target picks without allocating: one per
// wildcard level and prefix length that matches, and two or three more. Policies
// that nest deeper still work.
const inlineCursors = 16

// candidates yields rules in order. With all set it yields every rule, for a
// narration; the walk around it is the same.
type candidates struct {
	x    *index
	all  bool
	next int32 // with all

	n    int
	buf  [inlineCursors]cursor
	more []cursor
}

// candidate is a rule whose domains hold, with what is known of its other lists.
type candidate struct {
	id       int32
	fit      fit
	explicit bool // by a pattern other than "*"
}

// find starts a search in c, which a caller keeps on its stack.
func (x *index) find(t *target, c *candidates) {
	c.x = x
	if t.name {
		x.findName(t.host, c)
	}
	c.add(x.open, 0)
	switch {
	case len(x.cidr) == 0:
	case !t.addr.IsValid():
		c.add(x.cidrAllow, 0)
		c.add(x.cidrDeny, maybeDeny)
	default:
		x.findAddr(t.addr, c)
	}
}

func (c *candidates) add(s span, kind cursorKind) {
	switch {
	case s.lo == s.hi:
	case c.n < len(c.buf):
		c.buf[c.n] = cursor{s.lo, s.hi, kind}
		c.n++
	default:
		c.more = append(c.more, cursor{s.lo, s.hi, kind})
	}
}

func (c *candidates) len() int { return c.n + len(c.more) }

func (c *candidates) at(i int) *cursor {
	if i < c.n {
		return &c.buf[i]
	}
	return &c.more[i-c.n]
}

func (x *index) findName(host string, c *candidates) {
	c.add(x.star, 0)
	if len(x.exact) > 0 {
		c.add(x.exact[host], byName)
	}
	// Suffixes from the right, no longer than the longest pattern.
	end := len(host)
	for range x.labels {
		dot := strings.LastIndexByte(host[:end], '.')
		if s, ok := x.suffix[host[dot+1:]]; ok {
			c.add(s, byName)
		}
		if dot < 0 {
			return
		}
		end = dot
	}
}

func (x *index) findAddr(a netip.Addr, c *candidates) {
	lengths := x.bits4
	if a.Is6() {
		lengths = x.bits6
	}
	for _, n := range lengths {
		p, err := a.Prefix(int(n))
		if err != nil {
			continue
		}
		if s, ok := x.cidr[p]; ok {
			c.add(s, byAddress)
		}
	}
}

// pull gives the next rule that the target's lists let through, or ok = false.
func (c *candidates) pull(t *target, tr *tracer) (candidate, bool) {
	if c.all {
		return c.pullAll(t, tr)
	}
	for {
		id, kind := c.lowest()
		if id < 0 {
			return candidate{}, false
		}
		if f := c.x.rules[id].rest(t, kind&byAddress != 0); f != fitNo {
			return candidate{id, f, kind&byName != 0}, true
		}
	}
}

// lowest takes the smallest id from all lists that have it; -1 when they are done.
func (c *candidates) lowest() (int32, cursorKind) {
	id := int32(-1)
	for i := range c.len() {
		if cur := c.at(i); cur.pos < cur.end {
			if v := c.x.ids[cur.pos]; id < 0 || v < id {
				id = v
			}
		}
	}
	var kind cursorKind
	if id < 0 {
		return id, kind
	}
	for i := range c.len() {
		if cur := c.at(i); cur.pos < cur.end && c.x.ids[cur.pos] == id {
			cur.pos++
			kind |= cur.kind
		}
	}
	return id, kind
}

// skipDenies drops what could only add another "perhaps refused".
func (c *candidates) skipDenies() {
	for i := range c.len() {
		if cur := c.at(i); cur.kind == maybeDeny {
			cur.pos = cur.end
		}
	}
}

// pullAll looks at every rule and tells the tracer why it does not hold.
func (c *candidates) pullAll(t *target, tr *tracer) (candidate, bool) {
	for int(c.next) < len(c.x.rules) {
		id := c.next
		c.next++
		r := c.x.rules[id]
		ok, explicit := r.domain(t)
		if !ok {
			tr.miss(r, "host is not in domains")
			continue
		}
		f := r.rest(t, false)
		switch {
		case f != fitNo:
			return candidate{id, f, explicit}, true
		case !r.port(t):
			tr.miss(r, "port is not in ports")
		default:
			tr.miss(r, "address is not in cidrs")
		}
	}
	return candidate{}, false
}
