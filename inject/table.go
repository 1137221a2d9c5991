package inject

import (
	"fmt"
	"slices"
	"strings"

	"github.com/egressd/egressd/policy"
	"github.com/egressd/egressd/source"
)

// Table holds the injectors of one policy set. Immutable; the zero value refuses all.
type Table struct{ byIndex []*Injector }

// KindOf tells the kind of a source, ok false when there is none or it is not known
// now; its bindings are then checked when a request resolves them.
type KindOf func(team, name string) (kind string, ok bool)

// Compile makes the injectors of set's rules. It checks each binding against its
// source's kind and against itself; the error is a policy.Problems that names file and
// line of each fault. Nothing is resolved.
func Compile(set *policy.Set, r source.Resolving, kindOf func(team, name string) (kind string, ok bool)) (*Table, error) {
	return compile(set.CredentialRules(), r, kindOf)
}

func compile(rules []*policy.CredentialRule, r source.Resolving, kindOf KindOf) (*Table, error) {
	type use struct {
		team    string
		binding *policy.Binding
	}
	t := &Table{byIndex: make([]*Injector, len(rules))}
	plans := map[use]*plan{} // a binding that many rules name is compiled and blamed once
	var problems policy.Problems
	for _, rule := range rules {
		key := use{rule.Team, rule.Binding}
		p, done := plans[key]
		if !done {
			var faults policy.Problems
			p, faults = compileBinding(rule.Team, rule.Binding, kindOf)
			problems = append(problems, faults...)
			plans[key] = p
		}
		if rule.Index < 0 || rule.Index >= len(rules) {
			problems = append(problems, policy.Problem{File: rule.File, Line: rule.Line, Message: "rule index out of range"})
			continue
		}
		t.byIndex[rule.Index] = &Injector{plan: p, resolver: r, ref: source.Ref{
			Team: rule.Team, Name: rule.Binding.SourceRef, Version: rule.Binding.Version, MaxAge: rule.Binding.CacheTTL,
		}}
	}
	if len(problems) > 0 {
		return nil, dedupe(problems)
	}
	return t, nil
}

// dedupe: one binding used by two teams is at fault once.
func dedupe(problems policy.Problems) policy.Problems {
	var out policy.Problems
	for _, p := range problems {
		if !slices.Contains(out, p) {
			out = append(out, p)
		}
	}
	return out
}

// Injector of a rule of the set that t was compiled from. For any other rule, and
// for nil, it is one that refuses; it is never nil.
func (t *Table) Injector(rule *policy.CredentialRule) *Injector {
	if t == nil || rule == nil || rule.Index < 0 || rule.Index >= len(t.byIndex) || t.byIndex[rule.Index] == nil {
		return &Injector{}
	}
	in := t.byIndex[rule.Index]
	if in.ref.Team != rule.Team || in.plan.binding != rule.Binding {
		return &Injector{} // a rule of another generation
	}
	return in
}

// Format keeps a printed table to its size.
func (t *Table) Format(f fmt.State, _ rune) {
	_, _ = fmt.Fprintf(f, "table of %d injectors", len(t.byIndex))
}

// Missing is a key that a binding's template names and a source does not have.
type Missing struct {
	Key, Binding, File string
	Line               int
}

// MissingKeys tells which keys the templates bound to a source would miss if it had
// just keys: asked before a new version of static_headers is written, so that no write
// breaks traffic that works. Sorted by file, line and key.
func (t *Table) MissingKeys(team, name string, keys []string) []Missing {
	var out []Missing
	if t == nil {
		return nil
	}
	for _, in := range t.byIndex {
		if in == nil || in.ref.Team != team || in.ref.Name != name || in.ref.Version != 0 {
			continue
		}
		b := in.plan.binding
		for line, value := range in.plan.templates() {
			for _, key := range value.vars {
				m := Missing{Key: key, Binding: b.Ref, File: b.File, Line: line}
				if !slices.Contains(keys, key) && !slices.Contains(out, m) {
					out = append(out, m)
				}
			}
		}
	}
	slices.SortFunc(out, func(a, b Missing) int {
		if c := strings.Compare(a.File, b.File); c != 0 {
			return c
		}
		if a.Line != b.Line {
			return a.Line - b.Line
		}
		return strings.Compare(a.Key, b.Key)
	})
	return out
}

// CheckDestinations tells which of a rule's domains lie outside a source's
// allowedDestinations, as an error for whoever loads the policy or writes the bound. A
// rule without domains is as wide as "*". What it lets pass, Resolve checks again.
func CheckDestinations(rule *policy.CredentialRule, allowed []string) error {
	bound, err := source.ParseDestinations(allowed)
	if err != nil {
		return err
	}
	domains := rule.Domains
	if len(domains) == 0 {
		domains = []string{"*"}
	}
	if outside := bound.Outside(domains); len(outside) > 0 {
		return fmt.Errorf("%s:%d: rule %s: source %s may not be sent to %s",
			rule.File, rule.Line, rule.Name, rule.Binding.SourceRef, strings.Join(outside, ", "))
	}
	return nil
}
