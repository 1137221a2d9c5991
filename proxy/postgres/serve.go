package postgres

import (
	"context"
	"net"
	"time"

	"github.com/egressd/egressd/proxy/wire"
)

// handshakeTimeout is for a Session that gives none.
const handshakeTimeout = 10 * time.Second

// Serve carries one connection of a sandbox to a PostgreSQL server. It reads the sandbox's
// start, asks for its password in clear where s.Require is set (over TLS if the sandbox
// began it), logs in upstream with the credential's user name in the place of the
// sandbox's, and lets the sandbox in when that has succeeded. The database is the one that
// the sandbox named, or the one called like the user that it named.
//
// Upstream TLS is always asked for. A server without it gets a login only where
// s.Cleartext is set, and then by SCRAM or MD5, never a password in clear. SCRAM binds to
// the server's certificate where both sides can.
//
// What fails before that is answered with an ErrorResponse (FATAL) that has the code of
// the wire.Refusal and no text of the origin, and is returned. Each side's login takes no
// longer than s.HandshakeTimeout. Serve returns when both directions have ended.
func Serve(ctx context.Context, s *wire.Session) error {
	timeout := s.HandshakeTimeout
	if timeout <= 0 {
		timeout = handshakeTimeout
	}
	o, err := greet(ctx, s, timeout)
	if o.client != nil && o.client != s.Client {
		// Ends TLS as TLS wants it; what is underneath is closed twice then.
		defer func() { _ = o.client.Close() }()
	}
	if err == nil && o.cancel != nil {
		return cancelQuery(ctx, s, o.cancel, timeout)
	}
	var up net.Conn
	if err == nil {
		up, err = logIn(ctx, s, &o, timeout)
	}
	if err != nil {
		refuse(o.client, err)
		return err
	}
	defer func() { _ = up.Close() }()
	s.Opened(up)
	return s.Pipe(o.client, up)
}

// logIn opens the way upstream and then lets the sandbox in.
func logIn(ctx context.Context, s *wire.Session, o *opening, timeout time.Duration) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	u, err := dial(ctx, s)
	if err != nil {
		return nil, err
	}
	release := bound(ctx, u.conn)
	said, err := u.logIn(ctx, s, o.start)
	release()
	if err == nil {
		defer bound(ctx, o.client)()
		_, err = o.client.Write(appendMessage(said, typeAuthentication, []byte{0, 0, 0, authOK}))
	}
	if err != nil {
		_ = u.conn.Close()
		return nil, err
	}
	return u.conn, nil
}

// bound gives c the deadline of ctx, and ends its reads and writes when ctx ends, until
// release is called. That lifts the deadline, unless ctx has ended.
func bound(ctx context.Context, c net.Conn) (release func()) {
	if d, ok := ctx.Deadline(); ok {
		_ = c.SetDeadline(d)
	}
	stop := context.AfterFunc(ctx, func() { _ = c.SetDeadline(time.Unix(1, 0)) })
	return func() {
		if stop() {
			_ = c.SetDeadline(time.Time{})
		}
	}
}
