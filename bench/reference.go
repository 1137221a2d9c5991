package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httputil"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/elazarl/goproxy"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// The proxies, in the order of the table.
const (
	direct  = "direct"
	relay   = "relay"
	library = "goproxy"
	hijack  = "hijack"
	egressd = "egressd"
	// before is another build of egressd (-before), measured under the same policy.
	before = "before"
	// passName is passed through by every proxy; all other names are intercepted.
	passName = "pass.bench.test"
)

var proxies = []string{direct, relay, library, hijack, egressd}

// serveReference is the main of a reference's process: it prints the addresses of the
// proxy and of its Go metrics, and ends with standard input.
func serveReference(name string) error {
	ca, upstream, err := loadPKI(os.Getenv("BENCH_DIR"))
	if err != nil {
		return err
	}
	m, err := newMint(ca)
	if err != nil {
		return err
	}
	ln, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		return err
	}
	var serve func(net.Listener) error
	switch name {
	case relay:
		shell, err := newSSHRelay(os.Getenv("BENCH_DIR"))
		if err != nil {
			return err
		}
		p := &relayProxy{ssh: shell, mint: m, idle: map[string][]*relayUp{}, upstream: &tls.Config{RootCAs: upstream, ClientSessionCache: tls.NewLRUClientSessionCache(2048)}}
		serve = p.serve
	case library:
		serve = (&http.Server{Handler: libraryLoop(ca, upstream), ErrorLog: silent()}).Serve
	case hijack:
		serve = (&http.Server{Handler: hijackDesign(m, upstream), ErrorLog: silent()}).Serve
	default:
		return fmt.Errorf("no reference %q", name)
	}
	ops, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		return err
	}
	reg := prometheus.NewRegistry()
	reg.MustRegister(collectors.NewGoCollector())
	failed := make(chan error, 2)
	go func() { failed <- serve(ln) }()
	go func() { failed <- http.Serve(ops, promhttp.HandlerFor(reg, promhttp.HandlerOpts{})) }()
	fmt.Println(ln.Addr(), ops.Addr())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_, _ = io.Copy(io.Discard, os.Stdin)
	}()
	select {
	case err := <-failed:
		return err
	case <-ended:
		return nil
	}
}

func silent() *log.Logger { return log.New(io.Discard, "", 0) }

// tunedTransport is what both references send with: every name is the origin's address.
func tunedTransport(roots *x509.CertPool) *http.Transport {
	return &http.Transport{
		DialContext: func(ctx context.Context, _, addr string) (net.Conn, error) {
			_, port, err := net.SplitHostPort(addr)
			if err != nil {
				return nil, err
			}
			return (&net.Dialer{}).DialContext(ctx, "tcp4", "127.0.0.1:"+port)
		},
		TLSClientConfig:     &tls.Config{RootCAs: roots, ClientSessionCache: tls.NewLRUClientSessionCache(2048), NextProtos: []string{"http/1.1"}},
		MaxIdleConnsPerHost: 512,
		MaxIdleConns:        4096,
		DisableCompression:  true,
	}
}

// mint makes leaf certificates, one signature each under one process-wide key, once per host.
type mint struct {
	ca     tls.Certificate
	key    *ecdsa.PrivateKey
	mu     sync.Mutex
	leaves map[string]*leafOnce
	shared *tls.Config
}

type leafOnce struct {
	once sync.Once
	cert *tls.Certificate
	err  error
}

func newMint(ca tls.Certificate) (*mint, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	m := &mint{ca: ca, key: key, leaves: map[string]*leafOnce{}}
	m.shared = &tls.Config{NextProtos: []string{"http/1.1"}, GetCertificate: m.get}
	return m, nil
}

// config is one shared tls.Config, so that sessions resume; protos replaces its ALPN.
func (m *mint) config(protos []string) *tls.Config {
	if protos == nil {
		return m.shared
	}
	c := m.shared.Clone()
	c.NextProtos = protos
	return c
}

func (m *mint) get(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	name := strings.ToLower(hello.ServerName)
	m.mu.Lock()
	l := m.leaves[name]
	if l == nil {
		l = &leafOnce{}
		m.leaves[name] = l
	}
	m.mu.Unlock()
	l.once.Do(func() {
		c, err := signCert(&m.ca, leafTemplate(name), m.key)
		l.cert, l.err = &c, err
	})
	return l.cert, l.err
}

// libraryLoop is goproxy's own interception, with everything that can be tuned from
// outside: its own CA under P-256, a certificate store, a transport that keeps connections.
func libraryLoop(ca tls.Certificate, roots *x509.CertPool) http.Handler {
	p := goproxy.NewProxyHttpServer()
	p.Logger = silent()
	p.Tr = tunedTransport(roots)
	p.ConnectDial = nil
	p.CertStore = &certStore{certs: map[string]*tls.Certificate{}}
	mitm := &goproxy.ConnectAction{Action: goproxy.ConnectMitm, TLSConfig: goproxy.TLSConfigFromCA(&ca)}
	p.OnRequest().HandleConnectFunc(func(host string, _ *goproxy.ProxyCtx) (*goproxy.ConnectAction, string) {
		if strings.HasPrefix(host, passName+":") {
			return goproxy.OkConnect, host
		}
		return mitm, host
	})
	p.OnRequest().DoFunc(func(r *http.Request, _ *goproxy.ProxyCtx) (*http.Request, *http.Response) {
		r.Header.Set("Authorization", "Bearer "+token)
		return r, nil
	})
	return p
}

type certStore struct {
	mu    sync.Mutex
	certs map[string]*tls.Certificate
}

func (s *certStore) Fetch(host string, gen func() (*tls.Certificate, error)) (*tls.Certificate, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if c := s.certs[host]; c != nil {
		return c, nil
	}
	c, err := gen()
	if err == nil {
		s.certs[host] = c
	}
	return c, err
}

// hijackDesign is the plain way to build on goproxy: it parses CONNECT and gives the
// connection to one net/http server behind a channel, which forwards with ReverseProxy.
func hijackDesign(m *mint, roots *x509.CertPool) http.Handler {
	feed := &chanListener{ch: make(chan net.Conn)}
	tr := tunedTransport(roots)
	rp := &httputil.ReverseProxy{
		Transport: tr, ErrorLog: silent(), BufferPool: &bufferPool{},
		Rewrite: func(r *httputil.ProxyRequest) {
			r.Out.URL.Scheme, r.Out.URL.Host = "https", r.In.Host
			r.Out.Header.Set("Authorization", "Bearer "+token)
		},
	}
	inner := &http.Server{Handler: rp, TLSConfig: m.config([]string{"h2", "http/1.1"}), ErrorLog: silent(), ReadHeaderTimeout: time.Minute}
	go func() { _ = inner.ServeTLS(feed, "", "") }()

	p := goproxy.NewProxyHttpServer()
	p.Logger = silent()
	p.Tr, p.ConnectDial = tr, nil
	take := &goproxy.ConnectAction{Action: goproxy.ConnectHijack, Hijack: func(_ *http.Request, c net.Conn, _ *goproxy.ProxyCtx) {
		if _, err := io.WriteString(c, "HTTP/1.1 200 OK\r\n\r\n"); err != nil {
			_ = c.Close()
			return
		}
		feed.ch <- c
	}}
	p.OnRequest().HandleConnectFunc(func(host string, _ *goproxy.ProxyCtx) (*goproxy.ConnectAction, string) {
		if strings.HasPrefix(host, passName+":") {
			return goproxy.OkConnect, host
		}
		return take, host
	})
	return p
}

type chanListener struct{ ch chan net.Conn }

func (l *chanListener) Accept() (net.Conn, error) { return <-l.ch, nil }
func (l *chanListener) Close() error              { return nil }
func (l *chanListener) Addr() net.Addr            { return &net.TCPAddr{} }

type bufferPool struct{ p sync.Pool }

func (b *bufferPool) Get() []byte {
	if v, ok := b.p.Get().(*[]byte); ok {
		return *v
	}
	return make([]byte, 32<<10)
}

func (b *bufferPool) Put(p []byte) { b.p.Put(&p) }
