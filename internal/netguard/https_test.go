package netguard

import (
	"errors"
	"net/netip"
	"testing"

	"github.com/miekg/dns"

	"github.com/egressd/egressd/internal/testbed"
)

func TestHTTPS(t *testing.T) {
	ns := testbed.NewNS(t)
	record := func(owner, rest string) string { return owner + " 60 IN HTTPS " + rest }
	many := make([]string, 20)
	for i := range many {
		many[i] = record("many.test.", "1 . alpn=h2")
	}
	ns.On("plain.test", testbed.DNSAnswer{RRs: []string{record("plain.test.", "1 . alpn=h3,h2"), record("other.test.", "1 . alpn=h2")}})
	ns.On("alias.test", testbed.DNSAnswer{CNAME: "plain.test", RRs: []string{record("plain.test.", "1 . alpn=h2")}})
	ns.On("many.test", testbed.DNSAnswer{RRs: many})
	ns.On("empty.test", testbed.DNSAnswer{IPs: []string{"192.0.2.1"}})
	ns.On("broken.test", testbed.DNSAnswer{Rcode: dns.RcodeServerFailure})
	g, err := New(Options{Resolvers: []string{ns.Addr()}, Hosts: map[string]netip.Addr{"fixed.test": netip.MustParseAddr("192.0.2.1")}})
	if err != nil {
		t.Fatal(err)
	}
	defer g.Close()
	for _, tc := range []struct {
		host string
		n    int
		err  error
	}{
		{"plain.test", 1, nil}, {"PLAIN.test.", 1, nil}, {"alias.test", 1, nil}, {"many.test", maxHTTPS, nil},
		{"empty.test", 0, ErrNoSuchHost}, {"none.test", 0, ErrNoSuchHost}, {"fixed.test", 0, ErrNoSuchHost},
		{"broken.test", 0, ErrLookup}, {"localhost", 0, ErrBadName}, {"192.0.2.1", 0, ErrBadName}, {"a b.test", 0, ErrBadName},
	} {
		rrs, err := g.HTTPS(t.Context(), tc.host)
		if len(rrs) != tc.n || !errors.Is(err, tc.err) {
			t.Errorf("%s: %v, %v", tc.host, rrs, err)
		}
	}
	for _, q := range ns.Queries() {
		if q.Name == "localhost" || q.Name == "fixed.test" {
			t.Errorf("%s was asked for", q.Name)
		}
	}
}
