package proxy_test

import (
	"bytes"
	"context"
	"crypto/sha1"
	"encoding/base64"
	"encoding/binary"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"

	"github.com/egressd/egressd/internal/audit"
	"github.com/egressd/egressd/internal/testbed"
	"github.com/egressd/egressd/proxy"
	"github.com/egressd/egressd/proxy/wsframe"
)

// wsOrigin keeps what it is sent and says what it is told to.
type wsOrigin struct {
	*testbed.Raw
	got  chan string // opcode and text of each message
	say  chan []byte // frames
	head string      // more header lines of the 101
	key  chan string // request head
}

// newWSOrigin speaks WebSocket by hand: nothing of what arrives is hidden by a library.
func newWSOrigin(t *testing.T, g *rig, head string) *wsOrigin {
	t.Helper()
	o := &wsOrigin{got: make(chan string, 100), say: make(chan []byte, 100), head: head, key: make(chan string, 4)}
	o.Raw = testbed.NewRaw(t, testbed.RawOptions{CA: g.bed.CA, Serve: func(c *testbed.RawConn) {
		h, err := c.ReadHead()
		if err != nil {
			return
		}
		o.key <- string(h)
		_, _ = io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: "+accept(string(h))+"\r\n"+o.head+"\r\n")
		done := make(chan struct{})
		go func() {
			defer close(done)
			for {
				select {
				case b, ok := <-o.say:
					if !ok {
						return
					}
					_, _ = c.Write(b)
				case <-t.Context().Done():
					return
				}
			}
		}()
		for {
			h, err := wsframe.ReadHeader(c)
			if err != nil {
				break
			}
			p := make([]byte, h.Length)
			if _, err := io.ReadFull(c, p); err != nil {
				break
			}
			for i := range p {
				p[i] ^= h.Mask[i%4]
			}
			o.got <- fmt.Sprintf("%d fin=%v %s", h.Opcode, h.Fin, p)
		}
		o.got <- "gone"
		_ = c.Close()
		<-done
	}})
	t.Cleanup(func() { close(o.say) })
	return o
}

// accept answers a handshake (RFC 6455 section 4.2.2).
func accept(head string) string {
	_, key, _ := strings.Cut(head, "Sec-Websocket-Key: ")
	key, _, _ = strings.Cut(key, "\r\n")
	sum := sha1.Sum([]byte(key + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"))
	return base64.StdEncoding.EncodeToString(sum[:])
}

func (o *wsOrigin) url(scheme string) string {
	return fmt.Sprintf("%s://good.test:%d/ws", scheme, o.Port())
}

// gets wants the origin's next message.
func (o *wsOrigin) gets(t *testing.T, want string) {
	t.Helper()
	select {
	case got := <-o.got:
		// Whose close frame comes first, egressd's or the sandbox's that answers its reason, is chance.
		if got != want && got != want+"message is too big" {
			t.Fatalf("the origin got %.120q, want %.120q", got, want)
		}
	case <-time.After(5 * time.Second):
		t.Fatalf("the origin did not get %.120q", want)
	}
}

func (o *wsOrigin) says(op wsframe.Opcode, fin bool, payload string) {
	b := wsframe.Header{Fin: fin, Opcode: op, Length: int64(len(payload))}.Append(nil)
	o.say <- append(b, payload...)
}

func closeFrame(code uint16, reason string) string {
	return string(append(binary.BigEndian.AppendUint16(nil, code), reason...))
}

// dial opens a WebSocket as a client does that would like to compress.
func (o *wsOrigin) dial(t *testing.T, g *rig) *websocket.Conn {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	t.Cleanup(cancel)
	c, _, err := websocket.Dial(ctx, o.url("wss"), &websocket.DialOptions{HTTPClient: g.one(), CompressionMode: websocket.CompressionContextTakeover})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.CloseNow() })
	c.SetReadLimit(8 << 20)
	if head := <-o.key; strings.Contains(strings.ToLower(head), "extensions") {
		t.Errorf("the origin was offered extensions: %q", head)
	}
	return c
}

func send(t *testing.T, c *websocket.Conn, typ websocket.MessageType, msg string) {
	t.Helper()
	if err := c.Write(t.Context(), typ, []byte(msg)); err != nil {
		t.Fatal(err)
	}
}

func receive(t *testing.T, g *rig, c *websocket.Conn, typ websocket.MessageType, want string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	got, b, err := c.Read(ctx)
	g.note(b)
	if err != nil || got != typ || string(b) != want {
		t.Fatalf("received %v %.120q, %v; want %.120q", got, b, err, want)
	}
}

// closed wants the client to be told that code.
func closed(t *testing.T, c *websocket.Conn, code websocket.StatusCode, reason string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	_, _, err := c.Read(ctx)
	var ce websocket.CloseError
	if !errors.As(err, &ce) || ce.Code != code || !strings.Contains(ce.Reason, reason) {
		t.Errorf("the client was told %v, want %d %s", err, code, reason)
	}
}

// other is a secret of the team's that the rule of these tests does not project.
const other = "egressd-canary-of-another-source-9Xw2"

func withFrames(t *testing.T, policy string, o options) *rig {
	t.Helper()
	g := attacked(t, o)
	g.put("acme", "other-source", "static_headers", headerSpec(other))
	g.use(policy)
	// The leak guard looks for what has been resolved.
	if a := get(t, g.one(), g.bed.Evil.URL("/x")); a.err != nil || a.status >= 500 {
		t.Fatalf("%+v", a)
	}
	return g
}

// framesPolicy also has a rule for evil.test with a placeholder of its own.
var framesPolicy = strings.NewReplacer("- {name: keyed,", "- {name: elsewhere, credentialRef: ph2, protocol: https, domains: [evil.test]}\n          - {name: keyed,",
	"- ref: ph\n", `- ref: ph2
          sourceRef: other-source
          projection:
            type: placeholder_substitution
            placeholderSubstitution: {replacements: [{placeholder: EGD-PLACEHOLDER-2, valueTemplate: "{{ .token }}", locations: [header]}]}
        - ref: ph
`).Replace(placeholderPolicy)

func TestWebSocketMessages(t *testing.T) {
	g := withFrames(t, framesPolicy, options{})
	o := newWSOrigin(t, g, "X-Echo: "+canary+"\r\n")
	c := o.dial(t, g)
	const ph = "EGD-PLACEHOLDER-1"
	send(t, c, websocket.MessageText, "key="+ph+";")
	o.gets(t, "1 fin=true key="+canary+";")
	send(t, c, websocket.MessageText, `{"a":"x", "token" : "`+ph+`"}`)
	o.gets(t, `1 fin=true {"a":"x", "token" : "`+canary+`"}`)
	w, err := c.Writer(t.Context(), websocket.MessageText) // in fragments
	if err != nil {
		t.Fatal(err)
	}
	for _, part := range []string{strings.Repeat("a", 9000), "EGD-PLACE", "HOLDER-1 é"} {
		if _, err := io.WriteString(w, part); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	o.gets(t, "1 fin=true "+strings.Repeat("a", 9000)+canary+" é")
	send(t, c, websocket.MessageBinary, "\x00\x01"+ph)
	o.gets(t, "2 fin=true \x00\x01"+ph)

	// What the origin says of it comes back as the sandbox knows it.
	o.says(wsframe.Text, true, "you said "+canary)
	receive(t, g, c, websocket.MessageText, "you said "+ph)
	o.says(wsframe.Text, false, "you "+canary[:9])
	o.says(wsframe.Ping, true, "p")
	o.says(wsframe.Continuation, true, canary[9:]+"!")
	receive(t, g, c, websocket.MessageText, "you "+ph+"!")
	o.gets(t, "10 fin=true p")
	o.says(wsframe.Binary, false, "\x00"+canary[:20])
	o.says(wsframe.Continuation, false, "")
	o.says(wsframe.Continuation, true, canary[20:]+strings.Repeat("z", 100<<10))
	receive(t, g, c, websocket.MessageBinary, "\x00"+ph+strings.Repeat("z", 100<<10))
	o.says(wsframe.Ping, true, canary)
	o.says(wsframe.Close, true, closeFrame(4001, "bye "+canary))
	closed(t, c, 4001, "")
	o.gets(t, "10 fin=true ")
	o.gets(t, "8 fin=true "+closeFrame(4001, ""))
	g.records.wait(t, func(a audit.Record) bool {
		return a.Protocol == "websocket" && a.Scrubbed >= 5 && a.Code == "" && a.Outcome == "allowed"
	})
	g.clean(t)
}

func TestWebSocketMessagesThatAreTooBig(t *testing.T) {
	g := withFrames(t, framesPolicy, options{limits: proxy.Limits{RewriteBodyBytes: 64 << 10}})
	for name, do := range map[string]func(*testing.T, *wsOrigin, *websocket.Conn){
		"the client's": func(t *testing.T, o *wsOrigin, c *websocket.Conn) {
			send(t, c, websocket.MessageBinary, strings.Repeat("b", 300<<10)) // streams
			o.gets(t, "2 fin=true "+strings.Repeat("b", 300<<10))
			send(t, c, websocket.MessageText, strings.Repeat("t", 64<<10))
			o.gets(t, "1 fin=true "+strings.Repeat("t", 64<<10))
			_ = c.Write(t.Context(), websocket.MessageText, []byte(strings.Repeat("t", 64<<10+1))) // it may be cut off
		},
		"the origin's": func(t *testing.T, o *wsOrigin, c *websocket.Conn) {
			o.says(wsframe.Text, true, strings.Repeat("t", 64<<10))
			receive(t, g, c, websocket.MessageText, strings.Repeat("t", 64<<10))
			o.says(wsframe.Text, true, strings.Repeat("t", 64<<10+1))
		},
	} {
		t.Run(name, func(t *testing.T) {
			g.forget()
			o := newWSOrigin(t, g, "")
			c := o.dial(t, g)
			do(t, o, c)
			closed(t, c, websocket.StatusMessageTooBig, "")
			o.gets(t, "8 fin=true "+closeFrame(1009, ""))
			g.audited(t, "body_too_large", "")
		})
	}
}

// A message of a rule that sees inside is searched for what must not leave, as a request is.
func TestWebSocketLeakGuard(t *testing.T) {
	g := withFrames(t, framesPolicy, options{})
	for name, tc := range map[string]struct {
		code string
		send func(*testing.T, *websocket.Conn)
	}{
		"a secret":           {"secret_in_request", func(t *testing.T, c *websocket.Conn) { send(t, c, websocket.MessageText, `{"k":"`+other+`"}`) }},
		"a secret in binary": {"secret_in_request", func(t *testing.T, c *websocket.Conn) { send(t, c, websocket.MessageBinary, "\x00"+other) }},
		"a placeholder":      {"placeholder_misplaced", func(t *testing.T, c *websocket.Conn) { send(t, c, websocket.MessageText, "EGD-PLACEHOLDER-2") }},
		"another in binary":  {"placeholder_misplaced", func(t *testing.T, c *websocket.Conn) { send(t, c, websocket.MessageBinary, "EGD-PLACEHOLDER-2") }},
		"a secret far into one": {"secret_in_request", func(t *testing.T, c *websocket.Conn) {
			_ = c.Write(t.Context(), websocket.MessageBinary, []byte(strings.Repeat("x", 200<<10)+other))
		}},
		"a secret in a reason": {"secret_in_request", func(t *testing.T, c *websocket.Conn) { go func() { _ = c.Close(4000, other) }() }},
		"a secret in fragments": {"secret_in_request", func(t *testing.T, c *websocket.Conn) {
			w, err := c.Writer(t.Context(), websocket.MessageBinary)
			if err != nil {
				t.Fatal(err)
			}
			for _, part := range []string{strings.Repeat("x", 5000), other[:20], other[20:], strings.Repeat("x", 9000)} {
				_, _ = io.WriteString(w, part)
			}
			_ = w.Close()
		}},
	} {
		t.Run(name, func(t *testing.T) {
			g.forget()
			o := newWSOrigin(t, g, "")
			c := o.dial(t, g)
			tc.send(t, c)
			if name != "a secret in a reason" { // the client has begun to close and reads no more
				closed(t, c, websocket.StatusPolicyViolation, tc.code)
			}
			a := g.records.wait(t, func(a audit.Record) bool { return a.Code == tc.code })
			if a.Outcome != "denied" || a.Protocol != "websocket" {
				t.Errorf("%+v", a)
			}
			if sent := string(o.Captured()); strings.Contains(unmasked(o), other) || strings.Contains(sent, other) {
				t.Errorf("it reached the origin")
			}
		})
	}
}

// unmasked is all that the origin has understood.
func unmasked(o *wsOrigin) string {
	var all strings.Builder
	for {
		select {
		case m := <-o.got:
			if all.WriteString(m); m == "gone" {
				return all.String()
			}
		case <-time.After(3 * time.Second):
			return all.String()
		}
	}
}

func TestAttack_C31_frames_that_are_looked_into(t *testing.T) {
	g := withFrames(t, framesPolicy, options{})
	for name, frame := range map[string][]byte{
		"compressed":   {0xC1, 0x81, 0, 0, 0, 0, 'x'},
		"2^63":         append(frameHeader(0x82, true, 1<<63), 1, 2, 3, 4),
		"not masked":   {0x81, 1, 'x'},
		"long control": append([]byte{0x89, 0xFE, 0, 126, 0, 0, 0, 0}, make([]byte, 126)...),
		"an orphan":    {0x80, 0x81, 0, 0, 0, 0, 'x'},
	} {
		t.Run("C31 "+name, func(t *testing.T) {
			o := newWSOrigin(t, g, "")
			host := fmt.Sprintf("good.test:%d", o.Port())
			tc := g.tls(t, host, "good.test")
			up := "GET /ws HTTP/1.1\r\nHost: " + host + "\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Extensions: permessage-deflate\r\nSec_WebSocket_Extensions: x\r\n\r\n"
			got, gone := g.talk(tc, up+string(frame), 2*time.Second)
			head, rest, _ := strings.Cut(string(got), "\r\n\r\n")
			if !strings.HasPrefix(head, "HTTP/1.1 101 ") || !gone || len(rest) < 4 || rest[0] != 0x88 || rest[2:4] != closeFrame(1002, "") {
				t.Errorf("%q, %q, gone=%v", head, rest, gone)
			}
			o.gets(t, "8 fin=true "+closeFrame(1002, ""))
			if key := strings.ToLower(<-o.key); strings.Contains(key, "extensions") {
				t.Errorf("%q", key)
			}
			g.audited(t, "bad_request", "websocket: ")
		})
	}
	t.Run("C31 an extension that nobody offered", func(t *testing.T) {
		o := newWSOrigin(t, g, "Sec-WebSocket-Extensions: permessage-deflate\r\n")
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		_, resp, err := websocket.Dial(ctx, o.url("wss"), &websocket.DialOptions{HTTPClient: g.one()})
		if err == nil || resp == nil || resp.StatusCode != http.StatusBadGateway {
			t.Errorf("%v %v", err, resp)
		}
	})
	t.Run("C31 by the origin", func(t *testing.T) {
		o := newWSOrigin(t, g, "")
		c := o.dial(t, g)
		o.say <- []byte{0xC1, 1, 'x'}
		closed(t, c, websocket.StatusProtocolError, "reserved bits")
		g.audited(t, "upstream_failed", "reserved bits")
	})
	g.clean(t)
}

// Only scrubbing looks into frames as well, and a policy that no longer allows the
// WebSocket ends it.
func TestAttack_A25_websocket_reflection(t *testing.T) {
	scrubs := strings.Replace(basePolicy, "domains: [good.test]}\n      credentialBindings", "domains: [good.test], scrub: true}\n      credentialBindings", 1)
	g := withFrames(t, scrubs, options{limits: proxy.Limits{BandwidthPerSandbox: 64 << 20}})
	o := newWSOrigin(t, g, "X-Echo: "+canary+"\r\n")
	c := o.dial(t, g)
	send(t, c, websocket.MessageText, "EGD-PLACEHOLDER-1 means nothing here")
	o.gets(t, "1 fin=true EGD-PLACEHOLDER-1 means nothing here")
	for _, form := range []string{canary, base64.StdEncoding.EncodeToString([]byte("Bearer " + canary)), fmt.Sprintf("%x", canary)} {
		for _, op := range []wsframe.Opcode{wsframe.Text, wsframe.Binary} {
			o.says(op, true, "<"+form+">")
			_, b, err := c.Read(t.Context())
			if g.note(b); err != nil || !strings.Contains(string(b), "[redacted]") {
				t.Errorf("%q %v", b, err)
			}
		}
	}
	g.use(strings.Replace(scrubs, "action: allow, domains: [good.test]", "action: deny, domains: [good.test]", 1))
	if _, _, err := c.Read(t.Context()); err == nil {
		t.Error("the WebSocket outlived the policy")
	}
	o.gets(t, "gone")
	g.clean(t)
}

const nodeWebSocket = `
const ws = new WebSocket(process.argv[1]); ws.binaryType = "arraybuffer"
const say = (...a) => console.log(...a)
ws.onopen = () => { ws.send("key=EGD-PLACEHOLDER-1"); ws.send(new Uint8Array(100000).fill(7)); ws.send("x".repeat(200000) + "EGD-PLACEHOLDER-1") }
ws.onmessage = (e) => { typeof e.data === "string" ? say("text", e.data) : say("binary", e.data.byteLength); if (e.data === "last") ws.close(4002, "done") }
ws.onerror = (e) => say("error", e.message)
ws.onclose = (e) => say("close", e.code, e.wasClean, ws.extensions)
`

// Node's own client, which offers permessage-deflate, through the same rules.
func TestWebSocketOfNode(t *testing.T) {
	g := withFrames(t, framesPolicy, options{})
	o := newWSOrigin(t, g, "")
	dir := t.TempDir()
	ca := filepath.Join(dir, "ca.pem")
	pemText := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: g.ca.Cert().Raw})
	if err := os.WriteFile(ca, pemText, 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, testbed.Node(t), "-e", nodeWebSocket, o.url("wss"))
	cmd.Env = append(os.Environ(), "NODE_EXTRA_CA_CERTS="+ca, "NODE_USE_ENV_PROXY=1", "HTTPS_PROXY=http://one:"+tokenOne+"@"+g.addr, "NO_PROXY=")
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := cmd.Wait(); err != nil {
			t.Error(err)
		}
		const want = "text you said EGD-PLACEHOLDER-1\nbinary 50017\ntext last\nclose 4002 true \n"
		if out.String() != want {
			t.Errorf("node said %q, want %q", out.String(), want)
		}
		g.note(out.Bytes())
		g.clean(t)
	}()
	o.gets(t, "1 fin=true key="+canary)
	o.gets(t, "2 fin=true "+strings.Repeat("\x07", 100000))
	o.gets(t, "1 fin=true "+strings.Repeat("x", 200000)+canary)
	o.says(wsframe.Text, true, "you said "+canary)
	o.says(wsframe.Ping, true, "between")
	o.gets(t, "10 fin=true between")
	o.says(wsframe.Binary, true, canary+strings.Repeat("b", 50000))
	o.says(wsframe.Text, true, "last")
	o.gets(t, "8 fin=true "+closeFrame(4002, "done"))
	o.says(wsframe.Close, true, closeFrame(4002, "done"))
}
