package main

import (
	"context"
	"errors"
	"os/exec"
	"runtime"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/egressd/egressd/internal/isolate"
	"github.com/egressd/egressd/proxy"
)

// isolated is the namespace of the command, and the process that is to become it.
type isolated struct {
	app  *app
	ns   *isolate.Namespace
	cmd  *exec.Cmd
	done chan error    // what Wait gave
	gone chan struct{} // closed after it
}

// isolateInitCmd is what egressd runs itself as: see isolate.Init.
func isolateInitCmd() *cobra.Command {
	return &cobra.Command{
		Use: isolate.Argument, Hidden: true, DisableFlagParsing: true, Args: exactly(),
		RunE: func(*cobra.Command, []string) error {
			if err := isolate.Init(); err != nil {
				return usage("%w", err)
			}
			return nil
		},
	}
}

// isolate makes the command's network, if it is to have one of its own.
func (s *session) isolate(ctx context.Context) error {
	if !s.flags.isolate {
		return nil
	}
	i := &isolated{app: s.app, done: make(chan error, 1), gone: make(chan struct{})}
	ns, err := isolate.Start(ctx, isolate.Options{Start: i.start, KeepSockets: s.flags.keepSockets})
	if err != nil {
		if i.cmd != nil && i.cmd.Process != nil {
			<-i.gone // the init ends when nobody talks to it
		}
		return usage("--isolate: %w", err)
	}
	i.ns = ns
	s.in.isolated = i
	s.onClose(i.close)
	return nil
}

// start starts the init from a thread that waits for it: the kernel ends the child with the
// thread that started it.
func (i *isolated) start(p isolate.Program) error {
	i.cmd = &exec.Cmd{
		Path: p.Path, Args: p.Args, Env: []string{}, ExtraFiles: p.Files, SysProcAttr: p.Attr,
		Stdin: i.app.stdin, Stdout: i.app.stdout, Stderr: i.app.stderr,
	}
	started := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := i.cmd.Start()
		started <- err
		if err == nil {
			i.done <- i.cmd.Wait()
			close(i.gone)
		}
	}()
	return <-started
}

// close ends an init that has become nothing, and waits for it.
func (i *isolated) close() {
	i.ns.Close()
	<-i.gone
}

// become runs args in the namespace, as runChild does outside of it.
func (i *isolated) become(ctx context.Context, args, env []string) error {
	path, err := lookPath(args[0], env)
	if err != nil {
		return err
	}
	signals, ignore := forwarded()
	defer ignore()
	err = i.ns.Exec(ctx, isolate.Command{Path: path, Args: args, Env: env})
	var x *isolate.ExecError
	switch {
	case errors.As(err, &x):
		return notStarted(args[0], x.Err)
	case err != nil:
		return usage("--isolate: %w", err)
	}
	return supervise(ctx, i.cmd.Process, signals, i.done)
}

// serveIsolated has the data plane take all that comes out of the namespace. It is the
// sandbox's, whatever its addresses say.
func (s *session) serveIsolated(ctx context.Context, g *errgroup.Group) {
	ns := s.in.isolated.ns
	mine := proxy.Transparent{Kind: proxy.Redirect, Sandbox: s.sandbox.ID, Token: s.token}
	for _, ln := range ns.Redirect {
		g.Go(func() error { return s.plane.proxy.ServeTransparent(ctx, ln, mine) })
	}
	for n, pc := range ns.DNS {
		g.Go(func() error { return s.plane.proxy.ServeDNS(ctx, pc, ns.DNSTCP[n], mine) })
	}
}
