package netguard

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/golang-lru/v2"
)

// Errors of Lookup, Check and Dial, wrapped with what was found.
var (
	// ErrForbiddenAddress: nothing may be dialled there.
	ErrForbiddenAddress = errors.New("address may not be dialled")
	// ErrNoSuchHost: DNS says that the name has no address.
	ErrNoSuchHost = errors.New("no such host")
	// ErrBadName: the host is neither an address nor a name that is ever looked up.
	ErrBadName = errors.New("not a name that can be looked up")
	// ErrLookup: no DNS server gave an answer in time.
	ErrLookup = errors.New("name could not be looked up")
	// ErrClosed: the Guard was closed.
	ErrClosed = errors.New("guard is closed")
)

const (
	defaultDialTimeout   = 10 * time.Second
	defaultLookupTimeout = 5 * time.Second
	defaultUserTimeout   = 60 * time.Second
	interfacesTTL        = 5 * time.Second
	cacheEntries         = 4096
)

// Options of a Guard. The zero value is a guard that asks the system's DNS servers and
// lets public addresses through, but knows none of egressd's own listeners.
type Options struct {
	// Hosts are answers that come before DNS, by name in any case. Only here can a name
	// of one label or localhost have an address.
	Hosts map[string]netip.Addr
	// Resolvers are DNS servers as address:port; none means those of /etc/resolv.conf,
	// which is read again when it changes.
	Resolvers []string
	// AllowCIDRs may be dialled although they are not public. An address that cloud
	// metadata is served from is allowed only by a prefix of exactly that address.
	AllowCIDRs []netip.Prefix
	// Own lists egressd's own TCP listeners; asked at each Check. Nothing allows them.
	Own func() []netip.AddrPort
	// DialTimeout bounds one Dial, 10 s if zero; LookupTimeout one Lookup, 5 s if zero.
	DialTimeout   time.Duration
	LookupTimeout time.Duration
	// UserTimeout is how long sent data may stay unacknowledged before the kernel gives
	// a connection up (TCP_USER_TIMEOUT, Linux), 60 s if zero.
	UserTimeout time.Duration
}

// Guard is safe for concurrent use.
type Guard struct {
	hosts         map[string]netip.Addr
	allow         []netip.Prefix
	own           func() []netip.AddrPort
	dialer        net.Dialer
	dialTimeout   time.Duration
	lookupTimeout time.Duration
	servers       servers
	local         localAddrs
	cache         *lru.Cache[string, *answer]

	mu      sync.Mutex
	flights map[string]*flight
	closed  bool
	done    chan struct{}
	wg      sync.WaitGroup
}

// New checks o and makes a Guard; Close it when nothing uses it any more.
func New(o Options) (*Guard, error) {
	g := &Guard{
		hosts:         make(map[string]netip.Addr, len(o.Hosts)),
		own:           o.Own,
		dialTimeout:   orDefault(o.DialTimeout, defaultDialTimeout),
		lookupTimeout: orDefault(o.LookupTimeout, defaultLookupTimeout),
		flights:       make(map[string]*flight),
		done:          make(chan struct{}),
	}
	for name, addr := range o.Hosts {
		key, err := canonical(name)
		if err != nil {
			return nil, fmt.Errorf("upstream.hosts: %q: %w", name, err)
		}
		if !addr.IsValid() || addr.Zone() != "" {
			return nil, fmt.Errorf("upstream.hosts: %q: not an address without a zone", name)
		}
		g.hosts[key] = addr.Unmap()
	}
	for _, p := range o.AllowCIDRs {
		if !p.IsValid() || p != p.Masked() || p.Addr().Is4In6() {
			return nil, fmt.Errorf("upstream.allowCIDRs: %q: not a prefix in canonical form, such as 10.0.0.0/8", p)
		}
	}
	g.allow = slices.Clone(o.AllowCIDRs)
	for _, r := range o.Resolvers {
		ap, err := netip.ParseAddrPort(r)
		if err != nil || ap.Port() == 0 {
			return nil, fmt.Errorf("upstream.resolvers: %q: must be address:port, such as 192.0.2.53:53", r)
		}
		g.servers.fixed = append(g.servers.fixed, ap.String())
	}
	cache, err := lru.New[string, *answer](cacheEntries)
	if err != nil {
		return nil, fmt.Errorf("dns cache: %w", err)
	}
	g.cache = cache
	g.dialer = net.Dialer{
		FallbackDelay:  -1,
		ControlContext: g.control(orDefault(o.UserTimeout, defaultUserTimeout)),
		KeepAliveConfig: net.KeepAliveConfig{
			Enable: true, Idle: 30 * time.Second, Interval: 15 * time.Second, Count: 4,
		},
	}
	return g, nil
}

// Close ends lookups that are under way and waits for them. Lookup fails from then on;
// Check and Dial still work.
func (g *Guard) Close() {
	g.mu.Lock()
	if !g.closed {
		g.closed = true
		close(g.done)
	}
	g.mu.Unlock()
	g.wg.Wait()
}

func orDefault(d, def time.Duration) time.Duration {
	if d <= 0 {
		return def
	}
	return d
}

// localAddrs remembers the addresses of the machine's interfaces for a few seconds.
type localAddrs struct {
	mu    sync.Mutex
	at    time.Time
	addrs []netip.Addr
}

func (l *localAddrs) has(a netip.Addr) (bool, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.at.IsZero() || time.Since(l.at) > interfacesTTL {
		addrs, err := interfaceAddrs()
		if err != nil {
			return false, err
		}
		l.addrs, l.at = addrs, time.Now()
	}
	return slices.Contains(l.addrs, a), nil
}

func interfaceAddrs() ([]netip.Addr, error) {
	nets, err := net.InterfaceAddrs()
	if err != nil {
		return nil, fmt.Errorf("listing interface addresses: %w", err)
	}
	out := make([]netip.Addr, 0, len(nets))
	for _, n := range nets {
		if p, err := netip.ParsePrefix(n.String()); err == nil {
			out = append(out, p.Addr().Unmap())
		}
	}
	return out, nil
}
