package main

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// terminal is a pseudo-terminal and what was written to it.
type terminal struct {
	master *os.File
	mu     sync.Mutex
	text   bytes.Buffer
	done   chan struct{}
}

// onTerminal starts a program as the foreground of a terminal of its own.
func onTerminal(t *testing.T, cmd *exec.Cmd) *terminal {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(int(master.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	slave, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = slave, slave, slave
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true, Ctty: 0}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	_ = slave.Close()
	tt := &terminal{master: master, done: make(chan struct{})}
	go func() {
		defer close(tt.done)
		b := make([]byte, 4096)
		for {
			n, err := master.Read(b)
			tt.mu.Lock()
			tt.text.Write(b[:n])
			tt.mu.Unlock()
			if err != nil {
				return // EIO: the program has ended
			}
		}
	}()
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = master.Close()
		<-tt.done
	})
	return tt
}

func (tt *terminal) shown() string {
	tt.mu.Lock()
	defer tt.mu.Unlock()
	return tt.text.String()
}

func (tt *terminal) wait(t *testing.T, text string) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !strings.Contains(tt.shown(), text); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%q was not shown in %q", text, tt.shown())
		}
	}
}

func (tt *terminal) enter(t *testing.T, text string) {
	t.Helper()
	if _, err := io.WriteString(tt.master, text); err != nil {
		t.Fatal(err)
	}
}

// What is typed at a prompt for a secret is not shown.
func TestPromptDoesNotEcho(t *testing.T) {
	d := startDaemon(t, "")
	cmd := d.command("source", "add", "typed")
	tt := onTerminal(t, cmd)
	tt.wait(t, "token (not shown): ")
	time.Sleep(50 * time.Millisecond) // the prompt is out before the echo is off
	tt.enter(t, "fake-typed-secret\n")
	tt.wait(t, "typed added")
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	if strings.Contains(tt.shown(), "fake-typed") {
		t.Errorf("the secret was shown: %q", tt.shown())
	}
}

// ^C reaches the command once: the terminal sends it to both of us.
func TestRunInterruptFromTerminalComesOnce(t *testing.T) {
	cmd := egressd("run", "-q", "--allow", "good.test", "--", "sh", "-c", `n=0; trap 'n=$((n+1)); echo int $n' INT; echo begun; for i in 1 2 3 4 5 6; do sleep 0.1; done; echo total $n`)
	tt := onTerminal(t, cmd)
	tt.wait(t, "begun")
	tt.enter(t, "\x03")
	tt.wait(t, "int 1")
	if err := cmd.Wait(); err != nil {
		t.Fatalf("%v: %q", err, tt.shown())
	}
	tt.wait(t, "total 1")
}
