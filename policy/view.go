package policy

import (
	"fmt"
)

// View is the compiled policy as the API and "policy show" print it. It holds
// neither token hashes nor value templates.
type View struct {
	Hash      string         `json:"hash"`
	Templates []*networkView `json:"templates"`
	Sandboxes []sandboxView  `json:"sandboxes"`
}

type sandboxView struct {
	ID          string       `json:"id"`
	Team        string       `json:"team"`
	Template    string       `json:"template,omitempty"`
	File        string       `json:"file"`
	Line        int          `json:"line"`
	SourceCIDRs []string     `json:"sourceCIDRs"`
	ProxyTokens int          `json:"proxyTokens"`       // how many
	Network     *networkView `json:"network,omitempty"` // merged; absent: the template's, unchanged
}

type networkView struct {
	Name        string        `json:"name,omitempty"`
	File        string        `json:"file,omitempty"`
	Line        int           `json:"line,omitempty"`
	Mode        string        `json:"mode"`
	Enforcement string        `json:"enforcement"`
	Traffic     []ruleView    `json:"trafficRules"`
	Protocol    []ruleView    `json:"protocolRules"`
	Credential  []ruleView    `json:"credentialRules"`
	Bindings    []bindingView `json:"credentialBindings"`
}

type ruleView struct {
	Name          string   `json:"name,omitempty"`
	File          string   `json:"file"`
	Line          int      `json:"line"`
	Action        string   `json:"action,omitempty"`
	Protocol      string   `json:"protocol,omitempty"`
	CredentialRef string   `json:"credentialRef,omitempty"`
	Rollout       string   `json:"rollout,omitempty"`
	FailurePolicy string   `json:"failurePolicy,omitempty"`
	Domains       []string `json:"domains,omitempty"`
	CIDRs         []string `json:"cidrs,omitempty"`
	Ports         []string `json:"ports,omitempty"`
	AppProtocols  []string `json:"appProtocols,omitempty"`
}

type bindingView struct {
	Ref        string   `json:"ref"`
	SourceRef  string   `json:"sourceRef"`
	Version    uint64   `json:"sourceVersion,omitempty"`
	Projection string   `json:"projection"`
	Headers    []string `json:"headers,omitempty"`
	File       string   `json:"file"`
	Line       int      `json:"line"`
}

// View gives a copy that encodes to JSON.
func (s *Set) View() View {
	v := View{Templates: []*networkView{}, Sandboxes: []sandboxView{}}
	if s == nil {
		return v
	}
	v.Hash = s.hash
	v.Templates = append(v.Templates, s.templates...)
	for _, sb := range s.sandboxes {
		decl := s.decls[sb.ID]
		sv := sandboxView{ID: sb.ID, Team: sb.Team, Template: sb.Template, File: decl.at.file, Line: decl.at.line,
			SourceCIDRs: []string{}, ProxyTokens: len(decl.tokens)}
		for _, c := range decl.cidrs {
			sv.SourceCIDRs = append(sv.SourceCIDRs, c.prefix.String())
		}
		if decl.network.changes() || decl.template == "" {
			sv.Network = viewNetwork("", sb.net.decl.at, sb.net.decl)
		}
		v.Sandboxes = append(v.Sandboxes, sv)
	}
	return v
}

func viewNetwork(name string, at place, n *networkDecl) *networkView {
	v := &networkView{Name: name, File: at.file, Line: at.line, Mode: n.mode, Enforcement: n.enforce,
		Traffic: []ruleView{}, Protocol: []ruleView{}, Credential: []ruleView{}, Bindings: []bindingView{}}
	if v.Mode == "" {
		v.Mode = "block-all"
	}
	if v.Enforcement == "" {
		v.Enforcement = "enforce"
	}
	for _, r := range n.traffic {
		v.Traffic = append(v.Traffic, r.view())
	}
	for _, r := range n.protocol {
		rv := r.rule.view()
		rv.Protocol = "http"
		v.Protocol = append(v.Protocol, rv)
	}
	for _, r := range n.credential {
		v.Credential = append(v.Credential, r.view())
	}
	for _, b := range n.bindings {
		bv := bindingView{Ref: b.Ref, SourceRef: b.SourceRef, Version: b.Version, Projection: string(b.Projection.Type), File: b.at.file, Line: b.at.line}
		for _, h := range b.Projection.Headers {
			bv.Headers = append(bv.Headers, h.Name)
		}
		v.Bindings = append(v.Bindings, bv)
	}
	return v
}

func (r *rule) view() ruleView {
	v := ruleView{Name: r.name, File: r.at.file, Line: r.at.line}
	for _, p := range r.domains {
		v.Domains = append(v.Domains, p.String())
	}
	for _, p := range append(r.cidrs.v4[:len(r.cidrs.v4):len(r.cidrs.v4)], r.cidrs.v6...) {
		v.CIDRs = append(v.CIDRs, p.String())
	}
	for _, p := range r.ports {
		if p.lo == p.hi {
			v.Ports = append(v.Ports, fmt.Sprint(p.lo))
		} else {
			v.Ports = append(v.Ports, fmt.Sprintf("%d-%d", p.lo, p.hi))
		}
	}
	return v
}

func (r *trafficRule) view() ruleView {
	v := r.rule.view()
	v.Action = "deny"
	if r.allow {
		v.Action = "allow"
	}
	for _, p := range []Protocol{HTTP, TLS, SSH} {
		if r.protocols.has(p) {
			v.AppProtocols = append(v.AppProtocols, p.String())
		}
	}
	return v
}

func (r *credentialRule) view() ruleView {
	v := r.rule.view()
	v.Protocol, v.CredentialRef, v.Rollout, v.FailurePolicy = string(r.protocol), r.ref, "enabled", "fail-closed"
	if r.disabled {
		v.Rollout = "disabled"
	}
	if r.failOpen {
		v.FailurePolicy = "fail-open"
	}
	return v
}
