package inject

import (
	"fmt"
	"net/http"
	"slices"
	"strings"

	"golang.org/x/net/http/httpguts"

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

func compileBinding(team string, b *policy.Binding, kindOf KindOf) (*plan, policy.Problems) {
	p := &plan{kind: b.Projection.Type, binding: b, team: team}
	var problems policy.Problems
	blame := func(line int, format string, args ...any) {
		if line == 0 {
			line = b.Line
		}
		problems = append(problems, policy.Problem{File: b.File, Line: line,
			Message: fmt.Sprintf("binding %s: ", b.Ref) + fmt.Sprintf(format, args...)})
	}
	vars, open := []string(nil), true
	if kind, ok := kindOf(team, b.SourceRef); ok {
		var suits bool
		if vars, open, suits = offers(kind, b.Projection.Type); !suits {
			blame(0, "projection %s does not suit source %s, which is %s", b.Projection.Type, b.SourceRef, kind)
			open = true
		}
	}
	if p.kind == policy.HTTPHeaders && len(b.Projection.Headers) == 0 {
		blame(0, "projection has no headers")
	}
	for _, h := range b.Projection.Headers {
		if err := checkName(h.Name, p.headers); err != nil {
			blame(h.Line, "%v", err)
		}
		value, err := parseTemplate(h.ValueTemplate)
		if err != nil {
			blame(h.Line, "header %s: %v", h.Name, err)
			continue
		}
		for _, name := range value.vars {
			if !open && !slices.Contains(vars, name) {
				blame(h.Line, "header %s: the source has no field %s: it has %s", h.Name, name, strings.Join(vars, ", "))
			}
		}
		p.headers = append(p.headers, headerPlan{http.CanonicalHeaderKey(h.Name), value})
	}
	return p, problems
}

// offers: which projections a kind of source suits, and which fields templates find in
// it (open: the source's own keys).
func offers(kind string, projection policy.ProjectionType) (vars []string, open, suits bool) {
	switch kind {
	case "static_headers":
		return nil, true, projection == policy.HTTPHeaders
	case "static_username_password":
		return []string{"username", "password"}, false, projection == policy.HTTPHeaders || projection == policy.UsernamePassword
	case "static_tls_client_certificate":
		return nil, false, projection == policy.TLSClientCertificate
	default:
		return nil, false, false
	}
}

// checkName refuses what would change the message's framing or route instead of
// authenticating it, and a name that is set already.
func checkName(name string, earlier []headerPlan) error {
	if !httpguts.ValidHeaderFieldName(name) {
		return fmt.Errorf("header name is not a token (RFC 9110, 5.1)")
	}
	lower := strings.ToLower(name)
	switch lower {
	case "host", "content-length", "transfer-encoding", "connection", "keep-alive", "te", "trailer", "upgrade", "expect":
		return fmt.Errorf("header %s cannot be projected", name)
	}
	if strings.HasPrefix(lower, "proxy-") {
		return fmt.Errorf("header %s cannot be projected", name)
	}
	for _, h := range earlier {
		if sameName(h.name, name) {
			return fmt.Errorf("header %s is projected twice", name)
		}
	}
	return nil
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
		for i, h := range in.plan.headers {
			for _, key := range h.value.vars {
				m := Missing{Key: key, Binding: b.Ref, File: b.File, Line: b.Projection.Headers[i].Line}
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
