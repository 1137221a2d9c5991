package inject

import (
	"strings"
	"testing"

	"github.com/egressd/egressd/policy"
)

// The whole way of each projection from YAML.
func TestCompilePolicyOfEveryProjection(t *testing.T) {
	key, host := authorized(sshSigner(t).PublicKey()), authorized(sshSigner(t).PublicKey())
	text := strings.NewReplacer("SANDBOX", key, "HOSTKEY", host).Replace(`apiVersion: egressd/v1
sandboxes:
  - id: agent
    team: acme
    identify: {sourceCIDRs: [10.0.0.1/32]}
    network:
      egress:
        trafficRules: [{name: good, action: allow, domains: [good.test]}]
        credentialRules:
          - {name: a, credentialRef: subst, protocol: https, domains: [good.test], httpMatch: {pathPrefixes: [/a]}}
          - {name: b, credentialRef: aws, protocol: https, domains: [good.test], httpMatch: {pathPrefixes: [/b]}}
          - {name: c, credentialRef: ssh, protocol: ssh, domains: [good.test], ports: [{port: 22}]}
          - {name: d, credentialRef: login, protocol: redis, domains: [good.test], ports: [{port: 6379}], allowCleartext: true}
      credentialBindings:
        - ref: subst
          sourceRef: s
          projection:
            type: placeholder_substitution
            placeholderSubstitution:
              replacements:
                - {placeholder: PLACEHOLDER_x1, valueTemplate: "{{ .v }}", locations: [header, query, path, body]}
        - {ref: aws, sourceRef: s, projection: {type: aws_sigv4, awsSigv4: {region: eu-central-1, service: s3}}}
        - {ref: login, sourceRef: s, projection: {type: username_password}}
        - ref: ssh
          sourceRef: s
          projection:
            type: ssh_proxy
            sshProxy: {upstreamUsername: git, sandboxPublicKeys: ["SANDBOX me"], knownHosts: ["good.test HOSTKEY"]}
`)
	set, _, err := policy.Compile([]policy.File{{Name: "p.yaml", Data: []byte(text)}})
	if err != nil {
		t.Fatal(err)
	}
	m := material(1, map[string]string{"v": "fake-value", "username": "me", "password": "fake-password", "accessKeyId": "FAKEKEYID", "secretAccessKey": "fake-key"})
	m.SSH = sshSigner(t)
	table, err := Compile(set, serve(m), unknown)
	if err != nil {
		t.Fatal(err)
	}
	seen := 0
	for _, r := range set.CredentialRules() {
		p, err := table.Injector(r).Resolve(t.Context(), "good.test", 443)
		if err != nil {
			t.Fatalf("%s: %v", r.Name, err)
		}
		var ok bool
		switch r.Name {
		case "a":
			_, query, n, err := p.Placeholders.Target("/", "x=PLACEHOLDER_x1")
			ok = query == "x=fake-value" && n == 1 && err == nil && p.Placeholders.InBody() && p.Placeholders.InHeader()
		case "b":
			ok = p.AWS != nil && p.AWS.Region == "eu-central-1" && p.AWS.Service == "s3"
		case "c":
			ok = p.SSH != nil && p.SSH.Username == "git" && authorized(p.SSH.SandboxKeys[0]) == key
		case "d":
			ok = p.Login != nil && p.Login.Username == "me"
		}
		if !ok {
			t.Errorf("rule %s: %v", r.Name, p)
		}
		seen++
	}
	if seen != 4 {
		t.Errorf("%d rules", seen)
	}
}
