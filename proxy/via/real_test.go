package via

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/egressd/egressd/inject"
	"github.com/egressd/egressd/internal/testbed"
	"github.com/egressd/egressd/policy"
)

// echo speaks first, and then says what it hears.
func echo(t *testing.T, network, at string) netip.AddrPort {
	t.Helper()
	ln, err := net.Listen(network, at)
	if err != nil {
		t.Fatal(err)
	}
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
				_, _ = io.WriteString(c, "hello\n")
				_, _ = io.Copy(c, c)
			})
		}
	})
	t.Cleanup(func() { _ = ln.Close(); wg.Wait() })
	return ln.Addr().(*net.TCPAddr).AddrPort()
}

func freePort(t *testing.T) int {
	t.Helper()
	ln, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	return ln.Addr().(*net.TCPAddr).Port
}

// run starts a proxy and waits until it listens.
func run(t *testing.T, port int, name string, args ...string) string {
	t.Helper()
	cmd := exec.Command(testbed.Tool(t, name), args...)
	cmd.Env = []string{"LC_ALL=C"}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	addr := net.JoinHostPort("127.0.0.1", strconv.Itoa(port))
	for range 100 {
		if c, err := net.Dial("tcp4", addr); err == nil {
			_ = c.Close()
			return addr
		}
		time.Sleep(50 * time.Millisecond)
	}
	t.Fatalf("%s does not listen", name)
	return ""
}

func microsocks(t *testing.T, l *inject.Login) string {
	port := freePort(t)
	args := []string{"-i", "127.0.0.1", "-p", strconv.Itoa(port)}
	if l != nil {
		args = append(args, "-u", l.Username, "-P", l.Password.Reveal())
	}
	return run(t, port, "microsocks", args...)
}

func tinyproxy(t *testing.T, l *inject.Login, more ...string) string {
	port := freePort(t)
	conf := fmt.Sprintf("Port %d\nListen 127.0.0.1\nTimeout 10\nMaxClients 20\nLogLevel Error\n%s\n", port, strings.Join(more, "\n"))
	if l != nil {
		conf += "BasicAuth " + l.Username + " " + l.Password.Reveal() + "\n"
	}
	path := filepath.Join(t.TempDir(), "tinyproxy.conf")
	if err := os.WriteFile(path, []byte(conf), 0o600); err != nil {
		t.Fatal(err)
	}
	return run(t, port, "tinyproxy", "-d", "-c", path)
}

func connect(t *testing.T, proxy string, typ policy.ProxyType, target netip.AddrPort, l *inject.Login) (net.Conn, error) {
	t.Helper()
	return connectIn(t, 10*time.Second, proxy, typ, target, l)
}

func connectIn(t *testing.T, limit time.Duration, proxy string, typ policy.ProxyType, target netip.AddrPort, l *inject.Login) (net.Conn, error) {
	t.Helper()
	c, err := net.Dial("tcp4", proxy)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	return c, Connect(ctx, c, typ, target, l)
}

// TestRealProxies goes through microsocks and tinyproxy.
func TestRealProxies(t *testing.T) {
	v4, v6 := echo(t, "tcp4", "127.0.0.1:0"), echo(t, "tcp6", "[::1]:0")
	nobody := netip.AddrPortFrom(v4.Addr(), uint16(freePort(t)))
	good, bad := login("user", rand.Text()), login("user", rand.Text())
	for _, p := range []struct {
		name  string
		typ   policy.ProxyType
		start func(*testing.T, *inject.Login) string
	}{
		{"microsocks", policy.ProxySOCKS5, microsocks},
		{"tinyproxy", policy.ProxyHTTP, func(t *testing.T, l *inject.Login) string { return tinyproxy(t, l) }},
	} {
		t.Run(p.name, func(t *testing.T) {
			open, locked := p.start(t, nil), p.start(t, good)
			for _, tc := range []struct {
				name   string
				proxy  string
				target netip.AddrPort
				login  *inject.Login
				want   error
			}{
				{"IPv4", open, v4, nil, nil},
				{"IPv6", open, v6, nil, nil},
				{"login", locked, v4, good, nil},
				{"login, IPv6", locked, v6, good, nil},
				{"wrong password", locked, v4, bad, ErrLogin},
				{"no login", locked, v4, nil, ErrLogin},
				{"nobody there", open, nobody, nil, ErrUnreachable},
			} {
				t.Run(tc.name, func(t *testing.T) {
					c, err := connect(t, tc.proxy, p.typ, tc.target, tc.login)
					if !errors.Is(err, tc.want) {
						t.Fatalf("%v, want %v", err, tc.want)
					}
					if err == nil {
						converse(t, c)
					}
				})
			}
		})
	}
	t.Run("tinyproxy forbids", func(t *testing.T) {
		at := tinyproxy(t, nil, "ConnectPort 1")
		if _, err := connect(t, at, policy.ProxyHTTP, v4, nil); !errors.Is(err, ErrForbidden) {
			t.Error(err)
		}
	})
	t.Run("the wrong protocol", func(t *testing.T) {
		socks, http := microsocks(t, nil), tinyproxy(t, nil)
		if _, err := connectIn(t, time.Second, socks, policy.ProxyHTTP, v4, nil); err == nil {
			t.Error("microsocks speaks http")
		}
		if _, err := connectIn(t, time.Second, http, policy.ProxySOCKS5, v4, nil); err == nil {
			t.Error("tinyproxy speaks socks")
		}
	})
}

// converse hears the first word and sends a megabyte there and back.
func converse(t *testing.T, c net.Conn) {
	t.Helper()
	_ = c.SetDeadline(time.Now().Add(10 * time.Second))
	hello := make([]byte, 6)
	if _, err := io.ReadFull(c, hello); err != nil || string(hello) != "hello\n" {
		t.Fatalf("%q: %v", hello, err)
	}
	sent := make([]byte, 1<<20)
	_, _ = rand.Read(sent)
	done := make(chan error, 1)
	go func() {
		_, err := c.Write(sent)
		done <- err
	}()
	got := make([]byte, len(sent))
	if _, err := io.ReadFull(c, got); err != nil || string(got) != string(sent) {
		t.Errorf("what came back is not what was sent: %v", err)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
}
