package postgres

import (
	"crypto/md5" //nolint:gosec // G501: what servers with password_encryption=md5 ask for
	"crypto/tls"
	"encoding/binary"
	"encoding/hex"

	"github.com/egressd/egressd/inject"
	"github.com/egressd/egressd/proxy/wire"
)

// What an authentication message asks for.
const (
	authOK           = 0
	authClear        = 3
	authMD5          = 5
	authSASL         = 10
	authSASLContinue = 11
	authSASLFinal    = 12
)

// auth is the client's side of one login.
type auth struct {
	login     *inject.Login
	encrypted bool
	state     *tls.ConnectionState // nil: no channel binding

	begun bool // one method per login: a server that changes its mind is after something
	scram *scramLogin
}

// step takes the body of one authentication message. A nil answer means that there is
// nothing to send.
func (a *auth) step(body []byte) (answer []byte, done bool, err error) {
	if len(body) < lengthBytes {
		return nil, false, upstreamFailed("an authentication message of %d bytes", len(body))
	}
	kind, data := binary.BigEndian.Uint32(body), body[lengthBytes:]
	switch kind {
	case authOK:
		if a.scram != nil && !a.scram.proven() {
			return nil, false, upstreamFailed("ends the login before it has proved itself")
		}
		return nil, true, nil
	case authSASLContinue, authSASLFinal:
		if a.scram == nil {
			return nil, false, upstreamFailed("goes on with a login that it did not begin")
		}
		answer, err = a.scram.step(kind == authSASLFinal, data)
		return answer, false, err
	}
	if a.begun {
		return nil, false, upstreamFailed("asks for a second login")
	}
	a.begun = true
	switch kind {
	case authClear:
		if !a.encrypted {
			return nil, false, &wire.Refusal{Code: wire.CodePlaintext, Detail: "the server wants the password itself and has no tls"}
		}
		return append([]byte(a.login.Password.Reveal()), 0), false, nil
	case authMD5:
		if len(data) != 4 {
			return nil, false, upstreamFailed("a salt of %d bytes", len(data))
		}
		return md5Answer(a.login, data), false, nil
	case authSASL:
		a.scram, answer, err = beginSCRAM(a, data)
		return answer, false, err
	}
	return nil, false, &wire.Refusal{
		Code:   wire.CodeUpstreamLogin,
		Detail: "the server asks for " + methodName(kind) + ", which a user name and a password do not answer",
		Err:    wire.ErrLogin,
	}
}

func md5Answer(l *inject.Login, salt []byte) []byte {
	inner := md5.Sum([]byte(l.Password.Reveal() + l.Username))              //nolint:gosec // G401: see the import
	outer := md5.Sum(append([]byte(hex.EncodeToString(inner[:])), salt...)) //nolint:gosec // G401: see the import
	return append(append([]byte("md5"), hex.EncodeToString(outer[:])...), 0)
}

func methodName(kind uint32) string {
	switch kind {
	case 2:
		return "Kerberos"
	case 7, 8:
		return "GSSAPI"
	case 9:
		return "SSPI"
	}
	return "another login"
}
