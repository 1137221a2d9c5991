package policy

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"path/filepath"
	"slices"
	"strings"
)

// File is one policy file; Name is how problems name it.
type File struct {
	Name string
	Data []byte
}

// Set is a compiled policy. It is immutable and safe for concurrent use; the zero
// value and nil know no sandbox and deny everything.
type Set struct {
	sandboxes []*Sandbox // by ID
	byID      map[string]*Sandbox
	templates []*networkView
	creds     []*CredentialRule
	referrers map[sourceRef][]Referrer
	sources   identities
	hash      string
	decls     map[string]*sandboxDecl
}

type sourceRef struct{ team, name string }

// network is the policy of one sandbox, or of all those of one team that take a
// template unchanged.
type network struct {
	allowAll bool
	report   bool

	traffic      []*trafficRule
	trafficIndex *index

	protocol      []*protocolRule
	protocolIndex *index

	creds     []*CredentialRule // enabled ones
	credIndex *index

	placeholders []Placeholder
	proxy        *Proxy

	decl *networkDecl
}

// Compile turns all files into one set, or says everything that is wrong with them:
// the error is Problems. No files, or none with a sandbox, make a valid set that
// denies everything.
func Compile(files []File) (*Set, []Warning, error) {
	c := &compiler{
		set:    &Set{byID: map[string]*Sandbox{}, referrers: map[sourceRef][]Referrer{}, decls: map[string]*sandboxDecl{}},
		shared: map[shareKey]*network{}, templates: map[string]*templateDecl{}, users: map[string][]string{},
	}
	var templates []*templateDecl
	var sandboxes []*sandboxDecl
	for _, f := range files {
		decl, problems, warnings := decodeFile(f)
		c.problems = append(c.problems, problems...)
		c.warnings = append(c.warnings, warnings...)
		templates = append(templates, decl.templates...)
		sandboxes = append(sandboxes, decl.sandboxes...)
	}
	c.addTemplates(templates)
	c.addSandboxes(sandboxes)
	c.addUnusedTemplates(templates)
	c.addReferrers(templates, sandboxes)
	if len(c.problems) > 0 {
		return nil, c.tidyWarnings(), c.problems.tidy()
	}
	c.set.hash = hashFiles(files)
	return c.set, c.tidyWarnings(), nil
}

type shareKey struct{ template, team string }

type compiler struct {
	set       *Set
	templates map[string]*templateDecl
	users     map[string][]string // teams by template
	shared    map[shareKey]*network
	problems  Problems
	warnings  []Warning
}

func (c *compiler) fail(at place, format string, args ...any) {
	c.problems = append(c.problems, at.problem(format, args...))
}

func (c *compiler) warn(at place, format string, args ...any) {
	c.warnings = append(c.warnings, Warning(at.problem(format, args...)))
}

func (c *compiler) tidyWarnings() []Warning {
	ps := make(Problems, len(c.warnings))
	for i, w := range c.warnings {
		ps[i] = Problem(w)
	}
	ps = ps.tidy()
	out := make([]Warning, len(ps))
	for i, p := range ps {
		out[i] = Warning(p)
	}
	return out
}

func (c *compiler) addTemplates(decls []*templateDecl) {
	for _, t := range decls {
		if t.name == "" {
			continue
		}
		if first, dup := c.templates[t.name]; dup {
			c.fail(t.at, "the template %s exists already, at %s", show(t.name), first.at)
			continue
		}
		c.templates[t.name] = t
	}
}

func (c *compiler) addSandboxes(decls []*sandboxDecl) {
	ids := newIdentityBuilder()
	for _, s := range decls {
		if s.id == "" {
			continue
		}
		if first, dup := c.set.decls[s.id]; dup {
			c.fail(s.at, "the sandbox %s exists already, at %s", show(s.id), first.at)
			continue
		}
		c.set.decls[s.id] = s
		sandbox := &Sandbox{ID: s.id, Team: s.team, Template: s.template, LeaseUntil: s.lease, set: c.set}
		sandbox.net = c.networkOf(s)
		c.set.byID[s.id] = sandbox
		c.set.sandboxes = append(c.set.sandboxes, sandbox)
		ids.add(c, s, sandbox)
	}
	slices.SortFunc(c.set.sandboxes, func(a, b *Sandbox) int { return strings.Compare(a.ID, b.ID) })
	c.set.sources = ids.build()
}

// networkOf compiles a sandbox's policy, or shares the one that another of its team
// has already.
func (c *compiler) networkOf(s *sandboxDecl) *network {
	var base *networkDecl
	if s.template != "" {
		t, ok := c.templates[s.template]
		if !ok {
			c.fail(s.templateAt, "there is no template %s", show(s.template))
			return &network{decl: &networkDecl{}}
		}
		base = t.network
		c.users[s.template] = append(c.users[s.template], s.team)
	}
	if s.network.changes() || s.template == "" {
		return c.compileNetwork(mergeNetworks(base, s.network), owner{sandbox: s.id, template: s.template, team: s.team})
	}
	key := shareKey{s.template, s.team}
	if n, ok := c.shared[key]; ok {
		return n
	}
	n := c.compileNetwork(base, owner{template: s.template, team: s.team})
	c.shared[key] = n
	return n
}

// addUnusedTemplates checks what no sandbox checked. A sandbox may yet bring the
// bindings that a template lacks, so they are only missed with a warning.
func (c *compiler) addUnusedTemplates(decls []*templateDecl) {
	for _, t := range decls {
		if c.templates[t.name] != t {
			continue
		}
		c.set.templates = append(c.set.templates, viewNetwork(t.name, t.at, t.network))
		if len(c.users[t.name]) > 0 {
			continue
		}
		bindings := bindingsByRef(t.network)
		c.checkPlaceholders(t.network)
		if p := t.network.proxy; p != nil && p.ref != "" && bindings[p.ref] == nil {
			c.warn(p.refAt, "there is no credential binding %s", show(p.ref))
		}
		for _, r := range t.network.credential {
			b, ok := bindings[r.ref]
			switch {
			case !ok && r.ref != "":
				c.warn(r.refAt, "there is no credential binding %s", show(r.ref))
			case ok:
				c.checkProjection(r, b)
			}
		}
	}
}

func (c *compiler) addReferrers(templates []*templateDecl, sandboxes []*sandboxDecl) {
	add := func(team string, b *bindingDecl, r Referrer) {
		r.Binding, r.File, r.Line = b.Ref, b.at.file, b.at.line
		key := sourceRef{team, b.SourceRef}
		if !slices.Contains(c.set.referrers[key], r) {
			c.set.referrers[key] = append(c.set.referrers[key], r)
		}
	}
	for _, t := range templates {
		teams := c.users[t.name]
		if len(teams) == 0 {
			teams = []string{""} // of no team yet: it counts for all
		}
		slices.Sort(teams)
		for _, team := range slices.Compact(teams) {
			for _, b := range t.network.bindings {
				add(team, b, Referrer{Template: t.name})
			}
		}
	}
	for _, s := range sandboxes {
		if s.network == nil {
			continue
		}
		for _, b := range s.network.bindings {
			add(s.team, b, Referrer{Sandbox: s.id})
		}
	}
}

// hashFiles is over names and contents, in the order of the names, so that the same
// files in another directory have the same hash.
func hashFiles(files []File) string {
	sorted := slices.Clone(files)
	slices.SortStableFunc(sorted, func(a, b File) int {
		return strings.Compare(filepath.Base(a.Name), filepath.Base(b.Name))
	})
	h := sha256.New()
	for _, f := range sorted {
		for _, part := range [][]byte{[]byte(filepath.Base(f.Name)), f.Data} {
			var size [8]byte
			binary.BigEndian.PutUint64(size[:], uint64(len(part)))
			h.Write(size[:])
			h.Write(part)
		}
	}
	return hex.EncodeToString(h.Sum(nil)[:8])
}
