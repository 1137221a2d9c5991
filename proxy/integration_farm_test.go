package proxy_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgproto3"
	"golang.org/x/crypto/ssh"
	socks "golang.org/x/net/proxy"

	"github.com/egressd/egressd/internal/testbed"
	"github.com/egressd/egressd/proxy"
)

// farm is one rig before a real server of each protocol, for sandboxes one and two alike.
type farm struct {
	*rig
	ports  map[string]uint16 // by host
	ssh    *sshServer
	key    string // private, of both sandboxes
	public string
	api    *testbed.Origin
}

func newFarm(t testing.TB, l proxy.Limits) *farm {
	t.Helper()
	hosts := map[string]string{"api.test": "127.0.0.2", "old.test": "127.0.0.2", "free.test": "127.0.0.2"}
	for _, h := range []string{"redis.test", "pg.test", "ssh.test", "mqtt.test", "socks.test", "echo.test"} {
		hosts[h] = "127.0.0.1"
	}
	f := &farm{rig: attacked(t, options{hosts: hosts, limits: l})}
	f.ssh = startSSH(t)
	f.key, f.public = newSSHKey(t)
	ca := f.bed.CA
	f.api = testbed.NewOrigin(t, ca, testbed.OriginOptions{Names: []string{"api.test"}, Mount: map[string]http.Handler{"/duplex": http.HandlerFunc(duplex)}})
	free := testbed.NewOrigin(t, ca, testbed.OriginOptions{Names: []string{"free.test"}, ALPN: []string{"http/1.1"}})
	old := testbed.NewOrigin(t, ca, testbed.OriginOptions{Names: []string{"old.test"}, ALPN: []string{"http/1.1"}})
	f.ports = map[string]uint16{"api.test": f.api.Port(), "old.test": old.Port(), "free.test": free.Port(), "redis.test": redisServer(t, nil, ""), "pg.test": postgresServer(t, ca, "pg.test"),
		"ssh.test": f.ssh.port, "mqtt.test": broker(t, nil, ""), "socks.test": microsocks(t, canary), "echo.test": echoServer(t)}
	for _, team := range []string{"acme", "other"} {
		f.sources(team)
	}
	return f
}

// sources writes all of a team's sources anew.
func (f *farm) sources(team string) {
	f.logsIn(team, canary)
	f.put(team, "tok", "static_headers", headerSpec(canary))
	f.put(team, "tok2", "static_headers", headerSpec(canary2))
	f.put(team, "login2", "static_username_password", basicSpec("app", canary2))
	for _, name := range []string{"key", "key2"} {
		f.put(team, name, "static_ssh_private_key", map[string]any{"staticSSHPrivateKey": map[string]string{"privateKeyPem": f.ssh.userKey}})
	}
}

func (f *farm) at(host string) string { return fmt.Sprintf("%s:%d", host, f.ports[host]) }

// policy is the same for both sandboxes; edit changes what stands of sandbox one.
func (f *farm) policy(edit func(string) string) string {
	known := fmt.Sprintf("[ssh.test]:%d %s", f.ssh.port, f.ssh.hostKey)
	block := func(id, team, token string) string {
		return strings.NewReplacer("ID", id, "TEAM", team, "TOKEN", token, "KNOWN", known, "PUBLIC", f.public).Replace(farmSandbox)
	}
	one := block("one", "acme", tokenHash(tokenOne))
	if edit != nil {
		if edited := edit(one); edited != one {
			one = edited
		} else {
			f.t.Fatal("the policy did not change")
		}
	}
	return "apiVersion: egressd/v1\nsandboxes:\n" + one + block("two", "other", tokenHash(tokenTwo))
}

const farmSandbox = `
  - id: ID
    team: TEAM
    identify: {proxyTokens: ["TOKEN"]}
    network:
      egress:
        trafficRules:
          - {name: all, action: allow, domains: [api.test, old.test, free.test, ssh.test, redis.test, pg.test, mqtt.test, socks.test]}
          - {name: raw, action: allow, domains: [echo.test], ports: [{port: 1, endPort: 65535}]}
        credentialRules:
          - {name: api, credentialRef: tok, protocol: https, domains: [api.test, old.test]}
          - {name: ssh, credentialRef: key, protocol: ssh, domains: [ssh.test]}
          - {name: redis, credentialRef: login, protocol: redis, allowCleartext: true, domains: [redis.test]}
          - {name: pg, credentialRef: login, protocol: postgres, domains: [pg.test]}
          - {name: mqtt, credentialRef: login, protocol: mqtt, allowCleartext: true, domains: [mqtt.test]}
          - {name: socks, credentialRef: login, protocol: socks5, allowCleartext: true, domains: [socks.test]}
      credentialBindings:
        - {ref: login, sourceRef: login, projection: {type: username_password}}
        - ref: tok
          sourceRef: tok
          projection: {type: http_headers, httpHeaders: {headers: [{name: Authorization, valueTemplate: "Bearer {{ .token }}"}]}}
        - ref: key
          sourceRef: key
          projection: {type: ssh_proxy, sshProxy: {sandboxPublicKeys: ["PUBLIC"], upstreamUsername: root, knownHosts: ["KNOWN"]}}
`

// living is something open that answers what it is sent.
type living struct {
	name   string
	source string // of its credential; "": none
	send   func() error
	got    chan struct{}
	done   chan struct{}
}

// watchLiving reads r until it ends; each marker in it is an answer.
func watchLiving(t testing.TB, name, source, marker string, r io.Reader, send func() error, end func()) *living {
	t.Helper()
	l := &living{name: name, source: source, send: send, got: make(chan struct{}, 1), done: make(chan struct{})}
	go func() {
		defer close(l.done)
		var tail []byte
		for b := make([]byte, 4096); ; {
			n, err := r.Read(b)
			tail = append(tail, b[:n]...)
			if bytes.Contains(tail, []byte(marker)) {
				tail = tail[:0]
				select {
				case l.got <- struct{}{}:
				default:
				}
			}
			if err != nil {
				return
			}
		}
	}()
	t.Cleanup(func() { end(); <-l.done })
	if err := l.ping(); err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return l
}

func (l *living) ping() error {
	select {
	case <-l.got:
	default:
	}
	if err := l.send(); err != nil {
		return err
	}
	select {
	case <-l.got:
		return nil
	case <-l.done:
		return errors.New("it has ended")
	case <-time.After(5 * time.Second):
		return errors.New("no answer")
	}
}

// raw is a living connection whose bytes are the test's own.
func (f *farm) raw(t testing.TB, name, source string, c net.Conn, say, marker string) *living {
	t.Helper()
	return watchLiving(t, name, source, marker, c, func() error { _, err := io.WriteString(c, say); return err }, func() { _ = c.Close() })
}

// openAll opens one of each kind for w.
func (f *farm) openAll(t testing.TB, w who) []*living {
	t.Helper()
	all := []*living{
		f.raw(t, "redis", "login", f.tunnel(t, w, f.at("redis.test")), "*1\r\n$4\r\nPING\r\n", "+PONG"),
		f.raw(t, "socks5 upstream", "login", f.socksThrough(t, w), "ping\n", "ping"),
		f.raw(t, "raw tunnel", "", f.tunnel(t, w, f.at("echo.test")), "ping\n", "ping"),
		f.raw(t, "raw tunnel by SOCKS5", "", f.bySOCKS(t, w, f.at("echo.test")), "ping\n", "ping"),
		f.raw(t, "TLS passed through", "", f.tunnelTLS(t, w, f.at("free.test")), "GET / HTTP/1.1\r\nHost: "+f.at("free.test")+"\r\n\r\n", "hello"),
		f.pg(t, w), f.shell(t, w), f.websocket(t, w), f.stream(t, w, "text/plain"), f.stream(t, w, "application/grpc"),
		f.events(t, w, "api.test", false), f.events(t, w, "api.test", true), f.events(t, w, "old.test", true),
	}
	mqtt := f.tunnel(t, w, f.at("mqtt.test"))
	if _, err := io.WriteString(mqtt, "\x10\x0f\x00\x04MQTT\x04\x02\x00\x00\x00\x03"+w.id); err != nil {
		t.Fatal(err)
	}
	return append(all, f.raw(t, "mqtt", "login", mqtt, "\xc0\x00", "\xd0\x00"))
}

// socksThrough speaks SOCKS5 to socks.test, which wants a login that egressd has, and on to
// echo.test.
func (f *farm) socksThrough(t testing.TB, w who) net.Conn {
	t.Helper()
	c := f.tunnel(t, w, f.at("socks.test"))
	p := f.ports["echo.test"]
	b := make([]byte, 2)
	if _, err := io.WriteString(c, "\x05\x01\x00"); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(c, b); err != nil || string(b) != "\x05\x00" {
		t.Fatalf("%q %v", b, err)
	}
	if _, err := c.Write([]byte{5, 1, 0, 1, 127, 0, 0, 1, byte(p >> 8), byte(p)}); err != nil {
		t.Fatal(err)
	}
	b = make([]byte, 10)
	if _, err := io.ReadFull(c, b); err != nil || b[1] != 0 {
		t.Fatalf("%q %v", b, err)
	}
	return c
}

// bySOCKS is a tunnel by egressd's own SOCKS5.
func (f *farm) bySOCKS(t testing.TB, w who, target string) net.Conn {
	t.Helper()
	d, err := socks.SOCKS5("tcp", f.addr, &socks.Auth{User: w.id, Password: w.token}, socks.Direct)
	if err != nil {
		t.Fatal(err)
	}
	c, err := d.Dial("tcp", target)
	if err != nil {
		t.Fatal(err)
	}
	return taped{c, f.rig}
}

// pgConfig is a client's that verifies what egressd shows.
func (f *farm) pgConfig(t testing.TB, w who, user, password string) *pgx.ConnConfig {
	t.Helper()
	c, err := pgx.ParseConfig("host=127.0.0.1 port=1 dbname=app sslmode=disable user=" + user)
	if err != nil {
		t.Fatal(err)
	}
	c.Password, c.ConnectTimeout = password, 10*time.Second
	c.TLSConfig = &tls.Config{ServerName: "pg.test", RootCAs: f.roots()}
	c.DialFunc = func(context.Context, string, string) (net.Conn, error) { return f.tunnel(t, w, f.at("pg.test")), nil }
	return c
}

func (f *farm) pg(t testing.TB, w who) *living {
	t.Helper()
	c, err := pgx.ConnectConfig(t.Context(), f.pgConfig(t, w, "anybody", "whatever"))
	if err != nil {
		t.Fatal(err)
	}
	h, err := c.PgConn().Hijack()
	if err != nil {
		t.Fatal(err)
	}
	query, err := (&pgproto3.Query{String: "select 'p' || 'ong'"}).Encode(nil)
	if err != nil {
		t.Fatal(err)
	}
	return f.raw(t, "postgres", "login", h.Conn, string(query), "pong")
}

func (f *farm) sshClient(t testing.TB, w who) *ssh.Client {
	t.Helper()
	signer, err := ssh.ParsePrivateKey([]byte(f.key))
	if err != nil {
		t.Fatal(err)
	}
	c, chans, reqs, err := ssh.NewClientConn(f.tunnel(t, w, f.at("ssh.test")), f.at("ssh.test"), &ssh.ClientConfig{
		User: "anybody", Auth: []ssh.AuthMethod{ssh.PublicKeys(signer)}, Timeout: 10 * time.Second,
		HostKeyCallback: func(string, net.Addr, ssh.PublicKey) error { return nil },
	})
	if err != nil {
		t.Fatal(err)
	}
	return ssh.NewClient(c, chans, reqs)
}

func (f *farm) shell(t testing.TB, w who) *living {
	t.Helper()
	c := f.sshClient(t, w)
	sess, err := c.NewSession()
	if err != nil {
		t.Fatal(err)
	}
	in, err1 := sess.StdinPipe()
	out, err2 := sess.StdoutPipe()
	if err := errors.Join(err1, err2, sess.Start("exec cat")); err != nil {
		t.Fatal(err)
	}
	return watchLiving(t, "ssh", "key", "ping", out, func() error { _, err := io.WriteString(in, "ping\n"); return err }, func() { _ = c.Close() })
}

func (f *farm) websocket(t testing.TB, w who) *living {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	c, _, err := websocket.Dial(ctx, "wss://"+f.at("api.test")+"/ws", &websocket.DialOptions{HTTPClient: f.client(w.id, w.token, false)})
	if err != nil {
		t.Fatal(err)
	}
	nc := websocket.NetConn(context.Background(), c, websocket.MessageText)
	return watchLiving(t, "websocket", "tok", "ping", nc, func() error { _, err := io.WriteString(nc, "ping"); return err }, func() { _ = c.CloseNow() })
}

// stream is an h2 stream that is open both ways.
func (f *farm) stream(t testing.TB, w who, ctype string) *living {
	t.Helper()
	c := f.client(w.id, w.token, true)
	c.Timeout = 0
	body, in := io.Pipe()
	req, err := http.NewRequest(http.MethodPost, "https://"+f.at("api.test")+"/duplex", body)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", ctype)
	req.Header.Set("Te", "trailers")
	resp, err := c.Do(req)
	if err != nil || resp.StatusCode != http.StatusOK || resp.ProtoMajor != 2 {
		t.Fatalf("%v %+v", err, resp)
	}
	l := watchLiving(t, "h2 stream "+ctype, "tok", "ping", resp.Body, func() error { _, err := io.WriteString(in, "ping\n"); return err },
		func() { _, _ = in.Close(), resp.Body.Close() })
	return l
}

// events is an answer that goes on by itself.
func (f *farm) events(t testing.TB, w who, host string, h2 bool) *living {
	t.Helper()
	c := f.client(w.id, w.token, h2)
	c.Timeout = 0
	resp, err := c.Get("https://" + f.at(host) + "/sse?n=2000&ms=50")
	if err != nil {
		t.Fatal(err)
	}
	return watchLiving(t, fmt.Sprintf("sse of %s, h2=%v", host, h2), "tok", "data:", resp.Body, func() error { return nil }, func() { _ = resp.Body.Close() })
}
