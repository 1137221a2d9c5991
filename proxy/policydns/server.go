package policydns

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
	"golang.org/x/time/rate"
)

// Server answers sandboxes. It may serve several listeners, at once too; their limits are
// common.
type Server struct {
	opts    Options
	limits  Limits
	clients *clients
	unknown *rate.Limiter
	lookups chan struct{} // of all sandboxes
	conns   chan struct{}
}

// New makes a Server. It starts nothing.
func New(o Options) *Server {
	l := o.Limits.withDefaults()
	return &Server{
		opts: o, limits: l, clients: newClients(l),
		unknown: rate.NewLimiter(unknownRate, unknownBurst),
		lookups: make(chan struct{}, l.Total),
		conns:   make(chan struct{}, max(l.Total/4, 1)),
	}
}

func (s *Server) report(e Event) {
	if s.opts.Report != nil {
		s.opts.Report(e)
	}
}

// Serve answers what comes in on pc and ln, either of which may be nil, until ctx ends,
// which is no error, or one of them fails. It closes both and returns when everything that
// it began has ended.
func (s *Server) Serve(ctx context.Context, pc net.PacketConn, ln net.Listener) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var wg sync.WaitGroup
	errs := make(chan error, 2)
	serve := func(run func(context.Context) error) {
		wg.Go(func() {
			errs <- run(ctx)
			cancel()
		})
	}
	if pc != nil {
		serve(func(ctx context.Context) error { return s.serveUDP(ctx, pc) })
	}
	if ln != nil {
		serve(func(ctx context.Context) error { return s.serveTCP(ctx, ln) })
	}
	<-ctx.Done()
	if pc != nil {
		_ = pc.Close()
	}
	if ln != nil {
		_ = ln.Close()
	}
	wg.Wait()
	close(errs)
	for err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

// failures in a row after which a listener is given up.
const failures = 100

// again says whether to go on after an error of a listener, and waits a little before it.
func again(ctx context.Context, err error, inARow *int) bool {
	if *inARow++; errors.Is(err, net.ErrClosed) || *inARow > failures {
		return false
	}
	select {
	case <-ctx.Done():
		return false
	case <-time.After(10 * time.Millisecond):
		return true
	}
}

// serveUDP reads packets one by one and hands those that are to be answered to goroutines,
// of which there are no more than places.
func (s *Server) serveUDP(ctx context.Context, pc net.PacketConn) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	read, write := packets(pc)
	buf := make([]byte, maxUDP)
	inARow := 0
	for {
		n, from, err := read(buf)
		if err != nil {
			if !again(ctx, err, &inARow) {
				return orNil(ctx, err)
			}
			continue
		}
		inARow = 0
		c, reply := s.admit(from, buf[:n])
		if c == nil {
			if reply != nil {
				_ = write(reply, from)
			}
			continue
		}
		packet := append([]byte(nil), buf[:n]...)
		wg.Go(func() {
			defer s.leave(c)
			if reply := s.answer(ctx, c, packet, false); reply != nil {
				_ = write(reply, from) // a client that cannot be reached asks again
			}
		})
	}
}

// orNil: what fails because ctx has ended has not failed.
func orNil(ctx context.Context, err error) error {
	select {
	case <-ctx.Done():
		return nil
	default:
		return err
	}
}

// admit says for whom packet is to be answered; that one has a place then, and leave gives
// it back. For nobody there may be a reply at once.
func (s *Server) admit(from source, packet []byte) (*client, []byte) {
	sandbox, ok := s.opts.Identify(from.addr)
	if !ok {
		s.report(Event{Outcome: Unknown})
		if !s.unknown.Allow() {
			return nil, nil
		}
		return nil, refusal(packet)
	}
	c := s.clients.get(sandbox)
	if !c.limit.Allow() || !s.enter(c) {
		s.report(Event{Sandbox: sandbox, Outcome: Limited})
		return nil, nil
	}
	return c, nil
}

// enter takes a place for a lookup, of the sandbox and of all.
func (s *Server) enter(c *client) bool {
	if !take(c.lookups) {
		return false
	}
	if !take(s.lookups) {
		release(c.lookups)
		return false
	}
	return true
}

func (s *Server) leave(c *client) {
	release(s.lookups)
	release(c.lookups)
}

// refusal is REFUSED without the question: never longer than what it answers.
func refusal(packet []byte) []byte {
	if len(packet) < headerLen || packet[2]&0x80 != 0 {
		return nil
	}
	return bare(packet, dns.RcodeRefused)
}

// source is where a packet came from, and with it where it was sent to.
type source struct {
	addr    netip.Addr
	to      net.Addr
	session *dns.SessionUDP
}

// packets reads from pc and writes back from the address that was written to, which on a
// socket for all addresses need not be the one that the kernel would choose.
func packets(pc net.PacketConn) (read func([]byte) (int, source, error), write func([]byte, source) error) {
	udp, ok := pc.(*net.UDPConn)
	if ok {
		err6 := ipv6.NewPacketConn(udp).SetControlMessage(ipv6.FlagDst|ipv6.FlagInterface, true)
		err4 := ipv4.NewPacketConn(udp).SetControlMessage(ipv4.FlagDst|ipv4.FlagInterface, true)
		ok = err4 == nil || err6 == nil
	}
	if !ok {
		return func(b []byte) (int, source, error) {
				n, from, err := pc.ReadFrom(b)
				return n, source{addr: addrOf(from), to: from}, err
			}, func(b []byte, to source) error {
				_, err := pc.WriteTo(b, to.to)
				return err
			}
	}
	return func(b []byte) (int, source, error) {
			n, session, err := dns.ReadFromSessionUDP(udp, b)
			if err != nil {
				return n, source{}, err
			}
			return n, source{addr: addrOf(session.RemoteAddr()), session: session}, nil
		}, func(b []byte, to source) error {
			_, err := dns.WriteToSessionUDP(udp, b, to.session)
			return err
		}
}

// addrOf is invalid for what is no IP address; Identify knows nobody there.
func addrOf(a net.Addr) netip.Addr {
	var ap netip.AddrPort
	switch a := a.(type) {
	case *net.UDPAddr:
		ap = a.AddrPort()
	case *net.TCPAddr:
		ap = a.AddrPort()
	}
	return ap.Addr().Unmap()
}
