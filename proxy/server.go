package proxy

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
	"golang.org/x/crypto/ssh"

	"github.com/egressd/egressd/internal/audit"
	"github.com/egressd/egressd/internal/certs"
	"github.com/egressd/egressd/internal/h1"
	"github.com/egressd/egressd/proxy/policydns"
)

// Recorder takes one audit record per decision. Write must not keep r.
type Recorder interface {
	Write(r *audit.Record)
}

// LeafSource makes the certificate that egressd shows a sandbox for host.
type LeafSource interface {
	Leaf(host string) (*tls.Certificate, error)
}

// Guard resolves names, refuses forbidden addresses and dials only what it checked.
type Guard interface {
	Lookup(ctx context.Context, host string) ([]netip.Addr, error)
	Check(addr netip.AddrPort) error
	Dial(ctx context.Context, addrs []netip.Addr, port uint16) (net.Conn, error)
}

// SSHHosts makes the host keys that egressd shows a sandbox for host, a signed one first.
type SSHHosts interface {
	HostSigners(host string, port uint16) ([]ssh.Signer, error)
}

// Limits bound what sandboxes may hold. Zero fields take the defaults of New.
type Limits struct {
	Connections           int   // in all; default 20,000
	ConnectionsPerSandbox int   // default 2,000
	HeaderBytes           int   // one request head; default 64 KiB
	RewriteBodyBytes      int64 // largest body that is read whole to be rewritten or judged; default 1 MiB
	BandwidthPerSandbox   int64 // bytes per second, each way; 0: no limit

	HandshakeTimeout      time.Duration // request head, TLS handshake; default 10 s
	SniffTimeout          time.Duration // first bytes of a tunnel; default 5 s
	ServerFirstDelay      time.Duration // silence after which a tunnel that may carry any protocol is relayed; default 300 ms
	IdleTimeout           time.Duration // between requests and in silent tunnels; default 5 min
	ResponseHeaderTimeout time.Duration // 0: none
	StallTimeout          time.Duration // a body or a reader that makes no progress; default 60 s
}

// Options of New. All but Limits and Revoked are required.
type Options struct {
	Logger   *zap.Logger
	Audit    Recorder
	Registry prometheus.Registerer
	Leaves   LeafSource
	Guard    Guard
	Roots    *x509.CertPool // what upstream certificates are verified against
	SSHHosts SSHHosts
	Limits   Limits
	Revoked  *certs.Revocations // upstream certificates that are refused; nil: no lists
}

// Server is the data plane. Use publishes a ruleset; before the first one every
// request is refused. All methods are safe for concurrent use.
type Server struct {
	log     *zap.Logger
	audit   Recorder
	metrics *metrics
	leaves  LeafSource
	guard   Guard
	names   *names
	limits  Limits

	rules    atomic.Pointer[Ruleset]
	edge     http.Handler    // explicit.go: goproxy
	requests *requestServers // serve.go
	upstream *upstream       // upstream.go
	tlsConf  *tls.Config     // towards sandboxes
	backoff  *backoff        // failed proxy logins, by address
	live     *registry       // what is open
	ids      idSource

	memory   *policydns.Memory // what the policy DNS told whom
	sshHosts SSHHosts
	watches  *watchlists
	paces    *bandwidth
	scrubs   *scrubbers
	mints    *mints
	ech      *echRecords
	budget   *budget // bodies that are held whole
	seals    *seals
	changes  *changes

	janitor   *janitor
	draining  chan struct{} // closed by Shutdown
	drainOnce sync.Once
	conns     sync.WaitGroup
}

// New makes a Server that refuses everything until Use.
func New(o Options) (*Server, error) {
	if o.Logger == nil || o.Audit == nil || o.Registry == nil || o.Leaves == nil || o.Guard == nil || o.Roots == nil || o.SSHHosts == nil {
		return nil, errors.New("proxy: an option is missing")
	}
	m, err := newMetrics(o.Registry)
	if err != nil {
		return nil, fmt.Errorf("proxy: register metrics: %w", err)
	}
	s := &Server{
		log: o.Logger, audit: o.Audit, metrics: m, leaves: o.Leaves, guard: o.Guard,
		limits: o.Limits.withDefaults(), sshHosts: o.SSHHosts, paces: newBandwidth(o.Limits.BandwidthPerSandbox), watches: newWatchlists(), scrubs: newScrubbers(), mints: newMints(), ech: newECHRecords(), seals: newSeals(), changes: newChanges(), memory: policydns.NewMemory(), backoff: newBackoff(), draining: make(chan struct{}),
	}
	s.budget = newBudget(wholeBodies * s.limits.RewriteBodyBytes)
	s.ids.init()
	s.live = newRegistry(s.limits.Connections, s.limits.ConnectionsPerSandbox)
	s.names = &names{guard: o.Guard, perSandbox: newQuota(maxLookups)}
	s.upstream = newUpstream(o.Guard, s.names, trust{o.Roots, o.Revoked}, s.limits, m)
	s.tlsConf = s.downstreamTLS()
	s.edge = s.newEdge()
	s.requests = newRequestServers(s)
	s.janitor = startJanitor(s)
	return s, nil
}

func (l Limits) withDefaults() Limits {
	def := func(v *int, d int) {
		if *v <= 0 {
			*v = d
		}
	}
	defD := func(v *time.Duration, d time.Duration) {
		if *v <= 0 {
			*v = d
		}
	}
	def(&l.Connections, 20000)
	def(&l.ConnectionsPerSandbox, 2000)
	if l.RewriteBodyBytes <= 0 {
		l.RewriteBodyBytes = 1 << 20
	}
	def(&l.HeaderBytes, h1.DefaultLimits().HeadBytes)
	defD(&l.HandshakeTimeout, 10*time.Second)
	defD(&l.SniffTimeout, 5*time.Second)
	defD(&l.ServerFirstDelay, 300*time.Millisecond)
	defD(&l.IdleTimeout, 5*time.Minute)
	defD(&l.StallTimeout, time.Minute)
	return l
}

// Use publishes r: the next request is decided by it, on connections that are open
// already too, and relays that it would not allow are closed.
func (s *Server) Use(r *Ruleset) {
	was := s.rules.Swap(r)
	s.live.recheck(r)
	s.forgetNames(was, r)
	s.scheduleLease(r)
}

// SourceChanged ends idle upstream connections that were opened with material of
// this source, or of any when both names are empty. Requests in flight finish on theirs;
// a WebSocket whose credential is disabled, deleted or not for its destination any more is cut.
func (s *Server) SourceChanged(team, name string) {
	s.changes.add(team, name, 0)
	s.upstream.closeIdleOf(team, name)
	s.janitor.sourcesChanged()
}

// LastUsed is when material of a source last took part in an exchange of this process,
// failed ones included; zero if it did not.
func (s *Server) LastUsed(team, name string) time.Time { return s.upstream.lastUsed(team, name) }

// Shutdown drains: no new connections, requests in flight finish, idle connections
// close. When ctx ends what is left is cut. It returns ctx's error in that case.
func (s *Server) Shutdown(ctx context.Context) error {
	s.drainOnce.Do(func() { close(s.draining) })
	done := make(chan struct{})
	go func() {
		s.conns.Wait()
		close(done)
	}()
	h2err := s.requests.shutdown(ctx)
	var err error
	select {
	case <-done:
	case <-ctx.Done():
		err = ctx.Err()
		s.live.closeAll()
		s.requests.close()
		<-done
	}
	s.live.words.Wait()
	s.janitor.end()
	s.upstream.close()
	if err == nil {
		err = h2err
	}
	return err
}

func (s *Server) isDraining() bool {
	select {
	case <-s.draining:
		return true
	default:
		return false
	}
}

// recovered keeps a panic inside one connection.
func (s *Server) recovered(where string) {
	if p := recover(); p != nil {
		s.metrics.panics.Inc()
		if p != http.ErrAbortHandler { //nolint:errorlint // the value itself is the sentinel
			// The value is not logged: it may hold request bytes.
			s.log.Error("panic recovered", zap.String("where", where), zap.String("type", fmt.Sprintf("%T", p)), zap.Stack("stack"))
		}
	}
}

func remoteAddr(c net.Conn) netip.Addr {
	if ta, ok := c.RemoteAddr().(*net.TCPAddr); ok {
		return ta.AddrPort().Addr().Unmap()
	}
	return netip.Addr{}
}
