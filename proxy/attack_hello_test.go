package proxy_test

import (
	"crypto/tls"
	"encoding/binary"
	"net"
	"testing"
)

// clientHello is the first record that crypto/tls sends for name; "" is none. Names
// that crypto/tls would not send are patched in.
func clientHello(t testing.TB, name string) []byte {
	t.Helper()
	sni := name
	if name != "" {
		b := make([]byte, len(name))
		for i := range b {
			b[i] = 'a'
		}
		sni = string(b)
	}
	raw := firstRecord(t, &tls.Config{ServerName: sni, InsecureSkipVerify: true, NextProtos: []string{"h2", "http/1.1"}})
	if name == "" {
		return raw
	}
	for i := 0; i+len(sni) <= len(raw); i++ {
		if string(raw[i:i+len(sni)]) == sni {
			copy(raw[i:], name)
			return raw
		}
	}
	t.Fatal("the name is not in the hello")
	return nil
}

func firstRecord(t testing.TB, conf *tls.Config) []byte {
	t.Helper()
	near, far := net.Pipe()
	defer func() { _ = near.Close() }()
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = tls.Client(far, conf).Handshake() // ends when near is closed
	}()
	buf := make([]byte, 64<<10)
	n, err := near.Read(buf)
	if err != nil {
		t.Fatal(err)
	}
	_ = near.Close()
	<-done
	return buf[:n]
}

// withExtension adds an extension to a ClientHello in one record.
func withExtension(hello []byte, id uint16, data []byte) []byte {
	b := append([]byte(nil), hello...)
	p := 5 + 4 + 2 + 32
	p += 1 + int(b[p])                            // session id
	p += 2 + int(binary.BigEndian.Uint16(b[p:]))  // cipher suites
	p += 1 + int(b[p])                            // compression
	ext := binary.BigEndian.AppendUint16(nil, id) // new extension
	ext = binary.BigEndian.AppendUint16(ext, uint16(len(data)))
	ext = append(ext, data...)
	grow := func(at int) {
		binary.BigEndian.PutUint16(b[at:], binary.BigEndian.Uint16(b[at:])+uint16(len(ext)))
	}
	grow(p)
	grow(3) // record
	grow(7) // the low two bytes of the handshake message's length
	return append(b[:p+2:p+2], append(ext, b[p+2:]...)...)
}
