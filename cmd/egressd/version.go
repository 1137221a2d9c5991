package main

import (
	"net/http"
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"

	"github.com/egressd/egressd/api"
)

// version is set by the linker (see the Makefile): `git describe`, or a release's name.
var version string

// buildVersion reads what the linker and the module system left in the binary.
func buildVersion() api.Version {
	v := api.Version{Version: "dev", GoVersion: runtime.Version(), APIVersion: "v1"}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return v
	}
	if m := info.Main.Version; m != "" && m != "(devel)" {
		v.Version = m
	}
	if version != "" {
		v.Version = version
	}
	dirty := ""
	for _, s := range info.Settings {
		switch s.Key {
		case "vcs.revision":
			v.Commit = s.Value
		case "vcs.modified":
			if s.Value == "true" {
				dirty = "+dirty"
			}
		}
	}
	if v.Commit != "" {
		v.Commit += dirty
	}
	return v
}

func (a *app) versionCmd() *cobra.Command {
	var d dialFlags
	var server bool
	cmd := &cobra.Command{
		Use: "version", Short: "Name this build, and the daemon's with --server", Args: exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			v := buildVersion()
			if server {
				c, err := a.client(d)
				if err != nil {
					return err
				}
				res, err := c.do(cmd.Context(), http.MethodGet, "/version", nil)
				if err != nil || a.json {
					return a.rawOr(res, err)
				}
				if err := res.into(&v); err != nil {
					return err
				}
			}
			if a.json {
				a.printData(v)
				return nil
			}
			a.printf("egressd %s", v.Version)
			if v.Commit != "" {
				a.printf(" (%s)", v.Commit)
			}
			a.printf(" %s, API %s\n", v.GoVersion, v.APIVersion)
			return nil
		},
	}
	d.register(cmd.Flags())
	d.alias(cmd)
	cmd.Flags().BoolVar(&server, "server", false, "ask the daemon")
	return cmd
}
