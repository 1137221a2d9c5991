package proxy_test

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/egressd/egressd/internal/testbed"
)

// dialFrom opens a connection to the proxy from an address of loopback.
func (g *rig) dialFrom(t testing.TB, from string) net.Conn {
	t.Helper()
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}
	nc, err := d.Dial("tcp", g.addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = nc.Close() })
	_ = nc.SetDeadline(time.Now().Add(15 * time.Second))
	return taped{nc, g}
}

const addressPolicy = `
  - id: seven
    identify: {sourceCIDRs: [127.0.0.7/32]}
    network: {mode: allow-all}
  - id: eight
    identify: {sourceCIDRs: [127.0.0.8/32], proxyTokens: ["TOKENTHREE"]}
    network: {mode: allow-all}
`

func (g *rig) useAddresses() {
	g.use(basePolicy + strings.ReplaceAll(addressPolicy, "TOKENTHREE", tokenHash(tokenThree)))
}

func TestAttack_F01_source_address_by_headers(t *testing.T) {
	g := attacked(t, options{})
	g.useAddresses()
	plain := g.bed.Plain.HostPort()
	evil := fmt.Sprintf("evil.test:%d", g.bed.Evil.Port())
	if got, _ := g.talk(g.dialFrom(t, "127.0.0.7"), "CONNECT "+evil+" HTTP/1.1\r\nHost: "+evil+"\r\n\r\n", 200*time.Millisecond); !strings.HasPrefix(string(got), "HTTP/1.1 200 ") {
		t.Fatalf("F01 the honest one: %q", got)
	}
	claims := "X-Forwarded-For: 127.0.0.7\r\nForwarded: for=127.0.0.7\r\nX-Real-IP: 127.0.0.7\r\nX-Client-IP: 127.0.0.7\r\nTrue-Client-IP: 127.0.0.7\r\nX-Egressd-Sandbox: seven\r\n"
	g.untouched(t, func() {
		for _, line := range []string{"CONNECT " + evil + " HTTP/1.1\r\nHost: " + evil + "\r\n", "GET http://" + plain + "/ HTTP/1.1\r\nHost: " + plain + "\r\n"} {
			got, _ := g.talk(g.dial(t), line+claims+"\r\n", time.Second)
			refusedOnce(t, got, http.StatusProxyAuthRequired, "proxy_authentication_required")
		}
		for _, preamble := range []string{
			"PROXY TCP4 127.0.0.7 127.0.0.1 5000 80\r\n", "PROXY UNKNOWN\r\n",
			"\r\n\r\n\x00\r\nQUIT\n\x21\x11\x00\x0c\x7f\x00\x00\x07\x7f\x00\x00\x01\x13\x88\x00\x50",
		} {
			got, closed := g.talk(g.dial(t), preamble+"CONNECT "+evil+" HTTP/1.1\r\nHost: "+evil+"\r\n\r\n", 2*time.Second)
			if all := answers(t, got); !closed || len(all) != 1 || all[0].status != http.StatusBadRequest {
				t.Errorf("F01 %.10q: closed=%v %q", preamble, closed, got)
			}
		}
	})
	g.safe(t)
}

func TestAttack_F02_a_sandbox_that_is_gone(t *testing.T) {
	g := attacked(t, options{})
	h1, h2 := g.one(), g.client("one", tokenOne, true)
	for _, c := range []*http.Client{h1, h2} {
		if a := get(t, c, g.bed.Good.URL("/bearer")); a.status != http.StatusOK {
			t.Fatalf("%+v", a)
		}
	}
	// Open by hand, so that no client opens another one: idle connections and a relay.
	kept := g.good(t)
	first, _ := g.talk(kept, "GET /bearer HTTP/1.1\r\nHost: "+g.goodHost()+"\r\n\r\n", 200*time.Millisecond)
	if !strings.Contains(string(first), " 200 ") {
		t.Fatalf("%q", first)
	}
	kept2 := newH2(t, g, g.good(t, "h2"))
	if a := kept2.request("GET", g.goodHost(), "/bearer"); a.status != http.StatusOK {
		t.Fatalf("%+v", a)
	}
	relay := g.open(t, "evil.test:EVILPORT")
	if got, _ := g.talk(relay, string(clientHello(t, "evil.test")), 200*time.Millisecond); len(got) < 100 {
		t.Fatalf("the relay: %x", got)
	}
	silent := g.open(t, "good.test:GOODPORT") // CONNECT was answered, nothing was sent yet
	// The sandbox ends; its token belongs to another one, of another team, without a credential.
	g.use(strings.Replace(strings.Replace(basePolicy, "id: one\n    team: acme", "id: another\n    team: other", 1), `{name: good-token, credentialRef: gh, protocol: https, domains: [good.test]}`, `{name: good-token, credentialRef: gh, protocol: https, domains: [good.test], rollout: disabled}`, 1))
	g.untouched(t, func() {
		got, closed := g.talk(kept, "GET /bearer HTTP/1.1\r\nHost: "+g.goodHost()+"\r\n\r\n", 2*time.Second)
		if !closed || len(got) > 0 {
			t.Errorf("F02 h1: closed=%v %q", closed, got)
		}
		if a := kept2.request("GET", g.goodHost(), "/bearer"); a.err == nil {
			t.Errorf("F02 h2: %+v", a)
		}
		if got, closed := g.talk(relay, "", 2*time.Second); !closed {
			t.Errorf("F02 the relay lives: %x", got)
		}
		if got, closed := g.talk(silent, string(clientHello(t, "good.test")), 2*time.Second); !closed || len(got) > 7 {
			t.Errorf("F02 the silent tunnel: %x, closed=%v", got, closed)
		}
	})
	g.use(basePolicy)
	g.safe(t)
}

func TestAttack_F03_token_of_another_sandbox(t *testing.T) {
	g := attacked(t, options{})
	g.useAddresses()
	try := func(from, user, token string) int {
		auth := ""
		if token != "" {
			auth = proxyAuth(user, token)
		}
		target := fmt.Sprintf("evil.test:%d", g.bed.Evil.Port())
		got, _ := g.talk(g.dialFrom(t, from), "CONNECT "+target+" HTTP/1.1\r\nHost: "+target+"\r\n"+auth+"\r\n", 150*time.Millisecond)
		return answers(t, got)[0].status
	}
	for _, c := range []struct {
		from, user, token string
		want              int
	}{
		{"127.0.0.8", "eight", tokenThree, 200},                                                                           // its own
		{"127.0.0.7", "eight", tokenThree, 407},                                                                           // eight's token from the address of seven
		{"127.0.0.7", "seven", tokenThree, 407}, {"127.0.0.7", "one", tokenOne, 407}, {"127.0.0.8", "one", tokenOne, 407}, // under another name; tokens of sandboxes without an address
		{"127.0.0.8", "one", tokenThree, 407}, {"127.0.0.1", "two", tokenOne, 407}, // names and tokens that do not belong together
		{"127.0.0.1", "one", tokenOne + " ", 407}, {"127.0.0.1", "one", strings.ToUpper(tokenOne), 407}, // no folding
		{"127.0.0.1", "ONE", tokenOne, 407}, {"127.0.0.1", "one", tokenHash(tokenOne), 407}, // the hash is no token
	} {
		if got := try(c.from, c.user, c.token); got != c.want {
			t.Errorf("F03 %+v: %d", c, got)
		}
	}
	g.safe(t)
}

func TestAttack_F04_guessing(t *testing.T) {
	g := attacked(t, options{})
	slowed := 0
	for i := range 40 {
		switch status, _, _ := g.connect(g.goodHost(), "one", fmt.Sprint("guess-", i)); status {
		case http.StatusProxyAuthRequired:
		case http.StatusTooManyRequests:
			slowed++
		default:
			t.Fatalf("F04 guess %d: %d", i, status)
		}
	}
	if slowed < 20 {
		t.Errorf("F04 %d of 40 guesses were slowed down, from loopback", slowed)
	}
	g.audited(t, "too_many_failures", "")
	g.safe(t) // from the same address
}

func TestAttack_F05_sources_of_another_team(t *testing.T) {
	g := attacked(t, options{})
	foreign := strings.ReplaceAll(strings.ReplaceAll(basePolicy[strings.Index(basePolicy, "  - id: one"):strings.Index(basePolicy, "  - id: two")], "id: one\n    team: acme", "id: thief\n    team: thieves"), "TOKENONE", tokenHash(tokenThree))
	g.use(basePolicy + foreign)
	g.untouched(t, func() {
		for _, h2 := range []bool{false, true} {
			a := get(t, g.client("thief", tokenThree, h2), g.bed.Good.URL("/bearer"))
			if a.status != http.StatusServiceUnavailable || a.header.Get("X-Egressd-Error") != "source_not_found" {
				t.Errorf("F05 the name of another team's source: %+v", a)
			}
			isProblem(t, a)
		}
	})
	// A source of the same name in its own team is another source.
	g.put("thieves", "gh-source", "static_headers", headerSpec("own"))
	get(t, g.client("thief", tokenThree, false), g.bed.Good.URL("/status/200"))
	if auth := g.bed.Good.Last(t).Header.Get("Authorization"); auth != "Bearer own" {
		t.Errorf("F05 it left with %q", auth)
	}
	for _, ref := range []string{"acme/gh-source", "../acme/gh-source", "gh-source/../../acme/gh-source", "1", "acme.gh-source", "", "GH-SOURCE"} {
		p := basePolicy + strings.Replace(foreign, "sourceRef: gh-source", fmt.Sprintf("sourceRef: %q", ref), 1)
		r, err := g.compile(p)
		if err != nil {
			continue
		}
		g.srv.Use(r)
		g.untouched(t, func() {
			if a := get(t, g.client("thief", tokenThree, false), g.bed.Good.URL("/bearer")); a.status != http.StatusServiceUnavailable {
				t.Errorf("F05 sourceRef %q: %+v", ref, a)
			}
		})
	}
	g.use(basePolicy)
	g.safe(t)
}

func TestAttack_F07_noisy_neighbour(t *testing.T) {
	l := quick()
	l.ConnectionsPerSandbox, l.Connections = 12, 60
	g := attacked(t, options{limits: l})
	g.useAddresses()
	target := g.expand("evil.test:EVILPORT")
	var held []net.Conn
	open := func(from, auth string) int {
		nc := g.dialFrom(t, from)
		held = append(held, nc)
		_, _ = io.WriteString(nc, "CONNECT "+target+" HTTP/1.1\r\nHost: "+target+"\r\n"+auth+"\r\n")
		b := make([]byte, 12)
		if _, err := io.ReadFull(nc, b); err != nil {
			return 0 // closed at the door
		}
		_, _ = nc.Write(clientHello(t, "evil.test")) // a relay that stays
		status := 0
		_, _ = fmt.Sscanf(string(b), "HTTP/1.1 %d", &status)
		return status
	}
	got := map[int]int{}
	for range 30 {
		got[open("127.0.0.7", "")]++
	}
	if got[200] != 12 || got[429]+got[0] != 18 {
		t.Errorf("F07 tunnels of sandbox seven: %v", got)
	}
	// Connections that never say who they are count for their address.
	var idle []net.Conn
	for range 30 {
		idle = append(idle, g.dialFrom(t, "127.0.0.66"))
	}
	time.Sleep(100 * time.Millisecond)
	closed := 0
	for _, c := range idle {
		_ = c.SetReadDeadline(time.Now().Add(10 * time.Millisecond))
		if _, err := c.Read(make([]byte, 1)); err != nil && !isTimeout(err) {
			closed++
		}
	}
	if closed < 18 {
		t.Errorf("F07 %d of 30 connections without an identity were closed", closed)
	}
	if s := open("127.0.0.8", proxyAuth("eight", tokenThree)); s != http.StatusOK {
		t.Errorf("F07 another sandbox: %d", s)
	}
	g.safe(t) // beside all of it
	for _, c := range append(held, idle...) {
		_ = c.Close()
	}
	waitFor(t, func() bool { return g.live(t) <= 2 })
	if s := open("127.0.0.7", ""); s != http.StatusOK {
		t.Errorf("F07 sandbox seven after it closed its tunnels: %d", s)
	}
}

func waitFor(t *testing.T, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(5 * time.Second); !ok(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("it never happened")
		}
	}
}

func TestAttack_F09_enumeration(t *testing.T) {
	ns := testbed.NewNS(t)
	ns.On("exists.test", testbed.DNSAnswer{IPs: []string{"127.0.0.2"}, TTL: 60})
	g := attacked(t, options{ns: []string{ns.Addr()}})
	shape := func(raw []byte) string {
		a := answers(t, raw)
		if len(a) != 1 {
			t.Fatalf("%q", raw)
		}
		a[0].header.Del("Date")
		id := a[0].header.Get("X-Request-Id")
		return strings.ReplaceAll(fmt.Sprint(a[0].status, a[0].header, a[0].body), id, "ID")
	}
	same := func(name string, all ...[]byte) {
		t.Helper()
		for _, raw := range all[1:] {
			if shape(raw) != shape(all[0]) {
				t.Errorf("F09 %s: %s and %s", name, shape(all[0]), shape(raw))
			}
		}
	}
	same("denied hosts", g.connectAs(t, "one", tokenOne, "exists.test:443"), g.connectAs(t, "one", tokenOne, "missing.test:443"), g.connectAs(t, "one", tokenOne, "other.test:443"), g.connectAs(t, "one", tokenOne, "localhost:443"))
	same("denied in absolute form", g.absoluteAs(t, "one", tokenOne, "exists.test"), g.absoluteAs(t, "one", tokenOne, "missing.test"))
	same("identities", g.connectAs(t, "one", "wrong", g.goodHost()), g.connectAs(t, "nobody", "wrong", g.goodHost()), g.connectAs(t, "two", tokenOne, g.goodHost()), g.connectAs(t, "one", tokenTwo, "x.test:443"))
	if q := ns.Queries(); len(q) != 0 {
		t.Errorf("F09 names that are denied were looked up: %v", q)
	}
	g.safe(t)
}
