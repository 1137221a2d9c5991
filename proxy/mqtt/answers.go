package mqtt

import (
	"errors"
	"fmt"

	"github.com/egressd/egressd/proxy/wire"
)

// answer is what a refusal is called in CONNACK.
type answer struct{ v3, v5 byte }

// answerTo names what a client can do about it: try again later, or with something else.
func answerTo(err error) answer {
	var r *wire.Refusal
	switch {
	case errors.Is(err, errLevel):
		return answer{1, 0x84} // unacceptable, unsupported protocol version
	case errors.Is(err, errMethod):
		return answer{5, 0x8c} // bad authentication method
	case !errors.As(err, &r):
		return answer{3, 0x88}
	}
	switch r.Code {
	case wire.CodeAuthRequired:
		return answer{4, 0x86} // bad user name or password
	case wire.CodePolicyDenied, wire.CodePlaintext, wire.CodeUpstreamLogin, wire.CodeProtocolDenied:
		return answer{5, 0x87} // not authorized
	case wire.CodeBadRequest:
		return answer{0, 0x81} // 3.1.1 closes without an answer; malformed packet
	}
	return answer{3, 0x88} // server unavailable
}

// connack is a CONNACK with a reason; nil where the version has none, or is not known.
func connack(level byte, a answer) []byte {
	switch {
	case level == 0:
		return nil
	case level == level5:
		return []byte{typeConnack << 4, 3, 0, a.v5, 0}
	case a.v3 == 0:
		return nil
	}
	return []byte{typeConnack << 4, 2, 0, a.v3}
}

// verdict of a broker.
type verdict uint8

const (
	accepted verdict = iota
	refusedLogin
	refused
)

// readConnack says what a CONNACK means.
func readConnack(level, first byte, body []byte) (verdict, error) {
	const minSize, maxFlags = 2, 1
	if first != typeConnack<<4 || len(body) < minSize || level != level5 && len(body) != minSize || body[0] > maxFlags {
		return refused, &wire.Refusal{Code: wire.CodeUpstream, Detail: "the broker did not answer CONNECT with CONNACK"}
	}
	code := body[1]
	err := &wire.Refusal{Code: wire.CodeUpstream, Detail: fmt.Sprintf("the broker refused the connection: %#x", code)}
	switch {
	case code == 0:
		return accepted, nil
	case level != level5 && (code == 4 || code == 5), level == level5 && (code == 0x86 || code == 0x87 || code == 0x8c):
		err.Code, err.Err = wire.CodeUpstreamLogin, wire.ErrLogin
		return refusedLogin, err
	}
	return refused, err
}
