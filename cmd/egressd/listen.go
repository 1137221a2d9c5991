package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"github.com/egressd/egressd/internal/config"
	"github.com/egressd/egressd/proxy"
)

// listeners are all that the daemon accepts on. nil: none configured.
type listeners struct {
	proxy, ops, apiTCP, apiUnix net.Listener
	redirect, tproxy, dnsTCP    []net.Listener // one per family
	dnsUDP                      []net.PacketConn
}

// openListeners binds every address, or none.
func openListeners(ctx context.Context, cfg *config.Config) (*listeners, error) {
	l := &listeners{}
	for _, b := range []struct {
		key, flag, addr string
		at              *net.Listener
	}{
		{"listen.proxy", "--listen-proxy", cfg.Listen.Proxy, &l.proxy},
		{"listen.ops", "--listen-ops", cfg.Listen.Ops, &l.ops},
		{"api.listen", "--api-listen", cfg.API.Listen, &l.apiTCP},
	} {
		if b.addr == "" {
			continue
		}
		ln, err := new(net.ListenConfig).Listen(ctx, "tcp", b.addr)
		if err != nil {
			l.close()
			return nil, listenError(b.key, b.flag, b.addr, err)
		}
		*b.at = ln
	}
	if err := l.openTransparent(ctx, cfg.Listen); err != nil {
		l.close()
		return nil, err
	}
	if cfg.API.TLS.CertFile != "" {
		conf, err := apiTLS(cfg.API.TLS)
		if err != nil {
			l.close()
			return nil, err
		}
		l.apiTCP = tls.NewListener(l.apiTCP, conf)
	}
	var err error
	if l.apiUnix, err = listenSocket(ctx, cfg.SocketPath()); err != nil {
		l.close()
		return nil, err
	}
	return l, nil
}

// openTransparent binds what is there for clients that know of no proxy.
func (l *listeners) openTransparent(ctx context.Context, at config.Listen) error {
	for _, t := range []struct {
		key, flag, addr string
		kind            proxy.Kind
		at              *[]net.Listener
	}{
		{"listen.redirect", "--listen-redirect", at.Redirect, proxy.Redirect, &l.redirect},
		{"listen.tproxy", "--listen-tproxy", at.TProxy, proxy.TProxy, &l.tproxy},
	} {
		if t.addr == "" {
			continue
		}
		var err error
		if *t.at, err = proxy.ListenTransparent(ctx, t.kind, t.addr); err != nil {
			return listenError(t.key, t.flag, t.addr, err)
		}
	}
	if at.DNS == "" {
		return nil
	}
	// Nothing special is asked of these sockets, but one per family as well: a client must
	// get its answer from the address that it asked.
	for _, family := range families(at.DNS) {
		ln, err := new(net.ListenConfig).Listen(ctx, "tcp"+family, at.DNS)
		if err != nil {
			return listenError("listen.dns", "--listen-dns", at.DNS, err)
		}
		l.dnsTCP = append(l.dnsTCP, ln)
		pc, err := new(net.ListenConfig).ListenPacket(ctx, "udp"+family, at.DNS)
		if err != nil {
			return listenError("listen.dns", "--listen-dns", at.DNS, err)
		}
		l.dnsUDP = append(l.dnsUDP, pc)
	}
	return nil
}

// families are those that an address stands for.
func families(address string) []string {
	host, _, _ := net.SplitHostPort(address)
	switch ip, err := netip.ParseAddr(host); {
	case err != nil:
		return []string{"4", "6"}
	case ip.Is4():
		return []string{"4"}
	default:
		return []string{"6"}
	}
}

func listenError(key, flag, addr string, err error) error {
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		return fail(exitNetwork, "%s %s is in use by another program: stop it, or set %s to a free address", key, addr, flag)
	case errors.Is(err, syscall.EACCES):
		return fail(exitNetwork, "%s %s: permission denied: a port below 1024 needs CAP_NET_BIND_SERVICE; set %s", key, addr, flag)
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		return fail(exitNetwork, "%s %s is no address of this machine: set %s", key, addr, flag)
	}
	hint := ""
	if key == "listen.tproxy" {
		hint = ": run it as root or with AmbientCapabilities=CAP_NET_ADMIN, or take listen.redirect, which needs nothing"
	}
	return fail(exitNetwork, "%s %s cannot be listened on: %w%s", key, addr, err, hint)
}

// listenSocket makes the API's socket, mode 0600 from its first moment on. The caller
// holds the state directory's lock, so a socket that is there and answers to nobody is
// one that a killed daemon left.
func listenSocket(ctx context.Context, path string) (net.Listener, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, fail(exitNetwork, "api.socket: %w", fileError(filepath.Dir(path), err))
	}
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return nil, fail(exitNetwork, "api.socket: %w", fileError(path, err))
	case info.Mode()&fs.ModeSocket == 0:
		return nil, fail(exitNetwork, "api.socket %s is there and is not a socket: remove it, or set --api-socket", path)
	default:
		if c, err := (&net.Dialer{Timeout: time.Second}).DialContext(ctx, "unix", path); err == nil {
			_ = c.Close()
			return nil, fail(exitConflict, "another program answers on api.socket %s: stop it, or set --api-socket", path)
		}
		if err := os.Remove(path); err != nil {
			return nil, fail(exitNetwork, "api.socket: a stale socket cannot be removed: %w", err)
		}
	}
	old := syscall.Umask(0o177)
	ln, err := new(net.ListenConfig).Listen(ctx, "unix", path)
	syscall.Umask(old)
	if err != nil {
		return nil, listenError("api.socket", "--api-socket", path, err)
	}
	return ln, nil
}

func apiTLS(t config.TLS) (*tls.Config, error) {
	cert, err := tls.LoadX509KeyPair(t.CertFile, t.KeyFile)
	if err != nil {
		return nil, usage("api.tls: %s and %s: %w", t.CertFile, t.KeyFile, err)
	}
	conf := &tls.Config{MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{cert}, NextProtos: []string{"http/1.1"}}
	if t.ClientCAFile == "" {
		return conf, nil
	}
	pem, err := readSmall(t.ClientCAFile)
	if err != nil {
		return nil, usage("api.tls.clientCAFile: %w", fileError(t.ClientCAFile, err))
	}
	conf.ClientCAs = x509.NewCertPool()
	if !conf.ClientCAs.AppendCertsFromPEM(pem) {
		return nil, usage("api.tls.clientCAFile %s holds no certificate in PEM", t.ClientCAFile)
	}
	conf.ClientAuth = tls.RequireAndVerifyClientCert
	return conf, nil
}

// own lists the TCP addresses that no sandbox may reach through the proxy.
func (l *listeners) own() []netip.AddrPort {
	var out []netip.AddrPort
	for _, ln := range slices.Concat([]net.Listener{l.proxy, l.ops, l.apiTCP}, l.redirect, l.tproxy, l.dnsTCP) {
		if ln == nil {
			continue
		}
		if a, ok := ln.Addr().(*net.TCPAddr); ok {
			out = append(out, a.AddrPort())
		}
	}
	return out
}

func (l *listeners) close() {
	for _, ln := range slices.Concat([]net.Listener{l.proxy, l.ops, l.apiTCP, l.apiUnix}, l.redirect, l.tproxy, l.dnsTCP) {
		if ln != nil {
			_ = ln.Close() // those that served are closed already
		}
	}
	for _, pc := range l.dnsUDP {
		_ = pc.Close()
	}
}

func addrOf(ln net.Listener) string {
	if ln == nil {
		return ""
	}
	return ln.Addr().String()
}

func addrsOf(lists ...[]net.Listener) []string {
	var out []string
	for _, ln := range slices.Concat(lists...) {
		out = append(out, ln.Addr().String())
	}
	return out
}
