package h1

import (
	"crypto/tls"
	"errors"
	"net"
	"net/http"
	"os"
	"time"
)

// Bounds on what is read of a peer that has had its last answer.
const (
	lingerTime  = 500 * time.Millisecond
	lingerBytes = 64 << 10
)

// transport is what lies at the bottom of nc.
func transport(nc net.Conn) net.Conn {
	for {
		u, ok := nc.(interface{ NetConn() net.Conn })
		if !ok {
			return nc
		}
		nc = u.NetConn()
	}
}

// closeGently lets the peer read the answer before a reset for unread bytes could
// destroy it. What it reads is thrown away.
func (c *conn) closeGently() {
	if tc, ok := c.nc.(*tls.Conn); ok {
		_ = tc.CloseWrite()
	}
	raw := transport(c.nc)
	hc, ok := raw.(interface{ CloseWrite() error })
	if !ok || hc.CloseWrite() != nil {
		return
	}
	_ = raw.SetReadDeadline(time.Now().Add(lingerTime))
	b := getBuffer(&readBuffers)
	defer readBuffers.Put(b)
	for n := 0; n < lingerBytes; {
		m, err := raw.Read(b.b)
		if n += m; err != nil {
			return
		}
	}
}

// abort closes without anything that looks like a clean end: no close_notify, and a
// reset where the transport can.
func (c *conn) abort() {
	raw := transport(c.nc)
	if l, ok := raw.(interface{ SetLinger(sec int) error }); ok {
		_ = l.SetLinger(0)
	}
	_ = raw.Close()
}

// reject answers a head that was refused and leaves the connection to be closed.
// Nothing is answered to a peer that only went away.
func (c *conn) reject(err error) {
	var pe *ProtocolError
	if !errors.As(err, &pe) {
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			return
		}
		pe = &ProtocolError{Status: http.StatusRequestTimeout, Reason: "head_timeout"}
	}
	contentType, body, header := "text/plain", []byte(nil), http.Header(nil)
	if c.srv.Reject != nil {
		contentType, body, header = c.srv.Reject(c.base.Context(), pe)
	}
	x := c.newExchange()
	x.req.Method, x.req.ProtoMinor = http.MethodGet, 1
	c.resp.reset(x)
	h := c.resp.Header()
	for k, v := range header {
		h[k] = v
	}
	h["Content-Type"] = []string{contentType}
	c.resp.closeAfter = true
	c.resp.length(int64(len(body)))
	c.resp.WriteHeader(pe.Status)
	_, _ = c.resp.Write(body)
	if c.resp.finish() {
		c.closeGently()
	}
}
