package inject

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"

	"github.com/egressd/egressd/source"
)

// errNoRule is what the zero Injector and one for an unknown rule answer.
var errNoRule = errors.New("no such rule in this ruleset")

// Injector serves one credential rule. Safe for concurrent use; the zero value
// refuses.
type Injector struct {
	plan     *plan
	resolver source.Resolving
	ref      source.Ref
	state    atomic.Pointer[rendered]
}

// Resolve gives the projection for a request to host (canonical) and port, both
// verified or about to be. The error is an *Error. While the source has not changed
// it renders and allocates nothing.
func (in *Injector) Resolve(ctx context.Context, host string, port uint16) (*Projection, error) {
	if in.plan == nil {
		return nil, &Error{Code: CodeSourceUnavailable, Err: errNoRule}
	}
	m, err := in.resolver.Resolve(ctx, in.ref)
	if err != nil {
		return nil, &Error{Code: source.Code(err), Source: in.ref.Name, Version: in.ref.Version, Err: err}
	}
	st := in.state.Load()
	if st == nil || st.material != m {
		st = in.plan.render(m)
		in.state.Store(st)
	}
	if st.err != nil {
		return nil, st.err
	}
	if !st.destinations.Allow(host, port) {
		return nil, &Error{Code: CodeDestinationNotAllowed, Source: m.Name, Version: m.Version,
			Err: fmt.Errorf("allowedDestinations do not hold %s port %d", host, port)}
	}
	return st.projection, nil
}

// Format keeps a printed injector to its name: what it holds is ready for the wire.
func (in *Injector) Format(f fmt.State, _ rune) {
	_, _ = fmt.Fprintf(f, "injector of %s/%s", in.ref.Team, in.ref.Name)
}
