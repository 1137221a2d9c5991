package policy

// certainlyClear are the protocols that run without any encryption unless TLS is around
// them. SSH has its own, and PostgreSQL asks for TLS before it sends a login.
const certainlyClear = protocolSet(1<<SOCKS5 | 1<<MQTT | 1<<Redis)

// carried decides a connection that is neither HTTP nor TLS. Where an enabled credential
// rule for its protocol covers the destination, the decision brings the credential.
// Where a rule covers it that cannot see inside this protocol, it passes only if the
// traffic rule names the protocol: bytes of another protocol are no way around a rule.
func (w *walk) carried(d Decision) Decision {
	var p picks
	if w.logins(&p) {
		return Decision{NeedAddr: true}
	}
	login, cert := p.taken[requestLayer], p.taken[tlsLayer]
	if login != nil {
		d.Action, d.Credential, d.ClientCert = Inspect, login, cert
		return d
	}
	if r := p.blocked[requestLayer]; r != nil {
		w.tr.rule("credential", &r.rule.rule, true, "cleartext towards a destination whose credential needs TLS")
		return Decision{Reason: ReasonPlaintextCredential, Rule: r.rule.label}
	}
	if r := w.limitsSSH(); r != nil {
		w.tr.rule("inspect", r, true, "must see inside, and no credential rule with ssh_proxy lets it")
		return Decision{Reason: ReasonNeedsInspection, Rule: r.label}
	}
	covered, by := w.covered()
	switch {
	case covered == fitNo, w.named:
		d.Action, d.ClientCert = Pass, cert
		return d
	case covered == fitMaybe:
		w.tr.note("inspect", false, "the address decides whether a credential rule covers this")
		return Decision{NeedAddr: true}
	}
	w.tr.rule("inspect", by, true, "must see inside, which this protocol does not let it; appProtocols does not name the protocol")
	return Decision{Reason: ReasonNeedsInspection, Rule: by.label}
}

// logins looks for the credential rules of the flow's protocol. It answers true when
// only the address can tell whether one applies.
func (w *walk) logins(p *picks) (needAddr bool) {
	if w.t.protocol == Unknown {
		return false // bytes that nobody knows never get a credential
	}
	w.tr.enter("credential")
	w.tr.disabled(w.net.decl.credential, w.flow.Host)
	var c candidates
	w.search(w.net.credIndex, &c)
	for p.taken[requestLayer] == nil || p.taken[tlsLayer] == nil {
		cand, ok := c.pull(&w.t, w.tr)
		if !ok {
			return false
		}
		if w.pickLogin(w.net.creds[cand.id], cand.fit, p) {
			return true
		}
	}
	return false
}

func (w *walk) pickLogin(r *CredentialRule, f fit, p *picks) (needAddr bool) {
	l, inTLS := r.layer(), w.flow.InTLS
	switch {
	case !r.serves.has(w.t.protocol):
		w.tr.miss(&r.rule.rule, "is for another protocol")
	case l == tlsLayer && !inTLS && w.t.protocol != Postgres:
		w.tr.miss(&r.rule.rule, "there is no TLS here")
	case p.taken[l] != nil:
		w.tr.miss(&r.rule.rule, "an earlier rule applies already")
	case f == fitMaybe:
		w.tr.rule("credential", &r.rule.rule, false, "applies for some addresses: resolve first")
		return true
	case !inTLS && certainlyClear.has(w.t.protocol) && !r.AllowCleartext:
		w.tr.rule("credential", &r.rule.rule, false, "never in cleartext")
		if p.blocked[l] == nil {
			p.blocked[l] = r
		}
	default:
		w.tr.applied(r)
		p.taken[l] = r
	}
	return false
}

// limitsSSH gives the first protocol rule that must see into an SSH connection.
func (w *walk) limitsSSH() *rule {
	if w.t.protocol != SSH {
		return nil
	}
	var c candidates
	w.net.protocolIndex.find(&w.t, &c)
	for {
		cand, ok := c.pull(&w.t, nil)
		if !ok {
			return nil
		}
		if r := w.net.protocol[cand.id]; r.kind == ruleSSH || r.kind == ruleGit {
			return &r.rule
		}
	}
}
