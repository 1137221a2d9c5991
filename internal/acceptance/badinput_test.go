package acceptance

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/egressd/egressd/internal/testbed"
)

// mishap is one thing that is wrong with an installation, for a user without privileges.
type mishap struct {
	name string
	harm func(d *daemon) // before the start
	args []string        // instead of serve
	code int
	says []string
}

// deny makes a file one that nobody but root reads.
func deny(name string) func(d *daemon) {
	return func(d *daemon) {
		d.t.Helper()
		if err := os.Chmod(d.path(name), 0); err != nil {
			d.t.Fatal(err)
		}
	}
}

func mishaps() []mishap {
	return []mishap{
		{"config unreadable", deny("egressd.yaml"), nil, 1, []string{"egressd.yaml", "permission denied"}},
		{"policy file unreadable", deny("policy/policy.yaml"), nil, 1, []string{"policy.yaml", "permission denied"}},
		{"policy directory unreadable", deny("policy"), nil, 1, []string{"policy", "permission denied"}},
		{"sealing key unreadable", deny("state/keys/seal.key"), nil, 5, []string{"seal.key", "permission denied"}},
		{"CA key unreadable", deny("state/ca.key"), nil, 5, []string{"ca.key", "permission denied"}},
		{"store unreadable", deny("state/store.db"), nil, 5, []string{"store.db"}},
		{"audit log unwritable", deny("state/audit.jsonl"), nil, 5, []string{"audit.jsonl", "permission denied", "--audit-file"}},
		{"extra CA unreadable", deny("origins.pem"), nil, 1, []string{"origins.pem", "permission denied"}},
		{"state directory unreadable", deny("state"), nil, 5, []string{"state"}},
		{"sealing key lost", func(d *daemon) { remove(d, "state/keys/seal.key") }, nil, 5, []string{"seal.key"}},
		{"sealing key of another", func(d *daemon) { d.write("state/keys/seal.key", "not a key\n") }, nil, 5, []string{"seal.key"}},
		{"CA key lost", func(d *daemon) { remove(d, "state/ca.key") }, nil, 5, []string{"ca.key"}},
		{"store cut off", func(d *daemon) { cut(d, "state/store.db") }, nil, 5, []string{"store.db"}},
		{"config is binary", func(d *daemon) { d.write("egressd.yaml", "\x00\xff\xfe") }, nil, 1, []string{"egressd.yaml"}},
		{"secret unreadable", deny("origins.pem"), []string{"source", "add", "x", "--token-file", "origins.pem"}, 1, []string{"--token-file", "origins.pem", "permission denied"}},
		{"state of somebody else", nil, []string{"serve", "--state-dir", "/root"}, 5, []string{"/root", "--state-dir"}},
		{"state where nothing may be made", nil, []string{"serve", "--state-dir", "/proc/egressd"}, 5, []string{"/proc/egressd", "--state-dir"}},
		{"socket's path too long", nil, []string{"serve", "--api-socket", "/tmp/" + strings.Repeat("x", 120)}, 1, []string{"--api-socket", "shorter"}},
		{"socket elsewhere and not allowed", nil, []string{"serve", "--api-socket", "/proc/api.sock"}, 3, []string{"/proc/api.sock"}},
	}
}

// Issue point 9: bad input that only an unprivileged user or an installation that has lived
// meets (the scripts of cmd/egressd have the rest): one line that says what is wrong, with
// the exit code of its kind, and no panic.
func TestBadInputOfUnprivilegedUser(t *testing.T) {
	ca := testbed.NewCA(t)
	for _, m := range mishaps() {
		t.Run(m.name, func(t *testing.T) {
			d := install(t, settings{ca: ca, hosts: map[string]string{}, policy: rotationPolicy})
			d.start()
			d.stop()
			give(t, d.dir)
			if m.harm != nil {
				m.harm(d)
			}
			args := m.args
			if args == nil || args[0] == "serve" {
				args = append([]string{"serve", "--config", d.path("egressd.yaml")}, args[min(1, len(args)):]...)
			}
			cmd := exec.Command(egressd, args...)
			cmd.Dir = d.dir
			cmd.SysProcAttr = nobody()
			got := runCmd(cmd, "", nil)
			_ = os.Chmod(d.path("state"), 0o700) // so that it can be removed
			line := strings.TrimSuffix(got.stderr, "\n")
			if got.code != m.code || !strings.HasPrefix(line, "egressd: ") || strings.Contains(line, "\n") || got.stdout != "" {
				t.Errorf("want one line and exit code %d, got %s", m.code, got)
			}
			for _, s := range m.says {
				if !strings.Contains(line, s) {
					t.Errorf("the line does not say %q: %s", s, line)
				}
			}
		})
	}
}

// nobody is who the program runs as when the test is root's; else it is the test's user.
func nobody() *syscall.SysProcAttr {
	if os.Geteuid() != 0 {
		return nil
	}
	return &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
}

// give makes all below dir nobody's.
func give(t *testing.T, dir string) {
	t.Helper()
	if os.Geteuid() != 0 {
		return
	}
	err := filepath.WalkDir(dir, func(path string, _ os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return os.Lchown(path, 65534, 65534)
	})
	if err != nil {
		t.Fatal(err)
	}
}

func remove(d *daemon, name string) {
	d.t.Helper()
	if err := os.Remove(d.path(name)); err != nil {
		d.t.Fatal(err)
	}
}

// cut takes the second half of a file away.
func cut(d *daemon, name string) {
	d.t.Helper()
	info, err := os.Stat(d.path(name))
	if err == nil {
		err = os.Truncate(d.path(name), info.Size()/2)
	}
	if err != nil {
		d.t.Fatal(fmt.Errorf("cut: %w", err))
	}
}
