package policy

import (
	"io"
	"net/http"
	"net/http/cgi"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

func gitFlow(method, target, contentType string) *Flow {
	path, query, _ := strings.Cut(target, "?")
	f := &Flow{Method: method, Path: path, RawQuery: query}
	if contentType != "" {
		f.Header = http.Header{"Content-Type": {contentType}}
	}
	return f
}

func TestGitOverHTTP(t *testing.T) {
	for _, c := range []struct {
		method, target, contentType string
		want                        string // "", or "read repo", "write repo", "odd"
	}{
		{"GET", "/acme/a.git/info/refs?service=git-upload-pack", "", "read acme/a"},
		{"GET", "/acme/a/info/refs?service=git-upload-pack", "", "read acme/a"},
		{"GET", "/acme/a/info/refs?service=git-upload-archive", "", "read acme/a"},
		{"GET", "/group/sub/a.git/info/refs?service=git-receive-pack", "", "write group/sub/a"},
		{"HEAD", "/acme/a.git/info/refs", "", "read acme/a"},
		{"POST", "/acme/a.git/git-upload-pack", "application/x-git-upload-pack-request", "read acme/a"},
		{"POST", "/acme/a.git/git-receive-pack", "application/x-git-receive-pack-request", "write acme/a"},
		{"GET", "/acme/a.git/HEAD", "", "read acme/a"},
		{"GET", "/acme/a.git", "", "read acme/a"},
		{"GET", "/acme/a/objects/info/packs", "", "read acme/a"},
		{"GET", "/acme/a/objects/ab/0123456789012345678901234567890123456789", "", "read acme/a"},
		{"GET", "/acme/a/objects/pack/pack-1.idx", "", "read acme/a"},
		{"PUT", "/acme/a.git/objects/ab/x", "", "write acme/a"},
		{"PUT", "/acme/a/refs/heads/main", "", "write acme/a"},
		{"GET", "/acme/a/refs/heads/main", "", ""},
		{"MOVE", "/acme/a/tmp", "", "write "},
		{"LOCK", "/x", "", "write "},
		{"GET", "/acme/a.git/info/lfs/locks", "", "read acme/a"},
		{"POST", "/acme/a/info/lfs/objects/batch", "", "write acme/a"},
		{"PUT", "/acme/a.git/gitlab-lfs/objects/x/1", "", "write acme/a"},

		// no git
		{"GET", "/acme/a/pulls", "", ""},
		{"POST", "/api/graphql", "application/json", ""},
		{"GET", "/acme/a/tree/HEAD", "", ""},
		{"GET", "/acme/a/blob/main/git-receive-pack.c", "", ""},
		{"GET", "/search?service=web", "", ""},
		{"GET", "/v1/objects/info/x", "", ""},
		{"GET", "/", "", ""},

		// odd
		{"GET", "/a/info/refs?service=git-upload-pack&service=git-receive-pack", "", "odd"},
		{"GET", "/a/info/refs?service=git-receive-pack&service=git-upload-pack", "", "odd"},
		{"GET", "/a/info/refs?x=1&service=git-receive-pack", "", "odd"},
		{"GET", "/a/info/refs?service=git-receive-pack&x=1", "", "odd"},
		{"GET", "/a/info/refs?service=git%2Dreceive%2Dpack", "", "odd"},
		{"GET", "/a/info/refs?serv%69ce=git-receive-pack", "", "odd"},
		{"GET", "/a/info/refs?Service=git-receive-pack", "", "odd"},
		{"GET", "/a/info/refs?service=GIT-RECEIVE-PACK", "", "odd"},
		{"GET", "/a/info/refs?service=git-upload-pack;service=git-receive-pack", "", "odd"},
		{"GET", "/a/info/refs?service=git-upload-pack%26service=git-receive-pack", "", "odd"},
		{"GET", "/a/info/refs?service=git-upload-pack%00", "", "odd"},
		{"GET", "/a/info/refs?&service=git-upload-pack", "", "odd"},
		{"GET", "/a/info/refs/?service=git-receive-pack", "", "odd"},
		{"GET", "/a/info/refs;x?service=git-receive-pack", "", "odd"},
		{"GET", "/a/info;x/refs?service=git-receive-pack", "", "odd"},
		{"GET", "/a/Info/REFS?service=git-receive-pack", "", "odd"},
		{"GET", "/a/info/refs/info/refs?service=git-upload-pack", "", "odd"},
		{"POST", "/a/info/refs?service=git-upload-pack", "", "odd"},
		{"GET", "/a?service=git-receive-pack", "", "odd"},
		{"GET", "/a?x=%zz&SERVICE=%67it-receive-pack", "", "odd"},
		{"GET", "/a.git/git-receive-pack", "", "odd"},
		{"post", "/a.git/git-receive-pack", "", "odd"},
		{"POST", "/a.git/GIT-RECEIVE-PACK", "", "odd"},
		{"POST", "/a.git/git-receive-pack/", "", "odd"},
		{"POST", "/a.git/git-receive-pack/x", "", "odd"},
		{"POST", "/a.git/git-receive-pack;x=1", "", "odd"},
		{"POST", "/a.git/git-receive-pack.", "", "odd"},
		{"POST", "/a.git/git-receive-pack%20", "", "odd"},
		{"POST", "/a.git/git-receive-pack?x", "", "odd"},
		{"POST", "/a.git/git-upload-pack?service=git-receive-pack", "", "odd"},
		{"POST", "/a.git/git-upload-pack", "application/x-git-receive-pack-request", "odd"},
		{"POST", "/a.git/git-upload-pack", "text/plain", "odd"},
		{"POST", "/a.git/x", "application/x-git-receive-pack-request", "odd"},
		{"POST", "/a", "Application/X-Git-Receive-Pack-Request; a", "odd"},
		{"GET", "/a.GIT/info/refs?service=git-upload-pack", "", "read a.GIT"}, // refused as odd by the policy
	} {
		got := ""
		if r, ok := gitOverHTTP(gitFlow(c.method, c.target, c.contentType)); ok {
			got = map[bool]string{false: "read ", true: "write "}[r.write] + r.repo
			if r.odd {
				got = "odd"
			}
		}
		if got != c.want {
			t.Errorf("%s %s %s: %q, want %q", c.method, c.target, c.contentType, got, c.want)
		}
	}
	all := gitPolicy{push: true}
	for _, target := range []string{"/a.GIT/info/refs", "/a.git.git/info/refs", "/x;y/a.git/info/refs", "", "*", "a/git-upload-pack"} {
		if why, _ := all.refusesHTTP(gitFlow("GET", target, "")); why == "" {
			t.Errorf("%s passes: which repository that is depends on the server", target)
		}
	}
	secret := gitPolicy{repositories: globPolicy{denied: []glob{"acme/secret"}}}
	for _, target := range []string{"/acme/secret/info/refs", "/ACME/Secret.git/info/refs", "/acme;x/secret/info/refs", "/acme/secret/.git/info/refs", "/acme/secret.git/config", "/acme/secret.Git/HEAD"} {
		if why, _ := secret.refusesHTTP(gitFlow("GET", target, "")); why == "" {
			t.Errorf("%s passes", target)
		}
	}
	limited := gitPolicy{push: true, repositories: globPolicy{denied: []glob{"a/b"}}}
	if why, _ := limited.refusesHTTP(gitFlow("LOCK", "/a/b/x", "")); why != "names no repository" {
		t.Errorf("WebDAV under a list of repositories: %q", why)
	}
}

func TestRepositoryName(t *testing.T) {
	for in, want := range map[string]string{
		"/acme/a.git": "acme/a", "acme/a": "acme/a", "/acme/a/": "acme/a", "/acme/a.git/": "acme/a", "/acme/a/.git": "acme/a", "/": "", "/.git": ".git",
	} {
		if got := repositoryName(in); got != want {
			t.Errorf("%s: %q, want %q", in, got, want)
		}
	}
}

// gitBackend serves one repository that takes pushes, by git's own http-backend.
func gitBackend(t *testing.T) http.Handler {
	t.Helper()
	git, err := exec.LookPath("git")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for _, args := range [][]string{{"init", "-q", "--bare", filepath.Join(dir, "a.git")}, {"-C", filepath.Join(dir, "a.git"), "config", "http.receivepack", "true"}} {
		cmd := exec.Command(git, args...)
		cmd.Env = append(os.Environ(), "HOME="+dir, "GIT_CONFIG_NOSYSTEM=1")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("git %v: %v\n%s", args, err, out)
		}
	}
	return &cgi.Handler{Path: git, Args: []string{"http-backend"}, Dir: dir, Stderr: io.Discard,
		Env: []string{"GIT_PROJECT_ROOT=" + dir, "GIT_HTTP_EXPORT_ALL=1", "HOME=" + dir, "GIT_CONFIG_NOSYSTEM=1", "REMOTE_USER=x"}}
}

// Whatever git's own server takes for a push is refused by push: false.
func TestAttack_E06_git_http_backend(t *testing.T) {
	backend := gitBackend(t)
	readOnly := gitPolicy{}
	pushes := 0
	for _, target := range []string{
		"/a.git/info/refs?service=git-receive-pack", "/a/info/refs?service=git-receive-pack", "/a.git/info/refs?service=git-upload-pack&service=git-receive-pack",
		"/a.git/info/refs?service=git-receive-pack&service=git-upload-pack", "/a.git/info/refs?serv%69ce=git-receive%2Dpack", "/a.git/info/refs?x&service=git-receive-pack",
		"/a.git/info/refs?x=1;service=git-receive-pack", "/a.git/info/refs?service=git-receive-pack#", "/a.git/info/refs?+service=git-receive-pack", "/a.git/info/refs/?service=git-receive-pack",
		"/a.git/info/refs?service=git-receive-pack+", "/a.git/INFO/refs?service=git-receive-pack", "/a.git//info/refs?service=git-receive-pack", "/./a.git/info/%72efs?service=git-receive-pack",
		"/a.git/git-receive-pack", "/a.git/git-receive-pac%6b", "/a.git//git-receive-pack", "/a.git/git-receive-pack/", "/a.git/x/../git-receive-pack", "/a.git/git-receive-pack?service=git-upload-pack",
	} {
		for _, method := range []string{"GET", "POST", "HEAD"} {
			u, err := url.Parse("http://git.test" + target)
			if err != nil {
				t.Fatal(err)
			}
			path, err := CanonicalPath(u.EscapedPath())
			if err != nil {
				continue // refused before
			}
			u.RawPath, u.Path = path, mustUnescape(t, path)
			req := httptest.NewRequest(method, u.String(), strings.NewReader("0000"))
			req.Header.Set("Content-Type", "application/x-git-receive-pack-request")
			rec := httptest.NewRecorder()
			backend.ServeHTTP(rec, req)
			push := rec.Code == http.StatusOK && strings.Contains(rec.Header().Get("Content-Type"), "receive-pack")
			why, _ := readOnly.refusesHTTP(&Flow{Method: method, Path: path, RawQuery: u.RawQuery, Header: req.Header})
			if push && why == "" {
				t.Errorf("%s %s: a push for git, and let through", method, target)
			}
			if push {
				pushes++
			}
		}
	}
	if pushes < 5 {
		t.Errorf("git took only %d requests for a push: nothing was tried", pushes)
	}
}

func mustUnescape(t *testing.T, path string) string {
	t.Helper()
	s, err := url.PathUnescape(path)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// git-shell is what reads the command on a plain server.
func TestAttack_E06_git_shell(t *testing.T) {
	shell, err := exec.LookPath("git-shell")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if out, err := exec.Command("git", "init", "-q", "--bare", filepath.Join(dir, "a.git")).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	readOnly := gitPolicy{}
	pushes := 0
	for _, line := range []string{
		"git-receive-pack 'a.git'", "git receive-pack 'a.git'", "git-receive-pack  'a.git'", "git  receive-pack 'a.git'", "git-receive-pack a.git", "git-receive-pack 'a'.'git'",
		"git-receive-pack\t'a.git'", "'git-receive-pack' 'a.git'", "git-receive-pack 'a.git' ", "git-receive-pack ''a.git", "GIT-RECEIVE-PACK 'a.git'", "git-receive-pack -- 'a.git'",
		"git-receive-pack './a.git'", "git-receive-pack '" + dir + "/a.git'", `git-receive-pack 'a'\''x'`,
	} {
		cmd := exec.Command(shell, "-c", line)
		cmd.Dir, cmd.Stdin = dir, strings.NewReader("0000")
		out, _ := cmd.CombinedOutput() // most fail: what is sent ends at once
		push := strings.Contains(string(out), "report-status")
		var w words
		w.read(line)
		why := readOnly.refusesSSH(&SSHRequest{SSHExec, line}, &w)
		if push {
			pushes++
		}
		if why == "" {
			t.Errorf("%q: let through; for git-shell a push: %v", line, push)
		}
	}
	if pushes < 2 {
		t.Errorf("git-shell took only %d lines for a push", pushes)
	}
}

func TestGitOverSSH(t *testing.T) {
	for line, want := range map[string]string{
		"git-upload-pack 'acme/a.git'":       "read acme/a",
		"git-upload-pack '/acme/a.git/'":     "read acme/a",
		"git-upload-pack acme/a":             "read acme/a",
		"git upload-archive 'acme/a'":        "read acme/a",
		"git-receive-pack 'lib/c++.git'":     "write lib/c%2B%2B",
		"uptime":                             "",
		"git status":                         "",
		"git-upload-pack":                    "odd",
		"git-upload-pack ''":                 "odd",
		"git-upload-pack 'a' 'b'":            "odd",
		"git-upload-pack --strict 'a'":       "odd",
		"git-upload-pack '-a'":               "odd",
		"git-upload-pack 'a/../b'":           "odd",
		"git-upload-pack 'a//b'":             "odd",
		"git-upload-pack './a'":              "odd",
		"git-upload-pack '~x/a'":             "odd",
		"git-upload-pack '/~x/a'":            "odd",
		"git-upload-pack '//a'":              "odd",
		`git-upload-pack "a"`:                "odd",
		"git-upload-pack 'a'; rm x":          "odd",
		"git-upload-pack 'a' # x":            "odd",
		"git-upload-pack 'a b'":              "odd",
		"git -C / upload-pack 'a'":           "odd",
		"git-u'pload'-pack 'a'":              "odd",
		"/usr/bin/git-receive-pack 'a'":      "odd",
		"sh -c 'git-receive-pack a'":         "odd",
		"GIT-RECEIVE-PACK 'a'":               "odd",
		"git-upload-packs 'a'":               "odd",
		"X=1 git-upload-pack 'a'":            "odd",
		"git-upload-pack 'a'\ngit-gc":        "odd",
		"git-upload-pack 'a\x00b'":           "odd",
		"git-upload-pack 'a" + "\xff" + "b'": "odd",
	} {
		var w words
		w.read(line)
		got := ""
		if r, ok := gitOverSSH(line, &w); ok {
			got = map[bool]string{false: "read ", true: "write "}[r.write] + r.repo
			if r.odd {
				got = "odd"
			}
		}
		if got != want {
			t.Errorf("%q: %q, want %q", line, got, want)
		}
	}
}

// backendPush is how git-http-backend finds a push, in its own words.
var backendPush = regexp.MustCompile(`/git-receive-pack$`)

func FuzzGitOverHTTP(f *testing.F) {
	for _, s := range [][4]string{
		{"GET", "/a.git/info/refs", "service=git-receive-pack", ""}, {"POST", "/a.git/git-receive-pack", "", "application/x-git-receive-pack-request"},
		{"GET", "/a/info/refs", "a=b&service=git%2Dreceive-pack", ""}, {"PUT", "/a.git/objects/ab/c", "", ""}, {"POST", "/a/%67it-receive-pack;x", "x", ""}, {"GET", "/info/refs/", "", ""},
	} {
		f.Add(s[0], s[1], s[2], s[3])
	}
	readOnly := gitPolicy{}
	f.Fuzz(func(t *testing.T, method, path, query, contentType string) {
		path, err := CanonicalPath(path)
		if err != nil {
			return
		}
		fl := gitFlow(method, path, contentType)
		fl.RawQuery = query
		r, ok := gitOverHTTP(fl)
		if !ok && (r.write || r.odd || r.repo != "") {
			t.Fatalf("%+v, and no git", r)
		}
		if strings.HasPrefix(r.repo, "/") || strings.HasSuffix(r.repo, "/") || !strings.Contains(path, r.repo) {
			t.Fatalf("%q: repository %q", path, r.repo)
		}
		decoded := mustUnescape(t, path)
		push := backendPush.MatchString(decoded)
		if strings.HasSuffix(decoded, "/info/refs") {
			if q, err := url.ParseQuery(query); err == nil {
				vals := q["service"]
				push = push || len(vals) > 0 && (vals[0] == gitReceivePack || vals[len(vals)-1] == gitReceivePack)
			}
		}
		if why, _ := readOnly.refusesHTTP(fl); push && why == "" {
			t.Fatalf("%s %s?%s: a push is let through", method, path, query)
		}
	})
}
