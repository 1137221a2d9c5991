package netguard

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/miekg/dns"
)

const (
	typeA    = dns.TypeA
	typeAAAA = dns.TypeAAAA

	maxTries   = 4
	maxAddrs   = 32
	maxCNAMEs  = 16
	maxRecords = 256  // of one answer that are looked at
	udpSize    = 1232 // what passes every path unfragmented (DNS flag day 2020)

	resolvConf    = "/etc/resolv.conf"
	resolvConfTTL = 5 * time.Second
)

// ask asks for addresses. An answer without any is ErrNoSuchHost.
func (g *Guard) ask(ctx context.Context, name string, typ uint16) answer {
	r, q, err := g.query(ctx, name, typ)
	if err != nil {
		return answer{err: err}
	}
	return read(r, q)
}

// query puts one question to the servers in turn until one answers it: with records, or
// with that there are none.
func (g *Guard) query(ctx context.Context, name string, typ uint16) (*dns.Msg, dns.Question, error) {
	q := new(dns.Msg)
	q.SetQuestion(name+".", typ) // rooted: no search domain is ever tried
	q.SetEdns0(udpSize, false)
	servers, err := g.servers.list()
	if err != nil {
		return nil, q.Question[0], err
	}
	err = errors.New("no server was asked")
	for i := range maxTries {
		if ctx.Err() != nil {
			break
		}
		var r *dns.Msg
		if r, err = g.exchange(ctx, q, servers[i%len(servers)]); err != nil {
			continue
		}
		switch r.Rcode {
		case dns.RcodeSuccess, dns.RcodeNameError:
			return r, q.Question[0], nil
		}
		err = fmt.Errorf("server answered %s", dns.RcodeToString[r.Rcode])
	}
	return nil, q.Question[0], fmt.Errorf("%w: %w", ErrLookup, err)
}

// exchange asks over UDP, from a port and with an id of the question's own, and again
// over TCP if the answer was cut.
func (g *Guard) exchange(ctx context.Context, q *dns.Msg, server string) (*dns.Msg, error) {
	ctx, cancel := context.WithTimeout(ctx, g.lookupTimeout/maxTries)
	defer cancel()
	q = q.Copy()
	for _, network := range []string{"udp", "tcp"} {
		q.Id = dns.Id()
		r, err := exchangeOnce(ctx, q, network, server)
		if err != nil {
			return nil, err
		}
		if !answers(r, q) {
			return nil, errors.New("server answered another question")
		}
		if !r.Truncated {
			return r, nil
		}
	}
	return nil, errors.New("server cut its answer over tcp")
}

func exchangeOnce(ctx context.Context, q *dns.Msg, network, server string) (*dns.Msg, error) {
	c := dns.Client{Net: network, UDPSize: udpSize}
	conn, err := c.DialContext(ctx, server)
	if err != nil {
		return nil, err
	}
	defer func() { _ = conn.Close() }()
	// The client looks at ctx's deadline only; this ends it on cancellation too.
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	r, _, err := c.ExchangeWithConnContext(ctx, q, conn)
	return r, err
}

func answers(r, q *dns.Msg) bool {
	return r.Response && r.Id == q.Id && len(r.Question) == 1 && r.Question[0].Qtype == q.Question[0].Qtype &&
		r.Question[0].Qclass == q.Question[0].Qclass && strings.EqualFold(r.Question[0].Name, q.Question[0].Name)
}

// read follows the answer's aliases from the name that was asked for and takes the
// addresses at their end; what the answer says about other names is left out.
func read(r *dns.Msg, q dns.Question) answer {
	records := r.Answer[:min(len(r.Answer), maxRecords)]
	owner := dns.CanonicalName(q.Name)
	ttl := uint32(maxCached / time.Second)
	for range maxCNAMEs {
		next := ""
		var out answer
		for _, rr := range records {
			h := rr.Header()
			if h.Class != dns.ClassINET || dns.CanonicalName(h.Name) != owner {
				continue
			}
			switch v := rr.(type) {
			case *dns.CNAME:
				next = dns.CanonicalName(v.Target)
			case *dns.A:
				out.addrs = appendIP(out.addrs, v.A, q.Qtype == typeA)
			case *dns.AAAA:
				out.addrs = appendIP(out.addrs, v.AAAA, q.Qtype == typeAAAA)
			default:
				continue
			}
			ttl = min(ttl, h.Ttl)
		}
		if len(out.addrs) > 0 {
			out.ttl = time.Duration(ttl) * time.Second
			return out
		}
		if next == "" {
			break
		}
		owner = next
	}
	return answer{err: ErrNoSuchHost}
}

func appendIP(to []netip.Addr, ip net.IP, wanted bool) []netip.Addr {
	a, ok := netip.AddrFromSlice(ip)
	if !ok || !wanted || len(to) >= maxAddrs {
		return to
	}
	return append(to, a.Unmap())
}

// servers lists the DNS servers: the configured ones, or those of resolv.conf as it is now.
type servers struct {
	fixed []string
	file  string // "" for /etc/resolv.conf

	mu      sync.Mutex
	checked time.Time
	mtime   time.Time
	read    []string
}

func (s *servers) list() ([]string, error) {
	if len(s.fixed) > 0 {
		return s.fixed, nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.read) > 0 && time.Since(s.checked) < resolvConfTTL {
		return s.read, nil
	}
	file := s.file
	if file == "" {
		file = resolvConf
	}
	st, err := os.Stat(file)
	if err != nil {
		return nil, fmt.Errorf("%w: set upstream.resolvers: %w", ErrLookup, err)
	}
	s.checked = time.Now()
	if len(s.read) > 0 && st.ModTime().Equal(s.mtime) {
		return s.read, nil
	}
	cfg, err := dns.ClientConfigFromFile(file)
	if err != nil || len(cfg.Servers) == 0 {
		return nil, fmt.Errorf("%w: %s names no server: set upstream.resolvers", ErrLookup, file)
	}
	s.mtime, s.read = st.ModTime(), nil
	for _, server := range cfg.Servers {
		s.read = append(s.read, net.JoinHostPort(server, cfg.Port))
	}
	return s.read, nil
}
