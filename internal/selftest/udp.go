package selftest

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"io"
	"net"

	"golang.org/x/net/dns/dnsmessage"
)

// tryDatagram sends one datagram. A target that does not answer cannot be told from a
// network that does not carry it.
func tryDatagram(ctx context.Context, to string, payload []byte) (Verdict, string) {
	c, err := dial(ctx, "udp", to)
	if err != nil {
		return Blocked, why(err)
	}
	defer func() { _ = c.Close() }()
	if _, err := c.Write(payload); err != nil {
		return Blocked, why(err)
	}
	n, err := c.Read(make([]byte, 2048))
	if err != nil {
		return Blocked, why(err)
	}
	return Open, fmt.Sprintf("somebody answered with %d bytes", n)
}

// quicHello is a long header of a version that nobody has: every server answers it with the
// versions that it has (RFC 9000, 6.1), if it is as long as an Initial packet.
func quicHello() []byte {
	b := make([]byte, 1200)
	b[0] = 0xc0
	binary.BigEndian.PutUint32(b[1:], 0x1a2a3a4a)
	b[5] = 8
	_, _ = rand.Read(b[6:14]) // never fails (crypto/rand)
	b[14] = 8
	_, _ = rand.Read(b[15:23])
	return b
}

// ntpHello asks for the time (RFC 5905): version 4, client.
func ntpHello() []byte {
	b := make([]byte, 48)
	b[0] = 4<<3 | 3
	return b
}

// tryDNS asks a server for a name that policy does not allow. egressd answers in its place
// and refuses; an answer with a record in it is another server's.
func tryDNS(ctx context.Context, network, to, name string) (Verdict, string) {
	query, id, err := question(name)
	if err != nil {
		return Skipped, "the name cannot be asked for"
	}
	c, err := dial(ctx, network, to)
	if err != nil {
		return Blocked, why(err)
	}
	defer func() { _ = c.Close() }()
	if network == "tcp" {
		query = append(binary.BigEndian.AppendUint16(nil, uint16(len(query))), query...)
	}
	if _, err := c.Write(query); err != nil {
		return Blocked, why(err)
	}
	answer, err := readDNS(c, network)
	if err != nil {
		return Blocked, why(err)
	}
	return judgeDNS(answer, id)
}

func question(name string) (query []byte, id uint16, err error) {
	var b [2]byte
	_, _ = rand.Read(b[:]) // never fails (crypto/rand)
	id = binary.BigEndian.Uint16(b[:])
	n, err := dnsmessage.NewName(name + ".")
	if err != nil {
		return nil, 0, err
	}
	m := dnsmessage.Message{
		Header:    dnsmessage.Header{ID: id, RecursionDesired: true},
		Questions: []dnsmessage.Question{{Name: n, Type: dnsmessage.TypeA, Class: dnsmessage.ClassINET}},
		Additionals: []dnsmessage.Resource{{
			Header: dnsmessage.ResourceHeader{Name: dnsmessage.MustNewName("."), Type: dnsmessage.TypeOPT, Class: 1232},
			Body:   &dnsmessage.OPTResource{}, // so that the answer may say why
		}},
	}
	query, err = m.Pack()
	return query, id, err
}

func readDNS(c net.Conn, network string) ([]byte, error) {
	if network != "tcp" {
		b := make([]byte, 4096)
		n, err := c.Read(b)
		return b[:n], err
	}
	var head [2]byte
	if n, err := io.ReadFull(c, head[:]); n < len(head) {
		return head[:n], noneOf(n, err)
	}
	b := make([]byte, binary.BigEndian.Uint16(head[:]))
	n, _ := io.ReadFull(c, b) // whatever came, somebody sent it
	return b[:n], nil
}

func noneOf(n int, err error) error {
	if n > 0 {
		return nil
	}
	return err
}

// judgeDNS looks whether an answer holds anything that a server knows.
func judgeDNS(answer []byte, id uint16) (Verdict, string) {
	var p dnsmessage.Parser
	h, err := p.Start(answer)
	if err != nil || !h.Response || h.ID != id {
		return Open, "somebody answered, with what is no DNS"
	}
	var m dnsmessage.Message
	if err := m.Unpack(answer); err != nil {
		return Open, "somebody answered, with what is no DNS"
	}
	if len(m.Answers)+len(m.Authorities) > 0 {
		return Open, fmt.Sprintf("the name was looked up: %s, %d records", rcode(h.RCode), len(m.Answers)+len(m.Authorities))
	}
	if h.RCode == dnsmessage.RCodeRefused && blocked(m.Additionals) {
		return Governed, "egressd's resolver refused the name"
	}
	return Unclear, "answered without a record: " + rcode(h.RCode)
}

// Extended DNS errors (RFC 8914).
const (
	optionEDE  = 15
	edeBlocked = 15
)

// blocked: the answer says that somebody's rules refuse the name, as egressd's resolver does
// and servers that refuse strangers do not.
func blocked(additionals []dnsmessage.Resource) bool {
	for _, r := range additionals {
		opt, ok := r.Body.(*dnsmessage.OPTResource)
		if !ok {
			continue
		}
		for _, o := range opt.Options {
			if o.Code == optionEDE && len(o.Data) >= 2 && binary.BigEndian.Uint16(o.Data) == edeBlocked {
				return true
			}
		}
	}
	return false
}

func rcode(c dnsmessage.RCode) string {
	switch c {
	case dnsmessage.RCodeSuccess:
		return "NOERROR"
	case dnsmessage.RCodeNameError:
		return "NXDOMAIN"
	case dnsmessage.RCodeServerFailure:
		return "SERVFAIL"
	case dnsmessage.RCodeRefused:
		return "REFUSED"
	}
	return fmt.Sprintf("RCODE %d", c)
}
