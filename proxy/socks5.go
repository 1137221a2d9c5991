package proxy

import (
	"errors"
	"net/http"
	"net/netip"
	"time"

	"github.com/egressd/egressd/proxy/socks"
	"github.com/egressd/egressd/proxy/wire"
)

// socksVersion is the first byte of a SOCKS5 client (RFC 1928).
const socksVersion = 5

// enterSOCKS takes a SOCKS5 request. What follows is a tunnel like any other. A client that
// asks for an address has resolved a name by itself: as behind a transparent listener, the
// name that it says inside is what counts.
func (s *Server) enterSOCKS(t *tunnel) {
	t.way, t.conn = waySOCKS, t.raw
	var b *bound
	var ref *refusal
	req, reply, err := socks.Accept(t.ctx, t.raw, s.limits.HandshakeTimeout, func(user, token string, given bool) error {
		if s.isDraining() {
			ref = &refusal{status: http.StatusServiceUnavailable, code: codeShutdown}
			return ref.asError()
		}
		if token == "" {
			user, given = "", false // some clients (Java) always send a login, if an empty one
		}
		if b, ref = s.identify(t, user, token, given); ref != nil {
			return ref.asError()
		}
		return nil
	})
	if err != nil {
		s.refuseSOCKS(t, ref, err)
		return
	}
	ref = s.openSOCKS(t, b, req)
	code := socksReply(ref)
	_ = t.raw.SetWriteDeadline(time.Now().Add(s.limits.StallTimeout))
	err = reply(code)
	_ = t.raw.SetWriteDeadline(time.Time{})
	switch {
	case ref != nil:
		s.refuseSOCKS(t, ref, nil)
	case err != nil:
		_ = t.raw.Close()
	default:
		t.next = func() { s.dispatch(t.ctx, t) }
	}
}

// openSOCKS settles where the tunnel leads.
func (s *Server) openSOCKS(t *tunnel, b *bound, req socks.Request) *refusal {
	d, ok := destFrom(req.Host, req.Port)
	if !ok {
		return &refusal{status: http.StatusBadRequest, code: codeBadRequest, detail: "SOCKS5 destination"}
	}
	if !d.ip.IsValid() {
		return s.openTo(t, b, d)
	}
	if ref := s.count(t, b); ref != nil {
		return ref
	}
	t.aimAt(addrPort(d.ip, d.port))
	if name, ok := s.memory.Name(b.sandbox.ID, t.aimed.Addr()); ok {
		t.dest = destOf(name, d.port)
	}
	return nil
}

// destFrom canonicalises a host that came apart from its port.
func destFrom(host string, port uint16) (dest, bool) {
	if ip, err := netip.ParseAddr(host); err == nil {
		if ip.Zone() != "" || port == 0 {
			return dest{}, false
		}
		return destOf(ip.Unmap().String(), port), true
	}
	return parseDest(host, port)
}

func socksReply(ref *refusal) socks.Reply {
	switch {
	case ref == nil:
		return socks.Succeeded
	case ref.code == codeNoSuchHost, ref.code == codeDNS:
		return socks.HostUnreachable
	case ref.status == http.StatusForbidden:
		return socks.NotAllowed
	}
	return socks.GeneralFailure
}

// refuseSOCKS records what has been answered in the protocol's own words.
func (s *Server) refuseSOCKS(t *tunnel, ref *refusal, err error) {
	_ = t.raw.Close()
	if ref == nil {
		ref = &refusal{status: http.StatusBadRequest, code: codeBadRequest, detail: err.Error()}
		var wr *wire.Refusal
		if errors.As(err, &wr) {
			ref.code, ref.status = wr.Code, statusOf(wr.Code)
		}
	}
	x := t.begin(s)
	x.protocol = "socks5"
	x.refused(ref, 0)
}
