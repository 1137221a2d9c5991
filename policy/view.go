package policy

import (
	"fmt"
	"net"
	"time"
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
	ProxyTokens int          `json:"proxyTokens"` // how many
	LeaseUntil  *time.Time   `json:"leaseUntil,omitempty"`
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
	Proxy       *proxyView    `json:"proxy,omitempty"`
}

type proxyView struct {
	Type          string `json:"type"`
	Address       string `json:"address"`
	CredentialRef string `json:"credentialRef,omitempty"`
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
	Scrub         bool     `json:"scrub,omitempty"`
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
	Region     string   `json:"region,omitempty"`
	Service    string   `json:"service,omitempty"`
	// How many: placeholders may look like what they stand for.
	Placeholders     int    `json:"placeholders,omitempty"`
	SandboxKeys      int    `json:"sandboxPublicKeys,omitempty"`
	KnownHosts       int    `json:"knownHosts,omitempty"`
	UpstreamUsername string `json:"upstreamUsername,omitempty"`
	File             string `json:"file"`
	Line             int    `json:"line"`
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
		if !decl.lease.IsZero() {
			sv.LeaseUntil = &decl.lease
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
		rv.Protocol = string(r.kind)
		v.Protocol = append(v.Protocol, rv)
	}
	for _, r := range n.credential {
		v.Credential = append(v.Credential, r.view())
	}
	for _, b := range n.bindings {
		v.Bindings = append(v.Bindings, b.view())
	}
	if p := n.proxy; p != nil {
		v.Proxy = &proxyView{Type: string(p.typ), Address: net.JoinHostPort(p.host, fmt.Sprint(p.port)), CredentialRef: p.ref}
	}
	return v
}

func (b *bindingDecl) view() bindingView {
	p := &b.Projection
	v := bindingView{Ref: b.Ref, SourceRef: b.SourceRef, Version: b.Version, Projection: string(p.Type), File: b.at.file, Line: b.at.line,
		Region: p.AWS.Region, Service: p.AWS.Service, Placeholders: len(p.Replacements),
		SandboxKeys: len(p.SSH.SandboxPublicKeys), KnownHosts: len(p.SSH.KnownHosts), UpstreamUsername: p.SSH.UpstreamUsername}
	for _, h := range p.Headers {
		v.Headers = append(v.Headers, h.Name)
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
		if p.lo <= p.hi {
			v.Ports = append(v.Ports, p.String())
		}
	}
	for _, p := range r.udpPorts {
		v.Ports = append(v.Ports, p.String()+"/udp")
	}
	return v
}

// String gives "443" or "400-500".
func (p portRange) String() string {
	if p.lo == p.hi {
		return fmt.Sprint(p.lo)
	}
	return fmt.Sprintf("%d-%d", p.lo, p.hi)
}

func (r *trafficRule) view() ruleView {
	v := r.rule.view()
	v.Action = "deny"
	if r.allow {
		v.Action = "allow"
	}
	for _, word := range appProtocolNames() {
		p, ok := protocolNamed(word)
		if !ok {
			p = udpOnly
		}
		if r.protocols.has(p) {
			v.AppProtocols = append(v.AppProtocols, word)
		}
	}
	return v
}

func (r *credentialRule) view() ruleView {
	v := r.rule.view()
	v.Protocol, v.CredentialRef, v.Rollout, v.FailurePolicy = string(r.protocol), r.ref, "enabled", "fail-closed"
	v.Scrub = r.scrub
	if r.disabled {
		v.Rollout = "disabled"
	}
	if r.failOpen {
		v.FailurePolicy = "fail-open"
	}
	return v
}
