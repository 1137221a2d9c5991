// Package via asks a proxy that an operator has put between egressd and the world
// (egress.proxy) for a connection: by SOCKS5 (RFC 1928, with RFC 1929 for its login) or by
// HTTP CONNECT (RFC 9110, 9.3.6, with Basic of RFC 7617).
//
// The proxy is told an address and never a name: the one that egressd has resolved and
// checked. Nothing of what comes behind the proxy's answer is read, so the connection can
// be used like one that was dialled.
package via

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"github.com/egressd/egressd/inject"
	"github.com/egressd/egressd/policy"
)

// Errors of Connect, wrapped with what the proxy said, as far as that is a number.
var (
	// ErrLogin: the proxy wants a login, refuses the one that it was given, or cannot be
	// given it in its protocol.
	ErrLogin = errors.New("the proxy refused the login")
	// ErrForbidden: the proxy's own rules are against it.
	ErrForbidden = errors.New("the proxy does not allow the destination")
	// ErrUnreachable: the proxy could not connect.
	ErrUnreachable = errors.New("the proxy could not reach the destination")
	// ErrProtocol: what the proxy said is not its protocol, or over a limit.
	ErrProtocol = errors.New("the proxy did not speak its protocol")
	// ErrTarget: there is no such destination.
	ErrTarget = errors.New("not an address and port to connect to")
)

// timeout is for a context without a deadline.
const timeout = 30 * time.Second

// Connect has the proxy at the other end of c connect to target, and logs in there if login
// is not nil (it then insists on a login). It ends when ctx does, or after 30 s where ctx
// has no deadline. With a nil error c is what comes from and goes to target, without a
// deadline; otherwise the caller closes it.
func Connect(ctx context.Context, c net.Conn, typ policy.ProxyType, target netip.AddrPort, login *inject.Login) error {
	target = netip.AddrPortFrom(target.Addr().Unmap(), target.Port())
	if !target.IsValid() || target.Port() == 0 || target.Addr().Zone() != "" {
		return ErrTarget
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	if d, ok := ctx.Deadline(); ok {
		if err := c.SetDeadline(d); err != nil {
			return fmt.Errorf("proxy: %w", err)
		}
	}
	stop := context.AfterFunc(ctx, func() { _ = c.SetDeadline(time.Unix(1, 0)) })
	var err error
	switch typ {
	case policy.ProxySOCKS5:
		err = connectSOCKS(c, target, login)
	case policy.ProxyHTTP:
		err = connectHTTP(c, target, login)
	default:
		err = fmt.Errorf("%w: type %q", ErrProtocol, typ)
	}
	if !stop() && err == nil {
		err = ctx.Err() // the deadline that was set on c may stand
	}
	if err != nil {
		return err
	}
	if err := c.SetDeadline(time.Time{}); err != nil {
		return fmt.Errorf("proxy: %w", err)
	}
	return nil
}
