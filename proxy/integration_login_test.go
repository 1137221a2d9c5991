package proxy_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/egressd/egressd/internal/audit"
	"github.com/egressd/egressd/internal/testbed"
	"github.com/egressd/egressd/proxy"
	"github.com/egressd/egressd/store"
)

const loginPolicy = `
apiVersion: egressd/v1
sandboxes:
  - id: one
    team: acme
    identify: {proxyTokens: ["TOKENONE"]}
    network:
      egress:
        trafficRules:
          - {name: good, action: allow, domains: [good.test]}
          - {name: mtls, action: allow, domains: [mtls.test], appProtocols: [tls, mqtt]}
          - {name: all, action: allow, domains: [redis.test, rediss.test, strict.test, need.test, mqtt.test, mqtts.test, pg.test, pgneed.test, both.test]}
        credentialRules:
          - {name: good-token, credentialRef: gh, protocol: https, domains: [good.test]}
          - {name: redis, credentialRef: login, protocol: redis, allowCleartext: true, domains: [redis.test]}
          - {name: rediss, credentialRef: login, protocol: redis, domains: [rediss.test, strict.test]}
          - {name: need, credentialRef: login, allowCleartext: true, domains: [need.test], sandboxLogin: {username: sandbox, password: its-placeholder}}
          - {name: mqtt, credentialRef: login, protocol: mqtt, domains: [mqtt.test, mqtts.test, both.test]}
          - {name: pg, credentialRef: login, protocol: postgres, domains: [pg.test]}
          - {name: pgneed, credentialRef: login, protocol: postgres, domains: [pgneed.test], sandboxLogin: {username: sandbox, password: its-placeholder}}
          - {name: cert, credentialRef: cert, protocol: tls, domains: [mtls.test, both.test]}
      credentialBindings:
        - {ref: login, sourceRef: login, projection: {type: username_password}}
        - {ref: cert, sourceRef: cert, projection: {type: tls_client_certificate}}
        - ref: gh
          sourceRef: gh-source
          projection: {type: http_headers, httpHeaders: {headers: [{name: Authorization, valueTemplate: "Bearer {{ .token }}"}]}}
`

func loginRig(t *testing.T, l proxy.Limits) *rig {
	t.Helper()
	hosts := map[string]string{}
	for _, h := range []string{"redis", "rediss", "strict", "need", "mqtt", "mqtts", "pg", "pgneed", "mtls", "both"} {
		hosts[h+".test"] = "127.0.0.1"
	}
	g := attacked(t, options{hosts: hosts, limits: l})
	g.logsIn("acme", canary)
	g.use(loginPolicy)
	return g
}

// resp says one command in RESP2 and gives the line that answers it.
func resp(t testing.TB, c net.Conn, args ...string) string {
	t.Helper()
	var b bytes.Buffer
	fmt.Fprintf(&b, "*%d\r\n", len(args))
	for _, a := range args {
		fmt.Fprintf(&b, "$%d\r\n%s\r\n", len(a), a)
	}
	_ = c.SetDeadline(time.Now().Add(5 * time.Second))
	if _, err := c.Write(b.Bytes()); err != nil {
		return err.Error()
	}
	return line(c)
}

func line(c io.Reader) string {
	var out []byte
	for one := make([]byte, 1); !bytes.HasSuffix(out, []byte("\r\n")); {
		if _, err := c.Read(one); err != nil {
			return string(out) + err.Error()
		}
		out = append(out, one[0])
	}
	return strings.TrimSuffix(string(out), "\r\n")
}

func at(host string, port uint16) string { return fmt.Sprintf("%s:%d", host, port) }

// loggedIn waits for the line of a login.
func (g *rig) loggedIn(t testing.TB, protocol, rule string, version uint64) audit.Record {
	t.Helper()
	return g.records.wait(t, func(a audit.Record) bool {
		return a.Sandbox == "one" && a.Team == "acme" && a.Protocol == protocol && a.CredentialRule == rule && a.Source == "login" && a.Version == version &&
			a.BytesIn > 0 && a.BytesOut > 0 && a.Outcome == "allowed"
	})
}

func TestRedisThroughTheProxy(t *testing.T) {
	t.Parallel()
	g := loginRig(t, proxy.Limits{})
	plain, secured := redisServer(t, nil, ""), redisServer(t, g.bed.CA, "rediss.test")
	t.Run("in the clear where it may be", func(t *testing.T) {
		c := g.tunnel(t, sandboxOne, at("redis.test", plain))
		for _, say := range []struct{ args, want string }{
			{"AUTH thief stolen", "+OK"}, {"ACL WHOAMI", "$3"}, {"SET k v", "+OK"},
		} {
			if got := resp(t, c, strings.Fields(say.args)...); got != say.want {
				t.Errorf("%s: %q", say.args, got)
			}
			if say.want == "$3" {
				if got := line(c); got != "app" {
					t.Errorf("it is %q", got)
				}
			}
		}
		_ = c.Close()
		g.loggedIn(t, "redis", "redis", 1)
	})
	t.Run("in the clear where it may not be", func(t *testing.T) {
		c := g.tunnel(t, sandboxOne, at("strict.test", plain))
		if got := resp(t, c, "PING"); !strings.HasPrefix(got, "-ERR egressd: plaintext_credential_refused, request ") {
			t.Errorf("%q", got)
		}
		g.audited(t, "plaintext_credential_refused", "")
	})
	for _, alpn := range [][]string{nil, {"redis"}} {
		t.Run(fmt.Sprintf("in TLS, ALPN %v", alpn), func(t *testing.T) {
			c := g.tunnelTLS(t, sandboxOne, at("rediss.test", secured), alpn...)
			if got := resp(t, c, "ACL", "WHOAMI"); got != "$3" || line(c) != "app" {
				t.Errorf("%q", got)
			}
			_ = c.Close()
			g.loggedIn(t, "redis", "rediss", 1)
		})
	}
	t.Run("another certificate", func(t *testing.T) {
		other := redisServer(t, testbed.NewCA(t), "rediss.test")
		c := g.tunnelTLS(t, sandboxOne, at("rediss.test", other))
		if got := resp(t, c, "PING"); got != "-ERR egressd: upstream_tls_failed" {
			t.Errorf("%q", got)
		}
		g.audited(t, "upstream_tls_failed", "")
	})
	t.Run("its own login has to be the placeholder", func(t *testing.T) {
		for _, say := range []struct {
			args []string
			want string
		}{
			{[]string{"AUTH", "sandbox", "wrong"}, "-"}, {[]string{"AUTH", "its-placeholder"}, "-"}, {[]string{"GET", "k"}, "-"},
			{[]string{"AUTH", "sandbox", "its-placeholder"}, "+OK"},
			{[]string{"AUTH", "app", canary2}, "-"}, // another account's own password is not what the rule says
		} {
			c := g.tunnel(t, sandboxOne, at("need.test", plain))
			got := resp(t, c, say.args...)
			if !strings.HasPrefix(got, say.want) {
				t.Errorf("%q: %q", say.args, got)
			}
			if after := resp(t, c, "GET", "k"); (say.want == "+OK") != (after == "$1") {
				t.Errorf("%q, and then GET: %q", say.args, after)
			}
			_ = c.Close()
		}
		g.audited(t, "sandbox_login_refused", "")
	})
	t.Run("rotation", func(t *testing.T) {
		c := g.tunnel(t, sandboxOne, at("redis.test", plain))
		if got := resp(t, c, "PING"); got != "+PONG" {
			t.Fatalf("%q", got)
		}
		g.logsIn("acme", canary2) // graceful: what is open stays, and logs in anew with this one
		if got := resp(t, c, "PING"); got != "+PONG" {
			t.Errorf("%q", got)
		}
		if got := resp(t, c, "AUTH", "x", "y"); got != "+OK" {
			t.Errorf("%q", got)
		}
		for _, k := range g.srv.Connections() {
			if k.Protocol == "redis" && (k.Version != 2 || k.Source != "login" || k.Rule != "redis") {
				t.Errorf("%+v", k)
			}
		}
		g.srv.CloseSource("acme", "login", 2)
		if got := resp(t, c, "PING"); got != "+PONG" {
			t.Errorf("what logged in with the new version was closed: %q", got)
		}
		_ = c.Close()
		g.loggedIn(t, "redis", "redis", 2)
		g.logsIn("acme", "egressd-fake-that-nobody-takes")
		refused := g.tunnel(t, sandboxOne, at("redis.test", plain))
		if got := resp(t, refused, "PING"); got != "-ERR egressd: upstream_login_refused" {
			t.Errorf("%q", got)
		}
		g.audited(t, "upstream_login_refused", "")
		g.logsIn("acme", canary)
	})
	t.Run("the source fails", func(t *testing.T) {
		g.setStatus(t, "login", store.Disabled)
		defer g.setStatus(t, "login", store.Active)
		if got := resp(t, g.tunnel(t, sandboxOne, at("redis.test", plain)), "PING"); got != "-ERR egressd: source_disabled" {
			t.Errorf("%q", got)
		}
		g.audited(t, "source_disabled", "")
	})
	g.safe(t)
}

func TestMQTTThroughTheProxy(t *testing.T) {
	t.Parallel()
	g := loginRig(t, proxy.Limits{})
	ca := g.bed.CA
	client := ca.ClientCert(t, "sandbox-one")
	g.put("acme", "cert", "static_tls_client_certificate", map[string]any{"staticTLSClientCertificate": map[string]string{
		"certificatePem": testbed.CertPEM(client), "privateKeyPem": testbed.KeyPEM(t, client)}})
	plain, secured := broker(t, nil, ""), broker(t, ca, "mqtts.test")
	byCert := broker(t, ca, "mtls.test", "require_certificate true", "use_identity_as_username true", "allow_anonymous false")
	users := fileOf(t, "users", "")
	if out, err := exec.Command(tool(t, "mosquitto_passwd"), "-b", users, "app", canary).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	byBoth := broker(t, ca, "both.test", "require_certificate true", "allow_anonymous false", "password_file "+users)
	connect := "\x10\x0f\x00\x04MQTT\x04\x02\x00\x00\x00\x03one"
	connect5 := "\x10\x10\x00\x04MQTT\x05\x02\x00\x00\x00\x00\x03one"
	t.Run("in the clear where it may not be", func(t *testing.T) {
		for say, want := range map[string]string{connect: "\x20\x02\x00\x05", connect5: "\x20\x03\x00\x87\x00"} {
			if got, closed := g.talk(g.tunnel(t, sandboxOne, at("mqtt.test", plain)), say, 3*time.Second); string(got) != want || !closed {
				t.Errorf("%q %v, want %q", got, closed, want)
			}
		}
		g.audited(t, "plaintext_credential_refused", "")
	})
	t.Run("its own login has to be the placeholder", func(t *testing.T) {
		for _, try := range []struct{ user, password, want string }{
			{"sandbox", "its-placeholder", "\x20\x02\x00\x00"}, {"sandbox", "wrong", "\x20\x02\x00\x04"}, {"app", canary, "\x20\x02\x00\x04"},
		} {
			rest := "\x00\x04MQTT\x04\xc2\x00\x00\x00\x03one\x00" + string(rune(len(try.user))) + try.user + "\x00" + string(rune(len(try.password))) + try.password
			if got, _ := g.talk(g.tunnel(t, sandboxOne, at("need.test", plain)), "\x10"+string(rune(len(rest)))+rest, 700*time.Millisecond); string(got) != try.want {
				t.Errorf("%s: %q, want %q", try.user, got, try.want)
			}
		}
		g.audited(t, "sandbox_login_refused", "")
	})
	for _, tc := range []struct {
		name, host, rule string
		port             uint16
		cert             bool
		alpn             []string
	}{
		{"a login", "mqtts.test", "mqtt", secured, false, nil},
		{"a login, ALPN", "mqtts.test", "mqtt", secured, false, []string{"mqtt"}},
		{"a certificate alone", "mtls.test", "", byCert, true, nil},
		{"a certificate alone, ALPN", "mtls.test", "", byCert, true, []string{"mqtt"}},
		{"a certificate beside a login", "both.test", "mqtt", byBoth, true, nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			g.forget()
			c := g.tunnelTLS(t, sandboxOne, at(tc.host, tc.port), tc.alpn...)
			got, _ := g.talk(c, connect, 700*time.Millisecond)
			if string(got) != "\x20\x02\x00\x00" {
				t.Errorf("CONNACK %q", got)
			}
			for _, k := range g.srv.Connections() {
				if strings.HasPrefix(k.Destination, tc.host) && (k.Protocol != "mqtt" || k.Source == "" || k.Version != 1) {
					t.Errorf("%+v", k)
				}
			}
			_ = c.Close()
			a := g.records.wait(t, func(a audit.Record) bool { return strings.HasPrefix(a.Destination, tc.host) && a.Outcome == "allowed" })
			if a.CredentialRule != tc.rule || (a.Source == "login") != (tc.rule != "") || (a.ClientCertSource == "cert") != tc.cert || a.BytesIn == 0 || a.BytesOut == 0 {
				t.Errorf("%+v", a)
			}
		})
	}
	t.Run("a certificate that is taken away", func(t *testing.T) {
		c := g.tunnelTLS(t, sandboxOne, at("mtls.test", byCert))
		_, _ = g.talk(c, connect, 500*time.Millisecond)
		g.setStatus(t, "cert", store.Disabled)
		if _, closed := g.talk(c, "", time.Second); !closed {
			t.Error("it goes on")
		}
		for _, host := range []string{"mtls.test", "both.test"} {
			if got, closed := g.talk(g.tunnelTLS(t, sandboxOne, at(host, byBoth)), connect, 3*time.Second); !closed || strings.HasPrefix(string(got), "\x20\x02\x00\x00") {
				t.Errorf("%s without it: %q %v", host, got, closed)
			}
		}
		g.audited(t, "source_disabled", "")
		g.setStatus(t, "cert", store.Active)
	})
	g.safe(t)
}

func TestPostgresThroughTheProxy(t *testing.T) {
	t.Parallel()
	g := loginRig(t, proxy.Limits{})
	port := postgresServer(t, g.bed.CA, "pg.test")
	pg := func(host string, user, password string, withTLS bool) (string, error) {
		c, err := pgx.ParseConfig("host=127.0.0.1 port=1 dbname=app sslmode=disable user=" + user)
		if err != nil {
			t.Fatal(err)
		}
		c.Password, c.ConnectTimeout = password, 5*time.Second
		if withTLS {
			c.TLSConfig = &tls.Config{ServerName: host, RootCAs: g.roots()}
		}
		c.DialFunc = func(context.Context, string, string) (net.Conn, error) {
			return g.tunnel(t, sandboxOne, at(host, port)), nil
		}
		conn, err := pgx.ConnectConfig(t.Context(), c)
		if err != nil {
			return "", err
		}
		defer func() { _ = conn.Close(context.Background()) }()
		var who string
		err = conn.QueryRow(t.Context(), "select session_user").Scan(&who)
		return who, err
	}
	if who, err := pg("pg.test", "anybody", "anything", true); who != "app" || err != nil {
		t.Errorf("%q %v", who, err)
	}
	g.loggedIn(t, "postgres", "pg", 1)
	if who, err := pg("pg.test", "anybody", "anything", false); who != "app" || err != nil { // egressd's own side is TLS
		t.Errorf("without TLS: %q %v", who, err)
	}
	// The server's certificate is for pg.test: it gets nothing as pgneed.test.
	if who, err := pg("pgneed.test", "sandbox", "its-placeholder", true); err == nil || !strings.Contains(err.Error(), "upstream_tls_failed") {
		t.Errorf("another name: %q %v", who, err)
	}
	g.audited(t, "upstream_tls_failed", "")
	g.use(strings.ReplaceAll(strings.ReplaceAll(loginPolicy, "domains: [pg.test]}", "domains: [nobody.test]}"), "domains: [pgneed.test]", "domains: [pg.test]"))
	for _, tc := range []struct {
		user, password string
		ok             bool
	}{{"sandbox", "its-placeholder", true}, {"sandbox", "wrong", false}, {"app", "its-placeholder", false}, {"app", canary, false}} {
		who, err := pg("pg.test", tc.user, tc.password, true)
		if (err == nil) != tc.ok || tc.ok && who != "app" || !tc.ok && !strings.Contains(err.Error(), "sandbox_login_refused") {
			t.Errorf("%s with %s: %q %v", tc.user, tc.password, who, err)
		}
	}
	g.audited(t, "sandbox_login_refused", "")
	t.Run("a server without TLS gets nothing", func(t *testing.T) {
		ln, err := net.Listen("tcp4", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		got := make(chan []byte, 1)
		go func() {
			c, err := ln.Accept()
			if err != nil {
				got <- nil
				return
			}
			_ = c.SetDeadline(time.Now().Add(5 * time.Second))
			_, _ = io.WriteString(c, "N") // to SSLRequest
			b, _ := io.ReadAll(c)
			_ = c.Close()
			got <- b
		}()
		was := port
		port = ln.Addr().(*net.TCPAddr).AddrPort().Port()
		if who, err := pg("pg.test", "sandbox", "its-placeholder", true); err == nil || !strings.Contains(err.Error(), "plaintext_credential_refused") {
			t.Errorf("%q %v", who, err)
		}
		_, port = ln.Close(), was
		if b := <-got; len(b) != 8 {
			t.Errorf("it got %q", b)
		}
		g.audited(t, "plaintext_credential_refused", "")
	})
	g.setStatus(t, "login", store.Disabled)
	if who, err := pg("pg.test", "sandbox", "its-placeholder", true); err == nil || !strings.Contains(err.Error(), "source_disabled") {
		t.Errorf("%q %v", who, err)
	}
	g.safe(t)
}
