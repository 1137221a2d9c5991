package proxy_test

import (
	"io"
	"net"
	"strings"
	"testing"
	"time"
)

// latePolicy lets everything go to one port, but for some protocols.
const latePolicy = `
apiVersion: egressd/v1
sandboxes:
  - id: one
    team: acme
    identify: {proxyTokens: ["TOKENONE"]}
    network:
      egress:
        trafficRules:
          - {name: none-of, action: deny, domains: [db.test], appProtocols: DENIED}
          - {name: rest, action: allow, domains: [db.test], ports: [{port: DBPORT}]}
          - {name: good, action: allow, domains: [good.test]}
        credentialRules:
          - {name: good-token, credentialRef: gh, protocol: https, domains: [good.test]}
      credentialBindings:
        - ref: gh
          sourceRef: gh-source
          projection:
            type: http_headers
            httpHeaders: {headers: [{name: Authorization, valueTemplate: "Bearer {{ .token }}"}]}
`

// A rule that denies a protocol is not escaped by speaking it late, or in pieces, or by
// HTTP/2 without an upgrade.
func TestAttack_B21_denied_protocols_spoken_late(t *testing.T) {
	l := quick()
	l.ServerFirstDelay = 50 * time.Millisecond
	g := attacked(t, options{hosts: map[string]string{"db.test": "127.0.0.9"}, limits: l})
	ln, err := net.Listen("tcp", "127.0.0.9:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = ln.Close() }()
	got := make(chan []byte, 16)
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				defer func() { _ = c.Close() }()
				_ = c.SetReadDeadline(time.Now().Add(3 * time.Second))
				b, _ := io.ReadAll(c)
				got <- b
			}()
		}
	}()
	_, port, _ := net.SplitHostPort(ln.Addr().String())
	for _, c := range []struct{ denied, first, late string }{
		{"[ssh]", "", "SSH-2.0-late\r\n"},
		{"[ssh]", "SS", "H-2.0-late\r\n"},
		{"[http]", "", "GET / HTTP/1.1\r\nHost: db.test\r\n\r\n"},
		{"[http]", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "rest"},
		{"[tls]", "", string(clientHello(t, "db.test"))},
		{"[tls]", "\x16", string(clientHello(t, "db.test")[1:])},
	} {
		g.use(strings.NewReplacer("DBPORT", port, "DENIED", c.denied).Replace(latePolicy))
		nc := g.open(t, "db.test:"+port)
		_, _ = io.WriteString(nc, c.first)
		time.Sleep(4 * l.ServerFirstDelay)
		_, _ = io.WriteString(nc, c.late) // it may have been closed already
		_ = nc.Close()
		select {
		case b := <-got:
			t.Errorf("B21 %s denied, %q then %.20q: the origin got %.40q", c.denied, c.first, c.late, b)
		case <-time.After(4 * l.SniffTimeout / 2):
		}
	}
	// What no rule denies passes as before, late or not, until a rule does.
	g.use(strings.NewReplacer("DBPORT", port, "DENIED", "[http]", "deny, domains: [db.test]", "deny, domains: [not-db.test]").Replace(latePolicy))
	nc := g.open(t, "db.test:"+port)
	time.Sleep(4 * l.ServerFirstDelay)
	_, _ = io.WriteString(nc, "SSH-2.0-late\r\n")
	time.Sleep(100 * time.Millisecond)
	g.use(strings.NewReplacer("DBPORT", port, "DENIED", "[ssh]").Replace(latePolicy))
	if _, closed := g.talk(nc, "", time.Second); !closed {
		t.Error("B21 a relay that began silent outlives a rule that denies what it may carry")
	}
	if b := <-got; string(b) != "SSH-2.0-late\r\n" {
		t.Errorf("B21 before that it carried %q", b)
	}
	g.safe(t)
}
