package sshbridge

import (
	"errors"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/egressd/egressd/policy"
)

// clientChannels decides on what the sandbox opens.
func (b *bridge) clientChannels() {
	for n := range b.client.channels {
		b.moved.Add(1)
		kind := n.ChannelType()
		switch {
		case kind == "direct-tcpip" && checkForward(n.ExtraData()) != nil:
			_ = n.Reject(ssh.ConnectionFailed, "malformed request")
		case kind != "session" && kind != "direct-tcpip":
			_ = n.Reject(ssh.UnknownChannelType, "egressd does not carry channels of this type")
		case b.open.Load() >= int32(b.o.MaxChannels):
			_ = n.Reject(ssh.ResourceShortage, "too many channels")
		default:
			b.open.Add(1)
			b.toUp.Add(1)
			b.toClient.Add(1)
			b.spawn(func() {
				defer b.open.Add(-1)
				b.carry(n)
			})
		}
	}
}

// carry opens the channel upstream as well and returns when both are closed.
func (b *bridge) carry(n ssh.NewChannel) {
	c := &channel{b: b, session: n.ChannelType() == "session", started: make(chan struct{}), outputDone: make(chan struct{}), inputDone: make(chan struct{})}
	if err := c.openBoth(n); err != nil {
		b.toUp.Add(-1)
		b.toClient.Add(-1)
		return
	}
	if !c.session {
		c.start()
	}
	var wg sync.WaitGroup
	for _, f := range []func(){c.input, c.output, c.fromClient, c.fromUpstream} {
		wg.Go(func() {
			defer func() {
				if r := recover(); r != nil {
					b.close()
				}
			}()
			f()
		})
	}
	wg.Wait()
}

// channel is a pair of channels.
type channel struct {
	b        *bridge
	session  bool
	client   ssh.Channel
	up       ssh.Channel
	asks     <-chan *ssh.Request // of the client
	tells    <-chan *ssh.Request // of upstream
	once     sync.Once
	started  chan struct{} // output may flow: what was started has been answered
	begun    bool          // a shell, command or subsystem was let pass; fromClient's
	pty      bool
	replying sync.Mutex // held from a request of the client to its answer

	inputDone, outputDone chan struct{}
	writing               atomic.Int32 // pumps that wait for the client to take what they have
	pumped                atomic.Int64
}

func (c *channel) start() { c.once.Do(func() { close(c.started) }) }

// openBoth opens upstream first, so that the sandbox gets upstream's answer.
func (c *channel) openBoth(n ssh.NewChannel) (err error) {
	if !c.session && !c.b.o.Allow(policy.SSHRequest{Kind: policy.SSHForwarding}) {
		return errors.Join(errPayload, n.Reject(ssh.Prohibited, "not allowed by policy"))
	}
	c.up, c.tells, err = c.b.up.OpenChannel(n.ChannelType(), n.ExtraData())
	var refused *ssh.OpenChannelError
	switch {
	case errors.As(err, &refused):
		return errors.Join(err, n.Reject(refused.Reason, oneLine(refused.Message, maxMessage)))
	case err != nil:
		return errors.Join(err, n.Reject(ssh.ConnectionFailed, "no connection upstream"))
	}
	if c.client, c.asks, err = n.Accept(); err != nil {
		_ = c.up.Close()
		ssh.DiscardRequests(c.tells)
	}
	return err
}

// input carries what the sandbox sends. Its end is passed on as such.
func (c *channel) input() {
	defer c.b.toUp.Add(-1)
	defer close(c.inputDone)
	c.pump(c.up, c.client, nil)
	_ = c.up.CloseWrite()
}

// output carries what the origin sends, stdout and stderr apart. The end of a session's
// output is held back until the origin closes the channel: a client that has sent its own
// end answers with a close, which x/crypto/ssh answers at once and takes no exit status
// after.
func (c *channel) output() {
	defer close(c.outputDone)
	<-c.started
	var wg sync.WaitGroup
	wg.Go(func() { c.pump(c.client.Stderr(), c.up.Stderr(), &c.writing) })
	c.pump(c.client, c.up, &c.writing)
	wg.Wait()
	if !c.session {
		_ = c.client.CloseWrite()
	}
}

const (
	smallBuffer = 4 << 10
	largeBuffer = 64 << 10 // two packets
)

// pump copies until src has ended or dst takes no more. It begins with a small buffer,
// which most channels never fill.
func (c *channel) pump(dst io.Writer, src io.Reader, writing *atomic.Int32) {
	buf := make([]byte, smallBuffer)
	for {
		n, err := src.Read(buf)
		if n > 0 {
			c.b.moved.Add(1)
			c.pumped.Add(1)
			if writing != nil {
				writing.Add(1)
			}
			_, werr := dst.Write(buf[:n])
			if writing != nil {
				writing.Add(-1)
			}
			if werr != nil {
				return
			}
			if n == len(buf) && n < largeBuffer {
				buf = make([]byte, largeBuffer)
			}
		}
		if err != nil {
			return
		}
	}
}

// fromClient handles the sandbox's requests until it closes its channel, and then closes
// upstream's when what it had sent before is there.
func (c *channel) fromClient() {
	defer c.start() // output need not wait for anything more
	for r := range c.asks {
		c.b.moved.Add(1)
		if c.answer(r) {
			c.start()
		}
	}
	c.start()
	<-c.inputDone
	_ = c.up.Close()
}

// answer says whether output follows.
func (c *channel) answer(r *ssh.Request) (starts bool) {
	c.replying.Lock()
	defer c.replying.Unlock()
	ok, starts := c.ask(r)
	_ = r.Reply(ok, nil)
	return starts
}

// ask passes one request of the sandbox on, if it may; starts says that output follows.
func (c *channel) ask(r *ssh.Request) (ok, starts bool) {
	if !c.session {
		return false, false
	}
	var err error
	switch r.Type {
	case "shell", "exec", "subsystem":
		ok = c.begin(r)
		return ok, ok
	case "pty-req":
		if err = checkPty(r.Payload); c.pty || c.begun {
			err = errPayload
		}
		c.pty = true
	case "window-change":
		err = checkFixed(r.Payload, 4)
	case "env":
		if c.begun || !envAllowed(r.Payload, c.b.o.AcceptEnv) {
			return false, false // as a server that does not accept it
		}
	case "signal":
		err = checkSignal(r.Payload)
	case "break":
		err = checkFixed(r.Payload, 1)
	case "eow@openssh.com":
		err = checkFixed(r.Payload, 0)
	default: // auth-agent-req@openssh.com, x11-req and whatever else there is (E03)
		return false, false
	}
	if err != nil {
		return false, false
	}
	ok, err = c.up.SendRequest(r.Type, r.WantReply, r.Payload)
	return ok && err == nil, false
}

// begin lets policy decide on what a session is for. There is one such request in a
// session (RFC 4254, 6.5).
func (c *channel) begin(r *ssh.Request) bool {
	what, err := asked(r.Type, r.Payload)
	if err != nil || c.begun || !c.b.o.Allow(what) {
		return false
	}
	ok, err := c.up.SendRequest(r.Type, r.WantReply, r.Payload)
	c.begun = err == nil && (ok || !r.WantReply)
	return c.begun
}

// fromUpstream handles the origin's requests until it closes its channel, and then closes
// the sandbox's: after the output, and after the answer to what the sandbox was asking.
func (c *channel) fromUpstream() {
	defer c.b.toClient.Add(-1)
	for r := range c.tells {
		switch payload := r.Payload; r.Type {
		case "exit-status":
			if _, err := exitStatus(payload); err == nil {
				c.settle()
				_, _ = c.client.SendRequest(r.Type, false, payload)
			}
		case "exit-signal":
			if clean, err := exitSignal(payload); err == nil {
				c.settle()
				_, _ = c.client.SendRequest(r.Type, false, clean)
			}
		case "xon-xoff":
			if len(payload) == 1 {
				_, _ = c.client.SendRequest(r.Type, false, payload)
			}
		case "eow@openssh.com":
			_, _ = c.client.SendRequest(r.Type, false, nil)
		}
		_ = r.Reply(false, nil) // keepalive@openssh.com wants any answer
	}
	c.start()
	<-c.outputDone
	c.replying.Lock()
	defer c.replying.Unlock()
	_ = c.client.CloseWrite()
	_ = c.client.Close()
}

const (
	settleTick  = 20 * time.Millisecond
	settleTicks = 10
)

// settle waits until what the origin sent before an exit status is on its way to the
// sandbox. x/crypto/ssh keeps data and requests in separate queues, so it is over when the
// output has ended, or when no pump has had anything to do for some time: a process that
// went to the background may keep the output open for ever.
func (c *channel) settle() {
	tick := time.NewTicker(settleTick)
	defer tick.Stop()
	for last, quiet := int64(-1), 0; quiet < settleTicks; {
		select {
		case <-c.outputDone:
			return
		case <-tick.C:
		}
		if now := c.pumped.Load(); now != last || c.writing.Load() > 0 {
			last, quiet = now, 0
			continue
		}
		quiet++
	}
}
