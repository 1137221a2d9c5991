package main

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"net"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/egressd/egressd/internal/certs"
	"github.com/egressd/egressd/internal/config"
	"github.com/egressd/egressd/internal/secret"
	"github.com/egressd/egressd/policy"
	"github.com/egressd/egressd/store"
	"github.com/egressd/egressd/store/memory"
)

const (
	runGrace  = 2 * time.Second // for what grandchildren have open when the child has ended
	runTokens = 32              // bytes of the proxy token

	// stderr is the command's: little, and for people.
	runLogLevel  = "error"
	runLogFormat = "console"
)

// runFlags are the flags of `egressd run`.
type runFlags struct {
	policy, sandbox        string
	sources, inject, allow []string
	allowCIDRs             []string
	keepSockets            []string
	quiet, isolate         bool
}

func (a *app) runCmd() *cobra.Command {
	var f runFlags
	cmd := &cobra.Command{
		Use: "run [flags] -- COMMAND [ARG]...", Short: "Run one command behind a proxy of its own; it sees no secret",
		Long: `Starts a proxy for one command, with a CA and a store that exist in memory only, and
needs no daemon. The command gets the proxy variables, a CA bundle through every variable
that common runtimes read, and an environment without the secrets. Signals go on to it,
and its exit code is egressd's (126: not executable, 127: not found, 128+n: signal n).

With --isolate (Linux) the command has a network of its own, in which egressd is the only
way out, and no proxy variables. Without it nothing forces the command through the proxy:
what ignores the variables goes out directly, without a credential. A secret in a file that
the command can read is no secret from it; --source NAME=file: is for files that it cannot.`,
		Example: `  egressd run --inject api.github.com=GITHUB_TOKEN -- curl https://api.github.com/user
  egressd run --inject api.example.com=TOKEN --allow pypi.org -- pip install x
  egressd run --isolate --inject api.github.com=GITHUB_TOKEN -- ./agent
  egressd run --policy agent.yaml --source gh=env:GITHUB_TOKEN -- git clone https://github.com/acme/x
  egressd run --policy p.yaml --source git.username=env:U --source git.password=env:P -- git push`,
		Args: cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error { return a.run(cmd, &f, args) },
	}
	fs := cmd.Flags()
	fs.SetInterspersed(false) // the command's own flags are the command's
	fs.StringVar(&f.policy, "policy", "", "policy `file` or directory")
	fs.StringVar(&f.sandbox, "sandbox", "", "the policy's sandbox to be, by its `ID`; needed when it has several")
	fs.StringArrayVar(&f.sources, "source", nil, "`NAME[.field]=env:VAR` or NAME[.field]=file:PATH: a source of the policy (repeated)")
	fs.StringArrayVar(&f.inject, "inject", nil, "`HOST[:PORT]=VAR`: allow the host and send \"Authorization: Bearer $VAR\" to it (repeated; port 443)")
	fs.StringArrayVar(&f.allow, "allow", nil, "`HOST[:PORT]`: allow the host, without a credential (repeated)")
	fs.StringArrayVar(&f.allowCIDRs, "allow-cidr", nil, "private or loopback `range` that may be dialled (repeated)")
	fs.BoolVarP(&f.quiet, "quiet", "q", false, "say nothing but errors")
	fs.BoolVar(&f.isolate, "isolate", false, "give the command a network in which egressd is the only way out (Linux)")
	fs.StringArrayVar(&f.keepSockets, "keep-socket", nil, "Unix socket, by its `path`, that an isolated command may use (repeated)")
	fs.StringP("config", "c", "", "config `file`, for policy.dir, upstream, limits and log (EGRESSD_CONFIG)")
	config.FlagsFor(fs, forRun)
	fs.Lookup("log-level").DefValue, fs.Lookup("log-format").DefValue = runLogLevel, runLogFormat
	fs.Lookup("audit-file").Usage = "audit log; empty: none"
	return cmd
}

// forRun picks the keys that mean something without a daemon.
func forRun(k config.Key) bool {
	return slices.ContainsFunc([]string{"upstream.", "limits.", "log.", "audit.", "intercept.leafTTL"}, func(p string) bool { return strings.HasPrefix(k.Path, p) })
}

func (a *app) run(cmd *cobra.Command, f *runFlags, args []string) error {
	switch {
	case len(args) == 0:
		return usage("the command is missing; usage: %s", cmd.UseLine())
	case len(f.keepSockets) > 0 && !f.isolate:
		return usage("--keep-socket is for --isolate: without it the command may use every socket")
	}
	l, err := a.loadRunConfig(cmd, f)
	if err != nil {
		return err
	}
	s := &session{app: a, cfg: &l.Config, flags: f}
	defer s.close()
	for _, start := range []func(context.Context) error{
		s.isolate, // before harden: see isolate.Start
		s.harden,
		s.readSecrets,
		s.compile,
		s.fillStore,
		s.openPlane,
		s.makeTrust,
	} {
		if err := start(cmd.Context()); err != nil {
			return err
		}
	}
	return s.run(cmd.Context(), args)
}

func (a *app) loadRunConfig(cmd *cobra.Command, f *runFlags) (*config.Loaded, error) {
	l, err := a.loadConfig(cmd.Flags())
	if err != nil {
		return nil, err
	}
	for _, c := range f.allowCIDRs {
		p, err := netip.ParsePrefix(c)
		if err != nil || p != p.Masked() {
			return nil, usage("--allow-cidr: %q is not an address range such as 127.0.0.0/8", c)
		}
		l.Upstream.AllowCIDRs = append(l.Upstream.AllowCIDRs, p)
	}
	if l.Origin["log.level"] == "" {
		l.Log.Level = runLogLevel
	}
	if l.Origin["log.format"] == "" {
		l.Log.Format = runLogFormat
	}
	if f.policy != "" && len(f.inject)+len(f.allow) > 0 {
		return nil, usage("--inject and --allow make a policy of their own: use them or --policy, not both")
	}
	if f.policy == "" && len(f.inject) == 0 && len(f.allow) == 0 {
		if cmd.Flags().Lookup("config").Value.String() == "" && a.env("EGRESSD_CONFIG") == "" {
			return nil, usage("say what the command may reach: --inject HOST=VAR, --allow HOST or --policy FILE")
		}
		if err := l.CheckPolicyDir(); err != nil {
			return nil, usage("%w", err)
		}
		f.policy = l.Policy.Dir
	}
	return l, nil
}

// session is one `egressd run`. Its fields are set one by one and do not change after.
type session struct {
	app     *app
	cfg     *config.Config
	flags   *runFlags
	secrets *runSecrets
	token   secret.String
	load    loadPolicy
	sandbox *policy.Sandbox
	kinds   kindsOf
	store   *memory.Store
	opener  store.Opener
	ca      *certs.Authority
	ssh     *certs.SSHAuthority
	plane   *plane
	in      runWay
	trust   trustFiles
	closers []func()
}

// runWay is how the command's connections come in: one of the two.
type runWay struct {
	ln       net.Listener // an explicit proxy
	isolated *isolated
}

func (s *session) onClose(f func()) { s.closers = append(s.closers, f) }

func (s *session) close() {
	for _, f := range slices.Backward(s.closers) {
		f()
	}
}

func (s *session) harden(context.Context) error {
	log := newLogger(s.app.stderr, s.cfg.Log)
	return hardenProcess(log, s.app.environ)
}

func (s *session) readSecrets(context.Context) (err error) {
	s.secrets, err = s.app.readRunSecrets(s.flags)
	return err
}

// compile makes the policy: the operator's, or one of --inject and --allow. Our token is
// the only way to be its sandbox: by the loopback address every process of the machine
// could be it.
func (s *session) compile(context.Context) error {
	var b [runTokens]byte
	_, _ = rand.Read(b[:]) // never fails (crypto/rand)
	s.token = secret.New(base64.RawURLEncoding.EncodeToString(b[:]))
	sum := sha256.Sum256([]byte(s.token.Reveal()))
	files := func() (*policy.Set, []policy.Warning, error) { return loadPath(s.flags.policy) }
	if s.flags.policy == "" {
		data, err := s.secrets.policyFile(s.flags.allow, "sha256:"+hex.EncodeToString(sum[:]))
		if err != nil {
			return err
		}
		files = func() (*policy.Set, []policy.Warning, error) {
			return policy.Compile([]policy.File{{Name: "(egressd run)", Data: data}})
		}
	}
	set, _, err := files()
	var ps policy.Problems
	if errors.As(err, &ps) && s.flags.policy == "" {
		return usage("--inject or --allow: %s", ps[0].Message) // where it stands in our own text helps nobody
	}
	if err != nil {
		return err
	}
	if s.sandbox, err = s.pickSandbox(set); err != nil {
		return err
	}
	s.load = func() (*policy.Set, []policy.Warning, error) {
		set, warnings, err := files()
		if err != nil {
			return nil, warnings, err
		}
		only, ok := set.OnlyToken(s.sandbox.ID, sum)
		if !ok {
			return nil, warnings, usage("sandbox %s is gone from the policy", s.sandbox.ID)
		}
		return only, warnings, nil
	}
	return s.checkSources(set)
}

// pickSandbox finds which sandbox of the policy the command is to be.
func (s *session) pickSandbox(set *policy.Set) (*policy.Sandbox, error) {
	all := set.Sandboxes()
	var ids []string
	for _, sb := range all {
		ids = append(ids, sb.ID)
	}
	switch {
	case len(all) == 0:
		return nil, usage("the policy %s has no sandbox: add one under sandboxes", s.flags.policy)
	case s.flags.sandbox == "" && len(all) > 1:
		return nil, usage("the policy has several sandboxes: say which with --sandbox (%s)", strings.Join(ids, ", "))
	case s.flags.sandbox == "":
		return all[0], nil
	}
	if sb := set.Sandbox(s.flags.sandbox); sb != nil {
		return sb, nil
	}
	return nil, usage("there is no sandbox %q; there are: %s", s.flags.sandbox, strings.Join(ids, ", "))
}

// checkSources wants a --source for each source that the sandbox's rules name, and
// none that nothing names.
func (s *session) checkSources(set *policy.Set) error {
	var needed []string
	for _, r := range set.CredentialRules() {
		mine := r.Sandbox == s.sandbox.ID || (r.Sandbox == "" && r.Template == s.sandbox.Template && r.Team == s.sandbox.Team)
		if mine && !slices.Contains(needed, r.Binding.SourceRef) {
			needed = append(needed, r.Binding.SourceRef)
		}
	}
	for _, name := range needed {
		if _, ok := s.secrets.sources[name]; !ok {
			return usage("the policy binds source %q: give it with --source %s=env:VAR", name, name)
		}
	}
	for name := range s.secrets.sources {
		if !slices.Contains(needed, name) {
			return usage("--source %s: the policy of sandbox %s binds no source of this name (it binds: %s)", name, s.sandbox.ID, strings.Join(needed, ", "))
		}
	}
	return nil
}

func (s *session) fillStore(ctx context.Context) error {
	sealer, opener, err := store.EphemeralKeys()
	if err != nil {
		return fail(exitStore, "%w", err)
	}
	s.store, s.opener = memory.New(sealer), opener
	s.onClose(func() { _ = s.store.Close() }) // of memory only
	if s.kinds, err = kinds(); err != nil {
		return err
	}
	for name, fields := range s.secrets.sources {
		kind, ok := s.kinds.Kind(fields.kind())
		if !ok {
			return unknownKind(fields.kind(), s.kinds)
		}
		in, err := kind.Inspect(encodeSpec(kind, fields), time.Now())
		if err != nil {
			return usage("source %s (%s): %w", name, kind.Name, err)
		}
		_, err = s.store.Create(ctx, store.Put{
			Meta: store.Meta{Team: s.sandbox.Team, Name: name, Kind: kind.Name, Fields: in.Fields, Health: in.Health, ExpiresAt: in.ExpiresAt},
			Spec: in.Canonical, Actor: "run",
		})
		if err != nil {
			return fail(exitStore, "source %s: %w", name, err)
		}
	}
	return nil
}

func (s *session) openPlane(ctx context.Context) (err error) {
	log := newLogger(s.app.stderr, s.cfg.Log)
	if s.ca, err = certs.NewEphemeral(certs.Options{LeafTTL: s.cfg.Intercept.LeafTTL}); err != nil {
		return fail(exitStore, "%w", err)
	}
	if s.ssh, err = certs.NewEphemeralSSH(); err != nil {
		return fail(exitStore, "ssh host key: %w", err)
	}
	rec, closeAudit, err := openRunAudit(s.cfg)
	if err != nil {
		return err
	}
	s.onClose(closeAudit)
	own := func() []netip.AddrPort { return nil }
	if s.in.isolated == nil {
		ln, err := new(net.ListenConfig).Listen(ctx, "tcp4", "127.0.0.1:0")
		if err != nil {
			return fail(exitNetwork, "no loopback port can be listened on: %w", err)
		}
		s.onClose(func() { _ = ln.Close() }) // closed by the proxy already, if it ran
		s.in.ln = ln
		own = func() []netip.AddrPort { return []netip.AddrPort{ln.Addr().(*net.TCPAddr).AddrPort()} }
	}
	s.plane, err = newPlane(planeParts{
		cfg: s.cfg, log: log, registry: prometheus.NewRegistry(), kinds: s.kinds, store: s.store, opener: s.opener,
		leaves: s.ca, sshHosts: s.ssh, audit: rec, own: own, load: s.load,
	})
	if err != nil {
		return err
	}
	s.onClose(s.plane.close)
	_, err = s.plane.policies.reload(ctx, true)
	return err
}

// trustFiles are what the child verifies egressd's certificates with.
type trustFiles struct{ dir, bundle, truststore, knownHosts string }

const truststorePassword = "changeit" // Java's own default; it protects nothing secret

func (s *session) makeTrust(context.Context) error {
	dir, err := os.MkdirTemp("", "egressd-run-") // 0700
	if err != nil {
		return fail(exitStore, "no temporary directory can be made: %w: set TMPDIR", err)
	}
	s.onClose(func() { _ = os.RemoveAll(dir) }) // public certificates only
	extra := [][]byte{s.ca.CertPEM()}
	for _, f := range s.cfg.Upstream.ExtraCAFiles {
		pem, err := readSmall(f)
		if err != nil {
			return usage("upstream.extraCAFiles: %w", fileError(f, err))
		}
		extra = append(extra, pem)
	}
	bundle, err := certs.SystemBundle(s.app.env("SSL_CERT_FILE"), extra...)
	if errors.Is(err, certs.ErrNoSystemRoots) {
		bundle, err = slices.Concat(extra...), nil // egressd's CA is what counts: all else goes through it
	}
	if err != nil {
		return usage("the CA bundle cannot be made: %w", err)
	}
	store, err := certs.Truststore(bundle, truststorePassword)
	if err != nil {
		return usage("the Java trust store cannot be made: %w", err)
	}
	s.trust = trustFiles{dir: dir, bundle: filepath.Join(dir, "ca-bundle.pem"), truststore: filepath.Join(dir, "truststore.p12"),
		knownHosts: filepath.Join(dir, "known_hosts")}
	for name, data := range map[string][]byte{s.trust.bundle: bundle, s.trust.truststore: store, s.trust.knownHosts: []byte(s.ssh.KnownHostsLine() + "\n")} {
		if err := os.WriteFile(name, data, 0o600); err != nil {
			return fail(exitStore, "%w", err)
		}
	}
	return nil
}

// run has proxy and child live side by side until the child ends.
func (s *session) run(ctx context.Context, args []string) error {
	work, stop := context.WithCancel(ctx)
	defer stop()
	g, failing := errgroup.WithContext(work)
	g.Go(func() error { return s.plane.resolver.Run(failing) })
	var err error
	if s.in.isolated != nil {
		s.serveIsolated(failing, g)
		err = s.in.isolated.become(failing, args, s.childEnv())
	} else {
		g.Go(func() error { return s.plane.proxy.Serve(failing, s.in.ln) })
		if !s.flags.quiet {
			s.app.notef("egressd: nothing forces this command through the proxy: what ignores the proxy variables goes out directly, without a credential (--isolate forces it)\n")
		}
		err = runChild(failing, s.app, args, s.childEnv())
	}
	down, cancel := context.WithTimeout(context.WithoutCancel(ctx), runGrace)
	defer cancel()
	_ = s.plane.proxy.Shutdown(down) // what is cut belongs to nobody any more
	stop()
	if failed := g.Wait(); failed != nil {
		return fail(exitNetwork, "the proxy failed: %w", failed)
	}
	return err
}

// proxyURL is how the child reaches the proxy and proves who it is.
func (s *session) proxyURL() string {
	u := url.URL{Scheme: "http", Host: s.in.ln.Addr().String(), User: url.UserPassword(s.sandbox.ID, s.token.Reveal())}
	return u.String()
}
