package policy

// owner says whose a network is: one sandbox's, or (sandbox "") that of all of a team
// that share a template.
type owner struct{ sandbox, template, team string }

func (c *compiler) compileNetwork(decl *networkDecl, o owner) *network {
	n := &network{
		allowAll: decl.mode == "allow-all",
		report:   decl.enforce == "report",
		traffic:  decl.traffic,
		protocol: decl.protocol,
		decl:     decl,
	}
	n.trafficIndex = newIndex(rulesOf(n.traffic, func(r *trafficRule) *rule { return &r.rule }),
		func(i int) bool { return !n.traffic[i].allow })
	n.protocolIndex = newIndex(rulesOf(n.protocol, func(r *protocolRule) *rule { return &r.rule }), nil)
	bindings := bindingsByRef(decl)
	for _, r := range decl.credential {
		if cr := c.credential(r, bindings, o); cr != nil {
			n.creds = append(n.creds, cr)
		}
	}
	n.credIndex = newIndex(rulesOf(n.creds, func(r *CredentialRule) *rule { return &r.rule.rule }), nil)
	n.placeholders = placeholdersOf(n.creds)
	n.proxy = c.proxy(decl.proxy, bindings, o)
	c.checkPlaceholders(decl)
	c.warnOverlaps(n)
	return n
}

func rulesOf[T any](list []T, base func(T) *rule) []*rule {
	out := make([]*rule, len(list))
	for i, item := range list {
		out[i] = base(item)
	}
	return out
}

func bindingsByRef(decl *networkDecl) map[string]*bindingDecl {
	m := make(map[string]*bindingDecl, len(decl.bindings))
	for _, b := range decl.bindings {
		m[b.Ref] = b
	}
	return m
}

// credential ties a rule to its binding; nil when it is disabled or broken.
func (c *compiler) credential(r *credentialRule, bindings map[string]*bindingDecl, o owner) *CredentialRule {
	b, ok := bindings[r.ref]
	if !ok {
		if r.ref != "" {
			c.fail(r.refAt, "there is no credential binding %s", show(r.ref))
		}
		return nil
	}
	c.checkProjection(r, b)
	if r.disabled {
		return nil
	}
	cr := &CredentialRule{
		Index: len(c.set.creds), Name: r.label, Sandbox: o.sandbox, Template: o.template, Team: o.team,
		Binding: &b.Binding, FailOpen: r.failOpen, KeepClientAuth: r.keepClientAuth, AllowCleartext: r.allowCleartext,
		Scrub: r.scrub, SandboxLogin: r.sandboxLogin, serves: r.servesWith(b.Projection.Type),
		File: r.at.file, Line: r.at.line, rule: r,
	}
	for _, p := range r.domains {
		cr.Domains = append(cr.Domains, p.String())
	}
	c.set.creds = append(c.set.creds, cr)
	return cr
}

// proxy compiles the way out. Its credential is no rule and stands in no index of rules,
// but it has a number among them, so that an injector is made for it, and says where it
// goes, so that it can be held against what its source may be sent to.
func (c *compiler) proxy(decl *proxyDecl, bindings map[string]*bindingDecl, o owner) *Proxy {
	if decl == nil {
		return nil
	}
	p := &Proxy{Type: decl.typ, Host: decl.host, Port: decl.port}
	if decl.ref == "" {
		return p
	}
	b, ok := bindings[decl.ref]
	switch {
	case !ok:
		c.fail(decl.refAt, "there is no credential binding %s", show(decl.ref))
		return p
	case b.Projection.Type != UsernamePassword && b.Projection.Type != "":
		c.fail(decl.refAt, "the projection %s does not log in to a proxy: it needs username_password", b.Projection.Type)
		return p
	}
	p.Credential = &CredentialRule{
		Index: len(c.set.creds), Name: "egress.proxy", Sandbox: o.sandbox, Template: o.template, Team: o.team,
		Binding: &b.Binding, Domains: []string{p.Host}, File: decl.at.file, Line: decl.at.line, rule: &credentialRule{},
	}
	c.set.creds = append(c.set.creds, p.Credential)
	return p
}
