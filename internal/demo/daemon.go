package main

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// The policy of the demo: whoever comes from this machine is one sandbox, it reaches one
// host, and what it sends there leaves with the token.
const policyYAML = `apiVersion: egressd/v1
sandboxes:
  - id: demo
    identify: {sourceCIDRs: [127.0.0.0/8]}
    network:
      mode: block-all
      egress:
        trafficRules:
          - {name: the-api, action: allow, domains: [api.demo.test]}
        credentialRules:
          - {name: the-token, credentialRef: api, protocol: https, domains: [api.demo.test]}
      credentialBindings:
        - ref: api
          sourceRef: demo-api
          projection:
            type: http_headers
            httpHeaders: {headers: [{name: Authorization, valueTemplate: "Bearer {{ .token }}"}]}
`

// The origin is on loopback, which egressd does not dial unless it is told to.
const configYAML = `apiVersion: egressd/v1
stateDir: %[1]s/state
listen: {proxy: "%[2]s", ops: "%[3]s"}
policy: {dir: %[1]s/policy}
upstream:
  hosts: {%[4]s: 127.0.0.1}
  extraCAFiles: [%[1]s/origin.pem]
  allowCIDRs: [127.0.0.0/8]
log: {level: info, format: console}
`

// daemon is a running `egressd serve` and the command line to it.
type daemon struct {
	bin, dir   string
	proxy, ops string // host:port
	cmd        *exec.Cmd
	gone       chan struct{}
}

func startDaemon(ctx context.Context, bin, dir string, o *origin) (*daemon, error) {
	d := &daemon{bin: bin, dir: dir, gone: make(chan struct{})}
	var err error
	if d.proxy, d.ops, err = freePorts(); err != nil {
		return nil, err
	}
	if err := os.Mkdir(filepath.Join(dir, "policy"), 0o700); err != nil {
		return nil, err
	}
	for file, text := range map[string]string{
		"policy/demo.yaml": policyYAML,
		"origin.pem":       string(o.caPEM()),
		"egressd.yaml":     fmt.Sprintf(configYAML, dir, d.proxy, d.ops, name),
	} {
		if err := os.WriteFile(filepath.Join(dir, file), []byte(text), 0o600); err != nil {
			return nil, err
		}
	}
	logFile, err := os.Create(filepath.Join(dir, "daemon.log"))
	if err != nil {
		return nil, err
	}
	defer func() { _ = logFile.Close() }()
	// Not bound to ctx: the daemon is to drain at the end, not to be killed.
	d.cmd = exec.Command(bin, "serve", "--config", filepath.Join(dir, "egressd.yaml"))
	d.cmd.Stdout, d.cmd.Stderr = logFile, logFile
	d.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // Ctrl-C is ours to pass on
	if err := d.cmd.Start(); err != nil {
		return nil, err
	}
	go func() {
		defer close(d.gone)
		_ = d.cmd.Wait()
	}()
	if err := d.ready(ctx); err != nil {
		d.stop()
		return nil, fmt.Errorf("%w\n%s", err, d.tail())
	}
	return d, nil
}

// freePorts finds two: the daemon cannot take port 0, its clients must know it.
func freePorts() (a, b string, err error) {
	var out [2]string
	for i := range out {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return "", "", err
		}
		defer func() { _ = ln.Close() }() // both are held until both are known
		out[i] = ln.Addr().String()
	}
	return out[0], out[1], nil
}

func (d *daemon) ready(ctx context.Context) error {
	client := &http.Client{Timeout: time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	for end := time.Now().Add(15 * time.Second); ; {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+d.ops+"/readyz", nil)
		if err != nil {
			return err
		}
		if resp, err := client.Do(req); err == nil {
			_ = resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				return nil
			}
		}
		select {
		case <-d.gone:
			return fmt.Errorf("the daemon did not start")
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(30 * time.Millisecond):
		}
		if time.Now().After(end) {
			return fmt.Errorf("the daemon is not ready after 15 s")
		}
	}
}

// stop drains the daemon and kills it when it does not end.
func (d *daemon) stop() {
	_ = d.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-d.gone:
	case <-time.After(10 * time.Second):
		_ = d.cmd.Process.Kill()
		<-d.gone
	}
}

func (d *daemon) addr() string { return "unix:" + filepath.Join(d.dir, "state", "api.sock") }

// cli runs an egressd command against the daemon; stdin carries a secret, if there is one.
func (d *daemon) cli(ctx context.Context, stdin string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, d.bin, args...)
	cmd.Env = append(os.Environ(), "EGRESSD_ADDR="+d.addr())
	cmd.Stdin = strings.NewReader(stdin)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("egressd %s: %w: %s", strings.Join(args, " "), err, out.String())
	}
	return out.String(), nil
}

// tail is the end of the daemon's log, for an error message.
func (d *daemon) tail() string {
	b, err := os.ReadFile(filepath.Join(d.dir, "daemon.log"))
	if err != nil {
		return ""
	}
	return "the daemon's log:\n" + string(b[max(0, len(b)-4000):])
}
