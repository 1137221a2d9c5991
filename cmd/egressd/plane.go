package main

import (
	"context"
	"errors"
	"io/fs"
	"net/netip"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"github.com/egressd/egressd/internal/audit"
	"github.com/egressd/egressd/internal/certs"
	"github.com/egressd/egressd/internal/config"
	"github.com/egressd/egressd/internal/netguard"
	"github.com/egressd/egressd/policy"
	"github.com/egressd/egressd/proxy"
	"github.com/egressd/egressd/source"
	"github.com/egressd/egressd/store"
)

// dnsPatience bounds the wait for DNS when a decision is explained.
const dnsPatience = 5 * time.Second

// planeParts are what a plane is made from.
type planeParts struct {
	cfg      *config.Config
	log      *zap.Logger
	registry *prometheus.Registry
	kinds    *source.Registry
	store    store.Store
	opener   store.Opener
	leaves   *certs.Authority
	sshHosts *certs.SSHAuthority
	audit    *audit.Log
	own      func() []netip.AddrPort // our listeners, which nobody may dial through us
	load     loadPolicy
	// bootUnfit: see policies. A daemon wants it, a single command is better told.
	bootUnfit bool
}

// loadPolicy reads and compiles the policy files.
type loadPolicy func() (*policy.Set, []policy.Warning, error)

// plane is the data plane: all between a sandbox's connection and an origin. serve and
// run are two ways to feed it.
type plane struct {
	guard    *netguard.Guard
	proxy    *proxy.Server
	resolver *source.Resolver
	policies *policies
}

func newPlane(p planeParts) (*plane, error) {
	roots, err := certs.SystemPool(p.cfg.Upstream.ExtraCAFiles)
	if err != nil {
		return nil, usage("upstream certificates: %w", err)
	}
	revoked, err := certs.LoadCRLs(p.cfg.Upstream.CRLFiles)
	if err != nil {
		var missing *fs.PathError
		if errors.As(err, &missing) {
			err = fileError(missing.Path, missing)
		}
		return nil, usage("upstream.crlFiles: %w", err)
	}
	guard, err := netguard.New(netguard.Options{
		Hosts: p.cfg.Upstream.Hosts, Resolvers: p.cfg.Upstream.Resolvers, AllowCIDRs: p.cfg.Upstream.AllowCIDRs,
		Own: p.own, DialTimeout: p.cfg.Upstream.DialTimeout,
	})
	if err != nil {
		return nil, usage("%w", err)
	}
	if p.sshHosts == nil {
		if p.sshHosts, err = certs.NewEphemeralSSH(); err != nil {
			guard.Close()
			return nil, fail(exitStore, "ssh host key: %w", err)
		}
	}
	srv, err := proxy.New(proxy.Options{
		Logger: p.log.Named("proxy"), Audit: p.audit, Registry: p.registry, Leaves: p.leaves, Guard: guard, Roots: roots, Revoked: revoked, SSHHosts: p.sshHosts,
		Limits: proxy.Limits{
			Connections: p.cfg.Limits.Connections, ConnectionsPerSandbox: p.cfg.Limits.ConnectionsPerSandbox,
			HeaderBytes: int(p.cfg.Limits.HeaderBytes), RewriteBodyBytes: p.cfg.Limits.RewriteBodyBytes,
			BandwidthPerSandbox: p.cfg.Limits.BandwidthPerSandbox, HandshakeTimeout: p.cfg.Limits.HandshakeTimeout,
			IdleTimeout: p.cfg.Limits.IdleTimeout, ResponseHeaderTimeout: p.cfg.Upstream.ResponseHeaderTimeout,
		},
	})
	if err != nil {
		guard.Close()
		return nil, usage("%w", err)
	}
	log := p.log.Named("sources")
	resolver := source.NewResolver(p.store, p.opener, p.kinds, source.Options{
		OnInvalidate: []func(team, name string){srv.SourceChanged},
		OnWatch: func(err error) {
			if err != nil {
				log.Warn("the store is not followed: sources are read anew for each request", zap.Error(err))
			}
		},
	})
	pol := &policies{load: p.load, dir: p.cfg.Policy.Dir, resolver: resolver, known: resolver, sources: p.store, publish: srv.Use, lookup: guard.Lookup,
		log: p.log.Named("policy"), bootUnfit: p.bootUnfit}
	return &plane{guard: guard, proxy: srv, resolver: resolver, policies: pol}, nil
}

// ready says why requests cannot be served now, nil if they can.
func (p *plane) ready() error {
	switch {
	case p.policies.current.Load() == nil:
		return errNoPolicy
	case !p.resolver.Live():
		return errNotFollowing
	}
	return nil
}

// close ends what only answers to calls; Serve and Run have returned by now.
func (p *plane) close() {
	p.resolver.Close()
	p.guard.Close()
}

// lookupFor is guard.Lookup with a bound.
func lookupFor(ctx context.Context, lookup func(context.Context, string) ([]netip.Addr, error), host string) ([]netip.Addr, error) {
	ctx, cancel := context.WithTimeout(ctx, dnsPatience)
	defer cancel()
	return lookup(ctx, host)
}
