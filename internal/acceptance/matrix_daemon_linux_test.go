package acceptance

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/egressd/egressd/internal/redirect"
	"github.com/egressd/egressd/internal/testbed"
)

// Where egressd listens on the router.
const (
	matrixProxyPort    = 3128
	matrixRedirectPort = 15001
	matrixTProxyPort   = 15002
	matrixDNSPort      = 15053
)

const matrixPlaceholder = "matrix-placeholder-1"

// Upper-case words stand for a kind's two names.
const matrixPolicy = `apiVersion: egressd/v1
sandboxes:
  - id: one
    identify: {sourceCIDRs: ["10.77.1.0/24", "fd77:1::/64"], proxyTokens: ["TOKEN"]}
    network:
      egress:
        trafficRules:
          - {name: no-login, action: deny, domains: DENIED, appProtocols: [ssh, redis, mqtt, postgres, socks5]}
          - {name: known-only, action: allow, domains: DENIED}
          - {name: all, action: allow, domains: FREE, ports: [{port: 1, endPort: 65535}]}
          - {name: headers, action: allow, domains: HEADERS}
          - {name: login, action: allow, domains: LOGIN}
          - {name: placeholder, action: allow, domains: PLACEHOLDER}
          - {name: aws, action: allow, domains: AWS}
          - {name: cert, action: allow, domains: CERTAIN}
          - {name: cert-only, action: allow, domains: CERTONLY}
          - {name: ssh, action: allow, domains: SSH, ports: [{port: 22}], appProtocols: [ssh]}
          - {name: ssh-limited, action: allow, domains: LIMITED, ports: [{port: 22}]}
        protocolRules:
          - {name: no-requests, protocol: http, domains: DENIED, http: {paths: {deniedPrefixes: [/]}}}
          - {name: echo-only, protocol: ssh, domains: LIMITED, ssh: {commands: {allowed: ["echo *"]}}}
        credentialRules:
          - {name: headers, credentialRef: headers, domains: HEADERS}
          - {name: login, credentialRef: login, domains: LOGIN, allowCleartext: true}
          - {name: placeholder, credentialRef: placeholder, domains: PLACEHOLDER}
          - {name: aws, credentialRef: aws, domains: AWS}
          - {name: cert, credentialRef: cert, protocol: tls, domains: CERTAIN}
          - {name: redis-with-cert, credentialRef: certified, protocol: redis, domains: CERTAIN}
          - {name: mqtt-with-cert, credentialRef: certified, protocol: mqtt, domains: CERTAIN}
          - {name: postgres-with-cert, credentialRef: certified, protocol: postgres, domains: CERTAIN}
          - {name: cert-only, credentialRef: cert, protocol: tls, domains: CERTONLY}
          - {name: ssh, credentialRef: ssh, protocol: ssh, domains: SSH}
          - {name: ssh-limited, credentialRef: ssh, protocol: ssh, domains: LIMITED}
      credentialBindings:
        - {ref: headers, sourceRef: token, projection: {type: http_headers, httpHeaders: {headers: [{name: Authorization, valueTemplate: "Bearer {{ .token }}"}]}}}
        - {ref: login, sourceRef: login, projection: {type: username_password}}
        - {ref: certified, sourceRef: certified, projection: {type: username_password}}
        - ref: placeholder
          sourceRef: token
          projection: {type: placeholder_substitution, placeholderSubstitution: {replacements: [{placeholder: STANDIN, valueTemplate: "{{ .token }}", locations: [header]}]}}
        - {ref: aws, sourceRef: aws, projection: {type: aws_sigv4}}
        - {ref: cert, sourceRef: cert, projection: {type: tls_client_certificate}}
        - ref: ssh
          sourceRef: ssh
          projection: {type: ssh_proxy, sshProxy: {upstreamUsername: root, sandboxPublicKeys: ["SANDBOXKEY"], knownHosts: ["*.test HOSTKEY"]}}
`

func (w *matrixWorld) policy() string {
	pairs := []string{"SANDBOXKEY", w.read("sandbox.pub"), "HOSTKEY", w.sshd.HostKey, "STANDIN", matrixPlaceholder}
	for word, kind := range map[string]string{"DENIED": toDenied, "FREE": toFree, "HEADERS": toHeaders, "LOGIN": toLogin, "PLACEHOLDER": toPlaceholder,
		"AWS": toAWS, "CERTAIN": toCert, "CERTONLY": toCertOnly, "SSH": toSSH, "LIMITED": toLimited} {
		pairs = append(pairs, "domains: "+word+",", "domains: ["+matrixHost(kind, "4")+", "+matrixHost(kind, "6")+"],",
			"domains: "+word+"}", "domains: ["+matrixHost(kind, "4")+", "+matrixHost(kind, "6")+"]}")
	}
	return strings.NewReplacer(pairs...).Replace(matrixPolicy)
}

// sources are what egressd has: name, kind, block of the spec, fields.
func (w *matrixWorld) sources() []matrixSource {
	return []matrixSource{
		{"token", "static_headers", "staticHeaders", map[string]string{"token": w.token}},
		{"login", "static_username_password", "staticUsernamePassword", map[string]string{"username": w.real.User, "password": w.real.Password}},
		{"certified", "static_username_password", "staticUsernamePassword", map[string]string{"username": w.certified.User, "password": w.certified.Password}},
		{"aws", "aws_access_key", "awsAccessKey", map[string]string{"accessKeyId": w.aws.AccessKeyID, "secretAccessKey": w.aws.SecretAccessKey}},
		{"cert", "static_tls_client_certificate", "staticTLSClientCertificate",
			map[string]string{"certificatePem": testbed.CertPEM(w.cert), "privateKeyPem": testbed.KeyPEM(w.t, w.cert)}},
		{"ssh", "static_ssh_private_key", "staticSSHPrivateKey", map[string]string{"privateKeyPem": w.read("real") + "\n"}},
	}
}

type matrixSource struct {
	name, kind, block string
	fields            map[string]string
}

func (w *matrixWorld) hosts() map[string]string {
	out := map[string]string{}
	for _, kind := range matrixKinds() {
		for _, family := range []string{"4", "6"} {
			out[matrixHost(kind, family)] = matrixAddr(kind, family)
		}
	}
	return out
}

// matrixUpstream are the flags by which egressd reaches the world.
func (w *matrixWorld) upstream() []string {
	return []string{"--upstream-allow-cidrs", "192.0.2.0/24,2001:db8:77::/64"}
}

// serve starts the daemon on the router, with its sources.
func (w *matrixWorld) serve() *daemon {
	t := w.t
	t.Helper()
	d := install(t, settings{ca: w.ca, hosts: w.hosts(), policy: w.policy()})
	args := append([]string{"serve", "--config", d.path("egressd.yaml"), "--listen-proxy", fmt.Sprintf(":%d", matrixProxyPort),
		"--listen-redirect", fmt.Sprintf(":%d", matrixRedirectPort), "--listen-tproxy", fmt.Sprintf(":%d", matrixTProxyPort),
		"--listen-dns", fmt.Sprintf(":%d", matrixDNSPort)}, w.upstream()...)
	d.cmd = w.net.Router.Command(t, egressd, args...)
	d.cmd.Env = plainEnv()
	d.cmd.Stderr, d.cmd.Stdout = &d.errout, &d.errout
	if err := d.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	cmd, gone := d.cmd, make(chan struct{})
	d.gone = gone
	go func() {
		defer close(gone)
		d.exit = cmd.Wait()
	}()
	t.Cleanup(func() {
		if d.running() {
			d.stop()
		}
	})
	for end := time.Now().Add(20 * time.Second); !d.readAddresses(0); time.Sleep(5 * time.Millisecond) {
		if !d.running() || time.Now().After(end) {
			t.Fatalf("egressd serve does not start:\n%s", d.tail())
		}
	}
	d.api = socketClient(d.path("state/api.sock"))
	t.Cleanup(d.api.CloseIdleConnections)
	d.roots = d.want(http.StatusOK, http.MethodGet, "/ca.pem", nil).body
	for _, s := range w.sources() {
		fields := any(s.fields)
		if s.name == "token" {
			fields = map[string]any{"values": s.fields}
		}
		d.add(s.name, s.kind, map[string]any{s.block: fields})
	}
	return d
}

// redirect brings what the sandbox sends to the listener of a way.
func (w *matrixWorld) redirect(t *testing.T, way string) {
	t.Helper()
	spec := redirect.Spec{Mode: redirect.NAT, Port: matrixRedirectPort, DNSPort: matrixDNSPort, ProxyPort: matrixProxyPort, Interfaces: []string{testbed.SandboxLink}}
	if way == wayTProxy {
		spec.Mode, spec.Port = redirect.TProxy, matrixTProxyPort
	}
	w.net.Router.Do(t, func() {
		if err := redirect.Install(spec); err != nil {
			t.Fatal(err)
		}
	})
}

// matrixLine is what of an audit line has to be the same by every way.
type matrixLine struct {
	Sandbox, Destination, Address, Protocol, Method, Path          string
	Rule, CredentialRule, Source, ClientCertRule, ClientCertSource string
	Version, ClientCertVersion                                     uint64
	Status                                                         int
	Outcome, Code, Detail                                          string
}

// matrixLines reads an audit log from a place on, by destination; only lines of one way.
func matrixLines(b []byte, way string) (map[string][]matrixLine, error) {
	out := map[string][]matrixLine{}
	for text := range bytes.Lines(b) {
		var l struct {
			matrixLine
			Way string
		}
		if !bytes.HasSuffix(text, []byte("\n")) {
			break // being written
		}
		if err := json.Unmarshal(text, &l); err != nil {
			return nil, fmt.Errorf("%s: %w", text, err)
		}
		if l.Way == way {
			out[l.Destination] = append(out[l.Destination], l.matrixLine)
		}
	}
	for _, lines := range out {
		slices.SortFunc(lines, func(a, b matrixLine) int { return strings.Compare(fmt.Sprint(a), fmt.Sprint(b)) })
	}
	return out, nil
}

// run has a sandbox's program run the plan by its way, and gives what it printed and which
// decisions egressd wrote down.
func (w *matrixWorld) run(t *testing.T, d *daemon, p *matrixPlan) (map[string]string, map[string][]matrixLine) {
	t.Helper()
	text, err := json.Marshal(p)
	if err != nil {
		t.Fatal(err)
	}
	plan := w.file("plan.json", string(text))
	ctx, cancel := context.WithTimeout(t.Context(), 90*time.Second)
	defer cancel()
	var cmd *exec.Cmd
	log, from, way := d.path("state/audit.jsonl"), 0, p.Way
	if p.Way == wayIsolate {
		log, way = filepath.Join(t.TempDir(), "audit.jsonl"), wayRedirect
		cmd = w.isolated(ctx, d, log, self(t), plan)
	} else {
		from = len(d.audit())
		cmd = w.inSandbox(ctx, d, p.Family, self(t), plan)
	}
	cmd.Env = append(cmd.Env, childMode+"=matrix")
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err = cmd.Run()
	results := map[string]string{}
	if err == nil {
		err = json.Unmarshal(out.Bytes(), &results)
	}
	if err != nil {
		t.Fatalf("%s: %v\n%s\n%s\n%s", cmd, err, out.Bytes(), errs.Bytes(), d.tail())
	}
	return results, w.settled(t, log, from, way, p)
}

// settled reads the audit log when every cell is in it and nothing new comes.
func (w *matrixWorld) settled(t *testing.T, log string, from int, way string, p *matrixPlan) map[string][]matrixLine {
	t.Helper()
	last := time.Now()
	size := -1
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		b, err := os.ReadFile(log)
		if err != nil {
			t.Fatal(err)
		}
		if len(b) != size {
			size, last = len(b), time.Now()
		}
		lines, err := matrixLines(b[min(from, len(b)):], way)
		if err != nil {
			t.Fatal(err)
		}
		missing := slices.ContainsFunc(p.Cells, func(c matrixCell) bool { return len(lines[p.hostPort(c)]) == 0 })
		quiet := time.Since(last) > 300*time.Millisecond
		if quiet && !missing || time.Now().After(end) {
			return lines
		}
	}
}

// inSandbox runs this binary in the sandbox's namespace, with a name server of the family
// in resolv.conf and trust in both CAs.
func (w *matrixWorld) inSandbox(ctx context.Context, d *daemon, family string, args ...string) *exec.Cmd {
	server := "192.0.2.53"
	if family == "6" {
		server = "2001:db8:77::53"
	}
	resolv := w.file("resolv"+family+".conf", "nameserver "+server+"\noptions timeout:3 attempts:2\n")
	bundle := w.file("bundle.pem", string(d.roots)+string(w.ca.PEM()))
	cmd := w.net.Sandbox.CommandContext(ctx, w.t, "unshare", append([]string{"--mount", "--", "sh", "-c",
		`mount --bind "$0" /etc/resolv.conf && exec "$@"`, resolv}, args...)...)
	cmd.Env = plainEnv()
	for _, name := range []string{"SSL_CERT_FILE", "CURL_CA_BUNDLE", "GIT_SSL_CAINFO", "NODE_EXTRA_CA_CERTS"} {
		cmd.Env = append(cmd.Env, name+"="+bundle)
	}
	return cmd
}

// isolated runs it behind `egressd run --isolate` on the router.
func (w *matrixWorld) isolated(ctx context.Context, d *daemon, log string, args ...string) *exec.Cmd {
	all := append([]string{"run", "--isolate", "--config", d.path("egressd.yaml"), "--policy", d.path("policy"), "--sandbox", "one", "--audit-file", log}, w.upstream()...)
	env := plainEnv()
	for _, s := range w.sources() {
		for field, value := range s.fields {
			name := "MATRIX_" + s.name + "_" + field
			all, env = append(all, "--source", s.name+"."+field+"=env:"+name), append(env, name+"="+value)
		}
	}
	cmd := w.net.Router.CommandContext(ctx, w.t, egressd, append(append(all, "--"), args...)...)
	cmd.Env = env
	return cmd
}
