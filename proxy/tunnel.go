package proxy

import (
	"bytes"
	"context"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"

	"github.com/egressd/egressd/internal/h1"
	"github.com/egressd/egressd/policy"
)

// tunnel is one client connection and, after CONNECT, the one destination that it
// leads to. Before dispatch it is owned by its goroutine; afterwards dest, sess, way
// and tls do not change.
type tunnel struct {
	srv     *Server
	raw     net.Conn // as accepted: bare, so that relays can splice
	conn    net.Conn // raw with what was read ahead replayed
	sess    *session
	way     way
	dest    dest   // of the tunnel; absolute-form requests have their own
	tls     bool   // requests come out of intercepted TLS
	h2c     bool   // HTTP/2 in clear, with prior knowledge
	silent  bool   // relayed before its client had said what it speaks
	ech     uint16 // of its ClientHello: 0 none, or 1 more than the id of the key that it is sealed to
	handle  *entry
	client  netip.Addr // its address
	flights flights
	watched atomic.Pointer[watchlist]

	ctx      context.Context //nolint:containedctx // ends when what is open is cut
	drain    context.Context //nolint:containedctx // ends earlier: when draining begins
	absolute dest            // of the absolute-form request being served
	resets   atomic.Int32    // h2 streams given up, less those that finished
	looks    atomic.Pointer[looks]
	enter    func(*tunnel) // what the way in does first
	next     func()        // what the connection's owner does after that

	// aimed is the address that a transparent client, or one that resolves names itself,
	// connected to: no identity, a name is still to be claimed. Invalid: the client said one.
	aimed netip.AddrPort
}

// looks is what rules look at in requests to one destination, under one ruleset.
type looks struct {
	bound          *bound
	host           string
	port           uint16
	protocol       policy.Protocol // one connection carries absolute-form and, later, a tunnel
	paths, methods bool
}

// looksAt asks the rules once for the requests of a tunnel, and not for the address of each:
// what any of them looks at counts for all.
func (t *tunnel) looksAt(b *bound, f *policy.Flow) *looks {
	l := t.looks.Load()
	if l == nil || l.bound != b || l.host != f.Host || l.port != f.Port || l.protocol != f.Protocol {
		l = &looks{bound: b, host: f.Host, port: f.Port, protocol: f.Protocol}
		l.paths, l.methods = b.rules.Policy.LooksAtPaths(f), b.rules.Policy.LooksAtMethods(f)
		t.looks.Store(l)
	}
	return l
}

type tunnelKey struct{}

func tunnelOf(ctx context.Context) *tunnel {
	t, _ := ctx.Value(tunnelKey{}).(*tunnel)
	return t
}

func addrPort(ip netip.Addr, port uint16) netip.AddrPort { return netip.AddrPortFrom(ip, port) }

// replayConn gives back bytes that were read ahead, then the connection's own.
type replayConn struct {
	net.Conn
	t      *tunnel
	prefix []byte
	closed chan struct{} // closed with the connection; nil where nobody waits
	once   sync.Once
	mu     sync.Mutex // keeps what is written in order
	cork   *bytes.Buffer
}

var _ h1.Corker = (*replayConn)(nil)

// corks hold what leaves in one write: a few TLS records.
var corks = sync.Pool{New: func() any { return new(bytes.Buffer) }}

// Cork implements h1.Corker.
func (c *replayConn) Cork() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.cork, _ = corks.Get().(*bytes.Buffer)
}

// Uncork implements h1.Corker.
func (c *replayConn) Uncork() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	var err error
	if c.cork.Len() > 0 {
		_, err = c.Conn.Write(c.cork.Bytes())
	}
	c.cork.Reset()
	corks.Put(c.cork)
	c.cork = nil
	return err
}

func (c *replayConn) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.cork != nil {
		return c.cork.Write(p)
	}
	return c.Conn.Write(p)
}

// NetConn is the connection underneath, for half-closing and resetting it.
func (c *replayConn) NetConn() net.Conn { return c.Conn }

func (c *replayConn) Close() error {
	err := c.Conn.Close()
	c.once.Do(func() {
		if c.closed != nil {
			close(c.closed)
		}
	})
	return err
}

func (c *replayConn) Read(p []byte) (int, error) {
	if len(c.prefix) > 0 {
		n := copy(p, c.prefix)
		if c.prefix = c.prefix[n:]; len(c.prefix) == 0 {
			c.prefix = nil // a spent ClientHello is 1.5 KiB that an idle tunnel need not hold
		}
		return n, nil
	}
	return c.Conn.Read(p)
}
