package proxy_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/egressd/egressd/internal/audit"
	"github.com/egressd/egressd/internal/testbed"
	"github.com/egressd/egressd/proxy"
)

const gitSSHPolicy = `
apiVersion: egressd/v1
sandboxes:
  - id: one
    team: acme
    identify: {sourceCIDRs: [127.0.0.1/32], proxyTokens: ["TOKENONE"]}
    network:
      egress:
        trafficRules:
          - {name: good, action: allow, domains: [good.test]}
          - {name: git, action: allow, domains: [ssh.test], appProtocols: [ssh]}
        protocolRules:
          - RULE
        credentialRules:
          - {name: ssh, credentialRef: key, protocol: ssh, domains: [ssh.test]}
          - {name: good-token, credentialRef: gh, protocol: https, domains: [good.test]}
      credentialBindings:
        - ref: gh
          sourceRef: gh-source
          projection: {type: http_headers, httpHeaders: {headers: [{name: Authorization, valueTemplate: "Bearer {{ .token }}"}]}}
        - ref: key
          sourceRef: key
          projection: {type: ssh_proxy, sshProxy: {sandboxPublicKeys: ["PUBLIC"], upstreamUsername: root, knownHosts: ["KNOWN"]}}
`

// TestGitOverSSH: OpenSSH's client and git's, by nc through SOCKS5 and by a script through
// CONNECT, to OpenSSH's server, under rules that let them read.
func TestGitOverSSH(t *testing.T) {
	t.Parallel()
	g := attacked(t, options{hosts: map[string]string{"ssh.test": "127.0.0.1"}, limits: proxy.Limits{HandshakeTimeout: 8 * time.Second}})
	d := startSSH(t)
	dir := t.TempDir()
	private, public := newSSHKey(t)
	g.put("acme", "key", "static_ssh_private_key", map[string]any{"staticSSHPrivateKey": map[string]string{"privateKeyPem": d.userKey}})
	use := func(rule string) {
		g.use(strings.NewReplacer("RULE", rule, "PUBLIC", public, "KNOWN", fmt.Sprintf("[ssh.test]:%d %s", d.port, d.hostKey)).Replace(gitSSHPolicy))
	}
	repos := bareRepositories(t, dir)
	key := filepath.Join(dir, "id")
	script := filepath.Join(dir, "connect.py")
	if err := errors.Join(os.WriteFile(key, []byte(private), 0o600), os.WriteFile(script, []byte(connectScript), 0o600)); err != nil {
		t.Fatal(err)
	}
	host, port, _ := strings.Cut(g.addr, ":")
	run := func(t *testing.T, by string, name string, args ...string) (string, error) {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		// What host key egressd shows is not what is tested here.
		ssh := []string{tool(t, "ssh"), "-F", "none", "-i", key, "-o", "IdentitiesOnly=yes", "-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null",
			"-o", "LogLevel=ERROR", "-o", "ProxyCommand=" + by, "-p", fmt.Sprint(d.port)}
		var cmd *exec.Cmd
		if name == "ssh" {
			cmd = exec.CommandContext(ctx, ssh[0], append(append(ssh[1:], "me@ssh.test"), args...)...)
		} else {
			for i, a := range ssh {
				ssh[i] = "'" + a + "'"
			}
			cmd = exec.CommandContext(ctx, tool(t, "git"), args...)
			cmd.Env = append(append(os.Environ(), testbed.GitEnv()...), "GIT_SSH_COMMAND="+strings.Join(ssh[:len(ssh)-2], " "))
		}
		out, err := cmd.CombinedOutput()
		g.note(out)
		return string(out), err
	}
	url := func(repo string) string { return fmt.Sprintf("ssh://me@ssh.test:%d%s", d.port, repo) }
	ways := map[string]string{
		"SOCKS5":  tool(t, "nc") + " -X 5 -x " + g.addr + " %h %p",
		"CONNECT": tool(t, "python3") + " " + script + " " + host + " " + port + " one " + tokenOne + " %h %p",
	}
	for rule, text := range map[string]string{
		"ssh": `{name: read, protocol: ssh, domains: [ssh.test], ssh: {commands: {allowed: ["git-upload-pack *"]}}}`,
		"git": `{name: read, protocol: git, domains: [ssh.test], git: {repositories: {allowed: ["` + strings.TrimPrefix(repos[0], "/") + `"]}, push: false}}`,
	} {
		for way, by := range ways {
			t.Run(rule+" by "+way, func(t *testing.T) {
				g.forget()
				use(text)
				work := filepath.Join(t.TempDir(), "work")
				if out, err := run(t, by, "git", "clone", "-q", url(repos[0]), work); err != nil {
					t.Fatalf("clone: %v: %s", err, out)
				}
				if b, err := os.ReadFile(filepath.Join(work, "README")); err != nil || string(b) != "hello\n" {
					t.Fatalf("%q %v", b, err)
				}
				testbed.GitRun(t, nil, "-C", work, "commit", "-q", "--allow-empty", "-m", "second")
				before := head(t, repos[0])
				if out, err := run(t, by, "git", "-C", work, "push", "-q", "origin", "main"); err == nil || head(t, repos[0]) != before {
					t.Errorf("it was pushed: %s", out)
				}
				for _, args := range [][]string{nil, {"id"}, {"git-receive-pack '" + repos[0] + "'"}, {"git-upload-pack '" + repos[0] + "'; id"}, {"-s", "sftp"}} {
					out, err := run(t, by, "ssh", append([]string{"-T"}, args...)...)
					if err == nil || strings.Contains(out, "uid=") {
						t.Errorf("ssh %q: %s", args, out)
					}
				}
				if out, err := run(t, by, "git", "clone", "-q", url(repos[1]), work+"2"); (err == nil) != (rule == "ssh") {
					t.Errorf("the other repository: %v: %s", err, out)
				}
				g.records.wait(t, func(a audit.Record) bool {
					return a.Sandbox == "one" && a.Protocol == "ssh" && a.Source == "key" && a.Version == 1 && a.CredentialRule == "ssh" && a.BytesIn > 0 && a.BytesOut > 0
				})
				g.records.wait(t, func(a audit.Record) bool {
					return a.Method == "ssh-exec" && a.Outcome == "denied" && a.Rule == "read" && a.Code == "policy_denied"
				})
				g.records.wait(t, func(a audit.Record) bool { return a.Method == "ssh-shell" && a.Outcome == "denied" })
			})
		}
	}
	t.Run("push allowed", func(t *testing.T) {
		use(`{name: ours, protocol: git, domains: [ssh.test], git: {repositories: {allowed: ["` + strings.TrimPrefix(repos[0], "/") + `"]}, push: true}}`)
		work := filepath.Join(t.TempDir(), "work")
		if out, err := run(t, ways["SOCKS5"], "git", "clone", "-q", url(repos[0]), work); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		testbed.GitRun(t, nil, "-C", work, "commit", "-q", "--allow-empty", "-m", "second")
		if out, err := run(t, ways["SOCKS5"], "git", "-C", work, "push", "-q", "origin", "main"); err != nil || head(t, repos[0]) != head(t, work) {
			t.Errorf("%v: %s", err, out)
		}
	})
	testbed.NoLeak(t, "what clients saw, and the records", fmt.Appendf(g.seenBytes(), "%+v", g.records.list()), d.userKey)
	g.safe(t)
}

// bareRepositories are two with a README each.
func bareRepositories(t *testing.T, dir string) [2]string {
	t.Helper()
	var repos [2]string
	for i := range repos {
		repos[i] = filepath.Join(dir, fmt.Sprintf("repo%d.git", i))
		work := t.TempDir()
		if err := os.WriteFile(filepath.Join(work, "README"), []byte("hello\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		for _, args := range [][]string{{"init", "-q", "--bare", "-b", "main", repos[i]}, {"-C", work, "init", "-q", "-b", "main"}, {"-C", work, "add", "README"},
			{"-C", work, "commit", "-q", "-m", "first"}, {"-C", work, "push", "-q", repos[i], "main"}} {
			testbed.GitRun(t, nil, args...)
		}
	}
	return repos
}

func head(t *testing.T, repo string) string {
	t.Helper()
	return strings.TrimSpace(testbed.GitRun(t, nil, "-C", repo, "rev-parse", "main"))
}

// connectScript is a ProxyCommand that logs in at the proxy, which nc cannot without a
// terminal.
const connectScript = `
import base64, os, socket, sys, threading
proxy, port, user, token, host, to = sys.argv[1:]
s = socket.create_connection((proxy, int(port)), 10)
login = base64.b64encode((user + ":" + token).encode()).decode()
s.sendall(("CONNECT %s:%s HTTP/1.1\r\nHost: %s:%s\r\nProxy-Authorization: Basic %s\r\n\r\n" % (host, to, host, to, login)).encode())
head = b""
while not head.endswith(b"\r\n\r\n"):
    b = s.recv(1)
    if not b: sys.exit(1)
    head += b
if b" 200 " not in head.split(b"\r\n")[0]: sys.exit(1)
s.settimeout(None)
def up():
    while True:
        b = os.read(0, 65536)
        if not b:
            try: s.shutdown(socket.SHUT_WR)
            except OSError: pass
            return
        s.sendall(b)
threading.Thread(target=up, daemon=True).start()
while True:
    b = s.recv(65536)
    if not b: break
    while b: b = b[os.write(1, b):]
`
