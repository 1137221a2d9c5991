package policy

// maxPairs bounds the search for overlapping credential rules in one network.
const maxPairs = 200_000

// warnOverlaps names pairs of enabled credential rules of one layer that could match
// the same request: only the first of them applies.
func (c *compiler) warnOverlaps(n *network) {
	o := overlaps{c: c, byName: map[string][]*CredentialRule{}, below: map[string][]*CredentialRule{}}
	for _, r := range n.creds {
		o.compare(r)
		o.add(r)
	}
	if o.pairs > maxPairs {
		c.warn(n.decl.at, "too many credential rules for the same domains: not all pairs were compared for overlaps")
	}
}

// overlaps holds the rules seen so far, by the names in their domains.
type overlaps struct {
	c             *compiler
	byName, below map[string][]*CredentialRule
	anywhere      []*CredentialRule // no domains, or "*"
	all           []*CredentialRule
	pairs         int
}

func (o *overlaps) add(r *CredentialRule) {
	o.all = append(o.all, r)
	if r.rule.everywhere() {
		o.anywhere = append(o.anywhere, r)
	}
	for _, p := range r.rule.domains {
		switch p.kind {
		case matchAll:
			o.anywhere = append(o.anywhere, r)
		case matchBelow:
			o.below[p.name] = append(o.below[p.name], r)
			o.eachSuffix(p.name, func(s string) { o.byName["."+s] = append(o.byName["."+s], r) })
		case matchExact:
			o.byName[p.name] = append(o.byName[p.name], r)
			o.eachSuffix(p.name, func(s string) { o.byName["."+s] = append(o.byName["."+s], r) })
		}
	}
}

func (o *overlaps) eachSuffix(name string, f func(string)) {
	for {
		f(name)
		i := indexDot(name)
		if i < 0 {
			return
		}
		name = name[i+1:]
	}
}

func indexDot(s string) int {
	for i := range len(s) {
		if s[i] == '.' {
			return i
		}
	}
	return -1
}

// compare looks only at earlier rules that share a name with r.
func (o *overlaps) compare(r *CredentialRule) {
	seen := map[*CredentialRule]bool{}
	try := func(list []*CredentialRule) {
		for _, first := range list {
			if o.pairs > maxPairs || seen[first] {
				continue
			}
			seen[first] = true
			o.pairs++
			o.pair(first, r)
		}
	}
	try(o.anywhere)
	if r.rule.everywhere() {
		try(o.all)
	}
	for _, p := range r.rule.domains {
		switch p.kind {
		case matchAll:
			try(o.all)
		case matchExact:
			try(o.byName[p.name])
			o.eachSuffix(p.name, func(s string) { try(o.below[s]) })
		case matchBelow:
			try(o.byName["."+p.name])
			o.eachSuffix(p.name, func(s string) { try(o.below[s]) })
		}
	}
}

func (o *overlaps) pair(first, second *CredentialRule) {
	a, b := first.rule, second.rule
	shared := first.serves & second.serves
	if first.layer() != second.layer() || shared == 0 || !a.where.overlaps(&b.where) || !a.match.overlaps(b.match) {
		return
	}
	if noun := sameThing(first, second, shared); noun != "" {
		o.c.warn(b.at, "the credential rules %s and %s project the same %s on overlapping traffic; the first wins",
			quoteTitle(first.Name), quoteTitle(second.Name), noun)
		return
	}
	o.c.warn(b.at, "the credential rules %s and %s overlap; only the first applies where both match",
		quoteTitle(first.Name), quoteTitle(second.Name))
}

// sameThing names what both would write.
func sameThing(first, second *CredentialRule, shared protocolSet) string {
	if first.layer() == tlsLayer {
		return "client certificate"
	}
	if shared&httpRequests == 0 {
		return "login"
	}
	for _, key := range first.Binding.Projection.headerKeys() {
		for _, other := range second.Binding.Projection.headerKeys() {
			if key == other {
				return "header " + key
			}
		}
	}
	return ""
}

// headerKeys names the header fields that the projection writes into a request. What it
// puts in the place of placeholders is not known here.
func (p Projection) headerKeys() []string {
	switch p.Type {
	case HTTPHeaders:
		keys := make([]string, len(p.Headers))
		for i, h := range p.Headers {
			keys[i] = h.Name
		}
		return keys
	case UsernamePassword:
		return []string{"Authorization"}
	case AWSSigV4:
		return []string{"Authorization", "X-Amz-Date", "X-Amz-Security-Token", "X-Amz-Content-Sha256"}
	}
	return nil
}

func quoteTitle(s string) string { return `"` + s + `"` }
