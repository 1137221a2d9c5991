package inject

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"text/template"
	"text/template/parse"
)

const (
	maxTemplate = 4 << 10  // bytes of a template's text
	maxValue    = 16 << 10 // bytes of a header's value
)

var (
	errTooLong  = errors.New("value is over 16 KiB")
	errFunction = errors.New("a function of the template failed")
)

// valueTemplate is a template over a source's fields that is bound to end: no loop, no
// other template, no function whose result can grow without bound.
type valueTemplate struct {
	text *template.Template
	vars []string // the fields it names, sorted
}

// functions take strings and give strings of at most a small multiple of maxValue, so
// that what one makes of another's result cannot grow step by step. Their errors hold
// nothing of their arguments.
func functions() template.FuncMap {
	return template.FuncMap{
		"b64enc":   bound(func(s string) string { return base64.StdEncoding.EncodeToString([]byte(s)) }),
		"b64dec":   b64dec,
		"urlquery": bound(url.QueryEscape),
		"json":     jsonString,
		"lower":    bound(strings.ToLower),
		"upper":    bound(strings.ToUpper),
		"trim":     bound(strings.TrimSpace),
		"printf":   printf,
		"print": func(args ...any) (string, error) {
			if !within(args) {
				return "", errFunction
			}
			return fmt.Sprint(args...), nil
		},
	}
}

func bound(do func(string) string) func(string) (string, error) {
	return func(s string) (string, error) {
		if len(s) > maxValue {
			return "", errFunction
		}
		return do(s), nil
	}
}

func jsonString(s string) (string, error) {
	if len(s) > maxValue {
		return "", errFunction
	}
	out, err := json.Marshal(s)
	return string(out), err
}

func within(args []any) bool {
	n := 0
	for _, arg := range args {
		if s, ok := arg.(string); ok {
			n += len(s)
		}
	}
	return n <= maxValue
}

// allowedFunctions are ours and those of text/template that are harmless; left out are
// call, html, js, index and slice, which mean nothing here.
func allowedFunctions() []string {
	return []string{"b64enc", "b64dec", "urlquery", "json", "lower", "upper", "trim", "printf",
		"print", "and", "or", "not", "len", "eq", "ne", "lt", "le", "gt", "ge"}
}

func b64dec(s string) (string, error) {
	if len(s) > maxValue {
		return "", errFunction
	}
	for _, encoding := range []*base64.Encoding{base64.StdEncoding, base64.RawStdEncoding, base64.URLEncoding, base64.RawURLEncoding} {
		if out, err := encoding.DecodeString(s); err == nil {
			return string(out), nil
		}
	}
	return "", errFunction
}

// printf bounds what fmt does not: widths of up to 999,999, and arguments used again.
func printf(format string, args ...any) (string, error) {
	if grows, _ := regexp.MatchString(`%[^a-zA-Z%]*([0-9]{4}|[*\[])`, format); grows || len(format) > maxTemplate || !within(args) {
		return "", errFunction
	}
	return fmt.Sprintf(format, args...), nil
}

// parseTemplate compiles text. Its errors name functions and fields and quote nothing
// else of it: people do write secrets into templates.
func parseTemplate(text string) (*valueTemplate, error) {
	if len(text) > maxTemplate {
		return nil, fmt.Errorf("template is over %d bytes", maxTemplate)
	}
	if strings.TrimSpace(text) == "" {
		return nil, errors.New("template is empty")
	}
	t, err := template.New("value").Option("missingkey=error").Funcs(functions()).Parse(text)
	if err != nil {
		return nil, errors.New("template does not parse")
	}
	if t.Tree == nil || t.Root == nil {
		return nil, errors.New("template is empty")
	}
	// A template may define another only by define and block; t.Templates lists them.
	for _, other := range t.Templates() {
		if other.Name() != t.Name() {
			return nil, errors.New("define and block are not allowed")
		}
	}
	v := &valueTemplate{text: t}
	if err := v.check(t.Root); err != nil {
		return nil, err
	}
	slices.Sort(v.vars)
	v.vars = slices.Compact(v.vars)
	return v, nil
}

// check walks the tree, refuses what is not allowed and collects the fields.
func (v *valueTemplate) check(node parse.Node) error {
	switch n := node.(type) {
	case *parse.ListNode:
		if n == nil {
			return nil
		}
		return each(n.Nodes, v.check)
	case *parse.TextNode, *parse.CommentNode, *parse.StringNode, *parse.NumberNode, *parse.BoolNode:
		return nil
	case *parse.ActionNode:
		return v.check(n.Pipe)
	case *parse.IfNode:
		return each([]parse.Node{n.Pipe, n.List, n.ElseList}, v.check)
	case *parse.PipeNode:
		return each(n.Cmds, func(c *parse.CommandNode) error { return each(c.Args, v.check) })
	case *parse.IdentifierNode:
		if !slices.Contains(allowedFunctions(), n.Ident) {
			return fmt.Errorf("function %s is not allowed", n.Ident)
		}
		return nil
	case *parse.FieldNode:
		return v.field(n.Ident)
	case *parse.VariableNode:
		if n.Ident[0] == "$" {
			return v.field(n.Ident[1:])
		}
		return v.variable(n.Ident)
	default:
		return errors.New("only text, {{ .field }}, functions, variables and if are allowed, no loop, no bare dot, no other template")
	}
}

func each[T any](nodes []T, do func(T) error) error {
	for _, n := range nodes {
		if err := do(n); err != nil {
			return err
		}
	}
	return nil
}

func (v *valueTemplate) field(path []string) error {
	if len(path) != 1 {
		return errors.New("a source's fields are flat: write {{ .name }}")
	}
	v.vars = append(v.vars, path[0])
	return nil
}

func (v *valueTemplate) variable(path []string) error {
	if len(path) != 1 {
		return errors.New("a source's fields are flat: write {{ .name }}")
	}
	return nil
}

// execute renders the template over fields. The engine's own errors may quote
// arguments, so only our words leave.
func (v *valueTemplate) execute(fields map[string]string) (string, error) {
	for _, name := range v.vars {
		if _, ok := fields[name]; !ok {
			return "", fmt.Errorf("the source has no key %s", name)
		}
	}
	var out bounded
	if err := v.text.Execute(&out, fields); err != nil {
		switch {
		case errors.Is(err, errTooLong):
			return "", errTooLong
		case errors.Is(err, errFunction):
			return "", errFunction
		default:
			return "", errors.New("execution failed")
		}
	}
	return out.String(), nil
}

// bounded takes at most maxValue bytes.
type bounded struct{ strings.Builder }

func (b *bounded) Write(p []byte) (int, error) {
	if b.Len()+len(p) > maxValue {
		return 0, errTooLong
	}
	return b.Builder.Write(p)
}

func (b *bounded) WriteString(s string) (int, error) { return b.Write([]byte(s)) }

// checkValue is what a header's value must be whatever it was made of: visible ASCII
// and inner blanks, so that nothing on the way can read a second field or line in it.
func checkValue(value string) error {
	switch {
	case value == "":
		return errors.New("value is empty")
	case len(value) > maxValue:
		return errTooLong
	case value[0] == ' ' || value[len(value)-1] == ' ':
		return errors.New("value begins or ends with a blank")
	}
	for _, c := range []byte(value) {
		if c < ' ' || c > '~' {
			return errors.New("value holds a control character or one that is not ASCII")
		}
	}
	return nil
}
