package inject

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestTemplates(t *testing.T) {
	fields := map[string]string{"token": "s3cret", "user": "Zed", "b64": "aGkgdGhlcmU=", "url64": "_-8", "empty": "", "pad": " x "}
	for text, want := range map[string]string{
		"Bearer {{ .token }}":                     "Bearer s3cret",
		"fixed":                                   "fixed",
		"{{ .user | lower }}:{{upper .user}}":     "zed:ZED",
		"{{ b64enc .token }}":                     "czNjcmV0",
		"{{ b64dec .b64 }}":                       "hi there",
		"{{ b64dec .url64 | b64enc }}":            "/+8=",
		"{{ trim .pad }}":                         "x",
		`{{ json .user }}`:                        `"Zed"`,
		`{{ urlquery "a b&c" }}`:                  "a+b%26c",
		`{{ printf "%s/%s" .user .token }}`:       "Zed/s3cret",
		`{{ if .empty }}a{{ else }}b{{ end }}`:    "b",
		`{{ $x := .token }}{{ $x }}{{ $.user }}`:  "s3cretZed",
		`{{ if eq .user "Zed" }}yes{{ end }}`:     "yes",
		`{{ len .user }}`:                         "3",
		`{{/* note */}}{{ print .user .token }}`:  "Zeds3cret",
		`{{ .token -}}    {{- .user }}`:           "s3cretZed",
		`{{ and .user .token }}{{ or .empty 1 }}`: "s3cret1",
	} {
		v, err := parseTemplate(text)
		if err != nil {
			t.Errorf("%s: %v", text, err)
			continue
		}
		if got, err := v.execute(fields); got != want || err != nil {
			t.Errorf("%s = %q, %v, want %q", text, got, err, want)
		}
	}
	v, err := parseTemplate("{{ .b }}{{ if .a }}{{ $x := .c }}{{ $x | printf .b }}{{ $.d }}{{ end }}")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"a", "b", "c", "d"}, v.vars); diff != "" {
		t.Error(diff)
	}
}

func TestTemplatesRefused(t *testing.T) {
	for text, want := range map[string]string{
		"{{ .token":                             "does not parse",
		"{{ CANARY }}":                          "does not parse",
		"{{ . }}":                               "no bare dot",
		"{{ $ }}":                               "flat",
		"{{ .a.b }}":                            "flat",
		"{{ $.a.b }}":                           "flat",
		"{{ (.a).b }}":                          "no bare dot",
		"{{ $x := .a }}{{ $x.b }}":              "flat",
		"{{ range .a }}x{{ end }}":              "no loop",
		"{{ with .a }}x{{ end }}":               "no loop",
		`{{ define "x" }}{{ end }}a`:            "define and block",
		`{{ block "x" .a }}{{ end }}`:           "define and block",
		`a{{ template "value" }}`:               "no other template",
		`{{ call .a }}`:                         "function call is not allowed",
		`{{ index .a 1 }}`:                      "function index is not allowed",
		`{{ slice .a 1 }}`:                      "function slice is not allowed",
		`{{ html .a }}`:                         "function html is not allowed",
		`{{ if .a }}{{ js .a }}{{ end }}`:       "function js is not allowed",
		`{{ if .a }}{{ else }}{{ . }}{{ end }}`: "no bare dot",
		"":                                      "empty",
		strings.Repeat("x", maxTemplate+1):      "over 4096 bytes",
		"CANARY {{ range .CANARY }}{{ end }}":   "no loop",
	} {
		v, err := parseTemplate(text)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%.60s: %v, %v, want %q", text, v, err, want)
		} else if strings.Contains(err.Error(), "CANARY") {
			t.Errorf("the template is quoted: %v", err)
		}
	}
}

// A template ends, soon and small, whatever it says; and its error shows no value.
func TestTemplatesAreBounded(t *testing.T) {
	fields := map[string]string{"a": "CANARY", "big": strings.Repeat("x", 10<<10)}
	for text, want := range map[string]string{
		`{{ printf "%99999999s" .a }}`:   "function of the template failed",
		`{{ printf "%*s" 99999999 .a }}`: "function of the template failed",
		`{{ printf "%.99999d" 1 }}`:      "function of the template failed",
		`{{ printf "%[1]*d" 99999 }}`:    "function of the template failed",
		`{{ print .big .big }}`:          "function of the template failed",
		`{{ $x := printf "%999s" .a }}{{ $x = printf "%s%s%s%s%s%s%s%s%s%s" $x $x $x $x $x $x $x $x $x $x }}{{ $x = print $x $x $x $x $x $x $x }}`: "function of the template failed",
		`{{ .big }}{{ .big }}`:              "over 16 KiB",
		`{{ b64enc .big | b64enc }}`:        "over 16 KiB",
		`{{ b64dec .a | b64dec | b64dec }}`: "function of the template failed",
		`{{ eq .a 1 }}`:                     "execution failed",
		`{{ .missing }}`:                    "the source has no key missing",
		`{{ lower 1 }}`:                     "execution failed",
	} {
		v, err := parseTemplate(text)
		if err != nil {
			t.Errorf("%s: %v", text, err)
			continue
		}
		begun := time.Now()
		out, err := v.execute(fields)
		if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "CANARY") {
			t.Errorf("%s = %.40q, %v, want %q", text, out, err, want)
		}
		if took := time.Since(begun); took > time.Second {
			t.Errorf("%s took %v", text, took)
		}
	}
}

func TestCheckValue(t *testing.T) {
	for _, ok := range []string{"x", "a b", "~!@#$%^&*()_+{}|:<>?`-=[]\\;',./\"", strings.Repeat("x", maxValue)} {
		if err := checkValue(ok); err != nil {
			t.Errorf("%.40q: %v", ok, err)
		}
	}
	for _, bad := range []string{"", " x", "x ", "x\r\ny", "x\ny", "x\ry", "x\x00", "x\ty", "x\x7f", "é", "\xff", strings.Repeat("x", maxValue+1)} {
		if checkValue(bad) == nil {
			t.Errorf("%.40q is taken", bad)
		}
	}
}

// Whatever parses ends in time with a bounded value, or an error without any value.
func FuzzTemplate(f *testing.F) {
	for _, s := range []string{"Bearer {{ .token }}", `{{ printf "%9999s" .token | b64enc | json }}`, "{{ if .a }}{{ .b }}{{ else if .c }}{{ end }}",
		`{{ $x := .token }}{{ $x = upper $x }}{{ $x }}`, `{{ printf (printf "%s%%9s" "a") .token }}`, "{{ range . }}{{ end }}"} {
		f.Add(s)
	}
	const canary = "CANARY7f3a"
	fields := map[string]string{"token": canary, "a": canary, "b": canary, "c": canary}
	f.Fuzz(func(t *testing.T, text string) {
		v, err := parseTemplate(text)
		if err != nil {
			return
		}
		begun := time.Now()
		out, err := v.execute(fields)
		if took := time.Since(begun); took > 2*time.Second {
			t.Errorf("%q took %v", text, took)
		}
		if len(out) > maxValue {
			t.Errorf("%q gave %d bytes", text, len(out))
		}
		if err != nil && (out != "" || strings.Contains(err.Error(), canary) && !strings.Contains(text, canary)) {
			t.Errorf("%q: %q, %v", text, out, err)
		}
		for _, name := range v.vars {
			if _, ok := fields[name]; !ok && err == nil {
				t.Errorf("%q rendered without %s", text, name)
			}
		}
	})
}
