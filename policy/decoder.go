package policy

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"gopkg.in/yaml.v3"
)

// decoder turns one file's tree into declarations. It notes every problem and goes
// on, so that one run names them all.
type decoder struct {
	file     string
	problems Problems
	warnings []Warning
}

// value is a node and where it stands.
type value struct {
	n *yaml.Node
	p *path
}

func (d *decoder) at(v value) place {
	return place{file: d.file, line: v.n.Line, col: v.n.Column, path: v.p}
}

func (d *decoder) fail(v value, format string, args ...any) {
	d.problems.add(d.at(v).problem(format, args...))
}

func (d *decoder) warn(v value, format string, args ...any) {
	d.warnings = append(d.warnings, Warning(d.at(v).problem(format, args...)))
}

// fields says what a mapping may hold and who reads it.
type fields map[string]func(value)

// object reads a mapping strictly. What the scanner refused already is passed over.
func (d *decoder) object(v value, known fields, required ...string) {
	if v.n.Kind != yaml.MappingNode {
		d.wrongType(v, "a mapping")
		return
	}
	seen := make([]string, 0, len(v.n.Content)/2)
	for i := 0; i+1 < len(v.n.Content); i += 2 {
		k, c := v.n.Content[i], v.n.Content[i+1]
		if k.Kind != yaml.ScalarNode || k.Tag == "!!merge" {
			continue
		}
		at := value{n: k, p: v.p.field(fieldName(k.Value))}
		read, ok := known[k.Value]
		switch {
		case !ok:
			d.fail(at, "unknown field: known here are %s", strings.Join(slices.Sorted(maps.Keys(known)), ", "))
			continue
		case slices.Contains(seen, k.Value):
			continue
		}
		seen = append(seen, k.Value)
		read(value{n: c, p: at.p})
	}
	for _, name := range required {
		if !slices.Contains(seen, name) {
			d.fail(v, "%s is missing", name)
		}
	}
}

// list reads a sequence.
func (d *decoder) list(v value, each func(value)) {
	if v.n.Kind != yaml.SequenceNode {
		d.wrongType(v, "a list")
		return
	}
	for i, c := range v.n.Content {
		each(value{n: c, p: v.p.item(i)})
	}
}

// wrongType says what was wanted and what kind of thing stands there, never the
// value. Aliases have been refused before.
func (d *decoder) wrongType(v value, want string) {
	var got string
	switch v.n.Kind {
	case yaml.AliasNode:
		return
	case yaml.MappingNode:
		got = "a mapping"
	case yaml.SequenceNode:
		got = "a list"
	default:
		got = scalarKind(v.n)
	}
	d.fail(v, "want %s, found %s", want, got)
}

func scalarKind(n *yaml.Node) string {
	switch n.Tag {
	case "!!null":
		return "nothing"
	case "!!bool":
		return "a boolean"
	case "!!int", "!!float":
		return "a number"
	case "!!timestamp":
		return "a date"
	}
	return "a string"
}

// str reads a non-empty string; what YAML would read as another type must be quoted.
func (d *decoder) str(v value) (string, bool) {
	if v.n.Kind != yaml.ScalarNode || v.n.Tag != "!!str" {
		d.wrongType(v, "a string")
		return "", false
	}
	if v.n.Value == "" {
		d.fail(v, "must not be empty")
		return "", false
	}
	return v.n.Value, true
}

// boolean reads true or false, and none of YAML's older words for them.
func (d *decoder) boolean(v value) bool {
	plain := v.n.Kind == yaml.ScalarNode && v.n.Style == 0
	switch {
	case plain && v.n.Value == "true":
		return true
	case plain && v.n.Value == "false":
		return false
	}
	d.wrongType(v, "true or false")
	return false
}

// integer reads a plain decimal number between lo and hi; 0 after a problem.
func (d *decoder) integer(v value, lo, hi uint64) uint64 {
	if v.n.Kind != yaml.ScalarNode || v.n.Tag != "!!int" {
		d.wrongType(v, fmt.Sprintf("a number from %d to %d", lo, hi))
		return 0
	}
	n, err := strconv.ParseUint(v.n.Value, 10, 64)
	if err != nil || n < lo || n > hi || len(v.n.Value) > 1 && v.n.Value[0] == '0' {
		d.fail(v, "want a decimal number from %d to %d", lo, hi)
		return 0
	}
	return n
}

// enum reads one of words; "" after a problem.
func (d *decoder) enum(v value, words ...string) string {
	s, ok := d.str(v)
	if !ok {
		return ""
	}
	switch {
	case slices.Contains(words, s):
		return s
	case len(words) == 1:
		d.fail(v, "want %s", words[0])
	default:
		d.fail(v, "want one of %s", strings.Join(words, ", "))
	}
	return ""
}

// identifier reads a name that other parts of the system use as a key: of a
// sandbox, team, template or source.
func (d *decoder) identifier(v value) string {
	s, ok := d.str(v)
	if !ok {
		return ""
	}
	good := len(s) <= 128 && isAlnum(s[0])
	for i := range len(s) {
		good = good && (isAlnum(s[i]) || strings.IndexByte("_.-", s[i]) >= 0)
	}
	if !good {
		d.fail(v, "want a name of letters, digits, '_', '.' and '-' that starts with a letter or digit, at most 128 bytes")
		return ""
	}
	return s
}

// title reads the name of a rule or the ref of a binding: any printable text.
func (d *decoder) title(v value) string {
	s, ok := d.str(v)
	if !ok {
		return ""
	}
	if len(s) > 128 || strings.ContainsFunc(s, notPrintable) {
		d.fail(v, "want a name of printable characters, at most 128 bytes")
		return ""
	}
	return s
}

func notPrintable(r rune) bool { return !strconv.IsPrint(r) }

// strs reads a list of non-empty strings.
func (d *decoder) strs(v value) []string {
	out := []string{}
	d.list(v, func(v value) {
		if s, ok := d.str(v); ok {
			out = append(out, s)
		}
	})
	return out
}
