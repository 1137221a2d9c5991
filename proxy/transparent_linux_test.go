package proxy_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/egressd/egressd/internal/audit"
	"github.com/egressd/egressd/internal/redirect"
	"github.com/egressd/egressd/internal/testbed"
	"github.com/egressd/egressd/proxy"
)

// behind is a rig whose sandboxes are two network namespaces behind redirection.
type behind struct {
	*rig
	net *testbed.Net
}

const bySource = `sourceCIDRs: ["10.77.1.0/24", "fd77:1::/64"], `

// newBehind makes sandbox one what is in namespace Sandbox, by its address.
func newBehind(t *testing.T, mode redirect.Mode) *behind {
	t.Helper()
	b := &behind{rig: attacked(t, options{}), net: testbed.NewNet(t)}
	b.use(identified(basePolicy))
	kind := proxy.Redirect
	if mode == redirect.TProxy {
		kind = proxy.TProxy
	}
	var lns, dnsTCP []net.Listener
	var dnsUDP []net.PacketConn
	b.net.Router.Do(t, func() {
		var err error
		if lns, err = proxy.ListenTransparent(context.Background(), kind, ":0"); err != nil {
			t.Error(err)
			return
		}
		port := lns[0].Addr().(*net.TCPAddr).AddrPort().Port()
		err = redirect.Install(redirect.Spec{Mode: mode, Port: port, DNSPort: 15053, Interfaces: []string{testbed.SandboxLink, testbed.SandboxBLink}})
		if err != nil {
			t.Error(err)
		}
	})
	for _, family := range []string{"4", "6"} {
		dnsUDP = append(dnsUDP, b.net.Router.ListenPacket(t, "udp"+family, ":15053"))
		dnsTCP = append(dnsTCP, b.net.Router.Listen(t, "tcp"+family, ":15053"))
	}
	for _, ln := range lns {
		b.done.Go(func() {
			if err := b.srv.ServeTransparent(t.Context(), ln, proxy.Transparent{Kind: kind}); err != nil {
				t.Errorf("serve: %v", err)
			}
		})
	}
	for i := range dnsUDP {
		b.done.Go(func() {
			if err := b.srv.ServeDNS(t.Context(), dnsUDP[i], dnsTCP[i], proxy.Transparent{}); err != nil {
				t.Errorf("dns: %v", err)
			}
		})
	}
	return b
}

func identified(policyYAML string) string {
	return strings.Replace(policyYAML, `identify: {proxyTokens: ["TOKENONE"]`, `identify: {`+bySource+`proxyTokens: ["TOKENONE"]`, 1)
}

// aims are where a sandbox can aim: egressd goes where the name leads.
var aims = []string{"192.0.2.2", "2001:db8:77::2"}

// aim opens a connection of the sandbox.
func (b *behind) aim(t testing.TB, addr string, port uint16) net.Conn {
	t.Helper()
	c, err := b.net.Sandbox.Dial(t, "tcp", net.JoinHostPort(addr, fmt.Sprint(port)), 5*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	_ = c.SetDeadline(time.Now().Add(15 * time.Second))
	return taped{c, b.rig}
}

// aimTLS shakes hands inside.
func (b *behind) aimTLS(t testing.TB, addr string, port uint16, sni string) *tls.Conn {
	t.Helper()
	return tls.Client(b.aim(t, addr, port), &tls.Config{ServerName: sni, RootCAs: b.roots(), InsecureSkipVerify: sni == "", NextProtos: []string{"http/1.1"}})
}

func (b *behind) ask(t testing.TB, c net.Conn, host, path string) (*http.Response, error) {
	t.Helper()
	if _, err := fmt.Fprintf(c, "GET %s HTTP/1.1\r\nHost: %s\r\n\r\n", path, host); err != nil {
		return nil, err
	}
	return http.ReadResponse(bufio.NewReader(c), nil)
}

func TestTransparent(t *testing.T) {
	for _, mode := range []redirect.Mode{redirect.NAT, redirect.TProxy} {
		t.Run(mode.String(), func(t *testing.T) {
			b := newBehind(t, mode)
			good := b.bed.Good.Port()
			for _, to := range aims {
				t.Run("A06 injected where the name leads "+to, func(t *testing.T) {
					resp, err := b.ask(t, b.aimTLS(t, to, good, "good.test"), b.goodHost(), "/bearer")
					if err != nil || resp.StatusCode != http.StatusOK {
						t.Fatalf("%v %+v", err, resp)
					}
					way := map[redirect.Mode]string{redirect.NAT: "redirect", redirect.TProxy: "tproxy"}[mode]
					b.records.wait(t, func(a audit.Record) bool { return a.Way == way && a.Sandbox == "one" && a.Source == "gh-source" })
				})
				t.Run("A04 SNI and Host differ "+to, func(t *testing.T) {
					b.untouched(t, func() {
						resp, err := b.ask(t, b.aimTLS(t, to, b.bed.Evil.Port(), "good.test"), "evil.test", "/")
						if err == nil && resp.StatusCode != http.StatusMisdirectedRequest {
							t.Errorf("%+v", resp)
						}
					})
				})
				t.Run("A07 Host in clear "+to, func(t *testing.T) {
					b.untouched(t, func() {
						resp, err := b.ask(t, b.aim(t, to, good), b.goodHost(), "/x")
						if err != nil || resp.Header.Get("X-Egressd-Error") != "plaintext_credential_refused" {
							t.Errorf("%v %+v", err, resp)
						}
						resp, err = b.ask(t, b.aim(t, to, 80), b.goodHost(), "/x")
						if err != nil || resp.StatusCode != http.StatusMisdirectedRequest {
							t.Errorf("Host of another port: %v %+v", err, resp)
						}
					})
				})
				t.Run("B16 no SNI "+to, func(t *testing.T) {
					b.untouched(t, func() {
						if err := b.aimTLS(t, to, good, "").Handshake(); err == nil {
							t.Error("a handshake without a name")
						}
					})
				})
				t.Run("raw bytes "+to, func(t *testing.T) {
					b.untouched(t, func() {
						if got, closed := b.talk(b.aim(t, to, 9999), "\xff\x00noise", 3*time.Second); !closed {
							t.Errorf("%q", got)
						}
					})
				})
			}
			t.Run("F01 another's address", func(t *testing.T) {
				c, err := b.net.SandboxB.Dial(t, "tcp", net.JoinHostPort(aims[0], fmt.Sprint(good)), 5*time.Second)
				if err != nil {
					t.Fatal(err)
				}
				defer func() { _ = c.Close() }()
				if got, closed := b.talk(c, string(clientHello(t, "good.test")), 3*time.Second); !closed || len(got) > 7 {
					t.Errorf("%q", got)
				}
			})
			b.safe(t)
		})
	}
}

func TestAttack_B17_B19_hello_in_pieces_behind_redirection(t *testing.T) {
	b := newBehind(t, redirect.NAT)
	c := b.aim(t, aims[0], b.bed.Good.Port())
	tc := tls.Client(&piecemeal{Conn: c}, &tls.Config{ServerName: "good.test", RootCAs: b.roots(), NextProtos: []string{"http/1.1"}})
	resp, err := b.ask(t, tc, b.goodHost(), "/bearer")
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("%v %+v", err, resp)
	}
	b.safe(t)
}

// piecemeal writes its first bytes one by one.
type piecemeal struct {
	net.Conn
	n int
}

func (d *piecemeal) Write(p []byte) (int, error) {
	for i := range p {
		if d.n++; d.n > 300 {
			n, err := d.Conn.Write(p[i:])
			return i + n, err
		}
		if _, err := d.Conn.Write(p[i : i+1]); err != nil {
			return i, err
		}
	}
	return len(p), nil
}

// A name that egressd told the sandbox is what a protocol without names goes by.
func TestNamesFromThePolicyDNS(t *testing.T) {
	b := newBehind(t, redirect.NAT)
	q := func(name string, typ uint16) *dns.Msg {
		t.Helper()
		c, err := b.net.Sandbox.Dial(t, "udp", "192.0.2.2:53", 3*time.Second)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = c.Close() }()
		m := new(dns.Msg).SetQuestion(name, typ)
		in, _, err := (&dns.Client{Timeout: 3 * time.Second}).ExchangeWithConn(m, &dns.Conn{Conn: c})
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		return in
	}
	if in := q("good.test.", dns.TypeA); in.Rcode != dns.RcodeSuccess || len(in.Answer) != 1 {
		t.Errorf("good.test: %v", in)
	}
	if in := q("elsewhere.test.", dns.TypeA); in.Rcode != dns.RcodeRefused {
		t.Errorf("elsewhere.test: %v", in)
	}
}

func TestAttack_F02_a_lease_ends(t *testing.T) {
	g := attacked(t, options{})
	end := time.Now().Add(1500 * time.Millisecond)
	g.use(strings.Replace(basePolicy, `identify: {proxyTokens: ["TOKENONE"]`, `identify: {leaseUntil: "`+end.UTC().Format(time.RFC3339Nano)+`", proxyTokens: ["TOKENONE"]`, 1))
	kept := g.good(t, "http/1.1")
	if got, _ := g.talk(kept, "GET /bearer HTTP/1.1\r\nHost: "+g.goodHost()+"\r\n\r\n", 300*time.Millisecond); !strings.Contains(string(got), "200 OK") {
		t.Fatalf("%q", got)
	}
	relay := g.open(t, "evil.test:EVILPORT")
	if got, _ := g.talk(relay, string(clientHello(t, "evil.test")), 200*time.Millisecond); len(got) < 100 {
		t.Fatalf("the relay: %x", got)
	}
	time.Sleep(time.Until(end))
	for name, c := range map[string]net.Conn{"kept": kept, "relay": relay} {
		if got, closed := g.talk(c, "", time.Second); !closed {
			t.Errorf("%s lives: %x", name, got)
		}
	}
	if a := get(t, g.one(), g.bed.Good.URL("/bearer")); a.err == nil && a.status == http.StatusOK {
		t.Errorf("%+v", a)
	}
}
