package proxy_test

import (
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/egressd/egressd/proxy"
	"github.com/egressd/egressd/store"
)

// slowRedis takes any login when it is told to, and answers all with PONG.
func slowRedis(t *testing.T) (port uint16, asked chan struct{}, goOn chan struct{}) {
	t.Helper()
	ln, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	asked, goOn = make(chan struct{}), make(chan struct{})
	done := make(chan struct{})
	go func() {
		defer close(done)
		c, err := ln.Accept()
		if err != nil {
			return
		}
		defer func() { _ = c.Close() }()
		_ = c.SetDeadline(time.Now().Add(10 * time.Second))
		b := make([]byte, 1024)
		if _, err := c.Read(b); err != nil { // AUTH
			return
		}
		asked <- struct{}{}
		<-goOn
		for say := "+OK\r\n"; ; say = "+PONG\r\n" {
			if _, err := io.WriteString(c, say); err != nil {
				return
			}
			if _, err := c.Read(b); err != nil {
				return
			}
		}
	}()
	t.Cleanup(func() { _ = ln.Close(); <-done })
	return ln.Addr().(*net.TCPAddr).AddrPort().Port(), asked, goOn
}

// What is taken away while a login is under way is not had when it is done.
func TestTakenAwayDuringALogin(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(t *testing.T, g *rig){
		"policy denies": func(t *testing.T, g *rig) {
			g.use(strings.Replace(loginPolicy, "{name: all, action: allow", "{name: all, action: deny", 1))
		},
		"the rule goes": func(t *testing.T, g *rig) {
			g.use(strings.Replace(loginPolicy, "{name: redis, credentialRef", "{name: redis, rollout: disabled, credentialRef", 1))
		},
		"the token is revoked": func(t *testing.T, g *rig) {
			g.use(strings.Replace(loginPolicy, "TOKENONE", "sha256:"+strings.Repeat("ab", 32), 1))
		},
		"the sandbox is gone": func(t *testing.T, g *rig) {
			g.use(strings.Replace(loginPolicy, "id: one", "id: another", 1))
		},
		"the source is disabled": func(t *testing.T, g *rig) { g.setStatus(t, "login", store.Disabled) },
		"the source is deleted": func(t *testing.T, g *rig) {
			if _, err := g.store.Delete(t.Context(), "acme", "login", 0, "test"); err != nil {
				t.Fatal(err)
			}
			time.Sleep(300 * time.Millisecond) // the resolver hears of it
		},
		"rotated, and closed": func(t *testing.T, g *rig) {
			g.logsIn("acme", "another")
			g.srv.CloseSource("acme", "login", 2)
		},
		"nothing": nil,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			g := loginRig(t, proxy.Limits{})
			port, asked, goOn := slowRedis(t)
			c := g.tunnel(t, sandboxOne, at("redis.test", port))
			if _, err := io.WriteString(c, "*1\r\n$4\r\nPING\r\n"); err != nil {
				t.Fatal(err)
			}
			<-asked
			if change != nil {
				change(t, g)
			}
			close(goOn)
			got, closed := g.talk(c, "", 1500*time.Millisecond)
			if change == nil {
				if string(got) != "+PONG\r\n" || closed {
					t.Errorf("%q %v", got, closed)
				}
			} else if !closed || strings.Contains(string(got), "PONG") {
				t.Errorf("%q %v", got, closed)
			}
			_ = c.Close()
			g.clean(t)
		})
	}
}
