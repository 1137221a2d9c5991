package wsframe

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// ends are a client and a server with a Relay between them.
type ends struct {
	t              *testing.T
	client, server net.Conn
	done           chan struct{}
	result         Result
	err            error
}

func pair(t *testing.T) (near, far net.Conn) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = ln.Close() }()
	if near, err = net.Dial("tcp", ln.Addr().String()); err != nil {
		t.Fatal(err)
	}
	if far, err = ln.Accept(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _, _ = near.Close(), far.Close() })
	_ = near.SetDeadline(time.Now().Add(10 * time.Second))
	return near, far
}

func relayed(t *testing.T, o Options) *ends {
	t.Helper()
	if o.Limit == 0 {
		o.Limit = 1 << 20
	}
	if o.Idle == 0 {
		o.Idle = 10 * time.Second
	}
	e := &ends{t: t, done: make(chan struct{})}
	var c, s net.Conn
	e.client, c = pair(t)
	e.server, s = pair(t)
	go func() {
		defer close(e.done)
		e.result, e.err = Relay(c, s, o)
		_, _ = c.Close(), s.Close()
	}()
	t.Cleanup(func() {
		_, _ = e.client.Close(), e.server.Close()
		<-e.done
	})
	return e
}

var testMask = [4]byte{1, 2, 3, 4}

// raw is a frame as it stands on the wire.
func raw(masked bool, op Opcode, fin bool, payload string) []byte {
	h := Header{Fin: fin, Opcode: op, Masked: masked, Length: int64(len(payload))}
	if masked {
		h.Mask = testMask
	}
	b := h.Append(nil)
	p := []byte(payload)
	if masked {
		xor(testMask, 0, p)
	}
	return append(b, p...)
}

func c2s(op Opcode, fin bool, payload string) []byte { return raw(true, op, fin, payload) }
func s2c(op Opcode, fin bool, payload string) []byte { return raw(false, op, fin, payload) }

func closing(code uint16, reason string) string {
	return string(append(binary.BigEndian.AppendUint16(nil, code), reason...))
}

func write(t *testing.T, c net.Conn, b ...[]byte) {
	t.Helper()
	if _, err := c.Write(bytes.Join(b, nil)); err != nil {
		t.Error(err)
	}
}

// read takes the next frame, which must be masked where it comes from a client.
func read(t *testing.T, r io.Reader, masked bool) (Header, string) {
	t.Helper()
	h, err := ReadHeader(r)
	if err != nil {
		t.Fatalf("no frame: %v", err)
	}
	p := make([]byte, h.Length)
	if _, err := io.ReadFull(r, p); err != nil {
		t.Fatal(err)
	}
	if h.Masked != masked {
		t.Fatalf("masked: %v", h.Masked)
	}
	xor(h.Mask, 0, p)
	return h, string(p)
}

func want(t *testing.T, r io.Reader, masked bool, op Opcode, fin bool, payload string) {
	t.Helper()
	if h, p := read(t, r, masked); h.Opcode != op || h.Fin != fin || p != payload {
		t.Fatalf("got %+v %.60q, want %d fin=%v %.60q", h, p, op, fin, payload)
	}
}

// message reads one message and lets control frames pass.
func message(t *testing.T, r io.Reader, masked bool) (Opcode, string) {
	t.Helper()
	var op Opcode
	var all strings.Builder
	for {
		h, p := read(t, r, masked)
		if h.Opcode.control() {
			continue
		}
		if h.Opcode != Continuation {
			op = h.Opcode
		}
		all.WriteString(p)
		if h.Fin {
			return op, all.String()
		}
	}
}

func upper(msg []byte) ([]byte, error) { return bytes.ToUpper(msg), nil }

// doubled gives every byte twice.
type doubled struct{ src io.Reader }

func (d doubled) Read(p []byte) (int, error) {
	half := make([]byte, len(p)/2)
	n, err := d.src.Read(half)
	for i, c := range half[:n] {
		p[2*i], p[2*i+1] = c, c
	}
	return 2 * n, err
}

func TestMessages(t *testing.T) {
	big := strings.Repeat("0123456789abcdef", 1<<16) // 1 MiB
	e := relayed(t, Options{Limit: 2 << 20, FromClient: Rules{Text: upper}, FromServer: Rules{Stream: func(r io.Reader) io.Reader { return doubled{r} }, Resizes: true}})
	go func() { // the client's
		write(t, e.client, c2s(Text, true, "hello"))
		write(t, e.client, c2s(Text, false, "in "), c2s(Ping, true, "p1"), c2s(Continuation, false, ""), c2s(Continuation, true, "parts é"))
		write(t, e.client, c2s(Text, true, ""), c2s(Binary, true, ""), c2s(Binary, true, "raw"))
		write(t, e.client, c2s(Binary, true, big))
		write(t, e.client, c2s(Binary, false, "first"), c2s(Continuation, true, ", last"))
		write(t, e.client, c2s(Text, true, big))
	}()
	want(t, e.server, true, Text, true, "HELLO")
	want(t, e.server, true, Ping, true, "p1")
	want(t, e.server, true, Text, true, "IN PARTS É")
	want(t, e.server, true, Text, true, "")
	want(t, e.server, true, Binary, true, "")
	want(t, e.server, true, Binary, true, "raw")
	want(t, e.server, true, Binary, true, big)
	if op, got := message(t, e.server, true); op != Binary || got != "first, last" {
		t.Errorf("%d %q", op, got)
	}
	want(t, e.server, true, Text, true, strings.ToUpper(big))

	write(t, e.server, s2c(Binary, true, "ab"), s2c(Pong, true, "p1"), s2c(Text, true, ""))
	want(t, e.client, false, Binary, true, "aabb")
	want(t, e.client, false, Pong, true, "p1")
	if op, got := message(t, e.client, false); op != Text || got != "" {
		t.Errorf("%d %q", op, got)
	}
	go write(t, e.server, s2c(Binary, true, big))
	if op, got := message(t, e.client, false); op != Binary || len(got) != 2*len(big) || got[:6] != "001122" {
		t.Errorf("%d, %d bytes", op, len(got))
	}
	write(t, e.client, c2s(Close, true, closing(1000, "bye")))
	want(t, e.server, true, Close, true, closing(1000, "bye"))
	write(t, e.server, s2c(Text, true, "late"), s2c(Close, true, closing(1000, "")))
	if _, got := message(t, e.client, false); got != "llaattee" {
		t.Errorf("what came behind a Close: %q", got)
	}
	want(t, e.client, false, Close, true, closing(1000, ""))
	<-e.done
	if e.err != nil || e.result.In < 2<<20 || e.result.Out < 2<<20 {
		t.Errorf("%v %+v", e.err, e.result)
	}
}

// Control frames pass between the fragments of a message that is not complete yet, and what
// streams does not wait for the end.
func TestNothingWaits(t *testing.T) {
	e := relayed(t, Options{FromClient: Rules{Text: upper}})
	write(t, e.client, c2s(Text, false, "held "), c2s(Ping, true, "now"))
	want(t, e.server, true, Ping, true, "now")
	write(t, e.server, s2c(Pong, true, "now"), s2c(Text, false, "not held"))
	want(t, e.client, false, Pong, true, "now")
	want(t, e.client, false, Text, false, "not held")
	write(t, e.client, c2s(Continuation, true, "back"))
	want(t, e.server, true, Text, true, "HELD BACK")
	long := s2c(Continuation, true, strings.Repeat("x", 100<<10))
	write(t, e.server, long[:50<<10])
	for got := 0; got < 40<<10; {
		h, p := read(t, e.client, false)
		if got += len(p); h.Fin {
			t.Fatal("the end came early")
		}
	}
}

func TestMasksAreFresh(t *testing.T) {
	e := relayed(t, Options{})
	seen := map[[4]byte]bool{}
	for range 16 {
		write(t, e.client, c2s(Binary, true, "same"))
		h, p := read(t, e.server, true)
		if seen[h.Mask] = true; p != "same" {
			t.Errorf("%q", p)
		}
	}
	if len(seen) < 15 || seen[testMask] {
		t.Errorf("masks: %v", seen)
	}
}

const midFrame = "large text that ends wrong"

// TestAttack_C31_frames: what an endpoint may not send ends both sides with the code for it.
func TestAttack_C31_frames(t *testing.T) {
	long := string(make([]byte, 126))
	wide := func(masked byte, n uint64) []byte {
		return binary.BigEndian.AppendUint64([]byte{0x82, masked | 127}, n)
	}
	for name, tc := range map[string]struct {
		from  string // c, s or both
		bytes func(frame func(Opcode, bool, string) []byte, mask byte) []byte
		code  uint16
	}{
		"RSV1, as of permessage-deflate": {"both", func(_ func(Opcode, bool, string) []byte, m byte) []byte { return []byte{0xC1, m, 0, 0, 0, 0} }, 1002},
		"RSV2":                           {"both", func(_ func(Opcode, bool, string) []byte, m byte) []byte { return []byte{0xA1, m, 0, 0, 0, 0} }, 1002},
		"RSV3":                           {"both", func(_ func(Opcode, bool, string) []byte, m byte) []byte { return []byte{0x91, m, 0, 0, 0, 0} }, 1002},
		"opcode 3":                       {"both", func(f func(Opcode, bool, string) []byte, _ byte) []byte { return f(3, true, "x") }, 1002},
		"opcode 11":                      {"both", func(f func(Opcode, bool, string) []byte, _ byte) []byte { return f(11, true, "x") }, 1002},
		"mask":                           {"both", func(f func(Opcode, bool, string) []byte, m byte) []byte { return raw(m == 0, Text, true, "x") }, 1002},
		"mask of a control frame":        {"both", func(f func(Opcode, bool, string) []byte, m byte) []byte { return raw(m == 0, Ping, true, "x") }, 1002},
		"fragmented ping":                {"both", func(f func(Opcode, bool, string) []byte, _ byte) []byte { return f(Ping, false, "x") }, 1002},
		"long ping":                      {"both", func(f func(Opcode, bool, string) []byte, _ byte) []byte { return f(Ping, true, long) }, 1002},
		"2^63 bytes":                     {"both", func(_ func(Opcode, bool, string) []byte, m byte) []byte { return append(wide(m, 1<<63), 0, 0, 0, 0) }, 1002},
		"2^64-1 bytes":                   {"both", func(_ func(Opcode, bool, string) []byte, m byte) []byte { return append(wide(m, 1<<64-1), 0, 0, 0, 0) }, 1002},
		"length in too many bytes":       {"both", func(_ func(Opcode, bool, string) []byte, m byte) []byte { return append(wide(m, 5), 0, 0, 0, 0) }, 1002},
		"continuation of nothing":        {"both", func(f func(Opcode, bool, string) []byte, _ byte) []byte { return f(Continuation, true, "x") }, 1002},
		"message within a message": {"both", func(f func(Opcode, bool, string) []byte, _ byte) []byte {
			return append(f(Text, false, "x"), f(Text, true, "y")...)
		}, 1002},
		"close of one byte": {"both", func(f func(Opcode, bool, string) []byte, _ byte) []byte { return f(Close, true, "x") }, 1002},
		"close 1005":        {"both", func(f func(Opcode, bool, string) []byte, _ byte) []byte { return f(Close, true, closing(1005, "")) }, 1002},
		"close 1006":        {"both", func(f func(Opcode, bool, string) []byte, _ byte) []byte { return f(Close, true, closing(1006, "")) }, 1002},
		"close 999":         {"both", func(f func(Opcode, bool, string) []byte, _ byte) []byte { return f(Close, true, closing(999, "")) }, 1002},
		"close 2000":        {"both", func(f func(Opcode, bool, string) []byte, _ byte) []byte { return f(Close, true, closing(2000, "")) }, 1002},
		"close reason":      {"both", func(f func(Opcode, bool, string) []byte, _ byte) []byte { return f(Close, true, closing(1000, "\xff")) }, 1007},
		"text that is not":  {"both", func(f func(Opcode, bool, string) []byte, _ byte) []byte { return f(Text, true, "a\xffb") }, 1007},
		"half a character":  {"both", func(f func(Opcode, bool, string) []byte, _ byte) []byte { return f(Text, true, "é"[:1]) }, 1007},
		"half, in parts": {"both", func(f func(Opcode, bool, string) []byte, _ byte) []byte {
			return append(f(Text, false, "é"[:1]), f(Continuation, true, "")...)
		}, 1007},
		"surrogate": {"both", func(f func(Opcode, bool, string) []byte, _ byte) []byte { return f(Text, true, "\xed\xa0\x80") }, 1007},
		midFrame: {"both", func(f func(Opcode, bool, string) []byte, _ byte) []byte {
			return f(Text, true, strings.Repeat("x", 90<<10)+"\xe2\x82")
		}, 1007},
		"text of 2^63-1 bytes to be read whole": {"c", func(_ func(Opcode, bool, string) []byte, m byte) []byte {
			b := wide(m, 1<<63-1)
			b[0] = 0x81
			return append(b, 0, 0, 0, 0)
		}, 1009},
		"text over the limit in parts": {"c", func(f func(Opcode, bool, string) []byte, _ byte) []byte {
			return append(f(Text, false, strings.Repeat("x", 150<<10)), f(Continuation, false, strings.Repeat("x", 150<<10))...)
		}, 1009},
	} {
		for _, fromClient := range []bool{true, false} {
			if tc.from == "c" && !fromClient {
				continue
			}
			who := map[bool]string{true: "client", false: "server"}[fromClient]
			t.Run("C31 "+name+" by the "+who, func(t *testing.T) {
				t.Parallel()
				for _, rules := range []Rules{{}, {Text: func(b []byte) ([]byte, error) { return b, nil }}} {
					if tc.code == 1009 && rules.Text == nil {
						continue
					}
					e := relayed(t, Options{FromClient: rules, FromServer: rules, Limit: 200 << 10})
					from, to, frame, mask := e.client, e.server, c2s, byte(0x80)
					if !fromClient {
						from, to, frame, mask = e.server, e.client, s2c, 0
					}
					go func() { _, _ = from.Write(tc.bytes(frame, mask)) }()  // it may be cut off
					if name == midFrame && !fromClient && rules.Text == nil { // no Close can be sent in a frame
						if got, _ := io.ReadAll(e.client); int64(len(got)) > 90<<10 {
							t.Errorf("all of it came: %d bytes", len(got))
						}
						continue
					}
					h, p := read(t, e.client, false)
					for !fromClient && !h.Opcode.control() {
						h, p = read(t, e.client, false) // what streamed until then
						if h.Fin && h.Opcode != Close {
							t.Fatalf("a message was completed: %+v", h)
						}
					}
					if h.Opcode != Close || len(p) < 2 || binary.BigEndian.Uint16([]byte(p)) != tc.code {
						t.Fatalf("got %+v %q, want close %d", h, p, tc.code)
					}
					_ = e.client.(*net.TCPConn).CloseWrite()
					rest, _ := io.ReadAll(to)
					if fromClient && rules.Text != nil && len(rest) != 8 && len(rest) != 0 { // nothing but a Close
						t.Errorf("the other side got %d bytes: %.60q", len(rest), rest)
					}
					_ = from.Close()
					<-e.done
					var refused *Error
					if !errors.As(e.err, &refused) || refused.Code != tc.code || refused.FromClient != fromClient {
						t.Errorf("%v %+v", e.err, refused)
					}
				}
			})
		}
	}
	t.Run("C31 close storm", func(t *testing.T) {
		e := relayed(t, Options{})
		go func() { _, _ = e.client.Write(bytes.Repeat(c2s(Close, true, ""), 1000)) }()
		want(t, e.server, true, Close, true, "")
		write(t, e.server, s2c(Close, true, ""))
		if rest, err := io.ReadAll(e.server); err != nil && !isReset(err) || len(rest) > 0 {
			t.Errorf("%d bytes, %v", len(rest), err)
		}
		if <-e.done; e.err != nil {
			t.Error(e.err)
		}
	})
}

func isReset(err error) bool { return strings.Contains(err.Error(), "reset") }

func TestRulesRefuse(t *testing.T) {
	no := &Error{Code: CodePolicy, Reason: "no"}
	other := errors.New("other")
	for name, tc := range map[string]struct {
		rules Rules
		frame []byte
		code  uint16
		err   error
	}{
		"text":    {Rules{Text: func([]byte) ([]byte, error) { return nil, no }}, c2s(Text, true, "x"), 1008, no},
		"stream":  {Rules{Stream: func(io.Reader) io.Reader { return failing{no} }}, c2s(Binary, true, "x"), 1008, no},
		"streams": {Rules{Stream: func(io.Reader) io.Reader { return failing{no} }}, c2s(Binary, false, "x"), 1008, no},
		"control": {Rules{Control: func([]byte) ([]byte, error) { return nil, no }}, c2s(Ping, true, "x"), 1008, no},
		"other":   {Rules{Text: func([]byte) ([]byte, error) { return nil, other }}, c2s(Text, true, "x"), 1011, other},
		"shorter": {Rules{Stream: func(r io.Reader) io.Reader { return io.LimitReader(r, 1) }}, c2s(Binary, true, "xy"), 1011, nil},
	} {
		t.Run(name, func(t *testing.T) {
			e := relayed(t, Options{FromClient: tc.rules})
			write(t, e.client, tc.frame)
			if h, p := read(t, e.client, false); h.Opcode != Close || binary.BigEndian.Uint16([]byte(p)) != tc.code {
				t.Errorf("%+v %q", h, p)
			}
			if h, p := read(t, e.server, true); h.Opcode != Close || p != closing(tc.code, "") {
				t.Errorf("the server got %+v %q", h, p)
			}
			_ = e.client.Close()
			if <-e.done; tc.err != nil && !errors.Is(e.err, tc.err) && !sameCode(e.err, tc.code) {
				t.Error(e.err)
			}
		})
	}
}

func sameCode(err error, code uint16) bool {
	var e *Error
	return errors.As(err, &e) && e.Code == code
}

type failing struct{ err error }

func (f failing) Read([]byte) (int, error) { return 0, f.err }

// A message that is refused in the middle of its frame ends the server's side without one.
func TestRefusedMidFrame(t *testing.T) {
	e := relayed(t, Options{FromClient: Rules{Stream: func(r io.Reader) io.Reader {
		return io.MultiReader(io.LimitReader(r, 60<<10), failing{&Error{Code: CodePolicy, Reason: "no"}})
	}}})
	go func() { _, _ = e.client.Write(c2s(Binary, true, strings.Repeat("x", 200<<10))) }()
	if h, p := read(t, e.client, false); h.Opcode != Close || p != closing(1008, "no") {
		t.Errorf("%+v %q", h, p)
	}
	if got, _ := io.ReadAll(e.server); len(got) > 70<<10 {
		t.Errorf("the server got %d bytes", len(got))
	}
}

func TestEnds(t *testing.T) {
	t.Run("a side goes", func(t *testing.T) {
		e := relayed(t, Options{})
		_ = e.client.Close()
		if <-e.done; !errors.Is(e.err, io.EOF) {
			t.Error(e.err)
		}
	})
	t.Run("in a frame", func(t *testing.T) {
		e := relayed(t, Options{})
		write(t, e.server, s2c(Text, true, "hello")[:4])
		_ = e.server.Close()
		if <-e.done; !errors.Is(e.err, io.ErrUnexpectedEOF) {
			t.Error(e.err)
		}
		if rest, _ := io.ReadAll(e.client); len(rest) != 0 {
			t.Errorf("%q", rest)
		}
	})
	t.Run("nobody speaks", func(t *testing.T) {
		e := relayed(t, Options{Idle: 200 * time.Millisecond})
		if <-e.done; !errors.Is(e.err, os.ErrDeadlineExceeded) {
			t.Error(e.err)
		}
	})
	t.Run("nobody reads", func(t *testing.T) {
		e := relayed(t, Options{Idle: 300 * time.Millisecond})
		flood := bytes.Repeat(c2s(Binary, true, string(make([]byte, 30<<10))), 1000)
		go func() { _, _ = e.client.Write(flood) }()
		_, _ = e.server.Write(bytes.Repeat(s2c(Binary, true, string(make([]byte, 30<<10))), 1000))
		if <-e.done; !errors.Is(e.err, os.ErrDeadlineExceeded) {
			t.Error(e.err)
		}
	})
	t.Run("one speaks and the other listens", func(t *testing.T) {
		e := relayed(t, Options{Idle: 300 * time.Millisecond})
		for range 10 {
			time.Sleep(80 * time.Millisecond)
			write(t, e.server, s2c(Text, true, "tick"))
			want(t, e.client, false, Text, true, "tick")
		}
	})
	t.Run("nobody answers a Close", func(t *testing.T) {
		e := relayed(t, Options{Closing: 200 * time.Millisecond})
		write(t, e.client, c2s(Close, true, closing(1000, "")))
		begin := time.Now()
		if <-e.done; !errors.Is(e.err, os.ErrDeadlineExceeded) || time.Since(begin) > 5*time.Second {
			t.Error(e.err, time.Since(begin))
		}
	})
}
