package proxy_test

import (
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/egressd/egressd/internal/testbed"
	"github.com/egressd/egressd/proxy"
)

// widePolicy adds a sandbox that may go anywhere.
const widePolicy = `
  - id: wide
    identify: {proxyTokens: ["TOKENTHREE"]}
    network: {mode: allow-all}
`

func (g *rig) useWide() {
	g.use(basePolicy + strings.ReplaceAll(widePolicy, "TOKENTHREE", tokenHash(tokenThree)))
}

// connectAs returns the raw answer to a CONNECT, and what follows it after bytes sent behind.
func (g *rig) connectAs(t testing.TB, user, token, target string) []byte {
	t.Helper()
	got, _ := g.talk(g.dial(t), "CONNECT "+target+" HTTP/1.1\r\nHost: "+target+"\r\n"+proxyAuth(user, token)+"\r\n", 300*time.Millisecond)
	return got
}

func (g *rig) absoluteAs(t testing.TB, user, token, authority string) []byte {
	t.Helper()
	got, _ := g.talk(g.dial(t), "GET http://"+authority+"/latest/meta-data/ HTTP/1.1\r\nHost: "+authority+"\r\n"+proxyAuth(user, token)+"Connection: close\r\n\r\n", 3*time.Second)
	return got
}

var metadata = []string{
	"169.254.169.254", "169.254.170.2", "169.254.170.23", "100.100.100.200", "192.0.0.192", "168.63.129.16",
	"[fd00:ec2::254]", "[fd20:ce::254]", "[fe80::a9fe:a9fe]", "[::ffff:169.254.169.254]", "[64:ff9b::169.254.169.254]", "[2002:a9fe:a9fe::1]",
}

func TestAttack_B01_B02_metadata_services(t *testing.T) {
	hosts := map[string]string{"imds.test": "169.254.169.254", "azure.test": "168.63.129.16", "ecs.test": "169.254.170.2"}
	// Everything is open in the guard, too: metadata is opened only by its very address.
	open := []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("::/0")}
	g := attacked(t, options{hosts: hosts, allow: open})
	g.useWide()
	for _, a := range metadata {
		t.Run("B02 "+a, func(t *testing.T) {
			refusedOnce(t, g.connectAs(t, "wide", tokenThree, a+":80"), http.StatusForbidden, "forbidden_address")
			refusedOnce(t, g.absoluteAs(t, "wide", tokenThree, a), http.StatusForbidden, "forbidden_address")
		})
	}
	for _, name := range []string{"imds.test", "azure.test", "ecs.test"} {
		t.Run("B01 by name "+name, func(t *testing.T) {
			refusedOnce(t, g.absoluteAs(t, "wide", tokenThree, name), http.StatusForbidden, "forbidden_address")
			nc := g.dial(t)
			got, closed := g.talk(nc, "CONNECT "+name+":80 HTTP/1.1\r\nHost: "+name+":80\r\n"+proxyAuth("wide", tokenThree)+"\r\nGET / HTTP/1.1\r\nHost: "+name+"\r\nConnection: close\r\n\r\n", 3*time.Second)
			all := answers(t, got)
			if last := all[len(all)-1]; !closed || last.status != http.StatusForbidden || last.header.Get("X-Egressd-Error") != "forbidden_address" {
				t.Errorf("%q", got)
			}
		})
	}
	for _, name := range []string{"metadata.google.internal", "metadata", "instance-data.ec2.internal"} {
		t.Run("B02 "+name, func(t *testing.T) {
			refusedOnce(t, g.connectAs(t, "wide", tokenThree, name+":80"), http.StatusForbidden, "policy_denied")
			refusedOnce(t, g.absoluteAs(t, "wide", tokenThree, name), http.StatusForbidden, "policy_denied")
		})
	}
	for _, a := range g.records.list() {
		if a.Outcome == "allowed" {
			t.Errorf("B01 allowed: %+v", a)
		}
	}
	g.safe(t)
}

func TestAttack_B04_numeric_host_forms(t *testing.T) {
	g := attacked(t, options{})
	g.useWide()
	plain := fmt.Sprint(g.bed.Plain.Port())
	g.untouched(t, func() {
		for _, h := range []string{
			"2130706434", "0x7f000002", "0x7f.2", "0X7F.0.0.2", "017700000002", "127.2", "127.0.2", "0177.0.0.2", "127.0.0.0x2", "127.000.000.002", "00127.0.0.2",
			"127.0.0.2.", "127.0.0.2.0", "1.2.3.4.5", "good.test.0x7f", "good.127", "256.256.256.256", "0", "0x", "%31%32%37.0.0.2", "127。0。0。2", "①②⑦.0.0.2", "127.0.0.2%00",
		} {
			for _, raw := range [][]byte{g.connectAs(t, "wide", tokenThree, h+":"+plain), g.absoluteAs(t, "wide", tokenThree, h+":"+plain)} {
				if all := answers(t, raw); len(all) != 1 || all[0].status != http.StatusBadRequest {
					t.Errorf("B04 %s: %q", h, raw)
				}
			}
		}
	})
	for _, h := range []string{"0.0.0.0", "[::]", "[::1]"} { // forms that are canonical, and lead to this machine
		for _, raw := range [][]byte{g.connectAs(t, "wide", tokenThree, h+":"+plain), g.absoluteAs(t, "wide", tokenThree, h+":"+plain)} {
			refusedOnce(t, raw, http.StatusForbidden, "forbidden_address")
		}
	}
	g.safe(t)
}

func TestAttack_B06_egressd_itself(t *testing.T) {
	g := attacked(t, options{hosts: map[string]string{"self.test": "127.0.0.1", "self2.test": "127.9.9.9"}})
	g.useWide()
	_, port, _ := net.SplitHostPort(g.addr)
	local := []string{"127.0.0.1", "127.9.9.9", "0.0.0.0", "[::1]", "[::ffff:127.0.0.1]"}
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range addrs {
		if p, err := netip.ParsePrefix(a.String()); err == nil && p.Addr().Is4() {
			local = append(local, p.Addr().String())
		}
	}
	for _, h := range local {
		t.Run("B06 "+h, func(t *testing.T) {
			refusedOnce(t, g.connectAs(t, "wide", tokenThree, h+":"+port), http.StatusForbidden, "forbidden_address")
			refusedOnce(t, g.absoluteAs(t, "wide", tokenThree, h+":"+port), http.StatusForbidden, "forbidden_address")
		})
	}
	for _, h := range []string{"self.test", "self2.test"} {
		t.Run("B06 "+h, func(t *testing.T) {
			refusedOnce(t, g.absoluteAs(t, "wide", tokenThree, h+":"+port), http.StatusForbidden, "forbidden_address")
			nc := g.dial(t)
			got, closed := g.talk(nc, "CONNECT "+h+":"+port+" HTTP/1.1\r\nHost: "+h+":"+port+"\r\n"+proxyAuth("wide", tokenThree)+"\r\nCONNECT x.test:1 HTTP/1.1\r\nHost: x.test:1\r\n\r\n", 3*time.Second)
			if all := answers(t, got); !closed || all[len(all)-1].status == http.StatusOK {
				t.Errorf("%q", got)
			}
		})
	}
	if n := g.live(t); n > 3 {
		t.Errorf("B06 %v connections are open: a loop", n)
	}
	g.safe(t)
}

// live is the gauge of open client connections.
func (g *rig) live(t testing.TB) int {
	t.Helper()
	for line := range strings.Lines(string(g.metricsText(t))) {
		if v, ok := strings.CutPrefix(line, "egressd_connections "); ok {
			n := 0
			if _, err := fmt.Sscan(v, &n); err != nil {
				t.Fatal(err)
			}
			return n
		}
	}
	t.Fatal("no gauge")
	return 0
}

func TestAttack_B07_rebinding(t *testing.T) {
	ns := testbed.NewNS(t)
	g := attacked(t, options{ns: []string{ns.Addr()}})
	g.use(basePolicy + strings.ReplaceAll(`
  - id: rebind
    identify: {proxyTokens: ["TOKENTHREE"]}
    network:
      egress:
        trafficRules:
          - {name: by-name, action: allow, domains: [name.test]}
          - {name: by-address, action: allow, cidrs: [127.0.0.2/32], domains: [address.test]}
`, "TOKENTHREE", tokenHash(tokenThree)))
	port := g.bed.Plain.Port()
	trap := listenOn(t, fmt.Sprintf("127.0.0.3:%d", port))
	c := g.client("rebind", tokenThree, false)
	url := func(h string) string { return fmt.Sprintf("http://%s:%d/", h, port) }

	ns.On("name.test", testbed.DNSAnswer{IPs: []string{"127.0.0.2"}}, testbed.DNSAnswer{IPs: []string{"169.254.169.254"}}, testbed.DNSAnswer{IPs: []string{"10.0.0.1", "127.0.0.2"}})
	if a := get(t, c, url("name.test")); a.status != http.StatusOK {
		t.Fatalf("B07 the honest answer: %+v", a)
	}
	a := do(t, c, http.MethodGet, url("name.test"), func(r *http.Request) { r.Close = true })
	if a.status != http.StatusOK { // the connection to the checked address is still open: nothing was resolved
		t.Errorf("B07 on the open connection: %+v", a)
	}
	g.srv.Use(g.mustCompile(t, basePolicy)) // and back: pools stay, decisions are new
	if a := get(t, c, url("name.test")); a.status == http.StatusOK {
		t.Errorf("B07 without the sandbox: %+v", a)
	}

	// The answer flips between the decision and the dial: what was decided on is dialled.
	g.use(basePolicy + strings.ReplaceAll(`
  - id: rebind
    identify: {proxyTokens: ["TOKENTHREE"]}
    network:
      egress:
        trafficRules:
          - {name: by-address, action: allow, cidrs: [127.0.0.2/32], domains: [address.test]}
`, "TOKENTHREE", tokenHash(tokenThree)))
	ns.On("address.test", testbed.DNSAnswer{IPs: []string{"127.0.0.2"}}, testbed.DNSAnswer{IPs: []string{"127.0.0.3"}}, testbed.DNSAnswer{IPs: []string{"127.0.0.3", "127.0.0.2"}})
	want := []int{http.StatusOK, http.StatusForbidden, http.StatusOK, http.StatusOK}
	for i, status := range want {
		if a := get(t, c, url("address.test")); a.status != status {
			t.Errorf("B07 answer %d: %+v, want %d", i, a, status)
		}
	}
	if n := trap.count(); n != 0 {
		t.Errorf("B07 127.0.0.3 was dialled %d times", n)
	}
	g.safe(t)
}

func (g *rig) mustCompile(t *testing.T, p string) *proxy.Ruleset {
	t.Helper()
	r, err := g.compile(p)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// trapListener counts connections and says nothing.
type trapListener struct {
	net.Listener
	conns chan net.Conn
}

func listenOn(t *testing.T, addr string) *trapListener {
	t.Helper()
	ln, err := net.Listen("tcp4", addr)
	if err != nil {
		t.Fatal(err)
	}
	l := &trapListener{ln, make(chan net.Conn, 64)}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			l.conns <- c
		}
	}()
	t.Cleanup(func() {
		_ = ln.Close()
		<-done
		close(l.conns)
		for c := range l.conns {
			_ = c.Close()
		}
	})
	return l
}

func (l *trapListener) count() int { return len(l.conns) }

func TestAttack_B09_cname_into_internal_names(t *testing.T) {
	ns := testbed.NewNS(t)
	ns.On("alias.evil.test", testbed.DNSAnswer{CNAME: "vault.internal", IPs: []string{"10.0.0.5"}, TTL: 60})
	ns.On("alias2.evil.test", testbed.DNSAnswer{CNAME: "good.test", IPs: []string{"127.0.0.2"}, TTL: 60})
	g := attacked(t, options{ns: []string{ns.Addr()}})
	g.use(strings.ReplaceAll(basePolicy, "domains: [evil.test]", `domains: [evil.test, "*.evil.test"]`))
	refusedOnce(t, g.absoluteAs(t, "one", tokenOne, "alias.evil.test"), http.StatusForbidden, "forbidden_address")
	// Policy and credential go by the asked name: good.test's does not follow its alias.
	if a := get(t, g.one(), fmt.Sprintf("http://alias2.evil.test:%d/echo", g.bed.Plain.Port())); a.status != http.StatusOK || strings.Contains(a.body, "Authorization") {
		t.Errorf("B09 %+v", a)
	}
	g.safe(t)
}

func TestAttack_B10_search_domains_and_local_names(t *testing.T) {
	ns := testbed.NewNS(t)
	ns.On("kubernetes.default.svc.cluster.local", testbed.DNSAnswer{IPs: []string{"127.0.0.2"}})
	ns.On("vault", testbed.DNSAnswer{IPs: []string{"127.0.0.2"}})
	ns.On("printer.local", testbed.DNSAnswer{IPs: []string{"127.0.0.2"}})
	g := attacked(t, options{ns: []string{ns.Addr()}})
	g.useWide()
	port := fmt.Sprint(g.bed.Plain.Port())
	g.untouched(t, func() {
		for _, h := range []string{"vault", "localhost", "x.localhost", "printer.local", "db.internal", "LOCALHOST", "localhost."} {
			refusedOnce(t, g.connectAs(t, "wide", tokenThree, h+":"+port), http.StatusForbidden, "policy_denied")
			refusedOnce(t, g.absoluteAs(t, "wide", tokenThree, h+":"+port), http.StatusForbidden, "policy_denied")
		}
		refusedOnce(t, g.absoluteAs(t, "wide", tokenThree, "kubernetes.default.svc:"+port), http.StatusBadGateway, "no_such_host")
	})
	for _, q := range ns.Queries() {
		if q.Name != "kubernetes.default.svc" {
			t.Errorf("B10 asked for %s", q.Name)
		}
	}
	g.safe(t)
}

func TestAttack_B11_B12_targets_that_are_none(t *testing.T) {
	g := attacked(t, options{})
	g.useWide()
	for _, target := range []string{
		"[fe80::1%25eth0]:80", "[fe80::1%eth0]:80", "[::1%lo]:80", // B11
		"/var/run/docker.sock:0", "good.test:0", "good.test:65536", "good.test:-1", "good.test:+80", "good.test:http", "good.test:", ":443", "good.test", // B12
		"http://good.test:443", "user@good.test:443", "good.test:443/", "good.test:443?x", "good.test:443#x", "[good.test]:443", "good.test:443:443", "::1:80", "*",
		strings.Repeat("a", 254) + ".test:443", strings.Repeat("a", 64) + ".test:443", "-:443", "a_b!.test:443",
	} {
		t.Run("B11 B12 CONNECT "+target[:min(len(target), 40)], func(t *testing.T) {
			g.untouched(t, func() {
				got := g.connectAs(t, "wide", tokenThree, target)
				if all := answers(t, got); len(all) != 1 || all[0].status != http.StatusBadRequest {
					t.Errorf("%q", got)
				}
			})
		})
	}
	for _, uri := range []string{
		"gopher://good.test/", "ftp://good.test/", "ws://good.test/", "wss://good.test/", "https://good.test/", "file:///etc/passwd", "unix:///var/run/docker.sock", "http:/good.test/",
		"http:good.test/", "http://", "http:///x", "http://user@good.test/", "http://user:pw@good.test/", "http://good.test:99999/", "http://[fe80::1%25eth0]/", "//good.test/", "*",
	} {
		t.Run("B12 GET "+uri, func(t *testing.T) {
			g.untouched(t, func() {
				got, closed := g.talk(g.dial(t), "GET "+uri+" HTTP/1.1\r\nHost: good.test\r\n"+proxyAuth("wide", tokenThree)+"\r\n", time.Second)
				if all := answers(t, got); !closed || len(all) != 1 || all[0].status != http.StatusBadRequest {
					t.Errorf("closed=%v %q", closed, got)
				}
			})
		})
	}
	g.safe(t)
}

const ipPolicy = `
  - id: ip
    identify: {proxyTokens: ["TOKENTHREE"]}
    network:
      egress:
        trafficRules:
          - {name: the-address, action: allow, cidrs: [127.0.0.2/32]}
`

func TestAttack_B16_no_sni(t *testing.T) {
	g := attacked(t, options{})
	g.use(basePolicy + strings.ReplaceAll(ipPolicy, "TOKENTHREE", tokenHash(tokenThree)))
	target := g.expand("127.0.0.2:GOODPORT")
	g.untouched(t, func() {
		refusedOnce(t, g.connectAs(t, "one", tokenOne, target), http.StatusForbidden, "policy_denied") // no rule names the address
		got, closed := g.talk(g.open(t, "good.test:GOODPORT"), string(clientHello(t, "")), 2*time.Second)
		if !closed || string(got) != "\x15\x03\x03\x00\x02\x02\x70" {
			t.Errorf("B16 a name without SNI: %x, closed=%v", got, closed)
		}
	})
	status, nc, _ := g.connect(target, "ip", tokenThree) // a rule names it: no name is needed
	if status != http.StatusOK {
		t.Fatalf("B16 CONNECT %s: %d", target, status)
	}
	tc := tls.Client(nc, &tls.Config{InsecureSkipVerify: true})
	if err := tc.Handshake(); err != nil || tc.ConnectionState().PeerCertificates[0].DNSNames[0] != "good.test" {
		t.Errorf("B16 by address: %v", err)
	}
	status, nc, _ = g.connect(target, "ip", tokenThree) // with a name there, the two disagree
	if status != http.StatusOK {
		t.Fatal(status)
	}
	if err := tls.Client(nc, &tls.Config{ServerName: "good.test", InsecureSkipVerify: true}).Handshake(); err == nil {
		t.Error("B16 an address with a name in the hello")
	}
	g.safe(t)
}

func TestAttack_B17_B19_hello_in_pieces_and_large(t *testing.T) {
	g := attacked(t, options{})
	hello := clientHello(t, "good.test")
	if len(hello) < 1400 {
		t.Fatalf("B19 the hello of crypto/tls has %d bytes only", len(hello))
	}
	t.Run("B17 one byte at a time", func(t *testing.T) {
		tc := tls.Client(&dribble{Conn: g.open(t, "good.test:GOODPORT")}, &tls.Config{ServerName: "good.test", RootCAs: g.roots()})
		if err := tc.Handshake(); err != nil {
			t.Fatal(err)
		}
		got, _ := g.talk(tc, "GET /bearer HTTP/1.1\r\nHost: "+g.goodHost()+"\r\nConnection: close\r\n\r\n", time.Second)
		if a := answers(t, got); len(a) != 1 || a[0].status != http.StatusOK {
			t.Errorf("%q", got)
		}
	})
	for name, hello := range map[string][]byte{
		"B19 4 KiB":  withExtension(hello, 21, make([]byte, 2500)),
		"B19 15 KiB": withExtension(hello, 21, make([]byte, 13<<10)),
	} {
		t.Run(name, func(t *testing.T) {
			got, _ := g.talk(g.open(t, "good.test:GOODPORT"), string(hello), 300*time.Millisecond)
			if len(got) < 100 || got[0] != 0x16 {
				t.Errorf("no ServerHello: %x", got)
			}
		})
	}
	t.Run("B17 a hello without an end is given up", func(t *testing.T) {
		nc := g.open(t, "good.test:GOODPORT")
		start := time.Now()
		_, _ = nc.Write(hello[:100])
		got, closed := g.talk(nc, "", 3*time.Second)
		if d := time.Since(start); !closed || d > 2*time.Second || len(got) > 7 {
			t.Errorf("%x after %v, closed=%v", got, d, closed)
		}
	})
	t.Run("B17 a hello of more than 64 KiB is refused", func(t *testing.T) {
		nc := g.open(t, "good.test:GOODPORT")
		record := append([]byte{22, 3, 1, 0x40, 0}, make([]byte, 0x4000)...)
		copy(record[5:], []byte{1, 0x0f, 0xff, 0xff})
		go func() {
			for range 8 {
				if _, err := nc.Write(record); err != nil {
					return
				}
			}
		}()
		if got, closed := g.talk(nc, "", 2*time.Second); !closed || len(got) > 7 {
			t.Errorf("%x, closed=%v", got, closed)
		}
	})
	g.safe(t)
}

// dribble writes its first 600 bytes one by one, with a pause after the first hundred.
type dribble struct {
	net.Conn
	n int
}

func (d *dribble) Write(p []byte) (int, error) {
	for i := range p {
		if d.n++; d.n > 600 {
			n, err := d.Conn.Write(p[i:])
			return i + n, err
		}
		if d.n == 100 {
			time.Sleep(200 * time.Millisecond)
		}
		if _, err := d.Conn.Write(p[i : i+1]); err != nil {
			return i, err
		}
	}
	return len(p), nil
}

func TestAttack_B20_old_and_odd_tls(t *testing.T) {
	g := attacked(t, options{})
	old := firstRecord(t, &tls.Config{ServerName: "good.test", MinVersion: tls.VersionTLS10, MaxVersion: tls.VersionTLS11})
	huge := append([]byte{22, 3, 1, 0x44, 0x01}, make([]byte, 17<<10)...)
	for name, b := range map[string][]byte{
		"B20 SSLv2 hello": {0x80, 0x2e, 0x01, 0x03, 0x01, 0, 0x15, 0, 0, 0, 0x10, 1, 0, 0x80}, "B20 TLS 1.0 and 1.1 only": old,
		"B20 record of no bytes": {22, 3, 1, 0, 0}, "B20 record of 17 KiB": huge, "B20 alert first": {21, 3, 1, 0, 2, 2, 40},
		"B20 not a hello": {22, 3, 1, 0, 4, 2, 0, 0, 0}, "B20 version 9": {22, 9, 9, 0, 4, 1, 0, 0, 0}, "B20 hello of no bytes": {22, 3, 1, 0, 4, 1, 0, 0, 0},
		"B20 lengths that lie": append([]byte{22, 3, 1, 0, 60, 1, 0, 0, 56, 3, 3}, []byte(strings.Repeat("\xff", 49))...),
	} {
		t.Run(name, func(t *testing.T) {
			g.untouched(t, func() {
				got, closed := g.talk(g.open(t, "good.test:GOODPORT"), string(b), 3*time.Second)
				if !closed || len(got) > 0 && got[0] != 21 {
					t.Errorf("%x, closed=%v", got, closed)
				}
			})
		})
	}
	if !strings.Contains(string(g.metricsText(t)), "egressd_panics_total 0") {
		t.Error("B20 a panic")
	}
	g.safe(t)
}

func TestAttack_B21_raw_bytes_where_a_credential_is_due(t *testing.T) {
	g := attacked(t, options{})
	// A rule with ports carries any protocol, but not where a rule must see inside.
	g.use(strings.Replace(basePolicy, "{name: good, action: allow, domains: [good.test]}", g.expand("{name: good, action: allow, domains: [good.test], ports: [{port: GOODPORT}]}"), 1))
	for _, b := range []string{"\x00\x01\x02\x03raw", "SSH-2.0-x\r\n", "EHLO x\r\n", ""} {
		g.untouched(t, func() {
			if got, closed := g.talk(g.open(t, "good.test:GOODPORT"), b, 2*time.Second); !closed || len(got) != 0 && !strings.Contains(string(got), "egressd: protocol_not_allowed") {
				t.Errorf("B21 %q: %q, closed=%v", b, got, closed)
			}
		})
	}
	g.safe(t)
}

func TestAttack_B23_bytes_around_connect(t *testing.T) {
	g := attacked(t, options{})
	t.Run("B23 hello right behind CONNECT", func(t *testing.T) {
		nc := g.dial(t)
		glue := &glued{Conn: nc, before: "CONNECT " + g.goodHost() + " HTTP/1.1\r\nHost: " + g.goodHost() + "\r\n" + proxyAuth("one", tokenOne) + "\r\n"}
		tc := tls.Client(glue, &tls.Config{ServerName: "good.test", RootCAs: g.roots()})
		if err := tc.Handshake(); err != nil {
			t.Fatalf("the hello was lost: %v", err)
		}
		got, _ := g.talk(tc, "GET /bearer HTTP/1.1\r\nHost: "+g.goodHost()+"\r\nConnection: close\r\n\r\n", time.Second)
		if a := answers(t, got); len(a) != 1 || a[0].status != http.StatusOK {
			t.Errorf("%q", got)
		}
	})
	for name, head := range map[string]string{
		"B23 refused by policy":   "CONNECT other.test:443 HTTP/1.1\r\nHost: other.test:443\r\n" + proxyAuth("one", tokenOne) + "\r\n",
		"B23 refused login":       "CONNECT " + g.goodHost() + " HTTP/1.1\r\nHost: " + g.goodHost() + "\r\n" + proxyAuth("one", "wrong") + "\r\n",
		"B23 refused target":      "CONNECT good.test HTTP/1.1\r\nHost: good.test\r\n" + proxyAuth("one", tokenOne) + "\r\n",
		"B23 CONNECT with a body": "CONNECT " + g.goodHost() + " HTTP/1.1\r\nHost: " + g.goodHost() + "\r\nContent-Length: 5\r\n" + proxyAuth("one", tokenOne) + "\r\nhello",
	} {
		t.Run(name, func(t *testing.T) {
			g.untouched(t, func() {
				next := "GET http://" + g.bed.Evil.HostPort() + "/smuggled HTTP/1.1\r\nHost: " + g.bed.Evil.HostPort() + "\r\n" + proxyAuth("one", tokenOne) + "\r\n"
				got, closed := g.talk(g.dial(t), head+next, time.Second)
				if all := answers(t, got); !closed || len(all) != 1 || all[0].status < 400 {
					t.Errorf("closed=%v %q", closed, got)
				}
			})
		})
	}
	g.safe(t)
}

// glued sends before in front of the first write, in one segment.
type glued struct {
	net.Conn
	before string
	head   bool
}

func (c *glued) Write(p []byte) (int, error) {
	if c.before == "" {
		return c.Conn.Write(p)
	}
	n, err := c.Conn.Write(append([]byte(c.before), p...))
	n -= len(c.before)
	c.before = ""
	return max(n, 0), err
}

// Read skips the answer to CONNECT.
func (c *glued) Read(p []byte) (int, error) {
	for last := ""; !c.head; {
		var b [1]byte
		if _, err := io.ReadFull(c.Conn, b[:]); err != nil {
			return 0, err
		}
		last += string(b[:])
		c.head = strings.HasSuffix(last, "\r\n\r\n")
	}
	return c.Conn.Read(p)
}
