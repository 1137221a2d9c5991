// Package socks speaks SOCKS5 (RFC 1928) with user and password (RFC 1929), on both of
// its sides: Accept lets sandboxes in at egressd's own port, Serve logs a sandbox in at an
// origin that is a SOCKS5 server, Login and Connect are a client's.
//
// Every read takes exactly the bytes that belong to the step it is in, so that what a
// client sends ahead stays in the connection for whoever reads next.
package socks

import (
	"errors"
	"io"
	"os"

	"github.com/egressd/egressd/proxy/wire"
)

const (
	version     = 5
	authVersion = 1

	methodNone     = 0x00
	methodPassword = 0x02
	methodRefused  = 0xff

	cmdConnect = 1

	typeIPv4 = 1
	typeName = 3
	typeIPv6 = 4

	maxField = 255 // of a name, a user name, a password
)

// Reply is the REP field of a server's answer (RFC 1928 section 6).
type Reply byte

// The replies.
const (
	Succeeded           Reply = 0
	GeneralFailure      Reply = 1
	NotAllowed          Reply = 2
	NetworkUnreachable  Reply = 3
	HostUnreachable     Reply = 4
	ConnectionRefused   Reply = 5
	TTLExpired          Reply = 6
	CommandNotSupported Reply = 7
	AddressNotSupported Reply = 8
)

// String is a word for the operator's log.
func (r Reply) String() string {
	if r > AddressNotSupported {
		return "an unassigned reply"
	}
	return [...]string{"succeeded", "general failure", "not allowed", "network unreachable", "host unreachable",
		"connection refused", "TTL expired", "command not supported", "address type not supported"}[r]
}

// readString reads a length and as many bytes.
func readString(c io.Reader) (string, error) {
	var n [1]byte
	if _, err := io.ReadFull(c, n[:]); err != nil {
		return "", err
	}
	b := make([]byte, n[0])
	_, err := io.ReadFull(c, b)
	return string(b), err
}

// offers reads a greeting: which of the two methods that are known here it names.
func offers(c io.Reader) (none, password bool, err error) {
	var b [2 + maxField]byte
	if _, err := io.ReadFull(c, b[:2]); err != nil {
		return false, false, err
	}
	if b[0] != version {
		return false, false, wire.Bad("SOCKS version %d", b[0])
	}
	if b[1] == 0 {
		return false, false, wire.Bad("a SOCKS greeting without methods")
	}
	methods := b[2 : 2+int(b[1])]
	if _, err := io.ReadFull(c, methods); err != nil {
		return false, false, err
	}
	for _, m := range methods {
		none = none || m == methodNone
		password = password || m == methodPassword
	}
	return none, password, nil
}

// readLogin reads the request of RFC 1929. Empty fields, which it forbids, are for the
// caller to judge.
func readLogin(c io.Reader) (username, password string, err error) {
	var v [1]byte
	if _, err := io.ReadFull(c, v[:]); err != nil {
		return "", "", err
	}
	if v[0] != authVersion {
		return "", "", wire.Bad("version %d of SOCKS user and password", v[0])
	}
	if username, err = readString(c); err != nil {
		return "", "", err
	}
	password, err = readString(c)
	return username, password, err
}

// isTimeout says that a deadline of ours ended it.
func isTimeout(err error) bool { return errors.Is(err, os.ErrDeadlineExceeded) }
