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
		File: r.at.file, Line: r.at.line, rule: r,
	}
	for _, p := range r.domains {
		cr.Domains = append(cr.Domains, p.String())
	}
	c.set.creds = append(c.set.creds, cr)
	return cr
}

// checkProjection refuses pairs of rule and projection that could never act.
func (c *compiler) checkProjection(r *credentialRule, b *bindingDecl) {
	cert := b.Projection.Type == TLSClientCertificate
	switch {
	case b.Projection.Type == "":
	case cert && r.protocol == onlyHTTP:
		c.fail(r.at, "protocol http with a client certificate: cleartext has no place for it")
	case cert && r.allowCleartext:
		c.fail(r.at, "allowCleartext with a client certificate: cleartext has no place for it")
	case !cert && r.protocol == onlyTLS:
		c.fail(r.at, "protocol tls with the projection %s: only a client certificate lives in TLS itself; use https", b.Projection.Type)
	}
}

// layer is where in a connection a credential goes; one rule each can apply.
type layer uint8

const (
	requestLayer layer = iota
	tlsLayer
	layers
)

func (r *CredentialRule) layer() layer {
	if r.Binding.Projection.Type == TLSClientCertificate {
		return tlsLayer
	}
	return requestLayer
}
