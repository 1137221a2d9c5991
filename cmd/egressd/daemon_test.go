package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/egressd/egressd/internal/testbed"
)

// egressd runs this test binary as the program (see TestMain).
func egressd(args ...string) *exec.Cmd {
	cmd := exec.Command("/proc/self/exe", args...)
	cmd.Args[0] = "egressd"
	cmd.Env = append(cleanEnv(), "PATH="+os.Getenv("PATH"))
	return cmd
}

// cleanEnv is our environment without what would tell in a test.
func cleanEnv() []string {
	var out []string
	for _, kv := range os.Environ() {
		name, _, _ := strings.Cut(kv, "=")
		if !strings.HasPrefix(name, "EGRESSD_") && !isProxyVar(name) && name != "GODEBUG" && name != "PATH" && !strings.HasPrefix(name, "SSL") {
			out = append(out, kv)
		}
	}
	return out
}

// testDaemon is an `egressd serve` with an origin that it may reach.
type testDaemon struct {
	dir, proxy, ops string
	origin          *testbed.Origin
	ca              *testbed.CA
	cmd             *exec.Cmd
	done            chan struct{}
	err             error
}

const openPolicy = `apiVersion: egressd/v1
sandboxes:
  - id: agent
    identify: {sourceCIDRs: [127.0.0.0/8]}
    network:
      egress:
        trafficRules: [{name: good, action: allow, domains: [good.test]}]
        credentialRules: [{name: api, credentialRef: api, protocol: https, domains: [good.test], httpMatch: {paths: [/bearer]}}]
      credentialBindings:
        - ref: api
          sourceRef: api
          projection: {type: http_headers, httpHeaders: {headers: [{name: Authorization, valueTemplate: "Bearer {{ .token }}"}]}}
`

// startDaemon starts one and waits until it is ready. env is added to its environment.
func startDaemon(t *testing.T, policy string, env ...string) *testDaemon {
	t.Helper()
	return startDaemonAs(t, os.Geteuid(), policy, env...)
}

// startDaemonAs is startDaemon as another user, which only root can do.
func startDaemonAs(t *testing.T, uid int, policy string, env ...string) *testDaemon {
	t.Helper()
	if policy == "" {
		policy = openPolicy
	}
	d := &testDaemon{dir: shortTempDir(t), ca: testbed.NewCA(t), done: make(chan struct{})}
	d.origin = testbed.NewOrigin(t, d.ca, testbed.OriginOptions{Bearer: bearer})
	addrs, err := freeAddrs(2)
	if err != nil {
		t.Fatal(err)
	}
	d.proxy, d.ops = addrs[0], addrs[1]
	files := map[string]string{"policy/p.yaml": policy, "origin.pem": string(d.ca.PEM())}
	for name, text := range files {
		name = filepath.Join(d.dir, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(name), 0o700), os.WriteFile(name, []byte(text), 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	d.cmd = egressd("serve", "--policy-dir", "policy", "--listen-proxy", d.proxy, "--listen-ops", d.ops, "--upstream-hosts", "good.test=127.0.0.2", "--upstream-allow-cidrs", "127.0.0.0/8")
	log, err := os.Create(filepath.Join(d.dir, "daemon.log"))
	if err != nil {
		t.Fatal(err)
	}
	d.cmd.Dir, d.cmd.Stderr = d.dir, log
	d.cmd.Env = append(d.cmd.Env, "EGRESSD_STATE_DIR="+d.state())
	if len(env) == 0 {
		env = []string{"EGRESSD_UPSTREAM_EXTRA_CA_FILES=origin.pem"}
	}
	d.cmd.Env = append(d.cmd.Env, env...)
	if uid != os.Geteuid() {
		for _, name := range []string{"", "policy", "policy/p.yaml", "origin.pem"} {
			if err := os.Chown(filepath.Join(d.dir, name), uid, uid); err != nil {
				t.Fatal(err)
			}
		}
		d.cmd.SysProcAttr = as(uid)
	}
	if err := d.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	_ = log.Close()
	go func() {
		defer close(d.done)
		d.err = d.cmd.Wait()
	}()
	t.Cleanup(func() {
		_ = d.cmd.Process.Kill()
		<-d.done
	})
	d.waitStatus(t, http.StatusOK)
	return d
}

func as(uid int) *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(uid)}}
}

// nobody is a user that owns nothing.
const nobody = 65534

// shortTempDir is one whose unix sockets have short enough names.
func shortTempDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "egd")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

func (d *testDaemon) state() string { return filepath.Join(d.dir, "state") }

func (d *testDaemon) command(args ...string) *exec.Cmd {
	cmd := egressd(args...)
	cmd.Env = append(cmd.Env, "EGRESSD_STATE_DIR="+d.state())
	return cmd
}

func (d *testDaemon) cli(t *testing.T, stdin string, args ...string) string {
	t.Helper()
	cmd := d.command(args...)
	cmd.Stdin = strings.NewReader(stdin)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("egressd %v: %v: %s", args, err, out)
	}
	return string(out)
}

// log is the daemon's log so far.
func (d *testDaemon) log() string {
	text, err := os.ReadFile(filepath.Join(d.dir, "daemon.log"))
	if err != nil {
		return err.Error()
	}
	return string(text)
}

// readyStatus is what /readyz answers, 0 for nothing.
func (d *testDaemon) readyStatus() int {
	c := http.Client{Timeout: time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := c.Get("http://" + d.ops + "/readyz")
	if err != nil {
		return 0
	}
	_ = resp.Body.Close()
	return resp.StatusCode
}

func (d *testDaemon) waitStatus(t *testing.T, want int) {
	t.Helper()
	for end := time.Now().Add(15 * time.Second); d.readyStatus() != want; time.Sleep(10 * time.Millisecond) {
		select {
		case <-d.done:
			t.Fatalf("the daemon ended: %v\n%s", d.err, d.log())
		default:
		}
		if time.Now().After(end) {
			t.Fatalf("/readyz answers %d, want %d", d.readyStatus(), want)
		}
	}
}

func (d *testDaemon) waitEnd(t *testing.T, within time.Duration) {
	t.Helper()
	select {
	case <-d.done:
	case <-time.After(within):
		t.Fatalf("the daemon has not ended after %s", within)
	}
}

// client goes through the daemon and trusts its CA.
func (d *testDaemon) client(t *testing.T) *http.Client {
	t.Helper()
	pem := d.cli(t, "", "ca", "export")
	pool := d.ca.Pool()
	if !pool.AppendCertsFromPEM([]byte(pem)) {
		t.Fatal("ca export gave no certificate")
	}
	tr := &http.Transport{Proxy: http.ProxyURL(&url.URL{Scheme: "http", Host: d.proxy}), TLSClientConfig: tlsRoots(pool)}
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr, Timeout: 20 * time.Second}
}

type result struct {
	status int
	body   string
	err    error
}

func get(c *http.Client, url string) result {
	resp, err := c.Get(url)
	if err != nil {
		return result{err: err}
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	return result{resp.StatusCode, string(body), err}
}

// slow answers after release is closed.
func slow(t *testing.T, ca *testbed.CA) (o *testbed.Origin, begun chan struct{}, release chan struct{}) {
	t.Helper()
	begun, release = make(chan struct{}, 1000), make(chan struct{})
	o = testbed.NewOrigin(t, ca, testbed.OriginOptions{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		begun <- struct{}{}
		select {
		case <-release:
		case <-r.Context().Done():
		}
		_, _ = io.WriteString(w, "finished")
	})})
	return o, begun, release
}

// At SIGTERM the daemon says that it is not ready, takes nothing new, and lets what is
// open finish.
func TestAttack_H13_drain(t *testing.T) {
	d := startDaemon(t, "")
	c := d.client(t)
	o, begun, release := slow(t, d.ca)
	const open = 20
	results := make(chan result, open)
	for range open {
		go func() { results <- get(c, o.URL("/x")) }()
	}
	for range open {
		<-begun
	}
	if err := d.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	d.waitStatus(t, http.StatusServiceUnavailable)
	for end := time.Now().Add(5 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		conn, err := net.Dial("tcp", d.proxy)
		if err != nil {
			break // nothing new is taken
		}
		_ = conn.Close()
		if time.Now().After(end) {
			t.Fatal("the proxy still accepts while it drains")
		}
	}
	close(release)
	for range open {
		if r := <-results; r.err != nil || r.status != http.StatusOK || r.body != "finished" {
			t.Errorf("a request in flight: %+v", r)
		}
	}
	c.CloseIdleConnections()
	d.waitEnd(t, 10*time.Second)
	if d.err != nil {
		t.Errorf("the daemon ended with %v\n%s", d.err, d.log())
	}
}

// A second signal does not wait.
func TestSecondSignalExitsAtOnce(t *testing.T) {
	d := startDaemon(t, "")
	c := d.client(t)
	o, begun, release := slow(t, d.ca)
	defer close(release)
	go get(c, o.URL("/x"))
	<-begun
	if err := d.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	d.waitStatus(t, http.StatusServiceUnavailable)
	time.Sleep(50 * time.Millisecond)
	if err := d.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	d.waitEnd(t, 2*time.Second)
	var e *exec.ExitError
	if !errors.As(d.err, &e) || e.ExitCode() != 143 {
		t.Errorf("the daemon ended with %v, want exit code 143", d.err)
	}
}

// What drainTimeout does not suffice for is cut.
func TestDrainTimeoutCuts(t *testing.T) {
	d := startDaemon(t, "", "EGRESSD_UPSTREAM_EXTRA_CA_FILES=origin.pem", "EGRESSD_LIMITS_DRAIN_TIMEOUT=300ms")
	c := d.client(t)
	o, begun, release := slow(t, d.ca)
	defer close(release)
	cut := make(chan result, 1)
	go func() { cut <- get(c, o.URL("/x")) }()
	<-begun
	if err := d.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	d.waitEnd(t, 5*time.Second)
	if r := <-cut; r.err == nil && r.status == http.StatusOK {
		t.Errorf("a request that never ended was answered: %+v", r)
	}
	if d.err != nil {
		t.Errorf("the daemon ended with %v\n%s", d.err, d.log())
	}
}

// The environment leads the daemon's connections nowhere and makes it trust nobody.
func TestAttack_A19_environment(t *testing.T) {
	trap := testbed.NewSink(t, "127.0.0.3")
	via := fmt.Sprintf("http://127.0.0.3:%d", trap.Port())
	dir := t.TempDir()
	evil := testbed.NewCA(t)
	d := startDaemon(t, "", "HTTPS_PROXY="+via, "https_proxy="+via, "HTTP_PROXY="+via, "ALL_PROXY="+via,
		"SSL_CERT_FILE="+evil.File(t), "SSL_CERT_DIR="+dir, "EGRESSD_UPSTREAM_EXTRA_CA_FILES=origin.pem")
	d.cli(t, bearer, "source", "add", "api")
	c := d.client(t)
	if r := get(c, d.origin.URL("/bearer")); r.err != nil || r.status != http.StatusOK {
		t.Errorf("an honest request: %+v", r)
	}
	o := testbed.NewOrigin(t, evil, testbed.OriginOptions{Bearer: bearer})
	if r := get(c, o.URL("/bearer")); r.err == nil && r.status != http.StatusBadGateway {
		t.Errorf("an origin that only SSL_CERT_FILE trusts: %+v", r)
	}
	if n := len(o.Requests()); n != 0 {
		t.Errorf("%d requests reached an origin that is not trusted", n)
	}
	if n := trap.Conns(); n != 0 {
		t.Errorf("%d connections went to the proxy of the environment", n)
	}
	if !strings.Contains(d.log(), "SSL_CERT_FILE is set and not followed") {
		t.Error("the log does not say that SSL_CERT_FILE is not followed")
	}
}

// Until somebody who may read the socket makes a token, nobody has one: there is no
// default and nothing to claim first.
func TestAttack_G21_nothing_to_claim(t *testing.T) {
	addrs, err := freeAddrs(1)
	if err != nil {
		t.Fatal(err)
	}
	d := startDaemon(t, "", "EGRESSD_API_LISTEN="+addrs[0], "EGRESSD_UPSTREAM_EXTRA_CA_FILES=origin.pem")
	for _, auth := range []string{"", "Bearer admin", "Bearer ", "Basic YWRtaW46YWRtaW4="} {
		for _, path := range []string{"/api/v1/tokens", "/api/v1/credential-sources", "/api/v1/whoami", "/api/v1/openapi.json"} {
			req, err := http.NewRequestWithContext(context.Background(), http.MethodGet, "http://"+addrs[0]+path, nil)
			if err != nil {
				t.Fatal(err)
			}
			if auth != "" {
				req.Header.Set("Authorization", auth)
			}
			resp, err := http.DefaultTransport.RoundTrip(req)
			if err != nil {
				t.Fatal(err)
			}
			_ = resp.Body.Close()
			if resp.StatusCode != http.StatusUnauthorized && resp.StatusCode != http.StatusTooManyRequests { // guesses are slowed down
				t.Errorf("%s with %q: %d, want 401 or 429", path, auth, resp.StatusCode)
			}
		}
	}
	if out := d.cli(t, "", "token", "list"); strings.Count(strings.TrimSpace(out), "\n") != 0 {
		t.Errorf("a fresh daemon has tokens:\n%s", out)
	}
}

// A user who may not open the socket is told so, with exit code 2.
func TestSocketOfAnotherUser(t *testing.T) {
	d := startDaemon(t, "")
	cmd := d.command("source", "list")
	if os.Geteuid() == 0 { // else the directory's mode stands in for another user
		cmd.SysProcAttr = as(nobody)
	} else {
		if err := os.Chmod(d.state(), 0); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = os.Chmod(d.state(), 0o700) })
	}
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	err := cmd.Run()
	var e *exec.ExitError
	if !errors.As(err, &e) || e.ExitCode() != exitAuth {
		t.Errorf("%v, want exit code 2", err)
	}
	want := fmt.Sprintf("egressd: permission denied on %s: run this as the daemon's user, or use --addr and a token\n", filepath.Join(d.state(), "api.sock"))
	if stderr.String() != want {
		t.Errorf("\n got %s\nwant %s", stderr.String(), want)
	}
}

// The state directory: an open one of ours is closed, the lock goes with the process.
func TestAttack_D05_state_directory(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	s, err := claimStateDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(dir)
	if err != nil || info.Mode().Perm() != 0o700 || !s.tightened {
		t.Errorf("mode %v, tightened %v, %v", info.Mode(), s.tightened, err)
	}
	_, err = claimStateDir(dir)
	var f *failed
	if !errors.As(err, &f) || f.code != exitConflict {
		t.Errorf("a second claim: %v", err)
	}
	s.close()
	if s, err = claimStateDir(dir); err != nil {
		t.Fatalf("after the first was let go: %v", err)
	}
	s.close()
	if err := os.Chmod(dir, 0o770); err != nil {
		t.Fatal(err)
	}
	if _, err = claimStateDir(dir); !errors.As(err, &f) || f.code != exitStore {
		t.Errorf("a directory that others may write to: %v", err)
	}
}

// Nobody but root reads the daemon's memory or its environment, not even another process
// of the same user, and it leaves no core. It needs no root to run.
func TestAttack_G07_process_memory(t *testing.T) {
	uid := os.Geteuid()
	if uid == 0 {
		uid = nobody
	}
	d := startDaemonAs(t, uid, "")
	proc := fmt.Sprintf("/proc/%d", d.cmd.Process.Pid)
	limits, err := os.ReadFile(proc + "/limits")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.SplitSeq(string(limits), "\n") {
		if f := strings.Fields(line); strings.HasPrefix(line, "Max core file size") && f[4] != "0" {
			t.Errorf("core files are allowed: %s", line)
		}
	}
	for _, name := range []string{"environ", "mem", "maps"} {
		cmd := exec.Command("head", "-c", "1", proc+"/"+name)
		if uid != os.Geteuid() {
			cmd.SysProcAttr = as(uid)
		}
		if out, err := cmd.CombinedOutput(); err == nil || !strings.Contains(string(out), "ermission denied") {
			t.Errorf("%s can be read by a process of the same user: %q, %v", name, out, err)
		}
	}
	d.cli(t, bearer, "source", "add", "api")
	if r := get(d.client(t), d.origin.URL("/bearer")); r.err != nil || r.status != http.StatusOK {
		t.Errorf("a request through it: %+v", r)
	}
}
