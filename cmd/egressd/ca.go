package main

import (
	"net/http"
	"os"

	"github.com/spf13/cobra"

	"github.com/egressd/egressd/api"
)

func (a *app) caCmd() *cobra.Command {
	var d dialFlags
	cmd := &cobra.Command{Use: "ca", Short: "The CA that sandboxes must trust", Args: cobra.ArbitraryArgs, RunE: group}
	d.register(cmd.PersistentFlags())
	cmd.AddCommand(d.alias(a.caShow(&d)), d.alias(a.caExport(&d)), a.caSSH(&d))
	return cmd
}

func (a *app) caShow(d *dialFlags) *cobra.Command {
	return &cobra.Command{
		Use: "show", Short: "Describe the CA's certificate", Args: exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.client(*d)
			if err != nil {
				return err
			}
			res, err := c.do(cmd.Context(), http.MethodGet, "/ca", nil)
			if err != nil || a.json {
				return a.rawOr(res, err)
			}
			var v api.CAView
			if err := res.into(&v); err != nil {
				return err
			}
			a.table([][]string{
				{"subject", v.Subject}, {"sha256", v.FingerprintSHA256},
				{"not before", stamp(&v.NotBefore)}, {"not after", stamp(&v.NotAfter)},
			})
			return nil
		},
	}
}

func (a *app) caExport(d *dialFlags) *cobra.Command {
	var out string
	cmd := &cobra.Command{
		Use: "export", Short: "Print the CA's certificate as PEM, for sandboxes to trust", Args: exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.client(*d)
			if err != nil {
				return err
			}
			if a.json {
				return a.rawOr(c.do(cmd.Context(), http.MethodGet, "/ca", nil))
			}
			res, err := c.do(cmd.Context(), http.MethodGet, "/ca.pem", nil)
			if err != nil {
				return err
			}
			pem := append(res.raw, '\n')
			if out == "" {
				_, err = a.stdout.Write(pem)
				return err
			}
			if err := os.WriteFile(out, pem, 0o644); err != nil { //nolint:gosec // a certificate is public
				return usage("--out: %w", fileError(out, err))
			}
			a.notef("wrote %s\n", out)
			return nil
		},
	}
	cmd.Flags().StringVarP(&out, "out", "o", "", "file to write instead of stdout")
	return cmd
}
