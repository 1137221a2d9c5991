package wsframe

import (
	"encoding/binary"
	"io"
	"unicode/utf8"
)

// Opcode says what a frame is (RFC 6455 section 5.2).
type Opcode uint8

// The opcodes that are defined.
const (
	Continuation Opcode = 0x0
	Text         Opcode = 0x1
	Binary       Opcode = 0x2
	Close        Opcode = 0x8
	Ping         Opcode = 0x9
	Pong         Opcode = 0xA
)

func (o Opcode) control() bool { return o&0x8 != 0 }

func (o Opcode) defined() bool { return o <= Binary || o >= Close && o <= Pong }

// maxControl is how many bytes a control frame may carry (section 5.5).
const maxControl = 125

// Header is the head of a frame. Length is in bytes, of the payload.
type Header struct {
	Fin    bool
	Opcode Opcode
	Masked bool
	Mask   [4]byte
	Length int64
}

// ReadHeader reads a head and nothing behind it. A head that no endpoint may send is an
// *Error with code 1002; an end of r within it is io.ErrUnexpectedEOF, before it io.EOF.
func ReadHeader(r io.Reader) (Header, error) {
	var b [12]byte
	if _, err := io.ReadFull(r, b[:2]); err != nil {
		return Header{}, err
	}
	h := Header{Fin: b[0]&0x80 != 0, Opcode: Opcode(b[0] & 0xF), Masked: b[1]&0x80 != 0, Length: int64(b[1] & 0x7F)}
	switch {
	case b[0]&0x70 != 0:
		return h, violation("reserved bits")
	case !h.Opcode.defined():
		return h, violation("opcode")
	case h.Opcode.control() && (!h.Fin || h.Length > maxControl):
		return h, violation("control frame in fragments or over 125 bytes")
	}
	extra := 0
	switch h.Length {
	case 126:
		extra = 2
	case 127:
		extra = 8
	}
	more := extra
	if h.Masked {
		more += 4
	}
	if _, err := io.ReadFull(r, b[:more]); err != nil {
		return h, unexpected(err)
	}
	switch extra {
	case 2:
		h.Length = int64(binary.BigEndian.Uint16(b[:]))
	case 8:
		n := binary.BigEndian.Uint64(b[:])
		if n>>63 != 0 {
			return h, violation("length of 2^63 or more")
		}
		h.Length = int64(n)
	}
	if extra == 2 && h.Length < 126 || extra == 8 && h.Length < 1<<16 {
		return h, violation("length that is not the shortest")
	}
	if h.Masked {
		copy(h.Mask[:], b[extra:])
	}
	return h, nil
}

func unexpected(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}

// Append writes the head behind b.
func (h Header) Append(b []byte) []byte {
	first, masked := byte(h.Opcode), byte(0)
	if h.Fin {
		first |= 0x80
	}
	if h.Masked {
		masked = 0x80
	}
	switch {
	case h.Length < 126:
		b = append(b, first, masked|byte(h.Length))
	case h.Length < 1<<16:
		b = binary.BigEndian.AppendUint16(append(b, first, masked|126), uint16(h.Length))
	default:
		b = binary.BigEndian.AppendUint64(append(b, first, masked|127), uint64(h.Length))
	}
	if h.Masked {
		b = append(b, h.Mask[:]...)
	}
	return b
}

// xor masks or unmasks b, which begins at that offset of its frame, in place (section 5.3).
func xor(mask [4]byte, offset int64, b []byte) {
	var key [8]byte
	for i := range key {
		key[i] = mask[(offset+int64(i))&3]
	}
	wide := binary.LittleEndian.Uint64(key[:])
	for len(b) >= 8 {
		binary.LittleEndian.PutUint64(b, binary.LittleEndian.Uint64(b)^wide)
		b = b[8:]
	}
	for i := range b {
		b[i] ^= key[i]
	}
}

// checkClose says what is wrong with a Close frame's payload (section 7.4).
func checkClose(p []byte) error {
	if len(p) == 0 {
		return nil
	}
	if len(p) == 1 {
		return violation("close code of one byte")
	}
	switch code := binary.BigEndian.Uint16(p); {
	case code >= 3000 && code <= 4999, code >= 1000 && code <= 1003, code >= 1007 && code <= 1014:
	default:
		return violation("close code")
	}
	if !utf8.Valid(p[2:]) {
		return &Error{Code: CodeInvalidData, Reason: "close reason is not UTF-8"}
	}
	return nil
}

// utf8Check checks text that comes in pieces.
type utf8Check struct {
	part [utf8.UTFMax]byte // the beginning of a character that the next piece goes on with
	n    int
}

func (u *utf8Check) valid(b []byte) bool {
	for u.n > 0 && len(b) > 0 {
		u.part[u.n] = b[0]
		u.n++
		b = b[1:]
		if !utf8.FullRune(u.part[:u.n]) {
			continue
		}
		if r, size := utf8.DecodeRune(u.part[:u.n]); r == utf8.RuneError && size <= 1 {
			return false
		}
		u.n = 0
	}
	for i := 1; i < utf8.UTFMax && i <= len(b); i++ {
		if rest := b[len(b)-i:]; utf8.RuneStart(rest[0]) {
			if !utf8.FullRune(rest) {
				u.n = copy(u.part[:], rest)
				b = b[:len(b)-i]
			}
			break
		}
	}
	return utf8.Valid(b)
}

// whole: no character has been begun only.
func (u *utf8Check) whole() bool { return u.n == 0 }
