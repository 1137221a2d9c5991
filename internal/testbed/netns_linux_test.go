package testbed

import (
	"io"
	"net"
	"strings"
	"testing"
	"time"
)

func TestNet(t *testing.T) {
	n := NewNet(t)
	n.World.AddAddrs(t, "192.0.2.3", "2001:db8:77::3")
	for _, tc := range []struct {
		name, addr string
		to         *NetNS
	}{
		{"world v4", "192.0.2.2:80", n.World},
		{"world v6", "[2001:db8:77::2]:80", n.World},
		{"world's second v4", "192.0.2.3:80", n.World},
		{"world's second v6", "[2001:db8:77::3]:80", n.World},
		{"router", n.Router.HostPort(false, 80), n.Router},
		{"sandbox b v4", n.SandboxB.HostPort(false, 80), n.SandboxB},
		{"sandbox b v6", n.SandboxB.HostPort(true, 80), n.SandboxB},
	} {
		t.Run(tc.name, func(t *testing.T) {
			ln := tc.to.Listen(t, "tcp", tc.addr)
			done := make(chan struct{})
			go func() {
				defer close(done)
				if c, err := ln.Accept(); err == nil {
					_, _ = io.WriteString(c, c.RemoteAddr().String())
					_ = c.Close()
				}
			}()
			c, err := n.Sandbox.Dial(t, "tcp", tc.addr, 5*time.Second)
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = c.Close() }()
			if from, err := io.ReadAll(c); err != nil || string(from) != c.LocalAddr().String() {
				t.Errorf("the other side saw %q, want %s; %v", from, c.LocalAddr(), err)
			}
			<-done
		})
	}
	out, err := n.Sandbox.Command(t, "ip", "-brief", "addr", "show", "eth0").Output()
	if err != nil || !strings.Contains(string(out), n.Sandbox.V4.String()) || !strings.Contains(string(out), n.Sandbox.V6.String()) {
		t.Errorf("ip addr in the sandbox: %s, %v", out, err)
	}
	if addrs, err := net.InterfaceAddrs(); err != nil || strings.Contains(strings.ToLower(strings.Join(texts(addrs), " ")), "10.77.") {
		t.Errorf("the test's own namespace has %v, %v", addrs, err)
	}
}

func texts(addrs []net.Addr) []string {
	var out []string
	for _, a := range addrs {
		out = append(out, a.String())
	}
	return out
}
