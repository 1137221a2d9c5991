package archtest

import (
	"os"
	"slices"
	"testing"
)

func TestArchitecture(t *testing.T) {
	fs := tree(t)
	for name, check := range map[string]func([]*file) []string{
		"imports of ours":           checkLayers,
		"imports with one place":    checkOnlyIn,
		"names that are not used":   checkMentions,
		"G01 api and the read side": checkReadSide,
		"package comments":          checkPackageComments,
		"init functions":            checkInits,
		"package variables":         checkPackageVars,
		"lengths": func(fs []*file) []string {
			bad, _ := checkLengths(fs)
			return bad
		},
	} {
		t.Run(name, func(t *testing.T) {
			bad := check(fs)
			slices.Sort(bad)
			for _, b := range bad {
				t.Error(b)
			}
		})
	}
}

func TestFunctionLengths(t *testing.T) {
	_, lengths := checkLengths(tree(t))
	if p90 := lengths[len(lengths)*9/10]; p90 > p90Func {
		t.Errorf("one function in ten has more than %d lines; aim at %d", p90, p90Func)
	}
}

// TestExceptions finds exceptions whose subject is gone, and rules without a reason.
func TestExceptions(t *testing.T) {
	fs := tree(t)
	exists := map[string]bool{}
	for _, f := range fs {
		for name := range f.ast.Scope.Objects {
			exists[f.dir()+"."+name] = true
		}
	}
	for name, reason := range wide {
		if !exists[name] || reason == "" {
			t.Errorf("exception for %s: it does not exist, or there is no reason", name)
		}
	}
	for name, reason := range longTables {
		if !exists[name] || reason == "" {
			t.Errorf("exception for %s: it does not exist, or there is no reason", name)
		}
	}
	for _, l := range layers {
		if l.reason == "" && l.may[0] != "..." {
			t.Errorf("layer %s has no reason", l.pkg)
		}
	}
	if _, err := os.Stat("../../cmd/egressd"); err != nil {
		t.Error(err)
	}
}
