package api

import (
	"context"
	"errors"
	"hash/maphash"
	"log"
	"net/http"
	"net/netip"
	"os"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"github.com/egressd/egressd/source"
	"github.com/egressd/egressd/store"
)

// Limits of the management plane's listeners.
const (
	MaxBody        = 1 << 20 // bytes of a request body
	maxHeaderBytes = 16 << 10
	headerTimeout  = 5 * time.Second
	readTimeout    = 30 * time.Second
	writeTimeout   = 90 * time.Second
	idleTimeout    = 2 * time.Minute
	// workTimeout bounds one mutation; it goes on when the client hangs up, so that what the
	// store has and what is remembered and logged agree.
	workTimeout = 30 * time.Second
	// applyTimeout bounds the wait until a stored write is in force.
	applyTimeout = 10 * time.Second
)

// CA is the interception CA as far as it may be shown.
type CA interface {
	CertPEM() []byte
}

// Usage tells when a source was last resolved and used; zero times where unknown.
type Usage func(team, name string) (resolved, used time.Time)

// Data is where the management plane reads and writes. All but BodyDigest and Usage are
// required.
type Data struct {
	Writer      store.Writer
	Tokens      store.Tokens
	Idempotency store.Idempotency
	Kinds       *source.Registry
	// BodyDigest is a keyed digest (store.Sealer's, bound to a purpose): request bodies that
	// may hold secrets are remembered by it only. Nil: keyed by the Idempotency-Key alone.
	BodyDigest func(b []byte) [32]byte
	Usage      Usage
}

// Options of a Server. Applied, Policies, References and CA are required.
type Options struct {
	Data
	// Applied waits until the data plane is at rev or later; the answer to a write waits for it.
	Applied    func(ctx context.Context, rev store.Rev) error
	Policies   Policies
	References References
	CA         CA
	// CheckBound says whether what the policy in force projects from the source would still
	// work with these keys; *MissingKeysError when not. Called while no policy can change.
	CheckBound func(team, name, kind string, keys []string) error
	// Drain ends what uses versions older than version: pooled upstream connections, each after
	// its request, and with cut also what is under way. Called once version is in force.
	Drain func(team, name string, version uint64, cut bool)
	// Connections is what is open on the data plane; nil: none is shown.
	Connections Connections
	Ready       func(ctx context.Context) error // nil error: ready. Required for OpsHandler's /readyz

	Hosts          []string // further Host names that the API answers to
	RequireIfMatch bool     // 428 for PUT, PATCH and DELETE without If-Match
	Version        Version
	Registry       *prometheus.Registry // required; /metrics shows it
	Log            *zap.Logger          // required
}

// Server is the management plane. Safe for concurrent use.
type Server struct {
	opt    Options
	routes []route
	euid   uint32
	hosts  map[string]bool
	addrs  map[netip.Addr]bool
	guess  *throttle
	meter  *metrics
	doc    []byte // the OpenAPI document

	seed    maphash.Seed
	sources [64]sync.Mutex // stripes: writes of one source queue here instead of failing each other's conditions
	replays [64]sync.Mutex // stripes: one request per idempotency key at a time
}

// New checks that nothing required is missing and makes the route table and its document.
func New(opt Options) (*Server, error) {
	switch {
	case opt.Writer == nil, opt.Tokens == nil, opt.Idempotency == nil, opt.Kinds == nil:
		return nil, errors.New("api: writer, tokens, idempotency and kinds are required")
	case opt.Applied == nil, opt.Policies == nil, opt.References == nil, opt.CA == nil:
		return nil, errors.New("api: applied, policies, references and ca are required")
	case opt.Registry == nil, opt.Log == nil:
		return nil, errors.New("api: registry and log are required")
	}
	opt.Version.APIVersion = "v1"
	s := &Server{opt: opt, routes: table(), euid: uint32(os.Geteuid()), seed: maphash.MakeSeed()}
	s.hosts, s.addrs = ownNames(opt.Hosts)
	var err error
	if s.guess, err = newThrottle(); err != nil {
		return nil, err
	}
	if s.meter, err = newMetrics(opt.Registry); err != nil {
		return nil, err
	}
	if s.doc, err = s.openAPI(); err != nil {
		return nil, err
	}
	return s, nil
}

// Handler serves the API. Without ConnContext on the http.Server (see HTTPServer) no peer is
// known and every request needs a token.
func (s *Server) Handler() http.Handler { return http.HandlerFunc(s.serve) }

// HTTPServer is an http.Server for the API with its limits and with the peer's identity on
// unix sockets. The caller owns it: Serve, Shutdown, TLS configuration.
func (s *Server) HTTPServer() *http.Server {
	srv := s.bounded(s.Handler())
	srv.ConnContext = withPeer
	return srv
}

// OpsServer is the same for OpsHandler.
func (s *Server) OpsServer() *http.Server { return s.bounded(s.OpsHandler()) }

func (s *Server) bounded(h http.Handler) *http.Server {
	return &http.Server{
		Handler:                      h,
		ReadHeaderTimeout:            headerTimeout,
		ReadTimeout:                  readTimeout,
		WriteTimeout:                 writeTimeout,
		IdleTimeout:                  idleTimeout,
		MaxHeaderBytes:               maxHeaderBytes,
		DisableGeneralOptionsHandler: true,
		ErrorLog:                     log.New(connLog{s.opt.Log}, "", 0), //nolint:forbidigo // net/http takes no other; it ends in zap
	}
}

// connLog takes net/http's own complaints. They may quote what a client sent, so only the fact
// is kept.
type connLog struct{ log *zap.Logger }

func (l connLog) Write(p []byte) (int, error) {
	l.log.Debug("management connection failed", zap.Int("message_bytes", len(p)))
	return len(p), nil
}

func (s *Server) lock(stripes *[64]sync.Mutex, parts ...string) *sync.Mutex {
	var h maphash.Hash
	h.SetSeed(s.seed)
	for _, p := range parts {
		_, _ = h.WriteString(p)
		_ = h.WriteByte(0)
	}
	return &stripes[h.Sum64()%uint64(len(stripes))]
}
