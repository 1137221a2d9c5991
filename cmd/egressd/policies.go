package main

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"github.com/egressd/egressd/api"
	"github.com/egressd/egressd/inject"
	"github.com/egressd/egressd/policy"
	"github.com/egressd/egressd/proxy"
	"github.com/egressd/egressd/source"
	"github.com/egressd/egressd/store"
)

var (
	errNoPolicy     = errors.New("no policy is in force")
	errNotFollowing = errors.New("the store's changes are not followed")
	errDraining     = errors.New("shutting down")
)

// generation is one policy in force with all that was compiled from it. Immutable.
type generation struct {
	set      *policy.Set
	table    *inject.Table
	loadedAt time.Time
	warnings []policy.Warning
}

// refusal is why the last load was not put in force. Immutable.
type refusal struct{ problems []api.Problem }

// policies owns which policy is in force. It is what the API asks about policy and what
// puts a new one in force: compile, check against the sources, publish in one step; on
// any error the old one stays. Safe for concurrent use.
type policies struct {
	load     loadPolicy
	dir      string
	resolver source.Resolving
	known    proxy.Known
	sources  store.Writer
	publish  func(*proxy.Ruleset)
	lookup   func(ctx context.Context, host string) ([]netip.Addr, error)
	log      *zap.Logger
	// bootUnfit lets the first set come in force though a source does not fit its binding.
	bootUnfit bool

	// mu is held for writing while a generation comes in force, and for reading by
	// those who need the one in force to stay: a delete and its check for bindings.
	mu      sync.RWMutex
	current atomic.Pointer[generation]
	refused atomic.Pointer[refusal]
}

var (
	_ api.Policies   = (*policies)(nil)
	_ api.References = (*policies)(nil)
)

// reload reads the policy and puts it in force. Without force, files that say the same
// as before change nothing. Why a set is not put over the one in force is logged here,
// problem by problem.
func (p *policies) reload(ctx context.Context, force bool) (*generation, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	set, warnings, err := p.load()
	if old := p.current.Load(); err == nil && old != nil && !force && set.Hash() == old.set.Hash() && p.refused.Load() == nil {
		return old, nil
	}
	var table *inject.Table
	if err == nil {
		if table, err = p.compile(ctx, set); err != nil && p.bootUnfit && p.current.Load() == nil {
			table, err = p.compileAtBoot(set, err)
		}
	}
	if err != nil {
		if p.current.Load() == nil {
			return nil, err // at boot the caller says so and stops
		}
		problems := problemsOf(p.dir, err)
		p.refused.Store(&refusal{problems})
		for _, x := range problems {
			p.log.Error("policy refused, the one in force stays", zap.String("file", x.File), zap.Int("line", x.Line),
				zap.Int("column", x.Column), zap.String("path", x.Path), zap.String("problem", x.Message))
		}
		return nil, err
	}
	g := &generation{set: set, table: table, loadedAt: time.Now(), warnings: warnings}
	p.current.Store(g)
	p.refused.Store(nil)
	p.publish(&proxy.Ruleset{Policy: set, Injectors: table, Known: p.known})
	for _, w := range warnings {
		p.log.Warn("policy warning", zap.String("file", w.File), zap.Int("line", w.Line), zap.String("path", w.Path), zap.String("warning", w.Message))
	}
	p.log.Info("policy in force", zap.String("hash", set.Hash()), zap.Int("sandboxes", len(set.Sandboxes())), zap.Int("credential_rules", len(set.CredentialRules())))
	return g, nil
}

// compile makes the injectors and checks every rule against its source's bounds.
func (p *policies) compile(ctx context.Context, set *policy.Set) (*inject.Table, error) {
	metas := map[[2]string]*store.Meta{}
	meta := func(team, name string) *store.Meta {
		key := [2]string{team, name}
		m, known := metas[key]
		if !known {
			if got, err := p.sources.Meta(ctx, team, name); err == nil { // a source may come later than its binding
				m = &got
			}
			metas[key] = m
		}
		return m
	}
	table, err := inject.Compile(set, p.resolver, func(team, name string) (string, bool) {
		if m := meta(team, name); m != nil {
			return m.Kind, true
		}
		return "", false
	})
	if err != nil {
		return nil, err
	}
	var problems policy.Problems
	for _, r := range set.CredentialRules() {
		m := meta(r.Team, r.Binding.SourceRef)
		if m == nil {
			continue
		}
		if err := inject.CheckDestinations(r, m.AllowedDestinations); err != nil {
			problems = append(problems, policy.Problem{File: r.File, Line: r.Line, Message: err.Error()})
		}
		if m.Status == store.Archived {
			problems = append(problems, policy.Problem{File: r.Binding.File, Line: r.Binding.Line, Message: "source " + m.Name + " is archived and cannot be bound"})
		}
	}
	if len(problems) > 0 {
		return nil, problems
	}
	return table, nil
}

// compileAtBoot compiles without a look at the sources: what a write to the store alone
// has made unfit (a narrower allowedDestinations, an archived source, another kind) must
// not keep the daemon down. Such a credential is refused per request, and said here.
func (p *policies) compileAtBoot(set *policy.Set, unfit error) (*inject.Table, error) {
	table, err := inject.Compile(set, p.resolver, func(string, string) (string, bool) { return "", false })
	if err != nil {
		return nil, unfit // the files themselves are wrong
	}
	for _, x := range problemsOf(p.dir, unfit) {
		p.log.Error("a source does not fit its binding: its requests are refused until one of them is changed",
			zap.String("file", x.File), zap.Int("line", x.Line), zap.String("problem", x.Message))
	}
	return table, nil
}

// problemsOf is a load's error in the API's form.
func problemsOf(dir string, err error) []api.Problem {
	var ps policy.Problems
	if !errors.As(err, &ps) {
		return []api.Problem{{File: dir, Message: err.Error()}}
	}
	out := make([]api.Problem, len(ps))
	for i, x := range ps {
		out[i] = api.Problem(x)
	}
	return out
}

func warningsOf(ws []policy.Warning) []api.Problem {
	out := make([]api.Problem, len(ws))
	for i, w := range ws {
		out[i] = api.Problem(w)
	}
	return out
}

// View implements api.Policies.
func (p *policies) View(_ context.Context, team string) (api.PolicyView, error) {
	g := p.current.Load()
	if g == nil {
		return api.PolicyView{}, errNoPolicy
	}
	v := viewOf(g.set, team)
	v.LoadedAt, v.Warnings = g.loadedAt, warningsOf(g.warnings)
	if r := p.refused.Load(); r != nil {
		v.Problems = r.problems
	}
	return v, nil
}

func viewOf(set *policy.Set, team string) api.PolicyView {
	full := set.View()
	v := api.PolicyView{Hash: full.Hash}
	for _, sb := range full.Sandboxes {
		if team != api.AllTeams && sb.Team != team {
			continue
		}
		network := sb.Network
		if network == nil {
			for _, t := range full.Templates {
				if t.Name == sb.Template {
					network = t
				}
			}
		}
		v.Sandboxes = append(v.Sandboxes, api.SandboxView{ID: sb.ID, Team: sb.Team, Template: sb.Template, Network: network})
	}
	return v
}

// Check implements api.Policies.
func (p *policies) Check(ctx context.Context, files []api.PolicyFile) (api.PolicyReport, error) {
	in := make([]policy.File, len(files))
	for i, f := range files {
		in[i] = policy.File{Name: f.Name, Data: []byte(f.Content)}
	}
	set, warnings, err := policy.Compile(in)
	if err == nil {
		_, err = p.compile(ctx, set)
	}
	return report(set, warnings, err), nil
}

// report is the outcome of a compilation; set is nil after an error.
func report(set *policy.Set, warnings []policy.Warning, err error) api.PolicyReport {
	if err != nil {
		return api.PolicyReport{Problems: problemsOf("", err), Warnings: warningsOf(warnings)}
	}
	return api.PolicyReport{OK: true, Hash: set.Hash(), Warnings: warningsOf(warnings)}
}

// Explain implements api.Policies.
func (p *policies) Explain(ctx context.Context, team string, r api.ExplainRequest) (api.ExplainResult, error) {
	g := p.current.Load()
	if g == nil {
		return api.ExplainResult{}, errNoPolicy
	}
	sb := g.set.Sandbox(r.Sandbox)
	if sb == nil || (team != api.AllTeams && sb.Team != team) {
		return api.ExplainResult{}, api.ErrNoSandbox
	}
	return explain(ctx, g.set, sb, r, p.lookup)
}

// Reload implements api.Policies.
func (p *policies) Reload(ctx context.Context) (api.PolicyReport, error) {
	g, err := p.reload(ctx, true)
	if err != nil {
		return api.PolicyReport{Problems: problemsOf(p.dir, err)}, nil
	}
	return report(g.set, g.warnings, nil), nil
}

// Referrers implements api.References.
func (p *policies) Referrers(team, name string) []api.Referrer {
	g := p.current.Load()
	if g == nil {
		return nil
	}
	refs := g.set.Referrers(team, name)
	out := make([]api.Referrer, len(refs))
	for i, r := range refs {
		out[i] = api.Referrer(r)
	}
	return out
}

// WithReferrers implements api.References.
func (p *policies) WithReferrers(team, name string, f func(refs []api.Referrer) error) error {
	p.mu.RLock()
	defer p.mu.RUnlock()
	return f(p.Referrers(team, name))
}

// checkBound is api.Options.CheckBound: it is called within WithReferrers.
func (p *policies) checkBound(team, name, _ string, keys []string) error {
	g := p.current.Load()
	if g == nil {
		return nil
	}
	missing := g.table.MissingKeys(team, name, keys)
	if len(missing) == 0 {
		return nil
	}
	e := &api.MissingKeysError{Referrers: p.Referrers(team, name)}
	for _, m := range missing {
		if !slices.Contains(e.Keys, m.Key) {
			e.Keys = append(e.Keys, m.Key)
		}
	}
	return e
}
