package proxy

import (
	"context"
	"net"
	"sync"

	lru "github.com/hashicorp/golang-lru/v2"
	"golang.org/x/time/rate"
)

// bandwidth bounds the bytes per second of each sandbox, each way. nil: no bound.
type bandwidth struct {
	limit int64
	mu    sync.Mutex
	of    *lru.Cache[string, *pace]
}

// pace is the bound of one sandbox, shared by all that it has open. nil: none.
type pace struct{ in, out *rate.Limiter }

// paced is how many sandboxes are remembered. One that is forgotten starts with a full
// bucket again.
const paced = 4096

// burst is the least that may pass at once: what is copied in one piece.
const burst = len(copyBuffer{})

func newBandwidth(limit int64) *bandwidth {
	if limit <= 0 {
		return nil
	}
	of, _ := lru.New[string, *pace](paced) // fails on a size below 1 only
	return &bandwidth{limit: limit, of: of}
}

func (b *bandwidth) pace(sandbox string) *pace {
	if b == nil {
		return nil
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if p, ok := b.of.Get(sandbox); ok {
		return p
	}
	most := max(burst, int(min(b.limit/8, 1<<30)))
	p := &pace{in: rate.NewLimiter(rate.Limit(b.limit), most), out: rate.NewLimiter(rate.Limit(b.limit), most)}
	b.of.Add(sandbox, p)
	return p
}

// wait until n more bytes may pass; in: from the sandbox.
func (p *pace) wait(ctx context.Context, in bool, n int) error {
	if p == nil || n <= 0 {
		return nil
	}
	l := p.out
	if in {
		l = p.in
	}
	for n > 0 {
		piece := min(n, l.Burst())
		if err := l.WaitN(ctx, piece); err != nil {
			return err
		}
		n -= piece
	}
	return nil
}

// slowed is c at the sandbox's pace, for tunnels. Without a bound it is c itself, so that
// the kernel splices.
func (p *pace) slowed(ctx context.Context, c net.Conn) net.Conn {
	if p == nil {
		return c
	}
	return &slowConn{Conn: c, ctx: ctx, pace: p}
}

// slowConn is the sandbox's side of a tunnel.
type slowConn struct {
	net.Conn
	ctx  context.Context //nolint:containedctx // of the tunnel, as long as the connection
	pace *pace
}

func (c *slowConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p[:min(len(p), burst)])
	if werr := c.pace.wait(c.ctx, true, n); werr != nil && err == nil {
		err = werr
	}
	return n, err
}

func (c *slowConn) Write(p []byte) (int, error) {
	total := 0
	for len(p) > 0 {
		piece := p[:min(len(p), burst)]
		if err := c.pace.wait(c.ctx, false, len(piece)); err != nil {
			return total, err
		}
		n, err := c.Conn.Write(piece)
		total += n
		if err != nil {
			return total, err
		}
		p = p[n:]
	}
	return total, nil
}

// CloseWrite half-closes where the connection underneath can.
func (c *slowConn) CloseWrite() error {
	if hc := halfCloser(c.Conn); hc != nil {
		return hc.CloseWrite()
	}
	return c.Conn.Close()
}
