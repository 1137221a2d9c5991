package sshbridge

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/egressd/egressd/policy"
)

// data is n random bytes in a file.
func data(t testing.TB, file string, n int) []byte {
	t.Helper()
	b := make([]byte, n)
	if _, err := rand.Read(b); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, b, 0o600); err != nil {
		t.Fatal(err)
	}
	return b
}

func sameFile(t testing.TB, file string, want []byte) {
	t.Helper()
	got, err := os.ReadFile(file)
	if err != nil {
		t.Error(err)
		return
	}
	if !bytes.Equal(got, want) {
		t.Errorf("%s has %d bytes, %x; want %d, %x", file, len(got), sha256.Sum256(got), len(want), sha256.Sum256(want))
	}
}

// TestOpenSSH drives what OpenSSH's clients do, against OpenSSH's server.
func TestOpenSSH(t *testing.T) {
	d := startSSHD(t)
	r := newRig(t, d)
	t.Run("exec and exit status", func(t *testing.T) {
		r.ssh("", host, "echo hello; exit 0").want(t, 0, "hello\n")
		r.ssh("", host, "exit 44").want(t, 44, "")
	})
	t.Run("a signal ends the command", func(t *testing.T) {
		g := r.ssh("", host, "kill -TERM $$")
		if g.status != 255 && g.status != 143 {
			t.Errorf("status %d", g.status)
		}
	})
	t.Run("stderr stays apart", func(t *testing.T) {
		g := r.ssh("", host, "echo out; echo err >&2")
		g.want(t, 0, "out\n")
		if g.stderr != "err\n" {
			t.Errorf("stderr %q", g.stderr)
		}
	})
	t.Run("half-close", func(t *testing.T) {
		in := strings.Repeat("0123456789abcdef", 1<<16)
		r.ssh(in, host, "cat").want(t, 0, in)
		r.ssh("x\n", host, "cat; echo after end of input").want(t, 0, "x\nafter end of input\n")
	})
	t.Run("shell without a terminal", func(t *testing.T) {
		r.ssh("echo one; exit 3\n", "-T", host).want(t, 3, "one\n")
	})
	t.Run("a client that reads no more", func(t *testing.T) {
		g := r.command("", "sh", "-c", tool(t, "ssh")+" -F "+r.config()+" "+host+" yes | head -n 1")
		g.want(t, 0, "y\n")
	})
	t.Run("a process in the background keeps no status back", func(t *testing.T) {
		start := time.Now()
		r.ssh("", host, "sleep 3 >/dev/null 2>&1 & exit 5").want(t, 5, "")
		if time.Since(start) > 2500*time.Millisecond {
			t.Errorf("took %v", time.Since(start))
		}
	})
	t.Run("keep-alives", func(t *testing.T) {
		r.ssh("", "-o", "ServerAliveInterval=1", "-o", "ServerAliveCountMax=1", host, "sleep 4; echo alive").want(t, 0, "alive\n")
	})
	t.Run("git protocol and locale pass, the rest of the environment does not", func(t *testing.T) {
		r.ssh("", "-o", "SetEnv=GIT_PROTOCOL=version=2 LC_TEST=yes EVIL=1 LD_PRELOAD=/x", host, "echo $GIT_PROTOCOL $LC_TEST $EVIL $LD_PRELOAD.").want(t, 0, "version=2 yes .\n")
	})
	t.Run("rekeying by the client", func(t *testing.T) {
		b := data(t, r.dir+"/in", 4<<20)
		g := r.command(string(b), "ssh", "-v", "-F", r.config(), "-o", "RekeyLimit=256k", host, "cat")
		if g.status != 0 || g.stdout != string(b) {
			t.Fatalf("status %d, %d bytes", g.status, len(g.stdout))
		}
		if n := strings.Count(g.stderr, "SSH2_MSG_NEWKEYS sent"); n < 8 {
			t.Errorf("%d key exchanges", n)
		}
	})
	t.Run("rekeying by the origin and by the bridge", func(t *testing.T) {
		d := startSSHD(t, "RekeyLimit 128k")
		r := newRig(t, d, func(r *rig) { r.options.RekeyBytes = 200 << 10 })
		b := data(t, r.dir+"/in", 4<<20)
		g := r.command(string(b), "ssh", "-v", "-F", r.config(), host, "cat")
		if g.status != 0 || g.stdout != string(b) {
			t.Fatalf("status %d, %d bytes", g.status, len(g.stdout))
		}
		if n := strings.Count(g.stderr, "SSH2_MSG_NEWKEYS sent"); n < 8 {
			t.Errorf("%d key exchanges with the bridge", n)
		}
	})
	t.Run("one connection per command, logged in once", func(t *testing.T) {
		r.mu.Lock()
		defer r.mu.Unlock()
		if r.opened < 10 {
			t.Errorf("Opened was called %d times", r.opened)
		}
	})
}

func TestOpenSSH_terminal(t *testing.T) {
	d := startSSHD(t)
	r := newRig(t, d)
	g := r.ssh("", "-tt", host, "tty >/dev/null && echo $TERM && stty size")
	if g.status != 0 || !strings.Contains(g.stdout, "0 0") {
		t.Errorf("%+v", g)
	}
	// With x/crypto's client, for a size and a change of it.
	s, err := r.client().NewSession()
	if err != nil {
		t.Fatal(err)
	}
	if err := s.RequestPty("xterm-256color", 40, 100, ssh.TerminalModes{ssh.ECHO: 0, ssh.TTY_OP_ISPEED: 38400}); err != nil {
		t.Fatal(err)
	}
	in, err := s.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	var out syncBuffer
	s.Stdout = &out
	if err := s.Shell(); err != nil {
		t.Fatal(err)
	}
	say := func(line, want string) {
		t.Helper()
		if _, err := fmt.Fprintln(in, line); err != nil {
			t.Fatal(err)
		}
		for range 500 {
			if strings.Contains(out.String(), want) {
				return
			}
			time.Sleep(20 * time.Millisecond)
		}
		t.Fatalf("no %q in %q", want, out.String())
	}
	say("stty size; echo $TERM", "40 100\r\nxterm-256color")
	if err := s.WindowChange(33, 77); err != nil {
		t.Fatal(err)
	}
	say("stty size", "33 77")
	say("trap 'echo got''int' INT; echo re''ady", "ready")
	say("\x03", "gotint") // the terminal's own, by its modes
	say("exit 7", "")
	if err := s.Wait(); err == nil || err.(*ssh.ExitError).ExitStatus() != 7 { //nolint:errorlint // what Wait gives
		t.Errorf("%v", err)
	}
	if got := r.requests(); len(got) != 2 || got[0].Kind != policy.SSHExec || got[1].Kind != policy.SSHShell {
		t.Errorf("policy was asked for %v", got)
	}
}

func TestOpenSSH_files(t *testing.T) {
	d := startSSHD(t)
	r := newRig(t, d)
	b := data(t, r.dir+"/in", 3<<20)
	conf := r.config()
	t.Run("sftp", func(t *testing.T) {
		batch := write(t, r.dir+"/batch", fmt.Sprintf("put %[1]s/in %[1]s/sftp.up\nget %[1]s/sftp.up %[1]s/sftp.down\nls %[1]s\n", r.dir))
		if g := r.command("", "sftp", "-F", conf, "-b", batch, host); g.status != 0 {
			t.Fatalf("%+v", g)
		}
		sameFile(t, r.dir+"/sftp.down", b)
		if q := r.requests(); q[len(q)-1] != (policy.SSHRequest{Kind: policy.SSHSubsystem, Text: "sftp"}) {
			t.Errorf("policy was asked for %v", q)
		}
	})
	for _, mode := range []string{"-s", "-O"} {
		t.Run("scp "+mode, func(t *testing.T) {
			out := r.dir + "/scp" + mode
			if g := r.command("", "scp", mode, "-F", conf, r.dir+"/in", host+":"+out+".up"); g.status != 0 {
				t.Fatalf("%+v", g)
			}
			if g := r.command("", "scp", mode, "-F", conf, host+":"+out+".up", out+".down"); g.status != 0 {
				t.Fatalf("%+v", g)
			}
			sameFile(t, out+".down", b)
		})
	}
	t.Run("rsync", func(t *testing.T) {
		e := tool(t, "ssh") + " -F " + conf
		if g := r.command("", "rsync", "-a", "-e", e, r.dir+"/in", host+":"+r.dir+"/rsync.up"); g.status != 0 {
			t.Fatalf("%+v", g)
		}
		if g := r.command("", "rsync", "-a", "-e", e, host+":"+r.dir+"/rsync.up", r.dir+"/rsync.down"); g.status != 0 {
			t.Fatalf("%+v", g)
		}
		sameFile(t, r.dir+"/rsync.down", b)
	})
	t.Run("large, both ways", func(t *testing.T) {
		big := data(t, r.dir+"/big", 48<<20)
		g := r.command(string(big), "ssh", "-F", conf, host, "tee "+r.dir+"/big.up")
		if g.status != 0 || g.stdout != string(big) {
			t.Errorf("status %d, %d bytes of %d came back", g.status, len(g.stdout), len(big))
		}
		sameFile(t, r.dir+"/big.up", big)
	})
}

func TestOpenSSH_git(t *testing.T) {
	d := startSSHD(t)
	r := newRig(t, d, func(r *rig) {
		r.options.Allow = func(q policy.SSHRequest) bool {
			return q.Kind == policy.SSHExec && (strings.HasPrefix(q.Text, "git-upload-pack '") || strings.HasPrefix(q.Text, "git-receive-pack '"))
		}
	})
	git := func(dir string, args ...string) {
		t.Helper()
		cmd := exec.CommandContext(t.Context(), tool(t, "git"), args...)
		cmd.Dir = dir
		cmd.Env = append(os.Environ(), "HOME="+r.dir, "GIT_SSH_COMMAND="+tool(t, "ssh")+" -F "+r.config(), "GIT_CONFIG_NOSYSTEM=1",
			"GIT_AUTHOR_NAME=a", "GIT_AUTHOR_EMAIL=a@a.test", "GIT_COMMITTER_NAME=a", "GIT_COMMITTER_EMAIL=a@a.test")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("git %v: %v\n%s", args, err, out)
		}
	}
	bare, one, two := r.dir+"/repo.git", r.dir+"/one", r.dir+"/two"
	git(r.dir, "init", "-q", "--bare", "-b", "main", bare)
	git(r.dir, "clone", "-q", "ssh://"+host+bare, one)
	b := data(t, one+"/blob", 1<<20)
	git(one, "checkout", "-q", "-b", "main")
	git(one, "add", "blob")
	git(one, "commit", "-q", "-m", "blob")
	git(one, "push", "-q", "origin", "main")
	git(r.dir, "clone", "-q", host+":"+bare, two)
	sameFile(t, filepath.Join(two, "blob"), b)
	if g := r.ssh("", host, "id"); g.status != 255 || g.stdout != "" {
		t.Errorf("a command that is not git's: %+v", g)
	}
}

func TestOpenSSH_channels(t *testing.T) {
	d := startSSHD(t, "MaxSessions 4")
	r := newRig(t, d)
	conf := r.config("ControlPath "+r.dir+"/ctl", "ControlPersist 20")
	g := r.command("", "ssh", "-F", conf, "-M", "-N", "-f", host)
	if g.status != 0 {
		t.Fatalf("%+v", g)
	}
	done := make(chan result, 3)
	for i := range 3 {
		go func() {
			done <- r.command("", "ssh", "-F", conf, host, fmt.Sprintf("sleep 0.5; echo %d; exit %d", i, i))
		}()
	}
	for range 3 {
		if g := <-done; len(g.stdout) != 2 || int(g.stdout[0]-'0') != g.status {
			t.Errorf("%+v", g)
		}
	}
	r.mu.Lock()
	if r.opened != 1 {
		t.Errorf("%d connections for three commands", r.opened)
	}
	r.mu.Unlock()
	if g := r.command("", "ssh", "-F", conf, "-O", "exit", host); g.status != 0 {
		t.Errorf("%+v", g)
	}
	if err := r.ended(); err != nil {
		t.Error(err)
	}

	t.Run("the origin's own limit reaches the client", func(t *testing.T) {
		c := r.client()
		for range 4 {
			s, err := c.NewSession()
			if err != nil {
				t.Fatal(err)
			}
			if err := s.Start("sleep 5"); err != nil {
				t.Fatal(err)
			}
		}
		_, err := c.NewSession()
		if refused, ok := err.(*ssh.OpenChannelError); !ok || refused.Reason != ssh.ConnectionFailed { //nolint:errorlint // what it gives
			t.Errorf("%v", err)
		}
	})
}

// TestOpenSSH_keys logs in upstream with each type of key, and at each type of host key.
func TestOpenSSH_keys(t *testing.T) {
	dir := t.TempDir()
	var authorized, config []string
	type kind struct{ name, file, pass string }
	var kinds []kind
	for name, args := range map[string][]string{
		"rsa": {"-t", "rsa", "-b", "2048"}, "ecdsa256": {"-t", "ecdsa", "-b", "256"}, "ecdsa384": {"-t", "ecdsa", "-b", "384"},
		"ecdsa521": {"-t", "ecdsa", "-b", "521"}, "ed25519": {"-t", "ed25519"}, "rsa in PEM": {"-t", "rsa", "-b", "2048", "-m", "PEM"},
	} {
		file := keygen(t, filepath.Join(dir, strings.ReplaceAll(name, " ", "_")), args...)
		authorized = append(authorized, publicLine(t, file))
		kinds = append(kinds, kind{name, file, ""})
		locked := filepath.Join(dir, "locked_"+filepath.Base(file))
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		write(t, locked, string(b))
		format := []string{"-q", "-p", "-f", locked, "-N", "fake-passphrase"}
		if name == "rsa in PEM" {
			format = append(format, "-m", "PEM")
		}
		run(t, "ssh-keygen", format...)
		kinds = append(kinds, kind{name + " with passphrase", locked, "fake-passphrase"})
	}
	for _, name := range []string{"rsa", "ecdsa256", "ecdsa384", "ecdsa521"} {
		config = append(config, "HostKey "+filepath.Join(dir, name))
	}
	// An origin of today takes no SHA-1.
	config = append(config, "PubkeyAcceptedAlgorithms ssh-ed25519,rsa-sha2-256,rsa-sha2-512,ecdsa-sha2-*", "HostKeyAlgorithms ssh-ed25519,rsa-sha2-512,ecdsa-sha2-*")
	d := startSSHD(t, config...)
	write(t, d.dir+"/authorized_keys", strings.Join(authorized, "\n")+"\n")
	for _, k := range kinds {
		t.Run("login "+k.name, func(t *testing.T) {
			r := newRig(t, d)
			r.use(r.login("root", parsePrivate(t, k.file, k.pass), host+" "+publicLine(t, d.hostKey)))
			r.ssh("", host, "echo in").want(t, 0, "in\n")
		})
	}
	for _, k := range kinds {
		if k.pass != "" || strings.Contains(k.name, "PEM") || k.name == "ed25519" {
			continue
		}
		t.Run("host key "+k.name, func(t *testing.T) {
			r := newRig(t, d)
			r.use(r.login("root", parsePrivate(t, k.file, ""), host+" "+publicLine(t, k.file)))
			r.ssh("", host, "echo in").want(t, 0, "in\n")
		})
	}
	for _, args := range [][]string{{"-t", "rsa", "-b", "2048"}, {"-t", "ecdsa"}} {
		t.Run("sandbox key "+args[1], func(t *testing.T) {
			r := newRig(t, d)
			r.clientKey = keygen(t, r.dir+"/other", args...)
			r.use(r.login("root", parsePrivate(t, filepath.Join(dir, "ed25519"), ""), host+" "+publicLine(t, d.hostKey)))
			r.ssh("", host, "echo in").want(t, 0, "in\n")
		})
	}
}
