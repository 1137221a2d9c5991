package wsframe

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"net"
	"sync"
	"time"
)

// Close codes that Relay sends (RFC 6455 section 7.4.1).
const (
	CodeProtocol    uint16 = 1002
	CodeInvalidData uint16 = 1007
	CodePolicy      uint16 = 1008
	CodeTooBig      uint16 = 1009
	CodeInternal    uint16 = 1011
	CodeTryLater    uint16 = 1013 // not in RFC 6455; IANA's registry
)

// Error ends a WebSocket with a Close frame of Code to both sides; Reason, which holds
// nothing that came from either, goes to the client and to the operator. Err may say more
// to the caller of Relay.
type Error struct {
	Code       uint16
	Reason     string
	FromClient bool // what the client sent; else the origin. Relay sets it.
	Err        error
}

func (e *Error) Error() string { return "websocket: " + e.Reason }

// Unwrap gives Err.
func (e *Error) Unwrap() error { return e.Err }

func violation(reason string) error { return &Error{Code: CodeProtocol, Reason: reason} }

// errClosed: a Close frame has gone out; nothing may follow it (section 5.5.1).
var errClosed = errors.New("the WebSocket is closing")

// side is one end as something to write frames to. A Close may come from the goroutine of
// the other direction, so it keeps who is in the middle of a frame.
type side struct {
	conn   net.Conn
	act    *activity
	masked bool // it is an origin

	mu     sync.Mutex
	inside bool // of a frame that has been begun
	closed bool
	mask   [4]byte // of that frame
	at     int64   // of its payload
	n      int64   // bytes written
	buf    []byte
}

const (
	keep  = 64 << 10 // of a buffer that outlives a message
	piece = 32 << 10 // bytes that have to leave within the idle limit
)

// frame writes one whole frame. It does not change payload.
func (s *side) frame(op Opcode, fin bool, payload []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.headLocked(op, fin, int64(len(payload))); err != nil {
		return err
	}
	return s.payloadLocked(payload, true)
}

// begin writes the head of a frame whose payload comes in pieces: goOn, in all as many
// bytes as length says.
func (s *side) begin(op Opcode, fin bool, length int64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.headLocked(op, fin, length)
}

func (s *side) goOn(payload []byte, last bool) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.payloadLocked(payload, last)
}

// headLocked begins a frame. Its head leaves with the first bytes of the payload.
func (s *side) headLocked(op Opcode, fin bool, length int64) error {
	if s.closed {
		return errClosed
	}
	h := Header{Fin: fin, Opcode: op, Masked: s.masked, Length: length}
	if s.masked {
		_, _ = rand.Read(h.Mask[:]) // never fails (crypto/rand)
	}
	s.mask, s.at = h.Mask, 0
	s.buf = h.Append(s.buf[:0])
	s.inside, s.closed = true, op == Close
	return nil
}

func (s *side) payloadLocked(payload []byte, last bool) error {
	head := len(s.buf)
	s.buf = append(s.buf, payload...)
	if s.masked {
		xor(s.mask, s.at, s.buf[head:])
	}
	s.at += int64(len(payload))
	err := s.writeLocked(s.buf)
	if s.buf = s.buf[:0]; cap(s.buf) > keep {
		s.buf = nil
	}
	if err == nil && last {
		s.inside = false
	}
	return err
}

func (s *side) writeLocked(b []byte) error {
	for len(b) > 0 {
		if err := s.conn.SetWriteDeadline(time.Now().Add(s.act.patience())); err != nil {
			return err
		}
		if s.act.over.Load() && !s.closed { // behind the line above, so that over cannot go unseen
			return net.ErrClosed
		}
		n, err := s.conn.Write(b[:min(len(b), piece)])
		s.n += int64(n)
		if err != nil {
			return err
		}
		s.act.touch()
		b = b[n:]
	}
	return nil
}

// end sends a Close, where a frame can be sent and nobody has sent one. It waits no longer
// than patience for what is being written.
func (s *side) end(code uint16, reason string) {
	_ = s.conn.SetWriteDeadline(time.Now().Add(patience))
	s.mu.Lock()
	defer s.mu.Unlock()
	p := append(binary.BigEndian.AppendUint16(nil, code), reason[:min(len(reason), maxControl-2)]...)
	if !s.inside && s.headLocked(Close, true, int64(len(p))) == nil {
		_ = s.payloadLocked(p, true) // it may be gone: nothing to do about it
	}
}
