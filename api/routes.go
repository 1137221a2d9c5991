package api

import (
	"net/http"
	"regexp"
	"slices"
	"strings"
)

const base = "/api/v1"

// nameRE is what names of sources and tokens look like. What does not match is nobody's name,
// so that no path of a name ever reaches a store or a provider.
var nameRE = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_.-]{0,127}$`)

// replay says what an Idempotency-Key means for a POST.
type replay uint8

const (
	replayNatural replay = iota // repeating it has no further effect: the key changes nothing
	replayStored                // the answer is kept for 24 h and given again
	replayRefused               // the answer shows a secret once and is not kept
)

// route is one row of the table: what exists, who may call it, what goes in and out.
type route struct {
	method, pattern string
	summary         string
	role            Role // the least that may call it; the zero value nobody
	unbound         bool // only for principals bound to no team
	handler         func(*Server, *call) (answer, *failure)
	in, out         any // zero values of the Go types of body and data; nil: none
	media           string
	produces        string // media type when the answer has no envelope
	status          int
	query           []param
	replay          replay
	failures        []int // beyond those of every route
}

// param is a query parameter.
type param struct {
	name, about string
	many        bool
	number      bool
}

const (
	mediaJSON  = "application/json"
	mediaMerge = "application/merge-patch+json"
	mediaPEM   = "application/x-pem-file"
)

// table is the route table and the authorisation table in one.
func table() []route {
	const (
		sources = base + "/credential-sources"
		source  = sources + "/{name}"
		get     = http.MethodGet
		post    = http.MethodPost
		ok      = http.StatusOK
	)
	return []route{
		{method: get, pattern: sources, role: RoleRead, handler: (*Server).listSources, out: []Source(nil), status: ok,
			summary: "List credential sources without their specs", query: listParams()},
		{method: post, pattern: sources, role: RoleAdmin, handler: (*Server).createSource, in: SourceWrite{}, out: Source{}, status: http.StatusCreated,
			summary: "Create version 1 of a credential source", replay: replayStored, failures: []int{409, 422, 503}},
		{method: get, pattern: source, role: RoleRead, handler: (*Server).getSource, out: Source{}, status: ok,
			summary: "Show a credential source without its spec", failures: []int{404}},
		{method: http.MethodPut, pattern: source, role: RoleAdmin, handler: (*Server).replaceSource, in: SourceReplace{}, out: SourceUpdated{}, status: ok,
			summary: "Replace a credential source: a new version under the same name", failures: []int{404, 412, 422, 428, 503}},
		{method: http.MethodPatch, pattern: source, role: RoleAdmin, handler: (*Server).patchSource, in: SourcePatch{}, media: mediaMerge, out: Source{}, status: ok,
			summary: "Change metadata or status", failures: []int{404, 409, 412, 422, 428, 503}},
		{method: http.MethodDelete, pattern: source, role: RoleAdmin, handler: (*Server).deleteSource, out: Deletion{}, status: ok,
			summary: "Delete a credential source that nothing refers to", failures: []int{404, 409, 412, 428, 503}},
		{method: post, pattern: source + "/rotate", role: RoleAdmin, handler: (*Server).rotateSource, in: SourceRotate{}, out: SourceRotated{}, status: ok,
			summary: "Make a new version with the metadata as it is", replay: replayStored, failures: []int{404, 412, 422, 503}},

		{method: get, pattern: base + "/policies", role: RoleRead, handler: (*Server).viewPolicies, out: PolicyView{}, status: ok,
			summary: "Show the policy in force"},
		{method: post, pattern: base + "/policies/check", role: RoleRead, handler: (*Server).checkPolicies, in: PolicyCheck{}, out: PolicyReport{}, status: ok,
			summary: "Compile policy files without putting them in force"},
		{method: post, pattern: base + "/policies/explain", role: RoleRead, handler: (*Server).explainPolicy, in: ExplainRequest{}, out: ExplainResult{}, status: ok,
			summary: "Trace a decision of the policy in force", failures: []int{404}},
		{method: post, pattern: base + "/policies/reload", role: RoleAdmin, unbound: true, handler: (*Server).reloadPolicies, out: PolicyReport{}, status: ok,
			summary: "Read the policy directory again", failures: []int{422, 503}},

		{method: get, pattern: base + "/connections", role: RoleRead, handler: (*Server).listConnections, out: []Connection(nil), status: ok,
			summary: "List what is open on the data plane", query: connectionParams()},
		{method: http.MethodDelete, pattern: base + "/connections/{name}", role: RoleAdmin, handler: (*Server).closeConnection, out: Deletion{}, status: ok,
			summary: "Close a connection and all that is under way on it", failures: []int{404}},

		{method: get, pattern: base + "/tokens", role: RoleAdmin, handler: (*Server).listTokens, out: []Token(nil), status: ok,
			summary: "List API tokens without their values"},
		{method: post, pattern: base + "/tokens", role: RoleAdmin, handler: (*Server).createToken, in: TokenWrite{}, out: TokenCreated{}, status: http.StatusCreated,
			summary: "Create an API token; its value is shown this once", replay: replayRefused, failures: []int{409}},
		{method: http.MethodDelete, pattern: base + "/tokens/{name}", role: RoleAdmin, handler: (*Server).deleteToken, out: Deletion{}, status: ok,
			summary: "Revoke an API token", failures: []int{404}},
		{method: get, pattern: base + "/whoami", role: RoleRead, handler: (*Server).whoami, out: Identity{}, status: ok,
			summary: "Say who is asking"},

		{method: get, pattern: base + "/resolver-kinds", role: RoleRead, handler: (*Server).listKinds, out: []KindView(nil), status: ok,
			summary: "List the kinds of sources with the JSON Schema of their specs"},
		{method: get, pattern: base + "/resolver-kinds/{name}", role: RoleRead, handler: (*Server).getKind, out: KindView{}, status: ok,
			summary: "Show one kind of source", failures: []int{404}},
		{method: get, pattern: base + "/ca", role: RoleRead, handler: (*Server).showCA, out: CAView{}, status: ok,
			summary: "Describe the interception CA's certificate"},
		{method: get, pattern: base + "/ca.pem", role: RoleRead, handler: (*Server).exportCA, produces: mediaPEM, status: ok,
			summary: "The interception CA's certificate as PEM"},
		{method: get, pattern: base + "/version", role: RoleRead, handler: (*Server).showVersion, out: Version{}, status: ok,
			summary: "Name the build"},
		{method: get, pattern: base + "/openapi.json", role: RoleRead, handler: (*Server).showOpenAPI, produces: mediaJSON, status: ok,
			summary: "This document"},
	}
}

// find looks up the row for a request. allow lists the methods of the path when only the
// method does not fit; both are empty when there is no such path.
func find(routes []route, method, escapedPath string) (rt *route, name string, allow []string) {
	if method == http.MethodHead {
		method = http.MethodGet
	}
	for i := range routes {
		n, ok := match(routes[i].pattern, escapedPath)
		switch {
		case !ok:
		case routes[i].method == method:
			return &routes[i], n, nil
		default:
			allow = append(allow, routes[i].method)
			if routes[i].method == http.MethodGet {
				allow = append(allow, http.MethodHead)
			}
		}
	}
	slices.Sort(allow)
	return nil, "", allow
}

// match compares segment by segment, without any cleaning: a path that is not written as in
// the table is not in the table.
func match(pattern, path string) (name string, ok bool) {
	want, got := strings.Split(pattern, "/"), strings.Split(path, "/")
	if len(want) != len(got) {
		return "", false
	}
	for i := range want {
		switch {
		case want[i] == "{name}":
			if !nameRE.MatchString(got[i]) {
				return "", false
			}
			name = got[i]
		case want[i] != got[i]:
			return "", false
		}
	}
	return name, true
}
