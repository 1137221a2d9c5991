package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/egressd/egressd/store"
)

func TestCreateAnswersAsTheContractSays(t *testing.T) {
	r := newRig(t)
	body := headers("gh", "token", "t0p")
	maps.Copy(body, map[string]any{
		"description": "GitHub", "labels": map[string]string{"env": "dev"}, "annotations": map[string]string{"owner": "me"},
		"allowedDestinations": []string{"api.github.com", "*.example.com:8443"}, "externalRefs": []any{}, "expiresAt": "2127-01-02T03:04:05Z",
	})
	g := r.do("POST", at0, body).want(t, 201, "", "")
	if g.header.Get("Location") != at0+"/gh" || g.header.Get("Etag") == "" {
		t.Errorf("Location %q ETag %q", g.header.Get("Location"), g.header.Get("Etag"))
	}
	var data map[string]any
	if err := json.Unmarshal(g.env.Data, &data); err != nil {
		t.Fatal(err)
	}
	created, _ := data["createdAt"].(string)
	if at, err := time.Parse(time.RFC3339, created); err != nil || time.Since(at) > time.Minute {
		t.Errorf("createdAt %q", created)
	}
	want := map[string]any{
		"name": "gh", "resolverKind": "static_headers", "currentVersion": 1.0, "status": "active",
		"createdAt": created, "updatedAt": created, "lastRotatedAt": created, "description": "GitHub",
		"labels": map[string]any{"env": "dev"}, "annotations": map[string]any{"owner": "me"},
		"allowedDestinations": []any{"api.github.com", "*.example.com:8443"}, "externalRefs": []any{},
		"managedMode": "local", "managedBy": "", "expiresAt": "2127-01-02T03:04:05Z", "lastResolvedAt": nil, "lastUsedAt": nil,
		"fields":         []any{map[string]any{"path": "staticHeaders.values.token", "set": true, "origin": "local"}},
		"referenceCount": 0.0, "health": "ok",
	}
	if d := cmp.Diff(want, data); d != "" {
		t.Error(d)
	}
	if got := r.do("GET", at0+"/gh", nil).want(t, 200, "", ""); string(got.env.Data) != string(g.env.Data) || got.header.Get("Etag") != g.header.Get("Etag") {
		t.Errorf("GET differs from what POST answered: %s", got.raw)
	}
	r.do("POST", at0, body).want(t, 409, CodeConflict, ReasonExists)
}

func TestListIsAnEmptyArray(t *testing.T) {
	r := newRig(t)
	if g := r.do("GET", at0, nil).want(t, 200, "", ""); string(g.env.Data) != "[]" {
		t.Errorf("data %s", g.env.Data)
	}
}

func TestPutReplaces(t *testing.T) {
	r := newRig(t)
	body := headers("gh", "token", "one")
	body["description"] = "first"
	first := r.do("POST", at0, body).want(t, 201, "", "")

	same := headers("gh", "token", "one")
	same["description"] = "first"
	g := r.do("PUT", at0+"/gh", same).want(t, 200, "", "")
	if u := into[SourceUpdated](t, g); !u.Unchanged || u.CurrentVersion != 1 || g.header.Get("Etag") != first.header.Get("Etag") {
		t.Errorf("identical PUT: %s", g.raw)
	}
	// The path's name wins; metadata that is not sent is gone.
	g = r.do("PUT", at0+"/gh", headers("other", "token", "two")).want(t, 200, "", "")
	u := into[SourceUpdated](t, g)
	if u.Unchanged || u.CurrentVersion != 2 || u.Name != "gh" || u.Description != "" || strings.Contains(string(g.raw), "unchanged") {
		t.Errorf("PUT: %s", g.raw)
	}
	r.do("GET", at0+"/other", nil).want(t, 404, CodeNotFound, "")

	r.do("PUT", at0+"/none", headers("none", "token", "x")).want(t, 404, CodeNotFound, "")
	r.do("PUT", at0+"/gh", map[string]any{"resolverKind": "static_username_password", "spec": map[string]any{
		"staticUsernamePassword": map[string]any{"username": "u", "password": "p"},
	}}).want(t, 400, CodeBadRequest, ReasonKindImmutable).wantField(t, "resolverKind")
	r.do("PUT", at0+"/gh", headers("gh", "token", "three"), head("If-Match", first.header.Get("Etag"))).want(t, 412, CodePreconditionFailed, ReasonStale)
	r.do("PUT", at0+"/gh", headers("gh", "token", "three"), head("If-Match", "W/"+g.header.Get("Etag"))).want(t, 412, CodePreconditionFailed, ReasonStale)
	r.do("PUT", at0+"/gh", headers("gh", "token", "three"), head("If-Match", `"x", `+g.header.Get("Etag"))).want(t, 200, "", "")
	r.do("PUT", at0+"/gh", headers("gh", "token", "four"), head("If-Match", "*")).want(t, 200, "", "")
}

func TestDeleteOnlyUnreferenced(t *testing.T) {
	r := newRig(t)
	r.do("POST", at0, headers("gh", "token", "one")).want(t, 201, "", "")
	r.world.bind(DefaultTeam, "gh")
	g := r.do("DELETE", at0+"/gh", nil).want(t, 409, CodeConflict, ReasonReferenced)
	if d := cmp.Diff([]Referrer{{Sandbox: "agent-7", Binding: "gh", File: "team.yaml", Line: 17}}, g.env.Error.Details.Referrers); d != "" {
		t.Error(d)
	}
	r.do("PATCH", at0+"/gh", `{"status":"archived"}`).want(t, 409, CodeConflict, ReasonReferenced)
	if s := into[Source](t, r.do("GET", at0+"/gh", nil).want(t, 200, "", "")); s.ReferenceCount != 1 || s.Status != "active" {
		t.Errorf("after refused delete: %+v", s)
	}
	r.world.unbind(DefaultTeam, "gh")
	g = r.do("DELETE", at0+"/gh", nil).want(t, 200, "", "")
	if d := cmp.Diff(map[string]any{"deleted": true, "message": "credential source deleted"}, into[map[string]any](t, g)); d != "" {
		t.Error(d)
	}
	r.do("DELETE", at0+"/gh", nil).want(t, 404, CodeNotFound, "")
	r.do("GET", at0+"/gh", nil).want(t, 404, CodeNotFound, "")
	if s := into[Source](t, r.do("POST", at0, headers("gh", "token", "two")).want(t, 201, "", "")); s.Status != "active" {
		t.Errorf("the name of a deleted source: %+v", s)
	}
}

func TestDeleteAndReloadAreOneAfterTheOther(t *testing.T) {
	r := newRig(t)
	for i := range 50 {
		name := fmt.Sprintf("s%d", i)
		r.do("POST", at0, headers(name, "token", "one")).want(t, 201, "", "")
		done := make(chan int)
		go func() { done <- r.do("DELETE", at0+"/"+name, nil).status }()
		r.world.bind(DefaultTeam, name) // as a reload would, under the same lock
		_, err := r.store.Meta(context.Background(), DefaultTeam, name)
		gone := errors.Is(err, store.ErrNotFound)
		switch status := <-done; {
		case status == 200 && !gone, status == 409 && gone:
			t.Fatalf("source %d: status %d, but gone %v when the policy came in force", i, status, gone)
		case status != 200 && status != 409:
			t.Fatalf("status %d", status)
		}
	}
}

func TestPatch(t *testing.T) {
	r := newRig(t)
	body := headers("gh", "token", "one")
	maps.Copy(body, map[string]any{"description": "d", "labels": map[string]string{"a": "1", "b": "2"}, "allowedDestinations": []string{"x.example"}})
	first := r.do("POST", at0, body).want(t, 201, "", "")
	g := r.do("PATCH", at0+"/gh", `{"labels":{"a":null,"c":"3"},"status":"disabled","description":null}`).want(t, 200, "", "")
	s := into[Source](t, g)
	if d := cmp.Diff(map[string]string{"b": "2", "c": "3"}, s.Labels); d != "" || s.Status != "disabled" || s.Description != "" || s.CurrentVersion != 1 || !slices.Equal(s.AllowedDestinations, []string{"x.example"}) {
		t.Errorf("%s %s", d, g.raw)
	}
	if g.header.Get("Etag") == first.header.Get("Etag") {
		t.Error("the ETag is the same after a change of metadata")
	}
	r.do("PATCH", at0+"/gh", `{"status":"active"}`, head("If-Match", first.header.Get("Etag"))).want(t, 412, CodePreconditionFailed, ReasonStale)
	s = into[Source](t, r.do("PATCH", at0+"/gh", `{"labels":null,"allowedDestinations":null,"expiresAt":"2127-01-01T00:00:00Z"}`).want(t, 200, "", ""))
	if len(s.Labels) != 0 || len(s.AllowedDestinations) != 0 || s.ExpiresAt == nil || s.Status != "disabled" {
		t.Errorf("%+v", s)
	}
	if s = into[Source](t, r.do("PATCH", at0+"/gh", `{"expiresAt":null}`).want(t, 200, "", "")); s.ExpiresAt != nil {
		t.Errorf("%+v", s)
	}
	for body, path := range map[string]string{
		`{"status":"deleted"}`: "status", `{"status":null}`: "status", `{"labels":{"bad key":"x"}}`: "labels.#1", `{"name":"x"}`: "name",
		`{"resolverKind":"x"}`: "resolverKind", `{"allowedDestinations":["https://x"]}`: "allowedDestinations.0", `{"expiresAt":"2001-01-01T00:00:00Z"}`: "expiresAt",
		`{"status":7}`: "status", `{"labels":{"a":1}}`: "labels.a",
	} {
		r.do("PATCH", at0+"/gh", body).want(t, 400, CodeBadRequest, ReasonValidation).wantField(t, path)
	}
	r.do("PATCH", at0+"/gh", `{"spec":{"staticHeaders":{"values":{"token":"x"}}}}`).want(t, 422, CodeUnprocessable, ReasonSpecInPatch).wantField(t, "spec")
	r.do("PATCH", at0+"/gh", `{}`, head("Content-Type", mediaJSON)).want(t, 415, CodeBadRequest, ReasonMediaType)
	r.do("PATCH", at0+"/none", `{}`).want(t, 404, CodeNotFound, "")
}

func TestRotate(t *testing.T) {
	r := newRig(t)
	body := headers("gh", "token", "one")
	body["description"] = "stays"
	first := r.do("POST", at0, body).want(t, 201, "", "")
	spec := func(v string) map[string]any {
		return map[string]any{"spec": headerSpec(map[string]string{"token": v})}
	}
	g := r.do("POST", at0+"/gh/rotate", spec("two")).want(t, 200, "", "")
	if s := into[SourceRotated](t, g); s.CurrentVersion != 2 || s.PreviousVersion != 1 || s.Description != "stays" || s.Drain != "graceful" || s.Unchanged {
		t.Errorf("%s", g.raw)
	}
	if s := into[SourceRotated](t, r.do("POST", at0+"/gh/rotate", spec("two")).want(t, 200, "", "")); !s.Unchanged || s.CurrentVersion != 2 {
		t.Errorf("rotate to the same spec: %+v", s)
	}
	none := spec("three")
	none["drain"], none["reason"] = "none", "leaked in a paste"
	r.do("POST", at0+"/gh/rotate", none).want(t, 200, "", "")
	if d := cmp.Diff([]uint64{2}, r.world.drained); d != "" {
		t.Error(d)
	}
	if !strings.Contains(r.logs.String(), "leaked in a paste") {
		t.Error("the reason is not in the operator's log")
	}
	closing := spec("four")
	closing["drain"] = "close"
	r.do("POST", at0+"/gh/rotate", closing).want(t, 200, "", "")
	if d := cmp.Diff([]bool{false, true}, r.world.cut); d != "" {
		t.Error(d)
	}
	r.do("POST", at0+"/gh/rotate", map[string]any{"drain": "graceful"}).want(t, 400, CodeBadRequest, ReasonValidation).wantField(t, "spec")
	closing["drain"] = "soon"
	r.do("POST", at0+"/gh/rotate", closing).want(t, 400, CodeBadRequest, ReasonValidation).wantField(t, "drain")
	r.do("POST", at0+"/gh/rotate", spec("five"), head("If-Match", first.header.Get("Etag"))).want(t, 412, CodePreconditionFailed, ReasonStale)
	r.do("POST", at0+"/none/rotate", spec("x")).want(t, 404, CodeNotFound, "")
}

func TestKeysThatABoundTemplateNeeds(t *testing.T) {
	r := newRig(t)
	r.do("POST", at0, headers("gh", "token", "one", "extra", "e")).want(t, 201, "", "")
	r.world.bind(DefaultTeam, "gh", "token")
	r.do("PUT", at0+"/gh", headers("gh", "token", "two")).want(t, 200, "", "")
	for name, g := range map[string]*got{
		"put":    r.do("PUT", at0+"/gh", headers("gh", "other", "x")),
		"rotate": r.do("POST", at0+"/gh/rotate", map[string]any{"spec": headerSpec(map[string]string{"other": "x"})}),
	} {
		t.Run(name, func(t *testing.T) {
			g.want(t, 422, CodeUnprocessable, ReasonMissingKeys)
			if d := cmp.Diff([]string{"token"}, g.env.Error.Details.MissingKeys); d != "" || len(g.env.Error.Details.Referrers) != 1 {
				t.Errorf("%s %s", d, g.raw)
			}
		})
	}
	r.world.bind(DefaultTeam, "later", "token")
	r.do("POST", at0, headers("later", "other", "x")).want(t, 422, CodeUnprocessable, ReasonMissingKeys)
	if s := into[Source](t, r.do("POST", at0, headers("later", "token", "x")).want(t, 201, "", "")); s.ReferenceCount != 1 {
		t.Errorf("%+v", s)
	}
	if s := into[Source](t, r.do("GET", at0+"/gh", nil)); s.CurrentVersion != 2 {
		t.Errorf("a refused write made a version: %+v", s)
	}
}

func TestWritesWaitUntilInForce(t *testing.T) {
	r := newRig(t)
	g := r.do("POST", at0, headers("gh", "token", "one")).want(t, 201, "", "")
	r.world.mu.Lock()
	applied := slices.Clone(r.world.applied)
	r.world.mu.Unlock()
	if m, err := r.store.Meta(context.Background(), DefaultTeam, "gh"); err != nil || !slices.Equal(applied, []store.Rev{m.Rev}) {
		t.Errorf("applied %v, revision %v: %s", applied, m.Rev, g.raw)
	}
	r.world.setFail(context.DeadlineExceeded)
	for name, g := range map[string]*got{
		"create": r.do("POST", at0, headers("gh2", "token", "one")),
		"put":    r.do("PUT", at0+"/gh", headers("gh", "token", "two")),
		"patch":  r.do("PATCH", at0+"/gh", `{"status":"disabled"}`),
		"rotate": r.do("POST", at0+"/gh/rotate", map[string]any{"spec": headerSpec(map[string]string{"token": "three"})}),
		"delete": r.do("DELETE", at0+"/gh2", nil),
	} {
		t.Run(name, func(t *testing.T) {
			g.want(t, 503, CodeUnavailable, ReasonNotInForce)
			if g.header.Get("Retry-After") == "" || !strings.Contains(g.env.Error.Message, "stored") {
				t.Errorf("%v %s", g.header, g.raw)
			}
		})
	}
}

func TestValidationNamesThePath(t *testing.T) {
	r := newRig(t)
	change := func(kv ...any) map[string]any {
		b := headers("gh", "token", "one")
		for i := 0; i < len(kv); i += 2 {
			b[kv[i].(string)] = kv[i+1]
		}
		return b
	}
	without := func(k string) map[string]any { b := headers("gh", "token", "one"); delete(b, k); return b }
	many := map[string]string{}
	for i := range 65 {
		many[fmt.Sprintf("k%d", i)] = "v"
	}
	for _, tc := range []struct {
		name, path, reason string
		body               any
	}{
		{"no name", "name", ReasonValidation, without("name")},
		{"no kind", "resolverKind", ReasonValidation, without("resolverKind")},
		{"no spec", "spec", ReasonValidation, without("spec")},
		{"null spec", "spec", ReasonValidation, change("spec", nil)},
		{"unknown kind", "resolverKind", ReasonKindUnknown, change("resolverKind", "nope")},
		{"kind of a later issue", "resolverKind", ReasonNotSupportedYet, change("resolverKind", "aws_sts")},
		{"block of another kind", "spec.staticHeaders", ReasonValidation, change("resolverKind", "static_username_password")},
		{"empty value", "spec.staticHeaders.values.token", ReasonValidation, headers("gh", "token", "")},
		{"CR in a value", "spec.staticHeaders.values.token", ReasonValidation, headers("gh", "token", "a\rb")},
		{"placeholder", "spec.staticHeaders.values.token", ReasonValidation, headers("gh", "token", "$encrypted$")},
		{"unknown field", "colour", ReasonValidation, change("colour", "red")},
		{"description too long", "description", ReasonValidation, change("description", strings.Repeat("x", 1025))},
		{"too many labels", "labels", ReasonValidation, change("labels", many)},
		{"label of a wrong type", "labels.a", ReasonValidation, change("labels", map[string]any{"a": 1})},
		{"destination", "allowedDestinations.1", ReasonValidation, change("allowedDestinations", []string{"ok.example", "http://x/"})},
		{"external reference", "externalRefs", ReasonValidation, change("externalRefs", []any{map[string]string{"ref": "x"}})},
		{"expired", "expiresAt", ReasonValidation, change("expiresAt", "2020-01-01T00:00:00Z")},
		{"no time", "expiresAt", ReasonValidation, change("expiresAt", "soon")},
		{"duplicate key", "name", ReasonValidation, `{"name":"gh","name":"gh","resolverKind":"static_headers","spec":{"staticHeaders":{"values":{"t":"x"}}}}`},
		{"folded key", "Name", ReasonValidation, `{"Name":"gh","resolverKind":"static_headers","spec":{"staticHeaders":{"values":{"t":"x"}}}}`},
		{"duplicate key in spec", "spec.staticHeaders", ReasonValidation, `{"name":"gh","resolverKind":"static_headers","spec":{"staticHeaders":{"values":{"t":"x"}},"staticHeaders":{}}}`},
		{"no JSON", "", ReasonMalformedJSON, `{"name":`},
		{"empty body", "", ReasonMalformedJSON, ``},
		{"an array", "", ReasonMalformedJSON, `[]`},
		{"null", "", ReasonMalformedJSON, `null`},
		{"two documents", "", ReasonMalformedJSON, `{} {}`},
		{"deep", "", ReasonMalformedJSON, strings.Repeat("[", 5000) + strings.Repeat("]", 5000)},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r.do("POST", at0, tc.body).want(t, 400, CodeBadRequest, tc.reason).wantField(t, tc.path)
		})
	}
	if all, err := r.store.List(context.Background(), DefaultTeam); err != nil || len(all) != 0 {
		t.Errorf("stored %v %v", all, err)
	}
}

func TestBodyLimits(t *testing.T) {
	r := newRig(t)
	big := strings.Repeat("x", MaxBody)
	r.do("POST", at0, headers("gh", "token", big)).want(t, 413, CodeTooLarge, "")
	r.do("POST", at0, struct{ *strings.Reader }{strings.NewReader(big + "xx")}.Reader, func(q *http.Request) { q.ContentLength = -1 }).want(t, 413, CodeTooLarge, "")
	for _, media := range []string{"", "text/plain", "application/x-www-form-urlencoded", "application/json; charset=latin1", "application/json; x=y", "multipart/form-data"} {
		r.do("POST", at0, headers("gh", "token", "x"), head("Content-Type", media)).want(t, 415, CodeBadRequest, ReasonMediaType)
	}
	r.do("POST", at0, headers("gh", "token", "x"), head("Content-Type", "application/json; charset=UTF-8")).want(t, 201, "", "")
	r.do("DELETE", at0+"/gh", `{"force":true}`).want(t, 400, CodeBadRequest, "")
	r.do("DELETE", at0+"/gh", `{}`).want(t, 200, "", "")
}

func TestListParameters(t *testing.T) {
	r := newRig(t)
	for i, n := range []string{"alpha", "beta", "gamma", "delta"} {
		b := headers(n, "token", n+"-value")
		if i%2 == 0 {
			b["labels"] = map[string]string{"env": "dev", "tier": n}
			b["description"] = "The EVEN one"
		}
		r.do("POST", at0, b).want(t, 201, "", "")
	}
	r.do("PATCH", at0+"/beta", `{"status":"disabled"}`).want(t, 200, "", "")
	names := func(query string) string {
		g := r.do("GET", at0+"?"+query, nil).want(t, 200, "", "")
		var out []string
		for _, s := range into[[]Source](t, g) {
			out = append(out, s.Name)
		}
		return strings.Join(out, " ")
	}
	for query, want := range map[string]string{
		"": "alpha beta delta gamma", "status=disabled": "beta", "status=active&status=disabled": "alpha beta delta gamma",
		"resolverKind=static_headers": "alpha beta delta gamma", "resolverKind=static_ssh_private_key": "", "label=env:dev": "alpha gamma",
		"label=env:dev&label=tier:gamma": "gamma", "name__startswith=b": "beta", "name__contains=lt": "delta", "search=even": "alpha gamma",
		"search=GAM": "gamma", "order_by=-name": "gamma delta beta alpha", "order_by=createdAt": "alpha beta gamma delta", "order_by=-updatedAt&pageSize=1": "beta",
		"managedMode=local": "alpha beta delta gamma", "managedMode=external": "", "updatedAt__gte=2127-01-01T00:00:00Z": "", "updatedAt__lte=2127-01-01T00:00:00Z": "alpha beta delta gamma",
	} {
		if got := names(query); got != want {
			t.Errorf("?%s: %q, want %q", query, got, want)
		}
	}
	for _, order := range []string{"name", "-name", "createdAt", "-updatedAt"} {
		var all []string
		token := ""
		for range 5 {
			g := r.do("GET", at0+"?pageSize=2&order_by="+order+"&pageToken="+token, nil).want(t, 200, "", "")
			for _, s := range into[[]Source](t, g) {
				all = append(all, s.Name)
			}
			if token = g.env.Next; token == "" {
				break
			}
		}
		if got := strings.Join(all, " "); got != names("order_by="+order) {
			t.Errorf("pages by %s: %q", order, got)
		}
	}
	next := r.do("GET", at0+"?pageSize=1", nil).env.Next
	for query, reason := range map[string]string{
		"colour=red": ReasonUnknownParameter, "pageSize=0": ReasonInvalidParameter, "pageSize=201": ReasonInvalidParameter, "pageSize=x": ReasonInvalidParameter,
		"pageSize=1&pageSize=2": ReasonInvalidParameter, "pageToken=" + next: ReasonInvalidParameter, "pageSize=1&pageToken=zzz": ReasonInvalidParameter,
		"pageSize=1&order_by=-name&pageToken=" + next: ReasonInvalidParameter, "order_by=spec": ReasonInvalidParameter, "status=deleted": ReasonInvalidParameter,
		"label=x": ReasonInvalidParameter, "updatedAt__gte=now": ReasonInvalidParameter, "a;b": ReasonInvalidParameter, "%zz": ReasonInvalidParameter,
	} {
		r.do("GET", at0+"?"+query, nil).want(t, 400, CodeBadRequest, reason)
	}
	r.do("GET", at0+"/alpha?verbose=1", nil).want(t, 400, CodeBadRequest, ReasonUnknownParameter)
}

func TestHealthTellsOfExpiry(t *testing.T) {
	r := newRig(t)
	b := headers("gh", "token", "x")
	b["expiresAt"] = time.Now().Add(50 * time.Hour).UTC().Format(time.RFC3339)
	if s := into[Source](t, r.do("POST", at0, b).want(t, 201, "", "")); s.Health != "expires in 2 days" {
		t.Errorf("health %q", s.Health)
	}
	m := store.Meta{Health: "ok", ExpiresAt: time.Date(2026, 1, 2, 0, 0, 0, 0, time.UTC)}
	if got := healthNow(m, time.Date(2026, 3, 1, 0, 0, 0, 0, time.UTC)); got != "expired on 2026-01-02" {
		t.Errorf("health %q", got)
	}
}

func FuzzListQuery(f *testing.F) {
	now := time.Now()
	all := []store.Meta{{Name: "a", UpdatedAt: now}, {Name: "b", CreatedAt: now}, {Name: "c", Labels: map[string]string{"k": "v"}}}
	l := listing{order: "name", shape: shapeOf(url.Values{}), size: 1}
	_, next := l.page(slices.Clone(all))
	f.Add("pageSize=1&pageToken=" + next)
	f.Add("label=k:v&order_by=-updatedAt&status=active&search=%ff")
	f.Fuzz(func(t *testing.T, raw string) {
		q, err := url.ParseQuery(raw)
		if err != nil {
			return
		}
		l, fail := parseListing(q)
		if fail != nil {
			if b := string(encode(fail.body)); len(q.Get("pageToken")) > 12 && strings.Contains(b, q.Get("pageToken")) {
				t.Errorf("the answer repeats the token: %s", b)
			}
			return
		}
		if page, _ := l.page(slices.Clone(all)); len(page) > len(all) || l.size > 0 && len(page) > l.size {
			t.Errorf("%d of %d, page size %d", len(page), len(all), l.size)
		}
	})
}
