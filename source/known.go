package source

import (
	"cmp"
	"slices"

	"github.com/egressd/egressd/internal/secret"
)

// minKnown is the shortest value that is looked for in traffic, in bytes: shorter ones
// occur by chance.
const minKnown = 8

// Secrets are the values of m that let somebody in: Values but the NotSecret ones, and
// KeyText. In no order, each as it was written; short ones too.
func (m *Material) Secrets() []secret.String {
	out := make([]secret.String, 0, len(m.Values)+len(m.KeyText))
	for key, value := range m.Values {
		if !slices.Contains(m.NotSecret, key) {
			out = append(out, value)
		}
	}
	return append(out, m.KeyText...)
}

// Known are the secret values of a team's sources that are in memory now, in their
// current and their pinned versions, of 8 bytes and more, each once, the longest first;
// and the Generation that they are of or newer than. Material that nothing has asked for
// yet, or that was forgotten because it changed, is not among them: this guards against
// what was used, it is no list of all secrets.
//
// It looks at all that is cached: call it when Generation has changed and not per request.
func (r *Resolver) Known(team string) (values []secret.String, generation uint64) {
	generation = r.Generation() // first: what changes from here on is announced by another
	for _, key := range r.cache.Keys() {
		if key.team != team {
			continue
		}
		c, ok := r.cache.Peek(key)
		if !ok {
			continue
		}
		values = c.current.known(values)
		for _, out := range c.pinned {
			values = out.known(values)
		}
	}
	return distinct(values), generation
}

// Generation changes when the answer of Known may have changed for any team. One atomic
// load.
func (r *Resolver) Generation() uint64 { return r.generation.Load() }

// changed is called after the cache has changed: whoever then reads the new number also
// sees the change.
func (r *Resolver) changed() { r.generation.Add(1) }

func (o *outcome) known(values []secret.String) []secret.String {
	if o == nil || o.material == nil {
		return values
	}
	for _, v := range o.material.Secrets() {
		if v.Len() >= minKnown {
			values = append(values, v)
		}
	}
	return values
}

// distinct sorts, the longest first, and leaves each value once.
func distinct(values []secret.String) []secret.String {
	slices.SortFunc(values, func(a, b secret.String) int {
		if n := b.Len() - a.Len(); n != 0 {
			return n
		}
		return cmp.Compare(a.Reveal(), b.Reveal())
	})
	return slices.CompactFunc(values, secret.String.Equal)
}
