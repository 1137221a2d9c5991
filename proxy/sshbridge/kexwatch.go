package sshbridge

import (
	"bytes"
	"encoding/binary"
	"errors"
	"net"
	"slices"
	"strings"
	"sync/atomic"

	"golang.org/x/crypto/ssh"
)

const (
	// maxHello is the most that a peer may send up to the end of its first packet: RFC 4253
	// allows 35,000 bytes for a packet, and lines before the version.
	maxHello = 64 << 10
	msgKex   = 20 // SSH_MSG_KEXINIT
)

// Markers of strict key exchange (OpenSSH's PROTOCOL, 1.10), from a client and a server.
const (
	strictClient = "kex-strict-c-v00@openssh.com"
	strictServer = "kex-strict-s-v00@openssh.com"
)

var (
	errHello  = errors.New("ssh: the first packet is not a key exchange")
	errStrict = errors.New("ssh: ChaCha20-Poly1305 without strict key exchange (CVE-2023-48795)")
)

// kexWatch is a connection that finds out whether the peer's first packet offers strict
// key exchange, which x/crypto/ssh negotiates and does not tell. The first packet is in
// the clear, and what was seen of it is what the key exchange proves. It also reads ahead,
// since x/crypto reads the version byte by byte.
type kexWatch struct {
	net.Conn
	marker string

	seen   []byte // up to the end of the first packet; nil after
	unread []byte
	strict atomic.Bool
	done   bool
}

func watchKex(c net.Conn, marker string) *kexWatch { return &kexWatch{Conn: c, marker: marker} }

// Read is called by one goroutine at a time.
func (k *kexWatch) Read(p []byte) (int, error) {
	if len(k.unread) > 0 {
		n := copy(p, k.unread)
		k.unread = k.unread[n:]
		return n, nil
	}
	if k.done {
		k.unread = nil
		return k.Conn.Read(p)
	}
	buf := make([]byte, 4<<10)
	n, err := k.Conn.Read(buf)
	if n == 0 {
		return 0, err
	}
	k.unread = buf[:n]
	k.seen = append(k.seen, k.unread...)
	payload, perr := firstPacket(k.seen)
	switch {
	case perr != nil:
		return 0, perr
	case payload != nil:
		k.strict.Store(offers(payload, k.marker))
		k.done, k.seen = true, nil
	case len(k.seen) > maxHello:
		return 0, errHello
	}
	m := copy(p, k.unread)
	k.unread = k.unread[m:]
	return m, nil
}

// check refuses what strict key exchange would have made safe.
func (k *kexWatch) check(a ssh.NegotiatedAlgorithms) error {
	chacha := a.Read.Cipher == ssh.CipherChaCha20Poly1305 || a.Write.Cipher == ssh.CipherChaCha20Poly1305
	if chacha && !k.strict.Load() {
		return errStrict
	}
	return nil
}

// firstPacket returns the payload of the first binary packet (RFC 4253, section 6) of what
// a peer has sent, behind its version; nil when it is not whole yet.
func firstPacket(sent []byte) (payload []byte, err error) {
	for {
		line, after, ok := bytes.Cut(sent, []byte("\n"))
		if !ok {
			return nil, nil
		}
		sent = after
		if bytes.HasPrefix(line, []byte("SSH-")) {
			break
		}
	}
	if len(sent) < 5 {
		return nil, nil
	}
	length, padding := binary.BigEndian.Uint32(sent), uint32(sent[4])
	if length > maxHello || length < 2 || padding > length-2 {
		return nil, errHello
	}
	if uint32(len(sent)-4) < length {
		return nil, nil
	}
	payload = sent[5 : 4+length-padding]
	if payload[0] != msgKex {
		return nil, errHello
	}
	return payload, nil
}

// offers says whether the key exchange algorithms of a KEXINIT hold name.
func offers(kexInit []byte, name string) bool {
	const before = 1 + 16 // type, cookie
	if len(kexInit) < before+4 {
		return false
	}
	n := binary.BigEndian.Uint32(kexInit[before:])
	list := kexInit[before+4:]
	if uint64(n) > uint64(len(list)) {
		return false
	}
	return slices.Contains(strings.Split(string(list[:n]), ","), name)
}
