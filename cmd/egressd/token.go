package main

import (
	"net/http"
	"net/url"

	"github.com/spf13/cobra"

	"github.com/egressd/egressd/api"
)

func (a *app) tokenCmd() *cobra.Command {
	var d dialFlags
	cmd := &cobra.Command{Use: "token", Short: "Tokens for the management API", Args: cobra.ArbitraryArgs, RunE: group}
	d.register(cmd.PersistentFlags())
	cmd.AddCommand(d.alias(a.tokenCreate(&d)), d.alias(a.tokenList(&d)), d.alias(a.tokenRevoke(&d)), d.alias(a.tokenWhoami(&d)))
	return cmd
}

func (a *app) tokenCreate(d *dialFlags) *cobra.Command {
	var role, team, expires string
	cmd := &cobra.Command{
		Use: "create NAME", Short: "Create a token; its value is shown this once", Args: exactly("NAME"),
		RunE: func(cmd *cobra.Command, args []string) error {
			body := api.TokenWrite{Name: args[0], Role: role, Team: team}
			if expires != "" {
				t, err := parseExpiry(expires)
				if err != nil {
					return err
				}
				body.ExpiresAt = t
			}
			c, err := a.client(*d)
			if err != nil {
				return err
			}
			res, err := c.do(cmd.Context(), http.MethodPost, "/tokens", body)
			if err != nil || a.json {
				return a.rawOr(res, err)
			}
			var t api.TokenCreated
			if err := res.into(&t); err != nil {
				return err
			}
			a.printf("%s\n", t.Value)
			a.notef("token %s (%s, team %s): the value above is not shown again\n", t.Name, t.Role, t.Team)
			return nil
		},
	}
	cmd.Flags().StringVar(&role, "role", "read", "read or admin")
	cmd.Flags().StringVar(&team, "team", "", `team that it is bound to, "*" for all; default: yours`)
	cmd.Flags().StringVar(&expires, "expires", "", "when it ends: RFC 3339, a date, or a duration such as 720h")
	return cmd
}

func (a *app) tokenList(d *dialFlags) *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "List tokens, never their values", Args: exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.client(*d)
			if err != nil {
				return err
			}
			res, err := c.do(cmd.Context(), http.MethodGet, "/tokens", nil)
			if err != nil || a.json {
				return a.rawOr(res, err)
			}
			var list []api.Token
			if err := res.into(&list); err != nil {
				return err
			}
			rows := [][]string{{"NAME", "ROLE", "TEAM", "CREATED", "EXPIRES"}}
			for _, t := range list {
				rows = append(rows, []string{t.Name, t.Role, t.Team, stamp(&t.CreatedAt), stamp(t.ExpiresAt)})
			}
			a.table(rows)
			return nil
		},
	}
}

func (a *app) tokenRevoke(d *dialFlags) *cobra.Command {
	var yes bool
	cmd := &cobra.Command{
		Use: "revoke NAME", Short: "Revoke a token at once", Args: exactly("NAME"),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.client(*d)
			if err != nil {
				return err
			}
			if err := a.confirm(yes, "revoke token "+args[0]); err != nil {
				return err
			}
			res, err := c.do(cmd.Context(), http.MethodDelete, "/tokens/"+url.PathEscape(args[0]), nil)
			if err != nil || a.json {
				return a.rawOr(res, missing(err, "there is no token %q; `egressd token list` shows what there is", args[0]))
			}
			a.printf("%s revoked\n", args[0])
			return nil
		},
	}
	cmd.Flags().BoolVar(&yes, "yes", false, "do not ask")
	return cmd
}

func (a *app) tokenWhoami(d *dialFlags) *cobra.Command {
	return &cobra.Command{
		Use: "whoami", Short: "Say who the daemon takes you for", Args: exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.client(*d)
			if err != nil {
				return err
			}
			res, err := c.do(cmd.Context(), http.MethodGet, "/whoami", nil)
			if err != nil || a.json {
				return a.rawOr(res, err)
			}
			var id api.Identity
			if err := res.into(&id); err != nil {
				return err
			}
			a.table([][]string{{"name", id.Name}, {"role", id.Role}, {"team", id.Team}, {"via", id.Via}, {"expires", stamp(id.ExpiresAt)}})
			return nil
		},
	}
}
