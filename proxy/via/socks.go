package via

import (
	"encoding/binary"
	"fmt"
	"io"
	"net/netip"

	"github.com/egressd/egressd/inject"
)

const (
	socksVersion  = 5
	loginVersion  = 1 // RFC 1929
	methodNone    = 0
	methodLogin   = 2
	methodNoneFit = 0xff
	cmdConnect    = 1
	atypIPv4      = 1
	atypName      = 3
	atypIPv6      = 4
)

func connectSOCKS(c io.ReadWriter, target netip.AddrPort, login *inject.Login) error {
	// With a login only that is offered: a proxy that would let anybody through might let
	// somebody without a name through to less, or to more.
	method := byte(methodNone)
	if login != nil {
		method = methodLogin
		if n, p := len(login.Username), login.Password.Len(); n == 0 || n > 255 || p == 0 || p > 255 {
			return fmt.Errorf("%w: socks5 takes 1 to 255 bytes", ErrLogin)
		}
	}
	var b [4]byte
	if err := ask(c, []byte{socksVersion, 1, method}, b[:2]); err != nil {
		return err
	}
	switch {
	case b[0] != socksVersion:
		return fmt.Errorf("%w: version %d", ErrProtocol, b[0])
	case b[1] == methodNoneFit:
		return fmt.Errorf("%w: it does not take the method offered (%d)", ErrLogin, method)
	case b[1] != method:
		return fmt.Errorf("%w: method %d", ErrProtocol, b[1])
	}
	if login != nil {
		if err := ask(c, loginRequest(login), b[:2]); err != nil {
			return err
		}
		if b[0] != loginVersion {
			return fmt.Errorf("%w: version %d of the login", ErrProtocol, b[0])
		}
		if b[1] != 0 {
			return fmt.Errorf("%w: status %d", ErrLogin, b[1])
		}
	}
	if err := ask(c, connectRequest(target), b[:]); err != nil {
		return err
	}
	return readBound(c, b)
}

func loginRequest(l *inject.Login) []byte {
	b := append([]byte{loginVersion, byte(len(l.Username))}, l.Username...)
	b = append(b, byte(l.Password.Len()))
	return append(b, l.Password.Reveal()...)
}

func connectRequest(target netip.AddrPort) []byte {
	b := []byte{socksVersion, cmdConnect, 0, atypIPv4}
	if target.Addr().Is6() {
		b[3] = atypIPv6
	}
	b = append(b, target.Addr().AsSlice()...)
	return binary.BigEndian.AppendUint16(b, target.Port())
}

// readBound judges the reply's head and reads the address behind it, of which nothing is
// used. A refusal may be cut short there.
func readBound(r io.Reader, head [4]byte) error {
	switch rep := head[1]; {
	case head[0] != socksVersion || head[2] != 0:
		return fmt.Errorf("%w: reply % x", ErrProtocol, head)
	case rep == 0:
	case rep == 2:
		return fmt.Errorf("%w: reply 2", ErrForbidden)
	case rep == 1 || rep >= 3 && rep <= 6:
		return fmt.Errorf("%w: reply %d", ErrUnreachable, rep)
	default:
		return fmt.Errorf("%w: reply %d", ErrProtocol, rep)
	}
	var buf [255 + 2]byte
	var n int
	switch head[3] {
	case atypIPv4:
		n = 4
	case atypIPv6:
		n = 16
	case atypName:
		if _, err := io.ReadFull(r, buf[:1]); err != nil {
			return fmt.Errorf("reading the proxy's answer: %w", err)
		}
		n = int(buf[0])
	default:
		return fmt.Errorf("%w: address type %d", ErrProtocol, head[3])
	}
	if _, err := io.ReadFull(r, buf[:n+2]); err != nil {
		return fmt.Errorf("reading the proxy's answer: %w", err)
	}
	return nil
}

// ask writes and reads exactly answer.
func ask(c io.ReadWriter, question, answer []byte) error {
	if _, err := c.Write(question); err != nil {
		return fmt.Errorf("asking the proxy: %w", err)
	}
	if _, err := io.ReadFull(c, answer); err != nil {
		return fmt.Errorf("reading the proxy's answer: %w", err)
	}
	return nil
}
