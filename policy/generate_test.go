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
	p := refPolicy{allowAll: g.one(3), report: g.one(5), proxy: g.one(4)}
	for i := range g.IntN(7) {
		r := refRule{name: fmt.Sprintf("t%d", i), allow: !g.one(3)}
		g.where(&r, true)
		if g.one(3) {
			r.protocols = g.some(3, "http", "tls", "ssh", "socks5", "mqtt", "redis", "postgres", "amqp", "dns", "mongodb")
		}
		p.traffic = append(p.traffic, r)
	}
	for i := range g.IntN(4) {
		p.protocol = append(p.protocol, g.protocolRule(i))
	}
	for i := range g.IntN(5) {
		p.credents = append(p.credents, g.credentialRule(i))
	}
	return p
}

func (g gen) protocolRule(i int) refRule {
	r := refRule{name: fmt.Sprintf("p%d", i), proto: []string{"http", "http", "mcp", "ssh", "git"}[g.IntN(5)]}
	g.where(&r, false)
	switch r.proto {
	case "http":
		r.denied = g.some(1, genMethods...)
	case "ssh":
		r.lists = [][]string{nil, nil, g.some(1, "sftp", "s*"), nil}
		if g.one(2) {
			r.lists[0] = g.some(2, "rm *", "uptime", "git-receive*")
		}
		if g.one(2) {
			r.lists[1] = append(g.some(2, "git-upload-pack *", "*", "env *"), "uptime")
		}
		if g.one(4) {
			r.lists[3] = []string{"sftp"}
		}
		r.shell = []string{"", "true", "false"}[g.IntN(3)]
		r.forwarding = g.one(3)
	case "git":
		r.lists = [][]string{g.some(1, "acme/sec*", "OTHER/b"), g.some(2, "acme/*", "other/b", "*/a")}
		r.push = g.one(2)
	}
	if r.proto != "ssh" && r.proto != "git" && g.one(2) {
		r.methods, r.prefixes = g.some(1, genMethods...), g.some(1, genPaths...)
	}
	return r
}

func (g gen) credentialRule(i int) refRule {
	r := refRule{name: fmt.Sprintf("c%d", i), disabled: g.one(6), keep: g.one(3)}
	g.where(&r, true)
	r.ref = []string{"user", "user", "cert", "key", "head"}[g.IntN(5)]
	switch r.ref {
	case "user":
		r.proto = []string{"", "", "https", "http", "socks5", "mqtt", "redis", "postgres"}[g.IntN(8)]
	case "cert":
		r.proto = []string{"", "tls"}[g.IntN(2)]
	case "key":
		r.proto = []string{"", "ssh"}[g.IntN(2)]
	case "head":
		r.proto = []string{"", "https", "http"}[g.IntN(3)]
	}
	r.cert = r.ref == "cert"
	r.cleartext = r.ref != "cert" && r.ref != "key" && r.proto != "https" && g.one(2)
	if r.ref != "key" && (r.proto == "" || r.proto == "http" || r.proto == "https") && g.one(2) {
		r.methods, r.prefixes = g.some(1, genMethods...), g.some(1, genPaths...)
	}
	return r
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
		fmt.Fprintf(&b, "          - {name: %s, protocol: %s", r.name, r.proto)
		where(r)
		lists := func(key string, denied, allowed []string) {
			fmt.Fprintf(&b, "%s: {x: 0", key)
			list("denied", denied)
			list("allowed", allowed)
			b.WriteString("}")
		}
		switch r.proto {
		case "http":
			lists(", http: {methods", r.denied, nil)
		case "mcp":
			lists(", mcp: {tools", []string{"rm"}, nil)
		case "ssh":
			lists(", ssh: {commands", r.lists[0], r.lists[1])
			lists(", subsystems", r.lists[2], r.lists[3])
			fmt.Fprintf(&b, ", forwarding: %v", r.forwarding)
			if r.shell != "" {
				b.WriteString(", shell: " + r.shell)
			}
		case "git":
			lists(", git: {repositories", r.lists[0], r.lists[1])
			fmt.Fprintf(&b, ", push: %v", r.push)
		}
		b.WriteString("}}\n")
	}
	b.WriteString("        credentialRules:\n          - {name: never, credentialRef: user, domains: [never.test]}\n")
	for _, r := range p.credents {
		fmt.Fprintf(&b, "          - {name: %s, credentialRef: %s, unsafeWildcard: true, allowCleartext: %v, keepClientAuth: %v", r.name, r.ref, r.cleartext, r.keep)
		if r.proto != "" {
			fmt.Fprintf(&b, ", protocol: %s", r.proto)
		}
		if r.disabled {
			b.WriteString(", rollout: disabled")
		}
		where(r)
		b.WriteString("}\n")
	}
	if p.proxy {
		b.WriteString("        proxy: {type: socks5, address: \"proxy.test:1080\", credentialRef: user}\n")
	}
	b.WriteString("      credentialBindings:\n        - {ref: user, sourceRef: u, projection: {type: username_password}}\n        - {ref: cert, sourceRef: c, projection: {type: tls_client_certificate}}\n" +
		"        - {ref: head, sourceRef: h, projection: {type: http_headers, httpHeaders: {headers: [{name: X-Key, valueTemplate: x}]}}}\n" +
		"        - {ref: key, sourceRef: k, projection: {type: ssh_proxy, sshProxy: {upstreamUsername: git, sandboxPublicKeys: [" + testKey + "], knownHosts: [\"* " + testKey + "\"]}}}\n")
	return strings.ReplaceAll(strings.ReplaceAll(b.String(), "{x: 0, ", "{"), "{x: 0}", "{}")
}

func (g gen) flow(sb *Sandbox) *Flow {
	f := &Flow{Sandbox: sb, Host: genHosts[g.IntN(len(genHosts))], Port: []uint16{443, 80, 22}[g.IntN(3)], Protocol: Protocol(g.IntN(int(MongoDB) + 1))}
	if a := genAddrs[g.IntN(len(genAddrs))]; a != "" {
		f.Addr = netip.MustParseAddr(a)
	}
	switch g.IntN(8) {
	case 0, 1: // HTTP
		f.Request, f.Protocol = true, []Protocol{HTTP, TLS}[g.IntN(2)]
		f.Method, f.Path = genMethods[g.IntN(3)], []string{"/a", "/a/b", "/a/bc", "/c", "/"}[g.IntN(5)]
	case 2:
		r := genGitHTTP[g.IntN(len(genGitHTTP))]
		f.Request, f.Protocol = true, []Protocol{HTTP, TLS}[g.IntN(2)]
		f.Method, f.Path, f.RawQuery = r.method, r.path, r.query
	case 3, 4:
		f.Request, f.Protocol = true, SSH
		switch g.IntN(6) {
		case 0:
			f.SSH.Kind = SSHShell
		case 1:
			f.SSH = SSHRequest{SSHSubsystem, []string{"sftp", "netconf"}[g.IntN(2)]}
		case 2:
			f.SSH.Kind = SSHForwarding
		default:
			f.SSH = SSHRequest{SSHExec, genCommands[g.IntN(len(genCommands))].line}
		}
	default:
		f.InTLS = f.Protocol != TLS && f.Protocol != Undetermined && f.Protocol != HTTP && g.one(3)
	}
	return f
}

// What commands and requests mean is written down here, not worked out.
var genCommands = []struct {
	line, plain, base string // plain: "" for what is more than words
	git               string // "", read, write or odd
	repo              string
}{
	{"uptime", "uptime", "uptime", "", ""},
	{"uptime; rm x", "", "", "", ""},
	{"/bin/rm  'x'", "/bin/rm x", "rm x", "", ""},
	{"rm $(x)", "", "", "", ""},
	{"env ls", "env ls", "env ls", "", ""},
	{"git-upload-pack 'acme/a.git'", "git-upload-pack acme/a.git", "git-upload-pack acme/a.git", "read", "acme/a"},
	{"git upload-pack '/other/b'", "git upload-pack /other/b", "git upload-pack /other/b", "read", "other/b"},
	{"git-receive-pack 'acme/secret.git'", "git-receive-pack acme/secret.git", "git-receive-pack acme/secret.git", "write", "acme/secret"},
	{"git-receive-pack /acme/a", "git-receive-pack /acme/a", "git-receive-pack /acme/a", "write", "acme/a"},
	{"git-upload-pack 'acme/../x'", "git-upload-pack acme/../x", "git-upload-pack acme/../x", "odd", ""},
	{"env git-receive-pack acme/a", "env git-receive-pack acme/a", "env git-receive-pack acme/a", "odd", ""},
	{"git-upload-pack 'acme/a'; rm x", "", "", "odd", ""},
}

var genGitHTTP = []struct {
	method, path, query string
	git, repo           string
}{
	{"GET", "/acme/a.git/info/refs", "service=git-upload-pack", "read", "acme/a"},
	{"GET", "/acme/a/info/refs", "service=git-receive-pack", "write", "acme/a"},
	{"GET", "/other/b/info/refs", "", "read", "other/b"},
	{"GET", "/other/b/info/refs", "service=git-upload-pack&service=git-receive-pack", "odd", ""},
	{"POST", "/acme/secret.git/git-upload-pack", "", "read", "acme/secret"},
	{"POST", "/acme/a.git/git-receive-pack", "", "write", "acme/a"},
	{"GET", "/acme/a.git/git-receive-pack", "", "odd", ""},
	{"POST", "/acme/a.git/info/lfs/objects/batch", "", "write", "acme/a"},
	{"GET", "/acme/a/pulls", "", "", ""},
}

const testKey = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIBg+xVG24Z1F9ICd66IpnI+ISKUflOwW1jJXZNvz8wyQ"
