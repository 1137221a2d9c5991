package source_test

import (
	"encoding/json"
	"errors"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/egressd/egressd/source"
)

type doc struct {
	Name   string            `json:"name"`
	Note   *string           `json:"note,omitempty"`
	N      int8              `json:"n"`
	U      uint16            `json:"u"`
	F      float64           `json:"f"`
	B      bool              `json:"b"`
	List   []string          `json:"list"`
	Labels map[string]string `json:"labels"`
	Inner  *doc              `json:"inner"`
	At     *time.Time        `json:"at"`
	Any    any               `json:"any"`
	Raw    json.RawMessage   `json:"raw"`
	Hidden string            `json:"-"`
	embedded
}

type embedded struct {
	Extra string `json:"extra"`
}

func TestDecodeStrict(t *testing.T) {
	deep := strings.Repeat(`{"inner":`, 17) + `{}` + strings.Repeat(`}`, 17)
	for _, tc := range []struct{ name, in, path, message string }{
		{"empty", " ", "", "is empty"},
		{"not JSON", `{"name":}`, "", "error at byte 9"},
		{"trailing data", `{} {}`, "", "is not one JSON document"},
		{"trailing garbage", `{}x`, "", "is not one JSON document"},
		{"not UTF-8", "{\"name\":\"\xff\"}", "", "is not UTF-8"},
		{"lone high surrogate", `{"name":"\ud800"}`, "", "surrogate"},
		{"lone low surrogate", `{"name":"\udc00x"}`, "", "surrogate"},
		{"two high surrogates", `{"name":"\ud800\ud800"}`, "", "surrogate"},
		{"wrong root", `[]`, "", "must be an object"},
		{"null root", `null`, "", "must be an object, not null"},
		{"unknown", `{"nome":1}`, "nome", "unknown field: known here are any, at, b, extra"},
		{"G12 other case", `{"Name":"x"}`, "Name", "it is spelt name"},
		{"G12 twice", `{"name":"x","name":"y"}`, "name", "is given twice"},
		{"G12 twice, escaped", `{"name":"x","n\u0061me":"y"}`, "name", "is given twice"},
		{"twice below", `{"inner":{"inner":{"b":true,"b":true}}}`, "inner.inner.b", "is given twice"},
		{"twice in raw", `{"raw":[{"a":1,"a":2}]}`, "raw.0.a", "is given twice"},
		{"twice in any", `{"any":{"a":1,"a":2}}`, "any.a", "is given twice"},
		{"twice in map", `{"labels":{"a":"1","a":"2"}}`, "labels.a", "is given twice"},
		{"excluded", `{"Hidden":"x"}`, "Hidden", "unknown field"},
		{"null string", `{"name":null}`, "name", "must be a string, not null"},
		{"null in map", `{"labels":{"a":null}}`, "labels.a", "must be a string, not null"},
		{"null list", `{"list":null}`, "list", "must be an array, not null"},
		{"number for string", `{"name":12}`, "name", "must be a string"},
		{"object for string", `{"name":{"x":1}}`, "name", "must be a string"},
		{"string for list", `{"list":"x"}`, "list", "must be an array"},
		{"list for map", `{"labels":["x"]}`, "labels", "must be an object"},
		{"element", `{"list":["x",1]}`, "list.1", "must be a string"},
		{"overflow", `{"n":128}`, "n", "must be a whole number"},
		{"negative", `{"u":-1}`, "u", "must be a whole number"},
		{"fraction", `{"n":1.5}`, "n", "must be a whole number"},
		{"G12 1e400", `{"f":1e400}`, "f", "must be a number"},
		{"bool", `{"b":"yes"}`, "b", "must be true or false"},
		{"time", `{"at":"yesterday"}`, "at", "must be a time as in"},
		{"time object", `{"at":{}}`, "at", "must be a time as in"},
		{"G12 depth", deep, strings.TrimSuffix(strings.Repeat("inner.", 16), "."), "is nested too deeply"},
		{"long name", `{"` + strings.Repeat("s", 33) + `":1}`, "#1", "unknown field"},
		{"odd name", `{"n":1,"a b":1}`, "#2", "unknown field"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var d doc
			err := source.DecodeStrict([]byte(tc.in), &d)
			var fields source.FieldErrors
			if !errors.As(err, &fields) {
				t.Fatalf("err = %v", err)
			}
			if got := strings.Join(fields[tc.path], "|"); !strings.Contains(got, tc.message) {
				t.Errorf("%v, want %q: %q", fields, tc.path, tc.message)
			}
		})
	}
}

func TestDecodeStrictTakes(t *testing.T) {
	in := `{"name":"é\ud83d\ude00\\ud800","note":null,"n":-128,"u":65535,"f":1e3,"b":true,"list":["a"],"labels":{"Any Key":"v"},
		"inner":{"note":"x"},"at":"2026-11-21T03:00:00Z","any":{"x":[1,null]},"raw":{"y":null},"extra":"e"}`
	var d, want doc
	if err := source.DecodeStrict([]byte(in), &d); err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal([]byte(in), &want); err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(d, want) {
		t.Errorf("got %+v, want %+v", d, want)
	}
}

func TestFieldErrors(t *testing.T) {
	e := source.FieldErrors{}
	if e.Err() != nil {
		t.Error("empty is an error")
	}
	e.Add("", "is odd")
	e.Add("b", "two")
	e.Add("b", "two")
	e.Add("a", "one")
	want := source.FieldErrors{"spec": {"is odd"}, "spec.a": {"one"}, "spec.b": {"two"}}
	if diff := cmp.Diff(want, e.Under("spec")); diff != "" {
		t.Error(diff)
	}
	if got := e.Under("spec").Error(); got != "spec: is odd; spec.a: one; spec.b: two" {
		t.Error(got)
	}
}

// What DecodeStrict takes, encoding/json takes with the same meaning; and nothing
// that it says repeats a string of the document.
func FuzzDecodeStrict(f *testing.F) {
	for _, s := range []string{`{}`, `{"name":"x","inner":{"list":["a"]},"raw":[1,{"a":2}]}`, `{"name":"\ud83d\ude00"}`,
		`{"name":"x","NAME":"y"}`, `{"at":"2026-11-21T03:00:00Z","n":-0}`, `{"labels":{"":""}}`, `[[[[`, `{"u":1E2}`} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		var d, want doc
		if err := source.DecodeStrict(in, &d); err != nil {
			if err.Error() == "" {
				t.Error("an error that says nothing")
			}
			return
		}
		if err := json.Unmarshal(in, &want); err != nil || !reflect.DeepEqual(d, want) {
			t.Errorf("%q: %+v, encoding/json has %+v, %v", in, d, want, err)
		}
		if out, err := json.Marshal(d); err != nil || source.DecodeStrict(out, &d) != nil && !d.holdsNull() {
			t.Errorf("%q does not survive a round: %s %v", in, out, err)
		}
	})
}

// holdsNull: encoding/json writes null for nil slices and maps, which DecodeStrict refuses.
func (d doc) holdsNull() bool {
	return d.List == nil || d.Labels == nil || d.Inner != nil && d.Inner.holdsNull()
}
