package main

import (
	"bytes"
	"crypto/ed25519"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
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

	"github.com/rogpeppe/go-internal/testscript"
	"golang.org/x/crypto/ssh"

	"github.com/egressd/egressd/internal/testbed"
)

// bearer is what the scripts' origin demands on /bearer.
const bearer = "fake-bearer-for-tests"

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"egressd": main})
}

// TestScripts drives the real main. Each script finds $PROXY, $OPS and $API free, $BUSY
// taken, and a TLS origin $ORIGIN whose CA is in origin.pem and whose /bearer demands
// $BEARER.
func TestScripts(t *testing.T) {
	daemons := &daemons{running: map[*testscript.TestScript]*scriptDaemon{}}
	testscript.Run(t, testscript.Params{
		Dir:      "testdata/script",
		Setup:    setupScript,
		Deadline: time.Now().Add(3 * time.Minute),
		Cmds: map[string]func(ts *testscript.TestScript, neg bool, args []string){
			"exits":  exits,
			"daemon": daemons.start,
			"signal": daemons.signal,
			"ended":  daemons.ended,
			"logged": daemons.logged,
			"edit":   edit,
		},
	})
}

func setupScript(e *testscript.Env) error {
	t, ok := e.T().(testing.TB)
	if !ok {
		return errors.New("not run by a testing.TB")
	}
	ca := testbed.NewCA(t)
	origin := testbed.NewOrigin(t, ca, testbed.OriginOptions{Names: []string{"good.test"}, Bearer: bearer, User: "bot", PW: "fake-password-for-tests"})
	client, server := ca.ClientCert(t, "bot"), ca.Leaf(t, "127.0.0.1")
	files := map[string]string{
		"origin.pem": string(ca.PEM()), "client.pem": testbed.CertPEM(client), "client.key": testbed.KeyPEM(t, client),
		"api.pem": testbed.CertPEM(server), "api.key": testbed.KeyPEM(t, server), "id_ed25519": sshKey(t, "fake-passphrase-for-tests"),
	}
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(e.WorkDir, name), []byte(text), 0o600); err != nil {
			return err
		}
	}
	busy, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	e.Defer(func() { _ = busy.Close() })
	vars := []string{"BUSY", busy.Addr().String()}
	free, err := freeAddrs(3)
	if err != nil {
		return err
	}
	vars = append(vars, "PROXY", free[0], "OPS", free[1], "API", free[2], "ORIGIN", origin.HostPort(), "BEARER", bearer,
		"ORIGIN_PORT", strconv.Itoa(int(origin.Port())), "ORIGIN_IP", origin.Addr().Addr().String(), "EGRESSD_STATE_DIR", filepath.Join(e.WorkDir, "state"))
	for i := 0; i < len(vars); i += 2 {
		e.Setenv(vars[i], vars[i+1])
	}
	return nil
}

// sshKey is a fresh key, encrypted.
func sshKey(t testing.TB, passphrase string) string {
	t.Helper()
	_, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	block, err := ssh.MarshalPrivateKeyWithPassphrase(key, "test", []byte(passphrase))
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(block))
}

func freeAddrs(n int) ([]string, error) {
	var out []string
	for range n {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, err
		}
		defer func() { _ = ln.Close() }() // held until all are known
		out = append(out, ln.Addr().String())
	}
	return out, nil
}

// exits N CMD… wants exit code N, and no more than one line on stderr for one of
// egressd's own failures.
func exits(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: exits CODE COMMAND ARG...")
	}
	err := ts.Exec(args[1], args[2:]...)
	code := 0
	var e *exec.ExitError
	switch {
	case errors.As(err, &e):
		code = e.ExitCode()
	case err != nil:
		ts.Fatalf("%v", err)
	}
	if strconv.Itoa(code) != args[0] {
		ts.Fatalf("exit code %d, want %s", code, args[0])
	}
}

// edit FILE OLD NEW replaces text in a file, by rename.
func edit(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 3 {
		ts.Fatalf("usage: edit FILE OLD NEW")
	}
	name := ts.MkAbs(args[0])
	text := ts.ReadFile(args[0])
	if !strings.Contains(text, args[1]) {
		ts.Fatalf("%s does not hold %q", args[0], args[1])
	}
	ts.Check(os.WriteFile(name+".new", []byte(strings.ReplaceAll(text, args[1], args[2])), 0o600))
	ts.Check(os.Rename(name+".new", name))
}

// daemons are the `egressd serve` of running scripts, one each.
type daemons struct {
	mu      sync.Mutex
	running map[*testscript.TestScript]*scriptDaemon
}

type scriptDaemon struct {
	cmd  *exec.Cmd
	log  string
	done chan error
}

func (d *daemons) of(ts *testscript.TestScript) *scriptDaemon {
	d.mu.Lock()
	defer d.mu.Unlock()
	s := d.running[ts]
	if s == nil {
		ts.Fatalf("no daemon runs: begin with `daemon`")
	}
	return s
}

// start runs `egressd serve` with the script's addresses, policy directory and origin,
// and waits until it is ready.
func (d *daemons) start(ts *testscript.TestScript, neg bool, args []string) {
	if neg {
		ts.Fatalf("daemon cannot be negated")
	}
	path := ""
	for dir := range strings.SplitSeq(ts.Getenv("PATH"), string(os.PathListSeparator)) {
		if p := filepath.Join(dir, "egressd"); path == "" && isFile(p) {
			path = p
		}
	}
	base := []string{"serve", "--policy-dir", "policy", "--listen-proxy", ts.Getenv("PROXY"), "--listen-ops", ts.Getenv("OPS"),
		"--upstream-hosts", "good.test=" + ts.Getenv("ORIGIN_IP"), "--upstream-allow-cidrs", "127.0.0.0/8", "--upstream-extra-ca-files", "origin.pem"}
	s := &scriptDaemon{cmd: exec.Command(path, append(base, args...)...), log: ts.MkAbs("daemon.log"), done: make(chan error, 1)}
	out, err := os.OpenFile(s.log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	ts.Check(err)
	s.cmd.Dir, s.cmd.Stdout, s.cmd.Stderr = ts.MkAbs("."), out, out
	s.cmd.Env = []string{"EGRESSD_STATE_DIR=" + ts.Getenv("EGRESSD_STATE_DIR"), "HOME=" + ts.Getenv("HOME")}
	ts.Check(s.cmd.Start())
	_ = out.Close()
	go func() { s.done <- s.cmd.Wait() }()
	d.mu.Lock()
	d.running[ts] = s
	d.mu.Unlock()
	ts.Defer(func() { _ = s.cmd.Process.Kill() })
	ts.Check(s.waitReady("http://" + ts.Getenv("OPS") + "/readyz"))
}

func isFile(name string) bool {
	info, err := os.Stat(name)
	return err == nil && info.Mode().IsRegular()
}

func (s *scriptDaemon) waitReady(url string) error {
	c := http.Client{Timeout: time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		select {
		case err := <-s.done:
			text, _ := os.ReadFile(s.log)
			return fmt.Errorf("the daemon ended (%w):\n%s", err, text)
		default:
		}
		if resp, err := c.Get(url); err == nil {
			_ = resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				return nil
			}
		}
	}
	return errors.New("the daemon is not ready after 20 s")
}

// signal NAME sends the daemon a signal.
func (d *daemons) signal(ts *testscript.TestScript, _ bool, args []string) {
	sig, ok := map[string]syscall.Signal{"HUP": syscall.SIGHUP, "TERM": syscall.SIGTERM, "KILL": syscall.SIGKILL}[args[0]]
	if !ok {
		ts.Fatalf("unknown signal %s", args[0])
	}
	ts.Check(d.of(ts).cmd.Process.Signal(sig))
}

// ended waits for the daemon's end, which must be a good one.
func (d *daemons) ended(ts *testscript.TestScript, neg bool, _ []string) {
	select {
	case err := <-d.of(ts).done:
		if (err != nil) != neg {
			ts.Fatalf("the daemon ended with %v", err)
		}
	case <-time.After(20 * time.Second):
		ts.Fatalf("the daemon has not ended after 20 s")
	}
}

// logged TEXT waits until the daemon's log holds TEXT; negated, it must not hold it now.
func (d *daemons) logged(ts *testscript.TestScript, neg bool, args []string) {
	s := d.of(ts)
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		text, err := os.ReadFile(s.log)
		ts.Check(err)
		found := bytes.Contains(text, []byte(args[0]))
		switch {
		case found && neg:
			ts.Fatalf("the log holds %q", args[0])
		case found, neg:
			return
		case time.Now().After(end):
			ts.Fatalf("the log does not hold %q:\n%s", args[0], text)
		}
	}
}
