package source

import (
	"bytes"
	"encoding"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

// maxDepth of a JSON document: specs and API bodies are shallow.
const maxDepth = 16

// DecodeStrict decodes the one JSON document in data into the pointer into. Beyond
// encoding/json it refuses: members that the Go type does not have in exactly that
// letter case, the same member twice (also under json.RawMessage and any), null where
// the Go type is neither a pointer, any nor json.RawMessage, nesting deeper than 16,
// trailing data, bytes that are not UTF-8 and halves of surrogate pairs, both of which
// encoding/json would replace in silence. The error is a FieldErrors; it holds nothing
// of any value. The caller bounds data's size. On an error into is unspecified.
func DecodeStrict(data []byte, into any) error {
	errs := FieldErrors{}
	if err := wellFormed(data); err != nil {
		errs.Add("", err.Error())
		return errs
	}
	w := walker{dec: json.NewDecoder(bytes.NewReader(data)), errs: errs}
	w.dec.UseNumber()
	w.value("", reflect.TypeOf(into).Elem(), 0)
	if len(errs) > 0 {
		return errs
	}
	if err := json.Unmarshal(data, into); err != nil {
		// The walk found no fault, so this is a type with its own rules; its text may
		// quote the value and is not passed on.
		errs.Add("", "a value is not of the wanted form")
		return errs
	}
	return nil
}

func wellFormed(data []byte) error {
	if len(bytes.TrimSpace(data)) == 0 {
		return errors.New("is empty")
	}
	if !utf8.Valid(data) {
		return errors.New("is not UTF-8")
	}
	var raw json.RawMessage
	if err := json.Unmarshal(data, &raw); err != nil {
		var syntax *json.SyntaxError
		if errors.As(err, &syntax) {
			return fmt.Errorf("is not one JSON document: error at byte %d", syntax.Offset)
		}
		return errors.New("is not one JSON document")
	}
	if loneSurrogate(data) {
		return errors.New(`a \u escape is half of a surrogate pair`)
	}
	return nil
}

// loneSurrogate looks for \uD800–\uDFFF outside a pair in valid JSON.
func loneSurrogate(data []byte) bool {
	for i := 0; i < len(data); i++ {
		if data[i] != '\\' {
			continue
		}
		i++ // the escaped byte; valid JSON has one
		unit, ok := escapedUnit(data[i:])
		if !ok {
			continue
		}
		i += 4
		switch {
		case unit >= 0xDC00 && unit <= 0xDFFF:
			return true
		case unit >= 0xD800 && unit <= 0xDBFF:
			if i+2 >= len(data) || data[i+1] != '\\' {
				return true
			}
			low, ok := escapedUnit(data[i+2:])
			if !ok || low < 0xDC00 || low > 0xDFFF {
				return true
			}
			i += 6
		}
	}
	return false
}

// escapedUnit reads "uXXXX".
func escapedUnit(b []byte) (uint64, bool) {
	if len(b) < 5 || b[0] != 'u' {
		return 0, false
	}
	unit, err := strconv.ParseUint(string(b[1:5]), 16, 16)
	return unit, err == nil
}

// walker goes once over a well-formed document beside the Go type it is meant for.
type walker struct {
	dec  *json.Decoder
	errs FieldErrors
	deep bool // maxDepth was passed; the rest is not looked at
}

var (
	rawType  = reflect.TypeFor[json.RawMessage]()
	timeType = reflect.TypeFor[time.Time]()
)

// free types take any JSON: the walk then only looks for duplicates and depth.
func free(t reflect.Type) bool {
	return t == nil || t == rawType || t.Kind() == reflect.Interface
}

func custom(t reflect.Type) bool {
	p := reflect.PointerTo(t)
	return p.Implements(reflect.TypeFor[json.Unmarshaler]()) || p.Implements(reflect.TypeFor[encoding.TextUnmarshaler]())
}

func (w *walker) value(path string, t reflect.Type, depth int) {
	if w.deep {
		return
	}
	token, err := w.dec.Token()
	if err != nil {
		w.errs.Add(path, "cannot be read")
		w.deep = true
		return
	}
	nullable := free(t)
	for t != nil && t.Kind() == reflect.Pointer {
		t, nullable = t.Elem(), true
	}
	if !free(t) && custom(t) {
		w.own(path, token, t, nullable, depth)
		return
	}
	switch token := token.(type) {
	case json.Delim:
		if depth++; depth > maxDepth {
			w.errs.Add(path, "is nested too deeply")
			w.deep = true
			return
		}
		if token == '{' {
			w.object(path, t, depth)
		} else {
			w.array(path, t, depth)
		}
	case nil:
		if !nullable {
			w.errs.Add(path, "must be "+wanted(t)+", not null")
		}
	default:
		if !fits(token, t) {
			w.errs.Add(path, "must be "+wanted(t))
		}
	}
}

// own checks a value of a type that decodes itself, such as time.Time.
func (w *walker) own(path string, token json.Token, t reflect.Type, nullable bool, depth int) {
	if delim, ok := token.(json.Delim); ok {
		w.errs.Add(path, "must be "+wanted(t))
		if delim == '{' {
			w.object(path, nil, depth+1)
		} else {
			w.array(path, nil, depth+1)
		}
		return
	}
	if token == nil {
		if !nullable {
			w.errs.Add(path, "must be "+wanted(t)+", not null")
		}
		return
	}
	raw, err := json.Marshal(token)
	if err != nil || json.Unmarshal(raw, reflect.New(t).Interface()) != nil {
		w.errs.Add(path, "must be "+wanted(t))
	}
}

func (w *walker) object(path string, t reflect.Type, depth int) {
	var fields map[string]reflect.Type
	var element reflect.Type
	switch {
	case free(t):
	case t.Kind() == reflect.Struct:
		fields = members(t)
	case t.Kind() == reflect.Map && t.Key().Kind() == reflect.String:
		element = t.Elem()
	default:
		w.errs.Add(path, "must be "+wanted(t))
	}
	seen := map[string]bool{}
	for n := 1; w.dec.More() && !w.deep; n++ {
		token, err := w.dec.Token()
		key, ok := token.(string)
		if err != nil || !ok {
			w.errs.Add(path, "cannot be read")
			w.deep = true
			return
		}
		at := join(path, pathOf(key, n))
		if seen[key] {
			w.errs.Add(at, "is given twice")
		}
		seen[key] = true
		inner := element
		if fields != nil {
			inner, ok = fields[key]
			if !ok {
				w.errs.Add(at, unknownField(key, fields))
			}
		}
		w.value(at, inner, depth)
	}
	w.close()
}

func (w *walker) array(path string, t reflect.Type, depth int) {
	var element reflect.Type
	switch {
	case free(t):
	case t.Kind() == reflect.Slice && t.Elem().Kind() != reflect.Uint8:
		element = t.Elem()
	default:
		w.errs.Add(path, "must be "+wanted(t))
	}
	for n := 0; w.dec.More() && !w.deep; n++ {
		w.value(join(path, strconv.Itoa(n)), element, depth)
	}
	w.close()
}

func (w *walker) close() {
	if !w.deep {
		_, _ = w.dec.Token() // the closing delimiter; the document is well formed
	}
}

// members are the JSON names of a struct, embedded structs flattened.
func members(t reflect.Type) map[string]reflect.Type {
	out := map[string]reflect.Type{}
	for f := range t.Fields() {
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		switch {
		case name == "-":
		case name == "" && f.Anonymous && f.Type.Kind() == reflect.Struct:
			for k, v := range members(f.Type) {
				out[k] = v
			}
		case !f.IsExported():
		case name == "":
			out[f.Name] = f.Type
		default:
			out[name] = f.Type
		}
	}
	return out
}

func unknownField(key string, fields map[string]reflect.Type) string {
	names := make([]string, 0, len(fields))
	for name := range fields {
		if strings.EqualFold(name, key) {
			return "unknown field: it is spelt " + name
		}
		names = append(names, name)
	}
	slices.Sort(names)
	return "unknown field: known here are " + strings.Join(names, ", ")
}

func fits(token json.Token, t reflect.Type) bool {
	if free(t) {
		return true
	}
	switch token := token.(type) {
	case string:
		// []byte is base64 in encoding/json; nothing of ours uses it.
		return t.Kind() == reflect.String
	case bool:
		return t.Kind() == reflect.Bool
	case json.Number:
		text := token.String()
		var err error
		switch {
		case reflect.Zero(t).CanInt():
			_, err = strconv.ParseInt(text, 10, t.Bits())
		case reflect.Zero(t).CanUint():
			_, err = strconv.ParseUint(text, 10, t.Bits())
		case reflect.Zero(t).CanFloat():
			_, err = strconv.ParseFloat(text, t.Bits())
		default:
			return false
		}
		return err == nil
	default:
		return false
	}
}

func wanted(t reflect.Type) string {
	switch {
	case free(t):
		return "a value"
	case t == timeType:
		return "a time as in 2006-01-02T15:04:05Z"
	case custom(t):
		return "a value of the wanted form"
	}
	switch t.Kind() {
	case reflect.String:
		return "a string"
	case reflect.Bool:
		return "true or false"
	case reflect.Slice:
		return "an array"
	case reflect.Struct, reflect.Map:
		return "an object"
	case reflect.Float32, reflect.Float64:
		return "a number"
	default:
		return "a whole number"
	}
}

// pathOf is how member n (from 1) is named in a path: by its name when that is short
// and plain, else by its place, so that a secret put where a name belongs is not
// repeated.
func pathOf(key string, n int) string {
	if key == "" || len(key) > 32 {
		return "#" + strconv.Itoa(n)
	}
	for _, c := range []byte(key) {
		plain := c == '_' || c == '-' || c == '$' || '0' <= c && c <= '9' || 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z'
		if !plain {
			return "#" + strconv.Itoa(n)
		}
	}
	return key
}
