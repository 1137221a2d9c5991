package main

import "github.com/spf13/cobra"

// laterCommands are those of the design that do not exist yet. Whoever types one learns
// that, rather than that it is unknown.
var laterCommands = map[string][]string{
	"egressd": {"provider", "sandbox", "store", "events"},
	"source":  {"versions", "rollback", "archive", "copy", "test", "usage", "events", "generate", "keys", "revoke", "import"},
	"policy":  {"suggest"},
	"ca":      {"rotate"},
}

// addLater gives parent its commands to come, which help does not list.
func addLater(parent *cobra.Command) {
	for _, name := range laterCommands[parent.Name()] {
		parent.AddCommand(&cobra.Command{
			Use: name, Hidden: true, DisableFlagParsing: true,
			RunE: func(cmd *cobra.Command, _ []string) error {
				return usage("`%s` is not supported yet; `%s --help` lists what is", cmd.CommandPath(), parent.CommandPath())
			},
		})
	}
	for _, sub := range parent.Commands() {
		addLater(sub)
	}
}
