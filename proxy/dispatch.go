package proxy

import (
	"context"
	"errors"
	"net"
	"net/http"
	"net/netip"
	"os"
	"time"

	"github.com/egressd/egressd/internal/netguard"
	"github.com/egressd/egressd/internal/sniff"
	"github.com/egressd/egressd/policy"
)

// maxHello bounds a ClientHello; post-quantum ones reach 4 KiB.
const maxHello = 64 << 10

// TLS alerts that refuse a ClientHello without answering it (RFC 8446 section 6).
var (
	alertUnrecognizedName = [7]byte{21, 3, 3, 0, 2, 2, 112}
	alertAccessDenied     = [7]byte{21, 3, 3, 0, 2, 2, 49}
	alertDecodeError      = [7]byte{21, 3, 3, 0, 2, 2, 50}
	alertInternalError    = [7]byte{21, 3, 3, 0, 2, 2, 80}
)

// dispatch looks at the first bytes of a tunnel, decides, and hands over. It owns
// t.conn and returns when the tunnel is over.
func (s *Server) dispatch(ctx context.Context, t *tunnel) {
	defer func() { _ = t.conn.Close() }()
	defer s.recovered("tunnel")
	prefix, proto := s.admit(ctx, t)
	switch proto {
	case policy.TLS:
		s.intercept(ctx, t, prefix)
	case policy.HTTP:
		rc := &replayConn{Conn: t.conn, t: t, prefix: prefix}
		t.conn = rc
		if t.h2c {
			s.requests.serveH2(t, rc, rc)
			return
		}
		s.requests.serveTunnel(t)
	default: // it is over
	}
}

// admit decides what a tunnel may be. It gives TLS or HTTP for what is to be looked into and
// serves everything else itself: what it has on its stack, 1 KiB, an idle tunnel need not.
func (s *Server) admit(ctx context.Context, t *tunnel) (prefix []byte, proto policy.Protocol) {
	b, err := t.sess.bind()
	if err != nil {
		// The sandbox is gone since CONNECT was answered.
		s.closeTunnel(t, nil, policy.Unknown, &refusal{status: http.StatusForbidden, code: codePolicyDenied, detail: err.Error()})
		return nil, policy.Unknown
	}
	wait, maySayNothing := s.limits.SniffTimeout, s.carriesAnything(ctx, t, b)
	if maySayNothing {
		wait = min(wait, s.limits.ServerFirstDelay)
	}
	prefix, proto, err = s.sniff(t, wait, maySayNothing)
	if err != nil {
		s.closeTunnel(t, prefix, proto, &refusal{status: http.StatusForbidden, code: codeProtocol, detail: err.Error()})
		return nil, policy.Unknown
	}
	ref := s.checkLoop(t)
	if ref == nil {
		ref = s.settleDest(t, proto, &prefix)
	}
	if ref != nil {
		s.closeTunnel(t, prefix, proto, ref)
		return nil, policy.Unknown
	}
	// The client may have taken its time: the ruleset of now decides.
	if b, err = t.sess.bind(); err != nil {
		s.closeTunnel(t, prefix, proto, &refusal{status: http.StatusForbidden, code: codePolicyDenied, detail: err.Error()})
		return nil, policy.Unknown
	}
	f := policy.Flow{Sandbox: b.sandbox, Host: t.dest.host, Port: t.dest.port, Addr: t.dest.ip, Protocol: proto}
	s.live.describe(t.handle, about{dest: t.dest.String(), protocol: proto.String()})
	var dec policy.Decision
	var addrs []netip.Addr
	dec, addrs, ref = s.decide(ctx, b, &f)
	if ref == nil && dec.Action == policy.Deny {
		ref = denied(dec)
	}
	if ref == nil && t.aimed.IsValid() {
		ref = s.checkLiteral(t.dest) // an address, where no name was claimed for it
	}
	if ref == nil && dec.Action == policy.Pass && proto == policy.TLS {
		ref = s.checkECH(ctx, t, b.sandbox.ID)
	}
	if ref != nil {
		s.closeTunnel(t, prefix, proto, ref)
		return nil, policy.Unknown
	}
	switch {
	case dec.Action == policy.Pass:
		s.relay(ctx, t, b, f, dec, addrs, prefix)
	case proto == policy.TLS, proto == policy.HTTP:
		return prefix, proto
	case dec.Credential != nil:
		t.conn = &replayConn{Conn: t.conn, t: t, prefix: prefix}
		s.serveLogin(ctx, t, b, &f, dec, addrs, "")
	default:
		s.closeTunnel(t, prefix, proto, &refusal{status: http.StatusForbidden, code: codeProtocol, rule: dec.Rule})
	}
	return nil, policy.Unknown
}

var errSilent = errors.New("the client sent nothing that a rule there could carry")

// sniff reads until the protocol is known. A tunnel that a rule lets carry anything
// need not speak first; any other that stays silent is closed.
func (s *Server) sniff(t *tunnel, wait time.Duration, mayBeSilent bool) ([]byte, policy.Protocol, error) {
	deadline := time.Now().Add(wait)
	if err := t.conn.SetReadDeadline(deadline); err != nil {
		return nil, policy.Unknown, err
	}
	defer func() { _ = t.conn.SetReadDeadline(time.Time{}) }()
	buf := make([]byte, 0, 2048)
	for {
		n, err := t.conn.Read(buf[len(buf):cap(buf)])
		buf = buf[:len(buf)+n]
		if n > 0 {
			if p, decided := sniff.Detect(buf); decided {
				t.h2c = p == sniff.HTTP2Preface
				return buf, protocolOf(p), nil
			}
			if len(buf) == cap(buf) {
				return buf, policy.Unknown, nil
			}
		}
		switch {
		case err == nil:
		case errors.Is(err, os.ErrDeadlineExceeded) && (mayBeSilent || len(buf) > 0):
			if mayBeSilent {
				t.silent = true
				return buf, policy.Unknown, nil
			}
			return buf, policy.Unknown, errSilent
		default:
			return buf, policy.Unknown, err
		}
	}
}

// carriesAnything says whether the tunnel may be relayed before its client has spoken:
// what is silent now may speak any protocol later, so none of them may be denied there.
func (s *Server) carriesAnything(ctx context.Context, t *tunnel, b *bound) bool {
	for _, p := range everyProtocol {
		f := policy.Flow{Sandbox: b.sandbox, Host: t.dest.host, Port: t.dest.port, Addr: t.dest.ip, Protocol: p}
		dec, _, ref := s.decide(ctx, b, &f)
		if ref != nil || dec.Action == policy.Deny || p == policy.Unknown && dec.Action != policy.Pass {
			return false
		}
	}
	return true
}

// everyProtocol begins with the one that decides most often.
var everyProtocol = [...]policy.Protocol{
	policy.Unknown, policy.SSH, policy.TLS, policy.HTTP, policy.SOCKS5, policy.MQTT, policy.Redis, policy.Postgres, policy.AMQP, policy.DNS, policy.MongoDB,
}

// settleDest makes the destination what the first bytes claim, where the client has said none
// before, and otherwise compares the two.
func (s *Server) settleDest(t *tunnel, proto policy.Protocol, prefix *[]byte) *refusal {
	switch {
	case proto == policy.TLS:
		return s.checkHello(t, prefix)
	case proto == policy.HTTP && t.aimed.IsValid() && !t.h2c: // h2 says its authority later; it has to be this one
		return s.claimHost(t, prefix)
	}
	return nil
}

// checkHello completes the ClientHello in prefix and compares its server name with
// the tunnel's destination. Both must be the same name; only an address that the
// client asked for by itself may come without one.
func (s *Server) checkHello(t *tunnel, prefix *[]byte) *refusal {
	hello, err := s.readHello(t, prefix)
	if err != nil {
		return &refusal{status: http.StatusBadRequest, code: codeBadRequest, detail: "ClientHello: " + err.Error()}
	}
	if hello.ECH {
		t.ech = uint16(hello.ECHConfigID) + 1
	}
	if t.aimed.IsValid() {
		return t.claimHello(hello.ServerName)
	}
	if hello.ServerName == "" {
		if t.dest.ip.IsValid() {
			return nil
		}
		return &refusal{status: http.StatusMisdirectedRequest, code: codeMisdirected, detail: "no SNI towards a name"}
	}
	name, err := policy.CanonicalHost(hello.ServerName)
	if err != nil || name != t.dest.host || t.dest.ip.IsValid() {
		return &refusal{status: http.StatusMisdirectedRequest, code: codeMisdirected, detail: "SNI differs from the tunnel's destination"}
	}
	return nil
}

func (s *Server) readHello(t *tunnel, prefix *[]byte) (sniff.Hello, error) {
	if err := t.conn.SetReadDeadline(time.Now().Add(s.limits.SniffTimeout)); err != nil {
		return sniff.Hello{}, err
	}
	defer func() { _ = t.conn.SetReadDeadline(time.Time{}) }()
	for {
		var hello sniff.Hello
		err := s.apart(func() (err error) { // it has 8 KiB of flags on its stack
			hello, err = sniff.ParseClientHello(*prefix)
			return err
		})
		if !errors.Is(err, sniff.ErrIncomplete) {
			return hello, err
		}
		if len(*prefix) >= maxHello {
			return hello, errors.New("longer than 64 KiB")
		}
		if err := readMore(t.conn, prefix); err != nil {
			return hello, err
		}
	}
}

// closeTunnel refuses what was sniffed, in the protocol's own words where it has some.
func (s *Server) closeTunnel(t *tunnel, prefix []byte, proto policy.Protocol, ref *refusal) {
	x := t.begin(s)
	x.dest = t.dest
	x.protocol = proto.String()
	answer := ref.farewell(proto, prefix, x.id)
	if len(answer) > 0 && t.conn.SetWriteDeadline(time.Now().Add(s.limits.SniffTimeout)) == nil {
		_, _ = t.conn.Write(answer)
	}
	_ = t.conn.Close()
	x.bytesIn = int64(len(prefix))
	x.refused(ref, int64(len(answer)))
}

// decide asks the policy; where the answer depends on the address it resolves the
// name first. The addresses returned are the ones that the decision holds for: dial
// no other. They are nil when the decision does not depend on them.
func (s *Server) decide(ctx context.Context, b *bound, f *policy.Flow) (policy.Decision, []netip.Addr, *refusal) {
	dec := b.rules.Policy.Decide(f)
	if !dec.NeedAddr {
		return dec, nil, nil
	}
	all, err := s.names.lookup(ctx, b.sandbox.ID, f.Host)
	if err != nil {
		return policy.Decision{}, nil, dialRefusal(err)
	}
	var first policy.Decision
	var addrs []netip.Addr
	for _, a := range all {
		f.Addr = a
		d := b.rules.Policy.Decide(f)
		if len(addrs) == 0 {
			first = d
		}
		// Addresses that the policy treats otherwise than the first allowed one are left out.
		if d.Action != policy.Deny && !d.NeedAddr && (len(addrs) == 0 || d.Same(&first)) {
			addrs = append(addrs, a)
		}
	}
	if len(addrs) > 0 {
		f.Addr = addrs[0]
	}
	return first, addrs, nil
}

// dialRefusal puts an error of lookup, dial or upstream handshake into words for the client.
func dialRefusal(err error) *refusal {
	r := &refusal{status: http.StatusBadGateway, code: codeDial, detail: err.Error()}
	switch {
	case errors.Is(err, netguard.ErrForbiddenAddress):
		r.status, r.code = http.StatusForbidden, codeForbiddenAddr
	case errors.Is(err, errUpstreamLimit), errors.Is(err, errLookupLimit), errors.Is(err, errHeldLimit):
		r.status, r.code = http.StatusTooManyRequests, codeLimit
	case errors.Is(err, netguard.ErrBadName):
		r.status, r.code = http.StatusBadRequest, codeBadRequest
	case errors.Is(err, netguard.ErrNoSuchHost):
		r.code = codeNoSuchHost
	case errors.Is(err, netguard.ErrLookup):
		r.code = codeDNS
	case errors.Is(err, errUpstreamTLS):
		r.code = codeUpstreamTLS
	case isTimeout(err):
		r.status, r.code = http.StatusGatewayTimeout, codeUpstreamTimeout
	}
	return r
}

// isTimeout says whether a deadline ended it, net's, a context's or the h2 client's.
func isTimeout(err error) bool {
	var ne net.Error
	return errors.Is(err, context.DeadlineExceeded) || errors.As(err, &ne) && ne.Timeout()
}
