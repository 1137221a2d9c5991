package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"

	"github.com/spf13/cobra"

	"github.com/egressd/egressd/internal/certs"
	"github.com/egressd/egressd/internal/config"
)

// caSSH prints what sandboxes need in known_hosts. It reads the daemon's files and does
// not ask the daemon, so it runs on the same machine, as root or as the daemon's user.
func (a *app) caSSH(d *dialFlags) *cobra.Command {
	var hostKey bool
	cmd := &cobra.Command{
		Use: "ssh", Short: "Print the known_hosts line by which sandboxes trust egressd as any SSH server", Args: exactly(),
		Long: `Prints the one line that a sandbox needs in its known_hosts (or in
/etc/ssh/ssh_known_hosts) for all SSH servers that egressd logs in at. It reads the
daemon's stateDir: run it on the daemon's machine, as its user or as root.`,
		RunE: func(*cobra.Command, []string) error {
			authority, err := a.sshAuthority(*d)
			if err != nil {
				return err
			}
			line := authority.KnownHostsLine()
			if hostKey {
				line = authority.HostKeyLine()
			}
			if a.json {
				a.printData(map[string]string{"knownHosts": line, "fingerprintSHA256": authority.Fingerprint()})
				return nil
			}
			_, err = fmt.Fprintln(a.stdout, line)
			return err
		},
	}
	cmd.Flags().BoolVar(&hostKey, "host-key", false, "print the host key itself, for clients that know no @cert-authority; good for port 22")
	return cmd
}

// sshAuthority loads the keys that the daemon has made, and makes none: they would be this
// user's.
func (a *app) sshAuthority(d dialFlags) (*certs.SSHAuthority, error) {
	file, env := d.config, a.environ
	if file == "" {
		file = a.env("EGRESSD_CONFIG")
	}
	if d.stateDir != "" {
		env = append(slices.Clone(env), "EGRESSD_STATE_DIR="+d.stateDir)
	}
	cfg, err := config.Load(config.Input{File: file, Env: env})
	if err != nil {
		return nil, err
	}
	ca, host := cfg.SSHFiles()
	for _, name := range []string{ca, host} {
		if _, err := os.Stat(name); errors.Is(err, fs.ErrNotExist) {
			return nil, fail(exitStore, "there is no SSH CA yet (%s): start the daemon once, or set --state-dir", name)
		}
	}
	authority, err := certs.LoadOrCreateSSH(ca, host)
	if err != nil {
		return nil, fail(exitStore, "%w", err)
	}
	return authority, nil
}
