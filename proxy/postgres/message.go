package postgres

import (
	"encoding/binary"
	"fmt"
	"io"
)

// Types of messages that are looked at.
const (
	typeAuthentication = 'R'
	typeError          = 'E'
	typeNotice         = 'N'
	typeNegotiate      = 'v' // NegotiateProtocolVersion
	typePassword       = 'p' // SASL answers too
)

// maxLogin bounds the body of one message of a login; PostgreSQL's own limit is 65,535.
const maxLogin = 1 << 16

// readMessage reads one message and not one byte more.
func readMessage(r io.Reader, limit uint32) (typ byte, body []byte, err error) {
	var head [1 + lengthBytes]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return 0, nil, err
	}
	n := binary.BigEndian.Uint32(head[1:])
	if n < lengthBytes || n-lengthBytes > limit {
		return 0, nil, &lengthError{head[0], n}
	}
	body = make([]byte, n-lengthBytes)
	if _, err := io.ReadFull(r, body); err != nil {
		return 0, nil, fmt.Errorf("reading a message of %d bytes: %w", n, err)
	}
	return head[0], body, nil
}

type lengthError struct {
	typ byte
	n   uint32
}

func (e *lengthError) Error() string {
	return fmt.Sprintf("message %q says that it has %d bytes", e.typ, e.n)
}

func appendMessage(to []byte, typ byte, body []byte) []byte {
	to = binary.BigEndian.AppendUint32(append(to, typ), uint32(lengthBytes+len(body)))
	return append(to, body...)
}
