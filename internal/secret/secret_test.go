package secret

import (
	"bytes"
	"encoding/gob"
	"encoding/json"
	"encoding/xml"
	"errors"
	"fmt"
	"log"
	"log/slog"
	"strings"
	"testing"
	"text/template"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"gopkg.in/yaml.v3"
)

const canary = "canary-7f3a+/\"<&="

// holder has secrets where values are found: exported, hidden, behind a pointer, in
// collections and under an interface.
type holder struct {
	Open   String
	hidden String
	Ptr    *String
	List   []String
	Map    map[string]String
	Any    any
	inner  struct{ deep String }
}

type pair struct{ A, B String }

func full() holder {
	s := New(canary)
	h := holder{Open: s, hidden: s, Ptr: &s, List: []String{s}, Map: map[string]String{"k": s}, Any: s}
	h.inner.deep = s
	return h
}

// clean fails if the canary stands in out, whole or in a piece that escaping leaves.
func clean(t *testing.T, what, out string) {
	t.Helper()
	if strings.Contains(out, "canary") || strings.Contains(out, "7f3a") || strings.Contains(out, fmt.Sprintf("%x", "canary")) {
		t.Errorf("%s shows the secret: %s", what, out)
	}
}

func TestAttack_G08_fmt(t *testing.T) {
	s := New(canary)
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d", "%T", "%p", "%10.3s", "%-20v", "% x", "%c", "%U", "%t", "%e", "%b", "%o", "%!"} {
		for name, v := range map[string]any{"value": s, "pointer": &s, "struct": full(), "struct pointer": new(full()), "slice": []String{s}, "map": map[string]String{"a": s}, "any": []any{s}} {
			out := fmt.Sprintf(verb, v)
			clean(t, verb+" of "+name, out)
			if name == "value" && (verb == "%v" || verb == "%s" || verb == "%q" || verb == "%x") && out != redacted {
				t.Errorf("%s = %q", verb, out)
			}
		}
	}
	clean(t, "Sprint", fmt.Sprint(s, &s, full()))
	clean(t, "error", fmt.Errorf("failed with %v: %w", s, errors.New("x")).Error())
	var buf bytes.Buffer
	log.New(&buf, "", 0).Println(s, full())
	clean(t, "log", buf.String())
}

func TestAttack_G08_panic(t *testing.T) {
	defer func() {
		clean(t, "recovered panic", fmt.Sprintf("%v %+v %#v", recover(), New(canary), full()))
	}()
	panic(New(canary))
}

func TestAttack_G08_marshalling(t *testing.T) {
	h := full()
	for name, marshal := range map[string]func(any) ([]byte, error){
		"json": json.Marshal,
		"yaml": yaml.Marshal,
		"xml":  func(v any) ([]byte, error) { return xml.Marshal(v) },
		"gob": func(v any) ([]byte, error) {
			var b bytes.Buffer
			err := gob.NewEncoder(&b).Encode(v)
			return b.Bytes(), err
		},
		"template": func(v any) ([]byte, error) {
			var b bytes.Buffer
			err := template.Must(template.New("").Parse("{{.}} {{printf \"%s\" .}}")).Execute(&b, v)
			return b.Bytes(), err
		},
	} {
		for what, v := range map[string]any{"value": h.Open, "pointer": h.Ptr, "struct": pair{h.Open, h.Open}, "holder": h} {
			out, err := marshal(v)
			if err != nil && what != "holder" { // not every encoder takes maps and interfaces
				t.Errorf("%s of %s: %v", name, what, err)
			}
			clean(t, name+" of "+what, string(out))
			if what != "holder" && !bytes.Contains(out, []byte(redacted)) && !bytes.Contains(out, []byte("redacted")) {
				t.Errorf("%s of %s says nothing: %s", name, what, out)
			}
		}
	}
}

func TestAttack_G08_loggers(t *testing.T) {
	h := full()
	var buf bytes.Buffer
	for _, handler := range []slog.Handler{slog.NewJSONHandler(&buf, nil), slog.NewTextHandler(&buf, nil)} {
		slog.New(handler).Info("x", "s", h.Open, "p", h.Ptr, "h", h, "hp", &h, "l", h.List, "m", h.Map)
	}
	for _, enc := range []zapcore.Encoder{zapcore.NewJSONEncoder(zap.NewProductionEncoderConfig()), zapcore.NewConsoleEncoder(zap.NewDevelopmentEncoderConfig())} {
		l := zap.New(zapcore.NewCore(enc, zapcore.AddSync(&buf), zap.DebugLevel))
		l.Info("x", zap.Any("s", h.Open), zap.Any("p", h.Ptr), zap.Any("h", h), zap.Any("l", h.List), zap.Any("m", h.Map),
			zap.Stringer("str", h.Open), zap.Reflect("r", h.Open), zap.Error(fmt.Errorf("with %v", h.Open)), zap.Inline(zapcore.ObjectMarshalerFunc(func(e zapcore.ObjectEncoder) error {
				return e.AddReflected("o", h.Open)
			})))
		l.Sugar().Infow("x", "s", h.Open, "h", h)
		l.Sugar().Infof("%v %+v %s", h.Open, h, h.Ptr)
	}
	clean(t, "a logger", buf.String())
	if n := strings.Count(buf.String(), redacted); n < 20 {
		t.Errorf("only %d values were logged as redacted:\n%s", n, buf.String())
	}
}

func TestString(t *testing.T) {
	s := New(canary)
	if s.Reveal() != canary || s.Len() != len(canary) {
		t.Errorf("Reveal and Len do not give the value back")
	}
	if !s.Equal(New(canary)) || s.Equal(New("other")) || s.Equal(String{}) || !(String{}).Equal(New("")) {
		t.Error("Equal")
	}
	if (String{}).Reveal() != "" || (String{}).Len() != 0 || (String{}).String() != redacted {
		t.Error("the zero value is not an empty secret")
	}
}

func TestStringCannotBeReadIn(t *testing.T) {
	var h struct{ S String }
	// Decoding would be the other half of a round trip that must not exist.
	if err := json.Unmarshal([]byte(`{"S":"x"}`), &h); err == nil || h.S.Len() != 0 {
		t.Errorf("json: %v, %d bytes", err, h.S.Len())
	}
}
