package testbed

import (
	"os/exec"
	"strings"
	"testing"
)

func TestToolsArePresent(t *testing.T) {
	for _, name := range []string{"git", "curl", "openssl", "python3", "strace"} {
		Tool(t, name)
	}
	out, err := exec.Command(Node(t), "-p", "process.versions.node.split('.')[0] >= 24").Output()
	if err != nil || strings.TrimSpace(string(out)) != "true" {
		t.Errorf("node: %s, %v", out, err)
	}
}
