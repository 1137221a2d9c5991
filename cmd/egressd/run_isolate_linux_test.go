package main

import (
	"bytes"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/egressd/egressd/internal/selftest"
	"github.com/egressd/egressd/internal/testbed"
)

// isolatedBed is a world with origins, and a machine in it on which egressd runs.
type isolatedBed struct {
	net    *testbed.Net
	ca     *testbed.CA
	origin *testbed.Origin
	six    string // port of the origin six.test, IPv6 only
	dir    string // everybody may read it; holds egressd, origin.pem, p.yaml
}

func newIsolatedBed(t *testing.T) *isolatedBed {
	t.Helper()
	b := &isolatedBed{net: testbed.NewNet(t), ca: testbed.NewCA(t)}
	git := testbed.NewGit(t, "bot", "fake-password-for-tests")
	b.net.World.Do(t, func() {
		b.origin = testbed.NewOrigin(t, b.ca, testbed.OriginOptions{
			IP: b.net.World.V4.String(), Names: []string{"good.test", b.net.World.V4.String()}, Bearer: bearer, Mount: map[string]http.Handler{"/git/": git},
		})
	})
	ln := b.net.World.Listen(t, "tcp", net.JoinHostPort(b.net.World.V6.String(), "0"))
	_, b.six, _ = net.SplitHostPort(ln.Addr().String())
	leaf := b.ca.Leaf(t, "six.test")
	srv := &http.Server{ReadHeaderTimeout: 5 * time.Second, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = fmt.Fprintf(w, "six %s", r.Header.Get("Authorization"))
	})}
	t.Cleanup(func() { _ = srv.Close() })
	go func() { _ = srv.Serve(tls.NewListener(ln, &tls.Config{Certificates: []tls.Certificate{leaf}})) }()

	dir, err := os.MkdirTemp("/tmp", "egd-isolate-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	b.dir = dir
	policy := strings.ReplaceAll(isolatedPolicy, "PORT", strconv.Itoa(int(b.origin.Port())))
	err = errors.Join(os.Chmod(dir, 0o755), os.Symlink("/proc/self/exe", filepath.Join(dir, "egressd")),
		os.WriteFile(filepath.Join(dir, "origin.pem"), b.ca.PEM(), 0o644), os.WriteFile(filepath.Join(dir, "p.yaml"), []byte(policy), 0o644),
		os.Mkdir(filepath.Join(dir, "open"), 0o777), os.Chmod(filepath.Join(dir, "open"), 0o777))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

const isolatedPolicy = `apiVersion: egressd/v1
sandboxes:
  - id: agent
    identify: {sourceCIDRs: [192.0.2.200/32]}
    network:
      egress:
        trafficRules: [{name: good, action: allow, domains: [good.test], ports: [{port: PORT}]}]
        credentialRules: [{name: git, credentialRef: git, domains: [good.test], httpMatch: {pathPrefixes: [/git/]}}]
      credentialBindings: [{ref: git, sourceRef: git, projection: {type: username_password}}]
`

// command is egressd as uid on the machine in the middle of the world.
func (b *isolatedBed) command(uid int, args ...string) *exec.Cmd {
	cmd := egressd(args...)
	cmd.Dir = filepath.Join(b.dir, "open")
	cmd.Env = append(cmd.Env, "TOKEN="+bearer, "GIT_USER=bot", "GIT_PW=fake-password-for-tests", "HOME="+cmd.Dir, "TMPDIR=/tmp", "GIT_CONFIG_NOSYSTEM=1",
		"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
	if uid != os.Geteuid() {
		cmd.SysProcAttr = as(uid)
	}
	return cmd
}

// isolate runs args in isolation, with good.test and six.test and their credential allowed.
func (b *isolatedBed) isolate(t *testing.T, uid int, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	flags := []string{"run", "--isolate", "--inject", b.origin.HostPort() + "=TOKEN", "--inject", "six.test:" + b.six + "=TOKEN"}
	return b.finish(t, b.command(uid, append(append(flags, b.upstream()...), append([]string{"--"}, args...)...)...))
}

func (b *isolatedBed) upstream() []string {
	return []string{"--upstream-hosts", "good.test=" + b.net.World.V4.String() + ",six.test=" + b.net.World.V6.String(), "--allow-cidr", "192.0.2.0/24",
		"--allow-cidr", "2001:db8:77::/64", "--upstream-extra-ca-files", filepath.Join(b.dir, "origin.pem")}
}

func (b *isolatedBed) finish(t *testing.T, cmd *exec.Cmd) (stdout, stderr string, code int) {
	t.Helper()
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	b.net.Router.Do(t, func() {
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
	})
	err := cmd.Wait()
	var x *exec.ExitError
	if err != nil && !errors.As(err, &x) {
		t.Fatal(err)
	}
	return out.String(), errs.String(), cmd.ProcessState.ExitCode()
}

// asUsers runs f as root and as somebody without any privilege.
func asUsers(t *testing.T, f func(t *testing.T, uid int)) {
	for _, u := range []struct {
		name string
		uid  int
	}{{"root", 0}, {"unprivileged", nobody}} {
		t.Run(u.name, func(t *testing.T) { f(t, u.uid) })
	}
}

func TestIsolatedClients(t *testing.T) {
	b := newIsolatedBed(t)
	good, port := b.origin.HostPort(), strconv.Itoa(int(b.origin.Port()))
	curl := func(args ...string) []string {
		return append([]string{"curl", "-sS", "--max-time", "10", "-w", " %{http_code}"}, args...)
	}
	asUsers(t, func(t *testing.T, uid int) {
		for name, tc := range map[string]struct {
			args []string
			want string
			code int
		}{
			"curl by name, credential injected":  {curl("-o", "/dev/null", "https://"+good+"/bearer"), " 200", 0},
			"curl over IPv6":                     {curl("-6", "https://six.test:"+b.six+"/"), "six Bearer " + bearer + " 200", 0},
			"curl IPv4 only":                     {curl("-4", "-o", "/dev/null", "https://"+good+"/bearer"), " 200", 0},
			"curl by an address of its choice":   {curl("-o", "/dev/null", "--resolve", "good.test:"+port+":203.0.113.9", "https://"+good+"/bearer"), " 200", 0},
			"curl by a v6 address of its choice": {curl("-o", "/dev/null", "--resolve", "good.test:"+port+":[2001:db8::9]", "https://"+good+"/bearer"), " 200", 0},
			"curl by address, not allowed":       {curl("-k", "https://192.0.2.2:"+port+"/"), " 000", 35},
			"curl, a name that is not allowed":   {curl("https://evil.test/"), " 000", 6},
			"python":                             {[]string{"/usr/bin/python3", "-c", "import urllib.request as u; print(u.urlopen('https://" + good + "/bearer', timeout=10).status)"}, "200", 0},
			"dig":                                {[]string{"dig", "+short", "+time=3", "+tries=1", "good.test", "@8.8.8.8"}, "192.0.2.2", 0},
			"dig over TCP and IPv6":              {[]string{"dig", "+tcp", "+short", "+time=3", "+tries=1", "six.test", "AAAA", "@2001:db8::8"}, "2001:db8:77::2", 0},
			"no proxy variables":                 {[]string{"sh", "-c", "env | grep -ic _proxy"}, "0", 1},
			"no secret":                          {[]string{"sh", "-c", "env | grep -c " + bearer}, "0", 1},
		} {
			t.Run(name, func(t *testing.T) {
				out, errs, code := b.isolate(t, uid, tc.args...)
				if code != tc.code || strings.TrimSpace(out) != strings.TrimSpace(tc.want) {
					t.Errorf("%q, exit code %d; want %q, %d\n%s", out, code, tc.want, tc.code, errs)
				}
				if strings.Contains(errs, "egressd:") {
					t.Errorf("egressd says: %s", errs)
				}
			})
		}
	})
}

func TestIsolatedGitClone(t *testing.T) {
	b := newIsolatedBed(t)
	asUsers(t, func(t *testing.T, uid int) {
		target := fmt.Sprintf("clone-%d", uid)
		args := append([]string{"run", "--isolate", "--policy", filepath.Join(b.dir, "p.yaml"), "--source", "git.username=env:GIT_USER", "--source", "git.password=env:GIT_PW"}, b.upstream()...)
		args = append(args, "--", "git", "clone", "-q", "https://"+b.origin.HostPort()+"/git/repo.git", target)
		if _, errs, code := b.finish(t, b.command(uid, args...)); code != 0 {
			t.Fatalf("exit code %d\n%s", code, errs)
		}
		if text, err := os.ReadFile(filepath.Join(b.dir, "open", target, "README")); err != nil || string(text) != "hello from git\n" {
			t.Errorf("%q, %v", text, err)
		}
	})
}

// What the machine itself can reach and the policy does not allow: its own loopback, its
// other addresses, its neighbours.
func TestAttack_B01_B06_from_isolation(t *testing.T) {
	b := newIsolatedBed(t)
	var targets []string
	for _, at := range []string{"127.0.0.1:0", "[::1]:0", b.net.Router.HostPort(false, 9443), b.net.Router.HostPort(true, 9443)} {
		ln := b.net.Router.Listen(t, "tcp", at)
		targets = append(targets, ln.Addr().String())
		go greet(ln)
	}
	targets = append(targets, "169.254.169.254:80", "[fd00:ec2::254]:80", "100.100.100.200:80")
	asUsers(t, func(t *testing.T, uid int) {
		for _, to := range targets {
			out, errs, _ := b.isolate(t, uid, "curl", "-sS", "--http0.9", "--max-time", "5", "http://"+to+"/latest/meta-data/")
			if strings.Contains(out, "from outside") || strings.TrimSpace(out) != "" && !strings.Contains(out, `"code":`) {
				t.Errorf("%s: %q\n%s", to, out, errs)
			}
		}
	})
}

func greet(ln net.Listener) {
	for {
		c, err := ln.Accept()
		if err != nil {
			return
		}
		go func() {
			_ = c.SetDeadline(time.Now().Add(5 * time.Second))
			_, _ = c.Read(make([]byte, 4096)) // or closing would reset
			_, _ = io.WriteString(c, "HTTP/1.0 200 OK\r\n\r\nfrom outside\n")
			_ = c.Close()
		}()
	}
}

// Who the sandbox is does not depend on anything that it sends.
func TestAttack_F01_isolated_headers_tell_nothing(t *testing.T) {
	b := newIsolatedBed(t)
	log := filepath.Join(t.TempDir(), "audit.jsonl")
	args := append([]string{"run", "--isolate", "--allow", b.origin.HostPort(), "--audit-file", log}, b.upstream()...)
	args = append(args, "--", "curl", "-sS", "-o", "/dev/null", "--interface", "192.0.2.200", "-H", "X-Forwarded-For: 192.0.2.200", "-H", "Forwarded: for=192.0.2.200", "-H", "X-Real-IP: 192.0.2.200",
		"-H", "Proxy-Authorization: Basic YWdlbnQ6eA==", "https://"+b.origin.HostPort()+"/echo")
	if _, errs, code := b.finish(t, b.command(0, args...)); code != 0 {
		t.Fatalf("exit code %d\n%s", code, errs)
	}
	text, err := os.ReadFile(log)
	if err != nil || !bytes.Contains(text, []byte(`"sandbox":"run"`)) || bytes.Contains(text, []byte(`"sandbox":"agent"`)) {
		t.Errorf("%s, %v", text, err)
	}
}

func TestIsolatedExitCodes(t *testing.T) {
	b := newIsolatedBed(t)
	asUsers(t, func(t *testing.T, uid int) {
		for _, tc := range []struct {
			args []string
			code int
			say  string
		}{
			{[]string{"sh", "-c", "exit 42"}, 42, ""},
			{[]string{"sh", "-c", "kill -TERM $$"}, 143, ""},
			{[]string{"no-such-command"}, 127, "egressd: no-such-command: command not found\n"},
			{[]string{"/no/such/command"}, 127, "egressd: /no/such/command: command not found\n"},
			{[]string{"/etc/passwd"}, 126, "egressd: /etc/passwd: permission denied: is it executable?\n"},
			{[]string{"sh", "-c", "cat; echo err >&2"}, 0, "err\n"},
		} {
			_, errs, code := b.isolate(t, uid, tc.args...)
			if code != tc.code || errs != tc.say {
				t.Errorf("%q: exit code %d, stderr %q; want %d, %q", tc.args, code, errs, tc.code, tc.say)
			}
		}
	})
	if found, _ := filepath.Glob("/tmp/egressd-run-*"); len(found) > 0 {
		t.Logf("other runs have left or are using %v", found)
	}
}

// Signals reach the command, whose process is the one that egressd started.
func TestIsolatedSignals(t *testing.T) {
	cmd := egressd("run", "-q", "--isolate", "--allow", "good.test", "--", "sh", "-c", `trap 'echo got it; exit 7' USR1; echo begun; i=0; while [ $i -lt 100 ]; do sleep 0.1; i=$((i+1)); done`)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 64)
	if n, _ := out.Read(buf); string(buf[:n]) != "begun\n" {
		t.Fatalf("%q", buf[:n])
	}
	if err := cmd.Process.Signal(syscall.SIGUSR1); err != nil {
		t.Fatal(err)
	}
	rest, _ := io.ReadAll(out)
	err = cmd.Wait()
	var e *exec.ExitError
	if string(rest) != "got it\n" || !errors.As(err, &e) || e.ExitCode() != 7 {
		t.Errorf("%q, %v", rest, err)
	}
}

// The terminal is the command's: ^C comes once, from it.
func TestIsolatedTerminal(t *testing.T) {
	cmd := egressd("run", "-q", "--isolate", "--allow", "good.test", "--", "sh", "-c", `test -t 0 && echo tty; n=0; trap 'n=$((n+1)); echo int $n' INT; echo begun; for i in 1 2 3 4 5 6; do sleep 0.1; done; echo total $n`)
	tt := onTerminal(t, cmd)
	tt.wait(t, "begun")
	tt.enter(t, "\x03")
	if err := cmd.Wait(); err != nil {
		t.Fatalf("%v: %q", err, tt.shown())
	}
	tt.wait(t, "total 1")
	tt.wait(t, "tty")
}

// Without --isolate egressd says once what it does not enforce, and how it would.
func TestRunSaysWhatIsNotEnforced(t *testing.T) {
	out, err := egressd("run", "--allow", "good.test", "--", "true").CombinedOutput()
	if err != nil || strings.Count(string(out), "\n") != 1 || !strings.Contains(string(out), "goes out directly") || !strings.Contains(string(out), "--isolate") {
		t.Errorf("%s, %v", out, err)
	}
	if out, err := egressd("run", "--isolate", "--allow", "good.test", "--", "true").CombinedOutput(); err != nil || len(out) > 0 {
		t.Errorf("%s, %v", out, err)
	}
}

// selftestWorld answers on every port of the world that selftest tries.
func (b *isolatedBed) selftestWorld(t *testing.T) []string {
	t.Helper()
	for _, ip := range []string{b.net.World.V4.String(), b.net.World.V6.String()} {
		for _, port := range []string{"7", "53", "80", "443", "853"} {
			ln := b.net.World.Listen(t, "tcp", net.JoinHostPort(ip, port))
			pc := b.net.World.ListenPacket(t, "udp", net.JoinHostPort(ip, port))
			go greet(ln)
			go func() {
				buf := make([]byte, 2048)
				for {
					n, from, err := pc.ReadFrom(buf)
					if err != nil {
						return
					}
					_, _ = pc.WriteTo(buf[:n], from)
				}
			}()
		}
	}
	api := b.net.Router.Listen(t, "tcp", b.net.Router.HostPort(false, 9443))
	go greet(api)
	peer := b.net.Sandbox.Listen(t, "tcp", b.net.Sandbox.HostPort(false, 22))
	go greet(peer)
	sock, err := net.Listen("unix", filepath.Join(b.dir, "open", "api.sock"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = sock.Close() })
	if err := os.Chmod(sock.Addr().String(), 0o777); err != nil {
		t.Fatal(err)
	}
	return []string{"selftest", "--json", "--timeout", "2s", "--target4", b.net.World.HostPort(false, 7), "--target6", b.net.World.HostPort(true, 7), "--name", "evil.test:443",
		"--peer", peer.Addr().String(), "--api", api.Addr().String(), "--own", sock.Addr().String()}
}

func probesOf(t *testing.T, out string) []selftest.Result {
	t.Helper()
	var v struct {
		Success bool
		Data    struct {
			OK     bool
			Probes []selftest.Result
		}
	}
	if err := json.Unmarshal([]byte(out), &v); err != nil || !v.Success || len(v.Data.Probes) < 40 {
		t.Fatalf("%s: %v", out, err)
	}
	return v.Data.Probes
}

// TestAttack_B13_B14_B26_selftest_in_isolation: not one way out is open, nor unclear.
func TestAttack_B13_B14_B26_selftest_in_isolation(t *testing.T) {
	b := newIsolatedBed(t)
	args := append([]string{filepath.Join(b.dir, "egressd")}, b.selftestWorld(t)...)
	asUsers(t, func(t *testing.T, uid int) {
		out, errs, code := b.isolate(t, uid, args...)
		if code != 0 {
			t.Fatalf("exit code %d\n%s\n%s", code, errs, out)
		}
		seen := map[selftest.Verdict]int{}
		for _, r := range probesOf(t, out) {
			seen[r.Verdict]++
			if r.Verdict != selftest.Blocked && r.Verdict != selftest.Governed {
				t.Errorf("%+v", r)
			}
		}
		if seen[selftest.Governed] < 8 {
			t.Errorf("%v: egressd should have answered more", seen)
		}
	})
}

// TestAttack_B26_selftest_without_isolation finds the same world open and names each way.
func TestAttack_B26_selftest_without_isolation(t *testing.T) {
	b := newIsolatedBed(t)
	args := b.selftestWorld(t)
	out, errs, code := b.finish(t, b.command(0, args...))
	if code != exitCheck || errs != "" {
		t.Fatalf("exit code %d, want %d\n%s\n%s", code, exitCheck, errs, out)
	}
	open := selftest.Opened(probesOf(t, out))
	for _, want := range []string{
		"tcp-direct-v4", "http-direct-v4", "dns-tcp-v4", "dns-udp-v4", "dot-v4", "doh-v4", "quic-v4", "udp-other-v4", "icmp-v4", "ipip-v4",
		"tcp-direct-v6", "http-direct-v6", "dns-tcp-v6", "dns-udp-v6", "dot-v6", "doh-v6", "quic-v6", "udp-other-v6", "icmp-v6", "ipip-v6", "peer", "own-listener",
	} {
		if !slices.Contains(open, want) {
			t.Errorf("%s is not open: %v", want, open)
		}
	}
	out, errs, code = b.finish(t, b.command(0, slices.DeleteFunc(slices.Clone(args), func(s string) bool { return s == "--json" })...))
	if code != exitCheck || !strings.Contains(errs, "ways out are open: tcp-direct-v4, ") || !strings.Contains(out, "PROBE") {
		t.Errorf("exit code %d\n%s\n%s", code, errs, out)
	}
}

func TestSelftestArguments(t *testing.T) {
	for _, args := range [][]string{
		{"--target4", "192.0.2.1"}, {"--target4", "[2001:db8::1]:7"}, {"--target6", "192.0.2.1:7"}, {"--target4", "good.test:7"}, {"--name", "good.test"},
		{"--api", "good.test"}, {"--timeout", "0s"}, {"--target4", "192.0.2.1:0"}, {"extra"},
	} {
		var errs bytes.Buffer
		if code := Run(t.Context(), append([]string{"selftest"}, args...), nil, io.Discard, &errs, nil); code != exitUsage || strings.Count(errs.String(), "\n") != 1 {
			t.Errorf("%q: exit code %d, %s", args, code, errs.String())
		}
	}
}
