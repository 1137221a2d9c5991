package testbed

import (
	"crypto/sha256"
	"encoding/hex"
	"hash"
	"io"
	"net"
	"net/http"
	"sync"
	"time"
)

// recordLimit bounds what is kept of each direction of one connection; counts go on.
const recordLimit = 1 << 20

// tape keeps the first bytes that were read and counts all of them.
type tape struct {
	mu    sync.Mutex
	kept  []byte
	total int64
}

func (t *tape) write(p []byte) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.total += int64(len(p))
	if room := recordLimit - len(t.kept); room > 0 {
		t.kept = append(t.kept, p[:min(room, len(p))]...)
	}
}

func (t *tape) bytes() []byte {
	t.mu.Lock()
	defer t.mu.Unlock()
	return append([]byte(nil), t.kept...)
}

func (t *tape) count() int64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.total
}

// tapedConn records what is read from a connection.
type tapedConn struct {
	net.Conn
	in *tape
}

func (c *tapedConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	c.in.write(p[:n])
	return n, err
}

// Conn is what one accepted connection did.
type Conn struct {
	ID         int
	SNI        string
	ALPN       string
	Version    uint16
	Resumed    bool
	ClientCert string // common name of the client's certificate, "" if none came
	// HandshakeErr is "" when the TLS handshake was completed, or there was none.
	HandshakeErr string
	Wire         []byte // as it came from the network, at most 1 MiB of it
	App          []byte // after TLS, at most 1 MiB; the same as Wire on a plain origin
	WireBytes    int64
	AppBytes     int64
}

// Request is one request as an origin read it.
type Request struct {
	Conn       int // ID of the connection
	Proto      string
	Method     string
	Target     string // as on the request line, or :path
	Host       string
	Header     http.Header
	Trailer    http.Header // set when the body was read to its end
	ClientCert string
	BodyBytes  int64
	BodySHA256 string // hex; of what the handler read
	BodyErr    string // why the body did not reach its end, if it was read
	Time       time.Time
}

// live is a Request while its handler runs.
type live struct {
	mu  sync.Mutex
	req Request
	sum hash.Hash
}

func newLive(r *http.Request, conn int) *live {
	l := &live{sum: sha256.New(), req: Request{
		Conn: conn, Proto: r.Proto, Method: r.Method, Target: r.RequestURI, Host: r.Host,
		Header: r.Header.Clone(), Time: time.Now(),
	}}
	if r.TLS != nil && len(r.TLS.PeerCertificates) > 0 {
		l.req.ClientCert = r.TLS.PeerCertificates[0].Subject.CommonName
	}
	return l
}

func (l *live) snapshot() Request {
	l.mu.Lock()
	defer l.mu.Unlock()
	r := l.req
	r.Header = r.Header.Clone()
	r.Trailer = r.Trailer.Clone()
	if r.BodyBytes > 0 {
		r.BodySHA256 = hex.EncodeToString(l.sum.Sum(nil))
	}
	return r
}

// tapedBody hashes a request's body while the handler reads it.
type tapedBody struct {
	io.ReadCloser
	r *http.Request
	l *live
}

func (b *tapedBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	b.l.mu.Lock()
	defer b.l.mu.Unlock()
	b.l.sum.Write(p[:n])
	b.l.req.BodyBytes += int64(n)
	switch err {
	case nil:
	case io.EOF:
		b.l.req.Trailer = b.r.Trailer.Clone()
	default:
		b.l.req.BodyErr = err.Error()
	}
	return n, err
}
