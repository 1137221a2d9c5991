package proxy

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"time"

	"github.com/egressd/egressd/internal/secret"
	"github.com/egressd/egressd/policy"
)

// Kind is how a transparent listener gets connections.
type Kind uint8

// The kinds of transparent listeners.
const (
	Redirect Kind = iota + 1 // NAT: the address aimed at is SO_ORIGINAL_DST
	TProxy                   // the address aimed at is the socket's own
)

// Transparent says how connections reach a listener and whose they are.
type Transparent struct {
	Kind Kind
	// Sandbox is whose alone the listener is, with its Token; "": addresses tell.
	Sandbox string
	Token   secret.String
}

// ServeTransparent accepts connections of clients that know of no proxy, until Shutdown or
// until ctx ends, which also cuts what is open. Where a client aimed is no more than a
// claim: the name that its TLS or HTTP says, or that the policy DNS told it, decides, and
// egressd resolves it itself.
func (s *Server) ServeTransparent(ctx context.Context, ln net.Listener, o Transparent) error {
	w := wayRedirect
	switch o.Kind {
	case Redirect:
	case TProxy:
		w = wayTProxy
	default:
		return errors.New("proxy: a transparent listener without a kind")
	}
	return s.acceptAll(ctx, ln, func(c net.Conn) *tunnel {
		return &tunnel{raw: c, way: w, sess: s.sessionOf(o, remoteAddr(c)), enter: func(t *tunnel) { s.enterTransparent(t, o.Kind) }}
	})
}

// sessionOf is who comes in by a transparent way.
func (s *Server) sessionOf(o Transparent, addr netip.Addr) *session {
	if o.Sandbox == "" {
		return &session{srv: s, claims: claims{addr: addr}}
	}
	return &session{srv: s, claims: claims{user: o.Sandbox, token: o.Token, given: true}}
}

// enterTransparent finds out who came and where to.
func (s *Server) enterTransparent(t *tunnel, kind Kind) {
	t.conn = t.raw
	ref := s.aim(t, kind)
	if ref != nil {
		s.closeTunnel(t, nil, policy.Unknown, ref)
		return
	}
	t.next = func() { s.dispatch(t.ctx, t) }
}

func (s *Server) aim(t *tunnel, kind Kind) *refusal {
	aimed, err := originalDst(t.raw, kind)
	if err != nil {
		return &refusal{status: http.StatusBadRequest, code: codeBadRequest, detail: "original destination: " + err.Error()}
	}
	t.aimAt(aimed)
	if s.isDraining() {
		return &refusal{status: http.StatusServiceUnavailable, code: codeShutdown}
	}
	b, err := t.sess.bind()
	switch {
	case errors.Is(err, errNoRules):
		return &refusal{status: http.StatusForbidden, code: codeNoPolicy}
	case err != nil:
		return unauthenticated(err.Error())
	}
	if ref := s.count(t, b); ref != nil {
		return ref
	}
	if name, ok := s.memory.Name(b.sandbox.ID, aimed.Addr()); ok {
		t.dest = destOf(name, aimed.Port())
	}
	return nil
}

// aimAt makes an address the destination for as long as nothing better is known.
func (t *tunnel) aimAt(a netip.AddrPort) {
	t.aimed = netip.AddrPortFrom(a.Addr().Unmap().WithZone(""), a.Port())
	t.dest = destOf(t.aimed.Addr().String(), t.aimed.Port())
}

// destOf is the destination of a canonical host.
func destOf(host string, port uint16) dest {
	d := dest{host: host, port: port, full: net.JoinHostPort(host, fmt.Sprint(port))}
	if ip, err := netip.ParseAddr(host); err == nil {
		d.ip = ip
	}
	return d
}

// claimHello takes the name that a ClientHello claims for where it was aimed. Without one
// only the address is left: not the name that DNS remembers, since TLS to a name says it.
func (t *tunnel) claimHello(serverName string) *refusal {
	if serverName == "" {
		t.aimAt(t.aimed)
		return nil
	}
	name, err := policy.CanonicalHost(serverName)
	if err == nil {
		if d := destOf(name, t.aimed.Port()); !d.ip.IsValid() {
			t.dest = d
			return nil
		}
	}
	return &refusal{status: http.StatusMisdirectedRequest, code: codeMisdirected, detail: "SNI is no name"}
}

// claimHost takes the name that the first HTTP request claims. Later ones on the connection
// have to say the same.
func (s *Server) claimHost(t *tunnel, prefix *[]byte) *refusal {
	host, err := s.readHost(t, prefix)
	if err != nil {
		return &refusal{status: http.StatusBadRequest, code: codeBadRequest, detail: "request head: " + err.Error()}
	}
	if host == "" { // HTTP/1.0
		t.aimAt(t.aimed)
		return nil
	}
	d, ok := parseDest(host, schemePort(false))
	switch {
	case !ok:
		return &refusal{status: http.StatusBadRequest, code: codeBadRequest, detail: "Host"}
	case d.port != t.aimed.Port(), d.ip.IsValid() && d.ip != t.aimed.Addr():
		return &refusal{status: http.StatusMisdirectedRequest, code: codeMisdirected, detail: "Host differs from where the connection was aimed", close: true}
	}
	t.dest = d
	return nil
}

var errHeadTooLong = errors.New("longer than the limit")

// readHost reads on until the Host of the first request is known or its head has ended.
// What is malformed is left to the codec to refuse.
func (s *Server) readHost(t *tunnel, prefix *[]byte) (string, error) {
	if err := t.conn.SetReadDeadline(time.Now().Add(s.limits.HandshakeTimeout)); err != nil {
		return "", err
	}
	defer func() { _ = t.conn.SetReadDeadline(time.Time{}) }()
	for {
		if host, done := hostOf(*prefix); done {
			return host, nil
		}
		if len(*prefix) >= s.limits.HeaderBytes {
			return "", errHeadTooLong
		}
		if err := readMore(t.conn, prefix); err != nil {
			return "", err
		}
	}
}

// hostOf finds the value of the first Host field; done is false while it may still come.
func hostOf(head []byte) (host string, done bool) {
	for first := true; ; first = false {
		i := bytes.IndexByte(head, '\n')
		if i < 0 {
			return "", false
		}
		line := bytes.TrimSuffix(head[:i], []byte{'\r'})
		head = head[i+1:]
		if len(line) == 0 {
			return "", true
		}
		name, value, ok := bytes.Cut(line, []byte{':'})
		if !first && ok && bytes.EqualFold(name, []byte("host")) {
			return string(bytes.Trim(value, " \t")), true
		}
	}
}

// readMore appends what comes next.
func readMore(c net.Conn, buf *[]byte) error {
	b := *buf
	if len(b) == cap(b) {
		grown := make([]byte, len(b), 2*cap(b)+512)
		copy(grown, b)
		b = grown
	}
	n, err := c.Read(b[len(b):cap(b)])
	*buf = b[:len(b)+n]
	if n > 0 {
		return nil
	}
	return err
}
