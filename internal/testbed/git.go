package testbed

import (
	"bytes"
	"io"
	"net/http"
	"net/http/cgi"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

// Git serves one repository over smart HTTP with `git http-backend`, for clone, fetch
// and push, to those who know its user name and password.
type Git struct {
	root string // the project root; the repository is <root>/repo.git
	cgi  *cgi.Handler

	mu       sync.Mutex
	user, pw string
	refused  int
}

// NewGit makes a bare repository with one commit on main (README "hello from git").
// Mount it on an Origin: Mount: map[string]http.Handler{"/git/": g}; its URL is then
// /git/repo.git.
func NewGit(t testing.TB, user, password string) *Git {
	t.Helper()
	bin, err := exec.LookPath("git")
	if err != nil {
		t.Fatal("testbed: git is needed: run `make deps`")
	}
	g := &Git{root: t.TempDir(), user: user, pw: password}
	bare, work := filepath.Join(g.root, "repo.git"), t.TempDir()
	if err := os.WriteFile(filepath.Join(work, "README"), []byte("hello from git\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{
		{"init", "-q", "--bare", "-b", "main", bare},
		{"-C", bare, "config", "http.receivepack", "true"},
		{"-C", work, "init", "-q", "-b", "main"},
		{"-C", work, "add", "README"},
		{"-C", work, "commit", "-q", "-m", "first"},
		{"-C", work, "push", "-q", bare, "main"},
	} {
		GitRun(t, nil, args...)
	}
	g.cgi = &cgi.Handler{
		Path: bin,
		Args: []string{"http-backend"},
		Root: "/git",
		Env: append([]string{"GIT_PROJECT_ROOT=" + g.root, "GIT_HTTP_EXPORT_ALL=1", "REMOTE_USER=" + user,
			"HOME=" + g.root}, gitEnv...),
		InheritEnv: []string{"PATH"},
		Stderr:     io.Discard,
	}
	return g
}

var gitEnv = []string{
	"GIT_CONFIG_NOSYSTEM=1", "GIT_CONFIG_GLOBAL=/dev/null", "GIT_TERMINAL_PROMPT=0",
	"GIT_AUTHOR_NAME=testbed", "GIT_AUTHOR_EMAIL=testbed@example.test",
	"GIT_COMMITTER_NAME=testbed", "GIT_COMMITTER_EMAIL=testbed@example.test",
}

// GitEnv is the environment that keeps git off the machine's own configuration and off
// the terminal. It is a copy.
func GitEnv() []string { return append([]string(nil), gitEnv...) }

// GitRun runs git with GitEnv and extra, and fails the test with its output if it fails.
func GitRun(t testing.TB, extra []string, args ...string) string {
	t.Helper()
	cmd := exec.Command("git", args...)
	cmd.Env = append(append(os.Environ(), gitEnv...), extra...)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("git %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

// Set changes what is demanded from now on.
func (g *Git) Set(user, password string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.user, g.pw = user, password
}

// Refused counts the requests that were answered 401.
func (g *Git) Refused() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.refused
}

// Head is the commit that main points to.
func (g *Git) Head(t testing.TB) string {
	t.Helper()
	return strings.TrimSpace(GitRun(t, nil, "-C", filepath.Join(g.root, "repo.git"), "rev-parse", "main"))
}

func (g *Git) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	user, pw, ok := r.BasicAuth()
	g.mu.Lock()
	ok = ok && same(user, g.user) && same(pw, g.pw)
	if !ok {
		g.refused++
	}
	g.mu.Unlock()
	if !ok {
		w.Header().Set("WWW-Authenticate", `Basic realm="git"`)
		http.Error(w, "authentication wanted", http.StatusUnauthorized)
		return
	}
	if r.ContentLength < 0 { // net/http/cgi takes no body of unknown length
		body, err := io.ReadAll(io.LimitReader(r.Body, 64<<20))
		if err != nil {
			http.Error(w, "the body broke off", http.StatusBadRequest)
			return
		}
		r.Body, r.ContentLength, r.TransferEncoding = io.NopCloser(bytes.NewReader(body)), int64(len(body)), nil
	}
	g.cgi.ServeHTTP(w, r)
}
