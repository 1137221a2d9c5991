package proxy_test

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"time"

	socks "golang.org/x/net/proxy"

	"github.com/egressd/egressd/internal/audit"
	"github.com/egressd/egressd/internal/secret"
	"github.com/egressd/egressd/internal/testbed"
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

// Where a transparent sandbox aims is a claim, and so is the name it says: the credential
// goes to the name's own address, to a server that has proved to be it, or nowhere.
func TestAttack_A04_A06_A07_lies_of_transparent_sandboxes(t *testing.T) {
	g := attacked(t, options{})
	impostor := testbed.NewOrigin(t, g.bed.CA, testbed.OriginOptions{IP: "127.0.0.2", Names: []string{"evil.test"}}) // at good's address, without its certificate
	g.bad = append(g.bad, impostor)
	request := func(host string, port uint16) string {
		return fmt.Sprintf("GET /bearer HTTP/1.1\r\nHost: %s:%d\r\nConnection: close\r\n\r\n", host, port)
	}
	ask := func(t *testing.T, c net.Conn, host string, port uint16) answer {
		t.Helper()
		got, _ := g.talk(c, request(host, port), 5*time.Second)
		all := answers(t, got)
		if len(all) != 1 {
			t.Fatalf("%q", got)
		}
		return all[0]
	}
	t.Run("A06 SNI of good, aimed at evil", func(t *testing.T) {
		g.untouched(t, func() {
			port := g.bed.Evil.Port() // nothing of good's listens there
			if a := ask(t, g.tlsOver(t, g.aimedAt(t, "one", tokenOne, port), "good.test"), "good.test", port); a.status != http.StatusBadGateway {
				t.Errorf("%+v", a)
			}
		})
	})
	t.Run("A06 the peer cannot prove its name", func(t *testing.T) {
		port := impostor.Port()
		if a := ask(t, g.tlsOver(t, g.aimedAt(t, "one", tokenOne, port), "good.test"), "good.test", port); a.status != http.StatusBadGateway || a.header.Get("X-Egressd-Error") != "upstream_tls_failed" {
			t.Errorf("%+v", a)
		}
		if n := impostor.AppBytes(); n != 0 || len(impostor.Conns()) == 0 {
			t.Errorf("%d application bytes in %d connections", n, len(impostor.Conns()))
		}
	})
	t.Run("A06 the name's own address is dialled", func(t *testing.T) {
		port := g.bed.Good.Port()
		if a := ask(t, g.tlsOver(t, g.aimedAt(t, "one", tokenOne, port), "good.test"), "good.test", port); a.status != http.StatusOK {
			t.Errorf("%+v", a)
		}
	})
	t.Run("A04 SNI of good, Host of evil, and the mirror", func(t *testing.T) {
		g.untouched(t, func() {
			port := g.bed.Good.Port()
			if a := ask(t, g.tlsOver(t, g.aimedAt(t, "one", tokenOne, port), "good.test"), "evil.test", port); a.status != http.StatusMisdirectedRequest {
				t.Errorf("%+v", a)
			}
		})
		mirror := strings.Replace(basePolicy, "          - {name: good-token,", "          - {name: look, credentialRef: gh, protocol: https, domains: [evil.test], httpMatch: {pathPrefixes: [/never]}}\n          - {name: good-token,", 1)
		g.use(mirror) // evil.test is looked into, and gets nothing
		g.untouched(t, func() {
			port := g.bed.Good.Port()
			if a := ask(t, g.tlsOver(t, g.aimedAt(t, "one", tokenOne, port), "evil.test"), "good.test", port); a.status != http.StatusMisdirectedRequest {
				t.Errorf("%+v", a)
			}
		})
		g.use(basePolicy)
	})
	t.Run("A07 Host of good in clear", func(t *testing.T) {
		g.untouched(t, func() {
			for _, port := range []uint16{g.bed.Plain.Port(), g.bed.Sink.Port()} {
				if a := ask(t, g.aimedAt(t, "one", tokenOne, port), "good.test", port); a.status != http.StatusForbidden || a.header.Get("X-Egressd-Error") != "plaintext_credential_refused" {
					t.Errorf("%+v", a)
				}
			}
		})
	})
	t.Run("A07 a rule that allows cleartext goes to the name's own address", func(t *testing.T) {
		g.use(strings.Replace(basePolicy, "protocol: https, domains: [good.test]}", "domains: [good.test], allowCleartext: true}", 1))
		port := g.bed.Plain.Port()
		g.bed.Plain.SetBearer(canary)
		if a := ask(t, g.aimedAt(t, "one", tokenOne, port), "good.test", port); a.status != http.StatusOK {
			t.Errorf("%+v", a)
		}
		sink := g.bed.Sink.Port()
		if a := ask(t, g.aimedAt(t, "one", tokenOne, sink), "good.test", sink); a.status != http.StatusBadGateway {
			t.Errorf("%+v", a)
		}
		g.use(basePolicy)
	})
	g.safe(t)
}
