package source_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/egressd/egressd/source"
	"github.com/egressd/egressd/source/static"
)

func TestRegistry(t *testing.T) {
	r := registry(t)
	var names []string
	for _, k := range r.Kinds() {
		names = append(names, k.Name)
	}
	if got := strings.Join(names, " "); got != "aws_access_key static_headers static_ssh_private_key static_tls_client_certificate static_username_password" {
		t.Error(got)
	}
	if _, ok := r.Kind("static_header"); ok {
		t.Error("found what is not there")
	}
	if _, ok := (&source.Registry{}).Kind("static_headers"); ok {
		t.Error("the zero registry knows a kind")
	}
	kinds := static.Kinds()
	if _, err := source.NewRegistry(kinds[0], kinds[0]); err == nil {
		t.Error("the same kind twice")
	}
	if _, err := source.NewRegistry(source.Kind{Name: "x"}); err == nil {
		t.Error("a kind without a block")
	}
}

func TestSpecEnvelope(t *testing.T) {
	kind, _ := registry(t).Kind(static.Headers)
	for _, tc := range []struct{ name, spec, path, message string }{
		{"missing", "", "", "is required"},
		{"null", "null", "", "must be an object"},
		{"empty object", "{}", "staticHeaders", "is required"},
		{"block null", `{"staticHeaders":null}`, "staticHeaders", "must be an object"},
		{"other kind's block", `{"staticUsernamePassword":{"username":"u","password":"p"}}`, "staticUsernamePassword", "has the one block staticHeaders"},
		{"a second block", `{"staticHeaders":{"values":{"a":"b"}},"staticSSHPrivateKey":{}}`, "staticSSHPrivateKey", "does not belong here"},
		{"unknown field", `{"staticHeaders":{"values":{"a":"b"},"extra":1}}`, "staticHeaders.extra", "unknown field"},
		{"other case", `{"staticHeaders":{"Values":{"a":"b"}}}`, "staticHeaders.Values", "it is spelt values"},
		{"twice", `{"staticHeaders":{"values":{"a":"b"}},"staticHeaders":{"values":{"a":"c"}}}`, "staticHeaders", "is given twice"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			err := kind.Check([]byte(tc.spec))
			var fields source.FieldErrors
			if !errors.As(err, &fields) || !strings.Contains(strings.Join(fields[tc.path], "|"), tc.message) {
				t.Errorf("%v, want %q: %q", err, tc.path, tc.message)
			}
		})
	}
	huge := `{"staticHeaders":{"values":{"a":"` + strings.Repeat("x", source.MaxSpec) + `"}}}`
	if err := kind.Check([]byte(huge)); !errors.Is(err, source.ErrTooLarge) {
		t.Errorf("over 1 MiB: %v", err)
	}
}

func TestCanonicalSpec(t *testing.T) {
	kind, _ := registry(t).Kind(static.Headers)
	a, err := kind.Canonical([]byte(`{"staticHeaders":{"values":{"b":"2","a":"<\u00311>"}}}`))
	if err != nil {
		t.Fatal(err)
	}
	b, err := kind.Canonical([]byte("{ \"staticHeaders\" : {\"values\":\n{\"a\":\"\\u003c11>\",\"b\":\"2\"}}}"))
	if err != nil || string(a) != string(b) {
		t.Errorf("%s\n%s\n%v", a, b, err)
	}
	if again, err := kind.Canonical(a); err != nil || string(again) != string(a) {
		t.Errorf("not a fixed point: %s, %v", again, err)
	}
	fields, err := kind.Fields(a)
	if err != nil || len(fields) != 2 || fields[0].Path != "staticHeaders.values.a" || !fields[0].Set || fields[0].Origin != "local" {
		t.Errorf("%v, %v", fields, err)
	}
	in, err := kind.Inspect(a, time.Now())
	if err != nil || strings.Join(in.Keys, " ") != "a b" || in.Health != "ok" {
		t.Errorf("%v %v %v", in.Keys, in.Health, err)
	}
}

func TestSchemaIsJSON(t *testing.T) {
	for _, k := range registry(t).Kinds() {
		out, err := json.Marshal(k.Schema())
		if err != nil || !strings.Contains(string(out), k.Block) || !strings.Contains(string(out), `"writeOnly":true`) {
			t.Errorf("%s: %s, %v", k.Name, out, err)
		}
		var schema struct {
			Properties map[string]struct {
				Properties map[string]any
				Required   []string
			}
		}
		if err := json.Unmarshal(out, &schema); err != nil || len(schema.Properties[k.Block].Properties) != len(k.Inputs) || len(schema.Properties[k.Block].Required) == 0 {
			t.Errorf("%s: %+v, %v", k.Name, schema, err)
		}
	}
}

// Nothing that holds a secret shows it, in whatever way it is printed, also from
// within another value.
func TestAttack_G08_material_is_never_printed(t *testing.T) {
	const canary = "CANARY-7f3a"
	kind, _ := registry(t).Kind(static.Headers)
	spec := []byte(token(canary))
	m, err := kind.Parse(spec)
	if err != nil {
		t.Fatal(err)
	}
	in, err := kind.Inspect(spec, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	type holder struct {
		Public any
		hidden any
	}
	var out strings.Builder
	log := slog.New(slog.NewJSONHandler(&out, nil))
	for _, v := range []any{m, in, &in, m.Values, []any{m, in}, map[string]any{"k": in}, holder{m, m}, &holder{in, &in}} {
		verbs := []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%d"}
		switch v.(type) {
		case holder, *holder:
			verbs = verbs[:3] // fmt follows a hidden pointer for a verb that does not suit it
		}
		for _, verb := range verbs {
			fmt.Fprintf(&out, verb+"\n", v)
		}
		log.Info("x", "v", v)
		if raw, err := json.Marshal(v); err == nil {
			out.Write(raw)
		}
	}
	hex := fmt.Sprintf("%x", canary)
	if got := out.String(); strings.Contains(got, canary) || strings.Contains(got, hex) {
		t.Errorf("shown in:\n%s", got)
	}
}
