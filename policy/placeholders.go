package policy

import (
	"cmp"
	"slices"
	"strings"
)

// Placeholder is a text that stands for a credential in what a sandbox sends. Text is
// never part of another placeholder of the sandbox. Rules are the enabled credential
// rules that replace it, in their order.
type Placeholder struct {
	Text  string
	Rules []*CredentialRule
}

// Placeholders gives all placeholders of the sandbox that an enabled rule uses, by Text.
// The slice is shared: the caller must not change it. It does not allocate.
func (s *Set) Placeholders(sb *Sandbox) []Placeholder {
	if sb = s.current(sb); sb == nil {
		return nil
	}
	return sb.net.placeholders
}

func placeholdersOf(creds []*CredentialRule) []Placeholder {
	var out []Placeholder
	at := map[string]int{}
	for _, r := range creds {
		for _, p := range r.Binding.Projection.Replacements {
			i, ok := at[p.Placeholder]
			if !ok {
				i = len(out)
				at[p.Placeholder] = i
				out = append(out, Placeholder{Text: p.Placeholder})
			}
			out[i].Rules = append(out[i].Rules, r)
		}
	}
	slices.SortFunc(out, func(a, b Placeholder) int { return strings.Compare(a.Text, b.Text) })
	return out
}

// maxPlaceholders bounds the comparison of all with all.
const maxPlaceholders = 256

// checkPlaceholders refuses placeholders that cannot be told apart in a request.
func (c *compiler) checkPlaceholders(n *networkDecl) {
	type found struct {
		r Replacement
		b *bindingDecl
	}
	var all []found
	for _, b := range n.bindings {
		for _, r := range b.Projection.Replacements {
			if r.Placeholder != "" {
				all = append(all, found{r, b})
			}
		}
	}
	if len(all) > maxPlaceholders {
		c.fail(n.at, "more than %d placeholders", maxPlaceholders)
		return
	}
	slices.SortStableFunc(all, func(a, b found) int { return cmp.Compare(len(a.r.Placeholder), len(b.r.Placeholder)) })
	for i, short := range all {
		for _, long := range all[i+1:] {
			if !strings.Contains(long.r.Placeholder, short.r.Placeholder) {
				continue
			}
			at := long.b.at
			at.line, at.col = long.r.Line, 1
			c.fail(at, "a placeholder holds another, of the binding %s in line %d: they cannot be told apart", quoteTitle(short.b.Ref), short.r.Line)
		}
	}
}
