package testbed

import (
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// DNSAnswer is what one query gets. The zero value is NOERROR without a record.
type DNSAnswer struct {
	IPs   []string // A and AAAA records; those of the asked type are sent
	CNAME string   // goes first; the records then belong to this name
	TTL   uint32   // seconds
	Rcode int      // dns.RcodeNameError and the like
	Drop  bool     // no answer at all
	Delay time.Duration
	// RRs, in zone-file form, are added to the answer when their type was asked for:
	// `good.test. 60 IN HTTPS 1 . alpn=h3`.
	RRs []string
}

// DNSQuery is one question that came.
type DNSQuery struct {
	Name string // lower case, without the trailing dot
	Type string // "A", "AAAA", "HTTPS", …
	TCP  bool
}

// NS is a name server, on UDP and TCP, that answers by script.
type NS struct {
	addr netip.AddrPort

	mu      sync.Mutex
	script  map[string][]DNSAnswer
	asked   map[string]int // by name and type
	queries []DNSQuery
	dropAll bool
}

// NewNS starts a name server on a free port of 127.0.0.1. Names without a script are NXDOMAIN.
func NewNS(t testing.TB) *NS {
	t.Helper()
	n := &NS{script: map[string][]DNSAnswer{}, asked: map[string]int{}}
	pc, ln := listenDNS(t)
	n.addr = ln.Addr().(*net.TCPAddr).AddrPort()
	var wg sync.WaitGroup
	for _, s := range []*dns.Server{{PacketConn: pc}, {Listener: ln}} {
		s.Handler = dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) { n.serve(w, q) })
		up := make(chan struct{})
		s.NotifyStartedFunc = func() { close(up) }
		wg.Go(func() { _ = s.ActivateAndServe() })
		<-up
		t.Cleanup(func() { _ = s.Shutdown() })
	}
	t.Cleanup(func() { _ = pc.Close(); _ = ln.Close(); wg.Wait() })
	return n
}

// listenDNS finds a port that is free for UDP and TCP.
func listenDNS(t testing.TB) (net.PacketConn, net.Listener) {
	t.Helper()
	for range 50 {
		ln, err := net.Listen("tcp4", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		if pc, err := net.ListenPacket("udp4", ln.Addr().String()); err == nil {
			return pc, ln
		}
		_ = ln.Close()
	}
	t.Fatal("testbed: no port is free for UDP and TCP at once")
	return nil, nil
}

// Addr is host:port, as upstream.resolvers wants it.
func (n *NS) Addr() string { return n.addr.String() }

// On sets what name gets: the first query of each type the first answer, the second the
// second, and the last answer for all after it.
func (n *NS) On(name string, answers ...DNSAnswer) {
	n.mu.Lock()
	defer n.mu.Unlock()
	name = canonical(name)
	n.script[name] = answers
	for k := range n.asked {
		if strings.HasPrefix(k, name+" ") {
			delete(n.asked, k)
		}
	}
}

// Hosts scripts fixed addresses for names, TTL 60.
func (n *NS) Hosts(hosts map[string]string) {
	for name, ip := range hosts {
		n.On(name, DNSAnswer{IPs: []string{ip}, TTL: 60})
	}
}

// DropAll makes the server silent, or answer again.
func (n *NS) DropAll(on bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.dropAll = on
}

// Queries are the questions so far.
func (n *NS) Queries() []DNSQuery {
	n.mu.Lock()
	defer n.mu.Unlock()
	return append([]DNSQuery(nil), n.queries...)
}

func canonical(name string) string { return strings.ToLower(strings.TrimSuffix(name, ".")) }

func (n *NS) next(q dns.Question, tcp bool) DNSAnswer {
	n.mu.Lock()
	defer n.mu.Unlock()
	name, kind := canonical(q.Name), dns.TypeToString[q.Qtype]
	n.queries = append(n.queries, DNSQuery{Name: name, Type: kind, TCP: tcp})
	if n.dropAll {
		return DNSAnswer{Drop: true}
	}
	answers, ok := n.script[name]
	if !ok || len(answers) == 0 {
		return DNSAnswer{Rcode: dns.RcodeNameError}
	}
	i := n.asked[name+" "+kind]
	n.asked[name+" "+kind]++
	return answers[min(i, len(answers)-1)]
}

func (n *NS) serve(w dns.ResponseWriter, q *dns.Msg) {
	m := new(dns.Msg)
	m.SetReply(q)
	if len(q.Question) != 1 {
		m.Rcode = dns.RcodeFormatError
		_ = w.WriteMsg(m)
		return
	}
	_, tcp := w.RemoteAddr().(*net.TCPAddr)
	a := n.next(q.Question[0], tcp)
	if a.Drop {
		return
	}
	time.Sleep(a.Delay)
	m.Rcode, m.RecursionAvailable = a.Rcode, true
	m.Answer = a.records(q.Question[0])
	_ = w.WriteMsg(m)
}

func (a DNSAnswer) records(q dns.Question) []dns.RR {
	var out []dns.RR
	owner := q.Name
	hdr := func(kind uint16) dns.RR_Header {
		return dns.RR_Header{Name: owner, Rrtype: kind, Class: dns.ClassINET, Ttl: a.TTL}
	}
	if a.CNAME != "" {
		target := dns.Fqdn(a.CNAME)
		out = append(out, &dns.CNAME{Hdr: hdr(dns.TypeCNAME), Target: target})
		owner = target
	}
	for _, s := range a.IPs {
		ip := netip.MustParseAddr(s)
		switch {
		case ip.Is4() && q.Qtype == dns.TypeA:
			out = append(out, &dns.A{Hdr: hdr(dns.TypeA), A: ip.AsSlice()})
		case ip.Is6() && q.Qtype == dns.TypeAAAA:
			out = append(out, &dns.AAAA{Hdr: hdr(dns.TypeAAAA), AAAA: ip.AsSlice()})
		}
	}
	for _, s := range a.RRs {
		if rr, err := dns.NewRR(s); err == nil && rr != nil && rr.Header().Rrtype == q.Qtype {
			out = append(out, rr)
		}
	}
	return out
}
