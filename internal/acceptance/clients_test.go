package acceptance

import (
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/egressd/egressd/internal/testbed"
)

// realClient is a program that makes one GET of url and prints
// "<status> [<version>] <body>".
type realClient struct {
	name    string
	version string // of HTTP, as the client reports it behind the status; "" if it does not
	argv    func(t *testing.T, url string) []string
}

const nodeScript = `const r = await fetch(process.argv[1]); process.stdout.write(r.status + " " + await r.text())`

const pythonScript = `
import sys, urllib.request, urllib.error
try:
    r = urllib.request.urlopen(sys.argv[1], timeout=20)
except urllib.error.HTTPError as e:
    r = e
sys.stdout.write("%d %s" % (r.status, r.read().decode()))
`

func realClients() []realClient {
	curl := func(flag string) func(*testing.T, string) []string {
		return func(t *testing.T, url string) []string {
			// The body goes first with -o -, so the status is put before it by hand.
			return []string{"/bin/sh", "-c", `out=$("$0" -sS ` + flag + ` --max-time 20 -w '\n%{http_code} %{http_version}' "$1") || exit 9; printf '%s %s' "$(printf %s "$out" | tail -n 1)" "$out"`, testbed.Tool(t, "curl"), url}
		}
	}
	return []realClient{
		{name: "curl h1", version: "1.1 ", argv: curl("--http1.1")},
		{name: "curl h2", version: "2 ", argv: curl("--http2")},
		{name: "node fetch", argv: func(t *testing.T, url string) []string {
			return []string{testbed.Node(t), "--input-type=module", "-e", nodeScript, url}
		}},
		{name: "python urllib", argv: func(t *testing.T, url string) []string {
			return []string{testbed.Tool(t, "python3"), "-c", pythonScript, url}
		}},
		{name: "go net-http", argv: func(t *testing.T, url string) []string {
			return []string{"/usr/bin/env", childMode + "=fetch", self(t), url}
		}},
	}
}

func self(t *testing.T) string {
	t.Helper()
	path, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// runConfig writes a config for `egressd run` that knows the bed's names.
func runConfig(t *testing.T, ca *testbed.CA, hosts ...string) string {
	t.Helper()
	var lines strings.Builder
	for _, h := range hosts {
		lines.WriteString("    " + h + "\n")
	}
	text := fmt.Sprintf("apiVersion: egressd/v1\nupstream:\n  extraCAFiles: [%s]\n  allowCIDRs: [127.0.0.0/8]\n  hosts:\n%s", ca.File(t), lines.String())
	file := filepath.Join(t.TempDir(), "run.yaml")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// Issue point 2: real clients through `egressd run`, each with a wrong and with a right
// credential.
func TestRealClients(t *testing.T) {
	ca := testbed.NewCA(t)
	right, wrong := testbed.NewToken(), testbed.NewToken()
	origin := testbed.NewOrigin(t, ca, testbed.OriginOptions{Bearer: right})
	config := runConfig(t, ca, "good.test: 127.0.0.2")
	for _, c := range realClients() {
		t.Run(c.name, func(t *testing.T) {
			argv := c.argv(t, origin.URL("/bearer"))
			for _, try := range []struct{ name, token, status, body string }{
				{"wrong", wrong, "401", "bearer token wanted"}, {"right", right, "200", "authorized"},
			} {
				before := len(origin.Requests())
				got := command("", []string{"API_TOKEN=" + try.token},
					append([]string{"run", "--quiet", "--config", config, "--inject", fmt.Sprintf("good.test:%d=API_TOKEN", origin.Port()), "--"}, argv...)...)
				if got.code != 0 || !strings.HasPrefix(got.stdout, try.status+" "+c.version) || !strings.Contains(got.stdout, try.body) {
					t.Errorf("%s credential: want %s %q, got %s", try.name, try.status, try.body, got)
				}
				testbed.NoLeak(t, "what the client printed", []byte(got.stdout+got.stderr), try.token)
				reqs := origin.Requests()[before:]
				if len(reqs) != 1 || reqs[0].Header.Get("Authorization") != "Bearer "+try.token {
					t.Fatalf("%s credential: the origin saw %d requests", try.name, len(reqs))
				}
			}
		})
	}
}

const gitPolicy = `
apiVersion: egressd/v1
sandboxes:
  - id: builder
    identify: {proxyTokens: ["TOKEN"]}
    network:
      egress:
        trafficRules:
          - {name: git, action: allow, domains: [git.test]}
        credentialRules:
          - {name: git, credentialRef: git, protocol: https, domains: [git.test]}
      credentialBindings:
        - {ref: git, sourceRef: git, projection: {type: username_password}}
`

// Issue point 2: git clone and push over https with Basic, with a wrong and with a right
// password. The repository decides: the push is there, or it is not.
func TestRealClientGit(t *testing.T) {
	ca := testbed.NewCA(t)
	right, wrong := "pw-"+testbed.NewToken(), "pw-"+testbed.NewToken()
	repo := testbed.NewGit(t, "bot", right)
	origin := testbed.NewOrigin(t, ca, testbed.OriginOptions{IP: "127.0.0.6", Names: []string{"git.test"}, Mount: map[string]http.Handler{"/git/": repo}})
	config := runConfig(t, ca, "git.test: 127.0.0.6")
	policy := filepath.Join(t.TempDir(), "git.yaml")
	if err := os.WriteFile(policy, []byte(expand(gitPolicy)), 0o600); err != nil {
		t.Fatal(err)
	}
	git := func(password string, args ...string) ended {
		full := append([]string{"run", "--quiet", "--config", config, "--policy", policy,
			"--source", "git.username=env:GIT_USER", "--source", "git.password=env:GIT_PASSWORD", "--", testbed.Tool(t, "git")}, args...)
		return command("", append(testbed.GitEnv(), "GIT_USER=bot", "GIT_PASSWORD="+password), full...)
	}
	url := origin.URL("/git/repo.git")

	work := filepath.Join(t.TempDir(), "wrong")
	if got := git(wrong, "clone", "-q", url, work); got.code == 0 || repo.Refused() == 0 {
		t.Fatalf("clone with a wrong password: %s", got)
	}
	work = filepath.Join(t.TempDir(), "right")
	if got := git(right, "clone", "-q", url, work); got.code != 0 {
		t.Fatalf("clone with the right password: %s", got)
	}
	if b, err := os.ReadFile(filepath.Join(work, "README")); err != nil || string(b) != "hello from git\n" {
		t.Fatalf("README: %q, %v", b, err)
	}
	// Large and incompressible, so that git sends it chunked.
	big, err := os.Create(filepath.Join(work, "big"))
	if err != nil {
		t.Fatal(err)
	}
	dd := exec.Command("head", "-c", "3000000", "/dev/urandom")
	dd.Stdout = big
	if err := dd.Run(); err != nil {
		t.Fatal(err)
	}
	_ = big.Close()
	testbed.GitRun(t, nil, "-C", work, "add", "big")
	testbed.GitRun(t, nil, "-C", work, "commit", "-q", "-m", "second")
	commit := strings.TrimSpace(testbed.GitRun(t, nil, "-C", work, "rev-parse", "HEAD"))
	if got := git(wrong, "-C", work, "push", "-q", "origin", "main"); got.code == 0 || repo.Head(t) == commit {
		t.Fatalf("push with a wrong password: %s", got)
	}
	if got := git(right, "-C", work, "push", "-q", "origin", "main"); got.code != 0 || repo.Head(t) != commit {
		t.Fatalf("push with the right password: main is %s, want %s; %s", repo.Head(t), commit, got)
	}
	if got := testbed.GitRun(t, nil, "-C", work, "config", "--list", "--local"); strings.Contains(got, right) {
		t.Error("the password is in the clone's configuration")
	}
}
