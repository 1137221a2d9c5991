package policy

import (
	"net/http"
	"strings"
)

// gitPolicy limits git's own protocols, over HTTP and over SSH: which repositories, and
// whether anything may be written. What else an origin offers for its repositories (web
// pages, its API, archives) is no git and is limited by rules of protocol http.
//
// Repositories are compared as "owner/name": without a slash in front or at the end and
// without ".git". An allowed pattern is matched with case, a denied one without.
type gitPolicy struct {
	repositories globPolicy
	push         bool
}

// gitRequest is what a request means to a git server.
type gitRequest struct {
	repo  string // canonical; "" where there is none
	write bool
	// odd: a form that no git client sends, and that servers may read differently.
	odd bool
}

// The services, as they stand in paths, queries and SSH commands.
const (
	gitUploadPack    = "git-upload-pack"
	gitReceivePack   = "git-receive-pack"
	gitUploadArchive = "git-upload-archive"
)

// refuses says why a git request may not pass, or "".
func (p *gitPolicy) refuses(r *gitRequest) string {
	switch lists := &p.repositories; {
	case r.odd || hasSuffixFold(r.repo, ".git") || strings.IndexByte(r.repo, ';') >= 0:
		return "a form of git request that no client sends"
	case r.write && !p.push:
		return "git push is not allowed"
	case !lists.any():
	case r.repo == "":
		return "names no repository"
	case lists.denies(r.repo):
		return "repository is denied"
	case lists.limited && !lists.allows(r.repo):
		return "repository is not among the allowed"
	}
	return ""
}

// refusesHTTP judges a request over HTTP; about is false where it is no git.
func (p *gitPolicy) refusesHTTP(f *Flow) (why string, about bool) {
	r, ok := gitOverHTTP(f)
	if !ok {
		return "", false
	}
	return p.refuses(&r), true
}

// repositoryName gives the name that patterns are compared with.
func repositoryName(path string) string {
	path = strings.Trim(path, "/")
	if name, ok := strings.CutSuffix(path, ".git"); ok && name != "" {
		path = strings.TrimSuffix(name, "/")
	}
	return path
}

// gitOverHTTP tells what a request means to a git server; ok is false for what is no
// git at all. It looks for the service wherever some server could: in the path, in the
// query and in the type of the body. All but the forms that clients send is odd.
func gitOverHTTP(f *Flow) (r gitRequest, ok bool) {
	path := f.Path
	if path == "" || path[0] != '/' {
		return gitRequest{odd: true}, true
	}
	if i, rest, found := gitRPC(path); found {
		r = gitRequest{repo: repositoryName(path[:i]), write: rest == gitReceivePack}
		r.odd = rest == "" || f.Method != http.MethodPost || f.RawQuery != "" || !gitBody(f.Header, rest)
		return r, true
	}
	if i, rest, found := gitPair(path, "info", "refs"); found {
		return gitAdvertisement(f, path[:i], rest), true
	}
	if namesGitService(f.RawQuery) || gitBodyOnly(f.Header) {
		return gitRequest{odd: true}, true
	}
	reads := f.Method == http.MethodGet || f.Method == http.MethodHead
	if i, _, found := gitPair(path, "info", "lfs"); found {
		// Whether a batch uploads stands in its body, which is not seen here.
		return gitRequest{repo: repositoryName(path[:i]), write: !reads}, true
	}
	if i, found := gitFile(path, reads); found {
		return gitRequest{repo: repositoryName(path[:i]), write: !reads}, true
	}
	switch f.Method {
	case "PROPFIND", "PROPPATCH", "MKCOL", "COPY", "MOVE", "LOCK", "UNLOCK":
		return gitRequest{write: true}, true // a push over WebDAV; of which repository no path tells for sure
	}
	return r, false
}

// gitAdvertisement is GET …/info/refs, with the service or, from dumb clients, without.
func gitAdvertisement(f *Flow, repo, rest string) gitRequest {
	r := gitRequest{repo: repositoryName(repo)}
	r.odd = rest != "" || f.Method != http.MethodGet && f.Method != http.MethodHead
	switch f.RawQuery {
	case "", "service=" + gitUploadPack, "service=" + gitUploadArchive:
	case "service=" + gitReceivePack:
		r.write = true
	default:
		r.odd = true
	}
	return r
}

// gitRPC looks for a segment that is the name of a service. service is "" when it is
// not the last one or is spelled otherwise than clients spell it.
func gitRPC(path string) (repo int, service string, found bool) {
	for i := 0; i < len(path); {
		end := segmentEnd(path, i+1)
		seg := path[i+1 : end]
		for _, name := range [...]string{gitUploadPack, gitReceivePack, gitUploadArchive} {
			if !looseSegment(seg, name) {
				continue
			}
			if seg == name && end == len(path) {
				service = name
			}
			return i, service, true
		}
		i = end
	}
	return 0, "", false
}

// gitPair looks for two segments next to each other; rest is what comes behind them.
// What is spelled otherwise than a and b counts as if something came behind.
func gitPair(path, a, b string) (repo int, rest string, found bool) {
	for i := 0; i < len(path); {
		end := segmentEnd(path, i+1)
		if end < len(path) && looseSegment(path[i+1:end], a) {
			last := segmentEnd(path, end+1)
			if looseSegment(path[end+1:last], b) {
				if rest = path[last:]; path[i+1:end] != a || path[end+1:last] != b {
					rest = path[end:]
				}
				return i, rest, true
			}
		}
		i = end
	}
	return 0, "", false
}

// gitFile looks for what a plain file server would serve, or take, of a repository:
// anything at or below a segment that ends in ".git", objects, and with a method that
// writes, refs.
func gitFile(path string, reads bool) (repo int, found bool) {
	for i := 0; i < len(path); {
		end := segmentEnd(path, i+1)
		seg := bareSegment(path[i+1 : end])
		below := path[min(end+1, len(path)):]
		switch {
		case len(seg) > len(".git") && hasSuffixFold(seg, ".git"):
			return i + 1 + len(seg), true
		case strings.EqualFold(seg, "objects") && isGitObject(below):
			return i, true
		case strings.EqualFold(seg, "refs") && !reads && isGitRef(below):
			return i, true
		}
		i = end
	}
	return 0, false
}

func isGitRef(below string) bool {
	first, _, ok := strings.Cut(below, "/")
	return ok && (strings.EqualFold(first, "heads") || strings.EqualFold(first, "tags"))
}

// isGitObject reports what stands below objects: the lists in info, packs, and the two
// halves of a hash.
func isGitObject(below string) bool {
	first, second, ok := strings.Cut(below, "/")
	if !ok {
		return false
	}
	switch {
	case strings.EqualFold(first, "info"):
		return looseSegment(second, "packs") || looseSegment(second, "alternates") || looseSegment(second, "http-alternates")
	case strings.EqualFold(first, "pack"):
		return len(second) > len("pack-") && strings.EqualFold(second[:len("pack-")], "pack-")
	case len(first) != 2 || len(second) < 38:
		return false
	}
	for _, s := range [...]string{first, second[:38]} {
		for i := range len(s) {
			if !isHex(s[i]) {
				return false
			}
		}
	}
	return true
}

func hasSuffixFold(s, suffix string) bool {
	return len(s) >= len(suffix) && strings.EqualFold(s[len(s)-len(suffix):], suffix)
}

func segmentEnd(path string, from int) int {
	if i := strings.IndexByte(path[from:], '/'); i >= 0 {
		return from + i
	}
	return len(path)
}

// looseSegment compares as the most tolerant server might: without case, parameters
// and what some file systems drop at the end.
func looseSegment(seg, name string) bool {
	return len(seg) >= len(name) && strings.EqualFold(bareSegment(seg), name)
}

// bareSegment drops parameters, and dots and spaces at the end.
func bareSegment(seg string) string {
	seg, _, _ = strings.Cut(seg, ";")
	for {
		bare := strings.TrimSuffix(strings.TrimRight(seg, "."), "%20")
		if bare == seg {
			return seg
		}
		seg = bare
	}
}

// namesGitService reports a query in which some server might find a git service, though
// the path is not info/refs.
func namesGitService(query string) bool {
	for query != "" {
		var pair string
		if i := strings.IndexAny(query, "&;"); i >= 0 {
			pair, query = query[:i], query[i+1:]
		} else {
			pair, query = query, ""
		}
		key, val, _ := strings.Cut(pair, "=")
		if !unescapesToFold(key, "service") {
			continue
		}
		for _, name := range [...]string{gitUploadPack, gitReceivePack, gitUploadArchive} {
			if unescapesToFold(val, name) {
				return true
			}
		}
	}
	return false
}

// unescapesToFold is unescapesTo without regard to ASCII case and to spaces around.
func unescapesToFold(escaped, want string) bool {
	j, behind := 0, false
	for i := 0; i < len(escaped); i++ {
		c := escaped[i]
		switch {
		case c == '+':
			c = ' '
		case c == '%' && i+2 < len(escaped) && isHex(escaped[i+1]) && isHex(escaped[i+2]):
			c = unhex(escaped[i+1])<<4 | unhex(escaped[i+2])
			i += 2
		}
		switch {
		case c <= ' ':
			behind = j > 0
		case behind || j >= len(want) || lowerByte(c) != want[j]:
			return false
		default:
			j++
		}
	}
	return j == len(want)
}

// gitBody reports whether the type of the body is the service's or is not given.
func gitBody(h http.Header, service string) bool {
	for key, vals := range h {
		if !strings.EqualFold(key, "Content-Type") {
			continue
		}
		for _, v := range vals {
			name, typed := strings.CutPrefix(v, "application/x-")
			name, asked := strings.CutSuffix(name, "-request")
			if !typed || !asked || name != service {
				return false
			}
		}
	}
	return true
}

// gitBodyOnly reports a body that says it is a git request, where the path is none.
func gitBodyOnly(h http.Header) bool {
	for key, vals := range h {
		if !strings.EqualFold(key, "Content-Type") {
			continue
		}
		for _, v := range vals {
			if containsFoldASCII(v, "x-git-") {
				return true
			}
		}
	}
	return false
}

// containsFoldASCII: sub is in lower case.
func containsFoldASCII(s, sub string) bool {
	for i := 0; i+len(sub) <= len(s); i++ {
		j := 0
		for j < len(sub) && lowerByte(s[i+j]) == sub[j] {
			j++
		}
		if j == len(sub) {
			return true
		}
	}
	return false
}
