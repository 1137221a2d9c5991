package redis

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/egressd/egressd/inject"
	"github.com/egressd/egressd/internal/secret"
	"github.com/egressd/egressd/internal/testbed"
	"github.com/egressd/egressd/proxy/wire"
)

// server is a redis-server with requirepass and an ACL user app.
func server(t *testing.T, root, app string, extra ...string) string {
	t.Helper()
	port := freePort(t)
	conf := append([]string{
		"bind 127.0.0.1", "port " + port, `save ""`, "appendonly no", "daemonize no", "dir " + t.TempDir(),
		"requirepass " + quote(root),
		"user app on >" + app + " ~* &* +@all",
		"user weak on >" + app + "weak ~* &* +@all -client -select",
	}, extra...)
	daemon(t, "redis-server", write(t, "redis.conf", strings.Join(conf, "\n")+"\n"))
	return awaitPort(t, port)
}

func quote(s string) string { return `"` + s + `"` }

// talk sends raw bytes and returns what is answered until the gate or the sandbox closes.
func talk(t *testing.T, g *gate, in string) string {
	t.Helper()
	c := dialGate(t, g)
	if _, err := io.WriteString(c, in); err != nil {
		t.Fatal(err)
	}
	out, err := io.ReadAll(c)
	_ = c.Close()
	if err != nil {
		t.Errorf("after %q: %v", out, err)
	}
	return string(out)
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

func cmd(args ...string) string { return string(array(args...)) }

const quit = "*1\r\n$4\r\nQUIT\r\n"

func TestRealRedis_redis_cli(t *testing.T) {
	root, app := testbed.NewToken(), testbed.NewToken()
	addr := server(t, root, app)
	users := map[string]func() (*inject.Login, error){
		"": fixed("", root), "default": fixed("default", root), "app": fixed("app", app), "weak": fixed("weak", app+"weak"),
	}
	for user, login := range users {
		for _, flags := range [][]string{
			nil, {"-3"}, {"-a", "whatever", "--no-auth-warning"}, {"--user", "me", "--pass", "mine", "--no-auth-warning"},
			{"-3", "--user", "me", "--pass", "mine", "--no-auth-warning"},
		} {
			t.Run(fmt.Sprintf("as %q with %v", user, flags), func(t *testing.T) {
				g := newGate(t, gateOptions{upstream: addr, login: login})
				script := "SET k1 \"with spaces\"\nGET k1\nACL WHOAMI\nAUTH other login\nHELLO 3 AUTH x y SETNAME n\nGET k1\nRESET\nGET k1\nMULTI\nAUTH z\nINCR n\nEXEC\n"
				out, err := run(t, script, "redis-cli", append([]string{"-p", g.port()}, flags...)...)
				name := user
				if name == "" {
					name = "default"
				}
				lines := strings.Split(out, "\n")
				if err != nil || len(lines) < 4 || lines[0] != "OK" || lines[1] != "with spaces" || lines[2] != name || lines[3] != "OK" ||
					strings.Count(out, "with spaces") != 3 || !strings.Contains(out, "RESET\n") || strings.Contains(out, "ERR") || strings.Contains(out, "NOAUTH") {
					t.Errorf("%v:\n%s", err, out)
				}
				testbed.NoLeak(t, "what the sandbox got", g.toSandbox(), root, app)
			})
		}
	}
}

func TestRealRedis_in_TLS(t *testing.T) {
	root, app := testbed.NewToken(), testbed.NewToken()
	ca, leaf, srv, cli := secure(t)
	port := freePort(t)
	server(t, root, app, "tls-port "+port, "tls-auth-clients no",
		"tls-cert-file "+write(t, "cert.pem", testbed.CertPEM(leaf)), "tls-key-file "+write(t, "key.pem", testbed.KeyPEM(t, leaf)), "tls-ca-cert-file "+ca.File(t))
	g := newGate(t, gateOptions{upstream: awaitPort(t, port), serverTLS: srv, clientTLS: cli, noClear: true, login: fixed("app", app)})
	out, err := run(t, "SET k v\nGET k\nACL WHOAMI\n", "redis-cli", "-3", "-p", g.port(), "--tls", "--cacert", ca.File(t), "--sni", "good.test")
	if err != nil || out != "OK\nv\napp\n" {
		t.Errorf("%v:\n%s", err, out)
	}
}

// TestRealRedis_order: pipelined logins of all kinds are answered where they stand.
func TestRealRedis_order(t *testing.T) {
	root, app := testbed.NewToken(), testbed.NewToken()
	addr := server(t, root, app)
	g := newGate(t, gateOptions{upstream: addr, login: fixed("app", app)})
	in := cmd("SET", "a", "1") + cmd("AUTH", "x", "y") + cmd("GET", "a") + cmd("RESET") + cmd("GET", "a") + cmd("RESET") + cmd("RESET") +
		cmd("INCR", "a") + cmd("AUTH", "x", "y", "z") + "PING\r\n\r\n*0\r\n*-1\r\n" + "auth only\r\n" + cmd("reset", "x") + cmd("MULTI") + cmd("AUTH", "p") + cmd("GET", "a") + cmd("EXEC") +
		cmd("ACL", "WHOAMI") + cmd("SUBSCRIBE", "c") + cmd("RESET") + cmd("GET", "a") + cmd("CLIENT", "REPLY", "OFF") + cmd("SET", "a", "7") + cmd("RESET") + cmd("GET", "a") + quit
	want := "+OK\r\n+OK\r\n$1\r\n1\r\n+RESET\r\n$1\r\n1\r\n+RESET\r\n+RESET\r\n:2\r\n" +
		"-ERR wrong number of arguments for 'auth' command\r\n+PONG\r\n+OK\r\n-ERR wrong number of arguments for 'reset' command\r\n" +
		"+OK\r\n+QUEUED\r\n+QUEUED\r\n*2\r\n+OK\r\n$1\r\n2\r\n$3\r\napp\r\n*3\r\n$9\r\nsubscribe\r\n$1\r\nc\r\n:1\r\n+RESET\r\n$1\r\n2\r\n+RESET\r\n$1\r\n7\r\n+OK\r\n"
	if out := talk(t, g, in); out != want {
		t.Errorf("got  %q\nwant %q", out, want)
	}
	if code := g.code(t); code != "" {
		t.Error(code)
	}
}

// TestRealRedis_secrets_stay: what shows or changes or uses elsewhere the server's secrets
// is refused in its place.
func TestRealRedis_secrets_stay(t *testing.T) {
	root, app := testbed.NewToken(), testbed.NewToken()
	addr := server(t, root, app)
	g := newGate(t, gateOptions{upstream: addr, login: fixed("", root)})
	refused := [][]string{
		{"CONFIG", "GET", "requirepass"}, {"config", "get", "REQUIREPASS"}, {"CONFIG", "GET", "*"}, {"CONFIG", "GET", "r*"}, {"CONFIG", "GET", "maxmemory", "require????"},
		{"CONFIG", "GET", "[r]equirepass"}, {"CONFIG", "GET", `\requirepass`}, {"CONFIG", "GET", "masterauth"}, {"CONFIG", "GET", "requirepass\x00x"},
		{"CONFIG", "SET", "requirepass", "mine"}, {"CONFIG", "SET", "maxmemory", "0", "requirepass", "mine"}, {"CONFIG", "GET\x00x", "requirepass"},
		{"ACL", "SETUSER", "me", "on", "nopass", "+@all"}, {"ACL", "GETUSER", "default"}, {"ACL", "LIST"}, {"ACL", "DELUSER", "app"}, {"ACL"}, {"ACL", "LOAD"},
		{"REPLICAOF", "127.0.0.1", "1"}, {"SLAVEOF", "127.0.0.1", "1"}, {"SENTINEL", "CONFIG", "GET", "*"}, {"SENTINEL", "SET", "m", "auth-pass", "x"},
		{"CONFIG|GET", "requirepass"}, {"HELLO", "3", "AUTH", "u", "p", "AUTH", "a", "b"}, {"HELLO", "3", "AUTH\x00", "u", "p"}, {"HELLO", "3", "AUTH", "u"},
	}
	allowed := [][]string{
		{"CONFIG", "GET", "maxmemory"}, {"CONFIG", "GET", "max*"}, {"CONFIG", "SET", "notify-keyspace-events", "Ex"}, {"CONFIG", "RESETSTAT"},
		{"ACL", "WHOAMI"}, {"ACL", "CAT"}, {"SLOWLOG", "GET"}, {"CLIENT", "LIST"}, {"INFO"}, {"COMMAND", "COUNT"},
		{"EVAL", "return redis.pcall('CONFIG','GET','requirepass')", "0"}, {"EVAL", "return redis.pcall('AUTH','x')", "0"},
	}
	in := cmd("CONFIG", "SET", "slowlog-log-slower-than", "0") + cmd("AUTH", "x")
	for _, c := range append(refused, allowed...) {
		in += cmd(c...)
	}
	out := talk(t, g, in+quit)
	if n := strings.Count(out, "-ERR unknown command 'egressd:"); n != len(refused) {
		t.Errorf("%d of %d refused:\n%.3000s", n, len(refused), out)
	}
	testbed.NoLeak(t, "what the sandbox got", []byte(out), root, app)
	// MONITOR, of a login beside it.
	c := dialGate(t, g)
	_, _ = io.WriteString(c, cmd("MONITOR"))
	br := bufio.NewReader(c)
	if line, err := br.ReadString('\n'); line != "+OK\r\n" {
		t.Fatalf("%q, %v", line, err)
	}
	talk(t, g, cmd("AUTH", "x")+cmd("HELLO", "2", "AUTH", "x", "y")+cmd("SET", "beside", "1")+quit)
	var seen strings.Builder
	for !strings.Contains(seen.String(), `"beside"`) {
		line, err := br.ReadString('\n')
		if err != nil {
			t.Fatalf("%q, %v", seen.String(), err)
		}
		seen.WriteString(line)
	}
	_ = c.Close()
	testbed.NoLeak(t, "what MONITOR shows", []byte(seen.String()), root, app)
}

// TestAttack_A15_own_account: a sandbox that has an account of its own there does not get
// to use it, whatever it tries.
func TestAttack_A15_own_account(t *testing.T) {
	root, app := testbed.NewToken(), testbed.NewToken()
	addr := server(t, root, app, "user thief on >thief1234 ~* &* +@all")
	for name, in := range map[string]string{
		"AUTH":                   cmd("AUTH", "thief", "thief1234"),
		"AUTH in lower case":     cmd("auth", "thief", "thief1234"),
		"AUTH inline":            "AUTH thief thief1234\r\n",
		"AUTH inline in tabs":    "\t aUtH\tthief   thief1234 \r\n",
		"HELLO":                  cmd("HELLO", "2", "AUTH", "thief", "thief1234"),
		"HELLO, options crossed": cmd("HELLO", "2", "SETNAME", "x", "AUTH", "thief", "thief1234"),
		"HELLO inline":           "hello 2 setname x auth thief thief1234\r\n",
		"after RESET":            cmd("RESET") + cmd("AUTH", "thief", "thief1234"),
		"in a transaction":       cmd("MULTI") + cmd("AUTH", "thief", "thief1234") + cmd("EXEC"),
		"behind a big value":     cmd("SET", "k", strings.Repeat("x", 100000)) + cmd("AUTH", "thief", "thief1234"),
		"inside a value":         cmd("SET", "k", cmd("AUTH", "thief", "thief1234")) + cmd("AUTH", "thief", "thief1234"),
		"in pieces":              "*3\r\n$4\r\nAU",
	} {
		t.Run(name, func(t *testing.T) {
			g := newGate(t, gateOptions{upstream: addr, login: fixed("app", app)})
			c := dialGate(t, g)
			_, _ = io.WriteString(c, in)
			if name == "in pieces" {
				time.Sleep(20 * time.Millisecond)
				for _, b := range []byte("TH\r\n$5\r\nthief\r\n$9\r\nthief1234\r\n") {
					_, _ = c.Write([]byte{b})
					time.Sleep(time.Millisecond)
				}
			}
			_, _ = io.WriteString(c, cmd("ACL", "WHOAMI")+quit)
			out, err := io.ReadAll(c)
			_ = c.Close()
			if err != nil || !strings.HasSuffix(string(out), "$3\r\napp\r\n+OK\r\n") {
				t.Errorf("%q, %v", out, err)
			}
			testbed.NoLeak(t, "what the sandbox got", out, app)
		})
	}
}

// TestNotRedis: what is not strictly RESP ends the connection, and nothing of
// it reaches the server.
func TestNotRedis(t *testing.T) {
	root, app := testbed.NewToken(), testbed.NewToken()
	addr := server(t, root, app, "user thief on >thief1234 ~* &* +@all")
	for name, in := range map[string]string{
		"NUL in the name":          cmd("AUTH\x00x", "thief", "thief1234"),
		"blank in the name":        cmd(" AUTH", "thief", "thief1234"),
		"empty name":               cmd("", "x"),
		"long name":                cmd(strings.Repeat("A", 129)),
		"LF alone":                 "*1\n$4\nPING\n",
		"count with a sign":        "*+1\r\n$4\r\nPING\r\n",
		"count with a zero before": "*01\r\n$4\r\nPING\r\n",
		"count that overflows":     "*99999999999999999999\r\n$4\r\nPING\r\n",
		"huge count":               "*1073741824\r\n$4\r\nPING\r\n",
		"huge bulk":                "*2\r\n$4\r\nECHO\r\n$1073741824\r\n",
		"bulk of a negative size":  "*2\r\n$4\r\nECHO\r\n$-1\r\n",
		"bulk that ends elsewhere": "*2\r\n$4\r\nECHO\r\n$1\r\nabcPING\r\n",
		"name that ends elsewhere": "*1\r\n$4\r\nPINGxx",
		"nested array":             "*2\r\n*1\r\n$4\r\nPING\r\n",
		"CR without LF":            "*1\rX$4\r\nPING\r\n",
		"quoted inline":            "\"AUTH\" thief thief1234\r\n",
		"escaped inline":           "AUT\\x48 thief thief1234\r\n",
		"inline with NUL":          "PING\x00\r\n",
		"endless inline":           strings.Repeat("A", 20000),
		"AUTH of 20 KiB":           cmd("AUTH", strings.Repeat("A", 20000)),
		"HELLO of 100 words":       cmd(append([]string{"HELLO"}, make([]string, 100)...)...),
		"http":                     "GET / HTTP/1.1\r\nHost: x\r\n\r\n" + "\x00\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			g := newGate(t, gateOptions{upstream: addr, login: fixed("app", app)})
			c := dialGate(t, g)
			_, _ = io.WriteString(c, in)
			_, _ = io.ReadAll(c) // a reset is as good
			if code := g.code(t); code != wire.CodeBadRequest {
				t.Errorf("%q", code)
			}
		})
	}
}

func TestRequire(t *testing.T) {
	root, app := testbed.NewToken(), testbed.NewToken()
	addr := server(t, root, app)
	require := func(u, p string) bool { return (u == "sandbox" || u == "default") && p == "placeholder" }
	for _, tc := range []struct{ name, in, want, code string }{
		{"right", cmd("AUTH", "sandbox", "placeholder") + cmd("ACL", "WHOAMI") + quit, "+OK\r\n$3\r\napp\r\n+OK\r\n", ""},
		{"right, of the default user", cmd("AUTH", "placeholder") + cmd("ACL", "WHOAMI") + quit, "+OK\r\n$3\r\napp\r\n+OK\r\n", ""},
		{"second try", cmd("AUTH", "x") + cmd("GET", "a") + "AUTH placeholder\r\n" + cmd("ACL", "WHOAMI") + quit,
			"-WRONGPASS egressd: sandbox_login_refused\r\n-NOAUTH Authentication required.\r\n+OK\r\n$3\r\napp\r\n+OK\r\n", ""},
		{"later wrong", cmd("AUTH", "placeholder") + cmd("AUTH", "x") + cmd("HELLO", "2", "AUTH", "x", "y") + quit,
			"+OK\r\n-ERR unknown command 'egressd:sandbox_login_refused', with args beginning with: \r\n-ERR unknown command 'egressd:sandbox_login_refused', with args beginning with: \r\n+OK\r\n", ""},
		{"never", cmd("GET", "a") + cmd("HELLO", "3") + cmd("HELLO", "3", "AUTH", "sandbox", "x") + cmd("AUTH") + cmd("RESET") + quit,
			"-NOAUTH Authentication required.\r\n-NOAUTH Authentication required.\r\n-WRONGPASS egressd: sandbox_login_refused\r\n-ERR wrong number of arguments for 'auth' command\r\n+RESET\r\n+OK\r\n-ERR egressd: sandbox_login_refused\r\n", wire.CodeAuthRequired},
		{"guessing", strings.Repeat(cmd("AUTH", "x"), 40), strings.Repeat("-WRONGPASS egressd: sandbox_login_refused\r\n", maxBefore) + "-ERR egressd: sandbox_login_refused\r\n", wire.CodeAuthRequired},
		{"not redis", "\x00\r\n", "-ERR egressd: bad_request\r\n", wire.CodeBadRequest},
	} {
		t.Run(tc.name, func(t *testing.T) {
			g := newGate(t, gateOptions{upstream: addr, login: fixed("app", app), require: require})
			if out := talk(t, g, tc.in); out != tc.want {
				t.Errorf("got  %q\nwant %q", out, tc.want)
			}
			if code := g.code(t); code != tc.code {
				t.Errorf("code %q", code)
			}
		})
	}
	g := newGate(t, gateOptions{upstream: addr, login: fixed("app", app), require: require})
	if out := talk(t, g, cmd("HELLO", "3", "AUTH", "sandbox", "placeholder", "SETNAME", "n")+quit); !strings.HasPrefix(out, "%7\r\n$6\r\nserver\r\n$5\r\nredis") {
		t.Errorf("%q", out)
	}
}

func TestRefusals(t *testing.T) {
	root, app := testbed.NewToken(), testbed.NewToken()
	addr := server(t, root, app)
	open := testbed.NewRaw(t, testbed.RawOptions{IP: "127.0.0.1", Serve: func(c *testbed.RawConn) {
		_, _ = c.Read(make([]byte, 512))
		_, _ = io.WriteString(c, "-ERR AUTH <password> called without any password configured for the default user. Are you sure your configuration is correct?\r\n")
	}}).Addr().String()
	http := testbed.NewRaw(t, testbed.RawOptions{IP: "127.0.0.1", Serve: func(c *testbed.RawConn) {
		_, _ = io.WriteString(c, "HTTP/1.1 400 Bad Request\r\n\r\n")
	}}).Addr().String()
	chatty := testbed.NewRaw(t, testbed.RawOptions{IP: "127.0.0.1", Serve: func(c *testbed.RawConn) {
		_, _ = io.WriteString(c, "+OK\r\n+OK\r\n")
		_, _ = c.Read(make([]byte, 512))
	}}).Addr().String()
	gone := &wire.Refusal{Code: inject.CodeSourceDisabled}
	for _, tc := range []struct {
		name string
		o    gateOptions
		code string
	}{
		{"A08 cleartext", gateOptions{upstream: addr, noClear: true, login: fixed("app", app)}, wire.CodePlaintext},
		{"wrong password", gateOptions{upstream: addr, login: fixed("app", "wrong")}, wire.CodeUpstreamLogin},
		{"no such user", gateOptions{upstream: addr, login: fixed("nobody", app)}, wire.CodeUpstreamLogin},
		{"a server that wants no password", gateOptions{upstream: open, login: fixed("", root)}, wire.CodeUpstreamLogin},
		{"not Redis", gateOptions{upstream: http, login: fixed("", root)}, wire.CodeUpstream},
		{"more than an answer", gateOptions{upstream: chatty, login: fixed("", root)}, wire.CodeUpstream},
		{"source gone", gateOptions{upstream: addr, login: func() (*inject.Login, error) { return nil, gone }}, inject.CodeSourceDisabled},
		{"another projection", gateOptions{upstream: addr, login: func() (*inject.Login, error) { return nil, nil }}, wire.CodeUpstreamLogin},
	} {
		t.Run(tc.name, func(t *testing.T) {
			g := newGate(t, tc.o)
			if out := talk(t, g, cmd("HELLO", "3")); out != "-ERR egressd: "+tc.code+"\r\n" {
				t.Errorf("%q", out)
			}
			if code := g.code(t); code != tc.code {
				t.Errorf("code %q", code)
			}
			testbed.NoLeak(t, "errors", []byte(fmt.Sprint(g.ended())), root, app)
		})
	}
}

// TestRotation: a login in mid-stream is made with what the source holds then; when it
// holds nothing, the connection ends.
func TestRotation(t *testing.T) {
	root, app := testbed.NewToken(), testbed.NewToken()
	addr := server(t, root, app)
	var turn atomic.Int32
	g := newGate(t, gateOptions{upstream: addr, login: func() (*inject.Login, error) {
		switch turn.Add(1) {
		case 1:
			return &inject.Login{Username: "app", Password: secret.New(app)}, nil
		case 2:
			return &inject.Login{Password: secret.New(root)}, nil
		}
		return nil, &wire.Refusal{Code: inject.CodeSourceDisabled, Err: errors.New("gone")}
	}})
	c := dialGate(t, g)
	br := bufio.NewReader(c)
	for _, s := range []struct{ in, want string }{
		{cmd("ACL", "WHOAMI"), "$3\r\napp\r\n"}, {cmd("AUTH", "x"), "+OK\r\n"}, {cmd("ACL", "WHOAMI"), "$7\r\ndefault\r\n"}, {cmd("RESET"), ""},
	} {
		_, _ = io.WriteString(c, s.in)
		got := make([]byte, len(s.want))
		if _, err := io.ReadFull(br, got); err != nil || string(got) != s.want {
			t.Fatalf("%q: %q, %v", s.in, got, err)
		}
	}
	if rest, _ := io.ReadAll(br); len(rest) > 0 {
		t.Errorf("%q", rest)
	}
	if code := g.code(t); code != inject.CodeSourceDisabled {
		t.Error(code)
	}
}

// TestRealRedis_bulk carries values larger than every buffer both ways.
func TestRealRedis_bulk(t *testing.T) {
	root, app := testbed.NewToken(), testbed.NewToken()
	g := newGate(t, gateOptions{upstream: server(t, root, app), login: fixed("app", app)})
	big := strings.Repeat("0123456789abcdef\r\n", 1<<19) // 9 MiB
	c := dialGate(t, g)
	go func() { _, _ = io.WriteString(c, cmd("SET", "big", big)+cmd("MGET", "big", "none", "big")+quit) }()
	out, err := io.ReadAll(c)
	_ = c.Close()
	value := fmt.Sprintf("$%d\r\n%s\r\n", len(big), big)
	if want := "+OK\r\n*3\r\n" + value + "$-1\r\n" + value + "+OK\r\n"; err != nil || string(out) != want {
		t.Errorf("%d bytes, %v; want %d", len(out), err, len(want))
	}
	if code := g.code(t); code != "" {
		t.Error(code)
	}
}
