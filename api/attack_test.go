package api

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"

	"github.com/egressd/egressd/source/static"
	"github.com/egressd/egressd/store"
)

// TestAttack_G15_lost_update: of 1,000 writers that read the same ETag one wins.
func TestAttack_G15_lost_update(t *testing.T) {
	const writers = 1000
	r := newRig(t)
	race := func(t *testing.T, name string, one func(i int, etag string) *got) {
		r.do("POST", at0, headers(name, "token", "first")).want(t, 201, "", "")
		etag := r.do("GET", at0+"/"+name, nil).header.Get("Etag")
		var mu sync.Mutex
		counts := map[int]int{}
		var wg sync.WaitGroup
		slots := make(chan struct{}, 64)
		for i := range writers {
			wg.Go(func() {
				slots <- struct{}{}
				defer func() { <-slots }()
				g := one(i, etag)
				mu.Lock()
				defer mu.Unlock()
				counts[g.status]++
			})
		}
		wg.Wait()
		if counts[200] != 1 || counts[412] != writers-1 {
			t.Errorf("%v", counts)
		}
	}
	r.unix.Transport.(*http.Transport).MaxIdleConnsPerHost = 64
	t.Run("put", func(t *testing.T) {
		race(t, "put", func(i int, etag string) *got {
			return r.do("PUT", at0+"/put", headers("put", "token", fmt.Sprint("v", i)), head("If-Match", etag))
		})
		if s := into[Source](t, r.do("GET", at0+"/put", nil)); s.CurrentVersion != 2 {
			t.Errorf("%+v", s)
		}
	})
	t.Run("patch", func(t *testing.T) {
		race(t, "patch", func(i int, etag string) *got {
			return r.do("PATCH", at0+"/patch", fmt.Sprintf(`{"description":"d%d"}`, i), head("If-Match", etag))
		})
	})
	t.Run("unconditional patches all stay", func(t *testing.T) {
		r.do("POST", at0, headers("labels", "token", "x")).want(t, 201, "", "")
		var wg sync.WaitGroup
		for i := range 40 {
			wg.Go(func() { r.do("PATCH", at0+"/labels", fmt.Sprintf(`{"labels":{"k%d":"v"}}`, i)) })
		}
		wg.Wait()
		if s := into[Source](t, r.do("GET", at0+"/labels", nil)); len(s.Labels) != 40 {
			t.Errorf("%d of 40 labels", len(s.Labels))
		}
	})
	t.Run("required by configuration", func(t *testing.T) {
		r := newRig(t, func(o *Options) { o.RequireIfMatch = true })
		etag := r.do("POST", at0, headers("gh", "token", "x")).want(t, 201, "", "").header.Get("Etag")
		for _, m := range []struct {
			method string
			body   any
		}{{"PUT", headers("gh", "token", "y")}, {"PATCH", `{"status":"disabled"}`}, {"DELETE", nil}} {
			r.do(m.method, at0+"/gh", m.body).want(t, 428, CodePreconditionFailed, ReasonIfMatchRequired)
		}
		r.do("DELETE", at0+"/gh", nil, head("If-Match", etag)).want(t, 200, "", "")
	})
}

// faster is a Writer whose sources another process changes just before each write here.
type faster struct {
	store.Writer
	left, made int
}

func (f *faster) Patch(ctx context.Context, team, name string, p store.Patch) (store.Meta, error) {
	if f.left > 0 {
		f.left--
		f.made++
		other := fmt.Sprint("other ", f.made)
		if _, err := f.Writer.Patch(ctx, team, name, store.Patch{Description: &other}); err != nil {
			return store.Meta{}, err
		}
	}
	return f.Writer.Patch(ctx, team, name, p)
}

func TestAnotherProcessIsFaster(t *testing.T) {
	w := &faster{}
	r := newRig(t, func(o *Options) { w.Writer = o.Writer; o.Writer = w })
	r.do("POST", at0, headers("gh", "token", "x")).want(t, 201, "", "")
	w.left = 3
	if s := into[Source](t, r.do("PATCH", at0+"/gh", `{"labels":{"a":"b"}}`).want(t, 200, "", "")); s.Labels["a"] != "b" || s.Description != "other 3" {
		t.Errorf("%+v", s)
	}
	w.left = 1
	etag := r.do("GET", at0+"/gh", nil).header.Get("Etag")
	r.do("PATCH", at0+"/gh", `{"labels":{"a":"c"}}`, head("If-Match", etag)).want(t, 412, CodePreconditionFailed, ReasonStale)
	w.left = 1000
	r.do("PATCH", at0+"/gh", `{"labels":{"a":"c"}}`).want(t, 503, CodeUnavailable, ReasonStore)
}

func TestAttack_G17_idempotency(t *testing.T) {
	r := newRig(t)
	key := head(KeyHeader, "6f1c-create")
	first := r.do("POST", at0, headers("gh", "token", "one"), key).want(t, 201, "", "")
	r.do("PUT", at0+"/gh", headers("gh", "token", "two")).want(t, 200, "", "")
	again := r.do("POST", at0, headers("gh", "token", "one"), key).want(t, 201, "", "")
	if string(again.raw) != string(first.raw) || again.header.Get("Etag") != first.header.Get("Etag") || again.header.Get("Location") != first.header.Get("Location") || again.header.Get("Idempotency-Replayed") != "true" {
		t.Errorf("first %v %s\nagain %v %s", first.header, first.raw, again.header, again.raw)
	}
	t.Run("another body", func(t *testing.T) {
		r.do("POST", at0, headers("gh", "token", "other"), key).want(t, 422, CodeUnprocessable, ReasonIdempotencyReused)
	})
	t.Run("another principal, route or key", func(t *testing.T) {
		r.dial("POST", at0, headers("gh", "token", "one"), key, auth(r.admin)).want(t, 409, CodeConflict, ReasonExists)
		r.do("POST", at0+"/gh/rotate", map[string]any{"spec": headerSpec(map[string]string{"token": "three"})}, key).want(t, 200, "", "")
		r.do("POST", at0, headers("gh", "token", "one"), head(KeyHeader, "6f1c-creat")).want(t, 409, CodeConflict, ReasonExists)
		r.do("POST", at0, headers("gh", "token", "one"), key, head(TeamHeader, "acme")).want(t, 201, "", "")
	})
	t.Run("rotate", func(t *testing.T) {
		body := map[string]any{"spec": headerSpec(map[string]string{"token": "four"})}
		a := r.do("POST", at0+"/gh/rotate", body, head(KeyHeader, "r")).want(t, 200, "", "")
		r.do("POST", at0+"/gh/rotate", map[string]any{"spec": headerSpec(map[string]string{"token": "five"})}).want(t, 200, "", "")
		b := r.do("POST", at0+"/gh/rotate", body, head(KeyHeader, "r")).want(t, 200, "", "")
		if string(a.raw) != string(b.raw) {
			t.Errorf("%s\n%s", a.raw, b.raw)
		}
		if s := into[Source](t, r.do("GET", at0+"/gh", nil)); s.CurrentVersion != 5 {
			t.Errorf("the repeated rotation went back: version %d", s.CurrentVersion)
		}
	})
	t.Run("at once", func(t *testing.T) {
		var wg sync.WaitGroup
		for range 50 {
			wg.Go(func() {
				if g := r.do("POST", at0, headers("many", "token", "one"), head(KeyHeader, "many")); g.status != 201 {
					t.Errorf("%d %s", g.status, g.raw)
				}
			})
		}
		wg.Wait()
		if s := into[Source](t, r.do("GET", at0+"/many", nil)); s.CurrentVersion != 1 {
			t.Errorf("%+v", s)
		}
	})
	t.Run("a failure is not kept", func(t *testing.T) {
		k := head(KeyHeader, "fails first")
		r.do("POST", at0, headers("late", "token", ""), head(KeyHeader, "late")).want(t, 400, CodeBadRequest, ReasonValidation)
		r.do("POST", at0, headers("late", "token", "x"), k).want(t, 400, CodeBadRequest, ReasonIdempotencyKey) // it has spaces
		r.do("POST", at0, headers("late", "token", "x"), head(KeyHeader, "late")).want(t, 201, "", "")
	})
	t.Run("keys", func(t *testing.T) {
		for _, k := range []string{strings.Repeat("k", 256), "ä", "a b"} {
			r.do("POST", at0, headers("k", "token", "x"), head(KeyHeader, k)).want(t, 400, CodeBadRequest, ReasonIdempotencyKey)
		}
		r.do("POST", at0, headers("k", "token", "x"), func(q *http.Request) { q.Header[KeyHeader] = []string{"a", "b"} }).want(t, 400, CodeBadRequest, ReasonIdempotencyKey)
	})
}

// TestAttack_G17_retry_after_a_lost_answer: the write is durable, the answer never came (the
// daemon died, or the data plane did not confirm). The retry gets the answer, not a conflict,
// and waits until the write is in force.
func TestAttack_G17_retry_after_a_lost_answer(t *testing.T) {
	r := newRig(t)
	key := head(KeyHeader, "lost")
	r.world.setFail(errors.New("data plane is behind"))
	r.do("POST", at0, headers("gh", "token", "one"), key).want(t, 503, CodeUnavailable, ReasonNotInForce)
	r.do("POST", at0, headers("gh", "token", "one"), key).want(t, 503, CodeUnavailable, ReasonNotInForce)
	r.world.setFail(nil)
	// A new Server over the same store, as after kill -9.
	after := newRig(t, func(o *Options) { o.Writer, o.Tokens, o.Idempotency = r.store, r.store, r.store })
	g := after.do("POST", at0, headers("gh", "token", "one"), key).want(t, 201, "", "")
	if s := into[Source](t, g); s.CurrentVersion != 1 || g.header.Get("Location") == "" {
		t.Errorf("%s", g.raw)
	}
}

// TestAttack_G18_mass_assignment: what a client may not set is no field.
func TestAttack_G18_mass_assignment(t *testing.T) {
	r := newRig(t)
	r.do("POST", at0, headers("gh", "token", "x")).want(t, 201, "", "")
	for field, value := range map[string]any{
		"storage_kind": "plaintext_pg", "team_id": 1, "team": "acme", "version": 9, "currentVersion": 9, "status": "active", "createdAt": "2020-01-01T00:00:00Z",
		"rev": 1, "fields": []any{}, "health": "ok", "managedMode": "external", "managedBy": "me", "referenceCount": 0, "Envelope": "x", "Spec": map[string]any{}, "__proto__": map[string]any{},
	} {
		t.Run(field, func(t *testing.T) {
			body := headers("new", "token", "x")
			body[field] = value
			r.do("POST", at0, body).want(t, 400, CodeBadRequest, ReasonValidation).wantField(t, field)
			r.do("PUT", at0+"/gh", body).want(t, 400, CodeBadRequest, ReasonValidation).wantField(t, field)
			if field != "status" {
				r.do("PATCH", at0+"/gh", map[string]any{field: value}).want(t, 400, CodeBadRequest, ReasonValidation).wantField(t, field)
			}
		})
	}
	r.do("GET", at0+"/new", nil).want(t, 404, CodeNotFound, "")
}

// TestAttack_G19_names: a name is never a path.
func TestAttack_G19_names(t *testing.T) {
	r := newRig(t)
	for _, name := range []string{
		"../../sys/raw", "..", ".", ".hidden", "a/b", `a\b`, "a b", "", "a\x00b", "a\nb", "%2e%2e", "-x", "_x", strings.Repeat("a", 129), "naïve", "a;b", "secret/../auth/token/create", "a?b", "a#b",
	} {
		g := r.do("POST", at0, headers(name, "token", "x")).want(t, 400, CodeBadRequest, ReasonValidation).wantField(t, "name")
		if len(name) > 3 && strings.Contains(string(g.raw), name) {
			t.Errorf("the answer repeats %q: %s", name, g.raw)
		}
	}
	for _, path := range []string{"/..%2f..%2fsys%2fraw", "/%2e%2e", "/a%2fb", "/" + strings.Repeat("a", 129), "/-x", "/%00"} {
		for _, m := range []string{"GET", "PUT", "PATCH", "DELETE"} {
			if g := r.do(m, at0+path, nil); g.status != 404 {
				t.Errorf("%s %s: %d", m, path, g.status)
			}
		}
	}
	for _, name := range []string{"a", "A.b-c_9", strings.Repeat("a", 128)} {
		r.do("POST", at0, headers(name, "token", "x")).want(t, 201, "", "")
		r.do("GET", at0+"/"+name, nil).want(t, 200, "", "")
	}
}

func TestPolicyRoutes(t *testing.T) {
	r := newRig(t)
	if v := into[PolicyView](t, r.do("GET", base+"/policies", nil).want(t, 200, "", "")); v.Hash != "h1" || v.Problems == nil {
		t.Errorf("%+v", v)
	}
	check := func(content string) *got {
		return r.do("POST", base+"/policies/check", map[string]any{"files": []any{map[string]string{"name": "a.yaml", "content": content}}})
	}
	if rep := into[PolicyReport](t, check("fine").want(t, 200, "", "")); !rep.OK || rep.Problems == nil || rep.Warnings == nil {
		t.Errorf("%+v", rep)
	}
	if rep := into[PolicyReport](t, check("broken").want(t, 200, "", "")); rep.OK || len(rep.Problems) != 1 || rep.Problems[0].Line != 3 {
		t.Errorf("%+v", rep)
	}
	r.do("POST", base+"/policies/check", `{"files":[]}`).want(t, 400, CodeBadRequest, ReasonValidation).wantField(t, "files")
	r.do("POST", base+"/policies/check", `{"files":[{"name":"","content":"x"}]}`).want(t, 400, CodeBadRequest, ReasonValidation).wantField(t, "files.0.name")
	explain := func(sandbox, url string) *got {
		return r.do("POST", base+"/policies/explain", map[string]any{"sandbox": sandbox, "url": url})
	}
	if res := into[ExplainResult](t, explain("agent-7", "https://api.github.com/user").want(t, 200, "", "")); res.Action != "inspect" || len(res.Steps) != 1 {
		t.Errorf("%+v", res)
	}
	explain("nobody", "https://x").want(t, 404, CodeNotFound, "")
	explain("agent-7", "ftp://x").want(t, 400, CodeBadRequest, ReasonValidation).wantField(t, "url")
	r.do("POST", base+"/policies/explain", `{"url":"https://x"}`).want(t, 400, CodeBadRequest, ReasonValidation).wantField(t, "sandbox")
	if rep := into[PolicyReport](t, r.do("POST", base+"/policies/reload", nil).want(t, 200, "", "")); !rep.OK {
		t.Errorf("%+v", rep)
	}
}

type brokenPolicies struct {
	Policies
	report PolicyReport
	err    error
}

func (b brokenPolicies) Reload(context.Context) (PolicyReport, error)     { return b.report, b.err }
func (b brokenPolicies) View(context.Context, string) (PolicyView, error) { return PolicyView{}, b.err }
func (b brokenPolicies) Check(context.Context, []PolicyFile) (PolicyReport, error) {
	return PolicyReport{}, b.err
}
func (b brokenPolicies) Explain(context.Context, string, ExplainRequest) (ExplainResult, error) {
	return ExplainResult{}, b.err
}

func TestReloadOfABrokenPolicy(t *testing.T) {
	p := brokenPolicies{report: PolicyReport{OK: true, Problems: []Problem{{File: "a.yaml", Line: 9, Message: "unknown field"}}}}
	r := newRig(t, func(o *Options) { o.Policies = p })
	g := r.do("POST", base+"/policies/reload", nil).want(t, 422, CodeUnprocessable, ReasonPolicyInvalid)
	if ps := g.env.Error.Details.Problems; len(ps) != 1 || ps[0].Line != 9 {
		t.Errorf("%s", g.raw)
	}
}

// brokenStore fails every call with err.
type brokenStore struct{ err error }

func (b brokenStore) Create(context.Context, store.Put) (store.Meta, error) {
	return store.Meta{}, b.err
}
func (b brokenStore) Update(context.Context, store.Put) (store.Meta, bool, error) {
	return store.Meta{}, false, b.err
}
func (b brokenStore) Patch(context.Context, string, string, store.Patch) (store.Meta, error) {
	return store.Meta{}, b.err
}
func (b brokenStore) Delete(context.Context, string, string, uint64, string) (store.Meta, error) {
	return store.Meta{}, b.err
}
func (b brokenStore) Meta(context.Context, string, string) (store.Meta, error) {
	return store.Meta{}, b.err
}
func (b brokenStore) List(context.Context, string) ([]store.Meta, error) { return nil, b.err }

// TestAttack_C34_error_pages: a failure inside says its code and request id and nothing of
// what is inside; the operator's log has the rest.
func TestAttack_C34_error_pages(t *testing.T) {
	const inside = "dial 10.9.8.7: /var/lib/egressd/store.db is odd"
	for name, tc := range map[string]struct {
		err    error
		status int
		code   Code
		reason string
	}{
		"unavailable": {fmt.Errorf("%s: %w", inside, store.ErrUnavailable), 503, CodeUnavailable, ReasonStore},
		"corrupt":     {fmt.Errorf("%s: %w", inside, store.ErrCorrupt), 500, CodeInternal, ReasonStoreCorrupt},
		"refused":     {fmt.Errorf("%s: %w", inside, store.ErrInvalid), 400, CodeBadRequest, ReasonValidation},
		"unknown":     {errors.New(inside), 500, CodeInternal, ""},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, func(o *Options) { o.Writer = brokenStore{tc.err}; o.Policies = brokenPolicies{err: tc.err} })
			for _, g := range []*got{
				r.do("GET", at0, nil), r.do("GET", at0+"/gh", nil), r.do("POST", at0, headers("gh", "token", "x")), r.do("PUT", at0+"/gh", headers("gh", "token", "x")),
				r.do("PATCH", at0+"/gh", `{}`), r.do("DELETE", at0+"/gh", nil),
			} {
				g.want(t, tc.status, tc.code, tc.reason)
				if strings.Contains(string(g.raw), "10.9.8.7") || strings.Contains(string(g.raw), "store.db") {
					t.Errorf("%s", g.raw)
				}
				if !strings.Contains(r.logs.String(), g.header.Get("X-Request-Id")) {
					t.Error("the request is not in the log")
				}
			}
			for _, g := range []*got{r.do("GET", base+"/policies", nil), r.do("POST", base+"/policies/reload", nil), r.do("POST", base+"/policies/explain", `{"sandbox":"a","url":"https://x"}`)} {
				if g.status != 503 || strings.Contains(string(g.raw), "10.9.8.7") {
					t.Errorf("%d %s", g.status, g.raw)
				}
			}
			if !strings.Contains(r.logs.String(), "10.9.8.7") {
				t.Error("the log does not have the cause")
			}
		})
	}
	t.Run("no certificate", func(t *testing.T) {
		r := newRig(t, func(o *Options) {
			o.CA = testCA{[]byte("-----BEGIN EC PRIVATE KEY-----\nAAAA\n-----END EC PRIVATE KEY-----\n")}
		})
		r.do("GET", base+"/ca", nil).want(t, 500, CodeInternal, "")
		r.do("GET", base+"/ca.pem", nil).want(t, 500, CodeInternal, "")
	})
}

func TestCA(t *testing.T) {
	r := newRig(t)
	ca := r.s.opt.CA.(testCA)
	v := into[CAView](t, r.do("GET", base+"/ca", nil).want(t, 200, "", ""))
	if v.CertificatePEM != string(ca.pem) || len(v.FingerprintSHA256) != 64 || v.Subject != "CN=egressd test CA" {
		t.Errorf("%+v", v)
	}
	g := r.do("GET", base+"/ca.pem", nil)
	if g.status != 200 || string(g.raw) != string(ca.pem) || g.header.Get("Content-Type") != mediaPEM {
		t.Errorf("%d %v %s", g.status, g.header, g.raw)
	}
	// A file that holds the key beside the certificate.
	both := newRig(t, func(o *Options) {
		o.CA = testCA{append([]byte("-----BEGIN EC PRIVATE KEY-----\nc2VjcmV0\n-----END EC PRIVATE KEY-----\n"), ca.pem...)}
	})
	if g := both.do("GET", base+"/ca.pem", nil); string(g.raw) != string(ca.pem) {
		t.Errorf("%s", g.raw)
	}
}

func TestKinds(t *testing.T) {
	r := newRig(t)
	all := into[[]KindView](t, r.do("GET", base+"/resolver-kinds", nil).want(t, 200, "", ""))
	if len(all) != len(static.Kinds()) {
		t.Fatalf("%d kinds", len(all))
	}
	for _, k := range all {
		one := into[KindView](t, r.do("GET", base+"/resolver-kinds/"+k.Kind, nil).want(t, 200, "", ""))
		if one.Block == "" || one.Schema["type"] != "object" || len(one.Inputs) == 0 || len(one.Projections) == 0 {
			t.Errorf("%+v", one)
		}
	}
	r.do("GET", base+"/resolver-kinds/nope", nil).want(t, 404, CodeNotFound, "")
}

// secretPanic is what a careless panic would carry.
type secretPanic struct{ value string }

func TestAttack_G08_panics(t *testing.T) {
	const leaf = "Zx-9f-panic-leaf-31"
	r := newRig(t)
	for _, v := range []any{leaf, errors.New(leaf), secretPanic{leaf}, fmt.Sprintf("%s and more", leaf)} {
		r.world.onView = func() { panic(v) }
		r.logs.Reset()
		g := r.do("GET", base+"/policies", nil).want(t, 500, CodeInternal, "")
		logs := r.logs.String()
		if strings.Contains(string(g.raw)+logs, leaf) {
			t.Errorf("%T: %s %s", v, g.raw, logs)
		}
		if !strings.Contains(logs, fmt.Sprintf("%T", v)) || !strings.Contains(logs, g.header.Get("X-Request-Id")) || !strings.Contains(logs, "TestAttack_G08_panics") {
			t.Errorf("the log does not say which request, what type, or where: %s", logs)
		}
	}
	r.world.onView = nil
	r.do("GET", base+"/policies", nil).want(t, 200, "", "")
}

func TestAttack_G08_bodies_cannot_be_formatted(t *testing.T) {
	const leaf = "Zx-9f-body-leaf-32"
	b := SourceBody{Spec: []byte(leaf), Description: leaf}
	for _, v := range []any{b, &b, SourceWrite{SourceBody: b}, &SourceReplace{SourceBody: b}, SourceRotate{Spec: []byte(leaf)}, &SourcePatch{Spec: []byte(leaf)}, []SourceWrite{{SourceBody: b}}} {
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%d"} {
			if out := fmt.Sprintf(verb, v); strings.Contains(out, leaf) || strings.Contains(out, fmt.Sprintf("%x", leaf)) || strings.Contains(out, "90 120 45") {
				t.Errorf("%s of %T: %s", verb, v, out)
			}
		}
	}
}
