package proxy

import (
	"context"
	"errors"
	"net/netip"

	"github.com/miekg/dns"
)

// maxLookups is how many names one sandbox may be waiting for at a time: a sandbox with
// a slow name server of its own must not use up the lookups of all (H19).
const maxLookups = 128

var errLookupLimit = errors.New("the sandbox waits for too many names")

// names looks names up on behalf of sandboxes.
type names struct {
	guard      Guard
	perSandbox *quota
}

// httpsGuard is a Guard that finds HTTPS records, which hint at ports and protocols.
type httpsGuard interface {
	HTTPS(ctx context.Context, host string) ([]dns.RR, error)
}

// https finds the HTTPS records of host; none where the guard cannot.
func (n *names) https(ctx context.Context, sandbox, host string) ([]dns.RR, error) {
	g, ok := n.guard.(httpsGuard)
	if !ok {
		return nil, nil
	}
	done, ok := n.perSandbox.take(sandbox)
	if !ok {
		return nil, errLookupLimit
	}
	defer done()
	return g.HTTPS(ctx, host)
}

func (n *names) lookup(ctx context.Context, sandbox, host string) ([]netip.Addr, error) {
	done, ok := n.perSandbox.take(sandbox)
	if !ok {
		return nil, errLookupLimit
	}
	defer done()
	return n.guard.Lookup(ctx, host)
}
