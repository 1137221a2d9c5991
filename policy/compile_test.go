package policy

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

const teams = `apiVersion: egressd/v1
templates:
  - name: t
    network:
      egress:
        trafficRules: [{name: x, action: allow, domains: [x.test]}]
        credentialRules:
          - {name: first, credentialRef: b, domains: [x.test], failurePolicy: fail-open, keepClientAuth: true}
          - {credentialRef: b, domains: ["*.y.test"]}
          - {name: off, credentialRef: b, domains: [z.test], rollout: disabled}
      credentialBindings:
        - {ref: b, sourceRef: src, sourceVersion: 3, cachePolicy: {ttl: 90s}, projection: {type: http_headers, httpHeaders: {headers: [{name: x-secret, valueTemplate: "canary-4f1d {{ .k }}"}]}}}
  - name: unused
    network:
      credentialBindings: [{ref: u, sourceRef: idle, sourceVersion: default, projection: {type: username_password}}]
sandboxes:
  - {id: one, team: red, template: t, identify: {sourceCIDRs: [10.0.0.1/32]}}
  - {id: two, team: red, template: t, identify: {sourceCIDRs: [10.0.0.2/32]}, network: {}}
  - {id: three, team: blue, template: t, identify: {sourceCIDRs: [10.0.0.3/32]}}
  - id: four
    team: red
    template: t
    identify: {proxyTokens: ["sha256:` + "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08" + `"]}
    network:
      credentialBindings: [{ref: b, sourceRef: own, projection: {type: tls_client_certificate}}]
      egress: {credentialRules: [{credentialRef: b, domains: [w.test]}, {name: first, credentialRef: b, domains: [x.test]}]}
`

func TestCredentialRulesAreSharedWithinATeam(t *testing.T) {
	set := compileText(t, teams)
	if set.Sandbox("one").net != set.Sandbox("two").net {
		t.Error("two sandboxes of one team and template hold the policy twice")
	}
	if set.Sandbox("one").net == set.Sandbox("three").net || set.Sandbox("one").net == set.Sandbox("four").net {
		t.Error("shared across teams, or with a changed network")
	}
	var got []string
	for i, r := range set.CredentialRules() {
		if r.Index != i {
			t.Errorf("rule %d has index %d", i, r.Index)
		}
		got = append(got, fmt.Sprintf("%s sandbox=%q template=%s team=%s binding=%s/%s v%d open=%v keep=%v %v line=%d",
			r.Name, r.Sandbox, r.Template, r.Team, r.Binding.Ref, r.Binding.SourceRef, r.Binding.Version, r.FailOpen, r.KeepClientAuth, r.Domains, r.Line))
	}
	want := []string{
		`first sandbox="" template=t team=red binding=b/src v3 open=true keep=true [x.test] line=8`,
		`policy.yaml:9 sandbox="" template=t team=red binding=b/src v3 open=false keep=false [*.y.test] line=9`,
		`first sandbox="" template=t team=blue binding=b/src v3 open=true keep=true [x.test] line=8`,
		`policy.yaml:9 sandbox="" template=t team=blue binding=b/src v3 open=false keep=false [*.y.test] line=9`,
		`first sandbox="four" template=t team=red binding=b/own v0 open=false keep=false [x.test] line=26`,
		`policy.yaml:9 sandbox="four" template=t team=red binding=b/own v0 open=false keep=false [*.y.test] line=9`,
		`policy.yaml:26 sandbox="four" template=t team=red binding=b/own v0 open=false keep=false [w.test] line=26`,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	b := set.CredentialRules()[0].Binding
	wantBinding := Binding{Ref: "b", SourceRef: "src", Version: 3, CacheTTL: 90 * time.Second, File: "policy.yaml", Line: 12, Projection: Projection{
		Type: HTTPHeaders, Headers: []HeaderTemplate{{Name: "X-Secret", ValueTemplate: "canary-4f1d {{ .k }}", Line: 12}}}}
	if diff := cmp.Diff(wantBinding, *b); diff != "" {
		t.Error(diff)
	}
}

func TestReferrers(t *testing.T) {
	set := compileText(t, teams)
	for _, c := range []struct {
		team, source string
		want         []Referrer
	}{
		{"red", "src", []Referrer{{Template: "t", Binding: "b", File: "policy.yaml", Line: 12}}},
		{"blue", "src", []Referrer{{Template: "t", Binding: "b", File: "policy.yaml", Line: 12}}},
		{"green", "src", nil},
		{"red", "own", []Referrer{{Sandbox: "four", Binding: "b", File: "policy.yaml", Line: 25}}},
		{"blue", "own", nil},
		{"green", "idle", []Referrer{{Template: "unused", Binding: "u", File: "policy.yaml", Line: 15}}},
	} {
		if diff := cmp.Diff(c.want, set.Referrers(c.team, c.source)); diff != "" {
			t.Errorf("%s/%s: %s", c.team, c.source, diff)
		}
	}
}

func TestWarnings(t *testing.T) {
	bind := `
      credentialBindings:
        - {ref: b, sourceRef: s, projection: {type: http_headers, httpHeaders: {headers: [{name: authorization, valueTemplate: x}]}}}
        - {ref: u, sourceRef: s, projection: {type: username_password}}
        - {ref: k, sourceRef: s, projection: {type: http_headers, httpHeaders: {headers: [{name: X-Key, valueTemplate: x}]}}}
        - {ref: c, sourceRef: s, projection: {type: tls_client_certificate}}
        - {ref: w, sourceRef: s, projection: {type: aws_sigv4}}
        - {ref: h, sourceRef: s, projection: {type: ssh_proxy, sshProxy: {upstreamUsername: u, sandboxPublicKeys: [` + testKey + `], knownHosts: ["* ` + testKey + `"]}}}
        - {ref: p, sourceRef: s, projection: {type: placeholder_substitution, placeholderSubstitution: {replacements: [{placeholder: placeholder, valueTemplate: x, locations: [body]}]}}}
`
	const head = "apiVersion: egressd/v1\nsandboxes:\n  - id: s\n    identify: {sourceCIDRs: [10.0.0.1/32]}\n    network:\n      egress:\n        "
	rules := func(lines ...string) string {
		return head + "credentialRules:\n          - " + strings.Join(lines, "\n          - ") + bind
	}
	same := func(header string) string {
		return `p.yaml:9:13: sandboxes[0].network.egress.credentialRules[1]: the credential rules "one" and "two" project the same ` + header + ` on overlapping traffic; the first wins`
	}
	for _, c := range []struct{ name, yaml, want string }{
		{"same header, same host", rules("{name: one, credentialRef: b, domains: [x.test]}", "{name: two, credentialRef: u, domains: [x.test]}"), same("header Authorization")},
		{"wildcard over host", rules("{name: one, credentialRef: b, domains: [\"*.x.test\"]}", "{name: two, credentialRef: b, domains: [a.b.x.test]}"), same("header Authorization")},
		{"host under wildcard", rules("{name: one, credentialRef: b, domains: [a.b.x.test]}", "{name: two, credentialRef: b, domains: [\"*.x.test\"]}"), same("header Authorization")},
		{"wildcards", rules("{name: one, credentialRef: b, domains: [\"*.b.x.test\"]}", "{name: two, credentialRef: b, domains: [\"*.x.test\"]}"), same("header Authorization")},
		{"everywhere", rules("{name: one, credentialRef: b, domains: [a.test]}", "{name: two, credentialRef: b, unsafeWildcard: true}"), same("header Authorization")},
		{"prefixes nest", rules("{name: one, credentialRef: b, domains: [a.test], httpMatch: {pathPrefixes: [/a/b]}}", "{name: two, credentialRef: b, domains: [a.test], httpMatch: {pathPrefixes: [/a]}}"), same("header Authorization")},
		{"certificates", rules("{name: one, credentialRef: c, domains: [a.test]}", "{name: two, credentialRef: c, protocol: tls, domains: [a.test]}"), same("client certificate")},
		{"other header", rules("{name: one, credentialRef: b, domains: [a.test]}", "{name: two, credentialRef: k, domains: [a.test]}"),
			`p.yaml:9:13: sandboxes[0].network.egress.credentialRules[1]: the credential rules "one" and "two" overlap; only the first applies where both match`},
		{"certificate beside a header", rules("{name: one, credentialRef: c, domains: [a.test]}", "{name: two, credentialRef: b, domains: [a.test]}"), ""},
		{"other ports", rules("{name: one, credentialRef: b, domains: [a.test], ports: [{port: 1, endPort: 9}]}", "{name: two, credentialRef: b, domains: [a.test], ports: [{port: 10}]}"), ""},
		{"other methods", rules("{name: one, credentialRef: b, domains: [a.test], httpMatch: {methods: [GET]}}", "{name: two, credentialRef: b, domains: [a.test], httpMatch: {methods: [POST]}}"), ""},
		{"other paths", rules("{name: one, credentialRef: b, domains: [a.test], httpMatch: {pathPrefixes: [/a]}}", "{name: two, credentialRef: b, domains: [a.test], httpMatch: {pathPrefixes: [/ab], paths: [/]}}"), ""},
		{"other hosts", rules("{name: one, credentialRef: b, domains: [a.test]}", "{name: two, credentialRef: b, domains: [aa.test, \"*.b.test\"]}"), ""},
		{"other addresses", rules("{name: one, credentialRef: b, domains: [a.test], cidrs: [10.0.0.0/8]}", "{name: two, credentialRef: b, domains: [a.test], cidrs: [11.0.0.0/8, \"2001:db8::/32\"]}"), ""},
		{"other protocols", rules("{name: one, credentialRef: b, domains: [a.test], protocol: http, allowCleartext: true}", "{name: two, credentialRef: b, domains: [a.test], protocol: https}"), ""},
		{"signatures", rules("{name: one, credentialRef: w, domains: [x.test]}", "{name: two, credentialRef: u, protocol: https, domains: [x.test]}"), same("header Authorization")},
		{"placeholders", rules("{name: one, credentialRef: p, domains: [x.test]}", "{name: two, credentialRef: u, domains: [x.test]}"),
			`p.yaml:9:13: sandboxes[0].network.egress.credentialRules[1]: the credential rules "one" and "two" overlap; only the first applies where both match`},
		{"logins", rules("{name: one, credentialRef: u, domains: [x.test], protocol: redis}", "{name: two, credentialRef: u, domains: [x.test], protocol: redis}"), same("login")},
		{"a login and all", rules("{name: one, credentialRef: u, domains: [x.test], protocol: redis}", "{name: two, credentialRef: u, domains: [x.test]}"), same("login")},
		{"ssh logins", rules("{name: one, credentialRef: h, domains: [x.test], protocol: ssh}", "{name: two, credentialRef: h, domains: [x.test]}"), same("login")},
		{"other logins", rules("{name: one, credentialRef: u, domains: [x.test], protocol: redis}", "{name: two, credentialRef: u, domains: [x.test], protocol: mqtt}"), ""},
		{"a login and requests", rules("{name: one, credentialRef: u, domains: [x.test], protocol: redis}", "{name: two, credentialRef: b, domains: [x.test]}"), ""},
		{"a login and httpMatch", rules("{name: one, credentialRef: u, domains: [x.test], protocol: redis}", "{name: two, credentialRef: u, domains: [x.test], httpMatch: {methods: [GET]}}"), ""},
		{"ssh and requests", rules("{name: one, credentialRef: h, domains: [x.test]}", "{name: two, credentialRef: u, domains: [x.test]}"), ""},
		{"unused template's proxy", minimal + "templates: [{name: t, network: {egress: {proxy: {type: http, address: 'p.test:1', credentialRef: later}}}}]\n",
			`p.yaml:2:98: templates[0].network.egress.proxy.credentialRef: there is no credential binding "later"`},
		{"B27 repositories: []", head + "protocolRules: [{protocol: git, git: {repositories: {allowed: []}}}]\n",
			"p.yaml:7:71: sandboxes[0].network.egress.protocolRules[0].git.repositories.allowed: an empty allowed list allows nothing; leave it out to allow everything"},
		{"one is off", rules("{name: one, credentialRef: b, domains: [a.test]}", "{name: two, credentialRef: b, domains: [a.test], rollout: disabled}"), ""},
		{"http that is refused", rules("{name: one, credentialRef: b, domains: [a.test], protocol: http}"),
			"p.yaml:8:13: sandboxes[0].network.egress.credentialRules[0]: protocol http without allowCleartext: true never applies, and cleartext requests that match are refused"},
		{"host bits", head + "trafficRules: [{action: allow, cidrs: [10.1.2.3/8]}]\n",
			`p.yaml:7:48: sandboxes[0].network.egress.trafficRules[0].cidrs[0]: bits are set behind the prefix length: "10.1.2.3/8" is read as 10.0.0.0/8`},
		{"B27 allowed: []", head + "protocolRules: [{protocol: http, http: {methods: {allowed: []}}}]\n",
			"p.yaml:7:68: sandboxes[0].network.egress.protocolRules[0].http.methods.allowed: an empty allowed list allows nothing; leave it out to allow everything"},
		{"nobody's sandbox", minimal + "sandboxes: [{id: s}]\n",
			"p.yaml:2:13: sandboxes[0]: nothing identifies this sandbox: give it identify.sourceCIDRs or identify.proxyTokens"},
		{"unused template", minimal + "templates: [{name: t, network: {egress: {credentialRules: [{credentialRef: later, domains: [a.test]}]}}}]\n",
			`p.yaml:2:76: templates[0].network.egress.credentialRules[0].credentialRef: there is no credential binding "later"`},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, warnings, err := Compile([]File{{"p.yaml", []byte(c.yaml)}})
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, w := range warnings {
				got = append(got, w.String())
			}
			if diff := cmp.Diff(c.want, strings.Join(got, "\n")); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestLooksAt(t *testing.T) {
	set := compileText(t, `apiVersion: egressd/v1
sandboxes:
  - id: s
    network:
      egress:
        protocolRules:
          - {protocol: http, domains: [paths.test], http: {paths: {denied: [/a]}}}
          - {protocol: http, domains: [methods.test], ports: [{port: 443}], http: {methods: {denied: [PUT]}}}
          - {protocol: http, domains: [match.test], httpMatch: {methods: [GET], paths: [/a]}, http: {}}
        credentialRules:
          - {credentialRef: b, domains: [cred.test], httpMatch: {pathPrefixes: [/a]}}
          - {credentialRef: b, domains: [addr.test], cidrs: [10.0.0.0/8], httpMatch: {pathPrefixes: [/a], methods: [GET]}}
          - {credentialRef: b, domains: [off.test], rollout: disabled, httpMatch: {pathPrefixes: [/a]}}
          - {credentialRef: b, domains: [plain.test]}
      credentialBindings: [{ref: b, sourceRef: s, projection: {type: username_password}}]
`)
	for host, want := range map[string][2]bool{
		"paths.test": {true, false}, "methods.test": {false, true}, "match.test": {true, true}, "cred.test": {true, false},
		"addr.test": {true, true}, "off.test": {}, "plain.test": {}, "other.test": {},
	} {
		f := &Flow{Sandbox: set.Sandbox("s"), Host: host, Port: 443}
		if got := [2]bool{set.LooksAtPaths(f), set.LooksAtMethods(f)}; got != want {
			t.Errorf("%s: paths, methods %v, want %v", host, got, want)
		}
	}
	if set.LooksAtMethods(&Flow{Sandbox: set.Sandbox("s"), Host: "methods.test", Port: 80}) {
		t.Error("a rule for another port counts")
	}
}

// H15: a flow that began under an older set is decided by the one it is asked of.
func TestDecideBySandboxOfAnOlderSet(t *testing.T) {
	allow := minimal + "sandboxes: [{id: s, network: {mode: allow-all}}]\n"
	deny := minimal + "sandboxes: [{id: s, network: {mode: block-all}}]\n"
	old, next, gone := compileText(t, allow), compileText(t, deny), compileText(t, minimal)
	f := &Flow{Sandbox: old.Sandbox("s"), Host: "x.test", Port: 443, Protocol: TLS}
	if d := old.Decide(f); d.Action != Pass {
		t.Errorf("old: %s", d)
	}
	if d := next.Decide(f); d.Action != Deny || d.Reason != ReasonDefaultMode {
		t.Errorf("next: %s", d)
	}
	if d := gone.Decide(f); d.Reason != ReasonUnknownSandbox {
		t.Errorf("gone: %s", d)
	}
}

func TestView(t *testing.T) {
	set := compileText(t, teams)
	data, err := json.Marshal(set.View())
	if err != nil {
		t.Fatal(err)
	}
	for _, secret := range []string{"9f86d08", "canary-4f1d"} {
		if strings.Contains(strings.ToLower(string(data)), secret) {
			t.Errorf("the view holds %s", secret)
		}
	}
	v := set.View()
	if len(v.Templates) != 2 || len(v.Sandboxes) != 4 || v.Hash != set.Hash() {
		t.Fatalf("%+v", v)
	}
	four := v.Sandboxes[0]
	if four.ID != "four" || four.ProxyTokens != 1 || four.Line != 20 || four.Network == nil || len(four.Network.Credential) != 4 {
		t.Errorf("%+v", four)
	}
	if one := v.Sandboxes[1]; one.ID != "one" || one.Network != nil || one.SourceCIDRs[0] != "10.0.0.1/32" {
		t.Errorf("%+v", one)
	}
	udp := compileText(t, minimal+"sandboxes: [{id: s, network: {egress: {trafficRules: [{action: deny, appProtocols: [dns, udp], ports: [{port: 1, endPort: 53, protocol: udp}, {port: 9}]}]}}}]\n")
	if r := udp.View().Sandboxes[0].Network.Traffic[0]; fmt.Sprint(r.AppProtocols, r.Ports) != "[dns udp] [9 1-53/udp]" {
		t.Errorf("%+v", r)
	}
	data, err = json.Marshal(compileText(t, dataPlane).View())
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{`"proxy":{"type":"socks5","address":"proxy.test:1080","credentialRef":"out"}`, `"projection":"placeholder_substitution","placeholders":2`,
		`"region":"eu-west-1","service":"s3"`, `"sandboxPublicKeys":1,"knownHosts":5,"upstreamUsername":"git"`, `"protocol":"git"`, `"scrub":true`} {
		if !strings.Contains(string(data), want) {
			t.Errorf("no %s in %s", want, data)
		}
	}
	if strings.Contains(string(data), "canary") {
		t.Errorf("the view holds a placeholder: %s", data)
	}
	want := ruleView{Name: "off", File: "policy.yaml", Line: 10, CredentialRef: "b", Rollout: "disabled", FailurePolicy: "fail-closed", Domains: []string{"z.test"}}
	if diff := cmp.Diff(want, v.Templates[0].Credential[2]); diff != "" {
		t.Error(diff)
	}
}

func TestAttack_G12_config_bombs(t *testing.T) {
	deep := func(open, end string, n int) string { return strings.Repeat(open, n) + end }
	var indent strings.Builder
	for i := 0; indent.Len() < 900_000; i++ {
		indent.WriteString(strings.Repeat(" ", i) + "a:\n")
	}
	var keys strings.Builder
	for i := 0; keys.Len() < 900_000; i++ {
		fmt.Fprintf(&keys, "key%d: 1\n", i)
	}
	for name, in := range map[string]string{
		"50 MB":            strings.Repeat("# x\n", 50<<20/4),
		"flow depth":       deep("[", "", 1_000_000),
		"flow map depth":   deep("{a: ", "", 200_000),
		"flow lines depth": deep("[\n", "", 500_000),
		"sequence depth":   deep("- ", "x", 500_000),
		"key depth":        deep("? ", "x", 500_000),
		"indent depth":     indent.String(),
		"many anchors":     strings.Repeat("- &a x\n", 100_000),
		"many keys":        keys.String(),
		"same key":         strings.Repeat("a: 1\n", 100_000),
		"long key":         strings.Repeat("a", 1_000_000) + ": 1",
		"long value":       minimal + "templates: " + strings.Repeat("a", 1_000_000),
		"NaN":              minimal + "templates: .nan",
		"1e400":            minimal + "templates: 1e400",
		"not UTF-8":        minimal + "templates: \xff\xfe",
		"NUL":              "a\x00b",
		"control":          "a: \x01",
		"only anchor":      "&a",
	} {
		t.Run(name, func(t *testing.T) {
			start := time.Now()
			_, _, err := Compile([]File{{"p.yaml", []byte(in)}})
			var problems Problems
			if !errors.As(err, &problems) || len(problems) == 0 || len(problems) > maxProblems+1 {
				t.Fatalf("%d problems: %.200v", len(problems), err)
			}
			for _, p := range problems {
				if len(p.String()) > 400 {
					t.Errorf("a message of %d bytes: %.200s…", len(p.String()), p)
				}
			}
			if d := time.Since(start); d > 10*time.Second {
				t.Errorf("took %v", d)
			}
		})
	}
}

// No message repeats what could be a secret in the wrong place.
func TestProblemsShowNoSecrets(t *testing.T) {
	const canary = "canary/Zm9vYmFy+c2VjcmV0=!"
	var data []byte
	for _, name := range []string{"proxyTokens: [%s]", "sourceCIDRs: [%s]", "%s: 1", "? [%s]\n: 1", "sourceCIDRs: %s", "proxyTokens: {%s: %s}"} {
		data = fmt.Appendf(data[:0], "apiVersion: %[1]s\nsandboxes:\n  - id: %[1]s\n    team: %[1]s\n    template: %[1]s\n    network: %[1]s\n    identify: {%[2]s}\n",
			`"`+canary+`"`, strings.ReplaceAll(name, "%s", `"`+canary+`"`))
		_, _, err := Compile([]File{{"p.yaml", data}})
		if err == nil {
			t.Fatalf("compiles:\n%s", data)
		}
		if strings.Contains(err.Error(), "canary") || strings.Contains(err.Error(), "Zm9v") {
			t.Errorf("%s", err)
		}
	}
}

func FuzzCompile(f *testing.F) {
	for _, dir := range []string{"testdata/bad/*.yaml", "../configs/policy/*.yaml"} {
		names, err := filepath.Glob(dir)
		if err != nil || len(names) == 0 {
			f.Fatalf("%s: %v", dir, err)
		}
		for _, name := range names {
			data, err := os.ReadFile(name)
			if err != nil {
				f.Fatal(err)
			}
			f.Add(data)
		}
	}
	f.Add([]byte(teams))
	f.Fuzz(func(t *testing.T, data []byte) {
		set, _, err := Compile([]File{{"p.yaml", data}})
		if err != nil {
			var problems Problems
			if set != nil || !errors.As(err, &problems) || len(problems) == 0 {
				t.Fatalf("%v, %v", set, err)
			}
			for _, p := range problems {
				if p.File != "p.yaml" || p.Line < 1 || p.Message == "" || len(p.Message) > 300 {
					t.Fatalf("%#v", p)
				}
			}
			return
		}
		if _, err := json.Marshal(set.View()); err != nil {
			t.Fatal(err)
		}
		for _, sb := range set.Sandboxes() {
			for p := Undetermined; p <= MongoDB; p++ {
				fl := &Flow{Sandbox: sb, Host: "api.code.example.com", Port: 443, Protocol: p, Request: p == TLS || p == SSH, Method: "GET", Path: "/a/b.git/info/refs",
					SSH: SSHRequest{SSHExec, "git-upload-pack 'a/b'"}}
				d := set.Decide(fl)
				if _, told := set.explain(fl); !told.Same(&d) {
					t.Fatalf("Decide %s, Explain %s", d, told)
				}
			}
		}
	})
}
