package proxy

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/egressd/egressd/policy"
)

// relay carries a tunnel whose inside no rule looks at. Both sides stay bare TCP
// connections, so that the kernel splices between them.
func (s *Server) relay(ctx context.Context, t *tunnel, b *bound, f policy.Flow, dec policy.Decision, addrs []netip.Addr, prefix []byte) {
	x := t.begin(s)
	x.dest, x.protocol, x.decision, x.flow = t.dest, f.Protocol.String(), dec, f
	since := s.changes.now()
	way, ref := s.routeFor(ctx, b, dec.Proxy)
	if ref != nil {
		s.closeTunnel(t, prefix, f.Protocol, ref)
		return
	}
	up, err := s.upstream.reach(ctx, f.Sandbox.ID, t.dest, addrs, way)
	if err != nil {
		s.closeTunnel(t, prefix, f.Protocol, dialRefusal(err))
		return
	}
	metered := up
	defer func() { _ = metered.Close() }()
	up = bare(up) // splice needs it
	if len(prefix) > 0 {
		_ = up.SetWriteDeadline(time.Now().Add(s.limits.StallTimeout)) // as pipe has its own
		if _, err := up.Write(prefix); err != nil {
			s.closeTunnel(t, prefix, f.Protocol, dialRefusal(err))
			return
		}
	}
	if way.proxy == nil { // else it is the proxy's
		f.Addr = addrOf(up)
	}
	t.handle.watch(func(r *Ruleset) bool { return t.stillPasses(r, f, dec.Proxy) }, up)
	defer t.handle.unwatch()
	a := about{dest: t.dest.String(), protocol: x.protocol, rule: dec.Rule, stamps: stamps{team: f.Sandbox.Team, way: stampOf(way.login)}}
	s.live.describe(t.handle, a)
	if gone := func() bool { return way.held().revoked(ctx) }; way.from != nil {
		t.handle.watchCredential(gone)
		if since.ended(a.stamps, gone) {
			t.handle.cut()
		}
	}
	s.metrics.tunnels.Inc()
	defer s.metrics.tunnels.Dec()
	in, out, err := pipe(s.paces.pace(f.Sandbox.ID).slowed(ctx, t.conn), up, s.limits.IdleTimeout)
	x.bytesIn, x.bytesOut, x.status = in+int64(len(prefix)), out, http.StatusOK
	if err != nil {
		x.outcome, x.detail = outcomeAborted, err.Error()
	}
	x.finish()
}

// stillPasses asks a new ruleset whether an open relay may stay, and stay on its way out.
func (t *tunnel) stillPasses(r *Ruleset, f policy.Flow, by *policy.Proxy) bool {
	b, err := t.sess.bindTo(r)
	if err != nil {
		return false
	}
	f.Sandbox = b.sandbox
	if d := r.Policy.Decide(&f); d.Action != policy.Pass || !sameWay(d.Proxy, by) {
		return false
	}
	if t.silent { // nobody knows what is spoken in it
		for _, f.Protocol = range everyProtocol {
			if r.Policy.Decide(&f).Action == policy.Deny {
				return false
			}
		}
	}
	return true
}

// pipe copies both ways until both have ended, one has failed, or neither has moved
// a byte for idle. It returns the bytes of a → b and b → a.
func pipe(a, b net.Conn, idle time.Duration) (ab, ba int64, err error) {
	var wg sync.WaitGroup
	var errAB error
	act := &activity{start: time.Now(), stuck: idle}
	act.limit.Store(int64(idle))
	wg.Go(func() {
		ab, errAB = copyHalf(b, a, act)
	})
	ba, err = copyHalf(a, b, act)
	wg.Wait()
	return ab, ba, errors.Join(errAB, err)
}

// halfCloseTimeout is the idle limit of one direction after the other has ended.
const halfCloseTimeout = 60 * time.Second

// activity is what both halves of a pipe share: a side that only listens is not idle
// while the other speaks.
type activity struct {
	start time.Time
	moved atomic.Int64  // when a byte was last seen to have moved, ns after start
	limit atomic.Int64  // ns
	stuck time.Duration // how long a side may take nothing of what is for it
}

// slice is how long a half copies before it looks at what the other has done.
func (a *activity) slice() time.Time {
	return time.Now().Add(time.Duration(max(a.limit.Load()/4, 1)))
}

func (a *activity) idle() bool { return int64(time.Since(a.start))-a.moved.Load() >= a.limit.Load() }

// copyHalf copies src to dst until src ends, then half-closes dst. Between *net.TCPConn
// io.Copy is splice(2), of which nothing is known before it returns: the idle limit is
// coarse, to within a quarter. A dst that takes nothing is not left to the other half, which
// may have ended long before.
func copyHalf(dst, src net.Conn, act *activity) (total int64, err error) {
	for {
		stuck := time.Now().Add(act.stuck)
		if err = errors.Join(src.SetReadDeadline(act.slice()), dst.SetWriteDeadline(stuck)); err != nil {
			break
		}
		var n int64
		n, err = io.Copy(dst, onlyReader(src))
		if total += n; n > 0 {
			act.moved.Store(int64(time.Since(act.start)))
		}
		// Of a write that was given up nobody knows how much has left.
		if !errors.Is(err, os.ErrDeadlineExceeded) || act.idle() || !time.Now().Before(stuck) {
			break
		}
	}
	if err == nil {
		if hc, ok := dst.(interface{ CloseWrite() error }); ok {
			err = ignoreClosed(hc.CloseWrite())
			act.limit.Store(min(act.limit.Load(), int64(halfCloseTimeout)))
			_ = dst.SetReadDeadline(act.slice()) // the other half looks at its new limit soon
			return total, err
		}
	}
	_ = dst.Close()
	_ = src.Close()
	return total, ignoreClosed(err)
}

// onlyReader keeps *net.TCPConn bare for splice and hides nothing else.
func onlyReader(c net.Conn) io.Reader { return c }

func ignoreClosed(err error) error {
	// ENOTCONN: there is no direction left to end; the peer has ended both.
	if errors.Is(err, net.ErrClosed) || errors.Is(err, io.EOF) || errors.Is(err, syscall.ENOTCONN) {
		return nil
	}
	return err
}

func addrOf(c net.Conn) netip.Addr {
	if ta, ok := c.RemoteAddr().(*net.TCPAddr); ok {
		return ta.AddrPort().Addr().Unmap()
	}
	return netip.Addr{}
}
