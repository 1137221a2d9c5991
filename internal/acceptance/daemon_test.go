package acceptance

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/egressd/egressd/internal/testbed"
)

// proxyToken is what the sandbox "one" of the tests' policies proves itself with.
const proxyToken = "proxy-token-of-sandbox-one-4fK2"

// settings shape one daemon.
type settings struct {
	ca     *testbed.CA
	hosts  map[string]string // upstream.hosts
	policy string            // policy/policy.yaml; see expand
	config string            // more lines of the config
	level  string            // log.level, default info
	env    []string
}

// daemon is one installation and, while it runs, its `egressd serve`.
type daemon struct {
	t      testing.TB
	dir    string // config, policy and state are in it
	set    settings
	errout buffer // stderr of all starts

	proxy, ops string // host:port, of the last start
	cmd        *exec.Cmd
	gone       chan struct{}
	exit       error
	api        *http.Client
	roots      []byte // egressd's CA, PEM
}

// buffer is a bytes.Buffer that a process may write while a test reads.
type buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *buffer) since(n int) []byte {
	b.mu.Lock()
	defer b.mu.Unlock()
	return bytes.Clone(b.b.Bytes()[n:])
}

func (b *buffer) len() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Len()
}

const configHead = `apiVersion: egressd/v1
stateDir: %[1]s/state
listen: {proxy: "127.0.0.1:0", ops: "127.0.0.1:0"}
policy: {dir: %[1]s/policy}
upstream:
  hosts: %[2]s
  extraCAFiles: [%[1]s/origins.pem]
  allowCIDRs: [127.0.0.0/8]
log: {level: %[3]s, format: json}
`

// install writes config and policy, and starts nothing.
func install(t testing.TB, s settings) *daemon {
	t.Helper()
	dir, err := os.MkdirTemp("", "eg") // short: a unix socket's path is
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	d := &daemon{t: t, dir: dir, set: s}
	if s.level == "" {
		d.set.level = "info"
	}
	hosts, err := json.Marshal(s.hosts)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(dir, "policy"), 0o700); err != nil {
		t.Fatal(err)
	}
	d.write("origins.pem", string(s.ca.PEM()))
	d.write("egressd.yaml", fmt.Sprintf(configHead, dir, hosts, d.set.level)+s.config)
	d.write("policy/policy.yaml", expand(s.policy))
	return d
}

// serve installs and starts a daemon that ends, cleanly, with the test.
func serve(t testing.TB, s settings) *daemon {
	t.Helper()
	d := install(t, s)
	d.start()
	t.Cleanup(func() {
		if d.running() {
			d.stop()
		}
	})
	return d
}

// expand puts the hash of the sandbox's token in the place of TOKEN.
func expand(policy string) string {
	sum := sha256.Sum256([]byte(proxyToken))
	return strings.ReplaceAll(policy, "TOKEN", "sha256:"+hex.EncodeToString(sum[:]))
}

func (d *daemon) path(name string) string { return filepath.Join(d.dir, name) }

// write replaces a file as an editor does: whole, by rename.
func (d *daemon) write(name, text string) {
	d.t.Helper()
	tmp := d.path(name + ".tmp")
	if err := os.WriteFile(tmp, []byte(text), 0o600); err != nil {
		d.t.Fatal(err)
	}
	if err := os.Rename(tmp, d.path(name)); err != nil {
		d.t.Fatal(err)
	}
}

// start runs `egressd serve` and returns how long it took to be ready.
func (d *daemon) start() time.Duration {
	d.t.Helper()
	from := d.errout.len()
	begin := time.Now()
	d.cmd = exec.Command(egressd, "serve", "--config", d.path("egressd.yaml"))
	d.cmd.Env = append(plainEnv(), d.set.env...)
	d.cmd.Stderr, d.cmd.Stdout = &d.errout, &d.errout
	if err := d.cmd.Start(); err != nil {
		d.t.Fatal(err)
	}
	cmd, gone := d.cmd, make(chan struct{})
	d.gone = gone
	go func() {
		defer close(gone)
		d.exit = cmd.Wait()
	}()
	d.api = socketClient(d.path("state/api.sock"))
	d.t.Cleanup(d.api.CloseIdleConnections)
	d.waitReady(from, begin)
	took := time.Since(begin)
	if d.roots == nil {
		a := d.call(http.MethodGet, "/ca.pem", nil)
		if a.status != http.StatusOK {
			d.t.Fatalf("ca.pem: %s", a)
		}
		d.roots = a.body
	}
	return took
}

// waitReady reads the addresses from the line that says so and asks /readyz.
func (d *daemon) waitReady(from int, begin time.Time) {
	d.t.Helper()
	probe := &http.Client{Timeout: time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	for known := false; ; time.Sleep(2 * time.Millisecond) {
		if !known {
			known = d.readAddresses(from)
		}
		if known {
			if resp, err := probe.Get("http://" + d.ops + "/readyz"); err == nil {
				_ = resp.Body.Close()
				if resp.StatusCode == http.StatusOK {
					return
				}
			}
		}
		select {
		case <-d.gone:
			d.t.Fatalf("egressd serve ended at its start: %v\n%s", d.exit, d.errout.since(from))
		default:
		}
		if time.Since(begin) > 20*time.Second {
			d.kill()
			d.t.Fatalf("egressd serve is not ready after 20 s:\n%s", d.errout.since(from))
		}
	}
}

func (d *daemon) readAddresses(from int) bool {
	for line := range bytes.Lines(d.errout.since(from)) {
		var l struct{ Message, Proxy, Ops string }
		if json.Unmarshal(line, &l) == nil && l.Message == "egressd is ready" {
			d.proxy, d.ops = l.Proxy, l.Ops
			return true
		}
	}
	return false
}

func (d *daemon) running() bool {
	select {
	case <-d.gone:
		return false
	default:
		return true
	}
}

func (d *daemon) signal(s syscall.Signal) {
	d.t.Helper()
	if err := d.cmd.Process.Signal(s); err != nil {
		d.t.Fatalf("signal %v: %v", s, err)
	}
}

// kill is kill -9, and waits.
func (d *daemon) kill() {
	_ = d.cmd.Process.Kill()
	<-d.gone
}

// stop drains the daemon, which must take no longer than it may and end with 0.
func (d *daemon) stop() {
	d.t.Helper()
	d.signal(syscall.SIGTERM)
	if !d.waitGone(40 * time.Second) {
		d.kill()
		d.t.Fatalf("egressd serve did not end after SIGTERM:\n%s", d.tail())
	}
	if d.exit != nil {
		d.t.Errorf("egressd serve: %v\n%s", d.exit, d.tail())
	}
	d.sane()
}

func (d *daemon) waitGone(patience time.Duration) bool {
	select {
	case <-d.gone:
		return true
	case <-time.After(patience):
		return false
	}
}

// exitCode is that of the ended process, 128+n after a signal.
func (d *daemon) exitCode() int {
	var e *exec.ExitError
	if !errors.As(d.exit, &e) {
		return 0
	}
	if w, ok := e.Sys().(syscall.WaitStatus); ok && w.Signaled() {
		return 128 + int(w.Signal())
	}
	return e.ExitCode()
}

// sane looks for what no log may hold.
func (d *daemon) sane() {
	d.t.Helper()
	log := d.errout.since(0)
	for _, bad := range []string{"panic", "DATA RACE", "goroutine 1 [", `"level":"fatal"`} {
		if i := bytes.Index(log, []byte(bad)); i >= 0 {
			d.t.Errorf("%q is in the daemon's log:\n%.4000s", bad, log[max(0, i-500):])
		}
	}
}

func (d *daemon) tail() []byte {
	b := d.errout.since(0)
	return b[max(0, len(b)-4000):]
}

// metric is the value of a metric without labels.
func (d *daemon) metric(name string) float64 {
	d.t.Helper()
	req, err := http.NewRequest(http.MethodGet, "http://"+d.ops+"/metrics", nil)
	if err != nil {
		d.t.Fatal(err)
	}
	a := send(http.DefaultClient, req)
	for line := range strings.Lines(string(a.body)) {
		if value, ok := strings.CutPrefix(line, name+" "); ok {
			v, err := strconv.ParseFloat(strings.TrimSpace(value), 64)
			if err != nil {
				d.t.Fatal(err)
			}
			return v
		}
	}
	d.t.Fatalf("there is no metric %s: %s", name, a)
	return 0
}

// audit is the audit log as it stands.
func (d *daemon) audit() []byte {
	b, err := os.ReadFile(d.path("state/audit.jsonl"))
	if err != nil {
		d.t.Fatal(err)
	}
	return b
}
