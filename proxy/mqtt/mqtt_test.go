package mqtt

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/egressd/egressd/inject"
	"github.com/egressd/egressd/internal/secret"
	"github.com/egressd/egressd/internal/testbed"
	"github.com/egressd/egressd/proxy/wire"
)

// broker is a mosquitto that knows user real with pass, and a thief; only real may do a thing.
func broker(t *testing.T, pass string, tls ...string) string {
	t.Helper()
	users := write(t, "passwords", "")
	for u, p := range map[string]string{"real": pass, "thief": "thief1234"} {
		if out, err := run(t, "", "mosquitto_passwd", "-b", users, u, p); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	port := freePort(t)
	acl := write(t, "acl", "user real\ntopic readwrite #\n")
	conf := append([]string{
		"listener " + port + " 127.0.0.1", "allow_anonymous false", "user root", "password_file " + users, "acl_file " + acl, "log_dest stdout", "log_type all",
	}, tls...)
	daemon(t, "mosquitto", "-c", write(t, "mosquitto.conf", strings.Join(conf, "\n")+"\n"))
	return awaitPort(t, port)
}

// subscribe starts a subscriber that ends with one message; wait gives its output.
func subscribe(t *testing.T, args ...string) (wait func() string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	cmd := exec.CommandContext(ctx, tool(t, "mosquitto_sub"), append(args, "-C", "1")...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return func() string {
		defer cancel()
		if err := cmd.Wait(); err != nil {
			t.Errorf("mosquitto_sub: %v: %s", err, out.Bytes())
		}
		return out.String()
	}
}

// TestRealMosquitto: publish, subscribe, wills, with and without a login of the sandbox's.
func TestRealMosquitto(t *testing.T) {
	pass := testbed.NewToken()
	ca := testbed.NewCA(t)
	leaf := ca.Leaf(t, "good.test", "127.0.0.1")
	plain := broker(t, pass)
	secured := broker(t, pass, "certfile "+write(t, "c.pem", testbed.CertPEM(leaf)), "keyfile "+write(t, "k.pem", testbed.KeyPEM(t, leaf)))
	_, _, _, client := secure(t)
	client.RootCAs = ca.Pool()
	_, _, server, _ := secure(t)
	server.Certificates = append(server.Certificates[:0:0], leaf)
	for _, inTLS := range []bool{false, true} {
		o := gateOptions{upstream: plain, login: fixed("real", pass)}
		var flags []string
		if inTLS {
			o = gateOptions{upstream: secured, login: fixed("real", pass), serverTLS: server, clientTLS: client, noClear: true}
			flags = []string{"--cafile", ca.File(t)}
		}
		for _, version := range []string{"mqttv31", "mqttv311", "mqttv5"} {
			for _, own := range [][]string{nil, {"-u", "thief", "-P", "thief1234"}, {"-u", "only-a-name"}} {
				t.Run(fmt.Sprintf("%s, TLS %v, %v", version, inTLS, own), func(t *testing.T) {
					g := newGate(t, o)
					base := append(append([]string{"-h", "127.0.0.1", "-p", g.port(), "-V", version, "-t", "a/b", "-q", "2"}, flags...), own...)
					args := append(base, "-r", "-m", strings.Repeat("retained ", 500), "--will-topic", "w", "--will-payload", "gone", "--will-qos", "1")
					if version == "mqttv5" {
						args = append(args, "-D", "connect", "user-property", "k", "v", "-D", "connect", "session-expiry-interval", "60", "-D", "will", "message-expiry-interval", "5")
					}
					if out, err := run(t, "", "mosquitto_pub", args...); err != nil || out != "" {
						t.Fatalf("%v: %s", err, out)
					}
					if out := subscribe(t, base...)(); out != strings.Repeat("retained ", 500)+"\n" {
						t.Errorf("%.100q", out)
					}
					for _, err := range g.ended() {
						if err != nil {
							t.Error(err)
						}
					}
					testbed.NoLeak(t, "what the sandbox got", g.toSandbox(), pass)
				})
			}
		}
	}
}

// TestRealMosquitto_live carries messages both ways on open connections.
func TestRealMosquitto_live(t *testing.T) {
	pass := testbed.NewToken()
	g := newGate(t, gateOptions{upstream: broker(t, pass), login: fixed("real", pass)})
	for _, version := range []byte{level311, level5} {
		sub, pub := session(t, g, version), session(t, g, version)
		filter := "\x00\x01\x00\x03a/#\x00"
		topic := "\x00\x03a/b"
		if version == level5 {
			filter = "\x00\x01\x00\x00\x03a/#\x00"
			topic += "\x00"
		}
		send(t, sub, 0x82, filter)
		if first, _, err := readPacket(sub); err != nil || first != 0x90 {
			t.Fatalf("%#x, %v", first, err)
		}
		for i := range 3 {
			body := topic + strings.Repeat("x", 60000) + fmt.Sprint(i)
			send(t, pub, 0x30, body)
			first, got, err := readPacket(sub)
			if err != nil || first != 0x30 || string(got) != body {
				t.Fatalf("%#x, %d bytes, %v", first, len(got), err)
			}
		}
		send(t, pub, 0xc0, "")
		if first, _, err := readPacket(pub); err != nil || first != 0xd0 {
			t.Fatalf("PINGREQ: %#x, %v", first, err)
		}
		_, _ = sub.Close(), pub.Close()
	}
}

// hello is a CONNECT of the sandbox's own.
func hello(level byte, edit ...func(*connect)) []byte {
	c := connect{level: level, flags: flagClean, keepAlive: 60, clientID: []byte(fmt.Sprintf("c%d", time.Now().UnixNano()))}
	for _, e := range edit {
		e(&c)
	}
	return c.packet("thief", secret.New("thief1234"))
}

// session is a connection that is logged in.
func session(t *testing.T, g *gate, level byte) net.Conn {
	t.Helper()
	c := dialGate(t, g)
	if _, err := c.Write(hello(level)); err != nil {
		t.Fatal(err)
	}
	if first, body, err := readPacket(c); err != nil || first != 0x20 || body[1] != 0 {
		t.Fatalf("CONNACK %#x %x, %v", first, body, err)
	}
	return c
}

func dialGate(t *testing.T, g *gate) net.Conn {
	t.Helper()
	c, err := net.Dial("tcp4", g.addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	_ = c.SetDeadline(time.Now().Add(15 * time.Second))
	return c
}

func send(t *testing.T, c net.Conn, first byte, body string) {
	t.Helper()
	if _, err := c.Write(append(appendVarint([]byte{first}, len(body)), body...)); err != nil {
		t.Fatal(err)
	}
}

// TestAttack_A15_own_account: no second CONNECT and no AUTH gets through, whole, in
// pieces or behind others.
func TestAttack_A15_own_account(t *testing.T) {
	pass := testbed.NewToken()
	seen := make(chan []byte, 32)
	lenient := testbed.NewRaw(t, testbed.RawOptions{IP: "127.0.0.1", Serve: func(c *testbed.RawConn) {
		if _, _, err := readPacket(c); err != nil {
			return
		}
		_, _ = c.Write([]byte("\x20\x02\x00\x00"))
		rest, _ := io.ReadAll(c)
		seen <- rest
	}}).Addr().String()
	ping := "\xc0\x00"
	publish := "\x30\x85\x02\x00\x03a/b" + strings.Repeat("x", 256)
	for name, tc := range map[string]struct{ in, through string }{
		"second CONNECT":        {string(hello(level311)), ""},
		"behind a ping":         {ping + string(hello(level5)), ping},
		"behind a publish":      {publish + publish + string(hello(level311)), publish + publish},
		"AUTH":                  {ping + "\xf0\x02\x19\x00", ping},
		"CONNACK":               {ping + "\x20\x02\x00\x00", ping},
		"type 0":                {"\x00\x00", ""},
		"endless length":        {ping + "\x30\xff\xff\xff\xff\x01", ping},
		"CONNECT inside a body": {"\x30\x0e" + string(hello(level311))[:14] + ping + "\x10", "\x30\x0e" + string(hello(level311))[:14] + ping},
	} {
		for _, pieces := range []bool{false, true} {
			t.Run(fmt.Sprint(name, ", in pieces ", pieces), func(t *testing.T) {
				g := newGate(t, gateOptions{upstream: lenient, login: fixed("real", pass)})
				c := session(t, g, level311)
				if pieces {
					for i := range len(tc.in) {
						if _, err := c.Write([]byte{tc.in[i]}); err != nil {
							break
						}
						time.Sleep(100 * time.Microsecond)
					}
				} else {
					_, _ = io.WriteString(c, tc.in)
				}
				_, _ = io.ReadAll(c)
				got := string(<-seen)
				if len(tc.through) < len(got) && !strings.HasPrefix(name, "endless") || !strings.HasPrefix(tc.through+"\x30\xff\xff\xff\xff", got) {
					t.Errorf("the broker got %q, want %q", got, tc.through)
				}
				if code := g.code(t); code != wire.CodeBadRequest {
					t.Errorf("code %q", code)
				}
			})
		}
	}
}

func TestRefusals(t *testing.T) {
	pass := testbed.NewToken()
	addr := broker(t, pass)
	answering := func(s string) string {
		return testbed.NewRaw(t, testbed.RawOptions{IP: "127.0.0.1", Serve: func(c *testbed.RawConn) {
			_, _, _ = readPacket(c)
			_, _ = io.WriteString(c, s)
		}}).Addr().String()
	}
	gone := func() (*inject.Login, error) { return nil, &wire.Refusal{Code: inject.CodeSourceDisabled} }
	enhanced := func(c *connect) { c.properties = []byte("\x15\x00\x05PLAIN") }
	never := func(string, string) bool { return false }
	good := gateOptions{upstream: addr, login: fixed("real", pass)}
	for _, tc := range []struct {
		name   string
		o      gateOptions
		edit   func(*connect)
		code   string
		v3, v5 string // what the sandbox gets; "-": not tried
	}{
		{"A08 cleartext", gateOptions{upstream: addr, login: fixed("real", pass), noClear: true}, nil, wire.CodePlaintext, "\x20\x02\x00\x05", "\x20\x03\x00\x87\x00"},
		{"wrong password", gateOptions{upstream: addr, login: fixed("real", "wrong")}, nil, wire.CodeUpstreamLogin, "\x20\x02\x00\x05", "\x20\x03\x00\x87\x00"},
		{"source gone", gateOptions{upstream: addr, login: gone}, nil, inject.CodeSourceDisabled, "\x20\x02\x00\x03", "\x20\x03\x00\x88\x00"},
		{"another projection", gateOptions{upstream: addr, login: func() (*inject.Login, error) { return nil, nil }}, nil, wire.CodeUpstreamLogin, "\x20\x02\x00\x05", "\x20\x03\x00\x87\x00"},
		{"user that is not UTF-8", gateOptions{upstream: addr, login: fixed("a\xff", "p")}, nil, wire.CodeUpstreamLogin, "\x20\x02\x00\x05", "\x20\x03\x00\x87\x00"},
		{"password of 64 KiB", gateOptions{upstream: addr, login: fixed("a", strings.Repeat("x", 65536))}, nil, wire.CodeUpstreamLogin, "\x20\x02\x00\x05", "\x20\x03\x00\x87\x00"},
		{"other login than required", gateOptions{upstream: addr, login: fixed("real", pass), require: never}, nil, wire.CodeAuthRequired, "\x20\x02\x00\x04", "\x20\x03\x00\x86\x00"},
		{"enhanced authentication", good, enhanced, wire.CodePolicyDenied, "-", "\x20\x03\x00\x8c\x00"},
		{"broker full", gateOptions{upstream: answering("\x20\x02\x00\x03"), login: fixed("real", pass)}, nil, wire.CodeUpstream, "\x20\x02\x00\x03", "-"},
		{"broker moved", gateOptions{upstream: answering("\x20\x08\x00\x9c\x05\x1c\x00\x02xy"), login: fixed("real", pass)}, nil, wire.CodeUpstream, "-", "\x20\x08\x00\x9c\x05\x1c\x00\x02xy"},
		{"broker's words about the login stay", gateOptions{upstream: answering("\x20\x0e\x00\x87\x0b\x1f\x00\x08real bad"), login: fixed("real", pass)}, nil, wire.CodeUpstreamLogin, "-", "\x20\x03\x00\x87\x00"},
		{"broker speaks something else", gateOptions{upstream: answering("HTTP/1.1 400 Bad Request\r\n\r\n" + strings.Repeat("x", 200)), login: fixed("real", pass)}, nil, wire.CodeUpstream, "\x20\x02\x00\x03", "\x20\x03\x00\x88\x00"},
		{"broker answers with AUTH", gateOptions{upstream: answering("\xf0\x02\x18\x00"), login: fixed("real", pass)}, nil, wire.CodeUpstream, "\x20\x02\x00\x03", "\x20\x03\x00\x88\x00"},
		{"broker ends", gateOptions{upstream: answering(""), login: fixed("real", pass)}, nil, wire.CodeUpstream, "\x20\x02\x00\x03", "\x20\x03\x00\x88\x00"},
	} {
		for level, want := range map[byte]string{level311: tc.v3, level5: tc.v5} {
			if want == "-" {
				continue
			}
			t.Run(fmt.Sprint(tc.name, " level ", level), func(t *testing.T) {
				g := newGate(t, tc.o)
				edits := []func(*connect){}
				if tc.edit != nil {
					edits = append(edits, tc.edit)
				}
				answered(t, g, string(hello(level, edits...))+"\xc0\x00", want)
				if code := g.code(t); code != tc.code {
					t.Errorf("code %q, want %q", code, tc.code)
				}
				testbed.NoLeak(t, "errors", []byte(fmt.Sprint(g.ended())), pass)
			})
		}
	}
}

func answered(t *testing.T, g *gate, in, want string) {
	t.Helper()
	c := dialGate(t, g)
	_, _ = io.WriteString(c, in)
	out, err := io.ReadAll(c)
	_ = c.Close()
	if err != nil || string(out) != want {
		t.Errorf("%q, %v; want %q", out, err, want)
	}
}

func TestRequire_right(t *testing.T) {
	pass := testbed.NewToken()
	g := newGate(t, gateOptions{upstream: broker(t, pass), login: fixed("real", pass), require: func(u, p string) bool { return u == "thief" && p == "thief1234" }})
	for _, level := range []byte{level31, level311, level5} {
		_ = session(t, g, level).Close()
	}
}

func TestMalformed(t *testing.T) {
	pass := testbed.NewToken()
	addr := broker(t, pass)
	v3 := func(flags string, payload string) string {
		body := "\x00\x04MQTT\x04" + flags + "\x00\x3c" + payload
		return string(append(appendVarint([]byte{0x10}, len(body)), body...))
	}
	v5 := func(flags, props, payload string) string {
		body := "\x00\x04MQTT\x05" + flags + "\x00\x3c" + string(appendVarint(nil, len(props))) + props + payload
		return string(append(appendVarint([]byte{0x10}, len(body)), body...))
	}
	id := "\x00\x01c"
	malformed := "\x20\x03\x00\x81\x00"
	for name, tc := range map[string]struct{ in, want string }{
		"reserved flag":                 {v3("\x03", id), ""},
		"will QoS 3":                    {v3("\x1e", id), ""},
		"will retain without a will":    {v3("\x22", id), ""},
		"password without a user":       {v3("\x42", id+"\x00\x01p"), ""},
		"cut":                           {v3("\xc2", id+"\x00\x01u\x00\x05p"), ""},
		"bytes behind":                  {v3("\x02", id+"x"), ""},
		"NUL in the client id":          {v3("\x02", "\x00\x01\x00"), ""},
		"surrogate in the user name":    {v3("\x82", id+"\x00\x03\xed\xa0\x80"), ""},
		"header flags":                  {"\x11" + v3("\x02", id)[1:], ""},
		"another packet first":          {"\xc0\x00", ""},
		"length of five bytes":          {"\x10\xff\xff\xff\xff\x01", ""},
		"length over 64 KiB":            {"\x10\x81\x80\x04", ""},
		"another level":                 {"\x10\x0d\x00\x04MQTT\x06\x02\x00\x3c\x00\x01c", "\x20\x02\x00\x01"},
		"another name":                  {"\x10\x0d\x00\x04MQTX\x04\x02\x00\x3c\x00\x01c", "\x20\x02\x00\x01"},
		"3.1 by the name of 3.1.1":      {"\x10\x0d\x00\x04MQTT\x03\x02\x00\x3c\x00\x01c", "\x20\x02\x00\x01"},
		"unknown property":              {v5("\x02", "\x7f\x00", id), malformed},
		"property of another packet":    {v5("\x02", "\x23\x00\x01", id), malformed},
		"property twice":                {v5("\x02", "\x21\x00\x01\x21\x00\x02", id), malformed},
		"property cut":                  {v5("\x02", "\x11\x00", id), malformed},
		"flag property of 2":            {v5("\x02", "\x17\x02", id), malformed},
		"length of properties too long": {v5("\x02", "", id)[:12] + "\x7f" + id, malformed},
		"length not the shortest":       {"\x10\x0f\x00\x04MQTT\x05\x02\x00\x3c\x80\x00" + id, malformed},
	} {
		t.Run(name, func(t *testing.T) {
			g := newGate(t, gateOptions{upstream: addr, login: fixed("real", pass)})
			in := tc.in
			if name == "length of properties too long" {
				in = "\x10\x0e\x00\x04MQTT\x05\x02\x00\x3c\x7f" + id
			}
			answered(t, g, in, tc.want)
			if code := g.code(t); code != wire.CodeBadRequest {
				t.Errorf("code %q", code)
			}
		})
	}
}

func TestServe_silence(t *testing.T) {
	near, far := net.Pipe()
	defer far.Close()
	err := Serve(t.Context(), &wire.Session{Client: near, Cleartext: true, HandshakeTimeout: 20 * time.Millisecond})
	var ne net.Error
	if !errors.As(err, &ne) || !ne.Timeout() {
		t.Error(err)
	}
}

// FuzzConnect: what is taken says the same when it is written anew, but for the login,
// and reads as what was written.
func FuzzConnect(f *testing.F) {
	for _, level := range []byte{level31, level311, level5} {
		f.Add(hello(level)[2:])
		f.Add(hello(level, func(c *connect) {
			c.flags |= flagWill | flagWillRetain
			c.willTopic, c.will = []byte("w"), []byte("gone")
			c.properties, c.willProps = []byte("\x11\x00\x00\x00\x01\x26\x00\x01k\x00\x01v"), []byte("\x02\x00\x00\x00\x01")
		})[2:])
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		c, err := parseConnect(body)
		if err != nil {
			var r *wire.Refusal
			if !errors.Is(err, errLevel) && !errors.As(err, &r) {
				t.Fatal(err)
			}
			return
		}
		p := c.packet("user", secret.New("pass"))
		r := bytes.NewReader(p)
		first, again, err := readPacket(r)
		if len(p) > maxConnect {
			return
		}
		if err != nil || first != 0x10 || r.Len() != 0 {
			t.Fatalf("%#x, %v, %d left", first, err, r.Len())
		}
		d, err := parseConnect(again)
		if err != nil || string(d.username) != "user" || string(d.password) != "pass" {
			t.Fatalf("%+v, %v", d, err)
		}
		same := d.level == c.level && d.keepAlive == c.keepAlive && d.flags == c.flags|flagUsername|flagPassword && d.enhanced == c.enhanced
		for _, p := range [][2][]byte{{c.properties, d.properties}, {c.clientID, d.clientID}, {c.willProps, d.willProps}, {c.willTopic, d.willTopic}, {c.will, d.will}} {
			same = same && bytes.Equal(p[0], p[1])
		}
		if !same {
			t.Fatalf("%+v became %+v", c, d)
		}
	})
}

// FuzzHeaders: in pieces or whole, the same bytes pass, and no packet among them is one
// that a client must not send.
func FuzzHeaders(f *testing.F) {
	f.Add([]byte("\xc0\x00\x30\x05\x00\x01aab\x10\x00"))
	f.Add([]byte("\x30\xff\xff\xff\xff\x01"))
	f.Fuzz(func(t *testing.T, b []byte) {
		var whole, pieces headers
		n, err := whole.pass(b)
		m, errM := 0, error(nil)
		for m < len(b) && errM == nil {
			var k int
			k, errM = pieces.pass(b[m : m+1])
			m += k
		}
		if n != m || (err == nil) != (errM == nil) {
			t.Fatalf("%d, %v; in pieces %d, %v", n, err, m, errM)
		}
		for r := bytes.NewReader(b[:n]); r.Len() > 0; {
			first, _, err := readPacket(r)
			if !clientSends(first >> 4) {
				t.Fatalf("packet %#x", first)
			}
			if err != nil {
				break
			}
		}
	})
}
