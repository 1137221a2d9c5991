package policy

import (
	"net/http"
	"slices"
	"testing"
)

func TestExplainNamesDisabledRules(t *testing.T) {
	set, _, err := Compile([]File{{Name: "p.yaml", Data: []byte(`apiVersion: egressd/v1
sandboxes:
  - id: a
    identify: {sourceCIDRs: [10.0.0.1/32]}
    network:
      mode: allow-all
      egress:
        credentialRules:
          - {name: off, credentialRef: c, domains: [good.test], rollout: disabled}
          - {name: elsewhere, credentialRef: c, domains: [other.test], rollout: disabled}
      credentialBindings:
        - {ref: c, sourceRef: s, projection: {type: username_password}}
`)}})
	if err != nil {
		t.Fatal(err)
	}
	f := &Flow{Sandbox: set.Sandbox("a"), Host: "good.test", Port: 443, Protocol: TLS, Request: true, Method: "GET", Path: "/", Header: http.Header{}}
	want := Step{Stage: "credential", Rule: "off", File: "p.yaml", Line: 9, Detail: "rollout is disabled"}
	steps := set.Explain(f)
	if !slices.Contains(steps, want) {
		t.Errorf("no step says that the rule is disabled: %+v", steps)
	}
	if slices.ContainsFunc(steps, func(s Step) bool { return s.Rule == "elsewhere" }) {
		t.Errorf("a disabled rule for another host is named: %+v", steps)
	}
	if d := set.Decide(f); d.Credential != nil || d.StripClientAuth {
		t.Errorf("a disabled rule acts: %+v", d)
	}
}
