package acceptance

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// egressd is the binary under test. TestMain sets it before the first test.
var egressd string

// childMode says what this test binary is to be when a test runs it as a sandbox's program.
const childMode = "ACCEPTANCE_CHILD"

func TestMain(m *testing.M) {
	if mode := os.Getenv(childMode); mode != "" {
		os.Exit(child(mode, os.Args[1:]))
	}
	dir, err := os.MkdirTemp("", "egressd-acceptance-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	code := 1
	if err := build(dir); err != nil {
		fmt.Fprintln(os.Stderr, err)
	} else {
		code = m.Run()
	}
	_ = os.RemoveAll(dir)
	os.Exit(code)
}

// build makes the binary as the Makefile does, and with the race detector when the tests
// have it.
func build(dir string) error {
	// Another user must be able to run it (see TestAttack_G07_G08_run_child_sees_no_secret).
	if err := os.Chmod(dir, 0o755); err != nil {
		return err
	}
	egressd = filepath.Join(dir, "egressd")
	args := []string{"build", "-tags", "netgo", "-o", egressd}
	if raceOn {
		args = append(args, "-race")
	}
	cmd := exec.Command("go", append(args, "github.com/egressd/egressd/cmd/egressd")...)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("go %v: %w\n%s", cmd.Args[1:], err, out)
	}
	return nil
}
