package proxy_test

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/elazarl/goproxy"

	"github.com/egressd/egressd/internal/audit"
	"github.com/egressd/egressd/internal/testbed"
)

func spki(c *x509.Certificate) string { return string(c.RawSubjectPublicKeyInfo) }

func TestAttack_D01_D02_keys_of_the_interception(t *testing.T) {
	a, b := attacked(t, options{}), attacked(t, options{})
	chainOf := func(g *rig) []*x509.Certificate { return g.good(t).ConnectionState().VerifiedChains[0] }
	ca, cb := chainOf(a), chainOf(b)
	if spki(ca[0]) == spki(cb[0]) || spki(ca[len(ca)-1]) == spki(cb[len(cb)-1]) {
		t.Error("D01 two installations share a key")
	}
	public, err := x509.ParseCertificate(goproxy.GoproxyCa.Certificate[0])
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range append(ca, cb...) {
		if spki(c) == spki(public) || c.Issuer.String() == public.Subject.String() {
			t.Error("D02 the library's own public authority signs")
		}
	}
	a.safe(t)
	b.safe(t)
}

func TestAttack_D04_minting(t *testing.T) {
	g := attacked(t, options{})
	before := g.ca.Minted()
	var wg sync.WaitGroup
	for range 40 {
		wg.Go(func() {
			for range 5 {
				nc, err := net.Dial("tcp", g.addr)
				if err != nil {
					t.Error(err)
					return
				}
				if _, err := fmt.Fprintf(nc, "CONNECT %s HTTP/1.1\r\nHost: %s\r\n%s\r\n", g.goodHost(), g.goodHost(), proxyAuth("one", tokenOne)); err != nil {
					t.Error(err)
				}
				tc := tls.Client(&glued{Conn: nc}, &tls.Config{ServerName: "good.test", RootCAs: g.roots()})
				_ = nc.SetDeadline(time.Now().Add(10 * time.Second))
				if err := tc.Handshake(); err != nil {
					t.Errorf("D04 %v", err)
				}
				_ = nc.Close()
			}
		})
	}
	wg.Wait()
	if n := g.ca.Minted() - before; n > 1 {
		t.Errorf("D04 one name was minted for %d times", n)
	}
	minted := g.ca.Minted()
	for i := range 30 { // names that no rule allows, or that nobody must look into
		g.connectAs2(t, fmt.Sprintf("x%d.good.test:443", i))
		g.talk(g.open(t, "evil.test:EVILPORT"), string(clientHello(t, "evil.test")), 20*time.Millisecond)
	}
	if n := g.ca.Minted() - minted; n != 0 {
		t.Errorf("D04 %d certificates for names that are not intercepted", n)
	}
	g.safe(t)
}

// insidePolicy makes egressd look inside whatever goes to loopback addresses.
const insidePolicy = `
  - id: inside
    team: acme
    identify: {proxyTokens: ["TOKENTHREE"]}
    network:
      mode: allow-all
      egress:
        trafficRules:
          - {name: loopback, action: allow, cidrs: [127.0.0.0/8, "::1/128"]}
        credentialRules:
          - {name: by-address, credentialRef: gh, protocol: https, cidrs: [127.0.0.0/8, "::1/128"], unsafeWildcard: true}
          - {name: wild, credentialRef: gh, protocol: https, domains: ["*.good.test"]}
      credentialBindings:
        - ref: gh
          sourceRef: gh-source
          projection:
            type: http_headers
            httpHeaders: {headers: [{name: Authorization, valueTemplate: "Bearer {{ .token }}"}]}
`

func TestAttack_D07_san_injection(t *testing.T) {
	g := attacked(t, options{allow: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("::1/128")}})
	g.use(basePolicy + strings.ReplaceAll(insidePolicy, "TOKENTHREE", tokenHash(tokenThree)))
	minted := g.ca.Minted()
	for _, sni := range []string{
		"good.test\x00evil", "*.good.test", "127.0.0.1", strings.Repeat("a", 254), "good.test,DNS:b", "-a.test", "good.test.", "GOOD.test\n", ":", "[::1]", "::1", "good.test ", "a..test",
	} {
		t.Run(fmt.Sprintf("D07 SNI %.20q", sni), func(t *testing.T) {
			got, closed := g.talk(g.open(t, "good.test:GOODPORT"), string(clientHello(t, sni)), time.Second)
			if sni != "good.test." && (!closed || len(got) != 7 || got[0] != 21) {
				t.Errorf("%x, closed=%v", got, closed)
			}
		})
	}
	if n := g.ca.Minted() - minted; n > 1 { // the trailing dot is the same name
		t.Errorf("D07 %d certificates were minted", n)
	}
	for _, host := range []string{"*.good.test:443", "good.test,DNS:b:443", "-a.good.test:443", "a.good.test%00:443"} {
		if raw := g.connectAs(t, "inside", tokenThree, host); !strings.Contains(string(raw), " 400 ") && !strings.Contains(string(raw), " 200 ") {
			t.Errorf("D07 CONNECT %s: %q", host, raw)
		}
	}
	for _, host := range []string{"127.0.0.2", "::1"} {
		status, nc, _ := g.connect(net.JoinHostPort(host, "4430"), "inside", tokenThree)
		if status != http.StatusOK {
			t.Fatalf("D07 CONNECT %s: %d", host, status)
		}
		tc := tls.Client(nc, &tls.Config{ServerName: host, RootCAs: g.roots()}) // an address: no SNI is sent, the name is verified
		if err := tc.Handshake(); err != nil {
			t.Fatalf("D07 %s: %v", host, err)
		}
		leaf := tc.ConnectionState().PeerCertificates[0]
		if len(leaf.DNSNames) != 0 || len(leaf.IPAddresses) != 1 || !leaf.IPAddresses[0].Equal(net.ParseIP(host)) || leaf.Subject.CommonName != "" {
			t.Errorf("D07 the leaf for %s: %v %v %q", host, leaf.DNSNames, leaf.IPAddresses, leaf.Subject.CommonName)
		}
	}
	g.safe(t)
}

func TestAttack_D08_upstream_verification(t *testing.T) {
	g := attacked(t, options{hosts: map[string]string{"a.b.good.test": "127.0.0.2"}})
	withMTLS := g.withCert(t, testbed.NewCA(t), nil)
	pol := strings.ReplaceAll(basePolicy, "domains: [good.test]", `domains: ["*.good.test"]`) + strings.ReplaceAll(certPolicy, "TOKENTHREE", tokenHash(tokenThree))
	g.use(pol)
	matrix := testbed.BadTLSMatrix(t, g.bed.CA, "good.test")
	if len(matrix) < 18 {
		t.Fatalf("D08 %d cases", len(matrix))
	}
	for _, b := range matrix {
		t.Run("D08 "+b.Name, func(t *testing.T) {
			o := b.Options()
			o.IP = "127.0.0.2"
			origin := testbed.NewOrigin(t, g.bed.CA, o)
			url := fmt.Sprintf("https://%s:%d/bearer", b.Host, origin.Port())
			for name, c := range map[string]*http.Client{"h1": g.client("one", tokenOne, false), "h2": g.client("one", tokenOne, true)} {
				a := get(t, c, url)
				if a.err != nil || a.status != http.StatusBadGateway || a.header.Get("X-Egressd-Error") != "upstream_tls_failed" {
					t.Errorf("%s: %+v", name, a)
				}
				isProblem(t, a)
			}
			if b.Host == "good.test" {
				if a := get(t, withMTLS, url); a.err != nil || a.status != http.StatusBadGateway {
					t.Errorf("with a client certificate: %+v", a)
				}
			}
			if n := origin.AppBytes(); n != 0 {
				t.Errorf("%d application bytes left", n)
			}
			for _, conn := range origin.Conns() {
				if conn.ClientCert != "" {
					t.Error("the client certificate left")
				}
			}
			if len(origin.Conns()) == 0 {
				t.Error("nothing was dialled: nothing was tried")
			}
			testbed.NoLeak(t, "the origin's capture", origin.Captured(), canary)
		})
	}
	g.use(basePolicy)
	g.safe(t)
}

func TestAttack_D10_early_data(t *testing.T) {
	g := attacked(t, options{})
	hello := withExtension(clientHello(t, "good.test"), 42, nil) // early_data
	early := "GET /early HTTP/1.1\r\nHost: " + g.goodHost() + "\r\n\r\n"
	record := append([]byte{23, 3, 3, 0, byte(len(early))}, early...)
	g.untouched(t, func() {
		got, closed := g.talk(g.open(t, "good.test:GOODPORT"), string(hello)+string(record), 2*time.Second)
		if !closed || strings.Contains(string(got), "HTTP/") {
			t.Errorf("D10 %q, closed=%v", got, closed)
		}
	})
	if len(clientHello(t, "good.test")) == len(hello) {
		t.Error("D10 nothing was tried")
	}
	// Sessions resume, and carry nothing before the handshake is done.
	conf := &tls.Config{ServerName: "good.test", RootCAs: g.roots(), ClientSessionCache: tls.NewLRUClientSessionCache(2)}
	for i := range 2 {
		tc := tls.Client(g.open(t, "good.test:GOODPORT"), conf)
		got, _ := g.talk(tc, "GET /bearer HTTP/1.1\r\nHost: "+g.goodHost()+"\r\nConnection: close\r\n\r\n", time.Second)
		if a := answers(t, got); len(a) != 1 || a[0].status != http.StatusOK {
			t.Errorf("D10 connection %d: %q", i, got)
		}
	}
	g.safe(t)
}

func TestAttack_D12_no_certificate_is_asked_of_a_sandbox(t *testing.T) {
	g := attacked(t, options{})
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		asked := false
		tc := tls.Client(g.open(t, "good.test:GOODPORT"), &tls.Config{ServerName: "good.test", RootCAs: g.roots(), MinVersion: version, MaxVersion: version,
			GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
				asked = true
				return new(tls.Certificate), nil
			}})
		if err := tc.Handshake(); err != nil || asked {
			t.Errorf("D12 TLS %x: asked=%v, %v", version, asked, err)
		}
	}
	g.safe(t)
}

func TestAttack_D13_pinned_clients_are_not_let_through(t *testing.T) {
	g := attacked(t, options{})
	for round := range 5 { // a fallback might come after some failures
		g.untouched(t, func() {
			for name, conf := range map[string]*tls.Config{
				"another root": {ServerName: "good.test", RootCAs: g.bed.CA.Pool()},
				"pin": {ServerName: "good.test", RootCAs: g.roots(), VerifyConnection: func(cs tls.ConnectionState) error {
					if cs.PeerCertificates[0].Issuer.String() != g.bed.CA.Cert.Subject.String() {
						return fmt.Errorf("pinned")
					}
					return nil
				}},
			} {
				g.forget()
				if err := tls.Client(g.open(t, "good.test:GOODPORT"), conf).Handshake(); err == nil {
					t.Errorf("D13 round %d, %s: the origin's own certificate came through", round, name)
				}
				g.records.wait(t, func(a audit.Record) bool { return a.Outcome == "denied" && strings.Contains(a.Detail, "handshake") })
			}
		})
	}
	g.safe(t)
}
