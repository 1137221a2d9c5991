// Package wire is what the proxy and the packages of protocols that have a login of
// their own (redis, mqtt, postgres, socks, sshbridge) agree on. Such a package sees one
// Session and nothing else of the proxy.
package wire

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/egressd/egressd/inject"
)

// Session is one connection of a sandbox that a credential rule applies to. The package
// that serves it owns Client until it returns, and closes what it has dialled; the
// proxy closes Client.
type Session struct {
	// Client is the sandbox's connection from its first byte on. Where InTLS is set, TLS
	// has been terminated underneath.
	Client net.Conn
	InTLS  bool

	// Host is the destination's canonical name or address, Port its port: for known_hosts
	// and for messages, never for dialling.
	Host string
	Port uint16

	// Dial connects to the destination that was decided on. Where InTLS is set the result is
	// TLS, verified for Host, already.
	Dial func(ctx context.Context) (net.Conn, error)
	// AcceptTLS and StartTLS put TLS over a connection in mid-stream (PostgreSQL): towards the
	// sandbox with a certificate for Host, and upstream verified for Host. They take the
	// connection over also when they fail.
	AcceptTLS func(ctx context.Context, client net.Conn) (net.Conn, error)
	StartTLS  func(ctx context.Context, upstream net.Conn) (net.Conn, error)
	// Cleartext: the rule lets the credential go over a connection without TLS. A package
	// whose own protocol is not encrypted asks before it sends one (see ErrCleartext).
	Cleartext bool

	// Credential gives what to log in with, resolved now. Ask for it as late as can be.
	Credential func(ctx context.Context) (*inject.Projection, error)
	// Require says what the sandbox must have sent as its own login; nil: anything.
	Require func(username, password string) bool

	// Opened tells the proxy that both ends are logged in: upstream may from now on be cut by
	// it when policy or source change. Call it once, before bytes are carried.
	Opened func(upstream net.Conn)
	// Pipe carries bytes both ways until both have ended, within the proxy's idle limit. It
	// half-closes and counts. Reads of a that were made ahead must be replayed by a itself.
	Pipe func(a, b net.Conn) error

	// Limits of the proxy.
	HandshakeTimeout time.Duration // for a login as a whole, on each side
	IdleTimeout      time.Duration
}

// Refusal is an error with a word for the client and for metrics. Its code is one of
// those that the proxy knows (X-Egressd-Error); what is not a Refusal is upstream_failed.
type Refusal struct {
	Code   string
	Detail string // the operator's log only
	Err    error
}

func (r *Refusal) Error() string {
	if r.Err != nil {
		return fmt.Sprintf("%s: %s: %v", r.Code, r.Detail, r.Err)
	}
	return r.Code + ": " + r.Detail
}

func (r *Refusal) Unwrap() error { return r.Err }

// Codes of Refusal beside those of inject.
const (
	CodeBadRequest     = "bad_request"                  // bytes of the sandbox that are not the protocol, or over a limit
	CodePolicyDenied   = "policy_denied"                // what is asked for inside the connection is not allowed
	CodeAuthRequired   = "sandbox_login_refused"        // the sandbox's own login is not what the rule requires
	CodePlaintext      = "plaintext_credential_refused" // no TLS, and the rule does not allow cleartext
	CodeUpstreamLogin  = "upstream_login_refused"       // the origin did not take the credential
	CodeUpstream       = "upstream_failed"              // the origin did not speak the protocol
	CodeUnreachable    = "upstream_unreachable"
	CodeHostKey        = "upstream_host_key_refused" // SSH: not the key that is known
	CodeUpstreamTLS    = "upstream_tls_failed"
	CodeProtocolDenied = "protocol_not_allowed"
)

// ErrCleartext is what a package returns instead of sending a credential in clear.
var ErrCleartext = &Refusal{Code: CodePlaintext, Detail: "the connection is not encrypted and the rule does not say allowCleartext"}

// ErrLogin is what a package returns when the origin refuses the credential.
var ErrLogin = errors.New("the origin refused the login")

// Bad is a Refusal of what the sandbox sent.
func Bad(format string, args ...any) *Refusal {
	return &Refusal{Code: CodeBadRequest, Detail: fmt.Sprintf(format, args...)}
}
