package policy

// Decide walks the policy for one connection or request: sandbox, traffic rules,
// then for a request protocol rules and credential rules. It is pure, safe for
// concurrent use and does not allocate.
//
// On connection decisions: with Protocol Undetermined, an answer other than Deny says
// only that some protocol may be allowed, so that bytes may be read and the flow
// decided again; nothing may be relayed on it. A rule that needs the address yields
// NeedAddr, unless the flow is refused whatever the address is: a refused name is
// never worth a lookup.
//
// A Sandbox of an older Set is looked up by its ID in this one, so that a flow that
// began under an older policy is decided by this one alone.
func (s *Set) Decide(f *Flow) Decision {
	return s.walk(f, nil)
}

// walk is the one way through the policy. With a tracer it looks at every rule and
// narrates; without, it asks the indexes which rules to look at.
func (s *Set) walk(f *Flow, tr *tracer) Decision {
	sb := s.current(f.Sandbox)
	if sb == nil {
		tr.note("sandbox", false, "no such sandbox")
		return tr.decided(Decision{Reason: ReasonUnknownSandbox})
	}
	tr.note("sandbox", true, sb.ID)
	w := walk{net: sb.net, flow: f, t: newTarget(f), tr: tr}
	if w.t.malformed() {
		tr.note("mode", true, "deny: the host is not canonical")
		return tr.decided(Decision{Reason: ReasonDefaultMode})
	}
	d := w.connection()
	if d.Action != Deny && f.Request {
		d = w.request(d)
	}
	if d.Action == Deny && !d.NeedAddr && w.net.report && !w.insideSSH() {
		d = w.reported(d)
	}
	if d.Action != Deny {
		d.Proxy = w.net.proxy
	}
	return tr.decided(d)
}

// current gives this set's sandbox.
func (s *Set) current(sb *Sandbox) *Sandbox {
	if s == nil || sb == nil {
		return nil
	}
	if sb.set == s {
		return sb
	}
	return s.byID[sb.ID]
}

// walk is the state of one decision. It lives on the stack.
type walk struct {
	net   *network
	flow  *Flow
	t     target
	tr    *tracer
	named bool // the traffic rule that allows has the flow's own protocol in its appProtocols
}

// insideSSH: such a request runs on a connection that has logged in with the
// credential, so that a refusal holds where enforcement is report as well.
func (w *walk) insideSSH() bool { return w.flow.Request && w.t.protocol == SSH }

// search begins a pass over one index.
func (w *walk) search(x *index, c *candidates) {
	if w.tr != nil {
		c.x, c.all = x, true
		return
	}
	x.find(&w.t, c)
}

// connection decides what may be done with the bytes of the flow.
func (w *walk) connection() Decision {
	d := w.traffic()
	if d.Action == Deny {
		return d
	}
	if w.flow.Request {
		return w.requestFlow(d)
	}
	switch w.t.protocol {
	case Undetermined, HTTP:
		d.Action = Inspect
		return d
	case TLS:
		return w.hello(d)
	case SSH, SOCKS5, MQTT, Redis, Postgres, AMQP, DNS, MongoDB, Unknown:
		return w.carried(d)
	}
	return Decision{Reason: ReasonUnknownProtocol, Rule: d.Rule}
}

// requestFlow says what a request may be one of.
func (w *walk) requestFlow(d Decision) Decision {
	switch {
	case w.t.protocol == HTTP, w.t.protocol == TLS:
		d.Action = Inspect
		return d
	case w.t.protocol != SSH || w.flow.SSH.Kind == SSHNothing:
		return Decision{Reason: ReasonUnknownProtocol, Rule: d.Rule}
	}
	if d = w.carried(d); d.Action == Pass {
		w.tr.note("inspect", true, "no credential rule lets anything see into this connection any more")
		return Decision{Reason: ReasonNeedsInspection, Rule: d.Rule}
	}
	return d
}

// hello decides a connection that begins with a ClientHello.
func (w *walk) hello(d Decision) Decision {
	switch covered, by := w.covered(); covered {
	case fitMaybe:
		w.tr.note("inspect", false, "the address decides whether a credential rule covers this")
		return Decision{NeedAddr: true}
	case fitYes:
		w.tr.rule("inspect", by, true, "must see inside")
		d.Action = Inspect
		return d
	}
	d.Action = Pass
	return d
}

// traffic finds the first traffic rule that holds, or else goes by the mode. Action
// is Deny or Pass; what is allowed is refined by the caller.
func (w *walk) traffic() Decision {
	w.tr.enter("traffic")
	pending := false // a refusing rule might hold, for some addresses
	var held missed
	var c candidates
	w.search(w.net.trafficIndex, &c)
	for {
		cand, ok := c.pull(&w.t, w.tr)
		if !ok {
			return w.mode(pending, held)
		}
		r := w.net.traffic[cand.id]
		if !w.applies(r, cand, &held) {
			continue
		}
		switch {
		case cand.fit == fitMaybe && r.allow:
			w.tr.rule("traffic", &r.rule, false, "would allow for some addresses: resolve first")
			return Decision{NeedAddr: true}
		case cand.fit == fitMaybe:
			w.tr.rule("traffic", &r.rule, false, "would deny for some addresses")
			pending = true
			c.skipDenies()
		case !r.allow:
			w.tr.rule("traffic", &r.rule, true, "deny")
			return Decision{Reason: ReasonTrafficRule, Rule: r.label}
		case pending:
			w.tr.rule("traffic", &r.rule, false, "would allow, but an earlier rule might deny: resolve first")
			return Decision{NeedAddr: true}
		default:
			w.tr.rule("traffic", &r.rule, true, "allow")
			w.named = r.protocols.has(w.t.protocol)
			return Decision{Action: Pass, Reason: ReasonTrafficRule, Rule: r.label}
		}
	}
}

// missed remembers why rules that allow the destination did not count.
type missed struct{ protocol, special bool }

// applies judges what a rule says apart from its destination.
func (w *walk) applies(r *trafficRule, cand candidate, held *missed) bool {
	definite := cand.fit == fitYes
	if r.protocols != 0 && !r.protocols.has(w.t.carrier) {
		if w.t.carrier != Undetermined {
			w.tr.miss(&r.rule, "protocol is not in appProtocols")
			held.protocol = held.protocol || r.allow && definite
			return false
		}
		if !r.allow {
			w.tr.miss(&r.rule, "denies some protocols only, and none is known yet")
			return false
		}
	}
	if !r.allow {
		return true
	}
	if w.t.special && !cand.explicit {
		w.tr.miss(&r.rule, "does not name this local name")
		held.special = true
		return false
	}
	if w.t.carrier == Unknown && r.cidrs.empty() && len(r.ports) == 0 {
		w.tr.miss(&r.rule, "allows known protocols only: it has neither ports nor cidrs")
		held.protocol = held.protocol || definite
		return false
	}
	return true
}

// mode decides what no rule decided.
func (w *walk) mode(pending bool, held missed) Decision {
	switch {
	case w.net.allowAll && w.t.special, held.special:
		w.tr.note("mode", true, "deny: a local name that no rule names")
		return Decision{Reason: ReasonSpecialName}
	case w.net.allowAll && pending:
		w.tr.note("mode", false, "allow-all, but an earlier rule might deny: resolve first")
		return Decision{NeedAddr: true}
	case w.net.allowAll:
		w.tr.note("mode", true, "allow-all")
		return Decision{Action: Pass, Reason: ReasonDefaultMode}
	case held.protocol:
		w.tr.note("mode", true, "block-all, and no rule allows this protocol here")
		return Decision{Reason: ReasonUnknownProtocol}
	}
	w.tr.note("mode", true, "block-all")
	return Decision{Reason: ReasonDefaultMode}
}

// covered reports whether a rule must see inside what goes to this destination.
func (w *walk) covered() (fit, *rule) {
	best, by := fitNo, (*rule)(nil)
	for _, x := range [...]*index{w.net.protocolIndex, w.net.credIndex} {
		var c candidates
		x.find(&w.t, &c)
		for {
			cand, ok := c.pull(&w.t, nil)
			if !ok {
				break
			}
			if cand.fit > best {
				best, by = cand.fit, x.rules[cand.id]
			}
			if best == fitYes {
				return best, by
			}
		}
	}
	return best, by
}

// reported lets a refusal pass where enforcement is report. No credential is on it:
// the walk ended at the refusal.
func (w *walk) reported(d Decision) Decision {
	d = Decision{Action: Pass, Reason: d.Reason, Rule: d.Rule, Report: true}
	switch {
	case w.flow.Request, w.t.protocol == HTTP, w.t.protocol == Undetermined:
		d.Action = Inspect
	case w.t.protocol == TLS:
		if covered, _ := w.covered(); covered != fitNo {
			d.Action = Inspect
		}
	}
	return d
}

// LooksAtPaths reports whether any rule that covers the flow's destination looks at
// request paths. Odd paths are refused then, and the canonical form is sent.
func (s *Set) LooksAtPaths(f *Flow) bool {
	return s.looks(f,
		func(r *protocolRule) bool { return r.paths.any() || r.match.looksAtPaths() || r.kind == ruleGit },
		func(r *CredentialRule) bool { return r.rule.match.looksAtPaths() })
}

// LooksAtMethods reports whether any rule that covers the flow's destination looks
// at methods. Headers that override the method are removed then.
func (s *Set) LooksAtMethods(f *Flow) bool {
	return s.looks(f,
		func(r *protocolRule) bool { return r.methods.any() || r.match.looksAtMethods() || r.kind == ruleGit },
		func(r *CredentialRule) bool { return r.rule.match.looksAtMethods() })
}

func (s *Set) looks(f *Flow, protocol func(*protocolRule) bool, credential func(*CredentialRule) bool) bool {
	sb := s.current(f.Sandbox)
	if sb == nil {
		return false
	}
	w := walk{net: sb.net, flow: f, t: newTarget(f)}
	var p, c candidates
	w.search(w.net.protocolIndex, &p)
	for {
		cand, ok := p.pull(&w.t, nil)
		if !ok {
			break
		}
		if protocol(w.net.protocol[cand.id]) {
			return true
		}
	}
	w.search(w.net.credIndex, &c)
	for {
		cand, ok := c.pull(&w.t, nil)
		if !ok {
			return false
		}
		if credential(w.net.creds[cand.id]) {
			return true
		}
	}
}
