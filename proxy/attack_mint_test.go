package proxy_test

import (
	"crypto/tls"
	"fmt"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/egressd/egressd/internal/audit"
)

func pipePair(t testing.TB) (client, server net.Conn) {
	t.Helper()
	ln, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = ln.Close() }()
	if client, err = net.Dial("tcp", ln.Addr().String()); err != nil {
		t.Fatal(err)
	}
	if server, err = ln.Accept(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = client.Close(); _ = server.Close() })
	for _, c := range []net.Conn{client, server} {
		_ = c.SetDeadline(time.Now().Add(10 * time.Second))
	}
	return client, server
}

// A sandbox under a wildcard makes names up as fast as it can.
func TestAttack_D04_names_made_up_under_a_wildcard(t *testing.T) {
	g := attacked(t, options{})
	g.use(strings.ReplaceAll(basePolicy, "domains: [good.test]", `domains: [good.test, "*.good.test"]`))
	before := g.ca.Minted()
	start := time.Now()
	refused := 0
	const tries = 400
	for i := range tries {
		name := fmt.Sprintf("n%d.good.test", i)
		nc := g.open(t, name+":443")
		tc := tls.Client(nc, &tls.Config{ServerName: name, RootCAs: g.roots()})
		if err := tc.Handshake(); err != nil {
			refused++
		}
		_ = nc.Close()
	}
	minted, most := int(g.ca.Minted()-before), 200+50*(int(time.Since(start)/time.Second)+1)
	if minted > most || refused == 0 || minted+refused != tries {
		t.Errorf("D04 %d signatures (at most %d), %d refused of %d", minted, most, refused, tries)
	}
	g.records.wait(t, func(a audit.Record) bool {
		return a.Code == "connection_limit" && a.Status == http.StatusTooManyRequests
	})
	if tc := g.tls(t, "n0.good.test:443", "n0.good.test"); tc.ConnectionState().Version == 0 { // what is there costs nothing
		t.Error("D04 a leaf that is there is refused")
	}
	time.Sleep(50 * time.Millisecond)
	g.safe(t)
}
