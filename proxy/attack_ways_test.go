package proxy_test

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	socks "golang.org/x/net/proxy"

	"github.com/egressd/egressd/internal/audit"
	"github.com/egressd/egressd/internal/secret"
	"github.com/egressd/egressd/proxy"
)

// socks opens a tunnel by SOCKS5.
func (g *rig) socks(t testing.TB, user, token, target string) net.Conn {
	t.Helper()
	d, err := socks.SOCKS5("tcp", g.addr, &socks.Auth{User: user, Password: token}, socks.Direct)
	if err != nil {
		t.Fatal(err)
	}
	c, err := d.Dial("tcp", target)
	if err != nil {
		t.Fatalf("SOCKS5 to %s: %v", target, err)
	}
	t.Cleanup(func() { _ = c.Close() })
	_ = c.SetDeadline(time.Now().Add(15 * time.Second))
	return taped{c, g}
}

// elsewhere is an address that nothing listens on but aimedAt.
const elsewhere = "127.0.0.77"

// aimedAt is a connection of a sandbox that knows of no proxy, aimed at that port of
// elsewhere and caught on its way.
func (g *rig) aimedAt(t testing.TB, user, token string, port uint16) net.Conn {
	t.Helper()
	at := net.JoinHostPort(elsewhere, fmt.Sprint(port))
	g.mu.Lock()
	open := g.caught[port]
	if g.caught == nil {
		g.caught = map[uint16]bool{}
	}
	g.caught[port] = true
	g.mu.Unlock()
	if !open {
		ln, err := net.Listen("tcp4", at)
		if err != nil {
			t.Fatal(err)
		}
		g.done.Go(func() { // ends with the stack
			if err := g.srv.ServeTransparent(context.Background(), ln, proxy.Transparent{Kind: proxy.TProxy, Sandbox: user, Token: secret.New(token)}); err != nil {
				t.Errorf("serve: %v", err)
			}
		})
	}
	c, err := net.Dial("tcp4", at)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	_ = c.SetDeadline(time.Now().Add(15 * time.Second))
	return taped{c, g}
}

func (g *rig) tlsOver(t testing.TB, c net.Conn, sni string) *tls.Conn {
	t.Helper()
	tc := tls.Client(c, &tls.Config{ServerName: sni, RootCAs: g.roots()})
	if err := tc.Handshake(); err != nil {
		t.Fatalf("handshake with %s: %v", sni, err)
	}
	return tc
}

// What may not be dialled is not, whichever way in and whatever name leads there.
func TestAttack_B01_B06_forbidden_addresses_by_every_way_in(t *testing.T) {
	g := attacked(t, options{hosts: map[string]string{"self.test": "127.0.0.1", "imds.test": "169.254.169.254"},
		allow: []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("::/0")}})
	g.useWide()
	_, own, _ := net.SplitHostPort(g.addr)
	ownPort := netip.MustParseAddrPort(g.addr).Port()
	request := func(host string) string {
		return "GET /latest HTTP/1.1\r\nHost: " + host + "\r\nConnection: close\r\n\r\n"
	}
	refused := func(t *testing.T, c net.Conn, say string) {
		t.Helper()
		got, closed := g.talk(c, say, 5*time.Second)
		if !closed || strings.Contains(string(got), "200 OK") || !strings.Contains(string(got), "forbidden_address") {
			t.Errorf("closed=%v %q", closed, got)
		}
		g.records.wait(t, func(a audit.Record) bool { return a.Code == "forbidden_address" })
		g.forget()
	}
	for name, target := range map[string]string{"imds": "169.254.169.254:80", "imds v6": "[fd00:ec2::254]:80", "own": "127.0.0.1:" + own, "own, any address": "0.0.0.0:" + own, "own, v6": "[::1]:" + own} {
		t.Run("B06 socks5 "+name, func(t *testing.T) {
			refused(t, g.socks(t, "wide", tokenThree, target), request(target))
		})
	}
	for _, host := range []string{"imds.test", "self.test"} {
		t.Run("B01 socks5 "+host, func(t *testing.T) {
			refused(t, g.socks(t, "wide", tokenThree, host+":"+own), request(host+":"+own))
		})
		t.Run("B01 socks5, an address and another name inside "+host, func(t *testing.T) {
			refused(t, g.socks(t, "wide", tokenThree, "192.0.2.1:"+own), request(host+":"+own))
		})
		t.Run("B01 transparent "+host, func(t *testing.T) {
			refused(t, g.aimedAt(t, "wide", tokenThree, ownPort), request(host+":"+own))
		})
		t.Run("B01 transparent TLS "+host, func(t *testing.T) {
			got, closed := g.talk(g.aimedAt(t, "wide", tokenThree, ownPort), string(clientHello(t, host)), 5*time.Second)
			if !closed || len(got) != 7 || got[0] != 21 {
				t.Errorf("closed=%v %x", closed, got)
			}
		})
	}
	g.use(basePolicy)
	g.safe(t)
}
