package acceptance

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/egressd/egressd/internal/testbed"
)

// Issue point 6, G07, G08: what a program under `egressd run` can see. Its environment, its
// arguments and its parent's, its open files, the files that it is pointed to: no secret.
// The parent's environment, which has them, and its memory are closed to it, though both
// run as the same user (one without privileges).
func TestAttack_G07_G08_run_child_sees_no_secret(t *testing.T) {
	ca := testbed.NewCA(t)
	token, user, password, pem := testbed.NewToken(), "user-"+testbed.NewToken(), testbed.NewCanary(), certSample(t, ca, ca)
	dir := openDir(t)
	config := filepath.Join(dir, "run.yaml")
	policy := filepath.Join(dir, "policy.yaml")
	child := copyFile(t, self(t), filepath.Join(dir, "child"), 0o755)
	for name, text := range map[string]string{
		config: "apiVersion: egressd/v1\nlog: {level: debug}\naudit: {file: " + filepath.Join(dir, "audit.jsonl") + "}\n",
		policy: strings.NewReplacer("static_headers", "h", "static_username_password", "b", "static_tls_client_certificate", "c", "TOKEN", "sha256:"+strings.Repeat("0", 64)).
			Replace(canaryPolicy),
	} {
		if err := os.WriteFile(name, []byte(text), 0o644); err != nil { // another user reads it
			t.Fatal(err)
		}
	}
	vars := map[string]string{
		"THE_TOKEN": token, "OTHER": password, "THE_USER": user, "THE_PASSWORD": password, "CERT": text(pem.fields, "certificatePem"), "KEY": text(pem.fields, "privateKeyPem"),
		"COPY": "a variable that quotes " + token, "JAVA_TOOL_OPTIONS": "-Dtoken=" + token,
	}
	env := []string{childMode + "=spill", "HARMLESS=stays"}
	for k, v := range vars {
		env = append(env, k+"="+v)
	}
	cmd := exec.Command(egressd, "run", "--config", config, "--policy", policy, "--sandbox", "one",
		"--source", "h.token=env:THE_TOKEN", "--source", "h.other=env:OTHER", "--source", "b.username=env:THE_USER", "--source", "b.password=env:THE_PASSWORD",
		"--source", "c.certificatePem=env:CERT", "--source", "c.privateKeyPem=env:KEY", "--source", "broken=env:OTHER", "--", child)
	if os.Geteuid() == 0 {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	}
	cmd.Dir = dir
	got := runCmd(cmd, "", append(env, "TMPDIR="+dir))
	if got.code != 0 || !strings.Contains(got.stdout, "HARMLESS=stays") || !strings.Contains(got.stdout, "HTTPS_PROXY=http://one:") {
		t.Fatalf("run: %s", got)
	}
	secrets := append([]string{token, user, password}, pem.leaves...)
	seen := got.stdout + got.stderr
	// A socket or a file of egressd's own would be a way around all that; what the machine
	// running the test leaves open is none of its.
	for line := range strings.Lines(got.stdout) {
		if strings.HasPrefix(line, "parent's ") && !strings.Contains(line, "refused") {
			t.Errorf("the program can read its %s", line)
		}
		var n int
		if _, err := fmt.Sscanf(line, "fd %d ->", &n); err == nil && n > 2 && (strings.Contains(line, "socket:") || strings.Contains(line, dir)) {
			t.Errorf("the program has an open file of its parent: %s", line)
		}
	}
	for name := range vars {
		if name != "JAVA_TOOL_OPTIONS" && strings.Contains(got.stdout, "\x00"+name+"=") {
			t.Errorf("the program has the variable %s", name)
		}
	}
	testbed.NoLeak(t, "what the program sees, or the log", []byte(seen), secrets...)
	left, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range left {
		if strings.HasPrefix(e.Name(), "egressd-run-") {
			t.Errorf("%s was left behind", e.Name())
		}
	}
}

// openDir is a temporary directory that another user may look into and write to.
func openDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "egressd-open-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	return dir
}

func copyFile(t *testing.T, from, to string, mode os.FileMode) string {
	t.Helper()
	in, err := os.Open(from)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = in.Close() }()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_WRONLY, mode)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(out, in); err != nil {
		t.Fatal(err)
	}
	if err := out.Close(); err != nil {
		t.Fatal(err)
	}
	return to
}
