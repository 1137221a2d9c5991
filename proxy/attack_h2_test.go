package proxy_test

import (
	"bytes"
	"crypto/tls"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// h2client writes HTTP/2 frames as a hostile client would: nothing is checked.
type h2client struct {
	t    testing.TB
	tls  *tls.Conn
	fr   *http2.Framer
	hbuf bytes.Buffer
	enc  *hpack.Encoder
	next uint32
}

// newH2 sends preface and SETTINGS on a connection that negotiated h2.
func newH2(t testing.TB, g *rig, tc *tls.Conn, settings ...http2.Setting) *h2client {
	t.Helper()
	if p := tc.ConnectionState().NegotiatedProtocol; p != "h2" {
		t.Fatalf("negotiated %q", p)
	}
	_ = tc.SetDeadline(time.Now().Add(20 * time.Second))
	if _, err := io.WriteString(tc, http2.ClientPreface); err != nil {
		t.Fatal(err)
	}
	c := &h2client{t: t, tls: tc, next: 1}
	c.fr = http2.NewFramer(tc, io.TeeReader(tc, noteWriter{g}))
	c.fr.AllowIllegalWrites = true
	c.fr.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	c.fr.MaxHeaderListSize = 1 << 20
	c.enc = hpack.NewEncoder(&c.hbuf)
	if err := c.fr.WriteSettings(settings...); err != nil {
		t.Fatal(err)
	}
	return c
}

type noteWriter struct{ g *rig }

func (w noteWriter) Write(p []byte) (int, error) {
	w.g.note(p)
	return len(p), nil
}

// block encodes fields, which come in pairs.
func (c *h2client) block(fields ...string) []byte {
	c.hbuf.Reset()
	for i := 0; i+1 < len(fields); i += 2 {
		_ = c.enc.WriteField(hpack.HeaderField{Name: fields[i], Value: fields[i+1]})
	}
	return bytes.Clone(c.hbuf.Bytes())
}

// open sends the HEADERS of a new stream and returns its id.
func (c *h2client) open(end bool, fields ...string) (uint32, error) {
	id := c.next
	c.next += 2
	return id, c.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: c.block(fields...), EndStream: end, EndHeaders: true})
}

func pseudo(method, authority, path string, more ...string) []string {
	return append([]string{":method", method, ":scheme", "https", ":authority", authority, ":path", path}, more...)
}

// request sends one without a body and waits for its answer. Err says how the stream
// or the connection was ended instead.
func (c *h2client) request(method, authority, path string, more ...string) answer {
	c.t.Helper()
	id, err := c.open(true, pseudo(method, authority, path, more...)...)
	if err != nil {
		return answer{err: err}
	}
	return c.answer(id)
}

// post is request with a body and, where there are any, trailers.
func (c *h2client) post(authority, path, body string, trailers []string, more ...string) answer {
	c.t.Helper()
	id, err := c.open(false, pseudo(http.MethodPost, authority, path, more...)...)
	if err == nil {
		err = c.fr.WriteData(id, len(trailers) == 0, []byte(body))
	}
	if err == nil && len(trailers) > 0 {
		err = c.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: c.block(trailers...), EndStream: true, EndHeaders: true})
	}
	if err != nil {
		return answer{err: err}
	}
	return c.answer(id)
}

// answer reads frames until stream id is over.
func (c *h2client) answer(id uint32) (a answer) {
	a.header = http.Header{}
	for {
		f, err := c.fr.ReadFrame()
		if err != nil {
			a.err = err
			return a
		}
		switch f := f.(type) {
		case *http2.SettingsFrame:
			if !f.IsAck() {
				_ = c.fr.WriteSettingsAck()
			}
		case *http2.PingFrame:
			if !f.IsAck() {
				_ = c.fr.WritePing(true, f.Data)
			}
		case *http2.GoAwayFrame:
			if f.ErrCode != http2.ErrCodeNo {
				a.err = goAway(f.ErrCode)
				return a
			}
		case *http2.RSTStreamFrame:
			if f.StreamID == id {
				a.err = reset(f.ErrCode)
				return a
			}
		case *http2.MetaHeadersFrame:
			if f.StreamID == id {
				for _, hf := range f.Fields {
					a.header.Add(hf.Name, hf.Value)
				}
				if s := f.PseudoValue("status"); s != "" {
					a.status, _ = strconv.Atoi(s)
				}
			}
		case *http2.DataFrame:
			if f.StreamID == id {
				a.body += string(f.Data())
			}
			if n := uint32(len(f.Data())); n > 0 {
				_ = c.fr.WriteWindowUpdate(0, n)
				_ = c.fr.WriteWindowUpdate(f.StreamID, n)
			}
		}
		if h := f.Header(); h.StreamID == id && (h.Type == http2.FrameData || h.Type == http2.FrameHeaders) && h.Flags.Has(http2.FlagDataEndStream) {
			return a
		}
	}
}

type (
	goAway http2.ErrCode
	reset  http2.ErrCode
)

func (e goAway) Error() string { return fmt.Sprint("GOAWAY ", http2.ErrCode(e)) }
func (e reset) Error() string  { return fmt.Sprint("RST_STREAM ", http2.ErrCode(e)) }

// end reads until the connection ends and tells the GOAWAY that ended it, if there was one.
func (c *h2client) end() (code http2.ErrCode, ended bool) {
	code = http2.ErrCodeNo
	for {
		f, err := c.fr.ReadFrame()
		if err != nil {
			return code, !isTimeout(err)
		}
		if ga, ok := f.(*http2.GoAwayFrame); ok {
			code = ga.ErrCode
		}
	}
}
