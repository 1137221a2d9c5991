package api

import (
	"encoding/json"
	"reflect"
	"strings"
	"time"
)

// member is one JSON member of a struct, embedded structs flattened.
type member struct {
	name     string
	typ      reflect.Type
	required bool // no omitempty
}

func membersOf(t reflect.Type) []member {
	var out []member
	for f := range t.Fields() {
		name, options, _ := strings.Cut(f.Tag.Get("json"), ",")
		switch {
		case f.Anonymous && name == "":
			out = append(out, membersOf(f.Type)...)
		case name != "" && name != "-":
			out = append(out, member{name: name, typ: f.Type, required: !strings.Contains(options, "omitempty")})
		}
	}
	return out
}

// schemas collects JSON Schemas (2020-12) of Go types by their names.
type schemas map[string]any

type object = map[string]any

// of is the schema of t, by reference where t is a named struct.
func (s schemas) of(t reflect.Type) object {
	switch t {
	case reflect.TypeFor[time.Time]():
		return object{"type": "string", "format": "date-time"}
	case reflect.TypeFor[json.RawMessage]():
		return object{} // any JSON value
	}
	switch t.Kind() {
	case reflect.Pointer:
		return object{"anyOf": []any{s.of(t.Elem()), object{"type": "null"}}}
	case reflect.Struct:
		s.add(t)
		return object{"$ref": "#/components/schemas/" + t.Name()}
	case reflect.Slice:
		return object{"type": "array", "items": s.of(t.Elem())}
	case reflect.Map:
		return object{"type": "object", "additionalProperties": s.of(t.Elem())}
	case reflect.String:
		return object{"type": "string"}
	case reflect.Bool:
		return object{"type": "boolean"}
	case reflect.Int, reflect.Int64, reflect.Uint64:
		return object{"type": "integer"}
	}
	return object{} // an interface: any JSON value
}

func (s schemas) add(t reflect.Type) {
	if _, ok := s[t.Name()]; ok {
		return
	}
	properties, required := object{}, []string{}
	out := object{"type": "object", "additionalProperties": false, "properties": properties}
	s[t.Name()] = out // before the members: a type may hold itself
	for _, m := range membersOf(t) {
		properties[m.name] = s.of(m.typ)
		if m.required {
			required = append(required, m.name)
		}
	}
	if len(required) > 0 {
		out["required"] = required
	}
}
