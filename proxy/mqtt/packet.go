package mqtt

import (
	"encoding/binary"
	"errors"
	"io"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/egressd/egressd/internal/secret"
	"github.com/egressd/egressd/proxy/wire"
)

// Types of control packets, the upper half of the first byte.
const (
	typeConnect     = 1
	typeConnack     = 2
	typePublish     = 3
	typeSubscribe   = 8
	typeUnsubscribe = 10
	typePingreq     = 12
	typeDisconnect  = 14
)

// Protocol levels.
const (
	level31  = 3
	level311 = 4
	level5   = 5
)

// maxConnect bounds a CONNECT and a CONNACK: the client id, a will, and properties.
const maxConnect = 64 << 10

const maxString = 1<<16 - 1

// Flags of CONNECT.
const (
	flagReserved   = 1 << 0
	flagClean      = 1 << 1
	flagWill       = 1 << 2
	flagWillQoS    = 3 << 3
	flagWillRetain = 1 << 5
	flagPassword   = 1 << 6
	flagUsername   = 1 << 7
)

// connect is a CONNECT packet without the credential. Byte slices are parts of the packet
// that it was read from.
type connect struct {
	level      byte
	flags      byte
	keepAlive  uint16
	properties []byte // MQTT 5; without their length
	clientID   []byte
	willProps  []byte // MQTT 5; without their length
	willTopic  []byte
	will       []byte
	username   []byte // nil: none
	password   []byte // nil: none
	enhanced   bool   // it has an authentication method
}

// errLevel: a version of MQTT that is not spoken here.
var errLevel = errors.New("MQTT version")

// readPacket reads one packet of at most maxConnect bytes and not a byte more.
func readPacket(r io.Reader) (first byte, body []byte, err error) {
	var b [1]byte
	if _, err := io.ReadFull(r, b[:]); err != nil {
		return 0, nil, err
	}
	first = b[0]
	n := 0
	for shift := 0; ; shift += 7 {
		if shift > 21 {
			return first, nil, wire.Bad("MQTT remaining length of more than 4 bytes")
		}
		if _, err := io.ReadFull(r, b[:]); err != nil {
			return first, nil, err
		}
		n |= int(b[0]&0x7f) << shift
		if b[0]&0x80 == 0 {
			break
		}
	}
	if n > maxConnect {
		return first, nil, wire.Bad("MQTT packet of %d bytes", n)
	}
	body = make([]byte, n)
	_, err = io.ReadFull(r, body)
	return first, body, err
}

// fields reads a packet's body. After bad is set everything reads as empty.
type fields struct {
	b   []byte
	bad bool
}

func (f *fields) take(n int) []byte {
	if f.bad || n > len(f.b) {
		f.bad = true
		return nil
	}
	out := f.b[:n:n]
	f.b = f.b[n:]
	return out
}

func (f *fields) byte() byte {
	if b := f.take(1); b != nil {
		return b[0]
	}
	return 0
}

func (f *fields) uint16() uint16 {
	if b := f.take(2); b != nil {
		return binary.BigEndian.Uint16(b)
	}
	return 0
}

func (f *fields) binary() []byte {
	b := f.take(int(f.uint16()))
	if b == nil {
		return []byte{}
	}
	return b
}

// text is UTF-8 without NUL (MQTT 5 section 1.5.4).
func (f *fields) text() []byte {
	b := f.binary()
	if !isText(b) {
		f.bad = true
	}
	return b
}

func isText(b []byte) bool { return utf8.Valid(b) && !slices.Contains(b, 0) }

// varint is a variable byte integer of the fewest bytes.
func (f *fields) varint() int {
	n := 0
	for shift := 0; shift <= 21; shift += 7 {
		b := f.byte()
		n |= int(b&0x7f) << shift
		if b&0x80 == 0 {
			f.bad = f.bad || b == 0 && shift > 0
			return n
		}
	}
	f.bad = true
	return 0
}

// parseConnect reads the body of a CONNECT. Errors are errLevel, alone or wrapped, and
// *wire.Refusal.
func parseConnect(body []byte) (connect, error) {
	f := fields{b: body}
	name := f.text()
	c := connect{level: f.byte()}
	switch {
	case f.bad:
		return c, wire.Bad("MQTT CONNECT without protocol name and level")
	case string(name) == "MQTT" && (c.level == level311 || c.level == level5):
	case string(name) == "MQIsdp" && c.level == level31:
	default:
		return c, errLevel
	}
	c.flags = f.byte()
	c.keepAlive = f.uint16()
	if why := badFlags(c.flags, c.level); why != "" && !f.bad {
		return c, wire.Bad("MQTT CONNECT: %s", why)
	}
	if c.level == level5 {
		c.properties, c.enhanced = f.properties(connectProperties)
	}
	c.clientID = f.text()
	if c.flags&flagWill != 0 {
		if c.level == level5 {
			c.willProps, _ = f.properties(willProperties)
		}
		c.willTopic = f.text()
		c.will = f.binary()
	}
	if c.flags&flagUsername != 0 {
		c.username = f.text()
	}
	if c.flags&flagPassword != 0 {
		c.password = f.binary()
	}
	if f.bad || len(f.b) > 0 {
		return c, wire.Bad("malformed MQTT CONNECT")
	}
	return c, nil
}

func badFlags(flags, level byte) string {
	switch {
	case flags&flagReserved != 0:
		return "the reserved flag is set"
	case flags&flagWill == 0 && flags&(flagWillQoS|flagWillRetain) != 0:
		return "will flags without a will"
	case flags&flagWillQoS == flagWillQoS:
		return "will with QoS 3"
	case level != level5 && flags&flagPassword != 0 && flags&flagUsername == 0:
		return "a password without a user name"
	}
	return ""
}

// kind is the type of a property's value.
type kind byte

const (
	none kind = iota
	oneByte
	twoBytes
	fourBytes
	text
	data
	pair
)

const (
	propAuthMethod = 0x15
	propAuthData   = 0x16
	propUser       = 0x26
)

// connectProperties and willProperties say what may be in a CONNECT of MQTT 5 (sections
// 3.1.2.11 and 3.1.3.2).
func connectProperties(id int) kind {
	switch id {
	case 0x11, 0x27: // session expiry interval, maximum packet size
		return fourBytes
	case 0x21, 0x22: // receive maximum, topic alias maximum
		return twoBytes
	case 0x17, 0x19: // request problem information, request response information
		return oneByte
	case propAuthMethod:
		return text
	case propAuthData:
		return data
	case propUser:
		return pair
	}
	return none
}

func willProperties(id int) kind {
	switch id {
	case 0x02, 0x18: // message expiry interval, will delay interval
		return fourBytes
	case 0x01: // payload format indicator
		return oneByte
	case 0x03, 0x08: // content type, response topic
		return text
	case 0x09: // correlation data
		return data
	case propUser:
		return pair
	}
	return none
}

// properties reads a length and as many bytes of properties, each known and none but user
// properties twice.
func (f *fields) properties(kinds func(id int) kind) (raw []byte, enhanced bool) {
	raw = f.take(f.varint())
	p := fields{b: raw}
	var seen [2 * propUser]bool
	for len(p.b) > 0 && !p.bad {
		id := p.varint()
		k := kinds(id)
		switch k {
		case oneByte:
			p.bad = p.byte() > 1 || p.bad
		case twoBytes:
			p.take(2)
		case fourBytes:
			p.take(4)
		case text:
			p.text()
		case data:
			p.binary()
		case pair:
			p.text()
			p.text()
		}
		if k == none || seen[id] && id != propUser {
			p.bad = true
		} else {
			seen[id] = true
		}
	}
	f.bad = f.bad || p.bad
	return raw, seen[propAuthMethod] || seen[propAuthData]
}

// packet is the whole CONNECT with username and password, both of at most maxString bytes.
func (c *connect) packet(username string, password secret.String) []byte {
	name := "MQTT"
	if c.level == level31 {
		name = "MQIsdp"
	}
	b := make([]byte, 0, 64+len(c.properties)+len(c.clientID)+len(c.willProps)+len(c.willTopic)+len(c.will)+len(username)+password.Len())
	b = appendString(b, name)
	b = append(b, c.level, c.flags|flagUsername|flagPassword)
	b = binary.BigEndian.AppendUint16(b, c.keepAlive)
	if c.level == level5 {
		b = append(appendVarint(b, len(c.properties)), c.properties...)
	}
	b = appendString(b, c.clientID)
	if c.flags&flagWill != 0 {
		if c.level == level5 {
			b = append(appendVarint(b, len(c.willProps)), c.willProps...)
		}
		b = appendString(b, c.willTopic)
		b = appendString(b, c.will)
	}
	b = appendString(b, username)
	b = appendString(b, password.Reveal())
	return append(appendVarint([]byte{typeConnect << 4}, len(b)), b...)
}

func appendString[S ~string | ~[]byte](b []byte, s S) []byte {
	return append(binary.BigEndian.AppendUint16(b, uint16(len(s))), s...)
}

func appendVarint(b []byte, n int) []byte {
	for n >= 0x80 {
		b = append(b, byte(n)|0x80)
		n >>= 7
	}
	return append(b, byte(n))
}

// fits says whether a login can be said in MQTT.
func fits(username string, password secret.String) bool {
	return len(username) <= maxString && password.Len() <= maxString && utf8.ValidString(username) && !strings.Contains(username, "\x00")
}
