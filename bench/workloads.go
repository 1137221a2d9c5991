package main

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

const apiName = "api.bench.test"

// workload is one row of the table.
type workload struct {
	name, title, unit string
	proxies           []string
	short             bool // a sample is short and noise is long: three times the rounds
	isNew             bool // of no build before issue 3
	run               func(b *bench, t *target, round int) (float64, error)
	once              func(b *bench) error // instead of run: adds its samples itself
}

// sides are the proxies of w; another build of egressd is measured wherever egressd is.
func (w workload) sides() []string {
	if slices.Contains(w.proxies, egressd) && !w.isNew {
		return append(slices.Clone(w.proxies), before)
	}
	return w.proxies
}

func workloads() []workload {
	all := []string{direct, relay, library, hijack, egressd}
	through := all[1:]
	return []workload{
		{name: "h1", title: "HTTP/1.1, 64 clients keep-alive, 1 KiB", unit: "req/CPU-s", proxies: through, run: keepAlive},
		{name: "latency", title: "one client, p50", unit: "µs", proxies: all, short: true, run: latency},
		{name: "h2", title: "HTTP/2 client, 64 streams, 1 KiB", unit: "req/CPU-s", proxies: []string{hijack, egressd}, run: h2Streams},
		{name: "newconn", title: "new connection per request", unit: "req/CPU-s", proxies: through, run: newConns},
		{name: "resume", title: "new connection per request, sessions resumed", unit: "req/CPU-s", proxies: through, run: resumed},
		{name: "cold", title: "hosts never seen before", unit: "req/CPU-s", proxies: through, run: coldHosts},
		{name: "down", title: "bulk download, intercepted", unit: "CPU s/GiB", proxies: through, run: bulkRun(apiName, (*client).down)},
		{name: "up", title: "bulk upload, intercepted", unit: "CPU s/GiB", proxies: through, run: bulkRun(apiName, (*client).up)},
		{name: "pass-down", title: "bulk download, passthrough", unit: "CPU s/GiB", proxies: []string{relay, library, egressd}, run: bulkRun(passName, (*client).down)},
		{name: "pass-up", title: "bulk upload, passthrough", unit: "CPU s/GiB", proxies: []string{relay, library, egressd}, run: bulkRun(passName, (*client).up)},
		{name: "scrub", title: "bulk download, scrubbed", unit: "CPU s/GiB", proxies: []string{egressd}, short: true, isNew: true, run: scrubbed},
		{name: "ssh", title: "SSH sessions: log in, run a command", unit: "sessions/CPU-s", proxies: []string{relay, egressd}, isNew: true, run: sshSessions},
		{name: "ssh-down", title: "SSH download", unit: "CPU s/GiB", proxies: []string{relay, egressd}, isNew: true, run: sshBytes(sshDown)},
		{name: "ssh-up", title: "SSH upload", unit: "CPU s/GiB", proxies: []string{relay, egressd}, isNew: true, run: sshBytes(sshUp)},
		{name: "sse", title: "delay of an SSE event, p50", unit: "µs", proxies: all, run: streamRun("/sse")},
		{name: "ndjson", title: "delay of an NDJSON event, p50", unit: "µs", proxies: all, run: streamRun("/ndjson")},
		{name: "idle", title: "idle intercepted tunnel", unit: "KiB", once: idleTunnels},
		{name: "closed", title: "memory after closing tunnels, over start", unit: "×", once: closedTunnels},
		{name: "closed-again", title: "the same tunnels once more, over after the first time", unit: "×", once: func(*bench) error { return nil }}, // measured by closed
		{name: "mint", title: "64 first connections to one host: certificates seen", unit: "", once: mintOnce},
	}
}

func workloadNames() (out []string) {
	for _, w := range workloads() {
		out = append(out, w.name)
	}
	return out
}

// perCPU runs work for the plan's window and gives requests per CPU-second of t.
func (b *bench) perCPU(t *target, work func(ctx context.Context) (int64, error)) (float64, error) {
	ctx, stop := context.WithTimeout(b.ctx, b.plan.window)
	defer stop()
	before, err := t.cpu()
	if err != nil {
		return 0, err
	}
	n, err := work(ctx)
	if err != nil {
		return 0, err
	}
	after, err := t.cpu()
	if err != nil {
		return 0, err
	}
	return float64(n) / (after - before).Seconds(), nil
}

// parallel runs f in n goroutines until ctx ends or one fails, and counts the successes.
func parallel(ctx context.Context, n int, f func(i int) error) (int64, error) {
	var done atomic.Int64
	var wg sync.WaitGroup
	errs := make([]error, n)
	var broken atomic.Bool
	for i := range n {
		wg.Go(func() {
			for ctx.Err() == nil && !broken.Load() {
				if err := f(i); err != nil {
					errs[i] = err
					broken.Store(true)
					return
				}
				done.Add(1)
			}
		})
	}
	wg.Wait()
	return done.Load(), errors.Join(errs...)
}

// dialMany opens n connections to name and does one request on each, so that pools are full.
func (b *bench) dialMany(t *target, name string, n int) ([]*client, func(), error) {
	d := b.dialer(t)
	var out []*client
	closeAll := func() {
		for _, c := range out {
			_ = c.NetConn().Close()
		}
	}
	for range n {
		c, err := d.dial(b.ctx, name)
		if err != nil {
			closeAll()
			return nil, nil, err
		}
		out = append(out, c)
		if err := c.small(); err != nil {
			closeAll()
			return nil, nil, err
		}
	}
	return out, closeAll, nil
}

func keepAlive(b *bench, t *target, _ int) (float64, error) {
	conns, closeAll, err := b.dialMany(t, apiName, 64)
	if err != nil {
		return 0, err
	}
	defer closeAll()
	warm, stop := context.WithTimeout(b.ctx, b.plan.window/5)
	defer stop()
	if _, err := parallel(warm, len(conns), func(i int) error { return conns[i].small() }); err != nil {
		return 0, err
	}
	return b.perCPU(t, func(ctx context.Context) (int64, error) {
		return parallel(ctx, len(conns), func(i int) error { return conns[i].small() })
	})
}

func latency(b *bench, t *target, _ int) (float64, error) {
	conns, closeAll, err := b.dialMany(t, apiName, 1)
	if err != nil {
		return 0, err
	}
	defer closeAll()
	took := make([]time.Duration, 0, b.plan.latencies)
	for i := range b.plan.latencies + b.plan.latencies/10 {
		start := time.Now()
		if err := conns[0].small(); err != nil {
			return 0, err
		}
		if i >= b.plan.latencies/10 {
			took = append(took, time.Since(start))
		}
	}
	slices.Sort(took)
	return float64(took[len(took)/2].Nanoseconds()) / 1e3, nil
}

func h2Streams(b *bench, t *target, _ int) (float64, error) {
	d := b.dialer(t)
	d.tls.NextProtos = []string{"h2"}
	c, err := d.dial(b.ctx, apiName)
	if err != nil {
		return 0, err
	}
	defer func() { _ = c.NetConn().Close() }()
	if p := c.ConnectionState().NegotiatedProtocol; p != "h2" {
		return 0, fmt.Errorf("the proxy chose %q, not h2", p)
	}
	tr := &http.Transport{
		ForceAttemptHTTP2: true, DisableCompression: true,
		DialTLSContext: func(context.Context, string, string) (net.Conn, error) { return c.Conn, nil },
	}
	cc, err := tr.NewClientConn(b.ctx, "https", c.host)
	if err != nil {
		return 0, err
	}
	defer func() { _ = cc.Close() }()
	once := func(int) error {
		req, err := http.NewRequestWithContext(b.ctx, http.MethodGet, "https://"+c.host+"/small", nil)
		if err != nil {
			return err
		}
		req.Header["Authorization"] = []string{"Bearer placeholder"}
		resp, err := cc.RoundTrip(req)
		if err != nil {
			return err
		}
		defer func() { _ = resp.Body.Close() }()
		n, err := io.Copy(io.Discard, resp.Body)
		if err == nil && (resp.StatusCode != http.StatusOK || n != smallBody) {
			err = fmt.Errorf("%w: %s", errNotInjected, resp.Status)
		}
		return err
	}
	warm, stop := context.WithTimeout(b.ctx, b.plan.window/5)
	defer stop()
	if _, err := parallel(warm, 64, once); err != nil {
		return 0, err
	}
	return b.perCPU(t, func(ctx context.Context) (int64, error) { return parallel(ctx, 64, once) })
}

func newConns(b *bench, t *target, _ int) (float64, error) { return b.connections(t, b.dialer(t), nil) }

func resumed(b *bench, t *target, _ int) (float64, error) {
	d := b.dialer(t)
	d.tls.ClientSessionCache = tls.NewLRUClientSessionCache(64)
	for range 2 { // the first handshake brings the ticket
		c, err := d.dial(b.ctx, apiName)
		if err != nil {
			return 0, err
		}
		err = c.small()
		_ = c.NetConn().Close()
		if err != nil {
			return 0, err
		}
	}
	var all, did atomic.Int64
	v, err := b.connections(t, d, func(c *client) {
		all.Add(1)
		if c.ConnectionState().DidResume {
			did.Add(1)
		}
	})
	if rate := float64(did.Load()) / float64(max(1, all.Load())); err == nil {
		b.add("resumption rate", t.name, rate)
	}
	return v, err
}

// connections opens one connection after the other, 8 at a time, one request on each.
func (b *bench) connections(t *target, d *dialer, seen func(*client)) (float64, error) {
	// The upstream pool is warm: what is measured is the sandbox's side.
	_, closeAll, err := b.dialMany(t, apiName, 8)
	if err != nil {
		return 0, err
	}
	closeAll()
	return b.perCPU(t, func(ctx context.Context) (int64, error) {
		return parallel(ctx, 8, func(int) error {
			c, err := d.dial(b.ctx, apiName)
			if err != nil {
				return err
			}
			defer func() { _ = c.NetConn().Close() }()
			if seen != nil {
				seen(c)
			}
			return c.small()
		})
	})
}

func coldHosts(b *bench, t *target, round int) (float64, error) {
	n := b.coldPerRound()
	d := b.dialer(t)
	before, err := t.cpu()
	if err != nil {
		return 0, err
	}
	var next atomic.Int64
	var wg sync.WaitGroup
	errs := make([]error, 8)
	for w := range errs {
		wg.Go(func() {
			for i := next.Add(1) - 1; i < int64(n) && errs[w] == nil; i = next.Add(1) - 1 {
				c, err := d.dial(b.ctx, coldName(round, int(i)))
				if err != nil {
					errs[w] = err
					return
				}
				errs[w] = c.small()
				_ = c.NetConn().Close()
			}
		})
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		return 0, err
	}
	after, err := t.cpu()
	return float64(n) / (after - before).Seconds(), err
}

func bulkRun(name string, transfer func(*client, int64) error) func(*bench, *target, int) (float64, error) {
	return func(b *bench, t *target, _ int) (float64, error) {
		c, err := b.dialer(t).dial(b.ctx, name)
		if err != nil {
			return 0, err
		}
		defer func() { _ = c.NetConn().Close() }()
		if err := c.down(1); err != nil {
			return 0, err
		}
		_ = c.SetDeadline(time.Now().Add(time.Minute))
		return b.perGiB(t, b.plan.bulk, func() error { return transfer(c, b.plan.bulk) })
	}
}

// perGiB gives the CPU seconds of t per GiB of what transfer moves.
func (b *bench) perGiB(t *target, size int64, transfer func() error) (float64, error) {
	before, err := t.cpu()
	if err != nil {
		return 0, err
	}
	if err := transfer(); err != nil {
		return 0, err
	}
	after, err := t.cpu()
	return (after - before).Seconds() / (float64(size) / (1 << 30)), err
}

// scrubbed downloads the same twice, with and without the search for what was injected,
// the second to go being the first of the next round.
func scrubbed(b *bench, t *target, round int) (float64, error) {
	names := []string{scrubName, apiName}
	if round%2 == 1 {
		slices.Reverse(names)
	}
	var v float64
	for _, name := range names {
		start := time.Now()
		cpu, err := bulkRun(name, (*client).down)(b, t, round)
		if err != nil {
			return 0, err
		}
		rate := float64(b.plan.bulk) / (1 << 20) / time.Since(start).Seconds()
		if name == scrubName {
			v = cpu
			b.add("scrubbed MiB/s", t.name, rate)
			continue
		}
		b.add("unscrubbed", t.name, cpu)
		b.add("unscrubbed MiB/s", t.name, rate)
	}
	return v, nil
}

func streamRun(path string) func(*bench, *target, int) (float64, error) {
	return func(b *bench, t *target, _ int) (float64, error) {
		c, err := b.dialer(t).dial(b.ctx, apiName)
		if err != nil {
			return 0, err
		}
		defer func() { _ = c.NetConn().Close() }()
		_ = c.SetDeadline(time.Now().Add(30 * time.Second))
		delays, err := c.stream(b.origin, path, b.plan.events)
		if err != nil {
			return 0, err
		}
		slices.Sort(delays)
		return float64(delays[len(delays)/2].Nanoseconds()) / 1e3, nil
	}
}

// mintOnce opens 64 connections at once to a host that egressd has not seen: all must get
// the same certificate.
func mintOnce(b *bench) error {
	if b.targets[egressd] == nil {
		return nil
	}
	d := b.dialer(b.targets[egressd])
	var mu sync.Mutex
	seen := map[[32]byte]bool{}
	var wg sync.WaitGroup
	errs := make([]error, 64)
	for i := range errs {
		wg.Go(func() {
			c, err := d.dial(b.ctx, "once.bench.test")
			if err != nil {
				errs[i] = err
				return
			}
			mu.Lock()
			seen[sha256.Sum256(c.ConnectionState().PeerCertificates[0].Raw)] = true
			mu.Unlock()
			_ = c.NetConn().Close()
		})
	}
	wg.Wait()
	b.add("mint", egressd, float64(len(seen)))
	return errors.Join(errs...)
}
