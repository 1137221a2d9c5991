package sniff

import (
	"errors"
	"fmt"

	"golang.org/x/crypto/cryptobyte"
)

// MaxHello is the most bytes of a connection, record headers included, that
// ParseClientHello looks at.
const MaxHello = 64 << 10

// Errors of ParseClientHello; the last two come wrapped with what was found.
var (
	// ErrIncomplete: what is there is the beginning of a ClientHello. Read more.
	ErrIncomplete = errors.New("client hello is not complete")
	// ErrNotHello: the bytes are not TLS, or not its ClientHello, or malformed.
	ErrNotHello = errors.New("not a valid client hello")
	// ErrTooLarge: a hello that would exceed MaxHello.
	ErrTooLarge = errors.New("client hello is too large")
)

// Hello is what a ClientHello says, as it was sent.
type Hello struct {
	// ServerName is the host_name of server_name (RFC 6066 section 3), "" when the
	// extension is absent. Not validated: any byte can be in it.
	ServerName string
	// ALPN in the client's order of preference (RFC 7301); nil when absent.
	ALPN []string
	// LegacyVersion is the version field of the message, SupportedVersions the
	// extension (RFC 8446 section 4.2.1), GREASE values included; nil when absent.
	LegacyVersion     uint16
	SupportedVersions []uint16
	// ECH: encrypted_client_hello (RFC 9849) is there, so the name of a second, inner
	// hello may be hidden in it. A GREASE extension (section 6.2) is made to be
	// indistinguishable from a real one, and from the hello alone it is. What tells
	// them apart lies outside: a server can only open what was sealed to one of its
	// keys, so ECHConfigID is real if the server name's own HTTPS record publishes a
	// configuration with that id, and otherwise GREASE.
	ECH         bool
	ECHConfigID uint8
	// Size is how many bytes of the input the hello's records take up.
	Size int
}

// MaxVersion is the highest TLS version that the client offers, GREASE left out.
func (h *Hello) MaxVersion() uint16 {
	if h.SupportedVersions == nil {
		return min(h.LegacyVersion, 0x0303)
	}
	best := uint16(0)
	for _, v := range h.SupportedVersions {
		if v&0x0f0f != 0x0a0a && v > best {
			best = v
		}
	}
	return best
}

const (
	recordHandshake = 0x16
	recordHeader    = 5
	maxRecord       = 1 << 14 // RFC 8446 section 5.1
	helloHeader     = 4

	typeClientHello = 1

	extServerName        = 0
	extALPN              = 16
	extSupportedVersions = 43
	extECH               = 0xfe0d
)

// ParseClientHello reads the ClientHello that b, the first bytes of a connection, begins
// with. The hello may be split over several records. Bytes behind it are not looked at.
// It is strict: what TLS 1.3 calls a decode error, an extension sent twice and a server
// name list with other than one entry are refused. A call that returns ErrIncomplete
// does not allocate, so that it may be repeated after each read.
func ParseClientHello(b []byte) (Hello, error) {
	body, size, err := assemble(b)
	if err != nil {
		return Hello{}, err
	}
	h, err := parseBody(body)
	if err != nil {
		return Hello{}, err
	}
	h.Size = size
	return h, nil
}

func notHello(what string) error { return fmt.Errorf("%w: %s", ErrNotHello, what) }

// assemble joins the records that hold the hello and returns its body.
func assemble(b []byte) (body []byte, size int, err error) {
	records, size, need, err := measure(b)
	if err != nil {
		return nil, 0, err
	}
	if records == 1 {
		return b[recordHeader+helloHeader : recordHeader+need], size, nil
	}
	msg := make([]byte, 0, need+maxRecord)
	for off := 0; off < size; {
		n := int(b[off+3])<<8 | int(b[off+4])
		msg = append(msg, b[off+recordHeader:off+recordHeader+n]...)
		off += recordHeader + n
	}
	return msg[helloHeader:need], size, nil
}

// measure walks the record headers. need is the length of the handshake message with
// its header.
func measure(b []byte) (records, size, need int, err error) {
	var header [helloHeader]byte
	have := 0 // handshake bytes so far
	for off := 0; ; {
		n, err := recordLen(b[off:])
		if err != nil {
			return 0, 0, 0, err
		}
		end := off + recordHeader + n
		if end > MaxHello {
			return 0, 0, 0, fmt.Errorf("%w: more than %d bytes", ErrTooLarge, MaxHello)
		}
		frag := b[off+recordHeader : min(end, len(b))]
		if have < helloHeader {
			copy(header[have:], frag)
		}
		have += len(frag)
		if have > 0 && header[0] != typeClientHello {
			return 0, 0, 0, notHello("handshake message is not a client hello")
		}
		if have >= helloHeader {
			need = helloHeader + (int(header[1])<<16 | int(header[2])<<8 | int(header[3]))
			if need > MaxHello {
				return 0, 0, 0, fmt.Errorf("%w: it says %d bytes", ErrTooLarge, need)
			}
		}
		records++
		if end > len(b) {
			return 0, 0, 0, ErrIncomplete
		}
		if need > 0 && have >= need {
			return records, end, need, nil
		}
		off = end
	}
}

// recordLen checks a record header as far as it is there.
func recordLen(b []byte) (int, error) {
	if len(b) > 0 && b[0] != recordHandshake {
		return 0, notHello("record is not of the handshake type")
	}
	if len(b) > 1 && b[1] != 3 {
		return 0, notHello("record version is not of SSL 3.0 or TLS")
	}
	if len(b) < recordHeader {
		return 0, ErrIncomplete
	}
	n := int(b[3])<<8 | int(b[4])
	if n == 0 {
		return 0, notHello("record is empty")
	}
	if n > maxRecord {
		return 0, notHello("record is longer than 16 KiB")
	}
	return n, nil
}

func parseBody(body []byte) (Hello, error) {
	var h Hello
	var session, suites, compression, extensions cryptobyte.String
	s := cryptobyte.String(body)
	if !s.ReadUint16(&h.LegacyVersion) || !s.Skip(32) ||
		!s.ReadUint8LengthPrefixed(&session) || len(session) > 32 ||
		!s.ReadUint16LengthPrefixed(&suites) || len(suites) == 0 || len(suites)%2 != 0 ||
		!s.ReadUint8LengthPrefixed(&compression) || len(compression) == 0 {
		return h, notHello("its fixed part is malformed")
	}
	if s.Empty() {
		return h, nil // TLS 1.2 and before may have no extensions
	}
	if !s.ReadUint16LengthPrefixed(&extensions) || !s.Empty() {
		return h, notHello("its list of extensions is malformed")
	}
	var seen [1 << 16 / 64]uint64
	for !extensions.Empty() {
		var typ uint16
		var data cryptobyte.String
		if !extensions.ReadUint16(&typ) || !extensions.ReadUint16LengthPrefixed(&data) {
			return h, notHello("an extension is malformed")
		}
		if seen[typ/64]&(1<<(typ%64)) != 0 {
			return h, notHello("an extension is there twice")
		}
		seen[typ/64] |= 1 << (typ % 64)
		if err := h.extension(typ, data); err != nil {
			return h, err
		}
	}
	return h, nil
}

func (h *Hello) extension(typ uint16, data cryptobyte.String) error {
	switch typ {
	case extServerName:
		return h.serverName(data)
	case extALPN:
		return h.alpn(data)
	case extSupportedVersions:
		return h.versions(data)
	case extECH:
		return h.ech(data)
	}
	return nil
}

func (h *Hello) serverName(data cryptobyte.String) error {
	var list, name cryptobyte.String
	var typ uint8
	if !data.ReadUint16LengthPrefixed(&list) || !data.Empty() ||
		!list.ReadUint8(&typ) || typ != 0 || !list.ReadUint16LengthPrefixed(&name) || len(name) == 0 || !list.Empty() {
		return notHello("server_name does not hold exactly one host name")
	}
	h.ServerName = string(name)
	return nil
}

func (h *Hello) alpn(data cryptobyte.String) error {
	var list, proto cryptobyte.String
	if !data.ReadUint16LengthPrefixed(&list) || !data.Empty() || list.Empty() {
		return notHello("its list of application protocols is malformed")
	}
	for !list.Empty() {
		if !list.ReadUint8LengthPrefixed(&proto) || len(proto) == 0 {
			return notHello("an application protocol is malformed")
		}
		h.ALPN = append(h.ALPN, string(proto))
	}
	return nil
}

func (h *Hello) versions(data cryptobyte.String) error {
	var list cryptobyte.String
	if !data.ReadUint8LengthPrefixed(&list) || !data.Empty() || len(list) == 0 || len(list)%2 != 0 {
		return notHello("supported_versions is malformed")
	}
	h.SupportedVersions = make([]uint16, 0, len(list)/2)
	for !list.Empty() {
		var v uint16
		list.ReadUint16(&v)
		h.SupportedVersions = append(h.SupportedVersions, v)
	}
	return nil
}

// ech takes the outer form (RFC 9849 section 5); the inner one has no business in a
// hello that is sent in the clear.
func (h *Hello) ech(data cryptobyte.String) error {
	var typ uint8
	var enc, payload cryptobyte.String
	if !data.ReadUint8(&typ) || typ != 0 || !data.Skip(4) || !data.ReadUint8(&h.ECHConfigID) ||
		!data.ReadUint16LengthPrefixed(&enc) || !data.ReadUint16LengthPrefixed(&payload) || len(payload) == 0 || !data.Empty() {
		return notHello("encrypted_client_hello is malformed")
	}
	h.ECH = true
	return nil
}
