package inject

import (
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/egressd/egressd/policy"
	"github.com/egressd/egressd/source/static"
)

func TestCompileRefuses(t *testing.T) {
	typed := func(p policy.ProjectionType, headers ...string) *policy.CredentialRule {
		r := rule(0, headers...)
		r.Binding.Projection.Type = p
		return r
	}
	for _, tc := range []struct {
		name string
		rule *policy.CredentialRule
		kind KindOf
		want string // "" when it compiles
	}{
		{"headers on headers", rule(0, "X-Id: {{ .anything }}"), kind(static.Headers), ""},
		{"headers on unknown", rule(0, "X-Id: {{ .anything }}"), unknown, ""},
		{"headers on login", rule(0, "X-Id: {{ .username }}-{{ .password }}"), kind(static.UsernamePassword), ""},
		{"field that a login lacks", rule(0, "X-Id: {{ .username }}", "X-Two: {{ .token }}"), kind(static.UsernamePassword),
			"p.yaml:11:0: binding gh: header X-Two: the source has no field token: it has username, password"},
		{"headers on certificate", rule(0, "X-Id: {{ .a }}"), kind(static.TLSClientCertificate), "p.yaml:7:0: binding gh: projection http_headers does not suit source gh, which is static_tls_client_certificate"},
		{"headers on ssh key", rule(0, "X-Id: {{ .a }}"), kind(static.SSHPrivateKey), "does not suit"},
		{"headers on a kind to come", rule(0, "X-Id: {{ .a }}"), kind("vault"), "does not suit"},
		{"login on login", typed(policy.UsernamePassword), kind(static.UsernamePassword), ""},
		{"login on headers", typed(policy.UsernamePassword), kind(static.Headers), "does not suit"},
		{"certificate on certificate", typed(policy.TLSClientCertificate), kind(static.TLSClientCertificate), ""},
		{"certificate on headers", typed(policy.TLSClientCertificate), kind(static.Headers), "does not suit"},
		{"no headers", rule(0), unknown, "projection has no headers"},
		{"bad template", rule(0, "X-Id: {{ .a"), unknown, "p.yaml:10:0: binding gh: header X-Id: template does not parse"},
		{"loop", rule(0, "X-Id: {{ range .a }}{{ end }}"), unknown, "no loop"},
		{"bad name", rule(0, "X Id: x"), unknown, "header name is not a token"},
		{"empty name", rule(0, ": x"), unknown, "header name is not a token"},
		{"host", rule(0, "hOst: x"), unknown, "cannot be projected"},
		{"length", rule(0, "Content-Length: 1"), unknown, "cannot be projected"},
		{"framing", rule(0, "Transfer-Encoding: x"), unknown, "cannot be projected"},
		{"hop by hop", rule(0, "Connection: x"), unknown, "cannot be projected"},
		{"proxy", rule(0, "Proxy-Authorization: x"), unknown, "cannot be projected"},
		{"twice", rule(0, "X-Id: x", "x_id: y"), unknown, "p.yaml:11:0: binding gh: header x_id is projected twice"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			table, err := compile([]*policy.CredentialRule{tc.rule}, serve(nil), tc.kind)
			if tc.want == "" {
				if err != nil {
					t.Error(err)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), tc.want) || table != nil {
				t.Errorf("%v, want %s", err, tc.want)
			}
		})
	}
}

// What compile believes of kinds is what the kinds say of themselves.
func TestOffersAgreesWithKinds(t *testing.T) {
	for _, k := range static.Kinds() {
		for _, p := range []policy.ProjectionType{
			policy.HTTPHeaders, policy.UsernamePassword, policy.TLSClientCertificate, policy.PlaceholderSubstitution, policy.AWSSigV4, policy.SSHProxy,
		} {
			says := false
			for _, name := range k.Projections {
				says = says || name == string(p)
			}
			vars, open, suits := offers(k.Name, p)
			if suits != says || open != k.OpenVars || cmp.Diff(k.TemplateVars, vars) != "" {
				t.Errorf("%s, %s: suits %v, open %v, vars %v", k.Name, p, suits, open, vars)
			}
		}
	}
}

func TestCompileNamesAllFaultsOnce(t *testing.T) {
	bad, other := rule(0, "X-Id: {{"), rule(2, "Host: x", "X-A: {{ . }}")
	shared := *bad
	shared.Index, shared.Team = 1, "second"
	_, err := compile([]*policy.CredentialRule{bad, &shared, other}, serve(nil), unknown)
	var problems policy.Problems
	if !errors.As(err, &problems) || len(problems) != 3 {
		t.Fatalf("%v", err)
	}
	for i, line := range []int{10, 10, 11} {
		if problems[i].File != "p.yaml" || problems[i].Line != line {
			t.Errorf("%+v", problems[i])
		}
	}
}

func TestInjectorOfForeignRules(t *testing.T) {
	f := serve(material(1, map[string]string{"token": "x"}))
	mine := rule(0, "X-Id: {{ .token }}")
	table, err := compile([]*policy.CredentialRule{mine}, f, unknown)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := table.Injector(mine).Resolve(t.Context(), "good.test", 443); err != nil {
		t.Fatal(err)
	}
	otherTeam := *mine
	otherTeam.Team = "evil"
	for name, in := range map[string]*Injector{
		"nil": table.Injector(nil), "other generation": table.Injector(rule(0, "X-Id: {{ .token }}")), "out of range": table.Injector(rule(1)),
		"negative": table.Injector(rule(-1)), "zero table": (&Table{}).Injector(mine), "no table": (*Table)(nil).Injector(mine),
		"F05 other team": table.Injector(&otherTeam),
	} {
		if in == nil {
			t.Errorf("%s: nil", name)
			continue
		}
		if p, err := in.Resolve(t.Context(), "good.test", 443); err == nil || p != nil {
			t.Errorf("%s: %v, %v", name, p, err)
		}
	}
}

func TestMissingKeys(t *testing.T) {
	one, two, pinned, elsewhere := rule(0, "X-A: {{ .a }}{{ .b }}", "X-C: {{ .c }}"), rule(1, "X-D: {{ .d }}"), rule(2, "X-E: {{ .e }}"), rule(3, "X-F: {{ .f }}")
	two.Binding.Ref, pinned.Binding.Version, elsewhere.Team = "second", 4, "other"
	again := *one
	again.Index = 4
	table, err := compile([]*policy.CredentialRule{one, two, pinned, elsewhere, &again}, serve(nil), unknown)
	if err != nil {
		t.Fatal(err)
	}
	want := []Missing{{"b", "gh", "p.yaml", 10}, {"d", "second", "p.yaml", 10}, {"c", "gh", "p.yaml", 11}}
	if diff := cmp.Diff(want, table.MissingKeys("acme", "gh", []string{"a"})); diff != "" {
		t.Error(diff)
	}
	if got := table.MissingKeys("acme", "gh", []string{"a", "b", "c", "d"}); got != nil {
		t.Errorf("%v", got)
	}
	if got := (*Table)(nil).MissingKeys("acme", "gh", nil); got != nil {
		t.Errorf("%v", got)
	}
}

func TestCheckDestinations(t *testing.T) {
	r := rule(0, "X-Id: x")
	r.Domains = []string{"api.good.test", "*.good.test"}
	if err := CheckDestinations(r, nil); err != nil {
		t.Errorf("no bound: %v", err)
	}
	if err := CheckDestinations(r, []string{"*.good.test"}); err != nil {
		t.Errorf("within: %v", err)
	}
	err := CheckDestinations(r, []string{"api.good.test"})
	if err == nil || err.Error() != "p.yaml:3: rule rule-0: source gh may not be sent to *.good.test" {
		t.Errorf("%v", err)
	}
	r.Domains = nil
	if err := CheckDestinations(r, []string{"*.good.test"}); err == nil {
		t.Error("a rule without domains is within a bound")
	}
	if err := CheckDestinations(r, []string{"*"}); err == nil {
		t.Error("a bound that is none")
	}
}

// The whole way from YAML.
func TestCompilePolicy(t *testing.T) {
	set, _, err := policy.Compile([]policy.File{{Name: "p.yaml", Data: []byte(`apiVersion: egressd/v1
sandboxes:
  - id: agent
    team: acme
    identify: {sourceCIDRs: [10.0.0.1/32]}
    network:
      egress:
        trafficRules: [{name: good, action: allow, domains: [good.test], ports: [{port: 443}]}]
        credentialRules: [{name: good, credentialRef: gh, protocol: https, domains: [good.test]}]
      credentialBindings:
        - ref: gh
          sourceRef: gh
          projection:
            type: http_headers
            httpHeaders: {headers: [{name: Authorization, valueTemplate: "Bearer {{ .token }}"}]}
`)}})
	if err != nil {
		t.Fatal(err)
	}
	f := serve(material(1, map[string]string{"token": "x"}))
	table, err := Compile(set, f, kind(static.Headers))
	if err != nil {
		t.Fatal(err)
	}
	rules := set.CredentialRules()
	if len(rules) != 1 {
		t.Fatalf("%d rules", len(rules))
	}
	p, err := table.Injector(rules[0]).Resolve(t.Context(), "good.test", 443)
	if err != nil || p.Headers[0].Value != "Bearer x" {
		t.Errorf("%v, %v", p, err)
	}
	if f.asked.Load().Team != "acme" {
		t.Errorf("asked for %+v", f.asked.Load())
	}
	_, err = Compile(set, f, kind(static.UsernamePassword))
	if err == nil || !strings.Contains(err.Error(), "p.yaml:15") {
		t.Errorf("%v", err)
	}
	empty, err := Compile(nil, f, unknown)
	if err != nil || empty == nil {
		t.Errorf("of no policy: %v, %v", empty, err)
	}
}
