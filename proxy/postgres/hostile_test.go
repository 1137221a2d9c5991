package postgres

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/xdg-go/scram"

	"github.com/egressd/egressd/internal/testbed"
	"github.com/egressd/egressd/proxy/wire"
)

// fake is a server that does what a real one would not.
type fake struct {
	addr string
	ca   *testbed.CA
	leaf tls.Certificate
	mu   sync.Mutex
	got  bytes.Buffer // what egressd sent after the start of TLS
}

// newFake starts a server that hands each connection to serve.
func newFake(t *testing.T, serve func(f *fake, c net.Conn)) *fake {
	t.Helper()
	f := &fake{ca: testbed.NewCA(t)}
	f.leaf = f.ca.Leaf(t, serverName)
	ln, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	f.addr = ln.Addr().String()
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer c.Close()
				_ = c.SetDeadline(time.Now().Add(10 * time.Second))
				serve(f, c)
			})
		}
	})
	t.Cleanup(func() { _ = ln.Close(); wg.Wait() })
	return f
}

func (f *fake) Write(p []byte) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.got.Write(p)
}

func (f *fake) received() []byte {
	f.mu.Lock()
	defer f.mu.Unlock()
	return bytes.Clone(f.got.Bytes())
}

// peer is a connection whose reads are recorded.
type peer struct {
	net.Conn
	f *fake
}

func (p peer) Read(b []byte) (int, error) {
	n, err := p.Conn.Read(b)
	_, _ = p.f.Write(b[:n])
	return n, err
}

func (p peer) send(kind uint32, data string) {
	body := binary.BigEndian.AppendUint32(nil, kind)
	_, _ = p.Write(appendMessage(nil, typeAuthentication, append(body, data...)))
}

// tlsThen answers SSLRequest, puts TLS over the connection, reads the start and goes on.
func tlsThen(next func(p peer)) func(*fake, net.Conn) {
	return func(f *fake, c net.Conn) {
		if _, _, err := readPacket(c); err != nil {
			return
		}
		_, _ = c.Write([]byte{'S'})
		directTLS(next)(f, c)
	}
}

func directTLS(next func(p peer)) func(*fake, net.Conn) {
	return func(f *fake, c net.Conn) {
		p := peer{tls.Server(c, &tls.Config{Certificates: []tls.Certificate{f.leaf}}), f}
		if _, _, err := readPacket(p); err == nil {
			next(p)
		}
		_, _ = io.Copy(io.Discard, p)
	}
}

func errorResponse(state, text string) []byte {
	return appendMessage(nil, typeError, []byte("SFATAL\x00VFATAL\x00C"+state+"\x00M"+text+"\x00\x00"))
}

func TestHostileServers(t *testing.T) {
	password := testbed.NewCanary()
	scramBegun := func(p peer, first func(clientNonce string) string) bool {
		p.send(authSASL, mechPlain+"\x00\x00")
		_, body, err := readMessage(p, maxLogin)
		if err != nil {
			return false
		}
		_, nonce, _ := strings.Cut(string(body), ",r=")
		p.send(authSASLContinue, first(nonce))
		_, _, err = readMessage(p, maxLogin)
		return err == nil
	}
	good := func(nonce string) string { return "r=" + nonce + "more,s=c2FsdHNhbHRzYWx0,i=4096" }
	for _, tc := range []struct {
		name  string
		serve func(p peer)
		code  string
		state string
	}{
		{"ends SCRAM without proof", func(p peer) { scramBegun(p, good); p.send(authOK, "") }, wire.CodeUpstream, stateConnection},
		{"proves nothing", func(p peer) {
			scramBegun(p, good)
			p.send(authSASLFinal, "v=AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=")
			p.send(authOK, "")
		}, wire.CodeUpstreamLogin, stateRefused},
		{"another nonce", func(p peer) { scramBegun(p, func(string) string { return "r=mine,s=c2FsdA==,i=4096" }) }, wire.CodeUpstream, stateConnection},
		{"too much to compute", func(p peer) {
			scramBegun(p, func(n string) string { return "r=" + n + "more,s=c2FsdA==,i=2000000000" })
		}, wire.CodeUpstream, stateConnection},
		{"more than an int to compute", func(p peer) {
			scramBegun(p, func(n string) string { return "r=" + n + "more,s=c2FsdA==,i=99999999999999999999" })
		}, wire.CodeUpstream, stateConnection},
		{"no mechanism", func(p peer) { p.send(authSASL, "OAUTHBEARER\x00\x00") }, wire.CodeUpstreamLogin, stateRefused},
		{"mechanisms without end", func(p peer) { p.send(authSASL, "SCRAM-SHA-256") }, wire.CodeUpstream, stateConnection},
		{"continues what was not begun", func(p peer) { p.send(authSASLContinue, "r=x") }, wire.CodeUpstream, stateConnection},
		{"second method", func(p peer) { scramBegun(p, good); p.send(authClear, "") }, wire.CodeUpstream, stateConnection},
		{"md5 with a long salt", func(p peer) { p.send(authMD5, "12345") }, wire.CodeUpstream, stateConnection},
		{"GSSAPI", func(p peer) { p.send(7, "") }, wire.CodeUpstreamLogin, stateRefused},
		{"short authentication", func(p peer) { _, _ = p.Write([]byte{'R', 0, 0, 0, 5, 0}) }, wire.CodeUpstream, stateConnection},
		{"huge message", func(p peer) { _, _ = p.Write([]byte{'R', 0x7f, 0, 0, 0}) }, wire.CodeUpstream, stateConnection},
		{"message of three bytes", func(p peer) { _, _ = p.Write([]byte{'R', 0, 0, 0, 3}) }, wire.CodeUpstream, stateConnection},
		{"rows before the login", func(p peer) { _, _ = p.Write([]byte{'D', 0, 0, 0, 6, 0, 0}) }, wire.CodeUpstream, stateConnection},
		{"notices without end", func(p peer) {
			for range 100 {
				_, _ = p.Write(appendMessage(nil, typeNotice, []byte("Mhello\x00\x00")))
			}
		}, wire.CodeUpstream, stateConnection},
		{"starting", func(p peer) { _, _ = p.Write(errorResponse("57P03", "the database system is starting up")) }, wire.CodeUpstream, "57P03"},
		{"full", func(p peer) { _, _ = p.Write(errorResponse("53300", "sorry, too many clients")) }, wire.CodeUpstream, "53300"},
		{"a state that is none", func(p peer) { _, _ = p.Write(errorResponse("5\x1b[2J", "x")) }, wire.CodeUpstream, stateConnection},
		{"closes", func(p peer) { _ = p.Close() }, wire.CodeUpstream, stateConnection},
		{"tells the password", func(p peer) { _, _ = p.Write(errorResponse("28P01", "it is not "+password)) }, wire.CodeUpstreamLogin, stateRefused},
	} {
		t.Run(tc.name, func(t *testing.T) {
			f := newFake(t, tlsThen(tc.serve))
			d := newDoor(t, f.addr, "app", password, func(d *door) { d.trust = f.ca })
			_, err := pgx.ConnectConfig(t.Context(), d.config(t, "agent", "", false))
			wantState(t, err, tc.state, tc.code)
			got := d.wait(t, 1)
			codeIs(t, got, tc.code)
			testbed.NoLeak(t, "the sandbox's error", []byte(err.Error()), password)
			testbed.NoLeak(t, "the operator's error", []byte(got.Error()), password)
			testbed.NoLeak(t, "what the server was sent", f.received(), password)
		})
	}
}

// TestBeforeTLS: what a server says in clear is not believed.
func TestBeforeTLS(t *testing.T) {
	for _, tc := range []struct {
		name   string
		answer string
		code   string
	}{
		{"error", string(errorResponse("28P01", "told in clear")), wire.CodeUpstream},
		{"another byte", "X", wire.CodeUpstream},
		{"no", "N", wire.CodePlaintext},
		// Behind the S stands what a man in the middle would have taken for the server's
		// first words after TLS (CVE-2021-23222).
		{"words behind the S", "S" + string([]byte{'R', 0, 0, 0, 8, 0, 0, 0, 0}), wire.CodeUpstreamTLS},
		{"silence", "", wire.CodeUpstream},
	} {
		t.Run(tc.name, func(t *testing.T) {
			f := newFake(t, func(f *fake, c net.Conn) {
				_, _, _ = readPacket(c)
				_, _ = io.WriteString(c, tc.answer)
				_, _ = io.Copy(f, c)
			})
			d := newDoor(t, f.addr, "app", "secret", func(d *door) {
				d.trust = f.ca
				if tc.answer == "" {
					d.session.HandshakeTimeout = 300 * time.Millisecond
				}
			})
			_, err := pgx.ConnectConfig(t.Context(), d.config(t, "agent", "", false))
			var pe *pgconn.PgError
			if !errors.As(err, &pe) || strings.Contains(err.Error(), "told in clear") {
				t.Errorf("client got %v", err)
			}
			if codeIs(t, d.wait(t, 1), tc.code); d.asked.Load() != 0 {
				t.Error("the credential was asked for")
			}
		})
	}
}

// between terminates TLS between egressd and a real server with a certificate that egressd
// trusts, and may change the server's first message.
func between(t *testing.T, change func([]byte) []byte) (addr string) {
	real.start(t)
	leaf := real.ca.Leaf(t, serverName)
	f := newFake(t, func(_ *fake, c net.Conn) {
		_, request, err := readPacket(c)
		if err != nil {
			return
		}
		_, _ = c.Write([]byte{'S'})
		down := tls.Server(c, &tls.Config{Certificates: []tls.Certificate{leaf}})
		up, err := net.Dial("tcp4", real.tls.addr)
		if err != nil {
			return
		}
		defer up.Close()
		_, _ = up.Write(request)
		_, _ = io.ReadFull(up, make([]byte, 1))
		upTLS := tls.Client(up, &tls.Config{RootCAs: real.ca.Pool(), ServerName: serverName})
		_, start, err := readPacket(down)
		if err != nil {
			return
		}
		_, _ = upTLS.Write(start)
		typ, body, err := readMessage(upTLS, maxLogin)
		if err != nil {
			return
		}
		_, _ = down.Write(appendMessage(nil, typ, change(body)))
		_ = pipe(down, upTLS)
	})
	return f.addr
}

// TestChannelBinding: a login is good for one TLS connection only, also for somebody who
// has a certificate for the name.
func TestChannelBinding(t *testing.T) {
	same := func(b []byte) []byte { return b }
	offer := []byte(mechBound + "\x00")
	for _, tc := range []struct {
		name   string
		role   string
		change func([]byte) []byte
		ok     bool
	}{
		{"bound", "by_scram", same, false},
		{"offer taken out", "by_scram", func(b []byte) []byte {
			if !bytes.Contains(b, offer) {
				t.Error("the server offers no channel binding")
			}
			return bytes.Replace(b, offer, nil, 1)
		}, false},
		{"md5 cannot", "by_md5", same, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			d := newDoor(t, between(t, tc.change), tc.role, real.tls.password)
			c, err := pgx.ConnectConfig(t.Context(), d.config(t, "agent", "", true))
			if tc.ok {
				if err != nil {
					t.Fatalf("%v; %v", err, d.wait(t, 1))
				}
				_ = c.Close(context.Background())
				return
			}
			if err == nil {
				t.Fatal("logged in through somebody else's TLS")
			}
			codeIs(t, d.wait(t, 1), wire.CodeUpstreamLogin)
		})
	}
	t.Run("without a TLS state", func(t *testing.T) {
		client, err := scram.SHA256.NewClient("", "x", "")
		if err != nil {
			t.Fatal(err)
		}
		for _, a := range []*auth{{encrypted: true}, {encrypted: false, state: &tls.ConnectionState{}}} {
			mech, conv := choose(a, client, []string{mechBound, mechPlain})
			if first, err := conv.Step(""); mech != mechPlain || err != nil || !strings.HasPrefix(first, "n,,") {
				t.Errorf("%s %s: %v", mech, first, err)
			}
		}
	})
}

// TestInsideTLS: the connection is TLS from its first byte on both sides.
func TestInsideTLS(t *testing.T) {
	password := testbed.NewCanary()
	f := newFake(t, directTLS(func(p peer) {
		p.send(authClear, "")
		_, _, _ = readMessage(p, maxLogin)
		p.send(authOK, "")
		_, _ = p.Write([]byte{'Z', 0, 0, 0, 5, 'I'})
	}))
	d := newDoor(t, f.addr, "app", password, func(d *door) { d.trust, d.inTLS = f.ca, true })
	begin := func() net.Conn {
		return tls.Client(d.raw(t), &tls.Config{RootCAs: d.ca.Pool(), ServerName: serverName})
	}
	c := begin()
	_, _ = c.Write((&startup{version: 3<<16 | 2, user: "agent", params: []param{{"options", "-c x=y"}}}).as("agent"))
	want := "R\x00\x00\x00\x08\x00\x00\x00\x00Z\x00\x00\x00\x05I"
	got := make([]byte, len(want))
	if _, err := io.ReadFull(c, got); err != nil || string(got) != want {
		t.Errorf("%q: %v", got, err)
	}
	if r := f.received(); !bytes.Contains(r, []byte("user\x00app\x00database\x00agent\x00options\x00-c x=y\x00\x00p")) || !bytes.Contains(r, []byte(password+"\x00")) {
		t.Errorf("the server got %q", r)
	}
	second := begin()
	_, _ = second.Write(request(codeTLS))
	wantError(t, second, stateProtocol)
}

func request(code uint32) []byte {
	return binary.BigEndian.AppendUint32([]byte{0, 0, 0, 8}, code)
}

// wantError reads an ErrorResponse and then the end.
func wantError(t *testing.T, c net.Conn, state string) {
	t.Helper()
	typ, body, err := readMessage(c, maxLogin)
	if err != nil || typ != typeError || !bytes.Contains(body, []byte("\x00C"+state+"\x00")) {
		t.Errorf("got %q %q, %v; want an error with %s", typ, body, err, state)
	}
	if rest, err := io.ReadAll(c); len(rest) != 0 {
		t.Errorf("behind the error: %q, %v", rest, err)
	}
}

// TestNegotiatedVersion: what the server says about the protocol reaches the sandbox, in
// front of everything else.
func TestNegotiatedVersion(t *testing.T) {
	said := appendMessage(nil, typeNegotiate, []byte{0, 0, 0, 0, 0, 0, 0, 1, '_', 'p', 'q', '_', '.', 'x', 0})
	f := newFake(t, tlsThen(func(p peer) {
		_, _ = p.Write(said)
		p.send(authOK, "")
	}))
	d := newDoor(t, f.addr, "app", "secret", func(d *door) { d.trust = f.ca })
	c := d.raw(t)
	_, _ = c.Write((&startup{version: 3<<16 | 9999, user: "agent", params: []param{{"_pq_.x", "1"}}}).as("agent"))
	want := string(said) + "R\x00\x00\x00\x08\x00\x00\x00\x00"
	got := make([]byte, len(want))
	if _, err := io.ReadFull(c, got); err != nil || string(got) != want {
		t.Errorf("%q: %v", got, err)
	}
}

func TestHostileSandboxes(t *testing.T) {
	start := (&startup{version: 3 << 16, user: "agent"}).as("agent")
	with := func(body string) string {
		b := binary.BigEndian.AppendUint32(nil, uint32(8+len(body)))
		return string(binary.BigEndian.AppendUint32(b, 3<<16)) + body
	}
	for _, tc := range []struct {
		name, sent string
		require    bool
	}{
		{name: "http", sent: "GET / HTTP/1.1\r\n\r\n"},
		{name: "length 0", sent: "\x00\x00\x00\x00\x00\x03\x00\x00"},
		{name: "length 7", sent: "\x00\x00\x00\x07\x00\x03\x00"},
		{name: "length 10001", sent: "\x00\x00\x27\x11\x00\x03\x00\x00"},
		{name: "negative length", sent: "\xff\xff\xff\xff\x00\x03\x00\x00"},
		{name: "protocol 2", sent: "\x00\x00\x00\x08\x00\x02\x00\x00"},
		{name: "protocol 4", sent: "\x00\x00\x00\x08\x00\x04\x00\x00"},
		{name: "no user", sent: with("database\x00x\x00\x00")},
		{name: "empty user", sent: with("user\x00\x00\x00")},
		{name: "two users", sent: with("user\x00a\x00user\x00postgres\x00\x00")},
		{name: "no end", sent: with("user\x00a\x00")},
		{name: "no value", sent: with("user\x00a\x00database")},
		{name: "bytes behind the end", sent: with("user\x00a\x00\x00user\x00b\x00\x00")},
		{name: "many parameters", sent: with(manyParams(maxParams + 1))},
		{name: "gss twice", sent: string(request(codeGSS)) + string(request(codeGSS))},
		{name: "tls with a body", sent: "\x00\x00\x00\x09\x04\xd2\x16\x2f\x00"},
		{name: "short cancel", sent: "\x00\x00\x00\x0c\x04\xd2\x16\x2e\x00\x00\x00\x01"},
		{name: "password too long", require: true, sent: string(start) + "p\x00\x01\x00\x00"},
		{name: "password without end", require: true, sent: string(start) + "p\x00\x00\x00\x05x"},
		{name: "query for a password", require: true, sent: string(start) + "Q\x00\x00\x00\x06x\x00"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			f := newFake(t, func(f *fake, c net.Conn) { _, _ = io.Copy(f, c) })
			d := newDoor(t, f.addr, "app", "secret", func(d *door) {
				if tc.require {
					d.session.Require = func(string, string) bool { return true }
				}
			})
			c := d.raw(t)
			_, _ = io.WriteString(c, tc.sent)
			_ = c.(*net.TCPConn).CloseWrite()
			codeIs(t, d.wait(t, 1), wire.CodeBadRequest)
			got, _ := io.ReadAll(c)
			if !tc.require && !bytes.Contains(got, []byte("\x00C"+stateProtocol+"\x00")) {
				t.Errorf("the sandbox got %q", got)
			}
			if d.asked.Load() != 0 || len(f.received()) != 0 {
				t.Errorf("credential asked for %d times, server got %q", d.asked.Load(), f.received())
			}
		})
	}
}

func manyParams(n int) string {
	var b strings.Builder
	b.WriteString("user\x00a\x00")
	for i := range n {
		fmt.Fprintf(&b, "p%d\x00\x00", i)
	}
	return b.String() + "\x00"
}

// TestSandboxInjection: what a sandbox, or somebody before it, sends in clear behind
// SSLRequest is no part of the session inside TLS (CVE-2021-23214).
func TestSandboxInjection(t *testing.T) {
	d := newDoor(t, "127.0.0.1:1", "app", "secret")
	c := d.raw(t)
	_, _ = c.Write(append(request(codeTLS), (&startup{version: 3 << 16, user: "agent"}).as("agent")...))
	if err := d.wait(t, 1); err == nil || d.asked.Load() != 0 {
		t.Errorf("ended with %v, credential asked for %d times", err, d.asked.Load())
	}
	got, _ := io.ReadAll(c)
	if len(got) == 0 || got[0] != 'S' || bytes.Contains(got, []byte("FATAL")) {
		t.Errorf("the sandbox got %q", got)
	}
}

func TestDeadlines(t *testing.T) {
	short := func(d *door) { d.session.HandshakeTimeout = 200 * time.Millisecond }
	t.Run("silent sandbox", func(t *testing.T) {
		d := newDoor(t, "127.0.0.1:1", "app", "secret", short)
		wantError(t, d.raw(t), stateConnection)
	})
	t.Run("slow sandbox", func(t *testing.T) {
		d := newDoor(t, "127.0.0.1:1", "app", "secret", short)
		c := d.raw(t)
		for _, b := range request(codeTLS) {
			if _, err := c.Write([]byte{b}); err != nil {
				break
			}
			time.Sleep(50 * time.Millisecond)
		}
		if d.wait(t, 1) == nil {
			t.Error("it was waited for")
		}
	})
	t.Run("silent server", func(t *testing.T) {
		f := newFake(t, tlsThen(func(peer) {}))
		d := newDoor(t, f.addr, "app", "secret", short, func(d *door) { d.trust = f.ca })
		c := d.raw(t)
		_, _ = c.Write((&startup{version: 3 << 16, user: "agent"}).as("agent"))
		wantError(t, c, stateConnection)
	})
	t.Run("server that keeps a cancel", func(t *testing.T) {
		f := newFake(t, tlsThen(func(peer) {}))
		d := newDoor(t, f.addr, "app", "secret", short, func(d *door) { d.trust = f.ca })
		c := d.raw(t)
		_, _ = c.Write([]byte{0, 0, 0, 16, 0x04, 0xd2, 0x16, 0x2e, 0, 0, 0, 1, 0, 0, 0, 2})
		if b, err := io.ReadAll(c); len(b) != 0 || err != nil {
			t.Errorf("%q, %v", b, err)
		}
		codeIs(t, d.wait(t, 1), wire.CodeUpstream)
		if d.asked.Load() != 0 || !bytes.HasSuffix(f.received(), []byte{0, 0, 0, 1, 0, 0, 0, 2}) {
			t.Errorf("credential asked for %d times, server got %q", d.asked.Load(), f.received())
		}
	})
	t.Run("the way in ends", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		a, b := net.Pipe()
		defer a.Close()
		go func() { _, _ = io.Copy(io.Discard, a) }()
		time.AfterFunc(50*time.Millisecond, cancel)
		if err := Serve(ctx, &wire.Session{Client: b, HandshakeTimeout: time.Minute}); err == nil {
			t.Error("it goes on")
		}
		_ = b.Close()
	})
}
