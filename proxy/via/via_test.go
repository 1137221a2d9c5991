package via

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/egressd/egressd/inject"
	"github.com/egressd/egressd/internal/secret"
	"github.com/egressd/egressd/internal/testbed"
	"github.com/egressd/egressd/policy"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func login(user, password string) *inject.Login {
	return &inject.Login{Username: user, Password: secret.New(password)}
}

// turn is what a proxy expects and answers; the empty one is that it leaves.
type turn struct{ want, say string }

// talk connects through a proxy that does turns.

func talk(t *testing.T, typ policy.ProxyType, target string, l *inject.Login, turns ...turn) (net.Conn, error) {
	t.Helper()
	ours, theirs := net.Pipe()
	done := make(chan struct{})
	go func() {
		defer close(done)
		for _, tn := range turns {
			got := make([]byte, len(tn.want))
			if _, err := io.ReadFull(theirs, got); err != nil || string(got) != tn.want {
				t.Errorf("the proxy was sent %q, %v; want %q", got, err, tn.want)
				break
			}
			if _, err := io.WriteString(theirs, tn.say); err != nil {
				break // refused on the way
			}
			if tn == (turn{}) {
				_ = theirs.Close()
			}
		}
	}()
	t.Cleanup(func() { _ = ours.Close(); <-done; _ = theirs.Close() })
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	return ours, Connect(ctx, ours, typ, netip.MustParseAddrPort(target), l)
}

const (
	ok4     = "\x05\x00\x00\x01\x00\x00\x00\x00\x00\x00"
	greet   = "\x05\x01\x00"
	greet2  = "\x05\x01\x02"
	ask4    = "\x05\x01\x00\x01\xc0\x00\x02\x07\x01\xbb" // 192.0.2.7:443
	target4 = "192.0.2.7:443"
	creds   = "\x01\x04user\x06secret"
)

func TestSOCKS(t *testing.T) {
	long := strings.Repeat("x", 255)
	for _, tc := range []struct {
		name   string
		target string
		login  *inject.Login
		turns  []turn
		want   error
	}{
		{"IPv4", target4, nil, []turn{{greet, "\x05\x00"}, {ask4, ok4}}, nil},
		{"IPv6", "[2001:db8::1]:22", nil, []turn{{greet, "\x05\x00"}, {"\x05\x01\x00\x04\x20\x01\x0d\xb8" + strings.Repeat("\x00", 11) + "\x01\x00\x16", ok4}}, nil},
		{"IPv4 in IPv6", "[::ffff:192.0.2.7]:443", nil, []turn{{greet, "\x05\x00"}, {ask4, ok4}}, nil},
		{"login", target4, login("user", "secret"), []turn{{greet2, "\x05\x02"}, {creds, "\x01\x00"}, {ask4, ok4}}, nil},
		{"bound to IPv6", target4, nil, []turn{{greet, "\x05\x00"}, {ask4, "\x05\x00\x00\x04" + strings.Repeat("\x00", 18)}}, nil},
		{"bound to a name", target4, nil, []turn{{greet, "\x05\x00"}, {ask4, "\x05\x00\x00\x03\xff" + long + "\x00\x00"}}, nil},
		{"bound to an empty name", target4, nil, []turn{{greet, "\x05\x00"}, {ask4, "\x05\x00\x00\x03\x00\x00\x00"}}, nil},

		{"wants a login", target4, nil, []turn{{greet, "\x05\xff"}}, ErrLogin},
		{"takes no login", target4, login("user", "secret"), []turn{{greet2, "\x05\xff"}}, ErrLogin},
		{"refuses the login", target4, login("user", "secret"), []turn{{greet2, "\x05\x02"}, {creds, "\x01\x01"}}, ErrLogin},
		{"no login where one was offered", target4, login("user", "secret"), []turn{{greet2, "\x05\x00"}}, ErrProtocol},
		{"a login that was not offered", target4, nil, []turn{{greet, "\x05\x02"}}, ErrProtocol},
		{"user name too long", target4, login(long+"x", "secret"), nil, ErrLogin},
		{"password too long", target4, login("user", long+"x"), nil, ErrLogin},
		{"no password", target4, login("user", ""), nil, ErrLogin},
		{"version 4", target4, nil, []turn{{greet, "\x04\x00"}}, ErrProtocol},
		{"http", target4, nil, []turn{{greet, "HT"}}, ErrProtocol},
		{"login version 5", target4, login("user", "secret"), []turn{{greet2, "\x05\x02"}, {creds, "\x05\x00"}}, ErrProtocol},
		{"general failure", target4, nil, []turn{{greet, "\x05\x00"}, {ask4, "\x05\x01\x00\x01"}}, ErrUnreachable},
		{"not allowed", target4, nil, []turn{{greet, "\x05\x00"}, {ask4, "\x05\x02\x00\x01"}}, ErrForbidden},
		{"refused", target4, nil, []turn{{greet, "\x05\x00"}, {ask4, "\x05\x05\x00\x01"}}, ErrUnreachable},
		{"command unknown", target4, nil, []turn{{greet, "\x05\x00"}, {ask4, "\x05\x07\x00\x01"}}, ErrProtocol},
		{"reply 255", target4, nil, []turn{{greet, "\x05\x00"}, {ask4, "\x05\xff\x00\x01"}}, ErrProtocol},
		{"address type 2", target4, nil, []turn{{greet, "\x05\x00"}, {ask4, "\x05\x00\x00\x02"}}, ErrProtocol},
		{"reserved byte", target4, nil, []turn{{greet, "\x05\x00"}, {ask4, "\x05\x00\x01\x01\x00\x00\x00\x00\x00\x00"}}, ErrProtocol},
		{"cut short", target4, nil, []turn{{greet, "\x05\x00"}, {ask4, ok4[:9]}, {}}, io.ErrUnexpectedEOF},
		{"silent end", target4, nil, []turn{{greet, ""}, {}}, io.EOF},
		{"port 0", "192.0.2.7:0", nil, nil, ErrTarget},
		{"zone", "[fe80::1%eth0]:80", nil, nil, ErrTarget},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if _, err := talk(t, policy.ProxySOCKS5, tc.target, tc.login, tc.turns...); !errors.Is(err, tc.want) {
				t.Errorf("%v, want %v", err, tc.want)
			}
		})
	}
}

func TestHTTPConnect(t *testing.T) {
	const ask = "CONNECT 192.0.2.7:443 HTTP/1.1\r\nHost: 192.0.2.7:443\r\n"
	const ok = "HTTP/1.1 200 Connection established\r\n\r\n"
	withLogin := ask + "Proxy-Authorization: Basic " + base64.StdEncoding.EncodeToString([]byte("user:sec:ret")) + "\r\n\r\n"
	for _, tc := range []struct {
		name  string
		login *inject.Login
		want  string
		say   string
		err   error
	}{
		{"plain", nil, ask + "\r\n", ok, nil},
		{"HTTP/1.0", nil, ask + "\r\n", "HTTP/1.0 200 OK\r\nVia: x\r\n\r\n", nil},
		{"no reason", nil, ask + "\r\n", "HTTP/1.1 204\r\n\r\n", nil},
		{"a length that does not count", nil, ask + "\r\n", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n", nil},
		{"login", login("user", "sec:ret"), withLogin, ok, nil},
		{"interim", nil, ask + "\r\n", "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early\r\nLink: x\r\n\r\n" + ok, nil},

		{"colon in the user name", login("us:er", "x"), "", "", ErrLogin},
		{"407", nil, ask + "\r\n", "HTTP/1.1 407 Proxy Authentication Required\r\nProxy-Authenticate: Basic realm=\"x\"\r\n\r\n", ErrLogin},
		{"403", nil, ask + "\r\n", "HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n", ErrForbidden},
		{"405", nil, ask + "\r\n", "HTTP/1.1 405 Method Not Allowed\r\n\r\n", ErrForbidden},
		{"502", nil, ask + "\r\n", "HTTP/1.1 502 Bad Gateway\r\n\r\n", ErrUnreachable},
		{"503", nil, ask + "\r\n", "HTTP/1.1 503\r\n\r\n", ErrUnreachable},
		{"302", nil, ask + "\r\n", "HTTP/1.1 302 Found\r\nLocation: http://evil.test/\r\n\r\n", ErrProtocol},
		{"101", nil, ask + "\r\n", "HTTP/1.1 101 Switching\r\n\r\n", ErrProtocol},
		{"interim without end", nil, ask + "\r\n", strings.Repeat("HTTP/1.1 100 x\r\n\r\n", 100), ErrProtocol},
		{"status 099", nil, ask + "\r\n", "HTTP/1.1 099 x\r\n\r\n", ErrProtocol},
		{"status +20", nil, ask + "\r\n", "HTTP/1.1 +20 x\r\n\r\n", ErrProtocol},
		{"status 2000", nil, ask + "\r\n", "HTTP/1.1 2000 x\r\n\r\n", ErrProtocol},
		{"HTTP/2", nil, ask + "\r\n", "HTTP/2 200\r\n\r\n", ErrProtocol},
		{"ssh", nil, ask + "\r\n", "SSH-2.0-x\r\n\r\n", ErrProtocol},
		{"bare LF", nil, ask + "\r\n", "HTTP/1.1 200 OK\n\n", ErrProtocol},
		{"bare LF in a field", nil, ask + "\r\n", "HTTP/1.1 200 OK\r\nA: b\nC: d\r\n\r\n", ErrProtocol},
		{"bare CR", nil, ask + "\r\n", "HTTP/1.1 200 OK\rX\r\n\r\n", ErrProtocol},
		{"CR CR LF", nil, ask + "\r\n", "HTTP/1.1 200 OK\r\r\n\r\n", ErrProtocol},
		{"folded field", nil, ask + "\r\n", "HTTP/1.1 200 OK\r\nA: b\r\n c\r\n\r\n", ErrProtocol},
		{"field without a name", nil, ask + "\r\n", "HTTP/1.1 200 OK\r\n: b\r\n\r\n", ErrProtocol},
		{"NUL", nil, ask + "\r\n", "HTTP/1.1 200 OK\r\nA: \x00\r\n\r\n", ErrProtocol},
		{"endless head", nil, ask + "\r\n", "HTTP/1.1 200 OK\r\nA: " + strings.Repeat("x", maxHead) + "\r\n\r\n", ErrProtocol},
		{"cut short", nil, ask + "\r\n", "HTTP/1.1 200 OK\r\n", io.ErrUnexpectedEOF},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var turns []turn
			if tc.want != "" {
				turns = []turn{{tc.want, tc.say}}
			}
			if tc.name == "cut short" {
				turns = append(turns, turn{})
			}
			_, err := talk(t, policy.ProxyHTTP, target4, tc.login, turns...)
			if !errors.Is(err, tc.err) {
				t.Errorf("%v, want %v", err, tc.err)
			}
		})
	}
}

// TestNothingBehindIsRead: a destination that speaks first is heard from its first byte.
func TestNothingBehindIsRead(t *testing.T) {
	const behind = "SSH-2.0-first\r\n"
	for _, tc := range []struct {
		typ   policy.ProxyType
		turns []turn
	}{
		{policy.ProxySOCKS5, []turn{{greet, "\x05\x00"}, {ask4, ok4 + behind}}},
		{policy.ProxyHTTP, []turn{{"CONNECT 192.0.2.7:443 HTTP/1.1\r\nHost: 192.0.2.7:443\r\n\r\n", "HTTP/1.1 200 OK\r\nA: b\r\n\r\n" + behind}}},
	} {
		c, err := talk(t, tc.typ, target4, nil, tc.turns...)
		if err != nil {
			t.Fatal(err)
		}
		got := make([]byte, len(behind))
		if _, err := io.ReadFull(c, got); err != nil || string(got) != behind {
			t.Errorf("%s: %q, %v", tc.typ, got, err)
		}
	}
}

func TestTypeIsKnown(t *testing.T) {
	if _, err := talk(t, "socks4", target4, nil); !errors.Is(err, ErrProtocol) {
		t.Error(err)
	}
	a, _ := net.Pipe()
	if err := Connect(t.Context(), a, policy.ProxySOCKS5, netip.AddrPort{}, nil); !errors.Is(err, ErrTarget) {
		t.Error(err)
	}
	_ = a.Close()
}

// TestErrorsShowNoSecret: neither what was sent nor what a proxy says of it.
func TestErrorsShowNoSecret(t *testing.T) {
	const password = "sec-ret-0123456789"
	pair := base64.StdEncoding.EncodeToString([]byte("user:" + password))
	_, err := talk(t, policy.ProxyHTTP, target4, login("user", password),
		turn{"CONNECT 192.0.2.7:443 HTTP/1.1\r\nHost: 192.0.2.7:443\r\nProxy-Authorization: Basic " + pair + "\r\n\r\n",
			"HTTP/1.1 407 " + pair + "\r\nX: " + password + "\r\n\r\n"})
	if !errors.Is(err, ErrLogin) {
		t.Fatal(err)
	}
	testbed.NoLeak(t, "the error", []byte(err.Error()), password)
}

func TestDeadlines(t *testing.T) {
	for _, typ := range []policy.ProxyType{policy.ProxySOCKS5, policy.ProxyHTTP} {
		t.Run(string(typ), func(t *testing.T) {
			for name, prepare := range map[string]func(context.Context) (context.Context, context.CancelFunc, time.Duration){
				"deadline": func(ctx context.Context) (context.Context, context.CancelFunc, time.Duration) {
					c, f := context.WithTimeout(ctx, 3*time.Second)
					return c, f, 3 * time.Second
				},
				"cancelled": func(ctx context.Context) (context.Context, context.CancelFunc, time.Duration) {
					c, f := context.WithCancel(ctx)
					time.AfterFunc(2*time.Second, f)
					return c, f, 2 * time.Second
				},
				"none": func(ctx context.Context) (context.Context, context.CancelFunc, time.Duration) {
					return ctx, func() {}, timeout
				},
			} {
				t.Run(name, func(t *testing.T) {
					synctest.Test(t, func(t *testing.T) {
						a, b := net.Pipe()
						go func() { _, _ = io.Copy(io.Discard, b) }()
						ctx, cancel, want := prepare(t.Context())
						start := time.Now()
						err := Connect(ctx, a, typ, netip.MustParseAddrPort(target4), nil)
						if took := time.Since(start); err == nil || took != want {
							t.Errorf("%v after %v, want %v", err, took, want)
						}
						cancel()
						_, _ = a.Close(), b.Close()
					})
				})
			}
		})
	}
	t.Run("lifted", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			a, b := net.Pipe()
			go func() {
				_, _ = io.ReadFull(b, make([]byte, 3))
				_, _ = io.WriteString(b, "\x05\x00")
				_, _ = io.ReadFull(b, make([]byte, 10))
				_, _ = io.WriteString(b, ok4)
				time.Sleep(time.Hour)
				_, _ = io.WriteString(b, "late")
				_ = b.Close()
			}()
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			if err := Connect(ctx, a, policy.ProxySOCKS5, netip.MustParseAddrPort(target4), nil); err != nil {
				t.Fatal(err)
			}
			cancel()
			if got, err := io.ReadAll(a); string(got) != "late" || err != nil {
				t.Errorf("%q: %v", got, err)
			}
			_ = a.Close()
		})
	})
}

// stream is a connection that has said everything beforehand.
type stream struct {
	*bytes.Reader
	net.Conn
}

func (s stream) Read(p []byte) (int, error) { return s.Reader.Read(p) }
func (stream) Write(p []byte) (int, error)  { return len(p), nil }
func (stream) SetDeadline(time.Time) error  { return nil }

// FuzzAnswers: a proxy's answer is taken only where it says yes in full, and nothing behind
// it is read.
func FuzzAnswers(f *testing.F) {
	f.Add(true, false, []byte("\x05\x00"+ok4+"x"))
	f.Add(true, true, []byte("\x05\x02\x01\x00"+ok4))
	f.Add(false, false, []byte("HTTP/1.1 200 OK\r\nA: b\r\n\r\nx"))
	f.Add(false, true, []byte("HTTP/1.1 100 \r\n\r\nHTTP/1.0 407 x\r\n\r\n"))
	f.Fuzz(func(t *testing.T, socks, withLogin bool, said []byte) {
		typ, l := policy.ProxyHTTP, (*inject.Login)(nil)
		if socks {
			typ = policy.ProxySOCKS5
		}
		if withLogin {
			l = login("user", "secret")
		}
		r := bytes.NewReader(said)
		if err := Connect(context.Background(), stream{Reader: r}, typ, netip.MustParseAddrPort(target4), l); err != nil {
			return
		}
		read := said[:len(said)-r.Len()]
		if !socks {
			if !bytes.HasSuffix(read, []byte(headEnd)) || !bytes.Contains(read, []byte(" 2")) {
				t.Errorf("%q is a yes", read)
			}
			return
		}
		start := []byte("\x05\x00\x05\x00\x00")
		if withLogin {
			start = []byte("\x05\x02\x01\x00\x05\x00\x00")
		}
		rest, ok := bytes.CutPrefix(read, start)
		want := map[byte]int{1: 7, 4: 19}[rest[0]]
		if rest[0] == 3 {
			want = 4 + int(rest[1])
		}
		if !ok || len(rest) != want {
			t.Errorf("%q is a yes", read)
		}
	})
}
