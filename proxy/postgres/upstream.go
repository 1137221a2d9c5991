package postgres

import (
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"time"

	"github.com/egressd/egressd/inject"
	"github.com/egressd/egressd/proxy/wire"
)

// upstream is a connection to the server before a login.
type upstream struct {
	conn      net.Conn
	encrypted bool // and verified
}

// dial connects and puts TLS over the connection. Without TLS it goes on only where the
// rule allows that.
func dial(ctx context.Context, s *wire.Session) (*upstream, error) {
	c, err := s.Dial(ctx)
	if err != nil {
		return nil, refusal(wire.CodeUnreachable, "dialling", err)
	}
	if s.InTLS {
		return &upstream{conn: c, encrypted: true}, nil
	}
	answer, err := askTLS(ctx, c)
	switch {
	case err != nil:
		_ = c.Close()
		return nil, err
	case answer == 'S':
		t, err := s.StartTLS(ctx, c)
		if err != nil {
			_ = c.Close()
			return nil, refusal(wire.CodeUpstreamTLS, "tls", err)
		}
		return &upstream{conn: t, encrypted: true}, nil
	case answer == 'N' && s.Cleartext:
		return &upstream{conn: c}, nil
	}
	_ = c.Close()
	if answer == 'N' {
		return nil, wire.ErrCleartext
	}
	// An error message before TLS may be anybody's: it is not read (CVE-2024-10977).
	return nil, &wire.Refusal{Code: wire.CodeUpstream, Detail: fmt.Sprintf("answered %q when asked for tls", answer)}
}

func askTLS(ctx context.Context, c net.Conn) (answer byte, err error) {
	defer bound(ctx, c)()
	b := binary.BigEndian.AppendUint32([]byte{0, 0, 0, 2 * lengthBytes}, codeTLS)
	if _, err := c.Write(b); err != nil {
		return 0, refusal(wire.CodeUpstream, "asking for tls", err)
	}
	if _, err := io.ReadFull(c, b[:1]); err != nil {
		return 0, refusal(wire.CodeUpstream, "asking for tls", err)
	}
	return b[0], nil
}

// maxSteps bounds the messages of one login; SCRAM takes four.
const maxSteps = 16

// logIn sends the start with the credential's user name and goes through the login that
// the server asks for. It returns what the sandbox must be told before that it is in.
func (u *upstream) logIn(ctx context.Context, s *wire.Session, st *startup) (said []byte, err error) {
	p, err := s.Credential(ctx)
	if err != nil {
		return nil, err
	}
	if p == nil || p.Login == nil || p.Login.Username == "" {
		return nil, &wire.Refusal{Code: inject.CodeSourceInvalid, Detail: "the source gives no user name"}
	}
	if _, err := u.conn.Write(st.as(p.Login.Username)); err != nil {
		return nil, refusal(wire.CodeUpstream, "sending the start", err)
	}
	a := &auth{login: p.Login, encrypted: u.encrypted, state: tlsState(u.conn)}
	for range maxSteps {
		typ, body, err := readMessage(u.conn, maxLogin)
		if err != nil {
			return nil, refusal(wire.CodeUpstream, "reading the login's answer", err)
		}
		switch typ {
		case typeAuthentication:
			answer, done, err := a.step(body)
			if err != nil || done {
				return said, err
			}
			if answer != nil {
				if _, err := u.conn.Write(appendMessage(nil, typePassword, answer)); err != nil {
					return nil, refusal(wire.CodeUpstream, "answering the login", err)
				}
			}
		case typeNegotiate:
			if said != nil {
				return nil, upstreamFailed("negotiates the protocol twice")
			}
			said = appendMessage(nil, typ, body)
		case typeNotice: // of somebody who has not shown a login: not for the sandbox
		case typeError:
			return nil, answered(body)
		default:
			return nil, upstreamFailed("message %q during the login", typ)
		}
	}
	return nil, upstreamFailed("a login of more than %d messages", maxSteps)
}

// tlsState is what channel binding needs; nil where c does not say.
func tlsState(c net.Conn) *tls.ConnectionState {
	t, ok := c.(interface{ ConnectionState() tls.ConnectionState })
	if !ok {
		return nil
	}
	state := t.ConnectionState()
	return &state
}

// cancelQuery hands a CancelRequest on and waits until the server has closed, as a client
// does to know that it was seen. Nothing is answered: there is no answer to it.
func cancelQuery(ctx context.Context, s *wire.Session, packet []byte, timeout time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	u, err := dial(ctx, s)
	if err != nil {
		return err
	}
	defer func() { _ = u.conn.Close() }()
	defer bound(ctx, u.conn)()
	if _, err := u.conn.Write(packet); err != nil {
		return refusal(wire.CodeUpstream, "cancelling", err)
	}
	var one [1]byte
	switch _, err := u.conn.Read(one[:]); {
	case err == nil:
		return upstreamFailed("answers a cancel")
	case ctx.Err() != nil || errors.Is(err, os.ErrDeadlineExceeded): // either may be first
		return refusal(wire.CodeUpstream, "cancelling", err)
	}
	return nil // closed, by FIN or by RST: it was seen
}
