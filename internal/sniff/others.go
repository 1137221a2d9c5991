package sniff

import (
	"bytes"
	"encoding/binary"
)

// verdict is what one protocol says of a prefix. It never changes from yes or no when
// more bytes come.
type verdict uint8

const (
	no verdict = iota
	maybe
	yes
)

// others are asked in this order once TLS, SSH and HTTP are out. Binary ones overlap: a
// MongoDB message begins with its length, which can be any byte at all, so it comes last,
// and a message of 0x??05 bytes is taken for SOCKS5, one of 0x??0316 for TLS. Both are
// then refused by those who parse them.
var others = [...]struct {
	protocol Protocol
	match    func([]byte) verdict
}{
	{SOCKS5, matchSOCKS5},
	{MQTT, matchMQTT},
	{Redis, matchRedis},
	{Postgres, matchPostgres},
	{AMQP, matchAMQP},
	{DNS, matchDNS},
	{MongoDB, matchMongoDB},
}

// word compares b's beginning with s.
func word(b []byte, s string) verdict {
	switch full, part := begins(b, s); {
	case full:
		return yes
	case part:
		return maybe
	}
	return no
}

func matchSOCKS5(b []byte) verdict {
	switch {
	case b[0] != 5:
		return no
	case len(b) < 2:
		return maybe
	case b[1] == 0:
		return no
	}
	return yes
}

// matchMQTT wants the fixed header of CONNECT with its flags 0, a remaining length of one
// to four bytes, then name and level.
func matchMQTT(b []byte) verdict {
	if b[0] != 0x10 {
		return no
	}
	for i := 1; i <= 4; i++ {
		if i >= len(b) {
			return maybe
		}
		if b[i]&0x80 == 0 {
			rest := b[i+1:]
			return max(word(rest, "\x00\x04MQTT\x04"), word(rest, "\x00\x04MQTT\x05"), word(rest, "\x00\x06MQIsdp\x03"))
		}
	}
	return no
}

// matchRedis leaves out the inline AUTH, with which SMTP, POP3 and IRC clients may begin,
// and whatever could be a request line.
func matchRedis(b []byte) verdict {
	if b[0] == '*' {
		return matchArray(b[1:])
	}
	up := bytes.ToUpper(b[:min(len(b), len("HELLO 3\r"))])
	v := word(up, "PING\r\n")
	for _, s := range [...]string{"HELLO 2\r", "HELLO 2 ", "HELLO 3\r", "HELLO 3 "} {
		v = max(v, word(up, s))
	}
	return v
}

// matchArray wants the count of an array and the length of its first bulk string.
func matchArray(b []byte) verdict {
	const maxDigits = 7
	n := 0
	for n < len(b) && b[n] >= '0' && b[n] <= '9' {
		n++
	}
	switch {
	case n > maxDigits, n > 0 && b[0] == '0', n == 0 && len(b) > 0:
		return no
	case n == len(b):
		return maybe
	}
	b = b[n:]
	if v := word(b, "\r\n$"); v != yes || len(b) == 3 {
		return min(v, maybe)
	}
	if b[3] < '1' || b[3] > '9' {
		return no
	}
	return yes
}

const (
	pgCancel = 80877102
	pgSSL    = 80877103
	pgGSSENC = 80877104
	pgV30    = 3 << 16
	pgV32    = 3<<16 | 2

	maxPgStartup = 10000 // the server's own MAX_STARTUP_PACKET_LENGTH
	maxPgCancel  = 12 + 256
)

func matchPostgres(b []byte) verdict {
	var h [8]byte // what is not there yet is taken for right
	copy(h[:], b)
	n := binary.BigEndian.Uint32(h[:])
	if n > maxPgStartup || len(b) >= 4 && n < 8 {
		return no
	}
	if len(b) < len(h) {
		return maybe
	}
	ok := false
	switch binary.BigEndian.Uint32(h[4:]) {
	case pgSSL, pgGSSENC:
		ok = n == 8
	case pgCancel:
		ok = n >= 16 && n <= maxPgCancel
	case pgV30, pgV32:
		ok = n >= 9
	}
	if ok {
		return yes
	}
	return no
}

// matchAMQP wants "AMQP", a protocol id and a version that exist.
func matchAMQP(b []byte) verdict {
	v := no
	for _, s := range [...]string{
		"AMQP\x00\x00\x09\x01", "AMQP\x01\x01\x00\x09", "AMQP\x01\x01\x08\x00", "AMQP\x01\x01\x09\x01", "AMQP\x01\x01\x00\x0a",
		"AMQP\x00\x01\x00\x00", "AMQP\x02\x01\x00\x00", "AMQP\x03\x01\x00\x00",
	} {
		v = max(v, word(b, s))
	}
	return v
}

// matchDNS wants a length and the header of one standard query: QR, opcode, AA, TC and
// RCODE 0, one question, no answer or authority, at most two additional records (EDNS, TSIG),
// and a first label of at most 63 bytes.
func matchDNS(b []byte) verdict {
	const (
		minQuery = 12 + 1 + 4
		maxQuery = 4096 - 1 // less than any that begins like an MQTT CONNECT
		header   = 2 + 12
	)
	if b[0] > maxQuery>>8 || len(b) >= 2 && binary.BigEndian.Uint16(b) < minQuery {
		return no
	}
	var h [header + 1]byte // what is not there yet is taken for right
	h[7] = 1
	copy(h[:], b)
	switch {
	case h[4]&0xfe != 0 || h[5]&0x0f != 0: // RD, RA, Z, AD and CD are anything
		return no
	case len(b) > 6 && (h[6] != 0 || h[7] != 1):
		return no
	case h[8]|h[9]|h[10]|h[11]|h[12] != 0 || h[13] > 2 || h[14] > 63:
		return no
	case len(b) < len(h):
		return maybe
	}
	return yes
}

const (
	mongoQuery = 2004
	mongoMsg   = 2013
	maxMongo   = 1 << 20
)

// matchMongoDB wants a header in little endian: length, request id, the 0 of a message that
// answers none, and an opcode. What is shaped like a TLS record or an SSLv2 hello is left
// to nobody.
func matchMongoDB(b []byte) verdict {
	var h [16]byte
	copy(h[:], b)
	switch n := binary.LittleEndian.Uint32(h[:]); {
	case n > maxMongo, len(b) >= 4 && n < uint32(len(h)):
		return no
	case b[0] >= 0x14 && b[0] <= 0x18 && h[1] == 3:
		return no
	case b[0]&0x80 != 0 && h[2] == 1 && h[3] == 0 && len(b) > 4 && h[4] == 2:
		return no
	case binary.LittleEndian.Uint32(h[8:]) != 0:
		return no
	case len(b) < len(h):
		return maybe
	}
	switch binary.LittleEndian.Uint32(h[12:]) {
	case mongoQuery, mongoMsg:
		return yes
	}
	return no
}
