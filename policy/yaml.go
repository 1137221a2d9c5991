package policy

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strconv"
	"strings"

	"gopkg.in/yaml.v3"
)

const (
	maxFileSize = 1 << 20 // bytes in one file
	maxDepth    = 24      // nesting of a file; the schema needs 13
)

// parse reads one file into a tree that holds nothing clever: one document, no
// aliases, anchors, merge keys or tags, no key twice, bounded depth. The tree is nil
// when it cannot be read at all.
func parse(f File) (*yaml.Node, Problems) {
	top := place{file: f.Name, line: 1, col: 1}
	if len(f.Data) > maxFileSize {
		return nil, Problems{top.problem("the file is larger than 1 MiB")}
	}
	dec := yaml.NewDecoder(bytes.NewReader(f.Data))
	doc, err := decodeDocument(dec)
	switch {
	case errors.Is(err, io.EOF):
		return nil, Problems{top.problem("the file is empty: it needs at least apiVersion: %s", apiVersion)}
	case err != nil:
		return nil, Problems{syntaxProblem(f.Name, err)}
	}
	s := scanner{file: f.Name}
	s.scan(doc, nil, 0)
	switch second, err := decodeDocument(dec); {
	case errors.Is(err, io.EOF):
	case err != nil:
		s.problems = append(s.problems, syntaxProblem(f.Name, err))
	default:
		at := place{file: f.Name, line: second.Line, col: second.Column}
		s.problems = append(s.problems, at.problem("a second document: a policy file holds one"))
	}
	if len(doc.Content) == 0 {
		return nil, append(s.problems, top.problem("the file is empty"))
	}
	return doc.Content[0], s.problems
}

// decodeDocument never lets the parser's own panics out: the bytes may come from an
// API call.
func decodeDocument(dec *yaml.Decoder) (doc *yaml.Node, err error) {
	defer func() {
		if recover() != nil {
			doc, err = nil, errors.New("yaml: not valid YAML")
		}
	}()
	doc = new(yaml.Node)
	if err := dec.Decode(doc); err != nil {
		return nil, err
	}
	return doc, nil
}

var syntaxLine = regexp.MustCompile(`^yaml: line (\d+): (.*)$`)

// syntaxProblem turns the parser's error into a Problem without what it quotes of
// the file.
func syntaxProblem(file string, err error) Problem {
	at := place{file: file, line: 1, col: 1}
	msg := strings.TrimPrefix(err.Error(), "yaml: ")
	if m := syntaxLine.FindStringSubmatch(err.Error()); m != nil {
		if n, err := strconv.Atoi(m[1]); err == nil {
			at.line = n
		}
		msg = m[2]
	}
	switch {
	case strings.Contains(msg, "unknown anchor"):
		msg = "aliases and anchors are not allowed"
	case strings.ContainsAny(msg, "'\"`\n") || len(msg) > 100:
		msg = "not valid YAML"
	}
	return at.problem("not valid YAML: %s", strings.TrimPrefix(msg, "not valid YAML"))
}

// scanner looks for what no field of the schema may use.
type scanner struct {
	file     string
	problems Problems
}

func (s *scanner) add(n *yaml.Node, p *path, msg string) {
	at := place{file: s.file, line: n.Line, col: n.Column, path: p}
	s.problems.add(at.problem("%s", msg))
}

func (s *scanner) scan(n *yaml.Node, p *path, depth int) {
	if depth > maxDepth {
		s.add(n, nil, "nested too deeply")
		return
	}
	if n.Kind == yaml.AliasNode || n.Anchor != "" {
		s.add(n, p, "aliases and anchors are not allowed")
	}
	if n.Style&yaml.TaggedStyle != 0 {
		s.add(n, p, "tags are not allowed")
	}
	switch n.Kind {
	case yaml.DocumentNode:
		for _, c := range n.Content {
			s.scan(c, p, depth)
		}
	case yaml.SequenceNode:
		for i, c := range n.Content {
			s.scan(c, p.item(i), depth+1)
		}
	case yaml.MappingNode:
		s.mapping(n, p, depth)
	}
}

func (s *scanner) mapping(n *yaml.Node, p *path, depth int) {
	seen := make(map[string]int, len(n.Content)/2)
	for i := 0; i+1 < len(n.Content); i += 2 {
		k, v := n.Content[i], n.Content[i+1]
		if k.Kind == yaml.ScalarNode && k.Tag == "!!merge" {
			s.add(k, p, "merge keys are not allowed")
			continue
		}
		if k.Kind != yaml.ScalarNode || k.Anchor != "" || k.Style&yaml.TaggedStyle != 0 {
			s.add(k, p, "a key must be a plain name")
			continue
		}
		if first, dup := seen[k.Value]; dup {
			s.add(k, p.field(fieldName(k.Value)), fmt.Sprintf("the key stands here twice, first in line %d", first))
		}
		seen[k.Value] = k.Line
		s.scan(v, p.field(fieldName(k.Value)), depth+1)
	}
}

// fieldName is a key fit for a path: one that does not look like a field's name may
// be a value in the wrong place and is not shown.
func fieldName(key string) string {
	if key == "" || len(key) > 40 {
		return "?"
	}
	for i := range len(key) {
		if !isAlnum(key[i]) && key[i] != '_' && key[i] != '-' {
			return "?"
		}
	}
	return key
}
