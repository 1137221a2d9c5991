package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/egressd/egressd/api"
	"github.com/egressd/egressd/internal/config"
	"github.com/egressd/egressd/policy"
)

// Exit codes of every command but `run`, which gives its child's.
const (
	exitOK       = 0
	exitUsage    = 1 // wrong flag, file, configuration or policy
	exitAuth     = 2 // not authenticated or forbidden
	exitNetwork  = 3 // the daemon cannot be reached, an address cannot be listened on
	exitStore    = 5 // store, keys or state directory
	exitConflict = 6
	exitCheck    = 7 // a test or check failed
)

// failed is an error with its exit code. Its text is one line that says what is wrong
// and what to do.
type failed struct {
	code     int
	err      error  // nil: everything was said already
	envelope []byte // the API's own answer, for --json
	api      *api.ErrorBody
}

func (f *failed) Error() string {
	if f.err == nil {
		return fmt.Sprintf("exit code %d", f.code)
	}
	return f.err.Error()
}

func (f *failed) Unwrap() error { return f.err }

func fail(code int, format string, args ...any) error {
	return &failed{code: code, err: fmt.Errorf(format, args...)}
}

func usage(format string, args ...any) error { return fail(exitUsage, format, args...) }

// childExit carries the exit code of `run`'s child; nothing is printed for it.
type childExit int

func (c childExit) Error() string { return fmt.Sprintf("child ended with %d", int(c)) }

// app is one invocation of the program.
type app struct {
	stdin          io.Reader
	stdout, stderr io.Writer
	environ        []string
	json           bool
}

func (a *app) env(name string) string {
	v, _ := a.lookupEnv(name)
	return v
}

// lookupEnv takes the last entry, as exec does.
func (a *app) lookupEnv(name string) (value string, ok bool) {
	for _, kv := range a.environ {
		if v, is := strings.CutPrefix(kv, name+"="); is {
			value, ok = v, true
		}
	}
	return value, ok
}

func (a *app) root() *cobra.Command {
	root := &cobra.Command{
		Use:   "egressd",
		Short: "A forward egress proxy that puts credentials into outbound traffic",
		Long: `egressd lets a sandbox call APIs with credentials that it never holds.

  egressd serve                      the daemon: proxy, policy, store, management API
  egressd run --inject HOST=VAR -- CMD   one command behind a proxy of its own, no daemon
  egressd source add NAME            keep a secret as a source, write-only
  egressd policy check --policy DIR  what is wrong with a policy, before it is in force

Exit codes: 0 ok, 1 usage or validation, 2 not authenticated or forbidden, 3 network,
4 rejected by a provider, 5 store, 6 conflict, 7 a check failed.`,
		SilenceErrors: true, SilenceUsage: true,
		Args: cobra.ArbitraryArgs,
		RunE: group,
	}
	root.CompletionOptions.HiddenDefaultCmd = false
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		text := oneLine(err.Error())
		if before, after, ok := strings.Cut(text, ": strconv."); ok { // Go's own words: "ParseUint: parsing \"x\": why"
			if i := strings.LastIndex(after, ": "); i >= 0 {
				text = before + after[i:]
			}
		}
		return usage("%s; see `%s --help`", text, cmd.CommandPath())
	})
	root.PersistentFlags().BoolVar(&a.json, "json", false, "print the API's JSON envelope")
	root.AddCommand(a.serveCmd(), a.runCmd(), a.sourceCmd(), a.policyCmd(), a.tokenCmd(),
		a.connectionsCmd(), a.caCmd(), a.configCmd(), a.doctorCmd(), a.redirectCmd(), a.versionCmd())
	root.AddCommand(a.selftestCmd(), isolateInitCmd())
	addLater(root)
	return root
}

// group is the RunE of a command that only holds others.
func group(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return cmd.Help()
	}
	hint := ""
	cmd.SuggestionsMinimumDistance = 2
	if s := cmd.SuggestionsFor(args[0]); len(s) > 0 {
		hint = fmt.Sprintf(" (did you mean %s?)", strings.Join(s, " or "))
	}
	return usage("unknown command %q for %q%s; see `%s --help`", args[0], cmd.CommandPath(), hint, cmd.CommandPath())
}

// exactly is an Args check whose message names what is missing.
func exactly(names ...string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		switch {
		case len(args) < len(names):
			return usage("%s is missing; usage: %s", names[len(args)], cmd.UseLine())
		case len(args) > len(names):
			return usage("%q is one argument too many; usage: %s", args[len(names)], cmd.UseLine())
		}
		return nil
	}
}

// finish prints err in one line and gives the exit code.
func (a *app) finish(err error) int {
	var child childExit
	switch {
	case err == nil:
		return exitOK
	case errors.As(err, &child):
		return int(child)
	}
	f := &failed{code: exitUsage, err: err}
	errors.As(err, &f)
	if a.json && f.err != nil {
		a.printEnvelope(f)
	}
	for _, line := range linesOf(f) {
		a.notef("egressd: %s\n", oneLine(line))
	}
	return f.code
}

// linesOf is one line, or one for each problem of a file.
func linesOf(f *failed) []string {
	var inConfig config.Problems
	var inPolicy policy.Problems
	switch {
	case f.err == nil:
		return nil
	case errors.As(f.err, &inConfig), errors.As(f.err, &inPolicy):
		return strings.Split(f.err.Error(), "\n")
	}
	return []string{f.err.Error()}
}

func (a *app) printEnvelope(f *failed) {
	if f.envelope != nil {
		_, _ = a.stdout.Write(append(f.envelope, '\n')) // a reader that went away
		return
	}
	codes := map[int]api.Code{exitAuth: api.CodeUnauthorized, exitNetwork: api.CodeUnavailable, exitStore: api.CodeUnavailable, exitConflict: api.CodeConflict, exitCheck: api.CodeUnprocessable}
	code, ok := codes[f.code]
	if !ok {
		code = api.CodeBadRequest
	}
	a.writeJSON(map[string]any{"success": false, "error": api.ErrorBody{Code: code, Message: oneLine(f.Error())}})
}

// printData prints data in the API's envelope.
func (a *app) printData(data any) { a.writeJSON(map[string]any{"success": true, "data": data}) }

func (a *app) writeJSON(v any) {
	enc := json.NewEncoder(a.stdout)
	enc.SetIndent("", "  ")
	enc.SetEscapeHTML(false)
	_ = enc.Encode(v) // types of our own; a reader that went away
}

// printf writes to stdout. A reader that went away is not worth an exit code.
func (a *app) printf(format string, args ...any) { _, _ = fmt.Fprintf(a.stdout, format, args...) }

// notef writes to stderr.
func (a *app) notef(format string, args ...any) { _, _ = fmt.Fprintf(a.stderr, format, args...) }

func (a *app) warn(format string, args ...any) {
	a.notef("egressd: warning: %s\n", oneLine(fmt.Sprintf(format, args...)))
}

// terminal is stdin as a terminal, nil when it is none.
func (a *app) terminal() *os.File {
	f, ok := a.stdin.(*os.File)
	if !ok || !term.IsTerminal(int(f.Fd())) {
		return nil
	}
	return f
}

// oneLine folds what a library wrote over several lines.
func oneLine(s string) string { return strings.Join(strings.Fields(strings.TrimSpace(s)), " ") }
