package mqtt

import (
	"net"

	"github.com/egressd/egressd/proxy/wire"
)

// clientConn is the sandbox's connection behind CONNECT. Its reads see every fixed header.
type clientConn struct {
	net.Conn
	headers headers
	err     error
}

// Read gives out bytes as they come, up to a packet that must not be.
func (c *clientConn) Read(p []byte) (int, error) {
	if c.err != nil {
		return 0, c.err
	}
	n, err := c.Conn.Read(p)
	ok, bad := c.headers.pass(p[:n])
	if bad != nil {
		c.err = bad
		return ok, bad
	}
	return n, err
}

// CloseWrite half-closes where it can be.
func (c *clientConn) CloseWrite() error {
	if hc, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return hc.CloseWrite()
	}
	return c.Close()
}

// headers follows a client's packets by their fixed headers. The zero value is between two.
type headers struct {
	rest  int  // bytes of the packet still to come
	size  int  // of the remaining length read so far
	shift uint // 7 × its bytes read so far
	inLen bool // in the remaining length
}

// pass says how much of b may go on, with an error where that is not all.
func (h *headers) pass(b []byte) (int, error) {
	for i := 0; i < len(b); {
		switch {
		case h.rest > 0:
			n := min(h.rest, len(b)-i)
			h.rest -= n
			i += n
			continue
		case !h.inLen:
			if !clientSends(b[i] >> 4) {
				return i, wire.Bad("MQTT packet of type %d behind CONNECT", b[i]>>4)
			}
			h.inLen, h.size, h.shift = true, 0, 0
		default:
			h.size |= int(b[i]&0x7f) << h.shift
			h.shift += 7
			if b[i]&0x80 == 0 {
				h.inLen, h.rest = false, h.size
			} else if h.shift > 21 {
				return i, wire.Bad("MQTT remaining length of more than 4 bytes")
			}
		}
		i++
	}
	return len(b), nil
}

// clientSends are PUBLISH to PUBCOMP, SUBSCRIBE, UNSUBSCRIBE, PINGREQ and DISCONNECT.
func clientSends(typ byte) bool {
	const pubcomp = 7
	return typ >= typePublish && typ <= pubcomp || typ == typeSubscribe || typ == typeUnsubscribe || typ == typePingreq || typ == typeDisconnect
}
