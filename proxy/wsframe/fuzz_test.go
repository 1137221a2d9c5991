package wsframe

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"
	"unicode/utf8"
)

// reading is what a whole stream of client frames means, as understood by code that shares
// nothing with the package: it has all bytes at once.
type reading struct {
	messages []string // with the opcode before each
	code     uint16   // 0: not refused
}

func reference(b []byte) (out reading) {
	var open bool
	var op byte
	var msg []byte
	for {
		if len(b) < 2 {
			return out
		}
		fin, rsv, code, masked, n := b[0] >= 128, b[0]/16%8, b[0]%16, b[1] >= 128, uint64(b[1]%128)
		control := code >= 8
		if rsv != 0 || code > 2 && code < 8 || code > 10 || control && (!fin || n > 125) {
			out.code = 1002
			return out
		}
		size := 2
		for range map[uint64]int{126: 2, 127: 8}[n] {
			size++
		}
		head := size
		if masked {
			head += 4
		}
		if len(b) < head {
			return out
		}
		if size > 2 {
			n = 0
			for _, c := range b[2:size] {
				n = n<<8 | uint64(c)
			}
		}
		switch {
		case n >= 1<<63, size == 4 && n < 126, size == 10 && n < 65536, !masked, !control && open != (code == 0):
			out.code = 1002
			return out
		}
		got := b[head:]
		if uint64(len(got)) > n {
			got = got[:n]
		}
		p := make([]byte, len(got))
		for i := range got {
			p[i] = got[i] ^ b[size+i%4]
		}
		whole := uint64(len(got)) == n
		if control && !whole {
			return out
		}
		if control {
			if code == 8 {
				out.code = referenceClose(p)
				if out.code == 0 {
					out.messages = append(out.messages, "\x08"+string(p))
				}
				return out
			}
			out.messages = append(out.messages, string(rune(code))+string(p))
			b = b[head+len(got):]
			continue
		}
		if code != 0 {
			op, open, msg = code, true, nil
		}
		msg = append(msg, p...)
		done := whole && fin
		if op == 1 && !beginsText(msg, done) {
			out.code = 1007
			return out
		}
		if !whole {
			return out
		}
		if b = b[head+len(got):]; done {
			out.messages = append(out.messages, string(rune(op))+string(msg))
			open = false
		}
	}
}

func referenceClose(p []byte) uint16 {
	if len(p) == 0 {
		return 0
	}
	if len(p) == 1 {
		return 1002
	}
	n := int(p[0])*256 + int(p[1])
	if n < 1000 || n > 4999 || n > 1014 && n < 3000 || n >= 1004 && n <= 1006 {
		return 1002
	}
	if !utf8.Valid(p[2:]) {
		return 1007
	}
	return 0
}

// beginsText: b is text, or what text can begin with.
func beginsText(b []byte, whole bool) bool {
	for len(b) > 0 {
		r, n := utf8.DecodeRune(b)
		if r == utf8.RuneError && n == 1 {
			return !whole && !utf8.FullRune(b)
		}
		b = b[n:]
	}
	return true
}

// memory is a connection that gives what it has, then ends or, with no end, waits.
type memory struct {
	in       *bytes.Reader
	endless  bool
	step     int
	deadline atomic.Int64
	mu       sync.Mutex
	out      bytes.Buffer
}

func newMemory(b []byte, endless bool, step int) *memory {
	return &memory{in: bytes.NewReader(b), endless: endless, step: step}
}

func (m *memory) Read(p []byte) (int, error) {
	for m.in.Len() == 0 && m.endless {
		if time.Now().UnixNano() > m.deadline.Load() {
			return 0, os.ErrDeadlineExceeded
		}
		time.Sleep(50 * time.Microsecond)
	}
	return m.in.Read(p[:min(len(p), m.step)])
}

func (m *memory) Write(p []byte) (int, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.out.Write(p)
}

func (m *memory) SetDeadline(t time.Time) error { return m.SetReadDeadline(t) }

func (m *memory) SetReadDeadline(t time.Time) error {
	m.deadline.Store(t.UnixNano())
	return nil
}

func (m *memory) SetWriteDeadline(time.Time) error { return nil }
func (m *memory) Close() error                     { return nil }
func (m *memory) LocalAddr() net.Addr              { return nil }
func (m *memory) RemoteAddr() net.Addr             { return nil }

// split takes frames apart that must be right; a frame may be cut at the end.
func split(t *testing.T, b []byte, masked bool) (messages []string, cut bool) {
	var msg string
	for r := bytes.NewReader(b); r.Len() > 0; {
		h, err := ReadHeader(r)
		if err != nil || h.Masked != masked {
			t.Fatalf("%v %+v in what was sent: %q", err, h, b)
		}
		p := make([]byte, min(h.Length, int64(r.Len())))
		_, _ = io.ReadFull(r, p)
		if int64(len(p)) < h.Length {
			return messages, true
		}
		xor(h.Mask, 0, p)
		switch {
		case h.Opcode.control():
			messages = append(messages, string(rune(h.Opcode))+string(p))
			continue
		case h.Opcode != Continuation:
			msg = string(rune(h.Opcode))
		}
		if msg += string(p); h.Fin {
			messages = append(messages, msg)
		}
	}
	return messages, false
}

func FuzzRelay(f *testing.F) {
	f.Add([]byte{}, uint8(0))
	f.Add(c2s(Text, true, "hello"), uint8(1))
	f.Add(bytes.Join([][]byte{c2s(Text, false, "a"), c2s(Ping, true, "x"), c2s(Continuation, true, "é"), c2s(Close, true, closing(1000, "bye"))}, nil), uint8(3))
	f.Add(bytes.Join([][]byte{c2s(Binary, false, "a"), c2s(Continuation, true, string(make([]byte, 40000))), c2s(Binary, true, string(make([]byte, 70000)))}, nil), uint8(200))
	f.Add(c2s(Text, true, "\xff"), uint8(7))
	f.Add([]byte{0xc1, 0x80, 0, 0, 0, 0}, uint8(9))
	f.Add(binary.BigEndian.AppendUint64([]byte{0x82, 0xff}, 1<<63), uint8(9))
	f.Add(s2c(Text, true, "unmasked"), uint8(9))
	f.Fuzz(func(t *testing.T, b []byte, how uint8) {
		expected := reference(b)
		rules := Rules{}
		if how&1 != 0 {
			rules.Text = func(m []byte) ([]byte, error) { return m, nil }
		}
		if how&2 != 0 {
			rules.Stream = func(r io.Reader) io.Reader { return r }
			rules.Resizes = how&4 != 0
		}
		watchdog := time.AfterFunc(4*time.Second, func() { panic("it hangs") })
		defer watchdog.Stop()
		client, server := newMemory(b, false, int(how)*17+1), newMemory(nil, true, 1)
		_, err := Relay(client, server, Options{FromClient: rules, Limit: 1 << 20, Idle: time.Minute, Closing: time.Millisecond})
		var refused *Error
		switch {
		case errors.As(err, &refused) && refused.Code == CodeTooBig && how&1 != 0:
			return // the reference has no limit
		case refused != nil && refused.Code != expected.code:
			t.Fatalf("refused with %d (%v), want %d", refused.Code, err, expected.code)
		case refused == nil && expected.code != 0:
			t.Fatalf("%v, want %d", err, expected.code)
		}
		got, cut := split(t, server.out.Bytes(), true)
		if refused != nil && !cut && len(got) > 0 && got[len(got)-1] == "\x08"+closing(refused.Code, "") {
			got = got[:len(got)-1]
		}
		if len(got) != len(expected.messages) {
			t.Fatalf("%d messages, want %d: %q %q", len(got), len(expected.messages), got, expected.messages)
		}
		for i := range got {
			if got[i] != expected.messages[i] {
				t.Fatalf("message %d is %.80q, want %.80q", i, got[i], expected.messages[i])
			}
		}
	})
}

func FuzzHeader(f *testing.F) {
	f.Add([]byte{0x81, 0x85, 1, 2, 3, 4})
	f.Add([]byte{0x82, 126, 1, 0})
	f.Add(binary.BigEndian.AppendUint64([]byte{0x82, 127}, 1<<40))
	f.Fuzz(func(t *testing.T, b []byte) {
		r := bytes.NewReader(b)
		h, err := ReadHeader(r)
		if err != nil {
			return
		}
		if h.Length < 0 || h.Opcode.control() && (h.Length > 125 || !h.Fin) {
			t.Fatalf("%+v", h)
		}
		if again := h.Append(nil); !bytes.Equal(again, b[:len(b)-r.Len()]) {
			t.Fatalf("%x became %x", b, again)
		}
	})
}
