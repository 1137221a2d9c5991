package proxy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/textproto"
	"net/url"
	"sync"
	"sync/atomic"
	"time"

	"github.com/egressd/egressd/internal/h1"
)

// roundTripH2 sends r over h2, by the standard library's client on connections that
// we dialled and verified. errNotH2: the origin chose HTTP/1.1, nothing was sent.
func (p *pool) roundTripH2(w http.ResponseWriter, r *http.Request, pl *plan) (*http.Response, error) {
	p.h2once.Do(p.startH2)
	ctx, watch := watchClient(r.Context(), w)
	interims := interimGate{w: w, scrub: pl.scrub}
	defer interims.close()
	ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{Got1xxResponse: interims.pass})
	header := r.Header
	if _, named := header["User-Agent"]; r.ProtoMajor == 1 || !named {
		header = header.Clone() // the transport may read it for longer than the h1 server leaves it to us
	}
	out := &http.Request{
		Method: r.Method, Header: header, Body: r.Body, ContentLength: r.ContentLength, Trailer: r.Trailer,
		URL: &url.URL{Scheme: p.scheme(), Host: pl.authority, Opaque: "//" + pl.authority + pl.target}, Host: pl.authority,
		Proto: "HTTP/2.0", ProtoMajor: 2,
	}
	body := holdBody(out)
	if _, ok := out.Header["User-Agent"]; !ok {
		out.Header["User-Agent"] = nil // net/http would add its own
	}
	watch.wait()
	resp, err := p.h2.RoundTrip(out.WithContext(ctx))
	watch.waited()
	if err == nil {
		p.alpn.Store(alpnH2)
		resp.Body = watch.body(resp.Body)
		return resp, nil
	}
	watch.end()
	var de *dialError
	if !p.key.tls && !errors.As(err, &de) && p.alpn.CompareAndSwap(alpnUnknown, alpnH1) && idempotent(r.Method) && !pl.trailers && (body == nil || !body.begun.Load()) {
		return nil, errNotH2 // it did not take the preface; what is repeated here may be
	}
	if errors.Is(err, errNotH2) {
		p.alpn.Store(alpnH1)
		return nil, err // nothing of the body was read: HTTP/1.1 sends it
	}
	body.closeNow()
	if watch != nil && watch.gone.Load() {
		return nil, errClientGone
	}
	if errors.As(err, &de) {
		return nil, de.error
	}
	return nil, fmt.Errorf("%w: %w", errUpstreamResponse, err)
}

func (p *pool) scheme() string {
	if p.key.tls {
		return "https"
	}
	return "http"
}

// heldBody keeps a transport that found no connection from closing a body which
// another protocol may still send. From the first Read on it is what it wraps.
type heldBody struct {
	io.ReadCloser
	begun atomic.Bool
}

func holdBody(r *http.Request) *heldBody {
	if r.Body == nil || r.Body == http.NoBody {
		return nil
	}
	b := &heldBody{ReadCloser: r.Body}
	r.Body = b
	return b
}

func (b *heldBody) Read(p []byte) (int, error) {
	b.begun.Store(true)
	return b.ReadCloser.Read(p)
}

func (b *heldBody) Close() error {
	if !b.begun.Load() {
		return nil
	}
	return b.ReadCloser.Close()
}

func (b *heldBody) closeNow() {
	if b != nil {
		_ = b.ReadCloser.Close()
	}
}

// interimGate passes interim answers on from the transport's own goroutine, and none
// once RoundTrip has returned: w belongs to the handler then, or to nobody.
type interimGate struct {
	mu   sync.Mutex
	w    http.ResponseWriter
	n    int
	shut bool

	scrub *scrubber
}

func (g *interimGate) pass(code int, h textproto.MIMEHeader) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if code == http.StatusSwitchingProtocols {
		return errors.New("unrequested 101") // RFC 9113 section 8.6: h2 has none
	}
	if g.n++; g.n <= maxInterims && !g.shut {
		g.scrub.fields(http.Header(h))
		interim(g.w, code, http.Header(h))
	}
	return nil
}

func (g *interimGate) close() {
	g.mu.Lock()
	g.shut = true
	g.mu.Unlock()
}

// dialError tells what failed before a connection stood from what failed on it.
type dialError struct{ error }

func (e *dialError) Unwrap() error { return e.error }

func (p *pool) startH2() {
	protos := new(http.Protocols)
	protos.SetHTTP2(true)
	if !p.key.tls {
		protos = new(http.Protocols)
		protos.SetUnencryptedHTTP2(true)
	}
	h2 := &http.Transport{
		Proxy: nil, Protocols: protos, DisableCompression: true, ForceAttemptHTTP2: true,
		MaxResponseHeaderBytes: int64(p.up.h1lim.HeadBytes), IdleConnTimeout: idleLifetime,
		ResponseHeaderTimeout: p.up.limits.ResponseHeaderTimeout,
		HTTP2: &http.HTTP2Config{
			SendPingTimeout: 30 * time.Second, PingTimeout: 15 * time.Second, WriteByteTimeout: p.up.limits.StallTimeout,
			// What clients do not read piles up here; net/http's own bounds are 4 MiB and 1 GiB.
			MaxReceiveBufferPerStream: 512 << 10, MaxReceiveBufferPerConnection: 8 << 20,
		},
		DialTLSContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			nc, proto, err := p.dial(ctx, "h2", "http/1.1")
			if err != nil {
				return nil, &dialError{err}
			}
			if proto != "h2" {
				// Keep it for the HTTP/1.1 path that takes over now.
				c := &upConn{nc: nc, h1: h1.NewClientConn(nc, p.up.h1lim), pool: p}
				c.done(true)
				return nil, errNotH2
			}
			return nc, nil
		},
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			nc, _, err := p.dial(ctx)
			if err != nil {
				return nil, &dialError{err}
			}
			return nc, nil
		},
	}
	p.mu.Lock()
	p.h2 = h2
	p.mu.Unlock()
}
