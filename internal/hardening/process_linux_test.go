package hardening

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// roleEnv makes the test binary be the process that is hardened.
const roleEnv = "EGRESSD_TEST_HARDENED"

func TestMain(m *testing.M) {
	role := os.Getenv(roleEnv)
	if role == "" {
		os.Exit(m.Run())
	}
	if err := play(role); err != nil {
		fmt.Println(err)
		os.Exit(3)
	}
	fmt.Println("ready")
	_, _ = fmt.Scanln() // until the test has looked at us
	os.Exit(0)
}

func play(role string) error {
	if os.Getuid() == 0 { // root may read everything: be somebody else
		if err := errors.Join(syscall.Setgroups(nil), syscall.Setgid(nobody), syscall.Setuid(nobody)); err != nil {
			return err
		}
	}
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 1, 0, 0, 0); err != nil { // as after exec
		return err
	}
	if role == "plain" {
		return nil
	}
	if err := HardenProcess(); err != nil {
		return err
	}
	if n, err := RaiseFileLimit(); err != nil || n == 0 {
		return fmt.Errorf("limit %d: %w", n, err)
	}
	dumpable, _ := unix.PrctlRetInt(unix.PR_GET_DUMPABLE, 0, 0, 0, 0)
	var core, files unix.Rlimit
	_ = unix.Getrlimit(unix.RLIMIT_CORE, &core)
	_ = unix.Getrlimit(unix.RLIMIT_NOFILE, &files)
	child, err := exec.Command("/bin/sh", "-c", "ls /proc/self/fd >/dev/null && echo child ok").CombinedOutput()
	fmt.Printf("dumpable %d core %d files %v %s %v; ", dumpable, core.Cur, files.Cur == files.Max, bytes.TrimSpace(child), err)
	return nil
}

func TestAttack_G07_process_memory(t *testing.T) {
	out, err := lookAt(t, "hardened")
	if err == nil {
		t.Error("its memory can be opened by a process of the same user")
	}
	if want := "dumpable 0 core 0 files true child ok <nil>; ready"; !strings.HasPrefix(out, want) {
		t.Errorf("process says %q, want %q", out, want)
	}
	// Says whether this machine would have let us in at all; some sandboxes never do.
	if _, err := lookAt(t, "plain"); err != nil {
		t.Logf("without hardening: %v", err)
	}
}

// lookAt starts a process in a role and opens its memory as the user it runs as.
func lookAt(t *testing.T, role string) (said string, opened error) {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), roleEnv+"="+role)
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	said, _ = bufio.NewReader(stdout).ReadString('\n')
	opened = asNobody(func() error { return tryOpen(fmt.Sprintf("/proc/%d/mem", cmd.Process.Pid)) })
	_ = stdin.Close()
	if err := cmd.Wait(); err != nil {
		t.Fatalf("%v: %s", err, said)
	}
	return said, opened
}

const nobody = 65534

func tryOpen(file string) error {
	f, err := os.Open(file)
	if err == nil {
		_ = f.Close()
	}
	return err
}

// asNobody runs f on a thread that has become nobody, if the test is run by root; the
// thread ends with it.
func asNobody(f func() error) error {
	if os.Getuid() != 0 {
		return f()
	}
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread is not fit for anything else
		// The raw calls change this thread alone.
		if _, _, e := syscall.RawSyscall(syscall.SYS_SETRESGID, nobody, nobody, nobody); e != 0 {
			done <- nil
			return
		}
		if _, _, e := syscall.RawSyscall(syscall.SYS_SETRESUID, nobody, nobody, nobody); e != 0 {
			done <- nil
			return
		}
		done <- f()
	}()
	return <-done
}
