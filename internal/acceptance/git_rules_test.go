package acceptance

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/egressd/egressd/internal/testbed"
)

const gitRulesPolicy = `
apiVersion: egressd/v1
sandboxes:
  - id: builder
    identify: {proxyTokens: ["TOKEN"]}
    network:
      egress:
        trafficRules:
          - {name: git, action: allow, domains: [git.test]}
        protocolRules:
          - {name: ours, protocol: git, domains: [git.test], git: {repositories: {allowed: [ALLOWED]}, push: PUSH}}
        credentialRules:
          - {name: git, credentialRef: git, protocol: https, domains: [git.test]}
      credentialBindings:
        - {ref: git, sourceRef: git, projection: {type: username_password}}
`

// Git's own client against git http-backend under protocol rule git: what may be read and
// pushed is decided by what the service is asked, and the password is never the sandbox's.
func TestGitRules(t *testing.T) {
	ca := testbed.NewCA(t)
	password := "pw-" + testbed.NewToken()
	repo := testbed.NewGit(t, "bot", password)
	origin := testbed.NewOrigin(t, ca, testbed.OriginOptions{IP: "127.0.0.6", Names: []string{"git.test"}, Mount: map[string]http.Handler{"/git/": repo}})
	config := runConfig(t, ca, "git.test: 127.0.0.6")
	url := origin.URL("/git/repo.git")
	git := func(t *testing.T, allowed, push string, args ...string) ended {
		t.Helper()
		policy := filepath.Join(t.TempDir(), "git.yaml")
		if err := os.WriteFile(policy, []byte(expand(strings.NewReplacer("ALLOWED", allowed, "PUSH", push).Replace(gitRulesPolicy))), 0o600); err != nil {
			t.Fatal(err)
		}
		full := append([]string{"run", "--quiet", "--config", config, "--policy", policy,
			"--source", "git.username=env:GIT_USER", "--source", "git.password=env:GIT_PASSWORD", "--", testbed.Tool(t, "git")}, args...)
		got := command("", append(testbed.GitEnv(), "GIT_USER=bot", "GIT_PASSWORD="+password), full...)
		testbed.NoLeak(t, "what git printed", []byte(got.stdout+got.stderr), password)
		return got
	}
	work := filepath.Join(t.TempDir(), "work")
	if got := git(t, "git/*", "false", "clone", "-q", url, work); got.code != 0 {
		t.Fatalf("clone: %s", got)
	}
	if b, err := os.ReadFile(filepath.Join(work, "README")); err != nil || string(b) != "hello from git\n" {
		t.Fatalf("README: %q, %v", b, err)
	}
	for i, tc := range []struct {
		name, allowed, push string
		pushed              bool
	}{
		{"push: false", "git/repo", "false", false},
		{"push: true, another repository", "git/other", "true", false},
		{"push: true", "git/repo.git", "true", true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			file := filepath.Join(work, fmt.Sprint("file", i))
			if err := os.WriteFile(file, []byte(tc.name), 0o600); err != nil {
				t.Fatal(err)
			}
			testbed.GitRun(t, nil, "-C", work, "add", file)
			testbed.GitRun(t, nil, "-C", work, "commit", "-q", "-m", tc.name)
			before, seen := repo.Head(t), len(origin.Requests())
			got := git(t, tc.allowed, tc.push, "-C", work, "push", "-q", "origin", "main")
			commit := strings.TrimSpace(testbed.GitRun(t, nil, "-C", work, "rev-parse", "HEAD"))
			switch {
			case tc.pushed && (got.code != 0 || repo.Head(t) != commit):
				t.Errorf("main is %s, want %s; %s", repo.Head(t), commit, got)
			case !tc.pushed && (got.code == 0 || repo.Head(t) != before || !strings.Contains(got.stderr, "403")):
				t.Errorf("it was pushed, or nobody said why not: %s", got)
			case !tc.pushed && len(origin.Requests()) != seen:
				t.Errorf("the origin was asked: %+v", origin.Requests()[seen:])
			}
		})
	}
	t.Run("reading another repository", func(t *testing.T) {
		for _, path := range []string{"/git/repo.git", "/git/./repo.git", "/other/../git/repo.git", "/git/repo"} {
			seen := len(origin.Requests())
			if got := git(t, "git/other", "true", "clone", "-q", origin.URL(path), filepath.Join(t.TempDir(), "x")); got.code == 0 {
				t.Errorf("%s was cloned: %s", path, got)
			}
			if len(origin.Requests()) != seen {
				t.Errorf("%s: the origin was asked: %+v", path, origin.Requests()[seen:])
			}
		}
	})
	if repo.Refused() != 0 {
		t.Errorf("%d requests came without the password", repo.Refused())
	}
}
