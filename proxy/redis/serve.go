package redis

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"

	"github.com/egressd/egressd/inject"
	"github.com/egressd/egressd/proxy/wire"
)

const (
	maxGreeting = 4 << 10 // of the line with which a server answers a login
	maxBefore   = 16      // commands of a sandbox that has not logged in as it must
)

// Serve carries a sandbox's connection to a Redis server, logged in there with the
// credential from before its first command to the end of the connection (see the package
// comment). An error that the sandbox can be told of is one of Redis, "-ERR egressd: <code>";
// what is malformed in mid-stream ends the connection. Serve closes what it dialled.
func Serve(ctx context.Context, s *wire.Session) error {
	if !s.InTLS && !s.Cleartext {
		refuse(s.Client, wire.ErrCleartext)
		return wire.ErrCleartext
	}
	cmds := &commands{src: s.Client}
	if s.Require != nil {
		end := wire.Phase(ctx, s.Client, s.HandshakeTimeout)
		if err := end(admit(s, cmds)); err != nil {
			if !errors.Is(err, os.ErrDeadlineExceeded) {
				refuse(s.Client, err)
			}
			return err
		}
	}
	up, err := dial(ctx, s)
	if err != nil {
		refuse(s.Client, err)
		return err
	}
	defer func() { _ = up.Close() }()
	back := &replies{Conn: up}
	r := &rules{
		require: s.Require,
		login:   func() (*inject.Login, error) { return credential(ctx, s) },
		resets:  func() { back.resets.Add(1) },
	}
	cmds.rewrite = r.rewrite
	s.Opened(up)
	return s.Pipe(&clientConn{Conn: s.Client, cmds: cmds}, back)
}

// admit answers a sandbox in the server's place until its login is what is required. The
// command that it logs in with stays in cmds, for the server to answer.
func admit(s *wire.Session, cmds *commands) error {
	refused := &wire.Refusal{Code: wire.CodeAuthRequired, Detail: "the sandbox did not log in as it must"}
	tried := false
	for range maxBefore {
		args, n, err := cmds.peek()
		if err != nil && tried { // that is what a client does then
			refused.Err = err
			return refused
		}
		if err != nil {
			return err
		}
		ok, answer := check(s.Require, args)
		tried = tried || strings.HasPrefix(answer, wrongLogin)
		if ok {
			return nil
		}
		cmds.skip(n)
		if _, err := io.WriteString(s.Client, answer+"\r\n"); err != nil {
			return err
		}
		if args[0] == "QUIT" {
			break
		}
	}
	return refused
}

const wrongLogin = "-WRONGPASS egressd: " + wire.CodeAuthRequired

// check says whether a command is the login that is required, or else how to answer.
func check(require func(username, password string) bool, args []string) (ok bool, answer string) {
	switch args[0] {
	case "AUTH":
		u, p, ok := authArgs(args)
		if !ok {
			return false, "-ERR wrong number of arguments for 'auth' command"
		}
		return require(u, p), wrongLogin
	case "HELLO":
		h := parseHello(args)
		if h.auth && !h.unlisted {
			return require(h.u, h.p), wrongLogin
		}
	case "QUIT":
		return false, "+OK"
	case "RESET":
		return false, "+RESET"
	}
	return false, "-NOAUTH Authentication required."
}

// credential is what to log in with now.
func credential(ctx context.Context, s *wire.Session) (*inject.Login, error) {
	pr, err := s.Credential(ctx)
	if err != nil {
		return nil, err
	}
	if pr.Login == nil {
		return nil, &wire.Refusal{Code: wire.CodeUpstreamLogin, Detail: "the credential has no user and password"}
	}
	return pr.Login, nil
}

// dial returns a connection to the server that is logged in.
func dial(ctx context.Context, s *wire.Session) (net.Conn, error) {
	up, err := s.Dial(ctx)
	if err != nil {
		return nil, err
	}
	l, err := credential(ctx, s)
	if err == nil {
		end := wire.Phase(ctx, up, s.HandshakeTimeout)
		err = end(logIn(up, l))
	}
	if err != nil {
		return nil, errors.Join(err, up.Close())
	}
	return up, nil
}

// logIn takes nothing but +OK for an answer: also a server that wants no password is not
// the one that the credential is for.
func logIn(up net.Conn, l *inject.Login) error {
	if _, err := up.Write(login(l)); err != nil {
		return &wire.Refusal{Code: wire.CodeUpstream, Detail: "login", Err: err}
	}
	// Nothing is asked, so nothing comes, behind the one line.
	br := bufio.NewReaderSize(up, maxGreeting)
	line, err := br.ReadSlice('\n')
	if err != nil {
		return &wire.Refusal{Code: wire.CodeUpstream, Detail: "answer to the login", Err: err}
	}
	switch text := strings.TrimSuffix(string(line), "\r\n"); {
	case text == "+OK" && br.Buffered() == 0:
		return nil
	case strings.HasPrefix(text, "-WRONGPASS"), strings.HasPrefix(text, "-ERR invalid password"),
		strings.HasPrefix(text, "-ERR AUTH"), strings.HasPrefix(text, "-ERR Client sent AUTH"), strings.HasPrefix(text, "-NO"):
		return &wire.Refusal{Code: wire.CodeUpstreamLogin, Detail: word(text), Err: wire.ErrLogin}
	default:
		return &wire.Refusal{Code: wire.CodeUpstream, Detail: "the server answered the login with " + word(text)}
	}
}

// word is the first word of an error: the rest could repeat what was sent.
func word(line string) string {
	first, _, _ := strings.Cut(line, " ")
	return fmt.Sprintf("%.32q", first)
}

// refuse tells the client why in Redis's words, and waits for it to go, so that
// bytes it has sent ahead do not turn the answer into a reset.
func refuse(c net.Conn, err error) {
	code := wire.CodeUpstream
	var r *wire.Refusal
	if errors.As(err, &r) {
		code = r.Code
	}
	wire.Last(c, []byte("-ERR egressd: "+code+"\r\n"))
}
