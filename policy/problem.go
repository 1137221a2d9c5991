package policy

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// maxProblems bounds what one Compile reports, so that garbage cannot flood a log.
const maxProblems = 200

// keptProblems bounds what one file can make Compile remember before that.
const keptProblems = 5 * maxProblems

// Problem is one thing wrong with the policy: where it stands (Line and Column from
// 1, Path like "sandboxes[0].network.mode") and what it is. Message holds no value
// that is longer than a name and none of a field that could hold a secret.
type Problem struct {
	File    string `json:"file"`
	Line    int    `json:"line"`
	Column  int    `json:"column"`
	Path    string `json:"path"`
	Message string `json:"message"`
}

// String gives "file:line:col: path: message".
func (p Problem) String() string {
	var b strings.Builder
	b.WriteString(p.File)
	if p.Line > 0 {
		fmt.Fprintf(&b, ":%d:%d", p.Line, p.Column)
	}
	b.WriteString(": ")
	if p.Path != "" {
		b.WriteString(p.Path + ": ")
	}
	b.WriteString(p.Message)
	return b.String()
}

// Problems is the error of Compile and LoadDir: everything wrong at once, in file
// order.
type Problems []Problem

// Error lists all problems, one per line.
func (ps Problems) Error() string {
	lines := make([]string, len(ps))
	for i, p := range ps {
		lines[i] = p.String()
	}
	return strings.Join(lines, "\n")
}

// Warning is something that loads but most likely is not meant.
type Warning Problem

// String gives "file:line:col: path: message".
func (w Warning) String() string { return Problem(w).String() }

// add drops what is far beyond what will be reported.
func (ps *Problems) add(p Problem) {
	if len(*ps) < keptProblems {
		*ps = append(*ps, p)
	}
}

// tidy sorts by place and drops repetitions: a template's fault shows in every
// sandbox that uses it.
func (ps Problems) tidy() Problems {
	slices.SortStableFunc(ps, func(a, b Problem) int {
		return cmp.Or(cmp.Compare(a.File, b.File), cmp.Compare(a.Line, b.Line),
			cmp.Compare(a.Column, b.Column), cmp.Compare(a.Message, b.Message))
	})
	ps = slices.Compact(ps)
	if len(ps) > maxProblems {
		last := ps[maxProblems]
		ps = append(ps[:maxProblems:maxProblems], Problem{File: last.File, Line: last.Line, Column: last.Column,
			Message: "and more problems from here on"})
	}
	return ps
}

// path is a YAML path as a chain, rendered only when something is wrong there.
type path struct {
	parent *path
	key    string
	index  int // when key is ""
}

func (p *path) field(key string) *path { return &path{parent: p, key: key} }
func (p *path) item(i int) *path       { return &path{parent: p, index: i} }

// String gives "a.b[2].c"; the root is "".
func (p *path) String() string {
	if p == nil {
		return ""
	}
	head := p.parent.String()
	switch {
	case p.key == "":
		return fmt.Sprintf("%s[%d]", head, p.index)
	case head == "":
		return p.key
	}
	return head + "." + p.key
}

// place is where something is written.
type place struct {
	file      string
	line, col int
	path      *path
}

func (at place) problem(format string, args ...any) Problem {
	return Problem{File: at.file, Line: at.line, Column: at.col, Path: at.path.String(), Message: fmt.Sprintf(format, args...)}
}

// String gives "file:line".
func (at place) String() string { return fmt.Sprintf("%s:%d", at.file, at.line) }

// show quotes a value for a message if it is no longer than a name and looks like
// one; anything else might be a secret in the wrong field.
func show(v string) string {
	if v == "" {
		return "an empty value"
	}
	if len(v) > 64 {
		return fmt.Sprintf("a value of %d bytes", len(v))
	}
	for i := range len(v) {
		c := v[i]
		if !isAlnum(c) && !strings.ContainsRune("._-*/:,[]", rune(c)) {
			return fmt.Sprintf("a value of %d bytes", len(v))
		}
	}
	return `"` + v + `"`
}

func isAlnum(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9'
}
