package acceptance

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io/fs"
	"maps"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/crypto/ssh"

	"github.com/egressd/egressd/internal/testbed"
)

const canaryPolicy = `
apiVersion: egressd/v1
sandboxes:
  - id: one
    identify: {proxyTokens: ["TOKEN"]}
    network:
      egress:
        trafficRules:
          - {name: all, action: allow, domains: [headers.test, basic.test, cert.test, broken.test, bad.test, off.test]}
        credentialRules:
          - {name: headers, credentialRef: headers, domains: [headers.test, bad.test, off.test]}
          - {name: basic, credentialRef: basic, domains: [basic.test]}
          - {name: cert, credentialRef: cert, protocol: tls, domains: [cert.test]}
          - {name: broken, credentialRef: broken, domains: [broken.test]}
      credentialBindings:
        - ref: headers
          sourceRef: static_headers
          projection:
            type: http_headers
            httpHeaders: {headers: [{name: Authorization, valueTemplate: "Bearer {{ .token }}"}, {name: X-Other, valueTemplate: "{{ .other }}"}, {name: X-Encoded, valueTemplate: "{{ .token | b64enc }}"}]}
        - {ref: basic, sourceRef: static_username_password, projection: {type: username_password}}
        - {ref: cert, sourceRef: static_tls_client_certificate, projection: {type: tls_client_certificate}}
        - ref: broken
          sourceRef: broken
          projection: {type: http_headers, httpHeaders: {headers: [{name: X-Broken, valueTemplate: "{{ .token | b64dec }}"}]}}
`

// canaryRig is a daemon at log level debug, the origins that may have the secrets, and all
// that came out of the daemon anywhere else.
type canaryRig struct {
	t       *testing.T
	d       *daemon
	ca      *testbed.CA
	clients *testbed.CA
	origins map[string]*testbed.Origin
	visible string // a canary that may be read: it must be found, or the scan is blind
	secrets []string
	seen    map[string]*bytes.Buffer
	placed  sample // in force where the token is projected

	sshd   *keyServer
	sshKey ssh.Signer // the sandbox's own
	redis  string     // host:port
}

func newCanaryRig(t *testing.T) *canaryRig {
	r := &canaryRig{t: t, visible: testbed.NewCanary(), ca: testbed.NewCA(t), clients: testbed.NewCA(t), origins: map[string]*testbed.Origin{}, seen: map[string]*bytes.Buffer{}}
	hosts := map[string]string{"off.test": "127.0.0.25"} // nothing listens there
	for i, name := range []string{"headers.test", "basic.test", "cert.test", "broken.test", "bad.test", "", "aws.test", "place.test"} {
		if name == "" { // off.test's address
			continue
		}
		o := testbed.OriginOptions{IP: fmt.Sprintf("127.0.0.%d", 20+i), Names: []string{name}}
		switch name {
		case "aws.test":
			o.Mount = map[string]http.Handler{"/session": http.HandlerFunc(repeatSession)}
		case "cert.test":
			o.ClientCAs, o.RequireClientCert = r.clients.Pool(), true
		case "bad.test":
			o.Names = []string{"somebody-else.test"}
		}
		r.origins[name], hosts[name] = testbed.NewOrigin(t, r.ca, o), o.IP
	}
	hosts["ssh.test"], hosts["redis.test"] = "127.0.0.28", "127.0.0.29"
	r.sshd, r.sshKey = newKeyServer(t, hosts["ssh.test"]), newSigner(t)
	_, port, _ := net.SplitHostPort(tellingRedis(t, hosts["redis.test"]).Addr().String())
	r.redis = "redis.test:" + port
	r.d = serve(t, settings{ca: r.ca, hosts: hosts, policy: r.fullPolicy(), level: "debug", config: "api: {listen: \"127.0.0.1:0\"}\n", env: []string{"EGRESSD_LISTEN_DNS=127.0.0.1:0"}})
	return r
}

// url is a URL on one of the origins.
func (r *canaryRig) url(host, path string) string {
	return fmt.Sprintf("https://%s:%d%s", host, r.origins[host].Port(), path)
}

// keep adds to what is scanned in the end.
func (r *canaryRig) keep(where string, data []byte) {
	if r.seen[where] == nil {
		r.seen[where] = &bytes.Buffer{}
	}
	r.seen[where].Write(data)
	r.seen[where].WriteByte('\n')
}

func (r *canaryRig) keepReply(where string, a reply) reply {
	var head bytes.Buffer
	_ = a.header.Write(&head)
	r.keep(where, head.Bytes())
	r.keep(where, a.body)
	if a.err != nil {
		r.keep(where, []byte(a.err.Error()))
	}
	return a
}

// call, cli and get are those of daemon and sandbox, with what comes back kept.
func (r *canaryRig) call(method, path string, body any, extra ...string) reply {
	return r.keepReply("API answers", r.d.call(method, path, body, extra...))
}

func (r *canaryRig) cli(stdin string, env []string, args ...string) ended {
	got := command(stdin, append([]string{"EGRESSD_ADDR=unix:" + r.d.path("state/api.sock")}, env...), args...)
	r.keep("CLI output", []byte(got.stdout+"\n"+got.stderr))
	for i, s := range r.secrets {
		if strings.Contains(got.stdout+got.stderr, s) { // scan looks for the other forms too; this tells which command it was
			r.t.Errorf("canary %d is in the output of egressd %q: %s", i, args, got)
		}
	}
	return got
}

func (r *canaryRig) must(code int, got ended, args ...string) ended {
	r.t.Helper()
	if got.code != code {
		r.t.Errorf("egressd %q: want exit code %d, got %s", args, code, got)
	}
	return got
}

// secret makes s's leaves secrets from now on.
func (r *canaryRig) secret(samples ...sample) {
	for _, s := range samples {
		r.secrets = append(r.secrets, s.leaves...)
	}
}

// file writes a secret for the command line to read.
func (r *canaryRig) file(text string) string {
	r.t.Helper()
	f, err := os.CreateTemp(r.t.TempDir(), "secret")
	if err != nil {
		r.t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	if _, err := f.WriteString(text); err != nil {
		r.t.Fatal(err)
	}
	return f.Name()
}

// scan looks for every secret in everything that was kept.
func (r *canaryRig) scan() {
	r.t.Helper()
	for _, where := range slices.Sorted(maps.Keys(r.seen)) {
		data := r.seen[where].Bytes()
		for i, s := range r.secrets {
			if found := testbed.Leaks(data, s); len(found) > 0 {
				r.t.Errorf("canary %d is in %s (%s)", i, where, strings.Join(found, ", "))
			}
		}
	}
}

// Issue point 6, G01, G06, G08: the canary property over every kind and every surface of
// the real binary. Canaries go into every secret field through the command line and the
// API; then every surface is driven, right and wrong, and searched. Only the origin that a
// credential is for has it.
func TestAttack_G01_G06_G08_canary(t *testing.T) {
	r := newCanaryRig(t)
	make := func() []sample {
		all := []sample{headersSample(), basicSample(), certSample(t, r.clients, r.ca), sshSample(t, false), awsSample()}
		r.secret(all...)
		return all
	}
	first, second, third := make(), make(), make()
	locked := sshSample(t, true)
	r.secret(locked)
	r.secrets = append(r.secrets, proxyToken)
	token := r.driveTokens()

	r.driveKindsList(first)
	for i, s := range first {
		r.driveCLI(s, second[i])
		r.driveAPI("api-"+s.kind, third[i], second[i])
		r.driveErrors("api-"+s.kind, third[i])
	}
	r.driveAPI("locked", locked, first[3])
	r.driveErrors("locked", locked)
	r.placed = second[0]
	r.driveData()
	r.driveLogins()
	r.driveReads()
	r.driveCommands()
	r.driveIsolated()
	r.driveTokenUse(token)
	r.liveProcess()
	r.stateFiles("state files while it runs")
	r.driveDeletes(first)
	r.stateFiles("state files after deletes")

	r.d.signal(syscall.SIGQUIT) // all goroutines with their arguments
	<-r.d.gone
	r.keep("stderr", r.d.errout.since(0))
	r.keep("audit", r.d.audit())
	r.stateFiles("state files after the end")
	r.reachedOrigins(second)
	r.reachedLogins(second)
	r.volumes()
	r.scan()
}

// reachedOrigins is the counter-check: what is projected did arrive, in the clear, so the
// scan looks for the right thing.
func (r *canaryRig) reachedOrigins(samples []sample) {
	r.t.Helper()
	headers := r.origins["headers.test"]
	var token, other string
	for _, q := range headers.Requests() {
		token, other = strings.TrimPrefix(q.Header.Get("Authorization"), "Bearer "), q.Header.Get("X-Other")
	}
	if token != samples[0].inject[0] || other != samples[0].inject[1] {
		r.t.Error("headers.test did not get the headers source's values")
	}
	user, password, _ := strings.Cut(decodeBasic(r.origins["basic.test"].Last(r.t).Header.Get("Authorization")), ":")
	if user != samples[1].inject[0] || password != samples[1].inject[1] {
		r.t.Error("basic.test did not get user name and password")
	}
	if cn := r.origins["cert.test"].Last(r.t).ClientCert; !slices.Contains(samples[2].leaves, cn) {
		r.t.Errorf("cert.test got the certificate %q", cn)
	}
	for _, host := range []string{"broken.test", "bad.test"} {
		if n := len(r.origins[host].Requests()); n != 0 {
			r.t.Errorf("%d requests reached %s", n, host)
		}
		r.keep("what "+host+" got", r.origins[host].Captured())
	}
	// And of the wire nothing but TLS.
	for name, o := range r.origins {
		for _, c := range o.Conns() {
			r.keep("wire to "+name, c.Wire)
		}
	}
}

func decodeBasic(header string) string {
	b, _ := base64.StdEncoding.DecodeString(strings.TrimPrefix(header, "Basic "))
	return string(b)
}

// volumes sees to it that nothing was scanned that is not there.
func (r *canaryRig) volumes() {
	r.t.Helper()
	for where, least := range map[string]int{
		"API answers": 100_000, "CLI output": 10_000, "proxy answers": 3_000, "metrics": 5_000, "stderr": 100_000, "audit": 1_000,
		"process": 200, "state files while it runs": 50_000, "state files after the end": 50_000,
	} {
		n := 0
		if b := r.seen[where]; b != nil {
			n = b.Len()
		}
		if n < least {
			r.t.Errorf("%d bytes of %s were recorded, want at least %d", n, where, least)
		}
	}
	for _, where := range []string{"API answers", "CLI output", "state files while it runs", "state files after the end"} {
		if len(testbed.Leaks(r.seen[where].Bytes(), r.visible)) == 0 {
			r.t.Errorf("a description, which may be read, was not found in %s", where)
		}
	}
}

// stateFiles keeps every file below the state directory, the database and its -wal and
// -shm among them.
func (r *canaryRig) stateFiles(where string) {
	r.t.Helper()
	var names []string
	err := filepath.WalkDir(r.d.path("state"), func(path string, e fs.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return err
		}
		b, err := os.ReadFile(path)
		names = append(names, e.Name())
		r.keep(where, b)
		return err
	})
	if err != nil {
		r.t.Fatal(err)
	}
	want := []string{"store.db", "audit.jsonl", "seal.key", "ca.key"}
	if r.d.running() {
		want = append(want, "store.db-wal", "store.db-shm")
	}
	for _, name := range want {
		if !slices.Contains(names, name) {
			r.t.Errorf("%s: there is no %s among %v", where, name, names)
		}
	}
}

// liveProcess keeps what the kernel shows of the running daemon to its owner.
func (r *canaryRig) liveProcess() {
	r.t.Helper()
	for _, name := range []string{"cmdline", "environ", "status", "maps"} {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/%s", r.d.cmd.Process.Pid, name))
		if err != nil {
			b = []byte(err.Error())
		}
		r.keep("process", b)
	}
}

func jsonText(t *testing.T, v any) string {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func text(fields map[string]any, name string) string {
	s, _ := fields[name].(string)
	return s
}

// driveKindsList looks at the kinds: each that the binary has is one that the test knows.
func (r *canaryRig) driveKindsList(known []sample) {
	r.t.Helper()
	var list struct{ Data []struct{ Kind string } }
	if err := json.Unmarshal(r.call(http.MethodGet, "/resolver-kinds", nil).body, &list); err != nil || len(list.Data) == 0 {
		r.t.Fatalf("resolver-kinds: %v", err)
	}
	for _, k := range list.Data {
		r.call(http.MethodGet, "/resolver-kinds/"+k.Kind, nil)
		if !slices.ContainsFunc(known, func(s sample) bool { return s.kind == k.Kind }) {
			r.t.Errorf("kind %s has no sample here", k.Kind)
		}
	}
}
