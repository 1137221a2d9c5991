package postgres

import (
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/egressd/egressd/inject"
	"github.com/egressd/egressd/proxy/wire"
)

// SQLSTATEs that egressd gives itself.
const (
	stateProtocol   = "08P01" // protocol_violation
	stateConnection = "08006" // connection_failure
	stateRefused    = "28000" // invalid_authorization_specification
	statePassword   = "28P01" // invalid_password
)

// stateError is an ErrorResponse of the server, of which only the SQLSTATE is kept: its
// text may name what the sandbox should not know.
type stateError string

func (e stateError) Error() string { return "the server answered SQLSTATE " + string(e) }

// answered reads the body of an ErrorResponse to a login.
func answered(body []byte) error {
	state := ""
	for len(body) > 1 {
		value, rest, ok := cut(body[1:])
		if !ok {
			break
		}
		if body[0] == 'C' && isState(value) {
			state = value
		}
		body = rest
	}
	switch {
	case state == "":
		return upstreamFailed("an error without a SQLSTATE")
	case state[:2] == "28":
		return &wire.Refusal{Code: wire.CodeUpstreamLogin, Detail: stateError(state).Error(), Err: wire.ErrLogin}
	}
	return &wire.Refusal{Code: wire.CodeUpstream, Detail: "during the login", Err: stateError(state)}
}

func isState(s string) bool {
	if len(s) != 5 {
		return false
	}
	for _, c := range []byte(s) {
		if (c < '0' || c > '9') && (c < 'A' || c > 'Z') {
			return false
		}
	}
	return true
}

func upstreamFailed(format string, args ...any) error {
	return &wire.Refusal{Code: wire.CodeUpstream, Detail: fmt.Sprintf(format, args...)}
}

// refusal gives err a code, unless it has one.
func refusal(code, doing string, err error) error {
	if codeOf(err) != "" {
		return fmt.Errorf("%s: %w", doing, err)
	}
	return &wire.Refusal{Code: code, Detail: doing, Err: err}
}

// codeOf is "" for an error without a code.
func codeOf(err error) string {
	var r *wire.Refusal
	var i *inject.Error
	switch {
	case errors.As(err, &r):
		return r.Code
	case errors.As(err, &i):
		return i.Code
	}
	return ""
}

// sqlState is what the sandbox's client is told. Where the server is starting or has no
// room (classes 57 and 53) it is told that: clients wait and come again.
func sqlState(err error) string {
	var theirs stateError
	if errors.As(err, &theirs) {
		if class := theirs[:2]; class == "53" || class == "57" {
			return string(theirs)
		}
		return stateConnection
	}
	switch codeOf(err) {
	case wire.CodeBadRequest:
		return stateProtocol
	case wire.CodeAuthRequired:
		return statePassword
	case "", inject.CodeSourceUnavailable, wire.CodeUpstream, wire.CodeUnreachable, wire.CodeUpstreamTLS:
		return stateConnection
	}
	return stateRefused
}

// refuseTimeout bounds how long a sandbox may take to read why.
const refuseTimeout = 5 * time.Second

// refuse writes an ErrorResponse: egressd's code and nothing else of err.
func refuse(c net.Conn, err error) {
	if c == nil {
		return
	}
	code := codeOf(err)
	if code == "" {
		code = wire.CodeUpstream
	}
	var body []byte
	for _, f := range []string{"SFATAL", "VFATAL", "C" + sqlState(err), "Megressd refused the connection: " + code} {
		body = append(append(body, f...), 0)
	}
	_ = c.SetDeadline(time.Now().Add(refuseTimeout))
	_, _ = c.Write(appendMessage(nil, typeError, append(body, 0)))
}
