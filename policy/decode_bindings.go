package policy

import (
	"encoding/base64"
	"fmt"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"text/template"
	"time"

	"golang.org/x/net/http/httpguts"
)

const (
	maxTemplate = 4096           // bytes of one valueTemplate
	maxCacheTTL = 24 * time.Hour // of cachePolicy.ttl
)

func (d *decoder) binding(v value) *bindingDecl {
	at := d.at(v)
	b := &bindingDecl{at: at, Binding: Binding{File: at.file, Line: at.line}}
	d.object(v, fields{
		"ref":           func(v value) { b.Ref = d.title(v) },
		"sourceRef":     func(v value) { b.SourceRef = d.identifier(v) },
		"sourceVersion": func(v value) { b.Version = d.sourceVersion(v) },
		"projection":    func(v value) { b.Projection = d.projection(v) },
		"cachePolicy": func(v value) {
			d.object(v, fields{"ttl": func(v value) { b.CacheTTL = d.duration(v) }})
		},
	}, "ref", "sourceRef", "projection")
	return b
}

func (d *decoder) sourceVersion(v value) uint64 {
	if v.n.Tag == "!!str" {
		d.enum(v, "latest", "default")
		return 0
	}
	n := d.integer(v, 1, 1<<53)
	return n
}

func (d *decoder) duration(v value) time.Duration {
	s, ok := d.str(v)
	if !ok {
		return 0
	}
	t, err := time.ParseDuration(s)
	if err != nil || t <= 0 || t > maxCacheTTL {
		d.fail(v, "want a duration above 0s and up to 24h, like 30s or 5m")
		return 0
	}
	return t
}

func (d *decoder) headerTemplates(v value) []HeaderTemplate {
	var out []HeaderTemplate
	d.object(v, fields{
		"headers": func(v value) {
			d.list(v, func(v value) {
				h := d.headerTemplate(v)
				same := func(o HeaderTemplate) bool { return o.Name == h.Name }
				if h.Name != "" && slices.ContainsFunc(out, same) {
					d.fail(v, "the header %s stands here twice", show(h.Name))
				}
				out = append(out, h)
			})
			if isList(v) && len(v.n.Content) == 0 {
				d.fail(v, "must not be empty")
			}
		},
	}, "headers")
	return out
}

func (d *decoder) headerTemplate(v value) HeaderTemplate {
	h := HeaderTemplate{Line: v.n.Line}
	d.object(v, fields{
		"name":          func(v value) { h.Name = d.headerName(v) },
		"valueTemplate": func(v value) { h.ValueTemplate = d.valueTemplate(v) },
	}, "name", "valueTemplate")
	return h
}

func (d *decoder) headerName(v value) string {
	s, ok := d.str(v)
	if !ok {
		return ""
	}
	if len(s) > 128 || !httpguts.ValidHeaderFieldName(s) {
		d.fail(v, "not a header name")
		return ""
	}
	name := http.CanonicalHeaderKey(s)
	if unprojectable(name) {
		d.fail(v, "%s belongs to the connection and cannot be projected", name)
	}
	return name
}

// unprojectable reports the fields that frame a message or steer a hop.
func unprojectable(canonical string) bool {
	switch canonical {
	case "Host", "Content-Length", "Transfer-Encoding", "Connection", "Keep-Alive", "Te", "Trailer", "Trailers",
		"Upgrade", "Expect", "Http2-Settings", "Alt-Used":
		return true
	}
	return strings.HasPrefix(canonical, "Proxy-")
}

// templateFuncs are here for their names and types: this package parses templates
// and never runs them.
func templateFuncs() template.FuncMap {
	same := func(s string) string { return s }
	return template.FuncMap{
		"b64enc": func(s string) string { return base64.StdEncoding.EncodeToString([]byte(s)) },
		"b64dec": func(s string) (string, error) {
			b, err := base64.StdEncoding.DecodeString(s)
			return string(b), err
		},
		"json":  func(v any) string { return fmt.Sprint(v) },
		"lower": same, "upper": same, "trim": same,
	}
}

var unknownFunction = regexp.MustCompile(`function "([A-Za-z0-9_]{1,32})" not defined`)

// valueTemplate checks the syntax. Neither the template nor the parser's error, which
// quotes it, is repeated: people do write secrets into templates.
func (d *decoder) valueTemplate(v value) string {
	s, ok := d.str(v)
	if !ok {
		return ""
	}
	if len(s) > maxTemplate {
		d.fail(v, "longer than %d bytes", maxTemplate)
		return ""
	}
	if strings.ContainsFunc(s, func(r rune) bool { return r < 0x20 && r != '\t' || r == 0x7f }) {
		d.fail(v, "holds a line break or another control character")
		return ""
	}
	_, err := template.New("").Option("missingkey=error").Funcs(templateFuncs()).Parse(s)
	if err == nil {
		return s
	}
	if m := unknownFunction.FindStringSubmatch(err.Error()); m != nil {
		d.fail(v, "not a valid template: there is no function %s", m[1])
	} else {
		d.fail(v, "not a valid template: want text around keys, such as Bearer {{ .token }}")
	}
	return ""
}
