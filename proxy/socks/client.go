package socks

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strconv"

	"github.com/egressd/egressd/proxy/wire"
)

// Login is a client's side up to and with the login (RFC 1929): c is a connection to a
// SOCKS5 server, of which nothing has been read. Username and password have 1 to 255 bytes.
// An error that wraps wire.ErrLogin says that the server did not take them. The caller sets
// the deadline.
func Login(c net.Conn, username, password string) error {
	if n := len(username); n == 0 || n > maxField {
		return &wire.Refusal{Code: wire.CodeUpstreamLogin, Detail: fmt.Sprintf("a user name of %d bytes: SOCKS5 takes 1 to 255", n)}
	}
	if n := len(password); n == 0 || n > maxField {
		return &wire.Refusal{Code: wire.CodeUpstreamLogin, Detail: fmt.Sprintf("a password of %d bytes: SOCKS5 takes 1 to 255", n)}
	}
	switch method, err := exchange(c, version, version, 1, methodPassword); {
	case err != nil:
		return err
	case method == methodRefused:
		return refusedLogin("the SOCKS5 server takes no user and password")
	case method != methodPassword:
		return upstream("the SOCKS5 server chose method %d, which was not offered", method)
	}
	b := append([]byte{authVersion, byte(len(username))}, username...)
	b = append(append(b, byte(len(password))), password...)
	switch status, err := exchange(c, authVersion, b...); {
	case err != nil:
		return err
	case status != 0:
		return refusedLogin(fmt.Sprintf("the SOCKS5 server refused user and password: %d", status))
	}
	return nil
}

// Greet is a client's side without a login.
func Greet(c net.Conn) error {
	switch method, err := exchange(c, version, version, 1, methodNone); {
	case err != nil:
		return err
	case method == methodRefused:
		return refusedLogin("the SOCKS5 server wants a login")
	case method != methodNone:
		return upstream("the SOCKS5 server chose method %d, which was not offered", method)
	}
	return nil
}

// exchange sends b and reads an answer of two bytes, the first of them v.
func exchange(c net.Conn, v byte, b ...byte) (byte, error) {
	if _, err := c.Write(b); err != nil {
		return 0, upstream("%w", err)
	}
	var a [2]byte
	if _, err := io.ReadFull(c, a[:]); err != nil {
		return 0, upstream("%w", err)
	}
	if a[0] != v {
		return 0, upstream("the SOCKS5 server answered with version %d", a[0])
	}
	return a[1], nil
}

// ReplyError is a server's answer to a request that it did not fulfil.
type ReplyError struct{ Reply Reply }

func (e *ReplyError) Error() string {
	return "the SOCKS5 server answered " + strconv.Itoa(int(e.Reply)) + ", " + e.Reply.String()
}

// Connect asks the server at the other end of c, where Login or Greet was done, for a
// connection to host, a name of at most 255 bytes or an address. It returns *ReplyError where
// the server says no. It reads no byte of what comes through the connection.
func Connect(c net.Conn, host string, port uint16) error {
	b := []byte{version, cmdConnect, 0}
	if ip, err := netip.ParseAddr(host); err == nil && ip.Zone() == "" {
		typ := byte(typeIPv6)
		if ip = ip.Unmap(); ip.Is4() {
			typ = typeIPv4
		}
		b = append(append(b, typ), ip.AsSlice()...)
	} else if n := len(host); n == 0 || n > maxField {
		return wire.Bad("a name of %d bytes: SOCKS5 takes 1 to 255", n)
	} else {
		b = append(append(b, typeName, byte(n)), host...)
	}
	if _, err := c.Write(append(b, byte(port>>8), byte(port))); err != nil {
		return upstream("%w", err)
	}
	var h [4]byte
	if _, err := io.ReadFull(c, h[:]); err != nil {
		return upstream("%w", err)
	}
	if h[0] != version {
		return upstream("the SOCKS5 server answered with version %d", h[0])
	}
	if h[1] != byte(Succeeded) {
		return &ReplyError{Reply(h[1])}
	}
	if _, bad, err := readHost(c, h[3]); err != nil || bad != nil && h[3] != typeName {
		return upstream("the address in the SOCKS5 server's answer: %w", errors.Join(bad, err))
	}
	if _, err := io.ReadFull(c, make([]byte, 2)); err != nil {
		return upstream("%w", err)
	}
	return nil
}

func refusedLogin(detail string) error {
	return &wire.Refusal{Code: wire.CodeUpstreamLogin, Detail: detail, Err: wire.ErrLogin}
}

func upstream(format string, args ...any) error {
	return &wire.Refusal{Code: wire.CodeUpstream, Detail: "SOCKS5", Err: fmt.Errorf(format, args...)}
}
