package proxy

import (
	"net"
	"net/http"
	"net/netip"
	"sync"
)

// dialled are egressd's own open connections to origins, by both of their ends. One that a
// redirection leads back in would be dialled again, and again, for as long as there is
// room: no marker in it could say so, since what leaves is either not ours to write into
// or would tell origins. Safe for concurrent use.
type dialled struct {
	mu   sync.Mutex
	open map[ends]struct{}
}

type ends struct{ from, to netip.AddrPort }

func newDialled() *dialled { return &dialled{open: map[ends]struct{}{}} }

// add remembers c until remove.
func (d *dialled) add(c net.Conn) (remove func()) {
	e := ends{endOf(c.LocalAddr()), endOf(c.RemoteAddr())}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.open[e] = struct{}{}
	return func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		delete(d.open, e)
	}
}

func (d *dialled) has(from, to netip.AddrPort) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	_, ok := d.open[ends{from, to}]
	return ok
}

func endOf(a net.Addr) netip.AddrPort {
	ta, ok := a.(*net.TCPAddr)
	if !ok {
		return netip.AddrPort{}
	}
	ap := ta.AddrPort()
	return netip.AddrPortFrom(ap.Addr().Unmap().WithZone(""), ap.Port())
}

// checkLoop refuses a connection that is egressd's own. It comes after the first bytes have
// been read: whoever has sent them is known by then.
func (s *Server) checkLoop(t *tunnel) *refusal {
	from := endOf(t.raw.RemoteAddr())
	if s.upstream.dialled.has(from, endOf(t.raw.LocalAddr())) || t.aimed.IsValid() && s.upstream.dialled.has(from, t.aimed) {
		return &refusal{status: http.StatusForbidden, code: codeForbiddenAddr, detail: "a connection of egressd's own came back to it: a loop", close: true}
	}
	return nil
}
