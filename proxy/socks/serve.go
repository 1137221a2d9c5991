package socks

import (
	"context"
	"errors"
	"fmt"
	"net"

	"github.com/egressd/egressd/inject"
	"github.com/egressd/egressd/proxy/wire"
)

// Serve carries a sandbox's SOCKS5 connection to an origin that is a SOCKS5 server, logged in
// there with the credential. The sandbox's own login is what s.Require wants; where that
// is nil, any or none. What it asks the origin for is the origin's to judge: Serve looks at no
// request.
//
// The order is greeting, login upstream, answer: a sandbox that is let in has a way through.
// It closes what it dialled; the error is nil or says which side failed.
func Serve(ctx context.Context, s *wire.Session) error {
	end := wire.Phase(ctx, s.Client, s.HandshakeTimeout)
	yes, no, err := greet(s)
	if err = end(err); err != nil {
		if len(no) > 0 {
			wire.Last(s.Client, no)
		}
		return err
	}
	if !s.InTLS && !s.Cleartext {
		wire.Last(s.Client, no)
		return wire.ErrCleartext
	}
	up, err := dial(ctx, s)
	if err != nil {
		wire.Last(s.Client, no)
		return err
	}
	defer func() { _ = up.Close() }()
	end = wire.Phase(ctx, s.Client, s.HandshakeTimeout)
	_, err = s.Client.Write(yes)
	if err = end(err); err != nil {
		return fmt.Errorf("answer to the sandbox's greeting: %w", err)
	}
	s.Opened(up)
	return s.Pipe(s.Client, up)
}

// greet reads what the sandbox says of itself. yes and no are the answers that it waits for
// then.
func greet(s *wire.Session) (yes, no []byte, err error) {
	c := s.Client
	none, password, err := offers(c)
	if err != nil {
		return nil, answerTo(err, version, methodRefused), err
	}
	no = []byte{version, methodRefused}
	switch {
	case none && s.Require == nil:
		return []byte{version, methodNone}, no, nil
	case !password && s.Require != nil:
		return nil, no, &wire.Refusal{Code: wire.CodeAuthRequired, Detail: "the sandbox offers no user and password"}
	case !password:
		return nil, no, wire.Bad("no SOCKS method but those that are not spoken here")
	}
	if _, err := c.Write([]byte{version, methodPassword}); err != nil {
		return nil, nil, err
	}
	no = []byte{authVersion, 1}
	u, p, err := readLogin(c)
	if err != nil {
		return nil, answerTo(err, no...), err
	}
	if s.Require != nil && !s.Require(u, p) {
		return nil, no, &wire.Refusal{Code: wire.CodeAuthRequired, Detail: "the sandbox's user and password are not those required"}
	}
	return []byte{authVersion, 0}, no, nil
}

// dial returns a connection to the origin that is logged in.
func dial(ctx context.Context, s *wire.Session) (net.Conn, error) {
	up, err := s.Dial(ctx)
	if err != nil {
		return nil, err
	}
	var login *inject.Login
	pr, err := s.Credential(ctx)
	if err == nil {
		if login = pr.Login; login == nil {
			err = &wire.Refusal{Code: wire.CodeUpstreamLogin, Detail: "the credential has no user and password"}
		}
	}
	if err == nil {
		end := wire.Phase(ctx, up, s.HandshakeTimeout)
		err = end(Login(up, login.Username, login.Password.Reveal()))
	}
	if err != nil {
		return nil, errors.Join(err, up.Close())
	}
	return up, nil
}
