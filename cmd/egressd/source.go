package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/egressd/egressd/api"
)

func (a *app) sourceCmd() *cobra.Command {
	var d dialFlags
	cmd := &cobra.Command{
		Use: "source", Short: "Sources hold secrets, write-only", Args: cobra.ArbitraryArgs, RunE: group,
		Long: `A source holds secret material. What is written never comes back: source get shows
everything about a source but its value.

A secret comes from a prompt without echo, stdin, --token-env, --token-file or
--set key=@FILE; --token VALUE works and warns.`,
	}
	d.register(cmd.PersistentFlags())
	cmd.AddCommand(a.sourceAdd(&d), a.sourceSet(&d), a.sourceRotate(&d),
		d.alias(a.sourceList(&d)), d.alias(a.sourceGet(&d)), d.alias(a.sourceDelete(&d)), d.alias(a.sourceKinds(&d)),
		d.alias(a.sourceStatus(&d, "enable", "active", "Let a disabled source be used again")),
		d.alias(a.sourceStatus(&d, "disable", "disabled", "Kill switch: the next request that needs the source fails")))
	return cmd
}

// metaFlags are what is readable about a source.
type metaFlags struct {
	description  string
	labels       []string
	destinations []string
	expires      string
	cmd          *cobra.Command
}

func (m *metaFlags) register(cmd *cobra.Command) {
	m.cmd = cmd
	cmd.Flags().StringVarP(&m.description, "description", "d", "", "what it is for")
	cmd.Flags().StringArrayVar(&m.labels, "label", nil, "key=value (repeated)")
	cmd.Flags().StringArrayVar(&m.destinations, "allowed-destination", nil, "host or host:port that it may be sent to, whatever policy says (repeated)")
	cmd.Flags().StringVar(&m.expires, "expires", "", "when it ends: RFC 3339, a date, or a duration such as 720h")
}

func (m *metaFlags) changed(flag string) bool { return m.cmd.Flags().Changed(flag) }

func (m *metaFlags) any() bool {
	return m.changed("description") || m.changed("label") || m.changed("allowed-destination") || m.changed("expires")
}

// apply puts what was given over body.
func (m *metaFlags) apply(body *api.SourceBody) error {
	if m.changed("description") {
		body.Description = m.description
	}
	if m.changed("label") {
		labels, err := parseLabels(m.labels)
		if err != nil {
			return err
		}
		body.Labels = labels
	}
	if m.changed("allowed-destination") {
		body.AllowedDestinations = nonEmpty(m.destinations)
	}
	if m.changed("expires") {
		t, err := parseExpiry(m.expires)
		if err != nil {
			return err
		}
		body.ExpiresAt = t
	}
	return nil
}

func nonEmpty(in []string) []string {
	out := []string{}
	for _, s := range in {
		if s != "" {
			out = append(out, s)
		}
	}
	return out
}

func parseLabels(in []string) (map[string]string, error) {
	out := map[string]string{}
	for _, kv := range nonEmpty(in) {
		k, v, ok := strings.Cut(kv, "=")
		if !ok || k == "" {
			return nil, usage("--label %q is not key=value", kv)
		}
		out[k] = v
	}
	return out, nil
}

// parseExpiry takes a time, a date or a duration from now; "never" is nil.
func parseExpiry(s string) (*time.Time, error) {
	if s == "never" {
		return nil, nil
	}
	if d, err := time.ParseDuration(s); err == nil && d > 0 {
		t := time.Now().Add(d).UTC().Truncate(time.Second)
		return &t, nil
	}
	for _, layout := range []string{time.RFC3339, time.DateOnly} {
		if t, err := time.Parse(layout, s); err == nil {
			return &t, nil
		}
	}
	return nil, usage("%q is not a time such as 2027-01-31, 2027-01-31T12:00:00Z, 720h or never", s)
}

func sourcePath(name string) string { return "/credential-sources/" + url.PathEscape(name) }

func (a *app) sourceAdd(d *dialFlags) *cobra.Command {
	var s secretFlags
	var m metaFlags
	cmd := &cobra.Command{
		Use: "add NAME", Short: "Make a source of a secret", Args: exactly("NAME"),
		Example: `  egressd source add gh                          # asks, without echo
  egressd source add gh --token-env GITHUB_TOKEN
  pass show gh | egressd source add gh
  egressd source add git --username bot --password-file pw
  egressd source add mtls --cert client.pem --key client.key
  egressd source add deploy --ssh-key id_ed25519 --passphrase-env PASS`,
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.client(*d)
			if err != nil {
				return err
			}
			mat, err := s.read(a, "")
			if err != nil {
				return err
			}
			body := api.SourceWrite{Name: args[0], SourceBody: api.SourceBody{ResolverKind: mat.kind, Spec: mat.spec}}
			if err := m.apply(&body.SourceBody); err != nil {
				return err
			}
			res, err := c.do(cmd.Context(), http.MethodPost, "/credential-sources", body)
			return a.shownSource(res, err, "added")
		},
	}
	s.register(cmd.Flags())
	m.register(cmd)
	return cmd
}

// shownSource reports what became of one source.
func (a *app) shownSource(res *answer, err error, done string) error {
	if err != nil {
		return err
	}
	if a.json {
		return a.raw(res)
	}
	var v struct {
		api.Source
		Unchanged bool `json:"unchanged"`
	}
	if err := res.into(&v); err != nil {
		return err
	}
	if v.Unchanged {
		done = "unchanged"
	}
	a.printf("%s %s (%s, version %d, %s)\n", v.Name, done, v.ResolverKind, v.CurrentVersion, v.Status)
	if v.Health != "ok" {
		a.warn("%s: %s", v.Name, v.Health)
	}
	return nil
}

func (a *app) raw(res *answer) error {
	_, err := a.stdout.Write(append(res.raw, '\n'))
	return err
}

func (a *app) fetchSource(ctx context.Context, c *client, name string) (api.Source, string, error) {
	var src api.Source
	res, err := c.do(ctx, http.MethodGet, sourcePath(name), nil)
	if err != nil {
		return src, "", notFound(err, name)
	}
	return src, res.etag, res.into(&src)
}

// notFound says which source was sought.
func notFound(err error, name string) error {
	return missing(err, "there is no source %q; `egressd source list` shows what there is", name)
}

// missing says what was sought where the API only says that it was not found.
func missing(err error, format string, name string) error {
	var f *failed
	if !errors.As(err, &f) || f.api == nil || f.api.Code != api.CodeNotFound {
		return err
	}
	return &failed{code: f.code, envelope: f.envelope, api: f.api, err: fmt.Errorf(format, name)}
}

func (a *app) sourceSet(d *dialFlags) *cobra.Command {
	var s secretFlags
	var m metaFlags
	var status string
	cmd := &cobra.Command{
		Use: "set NAME", Short: "Replace what a source holds, or change its metadata or status", Args: exactly("NAME"),
		Long: `With a secret, set replaces the whole spec (PUT); the metadata stays unless a flag
changes it. Without one it changes metadata and status only (PATCH).`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if !s.any() && !m.any() && !cmd.Flags().Changed("status") {
				return usage("nothing to set: give a secret (see `egressd source add --help`), --description, --label, --allowed-destination, --expires or --status")
			}
			if s.any() && cmd.Flags().Changed("status") {
				return usage("--status and a new secret are two steps: use `egressd source set` twice, or enable and disable")
			}
			c, err := a.client(*d)
			if err != nil {
				return err
			}
			if !s.any() {
				return a.patchSource(cmd, c, args[0], &m, status)
			}
			return a.replaceSource(cmd.Context(), c, args[0], &s, &m)
		},
	}
	s.register(cmd.Flags())
	m.register(cmd)
	cmd.Flags().StringVar(&status, "status", "", "active, disabled or archived")
	return cmd
}

// replaceSource carries the metadata over, so that PUT replaces the secret alone, and
// makes the write conditional on it.
func (a *app) replaceSource(ctx context.Context, c *client, name string, s *secretFlags, m *metaFlags) error {
	old, etag, err := a.fetchSource(ctx, c, name)
	if err != nil {
		return err
	}
	mat, err := s.read(a, old.ResolverKind)
	if err != nil {
		return err
	}
	body := api.SourceReplace{SourceBody: api.SourceBody{
		ResolverKind: mat.kind, Spec: mat.spec, Description: old.Description, Labels: old.Labels, Annotations: old.Annotations,
		AllowedDestinations: old.AllowedDestinations, ExpiresAt: old.ExpiresAt,
	}}
	if err := m.apply(&body.SourceBody); err != nil {
		return err
	}
	res, err := c.do(ctx, http.MethodPut, sourcePath(name), body, header{"If-Match", etag})
	return a.shownSource(res, err, "replaced")
}

func (a *app) patchSource(cmd *cobra.Command, c *client, name string, m *metaFlags, status string) error {
	var body api.SourceBody
	if err := m.apply(&body); err != nil {
		return err
	}
	patch := map[string]any{}
	if m.changed("description") {
		patch["description"] = body.Description
	}
	if m.changed("label") {
		patch["labels"] = body.Labels
	}
	if m.changed("allowed-destination") {
		patch["allowedDestinations"] = body.AllowedDestinations
	}
	if m.changed("expires") {
		patch["expiresAt"] = body.ExpiresAt // null: never
	}
	if cmd.Flags().Changed("status") {
		patch["status"] = status
	}
	res, err := c.do(cmd.Context(), http.MethodPatch, sourcePath(name), patch, header{"Content-Type", "application/merge-patch+json"})
	return a.shownSource(res, notFound(err, name), "changed")
}

func (a *app) sourceRotate(d *dialFlags) *cobra.Command {
	var s secretFlags
	var drain, reason string
	cmd := &cobra.Command{
		Use: "rotate NAME", Short: "Make a new version; the next request uses it", Args: exactly("NAME"),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.client(*d)
			if err != nil {
				return err
			}
			old, etag, err := a.fetchSource(cmd.Context(), c, args[0])
			if err != nil {
				return err
			}
			mat, err := s.read(a, old.ResolverKind)
			if err != nil {
				return err
			}
			if mat.kind != old.ResolverKind {
				return usage("%s is of kind %s, not %s: delete it and add it anew to change its kind", args[0], old.ResolverKind, mat.kind)
			}
			body := api.SourceRotate{Spec: mat.spec, Drain: drain, Reason: reason}
			res, err := c.do(cmd.Context(), http.MethodPost, sourcePath(args[0])+"/rotate", body, header{"If-Match", etag})
			return a.shownSource(res, err, "rotated")
		},
	}
	s.register(cmd.Flags())
	cmd.Flags().StringVar(&drain, "drain", "", "pooled upstream connections of the old version: graceful (default), close or none")
	cmd.Flags().StringVar(&reason, "reason", "", "for the operator's log")
	return cmd
}

func (a *app) sourceStatus(d *dialFlags, verb, status, short string) *cobra.Command {
	return &cobra.Command{
		Use: verb + " NAME", Short: short, Args: exactly("NAME"),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.client(*d)
			if err != nil {
				return err
			}
			res, err := c.do(cmd.Context(), http.MethodPatch, sourcePath(args[0]), map[string]string{"status": status},
				header{"Content-Type", "application/merge-patch+json"})
			return a.shownSource(res, notFound(err, args[0]), verb+"d")
		},
	}
}

func (a *app) sourceDelete(d *dialFlags) *cobra.Command {
	var yes bool
	cmd := &cobra.Command{
		Use: "delete NAME", Short: "Destroy a source that nothing is bound to", Args: exactly("NAME"),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.client(*d)
			if err != nil {
				return err
			}
			if err := a.confirm(yes, fmt.Sprintf("delete source %s and destroy its secret", args[0])); err != nil {
				return err
			}
			res, err := c.do(cmd.Context(), http.MethodDelete, sourcePath(args[0]), nil)
			if err != nil {
				return notFound(err, args[0])
			}
			if a.json {
				return a.raw(res)
			}
			a.printf("%s deleted\n", args[0])
			return nil
		},
	}
	cmd.Flags().BoolVar(&yes, "yes", false, "do not ask")
	return cmd
}

func (a *app) sourceGet(d *dialFlags) *cobra.Command {
	return &cobra.Command{
		Use: "get NAME", Short: "Show everything about a source but its value", Args: exactly("NAME"),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.client(*d)
			if err != nil {
				return err
			}
			res, err := c.do(cmd.Context(), http.MethodGet, sourcePath(args[0]), nil)
			if err != nil {
				return notFound(err, args[0])
			}
			if a.json {
				return a.raw(res)
			}
			var src api.Source
			if err := res.into(&src); err != nil {
				return err
			}
			a.printSource(src)
			return nil
		},
	}
}

func (a *app) printSource(s api.Source) {
	var rows [][]string
	row := func(name, value string) {
		if value != "" {
			rows = append(rows, []string{name, value})
		}
	}
	row("name", s.Name)
	row("kind", s.ResolverKind)
	row("version", fmt.Sprint(s.CurrentVersion))
	row("status", s.Status)
	row("health", s.Health)
	row("description", s.Description)
	row("labels", joinMap(s.Labels))
	row("destinations", strings.Join(s.AllowedDestinations, " "))
	var fields []string
	for _, f := range s.Fields {
		fields = append(fields, f.Path)
	}
	row("fields set", strings.Join(fields, " "))
	row("bound by", fmt.Sprintf("%d", s.ReferenceCount))
	row("created", stamp(&s.CreatedAt))
	row("updated", stamp(&s.UpdatedAt))
	row("rotated", stamp(s.LastRotatedAt))
	row("resolved", stamp(s.LastResolvedAt))
	row("used", stamp(s.LastUsedAt))
	row("expires", stamp(s.ExpiresAt))
	a.table(rows)
}

func (a *app) sourceList(d *dialFlags) *cobra.Command {
	var search, status, kind string
	var labels []string
	cmd := &cobra.Command{
		Use: "list", Short: "List sources, never their values", Args: exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.client(*d)
			if err != nil {
				return err
			}
			q := url.Values{}
			for name, v := range map[string]string{"search": search, "status": status, "resolverKind": kind} {
				if v != "" {
					q.Set(name, v)
				}
			}
			for _, l := range labels {
				q.Add("label", strings.Replace(l, "=", ":", 1))
			}
			path := "/credential-sources"
			if len(q) > 0 {
				path += "?" + q.Encode()
			}
			res, err := c.do(cmd.Context(), http.MethodGet, path, nil)
			if err != nil || a.json {
				return a.rawOr(res, err)
			}
			var list []api.Source
			if err := res.into(&list); err != nil {
				return err
			}
			rows := [][]string{{"NAME", "KIND", "VERSION", "STATUS", "BOUND", "UPDATED", "HEALTH"}}
			for _, s := range list {
				rows = append(rows, []string{s.Name, s.ResolverKind, fmt.Sprint(s.CurrentVersion), s.Status, fmt.Sprint(s.ReferenceCount), stamp(&s.UpdatedAt), s.Health})
			}
			a.table(rows)
			return nil
		},
	}
	cmd.Flags().StringVar(&search, "search", "", "text in name or description")
	cmd.Flags().StringVar(&status, "status", "", "active, disabled or archived")
	cmd.Flags().StringVar(&kind, "kind", "", "resolver kind")
	cmd.Flags().StringArrayVar(&labels, "label", nil, "key=value (repeated)")
	return cmd
}

func (a *app) rawOr(res *answer, err error) error {
	if err != nil {
		return err
	}
	return a.raw(res)
}

func (a *app) sourceKinds(d *dialFlags) *cobra.Command {
	return &cobra.Command{
		Use: "kinds", Short: "List the kinds of sources and their fields", Args: exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if a.json {
				c, err := a.client(*d)
				if err != nil {
					return err
				}
				return a.rawOr(c.do(cmd.Context(), http.MethodGet, "/resolver-kinds", nil))
			}
			reg, err := kinds() // the same registry as the daemon's: no need to ask it
			if err != nil {
				return err
			}
			for _, k := range reg.Kinds() {
				a.printf("%s: %s\n", k.Name, k.About)
				for _, in := range k.Inputs {
					need := "optional"
					if in.Required {
						need = "required"
					}
					a.printf("    %s.%s (%s): %s\n", k.Block, in.Name, need, in.About)
				}
				a.printf("    projections: %s\n", strings.Join(k.Projections, ", "))
			}
			return nil
		},
	}
}
