package policy

import (
	"slices"
	"strings"
)

// request refines an allowed connection for one request on it: every protocol rule
// that applies must let it through, then each layer takes its first credential rule.
func (w *walk) request(d Decision) Decision {
	if w.t.protocol == SSH {
		return w.ssh(d)
	}
	denied, mcp := w.protocolRules()
	if denied != nil {
		return Decision{Reason: ReasonProtocolRule, Rule: denied.label}
	}
	d.MCP = mcp
	return w.credentials(d)
}

// protocolRules gives the first rule that refuses the request, or nil, and the rules
// that its body must still pass.
func (w *walk) protocolRules() (denied *rule, mcp *MCPRules) {
	w.tr.enter("protocol")
	var c candidates
	w.search(w.net.protocolIndex, &c)
	for {
		cand, ok := c.pull(&w.t, w.tr)
		if !ok {
			return nil, mcp
		}
		r := w.net.protocol[cand.id]
		if !r.match.ok(w.flow, broad) {
			w.tr.miss(&r.rule, "httpMatch does not hold")
			continue
		}
		why, about := "", true
		switch r.kind {
		case ruleHTTP:
			why = r.refuses(w.flow)
		case ruleGit:
			why, about = r.git.refusesHTTP(w.flow)
		case ruleMCP:
			mcp = mcp.with(r)
		default:
			about = false
		}
		switch {
		case why != "":
			w.tr.rule("protocol", &r.rule, true, why)
			return &r.rule, nil
		case !about:
			w.tr.miss(&r.rule, "is not about such a request")
		default:
			w.tr.rule("protocol", &r.rule, true, "lets the request through")
		}
	}
}

// with adds a rule. Only where several apply to one request does it allocate.
func (r *MCPRules) with(p *protocolRule) *MCPRules {
	if r == nil {
		return p.alone
	}
	return &MCPRules{rules: append(slices.Clip(r.rules), p)}
}

// refuses says why the request may not pass, or "".
func (r *protocolRule) refuses(f *Flow) string {
	switch m := &r.methods; {
	case containsFold(m.denied, f.Method):
		return "method is denied"
	case m.limited && !slices.Contains(m.allowed, f.Method):
		return "method is not among the allowed"
	}
	p := &r.paths
	switch {
	case !p.any():
	case f.Path == "" || f.Path[0] != '/':
		return "path is not canonical"
	case anyForbids(p.denied, p.deniedPrefixes, f.Path):
		return "path is denied"
	case p.limited && !anyGrants(p.allowed, p.allowedPrefixes, f.Path):
		return "path is not among the allowed"
	}
	return ""
}

func (p *pathPolicy) any() bool {
	return p.limited || len(p.denied)+len(p.deniedPrefixes) > 0
}

func (m *methodPolicy) any() bool { return m.limited || len(m.denied) > 0 }

// picks collects what applies, by layer.
type picks struct {
	taken   [layers]*CredentialRule
	blocked [layers]*CredentialRule // would apply, were it not for cleartext
	strip   bool                    // a covering rule does not keep the client's own credentials
}

func (w *walk) credentials(d Decision) Decision {
	var p picks
	w.tr.enter("credential")
	w.tr.disabled(w.net.decl.credential, w.flow.Host)
	var c candidates
	w.search(w.net.credIndex, &c)
	for p.taken[requestLayer] == nil || p.taken[tlsLayer] == nil {
		cand, ok := c.pull(&w.t, w.tr)
		if !ok {
			break
		}
		if w.pick(w.net.creds[cand.id], cand.fit, &p) {
			return Decision{NeedAddr: true}
		}
	}
	for l := range p.taken {
		if r := p.blocked[l]; r != nil && p.taken[l] == nil {
			w.tr.rule("credential", &r.rule.rule, true, "cleartext towards a destination whose credential needs TLS")
			return Decision{Reason: ReasonPlaintextCredential, Rule: r.rule.label}
		}
	}
	d.Credential, d.ClientCert = p.taken[requestLayer], p.taken[tlsLayer]
	d.StripClientAuth = p.stripClientAuth()
	return d
}

// pick looks at one covering rule; it answers true when only the address can tell
// whether the rule applies.
func (w *walk) pick(r *CredentialRule, f fit, p *picks) (needAddr bool) {
	l := r.layer()
	if !r.KeepClientAuth {
		p.strip = true
	}
	switch {
	case r.serves&httpRequests == 0:
		w.tr.miss(&r.rule.rule, "is not about requests")
		return false
	case p.taken[l] != nil:
		w.tr.miss(&r.rule.rule, "an earlier rule applies already")
		return false
	case !r.rule.match.ok(w.flow, strict):
		w.tr.miss(&r.rule.rule, "httpMatch does not hold")
		return false
	case !r.rule.speaks(w.flow):
		w.tr.miss(&r.rule.rule, "protocol does not match")
		return false
	case f == fitMaybe:
		w.tr.rule("credential", &r.rule.rule, false, "applies for some addresses: resolve first")
		return true
	}
	if w.t.protocol == HTTP && !r.rule.allowCleartext {
		w.tr.rule("credential", &r.rule.rule, false, "never in cleartext")
		if p.blocked[l] == nil {
			p.blocked[l] = r
		}
		return false
	}
	w.tr.applied(r)
	p.taken[l] = r
	return false
}

// speaks reports whether the rule's protocol is the request's, apart from TLS: what
// is cleartext and may not be is told apart later, because it is refused.
func (r *credentialRule) speaks(f *Flow) bool {
	switch r.protocol {
	case onlyHTTP:
		return f.Protocol == HTTP
	case onlyGRPC:
		return isGRPC(f)
	}
	return true
}

func isGRPC(f *Flow) bool {
	ct := f.Header["Content-Type"]
	if len(ct) != 1 {
		return false
	}
	rest, ok := strings.CutPrefix(ct[0], "application/grpc")
	return ok && (rest == "" || rest[0] == '+' || rest[0] == ';')
}

// stripClientAuth goes by the rules that apply or, when none does, by all that cover
// the destination.
func (p *picks) stripClientAuth() bool {
	applies := false
	for _, r := range p.taken {
		if r != nil {
			applies = true
			if !r.KeepClientAuth {
				return true
			}
		}
	}
	return !applies && p.strip
}
