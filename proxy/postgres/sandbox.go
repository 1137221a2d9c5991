package postgres

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"github.com/egressd/egressd/proxy/wire"
)

// opening is how a sandbox began.
type opening struct {
	// client is the connection to go on with; nil where nothing can be said on it any more.
	client net.Conn
	start  *startup
	cancel []byte // instead of start: a CancelRequest, whole
}

// maxRequests is GSSENCRequest, SSLRequest and what comes after them.
const maxRequests = 3

// greet answers what comes before a login, and asks for the sandbox's own.
func greet(ctx context.Context, s *wire.Session, timeout time.Duration) (opening, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	o := opening{client: s.Client}
	encrypted, gss := s.InTLS, false
	for range maxRequests {
		code, packet, err := o.read(ctx)
		switch {
		case err != nil:
			return o, err
		case code == codeTLS && len(packet) == 2*lengthBytes && !encrypted:
			encrypted = true
			if err := o.startTLS(ctx, s); err != nil {
				return o, err
			}
		case code == codeGSS && len(packet) == 2*lengthBytes && !encrypted && !gss:
			gss = true
			if err := o.write(ctx, []byte{'N'}); err != nil {
				return o, err
			}
		case code == codeCancel && len(packet) >= minCancel && len(packet) <= maxCancel:
			o.cancel = packet
			return o, nil
		default:
			if o.start, err = parseStartup(packet); err != nil {
				return o, err
			}
			return o, o.demand(ctx, s)
		}
	}
	return o, wire.Bad("asks for encryption and never begins")
}

func (o *opening) read(ctx context.Context) (uint32, []byte, error) {
	defer bound(ctx, o.client)()
	return readPacket(o.client)
}

func (o *opening) write(ctx context.Context, b []byte) error {
	defer bound(ctx, o.client)()
	if _, err := o.client.Write(b); err != nil {
		return fmt.Errorf("answering the sandbox: %w", err)
	}
	return nil
}

func (o *opening) startTLS(ctx context.Context, s *wire.Session) error {
	if err := o.write(ctx, []byte{'S'}); err != nil {
		return err
	}
	c, err := s.AcceptTLS(ctx, o.client)
	if o.client = c; err != nil {
		o.client = nil // in the midst of a handshake there is nothing to say
		return fmt.Errorf("tls with the sandbox: %w", err)
	}
	return nil
}

// maxPassword bounds what a sandbox sends as its password.
const maxPassword = 4096

// demand asks for the sandbox's own login where the rule wants one.
func (o *opening) demand(ctx context.Context, s *wire.Session) error {
	if s.Require == nil {
		return nil
	}
	defer bound(ctx, o.client)()
	if _, err := o.client.Write(appendMessage(nil, typeAuthentication, []byte{0, 0, 0, authClear})); err != nil {
		return fmt.Errorf("answering the sandbox: %w", err)
	}
	typ, body, err := readMessage(o.client, maxPassword)
	var length *lengthError
	switch {
	case errors.As(err, &length):
		return wire.Bad("a password: %v", err)
	case errors.Is(err, io.EOF):
		return wire.Bad("left when asked for a password")
	case err != nil:
		return fmt.Errorf("reading the sandbox's password: %w", err)
	}
	password, rest, ok := cut(body)
	if typ != typePassword || !ok || len(rest) != 0 {
		return wire.Bad("message %q for a password", typ)
	}
	if !s.Require(o.start.user, password) {
		return &wire.Refusal{Code: wire.CodeAuthRequired, Detail: "not the login that the rule requires"}
	}
	return nil
}
