package proxy_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"
	"github.com/miekg/dns"
	socks "golang.org/x/net/proxy"

	"github.com/egressd/egressd/internal/audit"
	"github.com/egressd/egressd/internal/testbed"
	"github.com/egressd/egressd/proxy"
)

// limitsPolicy knows a Redis to log in at, and what is carried as it is.
const limitsPolicy = `
apiVersion: egressd/v1
templates:
  - name: both
    network:
      egress:
        trafficRules:
          - {name: all, action: allow, domains: [redis.test, good.test, evil.test]}
          - {name: raw, action: allow, domains: [echo.test], ports: [{port: 1, endPort: 65535}]}
        credentialRules:
          - {name: redis, credentialRef: login, protocol: redis, allowCleartext: true, domains: [redis.test]}
          - {name: good-token, credentialRef: gh, protocol: https, domains: [good.test]}
      credentialBindings:
        - {ref: login, sourceRef: login, projection: {type: username_password}}
        - ref: gh
          sourceRef: gh-source
          projection: {type: http_headers, httpHeaders: {headers: [{name: Authorization, valueTemplate: "Bearer {{ .token }}"}]}}
sandboxes:
  - {id: one, team: acme, template: both, identify: {IDENTIFY proxyTokens: ["TOKENONE"]}}
  - {id: two, team: acme, template: both, identify: {proxyTokens: ["TOKENTWO"]}}
`

func limitsRig(t *testing.T, l proxy.Limits) (g *rig, redis, echo string) {
	t.Helper()
	g = attacked(t, options{limits: l, hosts: map[string]string{"redis.test": "127.0.0.7", "echo.test": "127.0.0.1"}})
	g.logsIn("acme", canary)
	g.use(strings.Replace(limitsPolicy, "IDENTIFY ", "", 1))
	port := redisServer(t, nil, "", "bind 127.0.0.1 127.0.0.7")
	return g, at("redis.test", port), at("echo.test", echoServer(t))
}

// Logins and relays count for their sandbox as requests do, on either side.
func TestAttack_H01_logins_count(t *testing.T) {
	t.Parallel()
	l := quick()
	l.ConnectionsPerSandbox = 4
	g, redis, _ := limitsRig(t, l)
	var open []net.Conn
	for range 4 {
		c := g.tunnel(t, sandboxOne, redis)
		if got := resp(t, c, "PING"); got != "+PONG" {
			t.Fatalf("%q", got)
		}
		open = append(open, c)
	}
	status, _, _ := g.connect(redis, "one", tokenOne)
	if status != http.StatusTooManyRequests {
		t.Errorf("a fifth one: %d", status)
	}
	g.audited(t, "connection_limit", "")
	c := g.tunnel(t, sandboxTwo, redis) // it is another's share
	if got := resp(t, c, "PING"); got != "+PONG" {
		t.Errorf("%q", got)
	}
	_ = open[0].Close()
	for deadline := time.Now().Add(3 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		if status, c, br := g.connect(redis, "one", tokenOne); status == http.StatusOK {
			if _, err := io.WriteString(c, "*1\r\n$4\r\nPING\r\n"); err != nil {
				t.Error(err)
			}
			if got := line(br); got != "+PONG" {
				t.Errorf("%q", got)
			}
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("its place was not given back")
		}
	}
	for _, c := range open {
		_ = c.Close()
	}
	for deadline := time.Now().Add(3 * time.Second); len(g.srv.Connections()) > 2; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%+v", g.srv.Connections())
		}
	}
	g.clean(t)
}

// What is not HTTP keeps the sandbox's pace too, both ways, and shares it.
func TestBandwidthOfTunnels(t *testing.T) {
	t.Parallel()
	l := quick()
	l.BandwidthPerSandbox = 256 << 10
	l.StallTimeout = 20 * time.Second
	g, redis, echo := limitsRig(t, l)
	const size = 400 << 10
	payload := bytes.Repeat([]byte("0123456789abcdef"), size/16)
	// What a bucket holds at once is 32 KiB: the rest takes 1.4 s.
	const least = 1300 * time.Millisecond
	for name, carry := range map[string]func(t *testing.T, w who) error{
		"relay": func(t *testing.T, w who) error {
			c := g.tunnel(t, w, echo)
			_ = c.SetDeadline(time.Now().Add(15 * time.Second))
			go func() { _, _ = c.Write(payload) }()
			_, err := io.ReadFull(c, make([]byte, size))
			return err
		},
		"login": func(t *testing.T, w who) error {
			c := g.tunnel(t, w, redis)
			_ = c.SetDeadline(time.Now().Add(15 * time.Second))
			if _, err := fmt.Fprintf(c, "*2\r\n$4\r\nECHO\r\n$%d\r\n%s\r\n", size, payload); err != nil {
				return err
			}
			_, err := io.ReadFull(c, make([]byte, size))
			return err
		},
		"websocket": func(t *testing.T, w who) error {
			ctx, cancel := context.WithTimeout(t.Context(), 15*time.Second)
			defer cancel()
			c, _, err := websocket.Dial(ctx, strings.Replace(g.bed.Good.URL("/ws"), "https", "wss", 1), &websocket.DialOptions{HTTPClient: g.client(w.id, w.token, false)})
			if err != nil {
				return err
			}
			defer func() { _ = c.CloseNow() }()
			c.SetReadLimit(size)
			for range 16 {
				if err := c.Write(ctx, websocket.MessageBinary, payload[:size/16]); err != nil {
					return err
				}
				if _, b, err := c.Read(ctx); err != nil || len(b) != size/16 {
					return fmt.Errorf("%d bytes: %w", len(b), err)
				}
			}
			return nil
		},
	} {
		t.Run(name, func(t *testing.T) {
			// Two sandboxes at once, each at its own pace.
			done := make(chan time.Duration, 2)
			start := time.Now()
			for _, w := range []who{sandboxOne, sandboxTwo} {
				go func() {
					if err := carry(t, w); err != nil {
						t.Errorf("%s: %v", w.id, err)
					}
					done <- time.Since(start)
				}()
			}
			for range 2 {
				if d := <-done; d < least || d > 6*time.Second {
					t.Errorf("it took %v", d)
				}
			}
		})
	}
	g.clean(t)
}

// Names that a sandbox was told by DNS are its own, and gone with it.
func TestNamesGoWithTheirSandbox(t *testing.T) {
	t.Parallel()
	g, redis, _ := limitsRig(t, proxy.Limits{})
	with := strings.Replace(limitsPolicy, "IDENTIFY", "sourceCIDRs: [127.0.0.1/32],", 1)
	g.use(with)
	pc, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ln, err := net.Listen("tcp4", pc.LocalAddr().String())
	if err != nil {
		t.Fatal(err)
	}
	g.done.Go(func() {
		if err := g.srv.ServeDNS(t.Context(), pc, ln, proxy.Transparent{}); err != nil {
			t.Errorf("dns: %v", err)
		}
	})
	_, port, _ := net.SplitHostPort(redis)
	byAddress := func(t *testing.T, from string, auth *socks.Auth) string {
		t.Helper()
		d, err := socks.SOCKS5("tcp", g.addr, auth, &net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}})
		if err != nil {
			t.Fatal(err)
		}
		c, err := d.Dial("tcp", "127.0.0.7:"+port)
		if err != nil {
			return err.Error()
		}
		defer func() { _ = c.Close() }()
		return resp(t, c, "PING")
	}
	const refused = "-ERR egressd: policy_denied"
	if got := byAddress(t, "127.0.0.1", nil); !strings.HasPrefix(got, refused) {
		t.Errorf("an address of which nothing was said: %q", got)
	}
	answer, err := dns.Exchange(new(dns.Msg).SetQuestion("redis.test.", dns.TypeA), pc.LocalAddr().String())
	if err != nil || len(answer.Answer) != 1 || !strings.Contains(answer.Answer[0].String(), "127.0.0.7") {
		t.Fatalf("%v %v", err, answer)
	}
	if got := byAddress(t, "127.0.0.1", nil); got != "+PONG" {
		t.Errorf("the address that was told: %q", got)
	}
	if got := byAddress(t, "127.0.0.9", &socks.Auth{User: "two", Password: tokenTwo}); !strings.HasPrefix(got, refused) {
		t.Errorf("told to another: %q", got)
	}
	g.records.wait(t, func(a audit.Record) bool {
		return a.Sandbox == "one" && a.Way == "socks5" && a.Protocol == "redis" && strings.HasPrefix(a.Destination, "redis.test:") && a.Source == "login"
	})
	g.use(strings.ReplaceAll(with, "id: one", "id: another"))
	g.use(with)
	if got := byAddress(t, "127.0.0.1", nil); !strings.HasPrefix(got, refused) {
		t.Errorf("after its sandbox was gone: %q", got)
	}
	testbed.NoLeak(t, "what clients saw", g.seenBytes(), canary)
	g.clean(t)
}
