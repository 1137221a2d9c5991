package main

import (
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/egressd/egressd/internal/config"
)

// addConfigFlags adds --config and a flag for every key.
func addConfigFlags(fs *pflag.FlagSet) {
	fs.StringP("config", "c", "", "config file (EGRESSD_CONFIG)")
	config.Flags(fs)
}

// loadConfig reads what addConfigFlags added.
func (a *app) loadConfig(fs *pflag.FlagSet) (*config.Loaded, error) {
	file, err := fs.GetString("config")
	if err != nil {
		return nil, err
	}
	if file == "" && !fs.Changed("config") {
		file = a.env("EGRESSD_CONFIG")
	}
	return config.Load(config.Input{File: file, Env: a.environ, Flags: fs})
}

func (a *app) configCmd() *cobra.Command {
	cmd := &cobra.Command{Use: "config", Short: "The daemon's configuration", Args: cobra.ArbitraryArgs, RunE: group}
	show := &cobra.Command{
		Use: "show", Short: "Print the effective configuration and where each value comes from", Args: exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			l, err := a.loadConfig(cmd.Flags())
			if err != nil {
				return err
			}
			if a.json {
				a.printData(l.Map())
				return nil
			}
			_, err = a.stdout.Write(l.YAML())
			return err
		},
	}
	addConfigFlags(show.Flags())
	cmd.AddCommand(show)
	return cmd
}
