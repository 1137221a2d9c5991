package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/egressd/egressd/api"
	"github.com/egressd/egressd/inject"
	"github.com/egressd/egressd/internal/certs"
	"github.com/egressd/egressd/internal/config"
	"github.com/egressd/egressd/policy"
	"github.com/egressd/egressd/store"
	"github.com/egressd/egressd/store/sqlite"
)

// finding is the outcome of one check.
type finding struct {
	Check  string `json:"check"`
	Status string `json:"status"` // ok | warn | fail
	Detail string `json:"detail"`
}

func fine(format string, args ...any) finding {
	return finding{Status: "ok", Detail: fmt.Sprintf(format, args...)}
}
func doubtful(format string, args ...any) finding {
	return finding{Status: "warn", Detail: fmt.Sprintf(format, args...)}
}
func broken(format string, args ...any) finding {
	return finding{Status: "fail", Detail: oneLine(fmt.Sprintf(format, args...))}
}

func (a *app) doctorCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use: "doctor", Short: "Look for what is wrong with an installation, and say what to do", Args: exactly(),
		Long: `Checks the environment, the state directory, keys, store, policy, CAs, trust, the clock,
whether the daemon answers, and whether there are rules where it listens for redirected
connections. It changes nothing. Exit code 7 when a check failed.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := a.loadConfig(cmd.Flags())
			if err != nil {
				return err
			}
			d := &doctor{app: a, cfg: &cfg.Config}
			defer d.close()
			return a.diagnosed(d.examine(cmd.Context()))
		},
	}
	addConfigFlags(cmd.Flags())
	return cmd
}

func (a *app) diagnosed(list []finding) error {
	failures := 0
	for _, f := range list {
		if f.Status == "fail" {
			failures++
		}
	}
	if a.json {
		a.printData(map[string]any{"ok": failures == 0, "checks": list})
	} else {
		rows := [][]string{}
		for _, f := range list {
			rows = append(rows, []string{f.Status, f.Check, f.Detail})
		}
		a.table(rows)
	}
	if failures == 0 {
		return nil
	}
	err := fail(exitCheck, "%s failed", count(failures, "check", "checks"))
	if a.json {
		return &failed{code: exitCheck}
	}
	return err
}

// doctor looks at one installation. What one check opened later ones use.
type doctor struct {
	app    *app
	cfg    *config.Config
	sealer store.Sealer
	opener store.Opener
	db     *sqlite.DB
	alive  bool
	teams  []string // of the policy's sandboxes, and the default one
}

func (d *doctor) close() {
	if d.db != nil {
		_ = d.db.Close() // only read
	}
}

func (d *doctor) examine(ctx context.Context) []finding {
	checks := []struct {
		name string
		run  func(context.Context) finding
	}{
		{"environment", d.environment},
		{"clock", d.clock},
		{"daemon", d.daemon},
		{"state directory", d.state},
		{"sealing key", d.keys},
		{"store", d.openStore},
		{"policy", d.policy},
		{"sources", d.sources},
		{"interception CA", d.ca},
		{"SSH CA", d.sshCA},
		{"upstream trust", d.trust},
		{"proxy", d.proxy},
		{"transparent", d.transparent},
		{"DNS", d.dns},
		{"ops", d.ops},
		{"audit log", d.audit},
	}
	out := make([]finding, 0, len(checks))
	for _, c := range checks {
		f := c.run(ctx)
		f.Check = c.name
		out = append(out, f)
	}
	return out
}

func (d *doctor) environment(context.Context) finding {
	warnings, err := checkEnvironment(d.app.environ)
	switch {
	case err != nil:
		return broken("%v", err)
	case len(warnings) > 0:
		return doubtful("%s", strings.Join(warnings, "; "))
	}
	if unknown := config.UnknownEnv(d.app.environ); len(unknown) > 0 {
		return doubtful("no key has this variable: %s", strings.Join(unknown, ", "))
	}
	return fine("nothing that is not followed")
}

// clock compares with what was written down earlier: certificates and TLS need a clock
// that is about right.
func (d *doctor) clock(context.Context) finding {
	now := time.Now()
	newest := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	for _, name := range []string{d.cfg.StorePath(), d.cfg.AuditFile()} {
		if info, err := os.Stat(name); err == nil && info.ModTime().After(newest) {
			newest = info.ModTime()
		}
	}
	if now.Before(newest.Add(-time.Minute)) {
		return broken("it is %s, but files were written at %s: set the clock", now.UTC().Format(time.RFC3339), newest.UTC().Format(time.RFC3339))
	}
	return fine("%s", now.UTC().Format(time.RFC3339))
}

func (d *doctor) daemon(ctx context.Context) finding {
	c, err := d.app.client(dialFlags{addr: "unix:" + d.cfg.SocketPath()})
	if err != nil {
		return broken("%v", err)
	}
	res, err := c.do(ctx, http.MethodGet, "/version", nil)
	if err != nil {
		return broken("%v", err)
	}
	var v struct{ Version string }
	if err := res.into(&v); err != nil {
		return broken("%v", err)
	}
	d.alive = true
	return fine("version %s answers on %s", v.Version, d.cfg.SocketPath())
}

func (d *doctor) state(context.Context) finding {
	info, err := os.Stat(d.cfg.StateDir)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return doubtful("%s does not exist yet: `egressd serve` makes it", d.cfg.StateDir)
	case err != nil:
		return broken("%v", fileError(d.cfg.StateDir, err))
	case info.Mode().Perm()&0o077 != 0:
		return broken("%s is open to others (mode %04o): chmod 700 %s", d.cfg.StateDir, info.Mode().Perm(), d.cfg.StateDir)
	}
	return fine("%s", d.cfg.StateDir)
}

func (d *doctor) keys(context.Context) (f finding) {
	paths := keyPaths(d.cfg)
	if _, err := os.Stat(paths.Seal); errors.Is(err, fs.ErrNotExist) {
		if _, err := os.Stat(d.cfg.StorePath()); err == nil {
			return broken("%s is missing but there is a store: restore it from backup, no source opens without it", paths.Seal)
		}
		return doubtful("%s does not exist yet: `egressd serve` makes it", paths.Seal)
	}
	var err error
	if d.opener, err = paths.LoadOpener(); err != nil {
		return broken("%v", err)
	}
	if d.sealer, err = paths.LoadSealer(); err != nil {
		return broken("%v", err)
	}
	return fine("%s", paths.Seal)
}

func (d *doctor) openStore(ctx context.Context) (f finding) {
	path := d.cfg.StorePath()
	if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
		return doubtful("%s does not exist yet: `egressd serve` makes it", path)
	}
	if d.sealer == nil {
		return broken("cannot be looked at without its key")
	}
	db, err := sqlite.Open(ctx, path, d.sealer, sqlite.Options{IntegrityTime: 30 * time.Second})
	if err != nil {
		return broken("%v", err)
	}
	d.db = db
	return fine("%s", path)
}

// sources opens every current version, as the data plane would.
func (d *doctor) sources(ctx context.Context) finding {
	if d.db == nil {
		return doubtful("not looked at: there is no store")
	}
	var list []store.Meta
	for _, team := range d.teams {
		of, err := d.db.List(ctx, team)
		if err != nil {
			return broken("%v", err)
		}
		list = append(list, of...)
	}
	var bad, weak []string
	for _, m := range list {
		sealed, err := d.db.Get(ctx, m.Team, m.Name, 0)
		if err == nil {
			var spec []byte
			spec, err = d.opener.Open(sealed)
			clear(spec)
		}
		switch {
		case err != nil:
			bad = append(bad, m.Name)
		case m.Health != "ok" || (!m.ExpiresAt.IsZero() && time.Until(m.ExpiresAt) < certs.RenewBefore):
			weak = append(weak, m.Name)
		}
	}
	switch {
	case len(bad) > 0:
		return broken("cannot be opened: %s: restore the store from backup, or write them anew with `egressd source set`", strings.Join(bad, ", "))
	case len(weak) > 0:
		return doubtful("`egressd source get` says more about %s", strings.Join(weak, ", "))
	}
	return fine("%s", count(len(list), "source opens", "sources open"))
}

func (d *doctor) policy(ctx context.Context) finding {
	d.teams = []string{api.DefaultTeam}
	if err := d.cfg.CheckPolicyDir(); err != nil {
		return broken("%v", err)
	}
	set, warnings, err := policy.LoadDir(d.cfg.Policy.Dir)
	d.teams = teamsOf(set)
	if err == nil {
		_, err = inject.Compile(set, unresolved{}, func(team, name string) (string, bool) {
			if d.db == nil {
				return "", false
			}
			m, err := d.db.Meta(ctx, team, name)
			return m.Kind, err == nil
		})
	}
	switch {
	case err != nil:
		return broken("%v: `egressd policy check %s` lists it all", firstLine(err), d.cfg.Policy.Dir)
	case len(set.Sandboxes()) == 0:
		return doubtful("%s has no sandbox: every request is refused", d.cfg.Policy.Dir)
	case len(warnings) > 0:
		return doubtful("%s: `egressd policy check %s` lists them", count(len(warnings), "warning", "warnings"), d.cfg.Policy.Dir)
	}
	for _, r := range set.CredentialRules() {
		if d.db == nil {
			break
		}
		if _, err := d.db.Meta(ctx, r.Team, r.Binding.SourceRef); errors.Is(err, store.ErrNotFound) {
			team := ""
			if r.Team != api.DefaultTeam {
				team = " --for-team " + r.Team
			}
			return doubtful("%s:%d binds source %s, which does not exist: `egressd source add %s%s`", r.Binding.File, r.Binding.Line, r.Binding.SourceRef, r.Binding.SourceRef, team)
		}
	}
	return fine("%s, %s", count(len(set.Sandboxes()), "sandbox", "sandboxes"), count(len(set.CredentialRules()), "credential rule", "credential rules"))
}

func teamsOf(set *policy.Set) []string {
	teams := []string{api.DefaultTeam}
	for _, sb := range set.Sandboxes() {
		if !slices.Contains(teams, sb.Team) {
			teams = append(teams, sb.Team)
		}
	}
	return teams
}

func firstLine(err error) string {
	line, _, _ := strings.Cut(err.Error(), "\n")
	return line
}

func (d *doctor) ca(context.Context) finding {
	cert, key := d.cfg.CAFiles()
	if _, err := os.Stat(cert); errors.Is(err, fs.ErrNotExist) {
		return doubtful("%s does not exist yet: `egressd serve` makes it", cert)
	}
	ca, err := certs.Load(cert, key, certs.Options{LeafTTL: d.cfg.Intercept.LeafTTL})
	if err != nil {
		return broken("%v", err)
	}
	left := time.Until(ca.NotAfter())
	if left < certs.RenewBefore {
		return doubtful("%s ends on %s: make a new one and give it to the sandboxes", cert, ca.NotAfter().UTC().Format(time.DateOnly))
	}
	return fine("%s, until %s", cert, ca.NotAfter().UTC().Format(time.DateOnly))
}

func (d *doctor) trust(context.Context) finding {
	if _, err := certs.SystemPool(d.cfg.Upstream.ExtraCAFiles); err != nil {
		return broken("%v", err)
	}
	if _, err := certs.LoadCRLs(d.cfg.Upstream.CRLFiles); err != nil {
		return broken("upstream.crlFiles: %v", err)
	}
	return fine("the system's roots and %s", count(len(d.cfg.Upstream.ExtraCAFiles), "extra file", "extra files"))
}

func (d *doctor) proxy(ctx context.Context) finding {
	switch {
	case d.cfg.Listen.Proxy == "":
		return fine("none configured")
	case !d.alive:
		return doubtful("not looked at: the daemon does not answer")
	case anyPort(d.cfg.Listen.Proxy):
		return doubtful("not looked at: %s is any port", d.cfg.Listen.Proxy)
	}
	return d.accepts(ctx, d.cfg.Listen.Proxy)
}

func anyPort(addr string) bool { return strings.HasSuffix(addr, ":0") }

func (d *doctor) ops(ctx context.Context) finding {
	switch {
	case d.cfg.Listen.Ops == "":
		return fine("none configured")
	case !d.alive:
		return doubtful("not looked at: the daemon does not answer")
	case anyPort(d.cfg.Listen.Ops):
		return doubtful("not looked at: %s is any port", d.cfg.Listen.Ops)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+d.cfg.Listen.Ops+"/readyz", nil)
	if err != nil {
		return broken("%v", err)
	}
	c := http.Client{Timeout: 2 * time.Second, Transport: &http.Transport{Proxy: nil, DisableKeepAlives: true}, CheckRedirect: refuseRedirect}
	resp, err := c.Do(req)
	if err != nil {
		return broken("%s does not answer: does the daemon run with this configuration?", d.cfg.Listen.Ops)
	}
	_ = resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return broken("/readyz answers %d: the daemon's log says why", resp.StatusCode)
	}
	return fine("%s is ready", d.cfg.Listen.Ops)
}

// audit looks whether the log could be written, without writing.
func (d *doctor) audit(context.Context) finding {
	name := d.cfg.AuditFile()
	info, err := os.Stat(name)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		if _, err := os.Stat(filepath.Dir(name)); err != nil && name != filepath.Join(d.cfg.StateDir, "audit.jsonl") {
			return broken("%s does not exist: make it, or set --audit-file", filepath.Dir(name))
		}
		return fine("%s, not begun yet", name)
	case err != nil:
		return broken("%v", fileError(name, err))
	case info.Mode().Perm()&0o077 != 0 && info.Mode().IsRegular():
		return doubtful("%s can be read by others (mode %04o): chmod 600 %s", name, info.Mode().Perm(), name)
	}
	return fine("%s, %d KiB", name, info.Size()>>10)
}
