package main

import (
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// benchPolicy: all of *.bench.test gets the credential, but pass.bench.test is relayed. The
// guarded names have each a credential of their own, so that there are values to look for
// in the requests to all others.
const benchPolicy = `apiVersion: egressd/v1
sandboxes:
  - id: bench
    identify: {sourceCIDRs: [127.0.0.0/8]}
    network:
      mode: block-all
      egress:
        trafficRules:
          - {name: bench, action: allow, domains: ["*.bench.test"]}
        credentialRules:
          - {name: token, credentialRef: token, protocol: https, domains: [%[1]s]}
%[2]s      credentialBindings:
%[3]s        - ref: token
          sourceRef: bench
          projection:
            type: http_headers
            httpHeaders: {headers: [{name: Authorization, valueTemplate: "Bearer {{ .token }}"}]}
`

const (
	guards    = 8
	scrubName = "scrub.bench.test"
)

func guardName(i int) string { return fmt.Sprintf("guard%d.bench.test", i) }

// newRules are what a build before issue 3 does not know.
const newRules = `          - {name: scrubbed, credentialRef: token, protocol: https, domains: [` + scrubName + `], scrub: true}
          - {name: shell, credentialRef: shell, protocol: ssh, domains: [` + sshName + `]}
`

const newBindings = `        - ref: shell
          sourceRef: shell
          projection:
            type: ssh_proxy
            sshProxy:
              upstreamUsername: git
              sandboxPublicKeys: ["%s"]
              knownHosts: ["[%s]:%d %s"]
`

const benchConfig = `apiVersion: egressd/v1
stateDir: %[1]s/state
listen: {proxy: "%[2]s", ops: "%[3]s"}
policy: {dir: %[1]s/policy}
intercept: {caCertFile: %[4]s/ca.pem, caKeyFile: %[4]s/ca.key}
upstream:
  extraCAFiles: [%[4]s/origin.pem]
  allowCIDRs: [127.0.0.0/8]
  hosts:
%[5]slimits: {connections: 30000, connectionsPerSandbox: 30000, idleTimeout: 10m}
log: {level: warn, format: json}
`

func coldName(round, i int) string { return fmt.Sprintf("r%d-c%d.cold.bench.test", round, i) }

// names are all that the daemon can resolve.
func (b *bench) names() []string {
	out := []string{passName, scrubName, sshName, "api.bench.test", "once.bench.test"}
	for i := range guards {
		out = append(out, guardName(i))
	}
	return append(out, b.coldNames()...)
}

func (b *bench) coldNames() []string {
	var out []string
	per := b.coldPerRound()
	for r := range b.plan.rounds {
		for i := range per {
			out = append(out, coldName(r, i))
		}
	}
	return out
}

func (b *bench) coldPerRound() int { return max(1, b.plan.coldNames/b.plan.rounds) }

// startEgressd runs the binary with a state directory of its own: policy, audit, metrics
// and leak guard on, and its sources given over the API as an operator does. wrapper is a
// command that runs the rest of its arguments (strace).
func (b *bench) startEgressd(name, bin string, wrapper ...string) (*target, error) {
	dir, err := os.MkdirTemp(b.dir, "egressd-")
	if err != nil {
		return nil, err
	}
	proxy, ops, err := freePorts()
	if err != nil {
		return nil, err
	}
	if err := b.writeConfig(dir, proxy, ops, name == egressd); err != nil {
		return nil, err
	}
	bin, err = filepath.Abs(bin)
	if err != nil {
		return nil, err
	}
	t, out, err := b.spawn(name, nil, append(wrapper, bin, "serve", "--config", filepath.Join(dir, "egressd.yaml"))...)
	if err != nil {
		return nil, err
	}
	_ = out.Close()
	t.addr, t.ops = proxy, ops
	t.wait()
	if err := waitReady(b.ctx, "http://"+ops+"/readyz", t.gone); err != nil {
		t.stop()
		return nil, fmt.Errorf("%w: %s", err, b.log(name))
	}
	if err := b.addSources(t, bin, dir); err != nil {
		t.stop()
		return nil, err
	}
	return t, nil
}

// policy is that of the run; isNew adds what only a build since issue 3 understands.
func (b *bench) policy(isNew bool) string {
	var rules, bindings strings.Builder
	for i := range guards {
		fmt.Fprintf(&rules, "          - {name: guard%[1]d, credentialRef: guard%[1]d, protocol: https, domains: [%[2]s]}\n", i, guardName(i))
		fmt.Fprintf(&bindings, "        - {ref: guard%[1]d, sourceRef: guard%[1]d, projection: {type: http_headers, httpHeaders: {headers: [{name: Authorization, valueTemplate: \"{{ .token }}\"}]}}}\n", i)
	}
	if isNew {
		rules.WriteString(newRules)
		fmt.Fprintf(&bindings, newBindings, authorized(b.sshKeys.sandbox), sshName, b.ssh.port(), authorized(b.sshKeys.host))
	}
	return fmt.Sprintf(benchPolicy, `api.bench.test, once.bench.test, "*.cold.bench.test"`, rules.String(), bindings.String())
}

func (b *bench) writeConfig(dir, proxy, ops string, isNew bool) error {
	var hosts strings.Builder
	for _, n := range b.names() {
		fmt.Fprintf(&hosts, "    %s: 127.0.0.1\n", n)
	}
	if err := os.Mkdir(filepath.Join(dir, "policy"), 0o700); err != nil {
		return err
	}
	for name, text := range map[string]string{
		"policy/bench.yaml": b.policy(isNew),
		"egressd.yaml":      fmt.Sprintf(benchConfig, dir, proxy, ops, b.dir, hosts.String()),
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			return err
		}
	}
	return nil
}

// addSources gives the daemon its secrets and makes it use the guarded ones once: it
// looks for those that it has in memory.
func (b *bench) addSources(t *target, bin, dir string) error {
	add := func(stdin string, args ...string) error {
		cmd := exec.CommandContext(b.ctx, bin, append([]string{"source", "add"}, args...)...)
		cmd.Env = append(os.Environ(), "EGRESSD_ADDR=unix:"+filepath.Join(dir, "state", "api.sock"))
		cmd.Stdin = strings.NewReader(stdin)
		out, err := cmd.CombinedOutput()
		if err != nil {
			err = fmt.Errorf("source add %s: %w: %s", args[0], err, out)
		}
		return err
	}
	if err := add(token, "bench"); err != nil {
		return err
	}
	if t.name == egressd {
		if err := add("", "shell", "--ssh-key", filepath.Join(b.dir, sshUserFile)); err != nil {
			return err
		}
	}
	for i := range guards {
		if err := add(rand.Text()+rand.Text(), fmt.Sprintf("guard%d", i)); err != nil {
			return err
		}
		c, err := b.dialer(t).dial(b.ctx, guardName(i))
		if err != nil {
			return err
		}
		if err := c.small(); !errors.Is(err, errNotInjected) { // by the origin, which wants the other credential
			return fmt.Errorf("%s: %w", guardName(i), err)
		}
		_ = c.NetConn().Close()
	}
	return nil
}

func freePorts() (a, b string, err error) {
	var out [2]string
	for i := range out {
		ln, err := net.Listen("tcp4", "127.0.0.1:0")
		if err != nil {
			return "", "", err
		}
		defer func() { _ = ln.Close() }() // held until both are known
		out[i] = ln.Addr().String()
	}
	return out[0], out[1], nil
}
