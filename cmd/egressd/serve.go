package main

import (
	"context"
	"errors"
	"io/fs"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/spf13/cobra"
	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"

	"github.com/egressd/egressd/api"
	"github.com/egressd/egressd/internal/audit"
	"github.com/egressd/egressd/internal/certs"
	"github.com/egressd/egressd/internal/config"
	"github.com/egressd/egressd/policy"
	"github.com/egressd/egressd/proxy"
	"github.com/egressd/egressd/source"
	"github.com/egressd/egressd/store"
	"github.com/egressd/egressd/store/sqlite"
)

func (a *app) serveCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use: "serve", Short: "Run the daemon", Args: exactly(),
		Long: `Runs the proxy, the management API on <stateDir>/api.sock, and /healthz /readyz
/metrics. Every key of the configuration is a flag and an environment variable
(--listen-proxy, EGRESSD_LISTEN_PROXY); flag over environment over file over default.
Lists are parted by commas there, and a flag may be repeated.

SIGHUP reads the policy again (it is watched as well) and opens the audit log anew;
SIGTERM drains, a second signal exits at once.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := a.loadConfig(cmd.Flags())
			if err != nil {
				return err
			}
			return a.serve(cmd.Context(), cfg)
		},
	}
	addConfigFlags(cmd.Flags())
	return cmd
}

// serve runs the daemon until a signal or ctx ends it. What starts, in this order:
func (a *app) serve(ctx context.Context, cfg *config.Loaded) error {
	d := &daemon{app: a, cfg: &cfg.Config, registry: prometheus.NewRegistry()}
	defer d.close()
	for _, start := range []func(context.Context) error{
		d.openLog,
		d.harden, // before a secret is read
		d.checkConfig,
		d.claimState, // 0700, one daemon per directory
		d.listen,     // nothing is accepted yet
		d.openStore,  // keys and store
		d.openCA,
		d.openAudit,
		d.openPlane,  // guard, proxy, resolver
		d.loadPolicy, // at boot a policy that does not compile is the end
		d.openAPI,
	} {
		if err := start(ctx); err != nil {
			return err
		}
	}
	return d.run(ctx)
}

// daemon is a running `egressd serve`. Its fields are set one by one by serve and do
// not change after.
type daemon struct {
	app      *app
	cfg      *config.Config
	log      *zap.Logger
	registry *prometheus.Registry
	ln       *listeners
	kinds    *source.Registry
	store    store.Store
	sealer   store.Sealer
	opener   store.Opener
	ca       *certs.Authority
	sshCA    *certs.SSHAuthority
	audit    *audit.Log
	plane    *plane
	api      *api.Server
	draining atomic.Bool
	closers  []func() // run in reverse by close
}

func (d *daemon) onClose(f func()) { d.closers = append(d.closers, f) }

func (d *daemon) close() {
	for _, f := range slices.Backward(d.closers) {
		f()
	}
}

func (d *daemon) openLog(context.Context) error {
	d.log = newLogger(d.app.stderr, d.cfg.Log)
	return nil
}

func (d *daemon) harden(context.Context) error {
	return hardenProcess(d.log, d.app.environ)
}

func (d *daemon) checkConfig(context.Context) error {
	if err := d.cfg.CheckPolicyDir(); err != nil {
		return usage("%w", err)
	}
	return nil
}

func (d *daemon) claimState(context.Context) error {
	s, err := claimStateDir(d.cfg.StateDir)
	if err != nil {
		return err
	}
	d.onClose(s.close)
	if s.tightened {
		d.log.Warn("stateDir was open to others and is now 0700", zap.String("dir", s.path))
	}
	return nil
}

func (d *daemon) listen(ctx context.Context) (err error) {
	if d.ln, err = openListeners(ctx, d.cfg); err != nil {
		return err
	}
	d.onClose(d.ln.close)
	return nil
}

func (d *daemon) openStore(ctx context.Context) (err error) {
	if d.kinds, err = kinds(); err != nil {
		return err
	}
	if d.sealer, d.opener, err = keyPaths(d.cfg).LoadOrCreate(); err != nil {
		return fail(exitStore, "%w", err)
	}
	db, err := sqlite.Open(ctx, d.cfg.StorePath(), d.sealer, sqlite.Options{})
	if err != nil {
		return fail(exitStore, "%w", err)
	}
	d.store = db
	d.onClose(func() {
		if err := db.Close(); err != nil {
			d.log.Error("store did not close well", zap.Error(err))
		}
	})
	return nil
}

// keyPaths puts the derived files beside the default key, wherever the key itself is.
func keyPaths(cfg *config.Config) store.KeyPaths {
	p := store.DefaultKeyPaths(filepath.Join(cfg.StateDir, "keys"))
	p.Seal = cfg.KeyFile()
	return p
}

func (d *daemon) openCA(context.Context) (err error) {
	open := certs.LoadOrCreate
	if d.cfg.Intercept.CACertFile != "" {
		open = certs.Load // an operator's own is never made up
	}
	cert, key := d.cfg.CAFiles()
	for _, name := range []string{cert, key} {
		if _, err := os.Stat(name); errors.Is(err, fs.ErrNotExist) && d.cfg.Intercept.CACertFile != "" {
			return fail(exitStore, "interception CA: %s does not exist: put your CA there, or leave intercept.caCertFile and caKeyFile out to have one made", name)
		}
	}
	if d.ca, err = open(cert, key, certs.Options{LeafTTL: d.cfg.Intercept.LeafTTL}); err != nil {
		return fail(exitStore, "interception CA: %w", err)
	}
	if d.sshCA, err = certs.LoadOrCreateSSH(d.cfg.SSHFiles()); err != nil {
		return fail(exitStore, "ssh host CA: %w", err)
	}
	if left := time.Until(d.ca.NotAfter()); left < certs.RenewBefore {
		d.log.Warn("the interception CA ends soon: make a new one and give it to the sandboxes", zap.Time("not_after", d.ca.NotAfter()))
	}
	return nil
}

func (d *daemon) openPlane(context.Context) (err error) {
	d.registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	d.plane, err = newPlane(planeParts{
		cfg: d.cfg, log: d.log, registry: d.registry, kinds: d.kinds, store: d.store, opener: d.opener,
		leaves: d.ca, sshHosts: d.sshCA, audit: d.audit, own: d.ln.own,
		load:      func() (*policy.Set, []policy.Warning, error) { return policy.LoadDir(d.cfg.Policy.Dir) },
		bootUnfit: true,
	})
	if err != nil {
		return err
	}
	d.onClose(d.plane.close)
	return nil
}

func (d *daemon) loadPolicy(ctx context.Context) error {
	_, err := d.plane.policies.reload(ctx, true)
	return err
}

func (d *daemon) openAPI(context.Context) (err error) {
	d.api, err = api.New(api.Options{
		Data: api.Data{
			Writer: d.store, Tokens: d.store, Idempotency: d.store, Kinds: d.kinds,
			Usage: func(team, name string) (resolved, used time.Time) {
				return d.plane.resolver.LastResolved(team, name), d.plane.proxy.LastUsed(team, name)
			},
			BodyDigest: func(b []byte) [32]byte { return d.sealer.Digest("", "", "api-body", b) },
		},
		Applied: d.plane.resolver.WaitApplied, Policies: d.plane.policies, References: d.plane.policies, CA: d.ca,
		CheckBound: d.plane.policies.checkBound,
		Drain: func(team, name string, version uint64, cut bool) {
			if cut {
				d.plane.proxy.CloseSource(team, name, version)
				return
			}
			d.plane.proxy.SourceChanged(team, name)
		},
		Connections: openConnections{d.plane.proxy},
		Ready: func(context.Context) error {
			if d.draining.Load() {
				return errDraining
			}
			return d.plane.ready()
		},
		Hosts: d.cfg.API.Hosts, Version: buildVersion(), Registry: d.registry, Log: d.log.Named("api"),
	})
	if err != nil {
		return usage("%w", err)
	}
	return nil
}

// run accepts, and drains at the first signal. It returns when everything has ended.
func (d *daemon) run(ctx context.Context) error {
	// work outlives ctx: it ends the resolver, the watch and what a drain left over.
	work, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	g, failing := errgroup.WithContext(work)
	apiSrv, opsSrv := d.api.HTTPServer(), d.api.OpsServer()

	g.Go(func() error { return d.plane.resolver.Run(work) })
	g.Go(func() error { return d.watchPolicy(work) })
	d.serveWaysIn(work, g)
	g.Go(func() error { return serveHTTP(apiSrv, d.ln.apiUnix) })
	if d.ln.apiTCP != nil {
		g.Go(func() error { return serveHTTP(apiSrv, d.ln.apiTCP) })
	}
	if d.ln.ops != nil {
		g.Go(func() error { return serveHTTP(opsSrv, d.ln.ops) })
	}
	g.Go(func() error {
		defer stop()
		d.waitForEnd(ctx, failing)
		d.drain(work, apiSrv, opsSrv)
		return nil
	})
	d.log.Info("egressd is ready", zap.String("proxy", addrOf(d.ln.proxy)), zap.Strings("transparent", addrsOf(d.ln.redirect, d.ln.tproxy)), zap.Strings("dns", addrsOf(d.ln.dnsTCP)),
		zap.String("ops", addrOf(d.ln.ops)),
		zap.String("api_socket", addrOf(d.ln.apiUnix)), zap.String("api", addrOf(d.ln.apiTCP)), zap.String("state_dir", d.cfg.StateDir),
		zap.String("version", buildVersion().Version))
	err := g.Wait()
	d.log.Info("egressd has stopped")
	if err != nil {
		return fail(exitNetwork, "a part of the daemon failed: %w", err)
	}
	return nil
}

// serveWaysIn starts what sandboxes connect to.
func (d *daemon) serveWaysIn(ctx context.Context, g *errgroup.Group) {
	srv := d.plane.proxy
	if d.ln.proxy != nil {
		g.Go(func() error { return srv.Serve(ctx, d.ln.proxy) })
	}
	for _, ln := range d.ln.redirect {
		g.Go(func() error { return srv.ServeTransparent(ctx, ln, proxy.Transparent{Kind: proxy.Redirect}) })
	}
	for _, ln := range d.ln.tproxy {
		g.Go(func() error { return srv.ServeTransparent(ctx, ln, proxy.Transparent{Kind: proxy.TProxy}) })
	}
	for i := range d.ln.dnsUDP {
		g.Go(func() error { return srv.ServeDNS(ctx, d.ln.dnsUDP[i], d.ln.dnsTCP[i], proxy.Transparent{}) })
	}
}

func serveHTTP(s *http.Server, ln net.Listener) error {
	if err := s.Serve(ln); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// watchPolicy loads the policy again when its files change. Where they cannot be
// watched, SIGHUP and the API still do it.
func (d *daemon) watchPolicy(ctx context.Context) error {
	err := policy.Watch(ctx, d.cfg.Policy.Dir, func() {
		_, _ = d.plane.policies.reload(ctx, false) // it has logged its error
	})
	if err != nil {
		d.log.Error("policy files are not watched: use SIGHUP or `egressd policy reload`", zap.Error(err))
	}
	return nil
}

// waitForEnd returns at the first SIGTERM or SIGINT, when ctx ends, or when a part of
// the daemon failed. SIGHUP loads the policy meanwhile. From the first signal on, a
// second one exits at once.
func (d *daemon) waitForEnd(ctx, failing context.Context) {
	signals := make(chan os.Signal, 4)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP)
	defer signal.Stop(signals)
	for {
		select {
		case s := <-signals:
			if s == syscall.SIGHUP {
				_, _ = d.plane.policies.reload(ctx, true) // it has logged its error
				if err := d.audit.Reopen(); err != nil {  // logrotate has moved the file
					d.log.Error("audit log stays with its old file", zap.Error(err))
				}
				continue
			}
			d.log.Info("draining", zap.Stringer("signal", s), zap.Duration("at_most", d.cfg.Limits.DrainTimeout))
			return
		case <-ctx.Done():
			return
		case <-failing.Done():
			return
		}
	}
}

// drain ends the daemon in order: not ready, no new connections, what is open may end,
// then the management plane, which was there to look at it all the while.
func (d *daemon) drain(work context.Context, apiSrv, opsSrv *http.Server) {
	d.draining.Store(true)
	defer exitOnSignal(d.log)()
	ctx, cancel := context.WithTimeout(work, d.cfg.Limits.DrainTimeout)
	defer cancel()
	if err := d.plane.proxy.Shutdown(ctx); err != nil {
		d.log.Warn("drain ended before everything had", zap.Error(err))
	}
	last, cancel := context.WithTimeout(work, 2*time.Second)
	defer cancel()
	for _, s := range []*http.Server{apiSrv, opsSrv} {
		if err := s.Shutdown(last); err != nil {
			_ = s.Close()
		}
	}
}

// exitOnSignal makes the next signal end the process at once; the result undoes it.
func exitOnSignal(log *zap.Logger) (undo func()) {
	signals, done := make(chan os.Signal, 1), make(chan struct{})
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT)
	go func() {
		defer close(done)
		if s, ok := <-signals; ok {
			log.Warn("second signal: exiting at once", zap.Stringer("signal", s))
			os.Exit(exitStatus(s))
		}
	}()
	return func() {
		signal.Stop(signals)
		close(signals)
		<-done
	}
}

// exitStatus is 128+n, as shells say it.
func exitStatus(s os.Signal) int {
	if n, ok := s.(syscall.Signal); ok {
		return 128 + int(n)
	}
	return 1
}
