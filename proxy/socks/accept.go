package socks

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"time"

	"github.com/egressd/egressd/proxy/wire"
)

// Request is where a client wants to go. Host is what it sent: a name of 1 to 255
// bytes without control characters, blanks, colons or brackets, or an address, which a client
// may have sent as a name. It is not
// canonical and not checked; the zero address and names that are numbers come through.
type Request struct {
	Host string
	Port uint16
}

// ReplyFunc answers a Request. It has a deadline of its own. After Succeeded the connection
// carries the client's bytes; after any other reply it is of no more use: ReplyFunc has
// then waited a moment for the client to go, and the caller closes.
type ReplyFunc func(code Reply) error

// ErrAuth is what Accept returns when auth has refused; it wraps auth's own error.
var ErrAuth = errors.New("the client is not who it must be")

// Accept is the server's side of a SOCKS5 connection up to the request (RFC 1928, section
// 3 to 5): CONNECT only, by name, IPv4 or IPv6. What is refused has been answered when
// Accept returns: no acceptable method FF, a wrong login 01, BIND and UDP ASSOCIATE 07,
// another address type 08, anything malformed 01 where the protocol has an answer at all.
// Errors are *wire.Refusal, ErrAuth, or what the connection said. The caller closes c.
//
// auth says who the client is: with the user name and password it sent (either may be
// empty; given is true), or without (given is false), when it must be known by something
// else, as its address. A client that offers a login is asked for it.
//
// The login comes before the deadline of timeout (0: 10 s). Bytes that the client sends
// behind its request are not read.
func Accept(ctx context.Context, c net.Conn, timeout time.Duration, auth func(username, password string, given bool) error) (Request, ReplyFunc, error) {
	end := wire.Phase(ctx, c, timeout)
	req, answer, err := accept(c, auth)
	if err != nil && len(answer) > 0 && !isTimeout(err) {
		wire.Last(c, answer)
	}
	if err = end(err); err != nil {
		return Request{}, nil, err
	}
	return req, func(code Reply) error { return reply(c, code) }, nil
}

// accept also returns what to answer with its error.
func accept(c net.Conn, auth func(username, password string, given bool) error) (Request, []byte, error) {
	none, password, err := offers(c)
	if err != nil {
		return Request{}, answerTo(err, version, methodRefused), err
	}
	switch {
	case password:
		if answer, err := acceptLogin(c, auth); err != nil {
			return Request{}, answer, err
		}
	case none:
		if err := auth("", "", false); err != nil {
			return Request{}, []byte{version, methodRefused}, fmt.Errorf("%w: %w", ErrAuth, err)
		}
		if _, err := c.Write([]byte{version, methodNone}); err != nil {
			return Request{}, nil, err
		}
	default:
		return Request{}, []byte{version, methodRefused}, wire.Bad("no SOCKS method but those that are not spoken here")
	}
	return readRequest(c)
}

func acceptLogin(c net.Conn, auth func(username, password string, given bool) error) (answer []byte, err error) {
	if _, err := c.Write([]byte{version, methodPassword}); err != nil {
		return nil, err
	}
	u, p, err := readLogin(c)
	if err != nil {
		return answerTo(err, authVersion, 1), err
	}
	if err := auth(u, p, true); err != nil {
		return []byte{authVersion, 1}, fmt.Errorf("%w: %w", ErrAuth, err)
	}
	_, err = c.Write([]byte{authVersion, 0})
	return nil, err
}

// answerTo is the answer to what was malformed, and none to what was cut.
func answerTo(err error, answer ...byte) []byte {
	var r *wire.Refusal
	if errors.As(err, &r) {
		return answer
	}
	return nil
}

// readRequest also returns the reply that goes with its error.
func readRequest(c io.Reader) (Request, []byte, error) {
	var h [4]byte
	if _, err := io.ReadFull(c, h[:]); err != nil {
		return Request{}, nil, err
	}
	if h[0] != version {
		// Also a login where none was asked for (B24): its version is 1.
		return Request{}, replyBytes(GeneralFailure), wire.Bad("SOCKS request of version %d", h[0])
	}
	// Read as a whole before it is refused: the answer then finds a client that listens.
	host, bad, err := readHost(c, h[3])
	if err != nil {
		return Request{}, nil, err
	}
	var port [2]byte
	if bad == nil {
		if _, err := io.ReadFull(c, port[:]); err != nil {
			return Request{}, nil, err
		}
	}
	switch {
	case h[1] != cmdConnect:
		return Request{}, replyBytes(CommandNotSupported), &wire.Refusal{Code: wire.CodeProtocolDenied, Detail: fmt.Sprintf("SOCKS command %d", h[1])}
	case bad != nil && host == "":
		return Request{}, replyBytes(AddressNotSupported), bad
	case bad != nil:
		return Request{}, replyBytes(GeneralFailure), bad
	}
	return Request{Host: host, Port: uint16(port[0])<<8 | uint16(port[1])}, nil, nil
}

// readHost reads an address. bad is what is wrong with it, host then "" where its type is
// not known.
func readHost(c io.Reader, typ byte) (host string, bad, err error) {
	switch typ {
	case typeIPv4:
		var a [4]byte
		_, err = io.ReadFull(c, a[:])
		return netip.AddrFrom4(a).String(), nil, err
	case typeIPv6:
		var a [16]byte
		_, err = io.ReadFull(c, a[:])
		return netip.AddrFrom16(a).String(), nil, err
	case typeName:
		if host, err = readString(c); err != nil {
			return "", nil, err
		}
		for i := range len(host) {
			if host[i] <= ' ' || host[i] == 0x7f {
				return "?", wire.Bad("SOCKS name with byte %#x", host[i]), nil
			}
		}
		if host == "" {
			return "?", wire.Bad("SOCKS name of no bytes"), nil
		}
		if _, err := netip.ParseAddr(host); err != nil && strings.ContainsAny(host, ":[]") {
			return "?", wire.Bad("SOCKS name with a port in it, or brackets"), nil
		}
		return host, nil, nil
	}
	return "", wire.Bad("SOCKS address type %d", typ), nil
}

const replyTimeout = 10 * time.Second

func reply(c net.Conn, code Reply) error {
	if code != Succeeded {
		wire.Last(c, replyBytes(code))
		return nil
	}
	if err := c.SetWriteDeadline(time.Now().Add(replyTimeout)); err != nil {
		return err
	}
	if _, err := c.Write(replyBytes(Succeeded)); err != nil {
		return err
	}
	return c.SetWriteDeadline(time.Time{})
}

// replyBytes tells nothing of the address from which egressd dialled.
func replyBytes(code Reply) []byte { return []byte{version, byte(code), 0, typeIPv4, 0, 0, 0, 0, 0, 0} }
