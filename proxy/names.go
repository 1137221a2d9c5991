package proxy

import (
	"context"
	"errors"
	"net/netip"
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

func (n *names) lookup(ctx context.Context, sandbox, host string) ([]netip.Addr, error) {
	done, ok := n.perSandbox.take(sandbox)
	if !ok {
		return nil, errLookupLimit
	}
	defer done()
	return n.guard.Lookup(ctx, host)
}
