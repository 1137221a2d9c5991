package policy

import "strings"

func (d *decoder) protocolRule(v value) *protocolRule {
	r := &protocolRule{rule: d.rule(v)}
	var blocks []string
	block := func(name string, read func(value)) func(value) {
		return func(v value) {
			blocks = append(blocks, name)
			read(v)
		}
	}
	d.object(v, d.ruleFields(&r.rule).with(fields{
		"protocol":  func(v value) { r.kind = ruleKind(d.enum(v, "http", "mcp", "ssh", "git")) },
		"tlsMode":   func(v value) { d.tlsMode(v) },
		"httpMatch": func(v value) { r.match = d.httpMatch(v) },
		"http":      block("http", func(v value) { d.httpPolicy(v, r) }),
		"mcp":       block("mcp", func(v value) { d.mcpPolicy(v, r) }),
		"ssh":       block("ssh", func(v value) { r.ssh = d.sshPolicy(v) }),
		"git":       block("git", func(v value) { r.git = d.gitPolicy(v) }),
	}), "protocol")
	for _, b := range blocks {
		if r.kind != "" && b != string(r.kind) {
			d.fail(v, "the block %s does not belong to protocol %s", b, r.kind)
		}
	}
	if r.kind != "" && len(blocks) == 0 {
		d.fail(v, "%s is missing: without it the rule limits nothing", r.kind)
	}
	if r.match != nil && (r.kind == ruleSSH || r.kind == ruleGit) {
		d.fail(v, "httpMatch on protocol %s: the rule says itself what it is about", r.kind)
	}
	return r
}

// tlsMode: every rule that can be written must see inside.
func (d *decoder) tlsMode(v value) {
	if s := d.enum(v, "terminate-reoriginate", "passthrough"); s == "passthrough" {
		d.fail(v, "passthrough on a rule that must see inside the connection")
	}
}

func (d *decoder) mcpPolicy(v value, r *protocolRule) {
	r.alone = &MCPRules{rules: []*protocolRule{r}}
	d.object(v, fields{"tools": func(v value) {
		d.object(v, fields{
			"denied":  func(v value) { r.tools.denied = d.strs(v) },
			"allowed": func(v value) { r.tools.allowed, r.tools.limited = d.strs(v), d.limits(v) },
		})
	}})
}

func (d *decoder) sshPolicy(v value) *sshPolicy {
	p := &sshPolicy{}
	d.object(v, fields{
		"commands":   func(v value) { p.commands = d.globLists(v, d.commandGlob) },
		"subsystems": func(v value) { p.subsystems = d.globLists(v, d.commandGlob) },
		"shell":      func(v value) { p.shell, p.shellSaid = d.boolean(v), true },
		"forwarding": func(v value) { p.forwarding = d.boolean(v) },
	})
	if !p.shellSaid {
		// A shell would do whatever a list keeps from being asked for directly.
		p.shell = !p.commands.any() && !p.subsystems.any()
	}
	return p
}

func (d *decoder) gitPolicy(v value) *gitPolicy {
	p := &gitPolicy{}
	d.object(v, fields{
		"repositories": func(v value) { p.repositories = d.globLists(v, d.repositoryGlob) },
		"push":         func(v value) { p.push = d.boolean(v) },
	})
	return p
}

func (d *decoder) globLists(v value, read func(value) (glob, bool)) globPolicy {
	var p globPolicy
	list := func(v value) []glob {
		var out []glob
		d.list(v, func(v value) {
			if g, ok := read(v); ok {
				out = append(out, g)
			}
		})
		return out
	}
	d.object(v, fields{
		"denied":  func(v value) { p.denied = list(v) },
		"allowed": func(v value) { p.allowed, p.limited = list(v), d.limits(v) },
	})
	return p
}

// maxGlob bounds a pattern. Matching is linear in the text for each "*".
const maxGlob = 1024

func (d *decoder) commandGlob(v value) (glob, bool) {
	s, ok := d.str(v)
	switch {
	case !ok:
		return "", false
	case len(s) > maxGlob:
		d.fail(v, "longer than %d bytes", maxGlob)
		return "", false
	case strings.ContainsFunc(s, isControl):
		d.fail(v, "holds a line break or another control character")
		return "", false
	}
	return glob(s), true
}

// repositoryGlob brings a pattern into the form that repositories are compared in.
func (d *decoder) repositoryGlob(v value) (glob, bool) {
	s, ok := d.str(v)
	if !ok {
		return "", false
	}
	path, err := CanonicalPath("/" + strings.TrimLeft(s, "/"))
	name := repositoryName(path)
	if err != nil || len(s) > maxGlob || name == "" || strings.ContainsAny(s, "?#;") {
		d.fail(v, "want the path of a repository, like acme/tool or acme/*")
		return "", false
	}
	return glob(name), true
}
