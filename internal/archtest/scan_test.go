package archtest

import (
	"fmt"
	"go/ast"
	"go/token"
	"slices"
	"strings"
)

// Each check takes files and lists what is wrong, one line each.

func checkLayers(fs []*file) (bad []string) {
	for _, f := range fs {
		if f.test {
			continue // tests meet other packages; cycles are the compiler's affair
		}
		l := layerOf(f.dir())
		for p, spec := range f.imports() {
			ours, ok := strings.CutPrefix(p, module+"/")
			if !ok {
				continue
			}
			if l == nil {
				bad = append(bad, fmt.Sprintf("%s: package %s is in no layer: put it into layers with a reason", f.at(spec), f.dir()))
			} else if !slices.ContainsFunc(l.may, func(may string) bool { return matches(may, ours) }) {
				bad = append(bad, fmt.Sprintf("%s: %s must not import %s: %s", f.at(spec), f.dir(), ours, l.reason))
			}
		}
	}
	return bad
}

func layerOf(dir string) *layer {
	for i := range layers {
		if matches(layers[i].pkg, dir) {
			return &layers[i]
		}
	}
	return nil
}

func checkOnlyIn(fs []*file) (bad []string) {
	for _, f := range fs {
		for p, spec := range f.imports() {
			for _, rule := range onlyIn {
				if matches(rule.path, p) && !inPlace(rule.files, f.path) && (!f.test || !rule.tests) && !isItself(rule.path, f.dir()) {
					bad = append(bad, fmt.Sprintf("%s: %s may not be imported here: %s", f.at(spec), p, rule.reason))
				}
			}
		}
	}
	return bad
}

// isItself: a package's own subpackages and external tests may import it.
func isItself(pattern, dir string) bool { return matches(pattern, module+"/"+dir) }

func checkMentions(fs []*file) (bad []string) {
	for _, f := range fs {
		if f.test {
			continue
		}
		for _, rule := range mentions {
			if inPlace(rule.in, f.path) {
				continue
			}
			for _, n := range uses(f, rule.pkg, rule.name) {
				bad = append(bad, fmt.Sprintf("%s: %s.%s is not used here: %s", f.at(n), rule.pkg, rule.name, rule.reason))
			}
		}
	}
	return bad
}

// uses finds pkg.name in f, or, without pkg, any selector or composite literal key name.
func uses(f *file, pkg, name string) (out []ast.Node) {
	alias := ""
	if pkg != "" {
		if alias = f.alias(pkg); alias == "" {
			return nil
		}
	}
	ast.Inspect(f.ast, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.SelectorExpr:
			x, ok := n.X.(*ast.Ident)
			if n.Sel.Name == name && (pkg == "" || ok && x.Name == alias) {
				out = append(out, n)
			}
		case *ast.KeyValueExpr:
			if k, ok := n.Key.(*ast.Ident); ok && pkg == "" && k.Name == name {
				out = append(out, n)
			}
		}
		return true
	})
	return out
}

// checkReadSide keeps the read side of the store out of the management plane, also under
// another name for its package.
func checkReadSide(fs []*file) (bad []string) {
	for _, f := range fs {
		if f.test || !matches("api/...", f.dir()) {
			continue
		}
		if f.alias(module+"/store") == "." {
			bad = append(bad, f.path+": store is imported with a dot, which hides what is used of it")
		}
		for _, name := range readSide {
			for _, n := range uses(f, module+"/store", name) {
				bad = append(bad, fmt.Sprintf("%s: api mentions store.%s: the management plane is write-only by type", f.at(n), name))
			}
		}
	}
	return bad
}

func checkPackageComments(fs []*file) (bad []string) {
	has, seen := map[string]bool{}, map[string]string{}
	for _, f := range fs {
		if f.test {
			continue
		}
		seen[f.dir()] = f.ast.Name.Name
		if d := f.ast.Doc; d != nil {
			text := d.Text()
			if strings.HasPrefix(text, "Package "+f.ast.Name.Name+" ") || f.ast.Name.Name == "main" && len(text) > 0 {
				has[f.dir()] = true
			}
		}
	}
	for dir, name := range seen {
		if !has[dir] {
			bad = append(bad, fmt.Sprintf("%s: no file says what the package is (// Package %s …)", dir, name))
		}
	}
	return bad
}

func checkInits(fs []*file) (bad []string) {
	for _, f := range fs {
		for _, d := range f.ast.Decls {
			if fn, ok := d.(*ast.FuncDecl); ok && fn.Recv == nil && fn.Name.Name == "init" {
				bad = append(bad, f.at(fn)+": init() runs before anybody asked and cannot fail: make it a function that main calls")
			}
		}
	}
	return bad
}

// checkPackageVars refuses package variables that are locks, atomics, maps made to be
// filled or channels, and assignments to any package variable.
func checkPackageVars(fs []*file) (bad []string) {
	declared := map[string]map[string]*ast.ValueSpec{} // by dir and name
	for _, f := range fs {
		if f.test {
			continue
		}
		for _, spec := range packageVars(f) {
			if why := mutableKind(f, spec); why != "" {
				bad = append(bad, fmt.Sprintf("%s: package variable %s is %s: state belongs to a value that somebody owns", f.at(spec), spec.Names[0].Name, why))
			}
			for _, n := range spec.Names {
				if n.Name == "_" {
					continue
				}
				if declared[f.dir()] == nil {
					declared[f.dir()] = map[string]*ast.ValueSpec{}
				}
				declared[f.dir()][n.Name] = spec
			}
		}
	}
	for _, f := range fs {
		if !f.test {
			bad = append(bad, assignments(f, declared[f.dir()])...)
		}
	}
	return bad
}

func packageVars(f *file) (out []*ast.ValueSpec) {
	for _, d := range f.ast.Decls {
		if g, ok := d.(*ast.GenDecl); ok && g.Tok == token.VAR {
			for _, s := range g.Specs {
				out = append(out, s.(*ast.ValueSpec))
			}
		}
	}
	return out
}

// mutableKind says what makes a variable's declared type or value suspicious.
func mutableKind(f *file, spec *ast.ValueSpec) string {
	for _, e := range append([]ast.Expr{spec.Type}, spec.Values...) {
		switch e := e.(type) {
		case *ast.ChanType:
			return "a channel"
		case *ast.MapType:
			return "a map to be filled"
		case *ast.CallExpr:
			if fn, ok := e.Fun.(*ast.Ident); ok && fn.Name == "make" {
				return "made to be filled"
			}
		case *ast.UnaryExpr:
			if lit, ok := e.X.(*ast.CompositeLit); ok && e.Op == token.AND {
				if kind := stateful(f, lit.Type); kind != "" {
					return kind
				}
			}
		case *ast.CompositeLit:
			if kind := stateful(f, e.Type); kind != "" {
				return kind
			}
		default:
			if kind := stateful(f, e); kind != "" {
				return kind
			}
		}
	}
	return ""
}

// stateful knows sync's and sync/atomic's types. A sync.Pool holds nothing that anybody
// could miss.
func stateful(f *file, e ast.Expr) string {
	if ix, ok := e.(*ast.IndexExpr); ok { // atomic.Pointer[T]
		e = ix.X
	}
	sel, ok := e.(*ast.SelectorExpr)
	if !ok {
		return ""
	}
	x, ok := sel.X.(*ast.Ident)
	if ok && (x.Name == f.alias("sync") && sel.Sel.Name != "Pool" || x.Name == f.alias("sync/atomic")) {
		return "a " + x.Name + "." + sel.Sel.Name
	}
	return ""
}

// assignments finds writes to the package's variables from inside functions. The
// parser's own resolution tells a local name from the package's.
func assignments(f *file, vars map[string]*ast.ValueSpec) (bad []string) {
	report := func(e ast.Expr) {
		id := root(e)
		if id == nil || vars[id.Name] == nil {
			return
		}
		if id.Obj != nil && id.Obj.Decl != vars[id.Name] {
			return // a local of that name
		}
		bad = append(bad, fmt.Sprintf("%s: package variable %s is changed: state belongs to a value that somebody owns", f.at(id), id.Name))
	}
	ast.Inspect(f.ast, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.AssignStmt:
			if n.Tok != token.DEFINE {
				for _, e := range n.Lhs {
					report(e)
				}
			}
		case *ast.IncDecStmt:
			report(n.X)
		case *ast.CallExpr:
			if fn, ok := n.Fun.(*ast.Ident); ok && (fn.Name == "delete" || fn.Name == "clear" || fn.Name == "copy") && len(n.Args) > 0 {
				report(n.Args[0])
			}
		}
		return true
	})
	return bad
}

// root is x of x, x.f, x[i], *x and combinations.
func root(e ast.Expr) *ast.Ident {
	for {
		switch v := e.(type) {
		case *ast.Ident:
			return v
		case *ast.SelectorExpr:
			e = v.X
		case *ast.IndexExpr:
			e = v.X
		case *ast.StarExpr:
			e = v.X
		case *ast.ParenExpr:
			e = v.X
		default:
			return nil
		}
	}
}

// checkLengths holds the bounds of functions, files and interfaces. lengths are those of
// all functions, for the percentile.
func checkLengths(fs []*file) (bad []string, lengths []int) {
	for _, f := range fs {
		if f.test {
			continue
		}
		if n := f.fset.Position(f.ast.FileEnd).Line; n > maxFile {
			bad = append(bad, fmt.Sprintf("%s: %d lines, %d are the most: split it by idea", f.path, n, maxFile))
		}
		for _, d := range f.ast.Decls {
			fn, ok := d.(*ast.FuncDecl)
			if !ok {
				continue
			}
			n, limit := f.lines(fn), maxFunc
			lengths = append(lengths, n)
			if longTables[f.dir()+"."+fn.Name.Name] != "" {
				limit = maxWiring
			}
			if n > limit {
				bad = append(bad, fmt.Sprintf("%s: %s has %d lines, %d are the most", f.at(fn), fn.Name.Name, n, limit))
			}
		}
	}
	slices.Sort(lengths)
	return append(bad, wideInterfaces(fs)...), lengths
}

// wideInterfaces counts methods, those of embedded interfaces of the same package too.
func wideInterfaces(fs []*file) (bad []string) {
	types := map[string]*ast.InterfaceType{}
	where := map[string]string{}
	for _, f := range fs {
		if f.test {
			continue
		}
		ast.Inspect(f.ast, func(n ast.Node) bool {
			if s, ok := n.(*ast.TypeSpec); ok {
				if it, ok := s.Type.(*ast.InterfaceType); ok {
					key := f.dir() + "." + s.Name.Name
					types[key], where[key] = it, f.at(s)
				}
			}
			return true
		})
	}
	for key, it := range types {
		dir := key[:strings.LastIndexByte(key, '.')]
		if n := methods(it, dir, types); n > maxMethods && wide[key] == "" {
			bad = append(bad, fmt.Sprintf("%s: interface %s has %d methods, %d are the most: ask for less", where[key], key, n, maxMethods))
		}
	}
	return bad
}

func methods(it *ast.InterfaceType, dir string, types map[string]*ast.InterfaceType) (n int) {
	for _, m := range it.Methods.List {
		switch e := m.Type.(type) {
		case *ast.FuncType:
			n += len(m.Names)
		case *ast.Ident:
			if in := types[dir+"."+e.Name]; in != nil {
				n += methods(in, dir, types)
			}
		}
	}
	return n
}
