package policy

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestMayName(t *testing.T) {
	set := compileText(t, `apiVersion: egressd/v1
templates:
  - name: t
    network:
      egress:
        trafficRules:
          - {action: deny, domains: [never.a.test]}
          - {action: deny, domains: [ports.a.test], ports: [{port: 443}, {port: 1, endPort: 99}]}
          - {action: deny, domains: [addr.a.test], cidrs: [10.0.0.0/8]}
          - {action: deny, domains: [proto.a.test], appProtocols: [ssh, tls]}
          - {action: deny, domains: [udp.a.test], ports: [{port: 443, protocol: udp}], appProtocols: [udp]}
          - {action: allow, domains: ["*.a.test"], ports: [{port: 443}]}
          - {action: deny, domains: ["*.b.test"], ports: [{port: 22}]}
          - {action: deny, domains: ["*.b.test"], cidrs: [10.0.0.0/8]}
          - {action: deny, domains: ["*.b.test"], appProtocols: [ssh, redis]}
          - {action: allow, domains: [port.b.test], ports: [{port: 22}]}
          - {action: allow, domains: [more.b.test], ports: [{port: 22}, {port: 23}]}
          - {action: allow, domains: [inside.b.test], cidrs: [10.1.0.0/16]}
          - {action: allow, domains: [outside.b.test], cidrs: [10.0.0.0/7]}
          - {action: allow, domains: [ssh.b.test], appProtocols: [ssh]}
          - {action: allow, domains: [http.b.test], appProtocols: [ssh, http]}
          - {action: allow, domains: [vault, "*.svc.internal", "*"], ports: [{port: 8200}]}
          - {action: deny}
          - {action: allow, domains: [late.test]}
sandboxes:
  - {id: a, template: t}
  - {id: open, network: {mode: allow-all, egress: {trafficRules: [{action: deny, domains: ["*.bad.test"]}, {action: deny, domains: [part.test], ports: [{port: 1}]}]}}}
  - {id: report, network: {enforcement: report}}
  - {id: shut}
`)
	for _, c := range []struct {
		sandbox, host string
		want          bool
	}{
		{"a", "x.a.test", true}, {"a", "never.a.test", false},
		{"a", "ports.a.test", true}, {"a", "addr.a.test", true}, {"a", "proto.a.test", true}, {"a", "udp.a.test", true},
		{"a", "port.b.test", true}, {"a", "vault", true}, {"a", "x.svc.internal", true}, {"a", "other", false}, {"a", "localhost", false}, {"a", "x.internal", false},
		{"a", "10.0.0.1", false}, {"a", "", false}, {"a", ".a.test", false}, {"a", "x..a.test", false},
		{"open", "x.test", true}, {"open", "x.bad.test", false}, {"open", "part.test", true}, {"open", "vault", false}, {"open", "x.local", false},
		{"report", "x.test", true}, {"report", "vault", true}, {"report", "10.0.0.1", false},
		{"shut", "x.test", false}, {"nobody", "x.test", false},
	} {
		if got := set.MayName(set.Sandbox(c.sandbox), c.host); got != c.want {
			t.Errorf("%s %q: %v", c.sandbox, c.host, got)
		}
	}
	// The same without the rule for every name.
	only := compileText(t, `apiVersion: egressd/v1
sandboxes:
  - id: a
    network:
      egress:
        trafficRules:
          - {action: deny, domains: ["*.b.test"], ports: [{port: 1, endPort: 22}]}
          - {action: deny, domains: ["*.b.test"], cidrs: [10.0.0.0/8]}
          - {action: deny, domains: ["*.b.test"], appProtocols: [ssh, redis]}
          - {action: deny, domains: [ports.b.test], ports: [{port: 443}]}
          - {action: allow, domains: [port.b.test], ports: [{port: 22}]}
          - {action: allow, domains: [ports.b.test], ports: [{port: 20, endPort: 22}, {port: 443}]}
          - {action: allow, domains: [more.b.test], ports: [{port: 22}, {port: 23}]}
          - {action: allow, domains: [inside.b.test], cidrs: [10.1.0.0/16]}
          - {action: allow, domains: [outside.b.test], cidrs: [10.0.0.0/7]}
          - {action: allow, domains: [six.b.test], cidrs: ["2001:db8::/32"]}
          - {action: allow, domains: [ssh.b.test], appProtocols: [ssh]}
          - {action: allow, domains: [http.b.test], appProtocols: [ssh, http]}
          - {action: deny}
          - {action: allow, domains: [late.b.test]}
`)
	for host, want := range map[string]bool{
		"port.b.test": false, "more.b.test": true, "inside.b.test": false, "outside.b.test": true, "six.b.test": true, "ssh.b.test": false, "http.b.test": true,
		"late.b.test": false, "none.b.test": false, "ports.b.test": true, // only together do two rules take all of it
	} {
		if got := only.MayName(only.Sandbox("a"), host); got != want {
			t.Errorf("%s: %v", host, got)
		}
	}
	if got := testing.AllocsPerRun(100, func() { only.MayName(only.Sandbox("a"), "ports.b.test") }); got != 0 {
		t.Errorf("%v allocations", got)
	}
	var none *Set
	if none.MayName(set.Sandbox("a"), "x.a.test") || none.Reports(set.Sandbox("a")) || !set.Reports(set.Sandbox("report")) || set.Reports(set.Sandbox("a")) {
		t.Error("no set, or Reports")
	}
}

const dataPlane = `apiVersion: egressd/v1
templates:
  - name: t
    network:
      egress:
        proxy: {type: socks5, address: "Proxy.test:1080", credentialRef: out}
        protocolRules:
          - {name: tools, protocol: mcp, domains: [mcp.test], mcp: {tools: {allowed: [read, list], denied: [list]}}}
          - {name: more, protocol: mcp, domains: [mcp.test], httpMatch: {pathPrefixes: [/rpc]}, mcp: {tools: {denied: [write]}}}
          - {name: git, protocol: git, domains: [git.test], git: {}}
        credentialRules:
          - {name: sub, credentialRef: sub, domains: [x.test], scrub: true}
          - {name: sub2, credentialRef: sub, domains: [y.test]}
          - {name: off, credentialRef: unused, domains: [x.test], rollout: disabled}
          - {name: db, credentialRef: out, protocol: postgres, domains: [db.test], sandboxLogin: {username: app, password: canary-4f1d}}
      credentialBindings:
        - {ref: out, sourceRef: o, projection: {type: username_password}}
        - ref: sub
          sourceRef: s
          projection:
            type: placeholder_substitution
            placeholderSubstitution:
              replacements:
                - {placeholder: canary-zz-4f1d, valueTemplate: "{{ .z }}", locations: [header, body]}
                - {placeholder: canary-aa-4f1d, valueTemplate: "{{ .a }}", locations: [query, path]}
        - {ref: unused, sourceRef: u, projection: {type: placeholder_substitution, placeholderSubstitution: {replacements: [{placeholder: canary-uu-4f1d, valueTemplate: x, locations: [body]}]}}}
        - {ref: aws, sourceRef: w, projection: {type: aws_sigv4, awsSigv4: {region: eu-west-1, service: s3}}}
        - ref: ssh
          sourceRef: k
          projection:
            type: ssh_proxy
            sshProxy:
              sandboxPublicKeys: [` + testKey + `]
              upstreamUsername: git
              knownHosts:
                - "git.test,*.git.test,!bad.git.test ` + testKey + `"
                - "[git.test]:2222,[2001:db8::1]:22,2001:db8::2 ` + testKey + ` a comment"
                - "|1|JkBAmGorymZabqS7gbvAwu11Tz8=|E1LzGx4t6GSbTb33XMPF+Jp29Jk= ` + testKey + `"
                - "@cert-authority *.git.test ` + testKey + `"
                - "@revoked * ` + testKey + `"
sandboxes:
  - {id: a, team: red, template: t, identify: {leaseUntil: 2026-11-21T06:30:00+01:00}}
  - {id: b, team: red, template: t, identify: {leaseUntil: "2026-11-21T06:30:00Z"}}
  - {id: own, team: red, template: t, network: {egress: {proxy: {type: http, address: "[2001:DB8::1]:8080"}}}}
  - {id: none, network: {mode: allow-all}}
`

func TestProxy(t *testing.T) {
	set := compileText(t, dataPlane)
	p := set.Decide(&Flow{Sandbox: set.Sandbox("a"), Host: "x.test", Port: 443}).Proxy
	if p != nil {
		t.Errorf("a refusal has a way out: %+v", p)
	}
	a, own := set.Sandbox("a").net.proxy, set.Sandbox("own").net.proxy
	if a != set.Sandbox("b").net.proxy || a.Type != ProxySOCKS5 || a.Host != "proxy.test" || a.Port != 1080 {
		t.Errorf("%+v", a)
	}
	if own.Type != ProxyHTTP || own.Host != "2001:db8::1" || own.Port != 8080 || own.Credential != nil {
		t.Errorf("%+v", own)
	}
	c := a.Credential
	if c == nil || set.CredentialRules()[c.Index] != c || c.Team != "red" || c.Binding.SourceRef != "o" || c.Name != "egress.proxy" || len(c.Domains) != 1 || c.Domains[0] != "proxy.test" {
		t.Errorf("%+v", c)
	}
	for i, r := range set.CredentialRules() {
		if r.Index != i {
			t.Errorf("rule %d has index %d", i, r.Index)
		}
	}
	// It is no rule: it covers nothing.
	none := set.Sandbox("none")
	if d := set.Decide(&Flow{Sandbox: none, Host: "proxy.test", Port: 1080, Protocol: TLS}); d.Action != Pass || d.Proxy != nil {
		t.Errorf("%s", d)
	}
}

func TestPlaceholders(t *testing.T) {
	set := compileText(t, dataPlane)
	var got []string
	for _, p := range set.Placeholders(set.Sandbox("a")) {
		line := p.Text
		for _, r := range p.Rules {
			line += " " + r.Name
		}
		got = append(got, line)
	}
	if diff := cmp.Diff([]string{"canary-aa-4f1d sub sub2", "canary-zz-4f1d sub sub2"}, got); diff != "" {
		t.Error(diff)
	}
	if len(set.Placeholders(set.Sandbox("none"))) != 0 || set.Placeholders(nil) != nil {
		t.Error("placeholders of others")
	}
	r := set.CredentialRules()[0]
	if !r.Scrub || r.SandboxLogin != nil {
		t.Errorf("%+v", r)
	}
	want := []Replacement{
		{Placeholder: "canary-zz-4f1d", ValueTemplate: "{{ .z }}", Locations: InHeader | InBody, Line: 24},
		{Placeholder: "canary-aa-4f1d", ValueTemplate: "{{ .a }}", Locations: InQuery | InPath, Line: 25},
	}
	if diff := cmp.Diff(want, r.Binding.Projection.Replacements); diff != "" {
		t.Error(diff)
	}
	if l := set.CredentialRules()[2].SandboxLogin; l == nil || *l != (SandboxLogin{"app", "canary-4f1d"}) {
		t.Errorf("%+v", l)
	}
}

func TestProjectionsAsDecoded(t *testing.T) {
	set := compileText(t, dataPlane)
	got := map[string]Projection{}
	for _, b := range set.Sandbox("a").net.decl.bindings {
		got[b.Ref] = b.Projection
	}
	if aws := got["aws"]; aws.AWS != (AWSBounds{"eu-west-1", "s3"}) {
		t.Errorf("%+v", aws)
	}
	if l := got["ssh"].SSH; l.UpstreamUsername != "git" || len(l.SandboxPublicKeys) != 1 || len(l.KnownHosts) != 5 || l.KnownHostsLine != 36 {
		t.Errorf("%+v", l)
	}
}

func TestLeases(t *testing.T) {
	set := compileText(t, dataPlane)
	want := time.Date(2026, 11, 21, 5, 30, 0, 0, time.UTC)
	if got := set.Sandbox("a").LeaseUntil; !got.Equal(want) {
		t.Errorf("%v", got)
	}
	if got := set.Sandbox("b").LeaseUntil; !got.Equal(want.Add(time.Hour)) {
		t.Errorf("%v", got)
	}
	if !set.Sandbox("none").LeaseUntil.IsZero() {
		t.Error("a lease that nobody wrote")
	}
	if v := set.View().Sandboxes[0]; v.LeaseUntil == nil || !v.LeaseUntil.Equal(want) {
		t.Errorf("%+v", v)
	}
}

func TestMCPRules(t *testing.T) {
	set := compileText(t, dataPlane+"  - {id: m, template: t, network: {mode: allow-all}}\n")
	decide := func(path string) *MCPRules {
		d := set.Decide(&Flow{Sandbox: set.Sandbox("m"), Host: "mcp.test", Port: 443, Protocol: TLS, Request: true, Method: "POST", Path: path})
		if d.Action != Inspect {
			t.Fatalf("%s", d)
		}
		return d.MCP
	}
	for _, c := range []struct {
		path, tool, refusedBy string
	}{
		{"/", "read", ""}, {"/", "list", "tools"}, {"/", "write", "tools"}, {"/", "READ", "tools"}, {"/rpc", "read", ""}, {"/rpc", "list", "tools"},
	} {
		if ok, rule := decide(c.path).Allows(c.tool); ok != (c.refusedBy == "") || rule != c.refusedBy {
			t.Errorf("%s %s: %v by %q", c.path, c.tool, ok, rule)
		}
	}
	if s := decide("/rpc").String(); s != "tools, more" {
		t.Errorf("%s", s)
	}
	if !decide("/rpc").same(decide("/rpc")) || decide("/rpc").same(decide("/")) || decide("/") != decide("/x") {
		t.Error("same")
	}
	if d := set.Decide(&Flow{Sandbox: set.Sandbox("m"), Host: "x.test", Port: 443, Protocol: TLS, Request: true, Method: "POST", Path: "/"}); d.MCP != nil {
		t.Errorf("%s", d)
	}
	f := &Flow{Sandbox: set.Sandbox("m"), Host: "git.test", Port: 443}
	if !set.LooksAtPaths(f) || !set.LooksAtMethods(f) {
		t.Error("a git rule does not look at paths and methods")
	}
}
