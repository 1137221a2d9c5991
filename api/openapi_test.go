package api

import (
	"encoding/json"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// schemaDoc validates values against the JSON Schemas of an OpenAPI document. It knows the
// keywords that the document uses and fails on any other.
type schemaDoc struct{ doc map[string]any }

func (d schemaDoc) resolve(ref string) (map[string]any, error) {
	var at any = d.doc
	for part := range strings.SplitSeq(strings.TrimPrefix(ref, "#/"), "/") {
		m, ok := at.(map[string]any)
		if !ok {
			return nil, fmt.Errorf("%s leads nowhere", ref)
		}
		at = m[part]
	}
	m, ok := at.(map[string]any)
	if !ok {
		return nil, fmt.Errorf("%s leads nowhere", ref)
	}
	return m, nil
}

func typeName(v any) string {
	switch v := v.(type) {
	case nil:
		return "null"
	case bool:
		return "boolean"
	case string:
		return "string"
	case []any:
		return "array"
	case map[string]any:
		return "object"
	case float64:
		if v == float64(int64(v)) {
			return "integer"
		}
	}
	return "number"
}

func (d schemaDoc) check(path string, schema map[string]any, v any) error {
	for keyword, arg := range schema {
		if err := d.keyword(path, schema, keyword, arg, v); err != nil {
			return err
		}
	}
	return nil
}

func (d schemaDoc) keyword(path string, schema map[string]any, keyword string, arg, v any) error {
	text, _ := v.(string)
	obj, isObj := v.(map[string]any)
	switch keyword {
	case "description", "writeOnly", "properties":
	case "$ref":
		s, err := d.resolve(arg.(string))
		if err != nil {
			return err
		}
		return d.check(path, s, v)
	case "type":
		if typeName(v) != arg {
			return fmt.Errorf("%s is %s, documented as %v", path, typeName(v), arg)
		}
	case "const":
		if v != arg {
			return fmt.Errorf("%s is %v, documented as %v", path, v, arg)
		}
	case "format":
		if _, err := time.Parse(time.RFC3339, text); arg != "date-time" || err != nil {
			return fmt.Errorf("%s: %v %w", path, arg, err)
		}
	case "minLength":
		if len(text) < int(arg.(float64)) {
			return fmt.Errorf("%s is too short", path)
		}
	case "pattern":
		if ok, err := regexp.MatchString(arg.(string), text); !ok || err != nil {
			return fmt.Errorf("%s does not match %v %w", path, arg, err)
		}
	case "anyOf", "oneOf":
		var errs []error
		n := 0
		for _, s := range arg.([]any) {
			if err := d.check(path, s.(map[string]any), v); err != nil {
				errs = append(errs, err)
				continue
			}
			n++
		}
		if n == 0 || keyword == "oneOf" && n > 1 {
			return fmt.Errorf("%s fits %d: %v", path, n, errs)
		}
	case "items":
		for i, e := range v.([]any) {
			if err := d.check(path+"."+strconv.Itoa(i), arg.(map[string]any), e); err != nil {
				return err
			}
		}
	case "required":
		for _, k := range arg.([]any) {
			if _, ok := obj[k.(string)]; !ok {
				return fmt.Errorf("%s lacks %v", path, k)
			}
		}
	case "minProperties":
		if len(obj) < int(arg.(float64)) {
			return fmt.Errorf("%s has %d members", path, len(obj))
		}
	case "propertyNames":
		for k := range obj {
			if err := d.check(path+"."+k, arg.(map[string]any), k); err != nil {
				return err
			}
		}
	case "additionalProperties":
		return d.members(path, schema, arg, obj)
	default:
		return fmt.Errorf("%s: keyword %s is not known to this test", path, keyword)
	}
	if keyword == "properties" && isObj && schema["additionalProperties"] == nil {
		return fmt.Errorf("%s: open object", path)
	}
	return nil
}

func (d schemaDoc) members(path string, schema map[string]any, rest any, obj map[string]any) error {
	properties, _ := schema["properties"].(map[string]any)
	for k, e := range obj {
		s, known := properties[k].(map[string]any)
		if !known {
			if s, known = rest.(map[string]any); !known {
				return fmt.Errorf("%s.%s is not documented", path, k)
			}
		}
		if err := d.check(path+"."+k, s, e); err != nil {
			return err
		}
	}
	return nil
}

// refs finds every $ref in v.
func refs(v any) []string {
	var out []string
	switch v := v.(type) {
	case map[string]any:
		for k, e := range v {
			if r, ok := e.(string); ok && k == "$ref" {
				out = append(out, r)
				continue
			}
			out = append(out, refs(e)...)
		}
	case []any:
		for _, e := range v {
			out = append(out, refs(e)...)
		}
	}
	return out
}

func openDoc(t *testing.T, r *rig) schemaDoc {
	t.Helper()
	g := r.do("GET", base+"/openapi.json", nil)
	d := schemaDoc{}
	if err := json.Unmarshal(g.raw, &d.doc); err != nil || g.status != 200 {
		t.Fatalf("%d %v", g.status, err)
	}
	return d
}

func dig(t *testing.T, v any, path ...string) map[string]any {
	t.Helper()
	for _, p := range path {
		m, ok := v.(map[string]any)
		if !ok || m[p] == nil {
			t.Fatalf("the document has no %s of %v", p, path)
		}
		v = m[p]
	}
	return v.(map[string]any)
}

func TestOpenAPIHasEveryRowAndNoOther(t *testing.T) {
	r := newRig(t)
	d := openDoc(t, r)
	if d.doc["openapi"] != "3.1.0" {
		t.Errorf("openapi %v", d.doc["openapi"])
	}
	documented, ids := 0, []string{}
	for _, item := range dig(t, d.doc, "paths") {
		for _, op := range item.(map[string]any) {
			documented++
			ids = append(ids, op.(map[string]any)["operationId"].(string))
		}
	}
	if slices.Sort(ids); documented != len(r.s.routes) || len(slices.Compact(ids)) != documented {
		t.Errorf("%d operations for %d rows: %v", documented, len(r.s.routes), ids)
	}
	for _, rt := range r.s.routes {
		op := dig(t, d.doc, "paths", rt.pattern, strings.ToLower(rt.method))
		if op["x-egressd-role"] != rt.role.String() || op["summary"] == "" {
			t.Errorf("%s %s: %v", rt.method, rt.pattern, op)
		}
		dig(t, op, "responses", strconv.Itoa(rt.status))
		dig(t, op, "responses", "401")
	}
	for _, ref := range refs(d.doc) {
		if _, err := d.resolve(ref); err != nil {
			t.Error(err)
		}
	}
	if s := string(r.s.doc); strings.Contains(s, `"example`) || strings.Contains(s, `"default"`) {
		t.Error("the document has examples")
	}
}

// TestOpenAPIMatchesLiveAnswers asks every row for a success and checks body and answer
// against what is documented for it.
func TestOpenAPIMatchesLiveAnswers(t *testing.T) {
	r := newRig(t)
	d := openDoc(t, r)
	r.world.open = []Connection{{ID: "7", Way: "redirect", Exchanges: []Exchange{{RequestID: "x-1", Destination: "good.test:443"}}}}
	full := headers("gh", "token", "x")
	full["description"], full["labels"], full["annotations"] = "d", map[string]string{"a": "b"}, map[string]string{"c": "d"}
	full["allowedDestinations"], full["expiresAt"] = []string{"x.example"}, "2127-01-01T00:00:00Z"
	spec := map[string]any{"spec": headerSpec(map[string]string{"token": "z"}), "drain": "none", "reason": "because"}
	login := map[string]any{"resolverKind": "static_username_password", "name": "lg", "spec": map[string]any{"staticUsernamePassword": map[string]string{"username": "u", "password": "p"}}}
	steps := []struct {
		method, pattern, path string
		body                  any
		fails                 int // 0: it succeeds
	}{
		{"GET", at0, "", nil, 0}, {"POST", at0, "", full, 0}, {"POST", at0, "", login, 0}, {"POST", at0, "", full, 409}, {"GET", at0, at0 + "?pageSize=1", nil, 0},
		{"GET", at0 + "/{name}", at0 + "/gh", nil, 0}, {"GET", at0 + "/{name}", at0 + "/none", nil, 404},
		{"PUT", at0 + "/{name}", at0 + "/gh", full, 0}, {"PATCH", at0 + "/{name}", at0 + "/gh", map[string]any{"labels": map[string]any{"a": nil}, "expiresAt": nil}, 0},
		{"POST", at0 + "/{name}/rotate", at0 + "/gh/rotate", spec, 0}, {"DELETE", at0 + "/{name}", at0 + "/gh", nil, 0},
		{"GET", base + "/policies", "", nil, 0}, {"POST", base + "/policies/check", "", map[string]any{"files": []any{map[string]string{"name": "a.yaml", "content": "broken"}}}, 0},
		{"POST", base + "/policies/explain", "", map[string]any{"sandbox": "agent-7", "url": "https://x", "headers": map[string]string{"A": "b"}}, 0},
		{"POST", base + "/policies/explain", "", map[string]any{"sandbox": "agent-7", "url": "https://x", "exec": "ls", "subsystem": "sftp", "shell": true, "forwarding": true}, 0},
		{"POST", base + "/policies/reload", "", nil, 0}, {"GET", base + "/connections", "", nil, 0},
		{"DELETE", base + "/connections/{name}", base + "/connections/7", nil, 0}, {"GET", base + "/tokens", "", nil, 0},
		{"POST", base + "/tokens", "", map[string]any{"name": "ci", "role": "read", "expiresAt": "2127-01-01T00:00:00Z"}, 0}, {"POST", base + "/tokens", "", map[string]any{"name": "ci", "role": "read"}, 409},
		{"DELETE", base + "/tokens/{name}", base + "/tokens/ci", nil, 0}, {"GET", base + "/whoami", "", nil, 0},
		{"GET", base + "/resolver-kinds", "", nil, 0}, {"GET", base + "/resolver-kinds/{name}", base + "/resolver-kinds/static_headers", nil, 0},
		{"GET", base + "/ca", "", nil, 0}, {"GET", base + "/ca.pem", "", nil, 0}, {"GET", base + "/version", "", nil, 0}, {"GET", base + "/openapi.json", "", nil, 0},
	}
	seen := map[string]bool{}
	for _, st := range steps {
		t.Run(st.method+" "+st.pattern+" "+strconv.Itoa(st.fails), func(t *testing.T) {
			path := st.path
			if path == "" {
				path = st.pattern
			}
			op := dig(t, d.doc, "paths", st.pattern, strings.ToLower(st.method))
			if st.body != nil {
				media := mediaJSON
				if st.method == "PATCH" {
					media = mediaMerge
				}
				b, err := json.Marshal(st.body)
				var v any
				if err != nil || json.Unmarshal(b, &v) != nil {
					t.Fatal(err)
				}
				if err := d.check("body", dig(t, op, "requestBody", "content", media, "schema"), v); err != nil {
					t.Error(err)
				}
			}
			g := r.do(st.method, path, st.body)
			if ok := g.status < 300; ok != (st.fails == 0) || !ok && g.status != st.fails {
				t.Fatalf("status %d: %s", g.status, g.raw)
			}
			seen[st.method+st.pattern] = seen[st.method+st.pattern] || st.fails == 0
			media, _, _ := strings.Cut(g.header.Get("Content-Type"), ";")
			schema := dig(t, op, "responses", strconv.Itoa(g.status), "content", media, "schema")
			if media == mediaPEM {
				return
			}
			var v any
			if err := json.Unmarshal(g.raw, &v); err != nil {
				t.Fatal(err)
			}
			if err := d.check("answer", schema, v); err != nil {
				t.Errorf("%v in %s", err, g.raw)
			}
		})
	}
	for _, rt := range r.s.routes {
		if !seen[rt.method+rt.pattern] {
			t.Errorf("%s %s was not asked", rt.method, rt.pattern)
		}
	}
}

func TestTheSchemaCheckCanFail(t *testing.T) {
	r := newRig(t)
	d := openDoc(t, r)
	source := dig(t, d.doc, "components", "schemas", "Deletion")
	for name, v := range map[string]map[string]any{
		"missing": {"deleted": true}, "type": {"deleted": "yes", "message": "m"}, "undocumented": {"deleted": true, "message": "m", "spec": 1},
	} {
		if d.check(name, source, v) == nil {
			t.Errorf("%s passes", name)
		}
	}
	if err := d.check("good", source, map[string]any{"deleted": true, "message": "m"}); err != nil {
		t.Error(err)
	}
}
