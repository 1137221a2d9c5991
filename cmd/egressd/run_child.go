package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// Exit codes of a command that did not run, as shells have them.
const (
	exitNotExecutable = 126
	exitNotFound      = 127
)

// runChild runs args with our standard streams, in our process group, so that it stays
// in the terminal's foreground. It forwards signals and returns the child's exit code
// as a childExit. When ctx ends the child is told to end (SIGTERM).
func runChild(ctx context.Context, a *app, args, env []string) error {
	path, err := lookPath(args[0], env)
	if err != nil {
		return err
	}
	child := &exec.Cmd{Path: path, Args: args, Env: env, Stdin: a.stdin, Stdout: a.stdout, Stderr: a.stderr}
	signals, ignore := forwarded()
	defer ignore()
	if err := child.Start(); err != nil {
		return notStarted(args[0], err)
	}
	done := make(chan error, 1)
	go func() { done <- child.Wait() }()
	return supervise(ctx, child.Process, signals, done)
}

// forwarded gives the signals that are the child's too, until ignore is called.
func forwarded() (signals chan os.Signal, ignore func()) {
	signals = make(chan os.Signal, 16)
	signal.Notify(signals, unix.SIGINT, unix.SIGTERM, unix.SIGHUP, unix.SIGQUIT, unix.SIGUSR1, unix.SIGUSR2, unix.SIGWINCH)
	return signals, func() { signal.Stop(signals) }
}

// supervise stands by the child until done says that it has ended.
func supervise(ctx context.Context, child *os.Process, signals <-chan os.Signal, done <-chan error) error {
	for {
		select {
		case s := <-signals:
			if !fromTerminal(s) {
				_ = child.Signal(s) // it may have ended by now
			}
		case <-ctx.Done():
			_ = child.Signal(unix.SIGTERM)
			return ended(<-done)
		case err := <-done:
			return ended(err)
		}
	}
}

// fromTerminal says whether the terminal has sent s to the child already: its keys and
// its resizing go to every process of the foreground group, and the child is one of
// them. A second ^C means something else to many programs.
func fromTerminal(s os.Signal) bool {
	switch s {
	case unix.SIGINT, unix.SIGQUIT, unix.SIGWINCH:
	default:
		return false
	}
	tty, err := os.OpenFile("/dev/tty", os.O_RDONLY|unix.O_NOCTTY, 0)
	if err != nil {
		return false
	}
	defer func() { _ = tty.Close() }() // only asked
	group, err := unix.IoctlGetInt(int(tty.Fd()), unix.TIOCGPGRP)
	return err == nil && group == unix.Getpgrp()
}

func ended(err error) error {
	var e *exec.ExitError
	switch {
	case err == nil:
		return nil
	case !errors.As(err, &e):
		return usage("the command's streams failed: %w", err)
	}
	if w, ok := e.Sys().(syscall.WaitStatus); ok && w.Signaled() {
		return childExit(128 + int(w.Signal()))
	}
	return childExit(e.ExitCode())
}

// lookPath finds the command in the child's PATH.
func lookPath(name string, env []string) (string, error) {
	if strings.Contains(name, "/") {
		return name, nil
	}
	path := ""
	for _, kv := range env {
		if v, ok := strings.CutPrefix(kv, "PATH="); ok {
			path = v
		}
	}
	found := ""
	for _, dir := range filepath.SplitList(path) {
		if dir == "" {
			continue // the working directory is not searched
		}
		file := filepath.Join(dir, name)
		info, err := os.Stat(file)
		if err != nil || info.IsDir() {
			continue
		}
		if info.Mode()&0o111 != 0 {
			return file, nil
		}
		found = file
	}
	if found != "" {
		return "", notStarted(name, fs.ErrPermission)
	}
	return "", notStarted(name, fs.ErrNotExist)
}

func notStarted(name string, err error) error {
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fail(exitNotFound, "%s: command not found", name)
	case errors.Is(err, fs.ErrPermission):
		return fail(exitNotExecutable, "%s: permission denied: is it executable?", name)
	}
	return fail(exitNotExecutable, "%s cannot be run: %w", name, fmt.Errorf("%w", bareExec(err)))
}

func bareExec(err error) error {
	var p *fs.PathError
	if errors.As(err, &p) {
		return p.Err
	}
	return err
}
