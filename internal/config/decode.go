package config

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"regexp"
	"slices"
	"strings"

	"gopkg.in/yaml.v3"
)

// maxFile bounds the configuration file, in bytes.
const maxFile = 1 << 20

// Problem is one fault of the configuration.
type Problem struct {
	File         string // "" for a flag or an environment variable
	Line, Column int    // from 1; 0 when unknown
	Path         string // the key, the flag or the variable
	Message      string
}

// Error is "file:line:col: path: message", without the parts that are not known.
func (p Problem) Error() string {
	var b strings.Builder
	if p.File != "" {
		b.WriteString(p.File)
		if p.Line > 0 {
			fmt.Fprintf(&b, ":%d", p.Line)
			if p.Column > 0 {
				fmt.Fprintf(&b, ":%d", p.Column)
			}
		}
		b.WriteString(": ")
	}
	if p.Path != "" {
		b.WriteString(p.Path + ": ")
	}
	b.WriteString(p.Message)
	return b.String()
}

// Problems is every fault found, in the order of the file.
type Problems []Problem

// Error is one line per problem.
func (ps Problems) Error() string {
	lines := make([]string, len(ps))
	for i, p := range ps {
		lines[i] = p.Error()
	}
	return strings.Join(lines, "\n")
}

// leaf is a key that a file sets.
type leaf struct {
	key    Key
	values []string
	node   *yaml.Node
}

// decoder walks the YAML tree itself: it never decodes into Go types, so that every
// fault has its place and no value is ever repeated by a library's message.
type decoder struct {
	file     string
	keys     map[string]Key
	groups   map[string]bool // "listen", "api.tls"
	leaves   []leaf
	problems Problems
}

func decode(file string, data []byte, keys []Key) ([]leaf, Problems) {
	d := &decoder{file: file, keys: map[string]Key{}, groups: map[string]bool{}}
	for _, k := range keys {
		d.keys[k.Path] = k
		for i, c := range k.Path {
			if c == '.' {
				d.groups[k.Path[:i]] = true
			}
		}
	}
	if len(data) > maxFile {
		return nil, Problems{{File: file, Message: "larger than 1 MiB"}}
	}
	root, err := oneDocument(data)
	if err != nil {
		return nil, Problems{d.syntax(err)}
	}
	if root != nil {
		d.mapping("", root)
	}
	return d.leaves, d.problems
}

var errSecondDocument = errors.New("a second document follows: keep one")

// oneDocument parses; nil without an error is an empty file.
func oneDocument(data []byte) (*yaml.Node, error) {
	dec := yaml.NewDecoder(bytes.NewReader(data))
	var doc, more yaml.Node
	if err := dec.Decode(&doc); errors.Is(err, io.EOF) {
		return nil, nil
	} else if err != nil {
		return nil, err
	}
	if err := dec.Decode(&more); err == nil {
		return nil, errSecondDocument
	} else if !errors.Is(err, io.EOF) {
		return nil, err
	}
	root := doc.Content[0]
	if root.Kind == yaml.ScalarNode && root.Tag == "!!null" {
		return nil, nil
	}
	return root, nil
}

var yamlLine = regexp.MustCompile(`^yaml: line (\d+): (.*)$`)

func (d *decoder) syntax(err error) Problem {
	if errors.Is(err, errSecondDocument) {
		return Problem{File: d.file, Message: err.Error()}
	}
	p := Problem{File: d.file, Message: "not valid YAML: " + strings.TrimPrefix(err.Error(), "yaml: ")}
	if m := yamlLine.FindStringSubmatch(err.Error()); m != nil {
		_, _ = fmt.Sscanf(m[1], "%d", &p.Line) // the expression matched digits
		p.Message = "not valid YAML: " + m[2]
	}
	return p
}

func (d *decoder) fail(n *yaml.Node, path, format string, args ...any) {
	d.problems = append(d.problems, Problem{File: d.file, Line: n.Line, Column: n.Column, Path: path, Message: fmt.Sprintf(format, args...)})
}

// plain refuses what makes a document mean something other than it shows.
func (d *decoder) plain(n *yaml.Node, path string) bool {
	switch {
	case n.Kind == yaml.AliasNode || n.Anchor != "":
		d.fail(n, path, "anchors and aliases are not allowed")
	case n.Kind == yaml.ScalarNode && n.Tag == "!!merge":
		d.fail(n, path, "merge keys are not allowed")
	case n.Style&yaml.TaggedStyle != 0:
		d.fail(n, path, "explicit tags are not allowed")
	default:
		return true
	}
	return false
}

func (d *decoder) mapping(prefix string, n *yaml.Node) {
	if !d.plain(n, prefix) {
		return
	}
	if n.Kind != yaml.MappingNode {
		d.fail(n, prefix, "want a mapping of keys")
		return
	}
	seen := map[string]int{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		k, v := n.Content[i], n.Content[i+1]
		path := k.Value
		if prefix != "" {
			path = prefix + "." + k.Value
		}
		if !d.plain(k, prefix) || !d.plain(v, path) {
			continue
		}
		if line, dup := seen[path]; dup {
			d.fail(k, path, "duplicate key, first on line %d", line)
			continue
		}
		seen[path] = k.Line
		d.entry(path, k, v)
	}
}

func (d *decoder) entry(path string, k, v *yaml.Node) {
	switch key, ok := d.keys[path]; {
	case strings.Contains(k.Value, "."): // "listen.proxy: x" is no second way to write listen: {proxy: x}
		d.fail(k, path, "unknown key: write the part after each dot one level deeper")
	case path == "apiVersion":
		if v.Kind != yaml.ScalarNode || v.Value != APIVersion {
			d.fail(v, path, "want %s", APIVersion)
		}
	case path == "store.key":
		d.fail(k, path, "not supported yet: use store.keyFile")
	case ok:
		d.leaf(key, v)
	case d.groups[path]:
		d.mapping(path, v)
	default:
		d.fail(k, path, "unknown key: known here are %s", strings.Join(d.siblings(path), ", "))
	}
}

// siblings are the names that may stand where path stands.
func (d *decoder) siblings(path string) []string {
	parent := path[:strings.LastIndexByte(path, '.')+1]
	names := map[string]bool{}
	if parent == "" {
		names["apiVersion"] = true
	}
	for known := range d.keys {
		if rest, ok := strings.CutPrefix(known, parent); ok {
			name, _, _ := strings.Cut(rest, ".")
			names[name] = true
		}
	}
	return slices.Sorted(maps.Keys(names))
}

func (d *decoder) leaf(key Key, n *yaml.Node) {
	values, ok := d.values(key, n)
	if !ok {
		return
	}
	d.leaves = append(d.leaves, leaf{key: key, values: values, node: n})
}

// values reads a node of the key's shape. A YAML number is not a string and the other
// way round, except where a plain 0 is natural (durations, sizes).
func (d *decoder) values(key Key, n *yaml.Node) ([]string, bool) {
	var ok bool
	switch key.shape {
	case shapeString:
		ok = isScalar(n, "!!str")
	case shapeInt:
		ok = isScalar(n, "!!int")
	case shapeSize:
		ok = isScalar(n, "!!str") || isScalar(n, "!!int")
	case shapeDuration:
		ok = isScalar(n, "!!str") || (isScalar(n, "!!int") && n.Value == "0")
	case shapeList:
		return d.listValues(key, n)
	case shapeMap:
		return d.mapValues(key, n)
	}
	if !ok {
		d.fail(n, key.Path, "want %s", key.shape)
		return nil, false
	}
	return []string{n.Value}, true
}

func (d *decoder) listValues(key Key, n *yaml.Node) ([]string, bool) {
	if n.Kind != yaml.SequenceNode {
		d.fail(n, key.Path, "want %s", key.shape)
		return nil, false
	}
	out := make([]string, 0, len(n.Content))
	for i, item := range n.Content {
		path := fmt.Sprintf("%s[%d]", key.Path, i)
		if !d.plain(item, path) {
			return nil, false
		}
		if !isScalar(item, "!!str") {
			d.fail(item, path, "want a string")
			return nil, false
		}
		out = append(out, item.Value)
	}
	return out, true
}

func (d *decoder) mapValues(key Key, n *yaml.Node) ([]string, bool) {
	if n.Kind != yaml.MappingNode {
		d.fail(n, key.Path, "want %s", key.shape)
		return nil, false
	}
	out := make([]string, 0, len(n.Content)/2)
	seen := map[string]bool{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		k, v := n.Content[i], n.Content[i+1]
		path := key.Path + "." + k.Value
		if !d.plain(k, key.Path) || !d.plain(v, path) {
			return nil, false
		}
		if seen[k.Value] {
			d.fail(k, path, "duplicate key")
			return nil, false
		}
		seen[k.Value] = true
		if k.Kind != yaml.ScalarNode || !isScalar(v, "!!str") {
			d.fail(v, path, "want an address")
			return nil, false
		}
		out = append(out, k.Value+"="+v.Value)
	}
	return out, true
}

func isScalar(n *yaml.Node, tag string) bool { return n.Kind == yaml.ScalarNode && n.Tag == tag }
