package main

import (
	"context"
	"errors"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"strings"
	"time"

	"github.com/egressd/egressd/internal/certs"
	"github.com/egressd/egressd/internal/redirect"
)

// sshCA looks at the keys by which sandboxes know egressd as an SSH server.
func (d *doctor) sshCA(context.Context) finding {
	ca, host := d.cfg.SSHFiles()
	missing := 0
	for _, name := range []string{ca, host} {
		if _, err := os.Stat(name); errors.Is(err, fs.ErrNotExist) {
			missing++
		} else if err != nil {
			return broken("%v", fileError(name, err))
		}
	}
	switch missing {
	case 2:
		return doubtful("%s does not exist yet: `egressd serve` makes it", ca)
	case 1:
		if _, err := os.Stat(ca); err != nil {
			return broken("%s is missing but there is a host key: restore it from backup, or remove %s and give sandboxes the new line of `egressd ca ssh`", ca, host)
		}
		return doubtful("%s does not exist: `egressd serve` makes it anew, of the same CA", host)
	}
	if _, err := certs.LoadOrCreateSSH(ca, host); err != nil { // both exist: nothing is made
		return broken("%v", err)
	}
	return fine("%s", ca)
}

// transparent looks whether there are rules at all. Whether they are the right ones only
// the flags of install could tell.
func (d *doctor) transparent(context.Context) finding {
	mode, key, addr := redirect.NAT, "listen.redirect", d.cfg.Listen.Redirect
	if addr == "" {
		mode, key, addr = redirect.TProxy, "listen.tproxy", d.cfg.Listen.TProxy
	}
	if addr == "" {
		return fine("none configured")
	}
	loopback, port := listenPort(addr)
	if port == 0 {
		return doubtful("not looked at: %s is any port", addr)
	}
	// Any Spec will do: only whether there is a table is looked at.
	diffs, err := redirect.Status(redirect.Spec{Mode: mode, Port: port, Sources: []netip.Prefix{netip.MustParsePrefix("192.0.2.1/32")}})
	switch {
	case errors.Is(err, redirect.ErrPrivilege):
		return doubtful("whether rules lead anything to %s is for root to see: `egressd redirect status`, with the flags of install", addr)
	case err != nil:
		return broken("%s: %v", key, err)
	case len(diffs) > 0 && strings.HasSuffix(diffs[0], "is not installed"):
		return doubtful("no rules lead anything to %s: `egressd redirect install`", addr)
	case loopback:
		return doubtful("%s %s is on loopback: only local users (--uid) can be led there", key, addr)
	case d.cfg.Listen.DNS == "":
		return doubtful("listen.dns is not set: transparent sandboxes find no names, and SSH and databases no rule by name")
	}
	return fine("there are rules; `egressd redirect status`, with the flags of install, compares them")
}

func (d *doctor) dns(ctx context.Context) finding {
	addr := d.cfg.Listen.DNS
	switch {
	case addr == "":
		return fine("none configured")
	case !d.alive:
		return doubtful("not looked at: the daemon does not answer")
	case anyPort(addr):
		return doubtful("not looked at: %s is any port", addr)
	}
	return d.accepts(ctx, addr)
}

// accepts connects, and only that: more would need an identity.
func (d *doctor) accepts(ctx context.Context, addr string) finding {
	dialer := net.Dialer{Timeout: 2 * time.Second}
	c, err := dialer.DialContext(ctx, "tcp", addr)
	if err != nil {
		return broken("%s does not accept: does the daemon run with this configuration?", addr)
	}
	_ = c.Close()
	return fine("%s accepts", addr)
}
