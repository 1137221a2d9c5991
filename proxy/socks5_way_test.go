package proxy_test

import (
	"crypto/tls"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	socks "golang.org/x/net/proxy"

	"github.com/egressd/egressd/internal/audit"
)

// socksClient goes through egressd's SOCKS5.
func (g *rig) socksClient(t testing.TB, user, token string) *http.Client {
	t.Helper()
	u := &url.URL{Scheme: "socks5", Host: g.addr}
	if token != "" {
		u.User = url.UserPassword(user, token)
	}
	tr := &http.Transport{Proxy: http.ProxyURL(u), TLSClientConfig: &tls.Config{RootCAs: g.roots()}, DisableCompression: true}
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr, Timeout: 10 * time.Second}
}

func TestSOCKS5(t *testing.T) {
	g := attacked(t, options{})
	if a := get(t, g.socksClient(t, "one", tokenOne), g.bed.Good.URL("/bearer")); a.err != nil || a.status != http.StatusOK {
		t.Errorf("%+v", a)
	}
	g.records.wait(t, func(a audit.Record) bool {
		return a.Way == "socks5" && a.Sandbox == "one" && a.Source == "gh-source" && a.Status == 200
	})
	for _, login := range [][2]string{{"one", "wrong"}, {"two", tokenOne}, {"", ""}, {"nobody", tokenOne}} {
		if a := get(t, g.socksClient(t, login[0], login[1]), g.bed.Good.URL("/bearer")); a.err == nil {
			t.Errorf("%q: %+v", login, a)
		}
	}
	dialer, err := socks.SOCKS5("tcp", g.addr, &socks.Auth{User: "one", Password: tokenOne}, socks.Direct)
	if err != nil {
		t.Fatal(err)
	}
	g.untouched(t, func() {
		if c, err := dialer.Dial("tcp", "denied.test:443"); err == nil || !strings.Contains(err.Error(), "not allowed") {
			t.Errorf("a denied name: %v %v", c, err)
		}
	})
	// An address is a claim: the name inside decides, as behind a transparent listener.
	for _, at := range []string{"127.0.0.3", "192.0.2.7", "2001:db8::7"} {
		c, err := dialer.Dial("tcp", net.JoinHostPort(at, fmt.Sprint(g.bed.Good.Port())))
		if err != nil {
			t.Fatal(err)
		}
		_ = c.SetDeadline(time.Now().Add(5 * time.Second))
		tc := tls.Client(c, &tls.Config{ServerName: "good.test", RootCAs: g.roots(), NextProtos: []string{"http/1.1"}})
		got, _ := g.talk(tc, "GET /bearer HTTP/1.1\r\nHost: "+g.goodHost()+"\r\n\r\n", time.Second)
		if !strings.Contains(string(got), "200 OK") {
			t.Errorf("%s: %q", at, got)
		}
		_ = c.Close()
	}
	g.safe(t)
}

func TestAttack_B24_SOCKS5(t *testing.T) {
	g := attacked(t, options{})
	hello := "\x05\x01\x02" + "\x01\x03one" + string(rune(len(tokenOne))) + tokenOne
	for name, bytes := range map[string]string{
		"no methods":         "\x05\x00",
		"associate":          hello + "\x05\x03\x00\x01\x7f\x00\x00\x01\x00\x50",
		"bind":               hello + "\x05\x02\x00\x01\x7f\x00\x00\x01\x00\x50",
		"zero address":       hello + "\x05\x01\x00\x01\x00\x00\x00\x00\x00\x50" + "GET / HTTP/1.1\r\nHost: 0.0.0.0\r\n\r\n",
		"NUL in a name":      hello + "\x05\x01\x00\x03\x0agood\x00.test\x01\xbb",
		"empty name":         hello + "\x05\x01\x00\x03\x00\x01\xbb",
		"number as a name":   hello + "\x05\x01\x00\x03\x0a2130706433\x00\x50",
		"port 0":             hello + "\x05\x01\x00\x03\x09good.test\x00\x00",
		"metadata":           hello + "\x05\x01\x00\x01\xa9\xfe\xa9\xfe\x00\x50" + "GET / HTTP/1.1\r\nHost: 169.254.169.254\r\n\r\n",
		"version 4":          "\x04\x01\x00\x50\x7f\x00\x00\x01\x00",
		"login twice":        hello + "\x01\x03one\x01x" + "\x05\x01\x00\x03\x09good.test\x01\xbb",
		"without its login":  "\x05\x01\x00\x05\x01\x00\x03\x09good.test\x01\xbb",
		"greeting then HTTP": "\x05\x01\x02GET http://good.test/ HTTP/1.1\r\n\r\n",
	} {
		t.Run("B24 "+name, func(t *testing.T) {
			g.untouched(t, func() {
				if got, closed := g.talk(g.dial(t), bytes, 5*time.Second); !closed {
					t.Errorf("still open: %q", got)
				}
			})
		})
	}
	g.safe(t)
}
