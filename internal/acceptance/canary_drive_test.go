package acceptance

import (
	"encoding/json"
	"net/http"
	"net/url"
	"regexp"
	"strings"

	"github.com/egressd/egressd/internal/testbed"
)

// cliSecret is how s is handed to `source add`, `set` and `rotate`: flags, environment and
// stdin. Each kind takes another way; none puts the secret into the arguments.
func (r *canaryRig) cliSecret(s sample, way int) (flags, env []string, stdin string) {
	if way%2 == 1 {
		if way%4 == 1 {
			return []string{"--spec", "-"}, nil, jsonText(r.t, s.spec())
		}
		return []string{"--spec", "@" + r.file(jsonText(r.t, s.spec()))}, nil, ""
	}
	switch s.kind {
	case "static_headers":
		values, _ := s.fields["values"].(map[string]string)
		return []string{"--token-env", "THE_TOKEN", "--set", "other=@" + r.file(values["other"]), "--set", "unused=@-"}, []string{"THE_TOKEN=" + values["token"]}, values["unused"]
	case "static_username_password":
		// A user name is an argument by nature; this one is a canary, so it goes by file.
		return []string{"--kind", s.kind, "--set", "username=@" + r.file(text(s.fields, "username")), "--password-file", "-"}, nil, text(s.fields, "password")
	case "static_tls_client_certificate":
		return []string{"--cert", r.file(text(s.fields, "certificatePem")), "--key", r.file(text(s.fields, "privateKeyPem")), "--ca", r.file(text(s.fields, "caPem"))}, nil, ""
	case "aws_access_key":
		return []string{"--kind", s.kind, "--set", "accessKeyId=@" + r.file(text(s.fields, "accessKeyId")), "--secret-access-key-file", "-", "--session-token-env", "SESSION"},
			[]string{"SESSION=" + text(s.fields, "sessionToken")}, text(s.fields, "secretAccessKey")
	}
	flags = []string{"--ssh-key", r.file(text(s.fields, "privateKeyPem"))}
	if phrase := text(s.fields, "passphrase"); phrase != "" {
		flags, env = append(flags, "--passphrase-env", "PHRASE"), []string{"PHRASE=" + phrase}
	}
	return flags, env, ""
}

// driveCLI adds, replaces and rotates a source named after its kind by the command line,
// with and without --json. It ends with b in force.
func (r *canaryRig) driveCLI(a, b sample) {
	r.t.Helper()
	way := 0
	step := func(code int, s sample, verb string, more ...string) {
		r.t.Helper()
		for _, asJSON := range []bool{false, true} {
			flags, env, stdin := r.cliSecret(s, way)
			way++
			args := append(append([]string{"source", verb, a.kind}, flags...), more...)
			if asJSON {
				args = append(args, "--json")
			}
			r.must(code, r.cli(stdin, env, args...), args...)
			code = 0
			if verb == "add" {
				code = 6
			}
		}
	}
	step(0, a, "add", "--description", r.visible, "--label", "kind="+strings.ReplaceAll(a.kind, "_", "-"))
	step(0, b, "set")
	step(0, a, "rotate", "--reason", "canary")
	for _, verb := range []string{"get", "disable", "enable"} {
		for _, more := range [][]string{nil, {"--json"}} {
			args := append([]string{"source", verb, a.kind}, more...)
			r.must(0, r.cli("", nil, args...), args...)
		}
	}
	step(0, b, "rotate")
	r.driveWrongCLI(a)
}

// driveWrongCLI makes the mistakes with which a secret ends up where it does not belong.
func (r *canaryRig) driveWrongCLI(a sample) {
	r.t.Helper()
	spec := jsonText(r.t, a.spec())
	for _, w := range []struct {
		stdin string
		env   []string
		args  []string
	}{
		{stdin: spec[:len(spec)-2], args: []string{"add", "wrong", "--spec", "-"}},
		{stdin: spec + spec, args: []string{"add", "wrong", "--spec", "-"}},
		{stdin: "{\"nope\":" + spec + "}", args: []string{"add", "wrong", "--spec", "-"}},
		{stdin: spec, args: []string{"add", "wrong", "--spec", "-", "--kind", "static_nothing"}},
		{stdin: spec, args: []string{"set", "nowhere", "--spec", "-"}},
		{stdin: a.leaves[0] + "\nsecond line\x00", args: []string{"add", "wrong"}},
		{env: []string{"X=" + a.leaves[0] + "\r\n" + a.leaves[0]}, args: []string{"add", "wrong", "--token-env", "X"}},
		{args: []string{"add", "wrong", "--cert", r.file(a.leaves[0]), "--key", r.file(a.leaves[0])}},
		{args: []string{"add", "wrong", "--ssh-key", r.file(strings.Join(a.leaves, "\n"))}},
		{args: []string{"add", "wrong", "--username", "u", "--password-file", r.file(a.leaves[0] + "\x00")}},
		// In the arguments, against all advice: it must not be repeated at least.
		{args: []string{"add", "wrong", "--set", a.leaves[0]}},
		{args: []string{"add", "wrong", "--spec", a.leaves[0]}},
		{args: []string{"add", "wrong", "--token-env", a.leaves[0]}},
		{args: []string{"add", "wrong", "--token", a.leaves[0] + "\n"}},
		{args: []string{"add", "wrong", "--set", "username=" + a.leaves[0], "--kind", "static_ssh_private_key"}},
	} {
		for _, more := range [][]string{nil, {"--json"}} {
			args := append(append([]string{"source"}, w.args...), more...)
			if got := r.cli(w.stdin, w.env, args...); got.code == 0 {
				r.t.Errorf("egressd source %q was accepted: %s", w.args[:2], got)
			}
		}
	}
}

// ok is call for what must work.
func (r *canaryRig) ok(method, path string, body any, extra ...string) reply {
	r.t.Helper()
	a := r.call(method, path, body, extra...)
	if a.status >= 300 || a.err != nil {
		r.t.Errorf("%s %s: %s", method, path, a)
	}
	return a
}

// driveAPI takes a source through its life by the API.
func (r *canaryRig) driveAPI(name string, a, b sample) {
	r.t.Helper()
	at := "/credential-sources/" + name
	for range 2 { // the second is a replay
		r.ok(http.MethodPost, "/credential-sources", a.body(name), "Idempotency-Key", "canary-"+name)
	}
	r.call(http.MethodPost, "/credential-sources", b.body(name), "Idempotency-Key", "canary-"+name)
	r.call(http.MethodPost, "/credential-sources", a.body(name))
	etag := r.ok(http.MethodGet, at, nil).header.Get("Etag")
	r.ok(http.MethodPut, at, a.body(name)) // unchanged
	r.ok(http.MethodPut, at, b.body(name))
	r.call(http.MethodPut, at, a.body(name), "If-Match", etag)
	r.ok(http.MethodPost, at+"/rotate", map[string]any{"spec": a.spec(), "reason": "canary"}, "Idempotency-Key", "rotate-"+name)
	r.call(http.MethodPost, at+"/rotate", map[string]any{"spec": b.spec()}, "Idempotency-Key", "rotate-"+name)
	r.ok(http.MethodPatch, at, map[string]any{"description": "patched", "labels": map[string]string{"a": "b"}, "status": "disabled"})
	r.ok(http.MethodPatch, at, map[string]any{"status": "active"})
	r.call(http.MethodPatch, at, map[string]any{"spec": b.spec()})
	r.ok(http.MethodGet, at, nil)
}

// driveErrors sends the spec where it does not belong, and broken.
func (r *canaryRig) driveErrors(name string, a sample) {
	r.t.Helper()
	at := "/credential-sources/" + name
	refused := func(method, path string, body any, extra ...string) {
		r.t.Helper()
		if got := r.call(method, path, body, extra...); got.status < 400 || got.status >= 500 {
			r.t.Errorf("%s %s: want a refusal, got %d %s", method, path, got.status, got.err)
		}
	}
	for _, kind := range []string{"static_headers", "static_username_password", "static_tls_client_certificate", "static_ssh_private_key", "aws_access_key", "aws_sts", "nope"} {
		if kind != a.kind {
			body := a.body("wrong")
			body["resolverKind"] = kind
			refused(http.MethodPost, "/credential-sources", body)
			refused(http.MethodPut, at, body)
		}
	}
	for _, spec := range []any{
		map[string]any{a.block: a.leaves}, a.leaves, a.leaves[0], map[string]any{a.block: []any{a.fields}}, a.fields,
		map[string]any{a.block: map[string]any{"values": a.leaves}}, map[string]any{a.block: map[string]any{"values": a.fields, "extra": a.leaves}},
	} {
		body := a.body("wrong")
		body["spec"] = spec
		refused(http.MethodPost, "/credential-sources", body)
		refused(http.MethodPut, at, body)
		refused(http.MethodPost, at+"/rotate", map[string]any{"spec": spec})
	}
	whole := jsonText(r.t, a.body("wrong"))
	for _, body := range []string{
		whole[:len(whole)-3], whole + whole, strings.Replace(whole, "{", `{"name":"wrong",`, 1), whole + "\xff", whole + strings.Repeat(" ", 1<<20),
	} {
		refused(http.MethodPost, "/credential-sources", []byte(body))
		refused(http.MethodPut, at, []byte(body))
	}
	for _, l := range a.leaves {
		refused(http.MethodGet, "/credential-sources?search="+url.QueryEscape(l)+"&nope="+url.QueryEscape(l), nil)
		refused(http.MethodGet, "/credential-sources/"+url.PathEscape("~"+l), nil)
		refused(http.MethodPatch, at, map[string]any{"status": l})
		refused(http.MethodGet, at, nil, "Authorization", "Bearer "+l)
		refused(http.MethodPut, at, a.body(name), "If-Match", l)
		r.call(http.MethodPost, "/policies/explain", map[string]any{"sandbox": "one", "url": "https://" + l, "headers": map[string]string{"Authorization": l}})
	}
	refused(http.MethodPost, "/credential-sources", a.body(name), "Host-Is-Wrong", "x", "Origin", "https://evil.test")
}

// driveData sends requests of every outcome through the proxy.
func (r *canaryRig) driveData() {
	r.t.Helper()
	own := testbed.NewCanary() // the sandbox's own, in places that are never recorded
	r.secrets = append(r.secrets, own)
	ask := func(c *sandbox, want int, target string) {
		r.t.Helper()
		req, err := http.NewRequest(http.MethodGet, target+"?access_token="+url.QueryEscape(own), nil)
		if err != nil {
			r.t.Fatal(err)
		}
		req.Header.Set("Authorization", "Bearer "+own)
		req.Header.Set("X-Api-Key", own)
		req.Header.Set("Cookie", "session="+url.QueryEscape(own))
		if a := r.keepReply("proxy answers", send(c.Client, req)); a.status != want {
			r.t.Errorf("%s: want %d, got %s", target, want, a)
		}
	}
	broken := "not base64 at all " + testbed.NewCanary()
	r.secrets = append(r.secrets, broken)
	r.ok(http.MethodPost, "/credential-sources", map[string]any{"name": "broken", "resolverKind": "static_headers", "spec": tokenSpec(broken)})
	for _, h2 := range []bool{false, true} {
		c := r.d.sandbox(h2)
		for _, host := range []string{"headers.test", "basic.test", "cert.test"} {
			ask(c, 200, r.url(host, "/"))
			ask(c, 204, r.url(host, "/status/204"))
			ask(c, 500, r.url(host, "/status/500"))
		}
		ask(c, 401, r.url("headers.test", "/bearer")) // the origin does not like it
		ask(c, 503, r.url("broken.test", "/"))        // the template fails on the value
		ask(c, 502, r.url("bad.test", "/"))           // the origin proves another name
		ask(c, 502, "https://off.test:9/")            // nobody there
		r.keepReply("proxy answers", c.get(r.url("headers.test", "/reset")))
		r.keepReply("proxy answers", c.get(r.url("headers.test", "/truncate")))
		r.keepReply("proxy answers", c.get("https://denied.test/"+url.PathEscape("x")))
		ask(c, 403, strings.Replace(r.url("headers.test", "/"), "https://", "http://", 1)) // no credential in cleartext
		r.ok(http.MethodPatch, "/credential-sources/static_headers", map[string]string{"status": "disabled"})
		ask(c, 503, r.url("headers.test", "/"))
		r.ok(http.MethodPatch, "/credential-sources/static_headers", map[string]string{"status": "active"})
		ask(c, 200, r.url("headers.test", "/"))
	}
	r.strangers(own)
}

// strangers come with a wrong password.
func (r *canaryRig) strangers(own string) {
	r.t.Helper()
	tr := &http.Transport{Proxy: http.ProxyURL(&url.URL{Scheme: "http", Host: r.d.proxy, User: url.UserPassword("one", own)})}
	defer tr.CloseIdleConnections()
	for _, target := range []string{"https://headers.test/", "http://headers.test/"} {
		req, err := http.NewRequest(http.MethodGet, target, nil)
		if err != nil {
			r.t.Fatal(err)
		}
		a := r.keepReply("proxy answers", send(&http.Client{Transport: tr}, req))
		if a.status != http.StatusProxyAuthRequired && (a.err == nil || !strings.Contains(a.err.Error(), "Proxy Authentication Required")) {
			r.t.Errorf("a stranger: %s", a)
		}
	}
}

// driveReads looks at everything that can be read.
func (r *canaryRig) driveReads() {
	r.t.Helper()
	var doc struct{ Paths map[string]map[string]any }
	if err := json.Unmarshal(r.ok(http.MethodGet, "/openapi.json", nil).body, &doc); err != nil || len(doc.Paths) < 10 {
		r.t.Fatalf("openapi: %d paths, %v", len(doc.Paths), err)
	}
	names := []string{"static_headers", "static_username_password", "static_tls_client_certificate", "static_ssh_private_key", "aws_access_key"}
	for path, methods := range doc.Paths { // so that a route that comes later is driven too
		for _, name := range names {
			if _, ok := methods["get"]; ok {
				r.ok(http.MethodGet, strings.ReplaceAll(strings.TrimPrefix(path, "/api/v1"), "{name}", name), nil)
			}
		}
	}
	r.ok(http.MethodGet, "/credential-sources?search=canary&order_by=-updatedAt&pageSize=2", nil)
	r.ok(http.MethodPost, "/policies/explain", map[string]any{"sandbox": "one", "url": r.url("headers.test", "/x")})
	r.ok(http.MethodPost, "/policies/check", map[string]any{"files": []map[string]string{{"name": "p.yaml", "content": expand(r.fullPolicy())}}})
	r.ok(http.MethodPost, "/policies/reload", nil)
	for where, path := range map[string]string{"metrics": "/metrics", "ops": "/healthz", "ops ": "/readyz", "ops  ": "/api/v1/version", "ops   ": "/debug/pprof/heap"} {
		req, err := http.NewRequest(http.MethodGet, "http://"+r.d.ops+path, nil)
		if err != nil {
			r.t.Fatal(err)
		}
		r.keepReply(where, send(http.DefaultClient, req))
	}
}

// driveCommands runs every command that shows something, as text and as JSON.
func (r *canaryRig) driveCommands() {
	r.t.Helper()
	config := []string{"--config", r.d.path("egressd.yaml")}
	for _, args := range [][]string{
		{"source", "list"}, {"source", "list", "--search", "canary"}, {"source", "kinds"}, {"source", "get", "static_headers"}, {"source", "get", "nope"},
		{"policy", "show"}, {"policy", "reload"}, {"policy", "check", r.d.path("policy")}, append([]string{"policy", "check", "--remote"}, config...),
		{"policy", "explain", "--sandbox", "one", r.url("headers.test", "/x")}, append([]string{"policy", "explain", "--sandbox", "one", r.url("headers.test", "/x")}, config...),
		append([]string{"policy", "explain", "--sandbox", "one", "--shell", "ssh://ssh.test"}, config...), {"policy", "explain", "--sandbox", "one", "redis://redis.test"},
		append([]string{"redirect", "print", "--interface", "veth0", "--port", "15001"}, config...), append([]string{"ca", "ssh", "--host-key"}, config...), {"connections", "list"},
		{"ca", "show"}, {"ca", "export"}, {"token", "list"}, append([]string{"config", "show"}, config...), append([]string{"doctor", "--listen-proxy", r.d.proxy, "--listen-ops", r.d.ops}, config...), {"version"},
		{"serve", "--help"}, {"run", "--help"}, append([]string{"serve"}, config...), // the state is in use
	} {
		for _, more := range [][]string{nil, {"--json"}} {
			got := r.cli("", nil, append(args, more...)...)
			if bad := args[0] == "serve" && len(args) > 2 || args[len(args)-1] == "nope"; (got.code != 0) != bad {
				r.t.Errorf("egressd %q: %s", args, got)
			}
		}
	}
}

// driveTokens makes an API token; its value is shown this once and is a secret from then on.
func (r *canaryRig) driveTokens() string {
	r.t.Helper()
	got := r.d.cli("", "token", "create", "ci", "--role", "admin", "--team", "default", "--expires", "1h") // its output is not kept
	token := strings.TrimSpace(got.stdout)
	if got.code != 0 || len(token) < 20 {
		r.t.Fatalf("token create: %s", got)
	}
	r.secrets = append(r.secrets, token)
	return token
}

// driveTokenUse goes over TCP with it, and with wrong ones.
func (r *canaryRig) driveTokenUse(token string) {
	r.t.Helper()
	m := regexp.MustCompile(`"api":"(127[^"]+)"`).FindSubmatch(r.d.errout.since(0))
	if m == nil {
		r.t.Fatal("the log does not name the API's address")
	}
	addr := []string{"--addr", "http://" + string(m[1])}
	wrong := token[:len(token)-4] + "AAAA"
	r.secrets = append(r.secrets, wrong)
	for _, try := range []struct {
		token string
		code  int
	}{{token, 0}, {wrong, 2}} {
		file := r.file(try.token)
		for _, args := range [][]string{{"source", "list"}, {"token", "list"}, {"source", "get", "static_headers"}} {
			r.must(try.code, r.cli("", nil, append(append(args, addr...), "--api-token-file", file)...), args...)
			r.must(try.code, r.cli("", []string{"EGRESSD_TOKEN=" + try.token}, append(append(args, addr...), "--json")...), args...)
		}
	}
	r.must(0, r.cli("", nil, "token", "revoke", "ci", "--yes"), "token revoke")
	r.must(2, r.cli("", []string{"EGRESSD_TOKEN=" + token}, append([]string{"source", "list"}, addr...)...), "source list")
}

// driveDeletes ends some of the sources.
func (r *canaryRig) driveDeletes(samples []sample) {
	r.t.Helper()
	for _, s := range samples {
		r.ok(http.MethodDelete, "/credential-sources/api-"+s.kind, nil)
		r.call(http.MethodGet, "/credential-sources/api-"+s.kind, nil)
	}
	r.must(6, r.cli("", nil, "source", "delete", "static_headers", "--yes"), "source delete") // bound
	r.must(0, r.cli("", nil, "source", "delete", "locked", "--yes", "--json"), "source delete")
	if !waitFor(func() bool { return len(r.d.audit()) > 1000 }) { // it is written behind
		r.t.Error("the audit log stays empty")
	}
}
