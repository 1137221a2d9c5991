package proxy

import (
	"context"
	"net"
	"net/netip"
	"sync"

	"github.com/egressd/egressd/proxy/policydns"
)

// ServeDNS answers the DNS queries of transparent sandboxes, on pc and ln, until Shutdown or
// until ctx ends: names that policy may allow, with addresses that egressd has checked. What
// a sandbox was told is remembered, so that protocols without a name find their rule. Of o
// only Sandbox and Token count.
func (s *Server) ServeDNS(ctx context.Context, pc net.PacketConn, ln net.Listener, o Transparent) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var watch sync.WaitGroup
	defer watch.Wait()
	watch.Go(func() {
		select {
		case <-s.draining:
			cancel()
		case <-ctx.Done():
		}
	})
	srv := policydns.New(policydns.Options{
		Identify: func(addr netip.Addr) (string, bool) {
			b, err := s.sessionOf(o, addr).bind()
			if err != nil {
				return "", false
			}
			return b.sandbox.ID, true
		},
		MayName: func(sandbox, host string) bool {
			r := s.rules.Load()
			if r == nil || r.Policy == nil {
				return false
			}
			sb := r.Policy.Sandbox(sandbox)
			return sb != nil && r.Policy.MayName(sb, host)
		},
		Lookup: s.names.lookup,
		HTTPS:  s.names.https,
		Memory: s.memory,
	})
	return srv.Serve(ctx, pc, ln)
}
