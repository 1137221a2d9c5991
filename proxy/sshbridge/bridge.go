package sshbridge

import (
	"context"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/egressd/egressd/proxy/wire"
)

// Serve carries the connection until both ends are done with it, one has gone, or ctx
// ends. It closes what it has dialled, and s.Client too. The error is nil when both were
// logged in, and says otherwise why not; it holds nothing secret.
func Serve(ctx context.Context, s *wire.Session, o Options) (err error) {
	o, err = o.withDefaults()
	if err != nil {
		return err
	}
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("ssh: panic: %T", r) // the value may hold what was sent
		}
	}()
	limit := maxLogin
	if s.HandshakeTimeout > 0 {
		limit = min(limit, s.HandshakeTimeout)
	}
	handshake, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	up := startLogin(handshake, s, o)
	defer up.close()
	client, err := accept(handshake, s, o, up)
	if err != nil {
		return blame(handshake, cancel, up, err)
	}
	s.Opened(up.raw)
	b := &bridge{o: o, client: client, up: up.leg, raw: s.Client, idle: s.IdleTimeout}
	b.run(ctx)
	return nil
}

// blame says why nobody is logged in: the login upstream, where it failed by itself, is the
// reason why the sandbox's did.
func blame(handshake context.Context, cancel context.CancelFunc, up *login, err error) error {
	own := handshake.Err() != nil
	select {
	case <-up.done:
		own = true
	default:
	}
	cancel()
	<-up.done
	if own && up.err != nil {
		return up.err
	}
	return err
}

// bridge is two legs that are logged in.
type bridge struct {
	o          Options
	client, up *leg
	raw        net.Conn // the sandbox's
	idle       time.Duration

	open  atomic.Int32 // channels
	moved atomic.Int64 // counts what the sandbox and the origin send, not their signs of life

	toUp, toClient atomic.Int32 // channels that may still carry bytes that way
	all            sync.WaitGroup
}

// run returns when both legs are closed and every goroutine has ended.
func (b *bridge) run(ctx context.Context) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stop := context.AfterFunc(ctx, b.close)
	defer stop()
	for _, f := range []func(){
		b.clientRequests,
		b.upstreamRequests,
		b.clientChannels,
		b.upstreamChannels,
		func() { b.keepAlive(ctx, b.client) },
		func() { b.keepAlive(ctx, b.up) },
		func() { b.watchIdle(ctx) },
	} {
		b.spawn(f)
	}
	clientGone, upGone := make(chan struct{}), make(chan struct{})
	b.spawn(func() { _ = b.client.Wait(); close(clientGone) })
	b.spawn(func() { _ = b.up.Wait(); close(upGone) })
	select { // what the one that has gone had sent goes on to the other
	case <-clientGone:
		b.flush(&b.toUp, upGone)
	case <-upGone:
		b.flush(&b.toClient, clientGone)
		b.farewell(clientGone)
	}
	cancel()
	b.close()
	b.all.Wait()
}

func (b *bridge) close() {
	_ = b.client.Close()
	_ = b.up.Close()
}

// spawn runs f as a goroutine that run waits for and whose panic ends the connection
// alone.
func (b *bridge) spawn(f func()) {
	b.all.Go(func() {
		defer func() {
			if r := recover(); r != nil {
				b.close()
			}
		}()
		f()
	})
}

// flush waits until no channel carries bytes one way, until nothing has moved for
// flushTime, for flushMost at most, or until gone is closed.
func (b *bridge) flush(carrying *atomic.Int32, gone <-chan struct{}) {
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	start := time.Now()
	for last, since := b.moved.Load(), start; carrying.Load() > 0; {
		select {
		case <-gone:
			return
		case <-tick.C:
		}
		if now := b.moved.Load(); now != last {
			last, since = now, time.Now()
		}
		if time.Since(since) > flushTime || time.Since(start) > flushMost {
			return
		}
	}
}

// farewell ends the sandbox's connection so that it can read what is on its way: closing at
// once would answer what it still sends with a reset, which throws that away.
func (b *bridge) farewell(gone <-chan struct{}) {
	if half, ok := b.raw.(interface{ CloseWrite() error }); ok {
		_ = half.CloseWrite()
	}
	timer := time.NewTimer(flushTime)
	defer timer.Stop()
	select {
	case <-gone:
	case <-timer.C:
	}
}

// keepAlive asks an end that has been silent whether it is still there, and closes it when
// no answer comes.
func (b *bridge) keepAlive(ctx context.Context, l *leg) {
	tick := time.NewTicker(b.o.KeepAlive)
	defer tick.Stop()
	for last := int64(-1); ; {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if now := b.moved.Load(); now != last {
			last = now
			continue
		}
		silent := time.AfterFunc(max(3*b.o.KeepAlive, leastSilence), func() { _ = l.Close() })
		_, _, err := l.SendRequest("keepalive@openssh.com", true, nil)
		silent.Stop()
		if err != nil {
			return
		}
	}
}

// watchIdle ends a connection in which no channel has been open and nothing was asked for
// during the idle limit. One with a channel may be silent: keepAlive knows whether
// somebody is there.
func (b *bridge) watchIdle(ctx context.Context) {
	if b.idle <= 0 {
		return
	}
	tick := time.NewTicker(b.idle)
	defer tick.Stop()
	for last := int64(-1); ; {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		now := b.moved.Load()
		if now == last && b.open.Load() == 0 {
			b.close()
			return
		}
		last = now
	}
}

// clientRequests answers the sandbox's global requests: keep-alives want any answer.
// Forwarding of the origin's ports to the sandbox is refused whatever the payload (E05);
// host keys are not proved, since none is announced (E12). no-more-sessions@openssh.com
// is not passed on: x/crypto/ssh keeps requests and channels in separate queues, so that
// it could overtake the session that it was sent after.
func (b *bridge) clientRequests() {
	for r := range b.client.requests {
		b.moved.Add(1)
		_ = r.Reply(false, nil)
	}
}

// upstreamRequests drops what an origin asks for, hostkeys-00@openssh.com first of all: the
// sandbox would learn keys that it never meets (E12).
func (b *bridge) upstreamRequests() {
	for r := range b.up.requests {
		_ = r.Reply(false, nil)
	}
}

// upstreamChannels refuses what an origin opens: agents, X11, forwarded ports.
func (b *bridge) upstreamChannels() {
	for n := range b.up.channels {
		_ = n.Reject(ssh.Prohibited, "egressd opens nothing towards a sandbox")
	}
}
