package main

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// benchPolicy: all of *.bench.test gets the credential, but pass.bench.test is relayed.
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
          - {name: token, credentialRef: token, protocol: https, domains: [%s]}
      credentialBindings:
        - ref: token
          sourceRef: bench
          projection:
            type: http_headers
            httpHeaders: {headers: [{name: Authorization, valueTemplate: "Bearer {{ .token }}"}]}
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
	out := []string{passName, "api.bench.test", "once.bench.test"}
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

// startEgressd runs the binary with a state directory of its own: policy, audit and
// metrics on, and one static_headers source, given over the API as an operator does.
// wrapper is a command that runs the rest of its arguments (strace).
func (b *bench) startEgressd(wrapper ...string) (*target, error) {
	dir, err := os.MkdirTemp(b.dir, "egressd-")
	if err != nil {
		return nil, err
	}
	proxy, ops, err := freePorts()
	if err != nil {
		return nil, err
	}
	if err := b.writeConfig(dir, proxy, ops); err != nil {
		return nil, err
	}
	bin, err := filepath.Abs(b.bin)
	if err != nil {
		return nil, err
	}
	t, out, err := b.spawn(egressd, nil, append(wrapper, bin, "serve", "--config", filepath.Join(dir, "egressd.yaml"))...)
	if err != nil {
		return nil, err
	}
	_ = out.Close()
	t.addr, t.ops = proxy, ops
	t.wait()
	if err := waitReady(b.ctx, "http://"+ops+"/readyz", t.gone); err != nil {
		t.stop()
		return nil, fmt.Errorf("%w: %s", err, b.log(egressd))
	}
	if err := addSource(b.ctx, bin, dir); err != nil {
		t.stop()
		return nil, err
	}
	return t, nil
}

func (b *bench) writeConfig(dir, proxy, ops string) error {
	var hosts, domains strings.Builder
	domains.WriteString(`api.bench.test, once.bench.test, "*.cold.bench.test"`)
	for _, n := range b.names() {
		fmt.Fprintf(&hosts, "    %s: 127.0.0.1\n", n)
	}
	if err := os.Mkdir(filepath.Join(dir, "policy"), 0o700); err != nil {
		return err
	}
	for name, text := range map[string]string{
		"policy/bench.yaml": fmt.Sprintf(benchPolicy, domains.String()),
		"egressd.yaml":      fmt.Sprintf(benchConfig, dir, proxy, ops, b.dir, hosts.String()),
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			return err
		}
	}
	return nil
}

func addSource(ctx context.Context, bin, dir string) error {
	cmd := exec.CommandContext(ctx, bin, "source", "add", "bench")
	cmd.Env = append(os.Environ(), "EGRESSD_ADDR=unix:"+filepath.Join(dir, "state", "api.sock"))
	cmd.Stdin = strings.NewReader(token)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("source add: %w: %s", err, out.String())
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
