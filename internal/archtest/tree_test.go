package archtest

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// file is one Go file of the module. Paths are relative to its root, with slashes.
type file struct {
	path string
	test bool
	fset *token.FileSet
	ast  *ast.File
}

func (f *file) dir() string { return path.Dir(f.path) }

func (f *file) at(n ast.Node) string {
	return fmt.Sprintf("%s:%d", f.path, f.fset.Position(n.Pos()).Line)
}

// lines is how many lines n takes up.
func (f *file) lines(n ast.Node) int {
	return f.fset.Position(n.End()).Line - f.fset.Position(n.Pos()).Line + 1
}

// imports yields the path of each import.
func (f *file) imports() map[string]*ast.ImportSpec {
	out := make(map[string]*ast.ImportSpec)
	for _, s := range f.ast.Imports {
		if p, err := strconv.Unquote(s.Path.Value); err == nil {
			out[p] = s
		}
	}
	return out
}

// alias is the name under which f imports p, "" if it does not.
func (f *file) alias(p string) string {
	s, ok := f.imports()[p]
	switch {
	case !ok:
		return ""
	case s.Name != nil:
		return s.Name.Name
	}
	base := path.Base(p)
	if strings.HasPrefix(base, "v") && strings.Trim(base[1:], "0123456789") == "" {
		base = path.Base(path.Dir(p))
	}
	return base
}

// parse reads one file.
func parse(name string, src any) (*file, error) {
	f := &file{path: name, test: strings.HasSuffix(name, "_test.go"), fset: token.NewFileSet()}
	var err error
	f.ast, err = parser.ParseFile(f.fset, name, src, parser.ParseComments)
	return f, err
}

// tree reads all Go files of the module.
func tree(t *testing.T) []*file {
	t.Helper()
	root := "../.."
	if _, err := os.Stat(filepath.Join(root, "go.mod")); err != nil {
		t.Fatal(err)
	}
	var out []*file
	err := filepath.WalkDir(root, func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, name)
		if err != nil {
			return err
		}
		rel = filepath.ToSlash(rel)
		if d.IsDir() {
			if base := d.Name(); rel != "." && (strings.HasPrefix(base, ".") || strings.HasPrefix(base, "_") || base == "testdata" || base == "vendor") {
				return filepath.SkipDir
			}
			return nil
		}
		if !strings.HasSuffix(rel, ".go") {
			return nil
		}
		src, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		f, err := parse(rel, src)
		if err != nil {
			return err
		}
		out = append(out, f)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(out) < 20 {
		t.Fatalf("only %d Go files below %s: is that the module?", len(out), root)
	}
	return out
}

// matches says whether a path falls under a pattern of layers or onlyIn.
func matches(pattern, p string) bool {
	if pattern == "..." {
		return true
	}
	if base, ok := strings.CutSuffix(pattern, "/..."); ok {
		return p == base || strings.HasPrefix(p, base+"/")
	}
	return pattern == p
}

// inPlace says whether a file is at one of the places: "dir/*" for all below dir, or a
// pattern of path.Match.
func inPlace(places []string, p string) bool {
	for _, place := range places {
		if base, ok := strings.CutSuffix(place, "/*"); ok && strings.HasPrefix(p, base+"/") {
			return true
		}
		if ok, _ := path.Match(place, p); ok {
			return true
		}
	}
	return false
}
