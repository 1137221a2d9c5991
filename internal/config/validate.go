package config

import (
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
)

// maxSocketPath is what sockaddr_un holds, less its NUL.
const maxSocketPath = 107

type fault struct{ path, message string }

// validate checks what one key alone, or two together, may be.
func (c *Config) validate() []fault {
	var fs []fault
	bad := func(path, format string, args ...any) { fs = append(fs, fault{path, fmt.Sprintf(format, args...)}) }
	if c.StateDir == "" {
		bad("stateDir", "must not be empty")
	}
	if c.Policy.Dir == "" {
		bad("policy.dir", "must not be empty")
	}
	c.checkListeners(bad)
	c.checkFiles(bad)
	c.checkUpstream(bad)
	c.checkNumbers(bad)
	oneOf := func(path, v string, want ...string) {
		if !slices.Contains(want, v) {
			bad(path, "want %s", strings.Join(want, " or "))
		}
	}
	oneOf("log.level", c.Log.Level, "debug", "info", "warn", "error")
	oneOf("log.format", c.Log.Format, "json", "console")
	oneOf("audit.overflow", c.Audit.Overflow, "drop", "block")
	return fs
}

func (c *Config) checkListeners(bad func(string, string, ...any)) {
	if c.Listen.Proxy == "" && c.Listen.Redirect == "" && c.Listen.TProxy == "" {
		bad("listen.proxy", "must not be empty where listen.redirect and listen.tproxy are: nothing could come in")
	}
	seen := map[string]string{}
	for _, l := range []struct{ path, addr string }{{"listen.proxy", c.Listen.Proxy}, {"listen.redirect", c.Listen.Redirect}, {"listen.tproxy", c.Listen.TProxy}, {"listen.ops", c.Listen.Ops}, {"api.listen", c.API.Listen}} {
		if l.addr == "" {
			continue
		}
		host, port, err := splitListen(l.addr)
		if err != nil {
			bad(l.path, "%v", err)
			continue
		}
		if first, dup := seen[l.addr]; dup && port != 0 {
			bad(l.path, "the same address as %s", first)
		}
		seen[l.addr] = l.path
		if l.path == "api.listen" && c.API.TLS.CertFile == "" && !host.IsLoopback() {
			bad(l.path, "an address beyond loopback needs api.tls.certFile and api.tls.keyFile: tokens would travel in the clear")
		}
	}
	if c.Listen.DNS != "" { // beside TCP it takes UDP, so it may have the port of another
		if _, _, err := splitListen(c.Listen.DNS); err != nil {
			bad("listen.dns", "%v", err)
		}
	}
	if p := c.SocketPath(); len(p) > maxSocketPath {
		bad("api.socket", "%d bytes long, a unix socket's path holds %d: set a shorter api.socket", len(p), maxSocketPath)
	}
}

// splitListen takes host:port where host is an address, "localhost" or empty for all.
func splitListen(s string) (netip.Addr, uint16, error) {
	bad := fmt.Errorf("%q is not address:port such as 127.0.0.1:3128", s)
	host, port, err := net.SplitHostPort(s)
	if err != nil {
		return netip.Addr{}, 0, bad
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil {
		return netip.Addr{}, 0, bad
	}
	switch host {
	case "":
		return netip.IPv6Unspecified(), uint16(n), nil
	case "localhost":
		return netip.AddrFrom4([4]byte{127, 0, 0, 1}), uint16(n), nil
	}
	a, err := netip.ParseAddr(host)
	if err != nil {
		return netip.Addr{}, 0, bad
	}
	return a, uint16(n), nil
}

func (c *Config) checkFiles(bad func(string, string, ...any)) {
	pair := func(a, av, b, bv string) {
		if av != "" && bv == "" {
			bad(a, "needs %s beside it", b)
		}
		if bv != "" && av == "" {
			bad(b, "needs %s beside it", a)
		}
	}
	pair("api.tls.certFile", c.API.TLS.CertFile, "api.tls.keyFile", c.API.TLS.KeyFile)
	pair("intercept.caCertFile", c.Intercept.CACertFile, "intercept.caKeyFile", c.Intercept.CAKeyFile)
	if c.API.TLS.ClientCAFile != "" && c.API.TLS.CertFile == "" {
		bad("api.tls.clientCAFile", "needs api.tls.certFile beside it")
	}
	if c.API.TLS.CertFile != "" && c.API.Listen == "" {
		bad("api.tls.certFile", "needs api.listen: the unix socket has no TLS")
	}
	switch {
	case c.Store.URL == "":
	case strings.HasPrefix(c.Store.URL, "postgres://"), strings.HasPrefix(c.Store.URL, "postgresql://"):
		bad("store.url", "postgres is not supported yet: use sqlite:PATH")
	case !strings.HasPrefix(c.Store.URL, "sqlite:") || len(c.Store.URL) == len("sqlite:"):
		bad("store.url", "want sqlite:PATH")
	}
}

func (c *Config) checkUpstream(bad func(string, string, ...any)) {
	for i, r := range c.Upstream.Resolvers {
		if _, err := netip.ParseAddrPort(r); err != nil {
			bad("upstream.resolvers", "item %d: %q is not address:port such as 10.0.0.53:53", i, r)
		}
	}
	for i, f := range c.Upstream.ExtraCAFiles {
		if f == "" {
			bad("upstream.extraCAFiles", "item %d is empty", i)
		}
	}
	for i, f := range c.Upstream.CRLFiles {
		if f == "" {
			bad("upstream.crlFiles", "item %d is empty", i)
		}
	}
	for i, h := range c.API.Hosts {
		if u, err := url.Parse("http://" + h); err != nil || u.Host != h || h == "" {
			bad("api.hosts", "item %d: %q is not a host name", i, h)
		}
	}
}

func (c *Config) checkNumbers(bad func(string, string, ...any)) {
	durations := []struct {
		path   string
		v      time.Duration
		lo, hi time.Duration
	}{
		{"intercept.leafTTL", c.Intercept.LeafTTL, time.Minute, 7 * 24 * time.Hour},
		{"upstream.dialTimeout", c.Upstream.DialTimeout, time.Millisecond, 10 * time.Minute},
		{"upstream.responseHeaderTimeout", c.Upstream.ResponseHeaderTimeout, 0, 24 * time.Hour},
		{"limits.handshakeTimeout", c.Limits.HandshakeTimeout, time.Millisecond, 10 * time.Minute},
		{"limits.idleTimeout", c.Limits.IdleTimeout, time.Second, 24 * time.Hour},
		{"limits.drainTimeout", c.Limits.DrainTimeout, 0, time.Hour},
	}
	for _, d := range durations {
		if d.v < d.lo || d.v > d.hi {
			bad(d.path, "want %s to %s", shortDuration(d.lo), shortDuration(d.hi))
		}
	}
	plain := func(n int64) string { return strconv.FormatInt(n, 10) }
	numbers := []struct {
		path      string
		v, lo, hi int64
		show      func(int64) string
	}{
		{"limits.connections", int64(c.Limits.Connections), 1, 10_000_000, plain},
		{"limits.connectionsPerSandbox", int64(c.Limits.ConnectionsPerSandbox), 1, 10_000_000, plain},
		{"limits.headerBytes", c.Limits.HeaderBytes, 4 << 10, 16 << 20, formatSize},
		{"limits.rewriteBodyBytes", c.Limits.RewriteBodyBytes, 0, 1 << 30, formatSize},
		{"limits.bandwidthPerSandbox", c.Limits.BandwidthPerSandbox, 0, 1 << 40, formatSize},
	}
	for _, n := range numbers {
		if n.v < n.lo || n.v > n.hi {
			bad(n.path, "want %s to %s", n.show(n.lo), n.show(n.hi))
		}
	}
}
