package h1

import (
	"bytes"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// Answer is room for one answer. Its owner may use it again when nothing of that answer is
// in use.
type Answer struct {
	resp   http.Response
	body   responseBody
	header http.Header
	values [usualFields]string
}

// Clear forgets the answer and keeps the room.
func (a *Answer) Clear() {
	h := a.header
	clear(h)
	*a = Answer{header: h}
}

// responseBody is the body of an answer. Its end, or Close, gives the connection back.
type responseBody struct {
	c     *ClientConn
	resp  *http.Response
	opts  *RoundTripOptions
	p     payload
	keep  bool
	ended atomic.Bool
}

// Read fails with *ProtocolError (502), io.ErrUnexpectedEOF for a body that was cut
// short, context.DeadlineExceeded, or the connection's error.
func (b *responseBody) Read(p []byte) (int, error) {
	if b.ended.Load() {
		if b.p.err == io.EOF {
			return 0, io.EOF
		}
		return 0, http.ErrBodyReadAfterClose
	}
	n, err := b.p.Read(p)
	switch {
	case err == nil:
	case err == io.EOF && b.p.toClose && cutShort(b.c.nc):
		b.p.err = io.ErrUnexpectedEOF
		return n, b.p.err
	case err == io.EOF:
		b.resp.Trailer = b.p.trailer
		b.end(true)
	case isTimeout(err):
		err = timeoutError{err}
	default:
		err = badGateway(err)
	}
	return n, err
}

// Close gives up what has not been read.
func (b *responseBody) Close() error {
	b.end(false)
	return nil
}

func (b *responseBody) end(whole bool) {
	if b.ended.Swap(true) {
		return
	}
	c := b.c
	reusable := whole && b.keep && c.rd.buffered() == 0
	if c.up != nil && (!reusable || !c.up.complete()) {
		reusable = false // an early answer: what is left of the upload is not sent
	}
	if !reusable {
		_ = c.nc.Close()
	}
	_ = c.endUpload()
	c.rd.take()
	c.broken = !reusable
	b.opts.Done(reusable)
}

// upgraded gives resp the connection as its body (io.ReadWriteCloser).
func (c *ClientConn) upgraded(resp *http.Response, opts *RoundTripOptions) (*http.Response, error) {
	up := resp.Header["Upgrade"]
	switch {
	case !opts.Upgrade, len(up) != 1, !strings.EqualFold(up[0], "websocket"), !hasOption(resp.Header["Connection"], "upgrade"):
		return nil, &ProtocolError{Status: http.StatusBadGateway, Reason: "unrequested_101"}
	case len(resp.Header["Content-Length"])+len(resp.Header["Transfer-Encoding"]) > 0:
		return nil, &ProtocolError{Status: http.StatusBadGateway, Reason: "framed_1xx"}
	case c.up != nil && !c.up.complete():
		return nil, &ProtocolError{Status: http.StatusBadGateway, Reason: "early_101"}
	}
	_ = c.endUpload()
	rest := c.rd.take()
	_ = c.nc.SetDeadline(time.Time{})
	resp.ContentLength = -1
	resp.Body = &upgradedBody{Conn: c.nc, rest: bytes.NewReader(rest), done: opts.Done}
	return resp, nil
}

type upgradedBody struct {
	net.Conn
	rest *bytes.Reader
	once sync.Once
	done func(bool)
}

func (u *upgradedBody) Read(p []byte) (int, error) {
	if u.rest.Len() > 0 {
		return u.rest.Read(p)
	}
	return u.Conn.Read(p)
}

func (u *upgradedBody) CloseWrite() error {
	if hc, ok := u.Conn.(interface{ CloseWrite() error }); ok {
		return hc.CloseWrite()
	}
	return nil
}

func (u *upgradedBody) Close() error {
	err := u.Conn.Close()
	u.once.Do(func() { u.done(false) })
	return err
}
