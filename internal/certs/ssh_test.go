package certs

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/crypto/ssh"
)

func sshKeygen(t *testing.T, args ...string) string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "ssh-keygen", args...).CombinedOutput()
	if err != nil {
		t.Fatalf("ssh-keygen %v: %v: %s", args, err, out)
	}
	return string(out)
}

func TestAttack_E12_host_key_is_persistent(t *testing.T) {
	dir := t.TempDir()
	ca, host := filepath.Join(dir, "state", "ssh_ca"), filepath.Join(dir, "state", "ssh_host")
	first, err := LoadOrCreateSSH(ca, host)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range []string{ca, host} {
		if st, err := os.Stat(f); err != nil || st.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v %v", f, st.Mode(), err)
		}
	}
	second, err := LoadOrCreateSSH(ca, host)
	if err != nil {
		t.Fatal(err)
	}
	if first.KnownHostsLine() != second.KnownHostsLine() || first.HostKeyLine() != second.HostKeyLine() {
		t.Error("a restart changed the keys")
	}
	if first.Fingerprint() == "" || !strings.Contains(sshKeygen(t, "-l", "-f", ca), first.Fingerprint()) {
		t.Error("ssh-keygen reads another key from the CA's file")
	}
	other, err := NewEphemeralSSH()
	if err != nil || other.KnownHostsLine() == first.KnownHostsLine() {
		t.Errorf("two authorities with one CA, %v", err)
	}
}

func TestSSHAuthority_files(t *testing.T) {
	fresh := func(t *testing.T) (ca, host string) {
		dir := t.TempDir()
		ca, host = filepath.Join(dir, "ca"), filepath.Join(dir, "host")
		if _, err := LoadOrCreateSSH(ca, host); err != nil {
			t.Fatal(err)
		}
		return ca, host
	}
	for name, tt := range map[string]struct {
		harm func(t *testing.T, ca, host string)
		want string // "" when it works
	}{
		"the host key alone is made anew": {func(t *testing.T, _, host string) { remove(t, host) }, ""},
		"a CA that is gone":               {func(t *testing.T, ca, _ string) { remove(t, ca) }, "put the ca key back"},
		"readable by others":              {func(t *testing.T, ca, _ string) { chmod(t, ca, 0o640) }, "chmod 600"},
		"garbage":                         {func(t *testing.T, _, host string) { write(t, host, "fake-garbage") }, "cannot be read"},
		"a passphrase": {func(t *testing.T, _, host string) {
			sshKeygen(t, "-q", "-p", "-f", host, "-P", "", "-N", "fake-passphrase")
		}, "has a passphrase"},
		"one key for both": {func(t *testing.T, ca, host string) {
			b, err := os.ReadFile(ca)
			if err != nil {
				t.Fatal(err)
			}
			write(t, host, string(b))
		}, "same key"},
		"short RSA": {func(t *testing.T, _, host string) {
			remove(t, host)
			sshKeygen(t, "-q", "-t", "rsa", "-b", "1024", "-N", "", "-f", host)
		}, "too short"},
		"RSA of the operator": {func(t *testing.T, _, host string) {
			remove(t, host)
			sshKeygen(t, "-q", "-t", "rsa", "-b", "2048", "-N", "", "-f", host)
		}, ""},
		"ECDSA of the operator as CA": {func(t *testing.T, ca, _ string) {
			remove(t, ca)
			sshKeygen(t, "-q", "-t", "ecdsa", "-N", "", "-f", ca)
		}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			ca, host := fresh(t)
			tt.harm(t, ca, host)
			a, err := LoadOrCreateSSH(ca, host)
			if tt.want != "" {
				if err == nil || !strings.Contains(err.Error(), tt.want) || strings.Contains(err.Error(), "fake-garbage") {
					t.Fatalf("error %v, want one with %q", err, tt.want)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			checkSigners(t, a, "good.test")
		})
	}
}

func remove(t *testing.T, f string) {
	t.Helper()
	if err := os.Remove(f); err != nil {
		t.Fatal(err)
	}
}

func chmod(t *testing.T, f string, mode os.FileMode) {
	t.Helper()
	if err := os.Chmod(f, mode); err != nil {
		t.Fatal(err)
	}
}

func write(t *testing.T, f, text string) {
	t.Helper()
	if err := os.WriteFile(f, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// checkSigners has the certificate checked as a client does, and by ssh-keygen.
func checkSigners(t *testing.T, a *SSHAuthority, host string) *ssh.Certificate {
	t.Helper()
	signers, err := a.HostSigners(host, 22)
	if err != nil || len(signers) != 2 {
		t.Fatalf("%d signers, %v", len(signers), err)
	}
	cert, ok := signers[0].PublicKey().(*ssh.Certificate)
	if !ok {
		t.Fatalf("the first signer has a %T", signers[0].PublicKey())
	}
	_, _, ca, _, _, err := ssh.ParseKnownHosts([]byte(a.KnownHostsLine()))
	if err != nil {
		t.Fatal(err)
	}
	checker := ssh.CertChecker{IsHostAuthority: func(k ssh.PublicKey, _ string) bool { return bytes.Equal(k.Marshal(), ca.Marshal()) }, Clock: time.Now}
	if err := checker.CheckHostKey(net.JoinHostPort(host, "22"), nil, cert); err != nil {
		t.Error(err)
	}
	if err := checker.CheckHostKey("other.test:22", nil, cert); err == nil {
		t.Error("the certificate is good for another host")
	}
	if cert.Signature.Format == ssh.KeyAlgoRSA {
		t.Error("signed with SHA-1")
	}
	return cert
}

func TestSSHAuthority_certificates(t *testing.T) {
	a, err := NewEphemeralSSH()
	if err != nil {
		t.Fatal(err)
	}
	for _, host := range []string{"good.test", "192.0.2.7", "2001:db8::1"} {
		cert := checkSigners(t, a, host)
		if len(cert.ValidPrincipals) != 1 || cert.ValidPrincipals[0] != host || cert.CertType != ssh.HostCert {
			t.Errorf("%s: %v, type %d", host, cert.ValidPrincipals, cert.CertType)
		}
	}
	for _, host := range []string{"", "*", "a b", "a,b", "a\nb", "::ffff:192.0.2.1"} {
		if s, err := a.HostSigners(host, 22); !errors.Is(err, ErrBadHost) || s != nil {
			t.Errorf("HostSigners(%q) = %v, %v", host, s, err)
		}
	}
	file := filepath.Join(t.TempDir(), "cert.pub")
	s, err := a.HostSigners("good.test", 2222)
	if err != nil {
		t.Fatal(err)
	}
	write(t, file, string(ssh.MarshalAuthorizedKey(s[0].PublicKey())))
	out := sshKeygen(t, "-L", "-f", file)
	for _, want := range []string{"host certificate", "good.test", "Signing CA: ED25519 " + a.Fingerprint()} {
		if !strings.Contains(out, want) {
			t.Errorf("ssh-keygen -L has no %q:\n%s", want, out)
		}
	}
	if !strings.HasPrefix(a.KnownHostsLine(), "@cert-authority * ssh-ed25519 AAAA") || !strings.HasPrefix(a.HostKeyLine(), "* ssh-ed25519 AAAA") {
		t.Errorf("%s\n%s", a.KnownHostsLine(), a.HostKeyLine())
	}
}

func TestSSHAuthority_clock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, err := NewEphemeralSSH()
		if err != nil {
			t.Fatal(err)
		}
		first := checkSigners(t, a, "good.test")
		time.Sleep(17 * time.Hour)
		if again := checkSigners(t, a, "good.test"); again != first {
			t.Error("minted anew too early")
		}
		time.Sleep(2 * time.Hour)
		if again := checkSigners(t, a, "good.test"); again == first {
			t.Error("not minted anew with a quarter of its life left")
		}
	})
}

func TestSSHAuthority_concurrent(t *testing.T) {
	dir := t.TempDir()
	ca, host := filepath.Join(dir, "ca"), filepath.Join(dir, "host")
	lines := make([]string, 16)
	var wg sync.WaitGroup
	for i := range lines {
		wg.Go(func() {
			a, err := LoadOrCreateSSH(ca, host)
			if err != nil {
				t.Error(err)
				return
			}
			if _, err := a.HostSigners(fmt.Sprintf("h%d.test", i%3), 22); err != nil {
				t.Error(err)
			}
			lines[i] = a.KnownHostsLine() + a.HostKeyLine()
		})
	}
	wg.Wait()
	for _, l := range lines {
		if l != lines[0] {
			t.Fatal("processes that start at once have different keys")
		}
	}
	if left, err := filepath.Glob(filepath.Join(dir, "*.new-*")); err != nil || len(left) != 0 {
		t.Errorf("temporary files are left: %v %v", left, err)
	}
}
