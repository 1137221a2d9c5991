package main

import (
	"net/http"
	"net/url"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/egressd/egressd/api"
	"github.com/egressd/egressd/proxy"
)

func (a *app) connectionsCmd() *cobra.Command {
	var d dialFlags
	cmd := &cobra.Command{Use: "connections", Short: "What is open on the data plane", Args: cobra.ArbitraryArgs, RunE: group}
	d.register(cmd.PersistentFlags())
	cmd.AddCommand(d.alias(a.connectionsList(&d)), d.alias(a.connectionsClose(&d)))
	return cmd
}

func (a *app) connectionsList(d *dialFlags) *cobra.Command {
	var sandbox, source, protocol string
	cmd := &cobra.Command{
		Use: "list", Short: "List open connections and what is under way on them", Args: exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.client(*d)
			if err != nil {
				return err
			}
			q := url.Values{}
			for name, v := range map[string]string{"sandbox": sandbox, "source": source, "protocol": protocol} {
				if v != "" {
					q.Set(name, v)
				}
			}
			path := "/connections"
			if len(q) > 0 {
				path += "?" + q.Encode()
			}
			res, err := c.do(cmd.Context(), http.MethodGet, path, nil)
			if err != nil || a.json {
				return a.rawOr(res, err)
			}
			var list []api.Connection
			if err := res.into(&list); err != nil {
				return err
			}
			a.table(connectionRows(list))
			return nil
		},
	}
	cmd.Flags().StringVar(&sandbox, "sandbox", "", "only this sandbox's")
	cmd.Flags().StringVar(&source, "source", "", "only what uses this source")
	cmd.Flags().StringVar(&protocol, "protocol", "", "only this protocol, as the list names it")
	return cmd
}

func connectionRows(list []api.Connection) [][]string {
	rows := [][]string{{"ID", "SANDBOX", "WAY", "DESTINATION", "PROTOCOL", "SOURCE", "SINCE", "REQUEST"}}
	at := func(source string, version uint64) string {
		if source == "" {
			return "-"
		}
		return source + "@" + strconv.FormatUint(version, 10)
	}
	for _, c := range list {
		rows = append(rows, []string{c.ID, orDash(c.Sandbox), c.Way, orDash(c.Destination), orDash(c.Protocol), at(c.Source, c.Version), stamp(&c.Since), "-"})
		for _, x := range c.Exchanges {
			rows = append(rows, []string{"", "", "", x.Destination, x.Method, at(x.Source, x.Version), stamp(&x.Since), x.RequestID})
		}
	}
	return rows
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

func (a *app) connectionsClose(d *dialFlags) *cobra.Command {
	return &cobra.Command{
		Use: "close ID", Short: "Close a connection and all that is under way on it", Args: exactly("ID"),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.client(*d)
			if err != nil {
				return err
			}
			res, err := c.do(cmd.Context(), http.MethodDelete, "/connections/"+url.PathEscape(args[0]), nil)
			if err != nil || a.json {
				return a.rawOr(res, missing(err, "there is no open connection %q; `egressd connections list` shows what there is", args[0]))
			}
			a.printf("connection %s closed\n", args[0])
			return nil
		},
	}
}

// openConnections shows the management plane what the data plane has open.
type openConnections struct{ srv *proxy.Server }

func (o openConnections) Connections(team string) []api.Connection {
	var out []api.Connection
	for _, c := range o.srv.Connections() {
		if team != api.AllTeams && c.Team != team {
			continue
		}
		v := api.Connection{
			ID: strconv.FormatUint(c.ID, 10), Sandbox: c.Sandbox, Team: c.Team, Way: c.Way, Destination: c.Destination,
			Protocol: c.Protocol, Rule: c.Rule, Source: c.Source, Version: c.Version, Since: c.Since,
		}
		if c.Client.IsValid() {
			v.Client = c.Client.String()
		}
		for _, x := range c.Exchanges {
			v.Exchanges = append(v.Exchanges, api.Exchange{
				RequestID: x.ID, Destination: x.Destination, Method: x.Method, Rule: x.Rule, Source: x.Source, Version: x.Version, Since: x.Since,
			})
		}
		out = append(out, v)
	}
	return out
}

func (o openConnections) CloseConnection(team string, id uint64) bool {
	for _, c := range o.srv.Connections() {
		if c.ID == id && (team == api.AllTeams || c.Team == team) {
			return o.srv.CloseConnection(id)
		}
	}
	return false
}
