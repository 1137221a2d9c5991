package acceptance

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/egressd/egressd/internal/testbed"
)

// Issue point 1: `make run`. Its program shows refused directly, answered through egressd,
// rotated on the same connection, read without the value; then it leaves the daemon running,
// and the lines that it offers to try next do what they say. Ctrl-C ends all of it.
func TestMakeRun(t *testing.T) {
	bin := filepath.Join(t.TempDir(), "demo")
	if out, err := exec.Command("go", "build", "-o", bin, "github.com/egressd/egressd/internal/demo").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	var out buffer
	cmd := exec.Command(bin, "-egressd", egressd)
	cmd.Env, cmd.Stdout, cmd.Stderr = plainEnv(), &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	gone := make(chan error, 1)
	go func() { gone <- cmd.Wait() }()
	t.Cleanup(func() { _ = cmd.Process.Kill() })
	if !waitFor(func() bool { return strings.Contains(string(out.since(0)), "Ctrl-C ends") }) {
		t.Fatalf("the demo does not come to its end:\n%s", out.since(0))
	}
	text := string(out.since(0))
	at := 0
	for _, want := range []string{ // in this order
		"401 Unauthorized", "source add", "200 OK", "source rotate", "200 OK", "went over the client's connection", "source get", "static_headers", "egressd is running",
	} {
		i := strings.Index(text[at:], want)
		if i < 0 {
			t.Fatalf("%q does not follow:\n%s", want, text)
		}
		at += i
	}

	addr := regexp.MustCompile(`export (EGRESSD_ADDR=unix:(\S+)/state/api\.sock)`).FindStringSubmatch(text)
	curls := regexp.MustCompile(`(?m)^ +curl (--cacert .*?)(?: +#.*)?$`).FindAllStringSubmatch(text, -1)
	if addr == nil || len(curls) != 2 {
		t.Fatalf("the lines to try are not there:\n%s", text)
	}
	curl := func(line string) ended {
		return runCmd(exec.Command(testbed.Tool(t, "curl"), append([]string{"-sS", "-i", "--max-time", "20"}, strings.Fields(line)...)...), "", nil)
	}
	try := func(stdin string, args ...string) {
		t.Helper()
		if got := command(stdin, []string{addr[1]}, args...); got.code != 0 {
			t.Errorf("egressd %q: %s", args, got)
		}
	}
	if got := curl(curls[0][1]); !strings.Contains(got.stdout, " 200") {
		t.Errorf("the offered curl: %s", got)
	}
	if got := curl(curls[1][1]); !strings.Contains(got.stdout, " 403") {
		t.Errorf("the curl to where no rule leads: %s", got)
	}
	try("wrong", "source", "rotate", "demo-api")
	if got := curl(curls[0][1]); !strings.Contains(got.stdout, " 401") {
		t.Errorf("with a wrong token: %s", got)
	}
	try("", "source", "disable", "demo-api")
	if got := curl(curls[0][1]); !strings.Contains(got.stdout, " 503") || !strings.Contains(got.stdout, "source_disabled") {
		t.Errorf("with the source disabled: %s", got)
	}
	try("", "policy", "explain", "--sandbox", "demo", "https://api.demo.test/")

	_ = cmd.Process.Signal(syscall.SIGINT)
	select {
	case err := <-gone:
		if err != nil {
			t.Errorf("after Ctrl-C: %v\n%s", err, out.since(0))
		}
	case <-time.After(20 * time.Second):
		t.Fatal("Ctrl-C does not end it")
	}
	if _, err := os.Stat(addr[2]); !os.IsNotExist(err) {
		t.Errorf("%s is still there (%v)", addr[2], err)
	}
}
