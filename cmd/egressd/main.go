// Command egressd is a forward egress proxy that puts credentials into outbound
// traffic, its management API, and the command line to both.
//
// The package is the only one that knows all others. serve.go lists what the daemon is
// made of and in which order it starts; run.go does the same for one child process;
// the other files are one command each.
package main

import (
	"context"
	"io"
	"os"
)

func main() {
	os.Exit(Run(context.Background(), os.Args[1:], os.Stdin, os.Stdout, os.Stderr, os.Environ()))
}

// Run is the whole program: it runs the command that args name and returns its exit
// code. ctx ends a daemon as SIGTERM does. Tests call it.
func Run(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer, environ []string) int {
	a := &app{stdin: stdin, stdout: stdout, stderr: stderr, environ: environ}
	root := a.root()
	root.SetArgs(args)
	root.SetIn(stdin)
	root.SetOut(stdout)
	root.SetErr(stderr)
	return a.finish(root.ExecuteContext(ctx))
}
