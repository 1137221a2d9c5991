package proxy_test

import (
	"context"
	"net"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/egressd/egressd/internal/audit"
	"github.com/egressd/egressd/internal/netguard"
	"github.com/egressd/egressd/proxy"
)

// hairpin is a network that leads all that leaves for back.test to egressd again.
type hairpin struct {
	*netguard.Guard
	back  atomic.Pointer[string]
	dials atomic.Int64
}

func (h *hairpin) Lookup(ctx context.Context, host string) ([]netip.Addr, error) {
	if host == "back.test" {
		return []netip.Addr{netip.MustParseAddr("192.0.2.77")}, nil
	}
	return h.Guard.Lookup(ctx, host)
}

func (h *hairpin) Dial(ctx context.Context, addrs []netip.Addr, port uint16) (net.Conn, error) {
	if addrs[0] != netip.MustParseAddr("192.0.2.77") {
		return h.Guard.Dial(ctx, addrs, port)
	}
	h.dials.Add(1)
	return new(net.Dialer).DialContext(ctx, "tcp4", *h.back.Load())
}

// A redirection that catches egressd's own connections would have it dial itself for ever.
func TestAttack_B06_a_network_that_leads_back(t *testing.T) {
	h := &hairpin{}
	g := attacked(t, options{guard: func(under *netguard.Guard) proxy.Guard {
		h.Guard = under
		return h
	}})
	g.use(strings.ReplaceAll(strings.Replace(basePolicy, "identify: {", `identify: {sourceCIDRs: ["127.0.0.1/32"], `, 1), "domains: [evil.test]", "domains: [evil.test, back.test]"))
	ln := listenApart(t)
	at := ln.Addr().String()
	h.back.Store(&at)
	g.done.Go(func() {
		if err := g.srv.ServeTransparent(t.Context(), ln, proxy.Transparent{Kind: proxy.TProxy}); err != nil {
			t.Errorf("serve: %v", err)
		}
	})
	for name, open := range map[string]func() net.Conn{
		"transparent": func() net.Conn {
			c, err := net.Dial("tcp4", at)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = c.Close() })
			return c
		},
		"CONNECT": func() net.Conn { return g.open(t, "back.test:443") },
	} {
		t.Run("B06 "+name, func(t *testing.T) {
			g.forget()
			before := h.dials.Load()
			got, closed := g.talk(open(), string(clientHello(t, "back.test")), 3*time.Second)
			if n := h.dials.Load() - before; !closed || len(got) != 7 || n != 1 {
				t.Errorf("closed=%v %x, dialled %d times", closed, got, n)
			}
			g.records.wait(t, func(a audit.Record) bool { return a.Code == "forbidden_address" && strings.Contains(a.Detail, "loop") })
		})
	}
	t.Run("B06 clear", func(t *testing.T) {
		before := h.dials.Load()
		c, err := net.Dial("tcp4", at)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = c.Close() }()
		_, port, _ := net.SplitHostPort(at)
		if got, _ := g.talk(c, "GET / HTTP/1.1\r\nHost: back.test:"+port+"\r\nConnection: close\r\n\r\n", 3*time.Second); h.dials.Load()-before != 1 || !strings.Contains(string(got), "forbidden_address") {
			t.Errorf("%q, dialled %d times", got, h.dials.Load()-before)
		}
	})
	g.use(basePolicy)
	g.safe(t)
}
