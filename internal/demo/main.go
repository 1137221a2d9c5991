// Command demo shows egressd at work (`make run`): a real origin that demands a bearer
// token, the daemon, and a client that has no token. It drives the built binary as an
// operator would, and leaves the daemon running with what to try next.
//
// With DEMO_EXIT=1 it ends after its steps; its exit code says whether all of them came
// out as they should.
package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
)

func main() {
	bin := flag.String("egressd", "bin/egressd", "the egressd binary to show")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Stdout, *bin, os.Getenv("DEMO_EXIT") == ""); err != nil {
		_, _ = fmt.Fprintln(os.Stderr, "demo:", err)
		stop()
		os.Exit(1)
	}
}

// run does the steps and, if stay, waits for ctx. Everything it started is gone when it
// returns.
func run(ctx context.Context, out io.Writer, bin string, stay bool) (err error) {
	bin, err = filepath.Abs(bin)
	if err != nil {
		return err
	}
	if _, err := os.Stat(bin); err != nil {
		return fmt.Errorf("%s is not there: run `make build`", bin)
	}
	dir, err := os.MkdirTemp("", "egressd-demo-")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(dir) }()

	origin, err := startOrigin()
	if err != nil {
		return err
	}
	defer origin.close()
	d, err := startDaemon(ctx, bin, dir, origin)
	if err != nil {
		return err
	}
	defer d.stop()

	s := &show{out: out, daemon: d, origin: origin}
	defer s.close()
	if err := s.steps(ctx); err != nil {
		return fmt.Errorf("%w\n%s", err, d.tail())
	}
	if !stay {
		return nil
	}
	s.next()
	select {
	case <-ctx.Done():
		_, _ = fmt.Fprintln(out, "\nended.")
		return nil
	case <-d.gone:
		return fmt.Errorf("the daemon ended by itself\n%s", d.tail())
	}
}
