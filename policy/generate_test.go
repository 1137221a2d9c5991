package policy

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
)

// gen makes random policies, as the reference reads them and as YAML, and flows that
// meet them.
type gen struct{ *rand.Rand }

func (g gen) some(most int, pool ...string) []string {
	var out []string
	for range g.IntN(most + 1) {
		if s := pool[g.IntN(len(pool))]; !slices.Contains(out, s) {
			out = append(out, s)
		}
	}
	return out
}

func (g gen) one(in int) bool { return g.IntN(in) == 0 }

var (
	genDomains = []string{"a.test", "b.a.test", "c.b.a.test", "x.test", "*.a.test", "*.b.a.test", "*.test", "*.x.test", "*", "vault", "*.internal", "db.internal"}
	genHosts   = []string{"a.test", "b.a.test", "c.b.a.test", "d.c.b.a.test", "x.test", "y.x.test", "aa.test", "vault", "db.internal", "10.1.2.3", "10.9.9.9", "2001:db8::1", "192.0.2.1"}
	genCIDRs   = []string{"10.0.0.0/8", "10.1.0.0/16", "10.9.9.9/32", "2001:db8::/32", "0.0.0.0/0", "::/0", "192.0.2.0/24"}
	genAddrs   = []string{"", "", "10.1.2.3", "10.9.9.9", "192.0.2.1", "2001:db8::1", "198.51.100.1"}
	genPorts   = []string{"443", "80", "1-99", "400-500"}
	genMethods = []string{"GET", "POST", "DELETE"}
	genPaths   = []string{"/a", "/a/b", "/c"}
)

func (g gen) where(r *refRule, cidrs bool) {
	r.domains = g.some(2, genDomains...)
	if cidrs && g.one(3) {
		r.cidrs = g.some(2, genCIDRs...)
	}
	if g.one(3) {
		r.ports = g.some(2, genPorts...)
	}
}

func (g gen) policy() refPolicy {
	p := refPolicy{allowAll: g.one(3), report: g.one(5)}
	for i := range g.IntN(7) {
		r := refRule{name: fmt.Sprintf("t%d", i), allow: !g.one(3)}
		g.where(&r, true)
		if g.one(4) {
			r.protocols = g.some(2, "http", "tls", "ssh")
		}
		p.traffic = append(p.traffic, r)
	}
	for i := range g.IntN(3) {
		r := refRule{name: fmt.Sprintf("p%d", i), denied: g.some(1, genMethods...)}
		g.where(&r, false)
		if g.one(2) {
			r.methods, r.prefixes = g.some(1, genMethods...), g.some(1, genPaths...)
		}
		p.protocol = append(p.protocol, r)
	}
	for i := range g.IntN(5) {
		r := refRule{name: fmt.Sprintf("c%d", i), cert: g.one(3), disabled: g.one(6), keep: g.one(3)}
		g.where(&r, true)
		if !r.cert {
			r.proto = []string{"", "https", "http"}[g.IntN(3)]
			r.cleartext = r.proto != "https" && g.one(2)
		}
		if g.one(2) {
			r.methods, r.prefixes = g.some(1, genMethods...), g.some(1, genPaths...)
		}
		p.credents = append(p.credents, r)
	}
	return p
}

func (p refPolicy) yaml() string {
	var b strings.Builder
	list := func(key string, vs []string) {
		if len(vs) > 0 {
			fmt.Fprintf(&b, ", %s: [\"%s\"]", key, strings.Join(vs, `", "`))
		}
	}
	where := func(r refRule) {
		list("domains", r.domains)
		list("cidrs", r.cidrs)
		if len(r.ports) > 0 {
			var ports []string
			for _, s := range r.ports {
				lo, hi, ranged := strings.Cut(s, "-")
				if ranged {
					lo += ", endPort: " + hi
				}
				ports = append(ports, "{port: "+lo+"}")
			}
			fmt.Fprintf(&b, ", ports: [%s]", strings.Join(ports, ", "))
		}
		if len(r.methods)+len(r.prefixes) > 0 {
			b.WriteString(", httpMatch: {x: 0")
			list("methods", r.methods)
			list("pathPrefixes", r.prefixes)
			b.WriteString("}")
		}
	}
	mode := map[bool]string{false: "block-all", true: "allow-all"}[p.allowAll]
	enforce := map[bool]string{false: "enforce", true: "report"}[p.report]
	fmt.Fprintf(&b, "apiVersion: egressd/v1\nsandboxes:\n  - id: s\n    network:\n      mode: %s\n      enforcement: %s\n      egress:\n        trafficRules:\n", mode, enforce)
	for _, r := range p.traffic {
		fmt.Fprintf(&b, "          - {name: %s, action: %s", r.name, map[bool]string{false: "deny", true: "allow"}[r.allow])
		where(r)
		list("appProtocols", r.protocols)
		b.WriteString("}\n")
	}
	b.WriteString("          - {name: never, action: deny, domains: [never.test]}\n        protocolRules:\n          - {name: never, protocol: http, domains: [never.test], http: {}}\n")
	for _, r := range p.protocol {
		fmt.Fprintf(&b, "          - {name: %s, protocol: http", r.name)
		where(r)
		b.WriteString(", http: {methods: {x: 0")
		list("denied", r.denied)
		b.WriteString("}}}\n")
	}
	b.WriteString("        credentialRules:\n          - {name: never, credentialRef: user, domains: [never.test]}\n")
	for _, r := range p.credents {
		ref := map[bool]string{false: "user", true: "cert"}[r.cert]
		fmt.Fprintf(&b, "          - {name: %s, credentialRef: %s, unsafeWildcard: true, allowCleartext: %v, keepClientAuth: %v", r.name, ref, r.cleartext, r.keep)
		if r.proto != "" {
			fmt.Fprintf(&b, ", protocol: %s", r.proto)
		}
		if r.disabled {
			b.WriteString(", rollout: disabled")
		}
		where(r)
		b.WriteString("}\n")
	}
	b.WriteString("      credentialBindings:\n        - {ref: user, sourceRef: u, projection: {type: username_password}}\n        - {ref: cert, sourceRef: c, projection: {type: tls_client_certificate}}\n")
	return strings.ReplaceAll(strings.ReplaceAll(b.String(), "{x: 0, ", "{"), "{x: 0}", "{}")
}

func (g gen) flow(sb *Sandbox) *Flow {
	f := &Flow{Sandbox: sb, Host: genHosts[g.IntN(len(genHosts))], Port: []uint16{443, 80, 22}[g.IntN(3)], Protocol: Protocol(g.IntN(5))}
	if a := genAddrs[g.IntN(len(genAddrs))]; a != "" {
		f.Addr = netip.MustParseAddr(a)
	}
	if g.one(2) {
		f.Request, f.Protocol = true, []Protocol{HTTP, TLS}[g.IntN(2)]
		f.Method, f.Path = genMethods[g.IntN(3)], []string{"/a", "/a/b", "/a/bc", "/c", "/"}[g.IntN(5)]
	}
	return f
}
