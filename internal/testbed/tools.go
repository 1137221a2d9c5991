package testbed

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// Tool is the path of a program that a test drives. One that `make deps` put into
// .tools/bin goes before the system's. A missing one fails the test.
func Tool(t testing.TB, name string) string {
	t.Helper()
	root := ModuleRoot(t)
	if local := filepath.Join(root, ".tools", "bin", name); executable(local) {
		return local
	}
	path, err := exec.LookPath(name)
	if err != nil {
		t.Fatalf("testbed: %s is needed: run `make deps`", name)
	}
	return path
}

// Node is a Node.js that honours NODE_USE_ENV_PROXY (24 or later), as `make deps` installs it.
func Node(t testing.TB) string {
	t.Helper()
	path := filepath.Join(ModuleRoot(t), ".tools", "bin", "node")
	if !executable(path) {
		t.Fatal("testbed: .tools/bin/node is needed: run `make deps`")
	}
	return path
}

// ModuleRoot is the directory that holds go.mod.
func ModuleRoot(t testing.TB) string {
	t.Helper()
	dir, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir
		}
		up := filepath.Dir(dir)
		if up == dir {
			t.Fatal("testbed: no go.mod above the working directory")
		}
		dir = up
	}
}

func executable(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.Mode().IsRegular() && info.Mode()&0o111 != 0
}
