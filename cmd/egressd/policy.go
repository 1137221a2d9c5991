package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/egressd/egressd/api"
	"github.com/egressd/egressd/inject"
	"github.com/egressd/egressd/internal/config"
	"github.com/egressd/egressd/internal/netguard"
	"github.com/egressd/egressd/policy"
	"github.com/egressd/egressd/source"
)

func (a *app) policyCmd() *cobra.Command {
	var d dialFlags
	cmd := &cobra.Command{
		Use: "policy", Short: "What may leave, and with which credential", Args: cobra.ArbitraryArgs, RunE: group,
		Long: `check, explain and show work without a daemon when --config or --policy says where
the policy is; without either they ask the daemon about the policy in force.
A policy that does not compile is exit code 1, each problem on a line of its own.`,
	}
	d.register(cmd.PersistentFlags())
	cmd.AddCommand(d.alias(a.policyCheck(&d)), d.alias(a.policyExplain(&d)), d.alias(a.policyShow(&d)), d.alias(a.policyReload(&d)))
	return cmd
}

// offline are the flags that make a command work on files.
type offline struct{ policy string }

func (o *offline) register(cmd *cobra.Command) {
	cmd.Flags().StringVar(&o.policy, "policy", "", "policy file or directory to work on instead of the daemon's")
}

// used says whether files were named.
func (o *offline) used(d *dialFlags) bool { return o.policy != "" || d.config != "" }

// compile loads what was named, without sources: a binding's kind is not known offline.
func (o *offline) compile(a *app, d *dialFlags) (*policy.Set, []policy.Warning, *config.Loaded, error) {
	cfg, err := config.Load(config.Input{File: d.config, Env: a.environ})
	if err != nil {
		return nil, nil, nil, err
	}
	path := o.policy
	if path == "" {
		if err := cfg.CheckPolicyDir(); err != nil {
			return nil, nil, nil, usage("%w", err)
		}
		path = cfg.Policy.Dir
	}
	set, warnings, err := loadPath(path)
	if err == nil {
		_, err = inject.Compile(set, unresolved{}, func(string, string) (string, bool) { return "", false })
	}
	return set, warnings, cfg, err
}

// unresolved is the resolver of a policy that is only looked at.
type unresolved struct{}

func (unresolved) Resolve(context.Context, source.Ref) (*source.Material, error) {
	return nil, source.ErrUnavailable
}

// loadPath compiles a directory or a single file.
func loadPath(path string) (*policy.Set, []policy.Warning, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, nil, usage("policy: %w", fileError(path, err))
	}
	if info.IsDir() {
		return policy.LoadDir(path)
	}
	data, err := readSmall(path)
	if err != nil {
		return nil, nil, usage("policy: %w", fileError(path, err))
	}
	return policy.Compile([]policy.File{{Name: path, Data: data}})
}

func (a *app) policyCheck(d *dialFlags) *cobra.Command {
	var o offline
	cmd := &cobra.Command{
		Use: "check [PATH]", Short: "Say everything that is wrong with a policy", Args: cobra.MaximumNArgs(1),
		Long: `Offline with a PATH, --policy or --config. With --addr too, or with --remote, the
files are checked by the daemon, which knows the sources that bindings name.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 1 {
				o.policy = args[0]
			}
			if !o.used(d) {
				return usage("say which policy: `egressd policy check PATH`, --policy or --config (`egressd policy show` tells of the one in force)")
			}
			if remote, _ := cmd.Flags().GetBool("remote"); remote || d.addr != "" {
				return a.checkRemote(cmd.Context(), &o, d)
			}
			set, warnings, _, err := o.compile(a, d)
			if err != nil && !isProblems(err) {
				return err
			}
			return a.reported(report(set, warnings, err), set)
		},
	}
	cmd.Flags().Bool("remote", false, "let the daemon check, against its sources")
	o.register(cmd)
	return cmd
}

func isProblems(err error) bool {
	var ps policy.Problems
	return errors.As(err, &ps)
}

// reported prints a report; problems are exit code 1.
func (a *app) reported(r api.PolicyReport, set *policy.Set) error {
	if a.json {
		if r.Problems == nil {
			r.Problems = []api.Problem{}
		}
		a.printData(r)
	} else {
		for _, w := range r.Warnings {
			a.warn("%s", problemLine(w))
		}
		for _, p := range r.Problems {
			a.notef("%s\n", problemLine(p))
		}
	}
	if !r.OK {
		return &failed{code: exitUsage}
	}
	if !a.json {
		a.printf("policy is good (%s)", r.Hash)
		if set != nil {
			a.printf(": %s, %s", count(len(set.Sandboxes()), "sandbox", "sandboxes"), count(len(set.CredentialRules()), "credential rule", "credential rules"))
		}
		a.printf("\n")
	}
	return nil
}

func count(n int, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %s", n, many)
}

func (a *app) checkRemote(ctx context.Context, o *offline, d *dialFlags) error {
	path := o.policy
	if path == "" {
		cfg, err := config.Load(config.Input{File: d.config, Env: a.environ})
		if err != nil {
			return err
		}
		path = cfg.Policy.Dir
	}
	names := []string{path}
	if info, err := os.Stat(path); err == nil && info.IsDir() {
		if names, err = filepath.Glob(filepath.Join(path, "*.yaml")); err != nil || len(names) == 0 {
			return usage("policy: no *.yaml in %s", path)
		}
	}
	var body api.PolicyCheck
	for _, name := range names {
		data, err := readSmall(name)
		if err != nil {
			return usage("policy: %w", fileError(name, err))
		}
		body.Files = append(body.Files, api.PolicyFile{Name: name, Content: string(data)})
	}
	c, err := a.client(*d)
	if err != nil {
		return err
	}
	res, err := c.do(ctx, http.MethodPost, "/policies/check", body)
	if err != nil {
		return err
	}
	var r api.PolicyReport
	if err := res.into(&r); err != nil {
		return err
	}
	return a.reported(r, nil)
}

func (a *app) policyExplain(d *dialFlags) *cobra.Command {
	var o offline
	var headers []string
	var r api.ExplainRequest
	cmd := &cobra.Command{
		Use: "explain --sandbox ID URL", Short: "Trace one decision, rule by rule", Args: exactly("URL"),
		Long: `The URL's scheme says what is spoken: https://, ssh://, rediss://, postgres:// and so
on; tcp://host:port is a connection of no protocol that egressd knows. With ssh://,
--exec, --subsystem, --shell and --forwarding ask for one thing inside the connection.
No credential is resolved and nothing is dialled; a name is looked up only where a rule
with cidrs decides.`,
		Example: `  egressd policy explain --config configs/egressd.yaml --sandbox agent-7 -X POST https://api.github.com/user
  egressd policy explain --sandbox agent-7 ssh://git@github.com --exec "git-upload-pack 'acme/x.git'"
  egressd policy explain --sandbox agent-7 rediss://cache.example.com:6380`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if r.Sandbox == "" {
				return usage("--sandbox is missing: say for which sandbox; `egressd policy show` lists them")
			}
			r.URL, r.Headers = args[0], map[string]string{}
			for _, h := range headers {
				name, value, ok := strings.Cut(h, ":")
				if !ok {
					return usage("--header wants `Name: value`")
				}
				r.Headers[strings.TrimSpace(name)] = strings.TrimSpace(value)
			}
			if cmd.Flags().Changed("exec") && r.Exec == "" || cmd.Flags().Changed("subsystem") && r.Subsystem == "" {
				return usage("--exec and --subsystem want what is asked for; a shell is --shell")
			}
			if o.used(d) {
				return a.explainOffline(cmd.Context(), &o, d, r)
			}
			c, err := a.client(*d)
			if err != nil {
				return err
			}
			res, err := c.do(cmd.Context(), http.MethodPost, "/policies/explain", r)
			if err != nil || a.json {
				return a.rawOr(res, missing(err, "there is no sandbox %q in the policy in force; `egressd policy show` lists them", r.Sandbox))
			}
			var out api.ExplainResult
			if err := res.into(&out); err != nil {
				return err
			}
			a.printExplanation(r, out)
			return nil
		},
	}
	cmd.Flags().StringVar(&r.Sandbox, "sandbox", "", "sandbox that would send the request")
	cmd.Flags().StringVarP(&r.Method, "method", "X", "", "its method (default GET)")
	cmd.Flags().StringArrayVarP(&headers, "header", "H", nil, "one of its headers (repeated)")
	cmd.Flags().StringVar(&r.Protocol, "protocol", "", explainable+"; default: by the URL's scheme")
	cmd.Flags().StringVar(&r.Exec, "exec", "", "ssh: run this command line")
	cmd.Flags().StringVar(&r.Subsystem, "subsystem", "", "ssh: begin this subsystem, such as sftp")
	cmd.Flags().BoolVar(&r.Shell, "shell", false, "ssh: begin a shell")
	cmd.Flags().BoolVar(&r.Forwarding, "forwarding", false, "ssh: open a forwarded connection (-L, -W, -J)")
	o.register(cmd)
	return cmd
}

func (a *app) explainOffline(ctx context.Context, o *offline, d *dialFlags, r api.ExplainRequest) error {
	set, _, cfg, err := o.compile(a, d)
	if err != nil {
		return err
	}
	sb := set.Sandbox(r.Sandbox)
	if sb == nil {
		var ids []string
		for _, s := range set.Sandboxes() {
			ids = append(ids, s.ID)
		}
		return usage("there is no sandbox %q; there are: %s", r.Sandbox, strings.Join(ids, ", "))
	}
	guard, err := netguard.New(netguard.Options{Hosts: cfg.Upstream.Hosts, Resolvers: cfg.Upstream.Resolvers, AllowCIDRs: cfg.Upstream.AllowCIDRs})
	if err != nil {
		return usage("%w", err)
	}
	defer guard.Close()
	out, err := explain(ctx, set, sb, r, guardLookup(guard))
	var bad *api.ExplainError
	if errors.As(err, &bad) {
		return usage("%s", strings.Join(fieldLines(bad.Fields), "; "))
	}
	if err != nil {
		return err
	}
	if a.json {
		a.printData(out)
		return nil
	}
	a.printExplanation(r, out)
	return nil
}

func guardLookup(g *netguard.Guard) func(context.Context, string) ([]netip.Addr, error) {
	return g.Lookup
}

func (a *app) printExplanation(r api.ExplainRequest, out api.ExplainResult) {
	rows := [][]string{}
	for _, s := range out.Steps {
		mark, where := "-", ""
		if s.Matched {
			mark = "+"
		}
		if s.File != "" {
			where = fmt.Sprintf("%s:%d", s.File, s.Line)
		}
		rows = append(rows, []string{mark, s.Stage, s.Rule, s.Detail, where})
	}
	a.table(rows)
	a.printf("%s: %s by %s\n", out.Action, asked(r), r.Sandbox)
	for _, c := range []*api.ExplainCredential{out.Credential, out.ClientCert} {
		if c != nil {
			a.printf("credential: rule %s projects %s of source %s (%s:%d)\n", c.Rule, c.Projection, c.Source, c.File, c.Line)
		}
	}
}

// asked says in a line what is explained.
func asked(r api.ExplainRequest) string {
	sp, _ := spokenIn(schemeOf(r.URL), r.Protocol)
	switch {
	case sp.http && r.Method == "":
		return http.MethodGet + " " + r.URL
	case sp.http:
		return r.Method + " " + r.URL
	case r.Exec != "":
		return "exec " + strconv.Quote(r.Exec) + " at " + r.URL
	case r.Subsystem != "":
		return "subsystem " + strconv.Quote(r.Subsystem) + " at " + r.URL
	case r.Shell:
		return "a shell at " + r.URL
	case r.Forwarding:
		return "forwarding at " + r.URL
	}
	return "a connection to " + r.URL
}

func schemeOf(text string) string {
	scheme, _, _ := strings.Cut(text, "://")
	return scheme
}

func (a *app) policyShow(d *dialFlags) *cobra.Command {
	var o offline
	cmd := &cobra.Command{
		Use: "show", Short: "Show the policy in force, or that of --policy or --config", Args: exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if o.used(d) {
				set, warnings, _, err := o.compile(a, d)
				if err != nil {
					return err
				}
				v := viewOf(set, api.AllTeams)
				v.Warnings = warningsOf(warnings)
				return a.shownPolicy(v)
			}
			c, err := a.client(*d)
			if err != nil {
				return err
			}
			res, err := c.do(cmd.Context(), http.MethodGet, "/policies", nil)
			if err != nil || a.json {
				return a.rawOr(res, err)
			}
			var v api.PolicyView
			if err := res.into(&v); err != nil {
				return err
			}
			return a.shownPolicy(v)
		},
	}
	o.register(cmd)
	return cmd
}

func (a *app) shownPolicy(v api.PolicyView) error {
	if a.json {
		v.Sandboxes, v.Problems, v.Warnings = orEmpty(v.Sandboxes), orEmpty(v.Problems), orEmpty(v.Warnings)
		a.printData(v)
		return nil
	}
	for _, p := range v.Problems {
		a.warn("not in force: %s", problemLine(p))
	}
	rows := [][]string{{"SANDBOX", "TEAM", "TEMPLATE"}}
	for _, s := range v.Sandboxes {
		rows = append(rows, []string{s.ID, s.Team, s.Template})
	}
	slices.SortFunc(rows[1:], func(x, y []string) int { return strings.Compare(x[0], y[0]) })
	a.table(rows)
	a.printf("policy %s", v.Hash)
	if !v.LoadedAt.IsZero() {
		a.printf(", in force since %s", stamp(&v.LoadedAt))
	}
	a.printf("\n")
	return nil
}

func orEmpty[T any](s []T) []T {
	if s == nil {
		return []T{}
	}
	return s
}

func (a *app) policyReload(d *dialFlags) *cobra.Command {
	return &cobra.Command{
		Use: "reload", Short: "Let the daemon read its policy directory again", Args: exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.client(*d)
			if err != nil {
				return err
			}
			res, err := c.do(cmd.Context(), http.MethodPost, "/policies/reload", nil)
			if err != nil || a.json {
				return a.rawOr(res, err)
			}
			var r api.PolicyReport
			if err := res.into(&r); err != nil {
				return err
			}
			return a.reported(r, nil)
		},
	}
}
