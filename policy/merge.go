package policy

// keyed is what merging goes by; "" merges with nothing.
type keyed interface{ key() string }

// merge puts over's entries into base: an entry of the same name takes the place of
// base's, all others follow. Neither slice is changed.
func merge[T keyed](base, over []T) []T {
	if len(over) == 0 {
		return base
	}
	out := make([]T, len(base), len(base)+len(over))
	copy(out, base)
	at := make(map[string]int, len(base))
	for i, b := range base {
		if k := b.key(); k != "" {
			at[k] = i
		}
	}
	for _, o := range over {
		if i, ok := at[o.key()]; ok && o.key() != "" {
			out[i] = o
			continue
		}
		out = append(out, o)
	}
	return out
}

// mergeNetworks lays a sandbox's network over its template's; either may be nil.
func mergeNetworks(base, over *networkDecl) *networkDecl {
	if base == nil {
		base = &networkDecl{}
	}
	if over == nil {
		return base
	}
	out := &networkDecl{at: over.at, mode: base.mode, enforce: base.enforce, proxy: base.proxy}
	if over.mode != "" {
		out.mode = over.mode
	}
	if over.enforce != "" {
		out.enforce = over.enforce
	}
	if over.proxy != nil {
		out.proxy = over.proxy
	}
	out.traffic = merge(base.traffic, over.traffic)
	out.protocol = merge(base.protocol, over.protocol)
	out.credential = merge(base.credential, over.credential)
	out.bindings = merge(base.bindings, over.bindings)
	return out
}

// changes reports whether a sandbox's network differs from its template's at all.
func (n *networkDecl) changes() bool {
	return n != nil && (n.mode != "" || n.enforce != "" || n.proxy != nil ||
		len(n.traffic)+len(n.protocol)+len(n.credential)+len(n.bindings) > 0)
}
