// Package selftest looks from inside a sandbox for ways out that pass by egressd, and tells
// for each what really happened to it: whatever was configured, only an answer counts.
//
// egressd takes TCP connections to any address itself, so that a connection that opens
// proves nothing. A probe sends something that a stranger would answer and looks who
// answers: egressd shows its certificate or names itself in X-Egressd-Error; whatever else
// comes back came from outside. Therefore a target must be one that policy does not allow,
// and one that answers: egressd's own word for a destination that it relays looks like
// nobody's.
package selftest

import (
	"context"
	"net"
	"net/netip"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"
)

// Verdict is what became of a probe.
type Verdict string

// The verdicts.
const (
	Blocked  Verdict = "blocked"  // nothing got out, as far as can be seen: refused or no answer
	Governed Verdict = "governed" // egressd answered in its own name
	Open     Verdict = "open"     // somebody else answered
	Unclear  Verdict = "unclear"  // it was accepted or sent, and nobody said who by
	Skipped  Verdict = "skipped"  // not tried, Detail says why
)

// Result is one probe. Its text holds addresses and errors of this program only, never what
// a target sent.
type Result struct {
	Probe   string  `json:"probe"`
	Target  string  `json:"target"`
	Verdict Verdict `json:"verdict"`
	Detail  string  `json:"detail"`
	Millis  int64   `json:"ms"`
}

// Options of Run. The zero value aims at well-known public addresses.
type Options struct {
	// Target4 and Target6 answer on each of their ports: see NewPlan. When one is given no
	// public address is contacted, and what belongs to the other family is skipped unless
	// that is given as well.
	Target4, Target6 netip.AddrPort
	// Name is NAME:PORT of a TLS server, by name; DNSName a name to ask other servers for.
	Name, DNSName string
	// Peers are addresses of other sandboxes, HOST or HOST:PORT; Own the listeners of
	// egressd that are not for sandboxes, the API's first of all: HOST:PORT, or the path of
	// a Unix socket.
	Peers, Own []string
	// Timeout bounds each probe; default 3 s.
	Timeout time.Duration
}

const (
	defaultTimeout = 3 * time.Second
	atOnce         = 16
)

// probe is one thing to try.
type probe struct {
	name, target string
	try          func(ctx context.Context) (Verdict, string)
}

// Run tries every way out and gives the results in a fixed order. It ends with ctx, and not
// later than a few timeouts; then the rest is Skipped. It is safe for concurrent use.
func Run(ctx context.Context, o Options) []Result {
	if o.Timeout <= 0 {
		o.Timeout = defaultTimeout
	}
	probes := o.plan()
	results := make([]Result, len(probes))
	var g errgroup.Group
	g.SetLimit(atOnce)
	for i, p := range probes {
		g.Go(func() error {
			results[i] = p.run(ctx, o.Timeout)
			return nil
		})
	}
	_ = g.Wait() // they give no error
	return results
}

func (p probe) run(ctx context.Context, timeout time.Duration) Result {
	r := Result{Probe: p.name, Target: p.target, Verdict: Skipped, Detail: "the time is up"}
	if ctx.Err() != nil {
		return r
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	begun := time.Now()
	r.Verdict, r.Detail = p.try(ctx)
	r.Millis = time.Since(begun).Milliseconds()
	return r
}

// Opened lists the names of the probes that got out, each once.
func Opened(results []Result) []string {
	out := []string{}
	for _, r := range results {
		if r.Verdict == Open && !slices.Contains(out, r.Probe) {
			out = append(out, r.Probe)
		}
	}
	return out
}

// dial opens a connection that ends with ctx.
func dial(ctx context.Context, network, address string) (net.Conn, error) {
	c, err := new(net.Dialer).DialContext(ctx, network, address)
	if err != nil {
		return nil, err
	}
	if d, ok := ctx.Deadline(); ok {
		if err := c.SetDeadline(d); err != nil {
			_ = c.Close()
			return nil, err
		}
	}
	return c, nil
}
