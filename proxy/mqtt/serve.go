package mqtt

import (
	"context"
	"errors"
	"net"

	"github.com/egressd/egressd/inject"
	"github.com/egressd/egressd/proxy/wire"
)

// Serve carries a sandbox's connection to an MQTT broker, logged in there with the credential.
// What fails before the broker has accepted is a CONNACK with a reason to the sandbox: 3.1.1
// and 5 each in their own numbers. A packet that a client must not send, a second CONNECT
// or AUTH, ends the connection. Serve closes what it dialled.
func Serve(ctx context.Context, s *wire.Session) error {
	end := wire.Phase(ctx, s.Client, s.HandshakeTimeout)
	c, err := greet(s)
	if err = end(err); err == nil && !s.InTLS && !s.Cleartext {
		err = wire.ErrCleartext
	}
	if err != nil {
		if r := (*wire.Refusal)(nil); errors.As(err, &r) {
			wire.Last(s.Client, connack(c.level, answerTo(err)))
		}
		return err
	}
	up, ack, err := dial(ctx, s, &c)
	if err != nil {
		if ack == nil {
			ack = connack(c.level, answerTo(err))
		}
		wire.Last(s.Client, ack)
		return err
	}
	defer func() { _ = up.Close() }()
	end = wire.Phase(ctx, s.Client, s.HandshakeTimeout)
	_, err = s.Client.Write(ack)
	if err = end(err); err != nil {
		return err
	}
	s.Opened(up)
	return s.Pipe(&clientConn{Conn: s.Client}, up)
}

// greet reads CONNECT and judges what the sandbox says in it.
func greet(s *wire.Session) (connect, error) {
	first, body, err := readPacket(s.Client)
	if err != nil {
		return connect{}, err
	}
	if first != typeConnect<<4 {
		return connect{}, wire.Bad("MQTT packet %#x where CONNECT belongs", first)
	}
	c, err := parseConnect(body)
	switch {
	case err != nil:
		return c, refusal(err)
	case c.enhanced:
		return c, &wire.Refusal{Code: wire.CodePolicyDenied, Detail: "MQTT enhanced authentication", Err: errMethod}
	case s.Require != nil && !s.Require(string(c.username), string(c.password)):
		return c, &wire.Refusal{Code: wire.CodeAuthRequired, Detail: "the sandbox's user name and password are not those required"}
	}
	return c, nil
}

var errMethod = errors.New("it would prove an identity of the sandbox's own")

// refusal makes errLevel one.
func refusal(err error) error {
	if errors.Is(err, errLevel) {
		return &wire.Refusal{Code: wire.CodeBadRequest, Detail: "not a version of MQTT that is spoken here", Err: err}
	}
	return err
}

// dial returns a connection on which the broker has accepted, and its CONNACK. With an error,
// a CONNACK is what the sandbox may see of it.
func dial(ctx context.Context, s *wire.Session, c *connect) (net.Conn, []byte, error) {
	up, err := s.Dial(ctx)
	if err != nil {
		return nil, nil, err
	}
	var ack []byte
	l, err := credential(ctx, s)
	if err == nil {
		end := wire.Phase(ctx, up, s.HandshakeTimeout)
		ack, err = logIn(up, c, l)
		err = end(err)
	}
	if err != nil {
		return nil, ack, errors.Join(err, up.Close())
	}
	return up, ack, nil
}

func credential(ctx context.Context, s *wire.Session) (*inject.Login, error) {
	pr, err := s.Credential(ctx)
	switch {
	case err != nil:
		return nil, err
	case pr.Login == nil:
		return nil, &wire.Refusal{Code: wire.CodeUpstreamLogin, Detail: "the credential has no user and password"}
	case !fits(pr.Login.Username, pr.Login.Password):
		return nil, &wire.Refusal{Code: wire.CodeUpstreamLogin, Detail: "user and password cannot be said in MQTT: at most 65535 bytes each, the user name UTF-8 without NUL"}
	}
	return pr.Login, nil
}

// logIn sends CONNECT and reads CONNACK.
func logIn(up net.Conn, c *connect, l *inject.Login) (ack []byte, err error) {
	if _, err := up.Write(c.packet(l.Username, l.Password)); err != nil {
		return nil, &wire.Refusal{Code: wire.CodeUpstream, Detail: "CONNECT", Err: err}
	}
	first, body, err := readPacket(up)
	if err != nil {
		return nil, &wire.Refusal{Code: wire.CodeUpstream, Detail: "CONNACK", Err: hideBad(err)}
	}
	v, err := readConnack(c.level, first, body)
	if v == refusedLogin || err != nil && first != typeConnack<<4 {
		return nil, err // its text is about an account that is not the sandbox's
	}
	return append(appendVarint([]byte{first}, len(body)), body...), err
}

// hideBad keeps a broker's malformed packet from passing for the sandbox's.
func hideBad(err error) error {
	var r *wire.Refusal
	if errors.As(err, &r) {
		return errors.New(r.Detail)
	}
	return err
}
