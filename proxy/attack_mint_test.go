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
	handshake := func(name string) error {
		nc := g.open(t, name+":443")
		defer func() { _ = nc.Close() }()
		return tls.Client(nc, &tls.Config{ServerName: name, RootCAs: g.roots()}).Handshake()
	}
	if err := handshake("known.good.test"); err != nil {
		t.Fatal(err)
	}
	g.safe(t) // good.test is known as well from here on
	stop, spent := make(chan struct{}), make(chan int)
	go func() { spent <- g.srv.SpendMints("one", stop) }() // the flood, without its handshakes
	tries := 0
	waitFor(t, func() bool {
		tries++
		return handshake(fmt.Sprintf("first%d.good.test", tries)) != nil
	})
	before, refused := g.ca.Minted(), 0
	for i := range 40 {
		if handshake(fmt.Sprintf("n%d.good.test", i)) != nil {
			refused++
		}
	}
	if minted := int(g.ca.Minted() - before); refused < 20 || minted+refused != 40 {
		t.Errorf("D04 %d signatures, %d refused of 40", minted, refused)
	}
	g.records.wait(t, func(a audit.Record) bool {
		return a.Code == "connection_limit" && a.Status == http.StatusTooManyRequests
	})
	if err := handshake("known.good.test"); err != nil {
		t.Errorf("D04 a leaf that is there is refused: %v", err)
	}
	if a := get(t, g.client("two", tokenTwo, false), g.bed.Good.URL("/status/204")); a.err == nil && a.status == http.StatusTooManyRequests {
		t.Errorf("D04 another sandbox: %+v", a)
	}
	g.safe(t)
	close(stop)
	if n := <-spent; n < mintsAtOnce/2 {
		t.Errorf("D04 the flood got %d", n)
	}
	waitFor(t, func() bool { return handshake("later.good.test") == nil })
}

const mintsAtOnce = 200
