package policydns

import (
	"context"
	"errors"
	"net/netip"
	"strings"

	"github.com/miekg/dns"

	"github.com/egressd/egressd/internal/netguard"
	"github.com/egressd/egressd/policy"
)

const (
	headerLen  = 12
	plainUDP   = 512  // without EDNS (RFC 1035)
	maxUDP     = 1232 // what passes every path unfragmented (DNS flag day 2020)
	maxAnswers = 16
)

// exchange is one question on its way to its answer.
type exchange struct {
	s      *Server
	client *client
	q, r   *dns.Msg
	edns   bool
	event  Event
}

// answer reads one packet of a sandbox and makes what is sent back; nil: nothing. tcp: as
// much as there is.
func (s *Server) answer(ctx context.Context, c *client, packet []byte, tcp bool) (reply []byte) {
	x := &exchange{s: s, client: c, event: Event{Sandbox: c.sandbox, Outcome: Malformed}}
	defer func() {
		if recover() != nil { // a fault in reading one packet is that packet's
			x.event.Outcome, reply = Malformed, nil
		}
		s.report(x.event)
	}()
	if reply, ok := x.open(packet); !ok {
		return reply
	}
	x.resolve(ctx)
	return x.pack(tcp)
}

// open checks what every question must be. If it is none, the reply is for those who
// might be asking all the same.
func (x *exchange) open(packet []byte) (reply []byte, ok bool) {
	if len(packet) < headerLen || packet[2]&0x80 != 0 {
		return nil, false // an answer is never answered
	}
	count := func(i int) int { return int(packet[i])<<8 | int(packet[i+1]) }
	if opcode := packet[2] >> 3 & 0xf; opcode != dns.OpcodeQuery {
		return bare(packet, dns.RcodeNotImplemented), false
	}
	x.q = new(dns.Msg)
	if count(4) != 1 || count(6) != 0 || count(8) != 0 || count(10) > 2 || x.q.Unpack(packet) != nil || len(x.q.Question) != 1 {
		return bare(packet, dns.RcodeFormatError), false
	}
	x.r = new(dns.Msg)
	x.r.SetReply(x.q) // the question is echoed as it came, in its case
	x.r.RecursionAvailable = true
	for _, rr := range x.q.Extra {
		opt, isOPT := rr.(*dns.OPT)
		if !isOPT {
			continue
		}
		if x.edns {
			return bare(packet, dns.RcodeFormatError), false
		}
		x.edns = true
		x.r.SetEdns0(maxUDP, false)
		if opt.Version() != 0 {
			x.r.Rcode = dns.RcodeBadVers
			return x.pack(false), false
		}
	}
	return nil, true
}

// bare is an answer of a header alone.
func bare(packet []byte, rcode byte) []byte {
	out := make([]byte, headerLen)
	copy(out, packet[:2])
	out[2] = 0x80 | packet[2]&0x79 // QR; opcode and RD as they came
	out[3] = rcode
	return out
}

func (x *exchange) refuse(o Outcome, why string) {
	x.event.Outcome = o
	x.r.Rcode = dns.RcodeRefused
	x.explain(dns.ExtendedErrorCodeBlocked, why)
}

func (x *exchange) explain(code uint16, why string) {
	if opt := x.r.IsEdns0(); opt != nil {
		opt.Option = append(opt.Option, &dns.EDNS0_EDE{InfoCode: code, ExtraText: why})
	}
}

// resolve decides and fills x.r.
func (x *exchange) resolve(ctx context.Context) {
	q := x.q.Question[0]
	x.event.Type = typeName(q.Qtype)
	host, err := canonical(q.Name)
	switch {
	case q.Qclass != dns.ClassINET || q.Qtype == dns.TypeNone || q.Qtype == dns.TypeOPT || q.Qtype >= 128 && q.Qtype <= 255:
		x.refuse(Denied, "no such questions") // ANY and transfers among them
		return
	case err != nil:
		x.refuse(Denied, "not a name that policy could allow")
		return
	}
	x.event.Name = host
	switch {
	case !x.s.opts.MayName(x.client.sandbox, host):
		x.refuse(Denied, "not allowed by policy")
		return
	case len(host) > x.s.limits.Name || longest(host) > x.s.limits.Label:
		x.refuse(Tunnel, "name too long")
		return
	}
	if q.Qtype != dns.TypeA && q.Qtype != dns.TypeAAAA && (q.Qtype != dns.TypeHTTPS || x.s.opts.HTTPS == nil) {
		x.event.Outcome = Empty
		return
	}
	if !x.client.bringsUp(host) {
		x.refuse(Tunnel, "too many new names")
		return
	}
	ctx, cancel := context.WithTimeout(ctx, x.s.limits.Timeout)
	defer cancel()
	if q.Qtype == dns.TypeHTTPS {
		x.https(ctx, host, q.Name)
		return
	}
	x.addresses(ctx, host, q)
}

// canonical is the name as policy writes it.
func canonical(name string) (string, error) {
	host, err := policy.CanonicalHost(strings.TrimSuffix(name, "."))
	if err != nil {
		return "", err
	}
	if _, err := netip.ParseAddr(host); err == nil || strings.Contains(name, `\`) {
		return "", policy.ErrBadHost
	}
	return host, nil
}

func longest(name string) (n int) {
	for label := range strings.SplitSeq(name, ".") {
		n = max(n, len(label))
	}
	return n
}

func typeName(t uint16) string {
	switch t {
	case dns.TypeA, dns.TypeAAAA, dns.TypeHTTPS:
		return dns.TypeToString[t]
	}
	return "other"
}

func (x *exchange) addresses(ctx context.Context, host string, q dns.Question) {
	addrs, err := x.s.opts.Lookup(ctx, x.client.sandbox, host)
	switch {
	case errors.Is(err, netguard.ErrForbiddenAddress):
		x.refuse(Forbidden, "its address may not be reached")
		return
	case errors.Is(err, netguard.ErrBadName):
		x.refuse(Denied, "not a name of the public DNS")
		return
	case errors.Is(err, netguard.ErrNoSuchHost):
		x.event.Outcome, x.r.Rcode = Empty, dns.RcodeNameError
		return
	case err != nil:
		x.event.Outcome, x.r.Rcode = Failed, dns.RcodeServerFailure
		x.explain(dns.ExtendedErrorCodeNoReachableAuthority, "lookup failed")
		return
	}
	x.event.Outcome = Empty
	h := dns.RR_Header{Name: q.Name, Rrtype: q.Qtype, Class: dns.ClassINET, Ttl: x.s.ttl()}
	var told []netip.Addr
	for _, a := range addrs {
		a = a.Unmap()
		if !a.IsValid() || a.Zone() != "" || a.Is4() != (q.Qtype == dns.TypeA) || len(told) == maxAnswers {
			continue
		}
		told = append(told, a)
		if a.Is4() {
			x.r.Answer = append(x.r.Answer, &dns.A{Hdr: h, A: a.AsSlice()})
		} else {
			x.r.Answer = append(x.r.Answer, &dns.AAAA{Hdr: h, AAAA: a.AsSlice()})
		}
	}
	if len(told) == 0 {
		return
	}
	x.event.Outcome = Answered
	if x.s.opts.Memory != nil {
		x.s.opts.Memory.Remember(x.client.sandbox, host, told, x.s.limits.TTL)
	}
}

// https answers with nothing where the lookup fails: a client then goes by addresses.
func (x *exchange) https(ctx context.Context, host, owner string) {
	x.event.Outcome = Empty
	found, err := x.s.opts.HTTPS(ctx, x.client.sandbox, host)
	if err != nil && !errors.Is(err, netguard.ErrNoSuchHost) {
		x.event.Outcome = Failed
		return
	}
	for _, rr := range found {
		if rr := harmless(rr, owner, x.s.ttl()); rr != nil && len(x.r.Answer) < maxAnswers {
			x.r.Answer = append(x.r.Answer, rr)
			x.event.Outcome = Answered
		}
	}
}

func (s *Server) ttl() uint32 { return uint32(s.limits.TTL.Seconds()) }

// pack writes the answer, cut to what the client can take over UDP.
func (x *exchange) pack(tcp bool) []byte {
	x.r.Compress = true
	if !tcp {
		size := plainUDP
		if opt := x.q.IsEdns0(); opt != nil {
			size = min(max(int(opt.UDPSize()), plainUDP), maxUDP)
		}
		x.r.Truncate(size)
	}
	out, err := x.r.Pack()
	if err != nil {
		x.event.Outcome = Failed
		return nil
	}
	return out
}
