package netguard

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"syscall"
	"time"
)

// nextAfter is how long an attempt may be alone before the next address is tried too
// (RFC 8305 section 5 suggests 250 ms).
const nextAfter = 300 * time.Millisecond

// Dial connects to the first of addrs that answers, in their order, leaving out those
// that fail Check; the next one is tried after a failure or 300 ms. If none is left, the
// error is Check's for the first. The connection is a *net.TCPConn with TCP_NODELAY,
// keep-alive and, on Linux, TCP_USER_TIMEOUT.
func (g *Guard) Dial(ctx context.Context, addrs []netip.Addr, port uint16) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, g.dialTimeout)
	defer cancel()
	var targets []netip.AddrPort
	err := fmt.Errorf("%w: there is none", ErrForbiddenAddress)
	for i, a := range addrs {
		t := netip.AddrPortFrom(a.Unmap(), port)
		cerr := g.Check(t)
		if cerr == nil {
			targets = append(targets, t)
		} else if i == 0 {
			err = cerr
		}
	}
	switch len(targets) {
	case 0:
		return nil, err
	case 1:
		return g.dialOne(ctx, targets[0])
	}
	return g.race(ctx, cancel, targets)
}

// DialContext is Lookup and Dial for code that wants a net.Dialer's method: clients of
// credential providers, not a sandbox's traffic, whose addresses policy must see.
func (g *Guard) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	if network != "tcp" && network != "tcp4" && network != "tcp6" {
		return nil, net.UnknownNetworkError(network)
	}
	host, service, err := net.SplitHostPort(address)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrBadName, err)
	}
	port, err := strconv.ParseUint(service, 10, 16)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrBadName, err)
	}
	addrs, err := g.Lookup(ctx, host)
	if err != nil {
		return nil, err
	}
	return g.Dial(ctx, addrs, uint16(port))
}

func (g *Guard) dialOne(ctx context.Context, t netip.AddrPort) (net.Conn, error) {
	network := "tcp6"
	if t.Addr().Is4() {
		network = "tcp4"
	}
	c, err := g.dialer.DialContext(ctx, network, t.String())
	if err != nil {
		return nil, fmt.Errorf("dialling: %w", err)
	}
	return c, nil
}

type attempt struct {
	conn net.Conn
	err  error
}

// race starts attempts one after the other and returns when all that it started have
// ended; the first connection wins, and cancel hurries the others.
func (g *Guard) race(ctx context.Context, cancel context.CancelFunc, targets []netip.AddrPort) (won net.Conn, first error) {
	results := make(chan attempt)
	start := func(t netip.AddrPort) {
		go func() {
			c, err := g.dialOne(ctx, t)
			results <- attempt{c, err}
		}()
	}
	timer := time.NewTimer(nextAfter)
	defer timer.Stop()
	start(targets[0])
	for next, running := 1, 1; running > 0; {
		select {
		case r := <-results:
			running--
			switch {
			case r.err != nil && first == nil:
				first = r.err
			case r.err == nil && won == nil:
				won = r.conn
				cancel()
			case r.err == nil:
				_ = r.conn.Close() // too late by a hair
			}
		case <-timer.C:
		}
		if won == nil && ctx.Err() == nil && next < len(targets) {
			start(targets[next])
			next, running = next+1, running+1
			timer.Reset(nextAfter)
		}
	}
	if won != nil {
		return won, nil
	}
	return nil, first
}

// control checks the very address that is about to be connected to.
func (g *Guard) control(userTimeout time.Duration) func(context.Context, string, string, syscall.RawConn) error {
	return func(_ context.Context, _, address string, c syscall.RawConn) error {
		dst, err := netip.ParseAddrPort(address)
		if err != nil {
			return fmt.Errorf("%w: not a literal address", ErrForbiddenAddress)
		}
		if err := g.Check(dst); err != nil {
			return err
		}
		return setUserTimeout(c, userTimeout)
	}
}
