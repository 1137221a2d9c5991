package main

import (
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// `make run` tells the truth: every step checks its own outcome, and the transcript has
// each of them.
func TestDemo(t *testing.T) {
	bin := filepath.Join(t.TempDir(), "egressd")
	if out, err := exec.Command("go", "build", "-tags", "netgo", "-o", bin, "../../cmd/egressd").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	var out strings.Builder
	if err := run(t.Context(), &out, bin, false); err != nil {
		t.Fatalf("%v\n%s", err, out.String())
	}
	for _, want := range []string{"401 Unauthorized", "no bearer token came", "200 OK", "source rotate demo-api", "both requests went over", "static_headers"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("%q is not in the transcript:\n%s", want, out.String())
		}
	}
}
