package socks

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/egressd/egressd/proxy/wire"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// pair is two ends of a loopback TCP connection.
func pair(t testing.TB) (near, far net.Conn) {
	t.Helper()
	ln, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	if near, err = net.Dial("tcp4", ln.Addr().String()); err != nil {
		t.Fatal(err)
	}
	if far, err = ln.Accept(); err != nil {
		t.Fatal(err)
	}
	for _, c := range []net.Conn{near, far} {
		_ = c.SetDeadline(time.Now().Add(20 * time.Second))
		t.Cleanup(func() { _ = c.Close() })
	}
	return near, far
}

// allow takes u and p, and the address alone where byAddr.
func allow(u, p string, byAddr bool) func(string, string, bool) error {
	return func(gotU, gotP string, given bool) error {
		if given && gotU == u && gotP == p || !given && byAddr {
			return nil
		}
		return errors.New("somebody else")
	}
}

const (
	login   = "\x01\x02sb\x03tok"
	connect = "\x05\x01\x00\x03\x09good.test\x01\xbb"
)

func TestAccept(t *testing.T) {
	for _, tc := range []struct {
		name, in string
		byAddr   bool
		host     string
		port     uint16
		out      string // all that is answered
		code     string // of the Refusal, "auth" for ErrAuth, "cut" for another error
	}{
		{"a name", "\x05\x01\x02" + login + connect, false, "good.test", 443, "\x05\x02\x01\x00", ""},
		{"by address", "\x05\x01\x00" + connect, true, "good.test", 443, "\x05\x00", ""},
		{"both offered", "\x05\x02\x00\x02" + login + connect, true, "good.test", 443, "\x05\x02\x01\x00", ""},
		{"IPv4", "\x05\x01\x00\x05\x01\x00\x01\x0a\x00\x00\x01\x00\x50", true, "10.0.0.1", 80, "\x05\x00", ""},
		{"IPv6", "\x05\x01\x00\x05\x01\x00\x04\xfd" + strings.Repeat("\x00", 14) + "\x01\x00\x50", true, "fd00::1", 80, "\x05\x00", ""},
		{"B24 the zero address comes through as it is", "\x05\x01\x00\x05\x01\x00\x01\x00\x00\x00\x00\x00\x50", true, "0.0.0.0", 80, "\x05\x00", ""},
		{"B24 IPv4-mapped", "\x05\x01\x00\x05\x01\x00\x04" + strings.Repeat("\x00", 10) + "\xff\xff\x7f\x00\x00\x01\x00\x50", true, "::ffff:127.0.0.1", 80, "\x05\x00", ""},
		{"B24 a number for a name comes through as it is", "\x05\x01\x00\x05\x01\x00\x03\x0a2130706433\x00\x50", true, "2130706433", 80, "\x05\x00", ""},
		{"B24 255 methods", "\x05\xff" + strings.Repeat("\x80", 254) + "\x00" + connect, true, "good.test", 443, "\x05\x00", ""},
		{"B24 255 methods, none spoken here", "\x05\xff" + strings.Repeat("\x80", 255), true, "", 0, "\x05\xff", wire.CodeBadRequest},
		{"B24 no methods", "\x05\x00", true, "", 0, "\x05\xff", wire.CodeBadRequest},
		{"B24 no login from an address that is nobody's", "\x05\x01\x00" + connect, false, "", 0, "\x05\xff", "auth"},
		{"B24 wrong token", "\x05\x01\x02\x01\x02sb\x03bad" + connect, true, "", 0, "\x05\x02\x01\x01", "auth"},
		{"B24 empty login", "\x05\x01\x02\x01\x00\x00" + connect, true, "", 0, "\x05\x02\x01\x01", "auth"},
		{"B24 login of another version", "\x05\x01\x02\x05\x02sb\x03tok", true, "", 0, "\x05\x02\x01\x01", wire.CodeBadRequest},
		{"B24 login where none was asked for", "\x05\x01\x00" + login + connect, true, "", 0, "\x05\x00" + rep(1), wire.CodeBadRequest},
		{"B24 BIND", "\x05\x01\x00\x05\x02\x00\x03\x09good.test\x01\xbb", true, "", 0, "\x05\x00" + rep(7), wire.CodeProtocolDenied},
		{"B24 UDP ASSOCIATE", "\x05\x01\x00\x05\x03\x00\x01\x00\x00\x00\x00\x00\x00", true, "", 0, "\x05\x00" + rep(7), wire.CodeProtocolDenied},
		{"B24 no command", "\x05\x01\x00\x05\x00\x00\x01\x00\x00\x00\x00\x00\x00", true, "", 0, "\x05\x00" + rep(7), wire.CodeProtocolDenied},
		{"B24 another address type", "\x05\x01\x00\x05\x01\x00\x02\x00", true, "", 0, "\x05\x00" + rep(8), wire.CodeBadRequest},
		{"B24 empty name", "\x05\x01\x00\x05\x01\x00\x03\x00\x01\xbb", true, "", 0, "\x05\x00" + rep(1), wire.CodeBadRequest},
		{"B24 NUL in the name", "\x05\x01\x00\x05\x01\x00\x03\x0agood\x00.test\x01\xbb", true, "", 0, "\x05\x00" + rep(1), wire.CodeBadRequest},
		{"B24 a port in the name", "\x05\x01\x00\x05\x01\x00\x03\x0cgood.test:22\x01\xbb", true, "", 0, "\x05\x00" + rep(1), wire.CodeBadRequest},
		{"B24 brackets", "\x05\x01\x00\x05\x01\x00\x03\x05[::1]\x01\xbb", true, "", 0, "\x05\x00" + rep(1), wire.CodeBadRequest},
		{"B24 an address for a name", "\x05\x01\x00\x05\x01\x00\x03\x03::1\x01\xbb", true, "::1", 443, "\x05\x00", ""},
		{"B24 name of 255 bytes", "\x05\x01\x00\x05\x01\x00\x03\xff" + strings.Repeat("a", 255) + "\x01\xbb", true, strings.Repeat("a", 255), 443, "\x05\x00", ""},
		{"socks4", "\x04\x01\x00\x50\x7f\x00\x00\x01\x00", true, "", 0, "\x05\xff", wire.CodeBadRequest},
		{"cut in the greeting", "\x05\x02\x00", true, "", 0, "", "cut"},
		{"cut in the name", "\x05\x01\x00\x05\x01\x00\x03\x09good", true, "", 0, "\x05\x00", "cut"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			client, server := pair(t)
			ahead := "GET / HTTP/1.1\r\n"
			in := tc.in
			if tc.code == "" {
				in += ahead
			}
			if _, err := client.Write([]byte(in)); err != nil {
				t.Fatal(err)
			}
			_ = client.(*net.TCPConn).CloseWrite()
			req, reply, err := Accept(t.Context(), server, 5*time.Second, allow("sb", "tok", tc.byAddr))
			if got := errorWord(err); got != tc.code {
				t.Errorf("error %q (%v), want %q", got, err, tc.code)
			}
			if req != (Request{tc.host, tc.port}) {
				t.Errorf("request %+v", req)
			}
			want := tc.out
			if tc.code == "" {
				rest, err := io.ReadAll(server)
				if err != nil || string(rest) != ahead {
					t.Errorf("left in the connection: %q, %v", rest, err)
				}
				if err := reply(Succeeded); err != nil {
					t.Error(err)
				}
				want += rep(0)
			}
			_ = server.Close()
			if out, err := io.ReadAll(client); err != nil || string(out) != want {
				t.Errorf("answered %q, %v; want %q", out, err, want)
			}
		})
	}
}

func rep(code Reply) string { return string(replyBytes(code)) }

func errorWord(err error) string {
	var r *wire.Refusal
	switch {
	case err == nil:
		return ""
	case errors.As(err, &r):
		return r.Code
	case errors.Is(err, ErrAuth):
		return "auth"
	}
	return "cut"
}

// TestAccept_refusal_is_heard: bytes behind what is refused do not turn the answer into a
// reset.
func TestAccept_refusal_is_heard(t *testing.T) {
	client, server := pair(t)
	go func() { _, _ = client.Write([]byte("\x05\x01\x00" + connect + strings.Repeat("x", 60000))) }()
	_, reply, err := Accept(t.Context(), server, time.Second, allow("", "", true))
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- errors.Join(reply(NotAllowed), server.Close()) }()
	if out, err := io.ReadAll(client); err != nil || string(out) != "\x05\x00"+rep(2) {
		t.Errorf("%q, %v", out, err)
	}
	_ = client.Close()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestAccept_ends(t *testing.T) {
	t.Run("with its time", func(t *testing.T) {
		_, server := pair(t)
		start := time.Now()
		_, _, err := Accept(t.Context(), server, 50*time.Millisecond, allow("", "", true))
		if !isTimeout(err) || time.Since(start) > 5*time.Second {
			t.Errorf("%v after %v", err, time.Since(start))
		}
	})
	t.Run("with its context", func(t *testing.T) {
		_, server := pair(t)
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(20*time.Millisecond, cancel)
		if _, _, err := Accept(ctx, server, time.Minute, allow("", "", true)); !errors.Is(err, context.Canceled) {
			t.Errorf("%v", err)
		}
	})
}

func TestClient_hostile_servers(t *testing.T) {
	long := strings.Repeat("x", 256)
	for _, tc := range []struct {
		name, u, p, answer string
		code               string
	}{
		{"good", "u", "p", "\x05\x02\x01\x00", ""},
		{"no login there", "u", "p", "\x05\xff", wire.CodeUpstreamLogin},
		{"method that was not offered", "u", "p", "\x05\x00", wire.CodeUpstream},
		{"refused", "u", "p", "\x05\x02\x01\x01", wire.CodeUpstreamLogin},
		{"another version", "u", "p", "\x04\x02", wire.CodeUpstream},
		{"another version of login", "u", "p", "\x05\x02\x05\x00", wire.CodeUpstream},
		{"cut", "u", "p", "\x05\x02\x01", wire.CodeUpstream},
		{"http", "u", "p", "HTTP/1.1 400 Bad Request\r\n\r\n", wire.CodeUpstream},
		{"user of 256 bytes", long, "p", "", wire.CodeUpstreamLogin},
		{"password of 256 bytes", "u", long, "", wire.CodeUpstreamLogin},
		{"no user", "", "p", "", wire.CodeUpstreamLogin},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c, far := pair(t)
			if _, err := far.Write([]byte(tc.answer)); err != nil {
				t.Fatal(err)
			}
			_ = far.(*net.TCPConn).CloseWrite()
			if got := errorWord(Login(c, tc.u, tc.p)); got != tc.code {
				t.Errorf("%q, want %q", got, tc.code)
			}
		})
	}
}

func TestConnect(t *testing.T) {
	for _, tc := range []struct {
		name, host, sent, answer, rest string
		ok                             bool
	}{
		{"name", "good.test", connect, rep(0) + "x", "x", true},
		{"address", "10.0.0.1", "\x05\x01\x00\x01\x0a\x00\x00\x01\x01\xbb", "\x05\x00\x00\x03\x01a\x00\x00", "", true},
		{"v6", "::1", "\x05\x01\x00\x04" + strings.Repeat("\x00", 15) + "\x01\x01\xbb", "\x05\x00\x00\x04" + strings.Repeat("\x00", 18), "", true},
		{"refused", "good.test", connect, rep(5), "", false},
		{"odd address", "good.test", connect, "\x05\x00\x00\x09\x00", "", false},
		{"cut", "good.test", connect, "\x05\x00\x00\x01\x00", "", false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c, far := pair(t)
			_, _ = far.Write([]byte(tc.answer))
			_ = far.(*net.TCPConn).CloseWrite()
			if err := Connect(c, tc.host, 443); (err == nil) != tc.ok {
				t.Errorf("%v", err)
			}
			if tc.ok {
				if rest, err := io.ReadAll(c); err != nil || string(rest) != tc.rest {
					t.Errorf("left: %q, %v", rest, err)
				}
			}
			_ = c.Close()
			if sent, err := io.ReadAll(far); tc.ok && (err != nil || string(sent) != tc.sent) {
				t.Errorf("sent %q, %v", sent, err)
			}
		})
	}
	if err := Connect(nil, strings.Repeat("a", 256), 1); errorWord(err) != wire.CodeBadRequest {
		t.Error(err)
	}
}

// tape is a connection whose other side has said all that it will.
type tape struct {
	net.Conn
	in  *bytes.Reader
	out bytes.Buffer
}

func (c *tape) Read(p []byte) (int, error)  { return c.in.Read(p) }
func (c *tape) Write(p []byte) (int, error) { return c.out.Write(p) }

// FuzzAccept: nobody comes in who was not asked, no byte behind the request is read, and
// what comes out is an address or a name without control characters.
func FuzzAccept(f *testing.F) {
	f.Add([]byte("\x05\x01\x02"+login+connect+"rest"), true)
	f.Add([]byte("\x05\x01\x00\x05\x01\x00\x04"+strings.Repeat("\x00", 18)), true)
	f.Add([]byte("\x05\x02\x00\x02\x01\x00\x00"), false)
	f.Fuzz(func(t *testing.T, b []byte, byAddr bool) {
		asked := 0
		c := &tape{in: bytes.NewReader(b)}
		req, answer, err := accept(c, func(u, p string, given bool) error {
			asked++
			return allow("sb", "tok", byAddr)(u, p, given)
		})
		if asked > 1 || err == nil && asked != 1 {
			t.Fatalf("asked %d times, %v", asked, err)
		}
		if err != nil {
			if len(answer) != 0 && len(answer) != 2 && len(answer) != 10 || req != (Request{}) {
				t.Fatalf("answer %q, request %+v", answer, req)
			}
			return
		}
		if n := len(req.Host); n == 0 || n > 255 || strings.ContainsAny(req.Host, "\x00\r\n ") {
			t.Fatalf("host %q", req.Host)
		}
		used := b[:len(b)-c.in.Len()]
		if req2, _, err := accept(&tape{in: bytes.NewReader(used)}, allow("sb", "tok", byAddr)); err != nil || req2 != req {
			t.Fatalf("the bytes used alone give %+v, %v", req2, err)
		}
		if byte(req.Port) != used[len(used)-1] {
			t.Fatal("read behind the port")
		}
	})
}
