package h1

import (
	"bufio"
	"crypto/tls"
	"errors"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"
)

// response writes one answer. It is reused for every request of a connection.
type response struct {
	c      *conn
	req    *http.Request
	body   *requestBody // of req, which a handler may wrap; its c is nil where there is none
	header http.Header  // own, or one that the handler lends
	own    http.Header

	status     int
	wroteHead  bool // the head is in buf or on the wire
	bodiless   bool
	chunked    bool
	closeAfter bool
	failed     bool  // a write failed, or the handler broke the framing
	want, sent int64 // Content-Length (-1: none) and body bytes so far
	buf        *buffer
	mu         sync.Mutex // wire order of 100 Continue against the head

	watch *watcher
	date  dateLine
}

func (w *response) reset(x *exchange) {
	if w.own == nil {
		w.own = make(http.Header)
	}
	clear(w.own)
	w.header = w.own
	w.req, w.body, w.status, w.want, w.sent = &x.req, &x.body, 0, -1, 0
	w.wroteHead, w.bodiless, w.chunked, w.failed = false, false, false, false
	// After a CONNECT that no handler took over, what follows is no request.
	w.closeAfter = w.req.ProtoMinor == 0 || w.req.Method == http.MethodConnect || hasOption(w.req.Header["Connection"], "close")
	w.watch = nil
}

func (w *response) Header() http.Header { return w.header }

// SetHeader implements HeaderSetter.
func (w *response) SetHeader(h http.Header) { w.header = h }

func (w *response) length(n int64) { w.header["Content-Length"] = []string{strconv.FormatInt(n, 10)} }

var (
	errLong   = errors.New("http/1.1: handler wrote more bytes than Content-Length")
	errFailed = errors.New("http/1.1: the connection failed")
)

// WriteHeader sends 1xx at once and holds a final head back for the first body bytes.
func (w *response) WriteHeader(status int) {
	if w.wroteHead || w.failed {
		return
	}
	if status < 100 || status > 999 {
		w.failed = true
		return
	}
	if status < 200 {
		if w.req.ProtoMinor == 1 && status != http.StatusSwitchingProtocols {
			w.mu.Lock()
			w.head(status)
			w.mu.Unlock()
			w.flush()
		}
		return
	}
	w.status = status
	w.bodiless = w.req.Method == http.MethodHead || status == http.StatusNoContent || status == http.StatusNotModified
	w.mu.Lock()
	w.wroteHead = true
	w.mu.Unlock()
	if cl := w.header["Content-Length"]; len(cl) > 0 {
		n, ok := parseLength(cl[0])
		if !ok || len(cl) > 1 {
			w.failed = true
			return
		}
		w.want = n
	}
	if hasOption(w.header["Connection"], "close") || w.c.drained.Load() || w.body.tooMuch() {
		w.closeAfter = true
	}
	delete(w.header, "Connection")
	delete(w.header, "Transfer-Encoding")
	if status == http.StatusNoContent {
		delete(w.header, "Content-Length")
	} else if w.want < 0 && !w.bodiless {
		if w.chunked = w.req.ProtoMinor == 1; !w.chunked {
			w.closeAfter = true
		}
	}
	w.head(status)
}

// head appends a head to the buffer. A value that could split the answer fails it.
func (w *response) head(status int) {
	b := w.buffer()
	b.b = append(b.b, "HTTP/1.1 "...)
	b.b = strconv.AppendInt(b.b, int64(status), 10)
	b.b = append(b.b, ' ')
	b.b = append(b.b, http.StatusText(status)...)
	b.b = append(b.b, "\r\n"...)
	for k, vs := range w.header {
		if strings.HasPrefix(k, http.TrailerPrefix) || framingField(k) && (k != "Content-Length" || status < 200) {
			continue
		}
		if !all(k, isToken) || k == "" {
			w.failed = true
			return
		}
		for _, v := range vs {
			if !all(v, isValue) {
				w.failed = true
				return
			}
			b.b = appendField(b.b, k, v)
		}
	}
	if status >= 200 {
		if _, ok := w.header["Date"]; !ok {
			b.b = w.date.append(b.b)
		}
		if w.chunked {
			b.b = append(b.b, "Transfer-Encoding: chunked\r\n"...)
		}
		if w.closeAfter {
			b.b = append(b.b, "Connection: close\r\n"...)
		}
	}
	b.b = append(b.b, "\r\n"...)
}

// dateLine is the Date line of one second: to format it costs as much as all the rest
// of a small head.
type dateLine struct {
	second int64
	text   [len("Date: Mon, 02 Jan 2006 15:04:05 GMT\r\n")]byte
}

func (d *dateLine) append(b []byte) []byte {
	if now := time.Now(); d.second != now.Unix() {
		d.second = now.Unix()
		_ = append(now.UTC().AppendFormat(append(d.text[:0], "Date: "...), http.TimeFormat), "\r\n"...)
	}
	return append(b, d.text[:]...)
}

// framingField says whether a field is one that this package alone writes, however
// its name is spelled.
func framingField(k string) bool {
	switch len(k) {
	case len("Connection"):
		return strings.EqualFold(k, "Connection")
	case len("Content-Length"):
		return strings.EqualFold(k, "Content-Length")
	case len("Transfer-Encoding"):
		return strings.EqualFold(k, "Transfer-Encoding")
	}
	return false
}

func appendField(b []byte, k, v string) []byte {
	b = append(b, k...)
	b = append(b, ": "...)
	b = append(b, v...)
	return append(b, "\r\n"...)
}

func (w *response) buffer() *buffer {
	if w.buf == nil {
		w.buf = getBuffer(&writeBuffers)
		w.buf.b = w.buf.b[:0]
	}
	return w.buf
}

// Write sends what is complete with this call, and everything at once where the
// length is unknown: a stream is never held back.
func (w *response) Write(p []byte) (int, error) {
	if !w.wroteHead {
		w.WriteHeader(http.StatusOK)
	}
	switch {
	case w.failed:
		return 0, errFailed
	case len(p) == 0:
		return 0, nil
	case w.bodiless:
		return len(p), nil
	case w.want >= 0 && w.sent+int64(len(p)) > w.want:
		w.failed = true
		return 0, errLong
	}
	total := len(p)
	w.sent += int64(total)
	if w.chunked {
		return w.writeChunk(p)
	}
	b := w.buffer()
	switch n := len(b.b); {
	case n+len(p) <= cap(b.b):
		b.b = append(b.b, p...)
		if w.sent == w.want || w.want < 0 {
			w.flush()
		}
	case n > 0 && n+len(p) <= chunkBuffer: // one write for the head and what is at hand
		big := getBuffer(&chunkBuffers)
		big.b = append(append(big.b[:0], b.b...), p...)
		b.b = b.b[:0]
		w.send(big.b)
		chunkBuffers.Put(big)
	default:
		w.flush()
		for len(p) > maxWrite && !w.failed { // each has a write deadline of its own
			w.send(p[:maxWrite])
			p = p[maxWrite:]
		}
		w.send(p)
	}
	if w.failed {
		return 0, errFailed
	}
	return total, nil
}

// maxWrite is how much is written under one deadline.
const maxWrite = 64 << 10

// chunkBuffer holds the 32 KiB that proxies copy at a time and a head before it.
const chunkBuffer = 48 << 10

// chunkBuffers hold one chunk with its framing, so that it leaves in one write.
var chunkBuffers = sync.Pool{New: func() any { return &buffer{b: make([]byte, 0, chunkBuffer)} }}

func (w *response) writeChunk(p []byte) (int, error) {
	if len(p) > 40<<10 {
		for i := 0; i < len(p); i += 32 << 10 {
			if _, err := w.writeChunk(p[i:min(i+32<<10, len(p))]); err != nil {
				return i, err
			}
		}
		return len(p), nil
	}
	if b := w.buffer(); len(b.b)+len(p)+16 > cap(b.b) {
		big := getBuffer(&chunkBuffers)
		big.b = appendChunk(append(big.b[:0], b.b...), p)
		b.b = b.b[:0]
		w.send(big.b)
		chunkBuffers.Put(big)
	} else {
		b.b = appendChunk(b.b, p)
		w.flush()
	}
	if w.failed {
		return 0, errFailed
	}
	return len(p), nil
}

func appendChunk(b, p []byte) []byte {
	b = strconv.AppendInt(b, int64(len(p)), 16)
	b = append(b, "\r\n"...)
	b = append(b, p...)
	return append(b, "\r\n"...)
}

// Flush sends what is buffered.
func (w *response) Flush() { _ = w.FlushError() }

// FlushError is Flush for http.ResponseController.
func (w *response) FlushError() error {
	if !w.wroteHead {
		w.WriteHeader(http.StatusOK)
	}
	w.flush()
	if w.failed {
		return errFailed
	}
	return nil
}

func (w *response) flush() {
	if w.buf == nil {
		return
	}
	if len(w.buf.b) > 0 {
		w.send(w.buf.b)
	}
	w.buf.b = w.buf.b[:0]
	writeBuffers.Put(w.buf)
	w.buf = nil
}

func (w *response) send(p []byte) {
	if w.failed {
		return
	}
	w.c.write.set(w.c.nc, w.c.srv.WriteStall)
	if writeWhole(w.c.nc, p) != nil {
		w.failed = true
	}
}

// Corker is a transport under TLS that holds what is written until Uncork, which sends it
// in one write.
type Corker interface {
	Cork()
	Uncork() error
}

// maxRecord is the most that a TLS record holds (RFC 8446 section 5.1). crypto/tls writes
// each by itself: a chunk with 16 KiB of data would leave as two.
const maxRecord = 16 << 10

func writeWhole(nc net.Conn, p []byte) error {
	if tc, ok := nc.(*tls.Conn); ok && len(p) > maxRecord && len(p) <= chunkBuffer {
		if c, ok := tc.NetConn().(Corker); ok {
			c.Cork()
			_, err := tc.Write(p)
			return errors.Join(err, c.Uncork())
		}
	}
	_, err := nc.Write(p)
	return err
}

// sendContinue answers Expect: 100-continue, unless the final head is out.
func (w *response) sendContinue() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.wroteHead {
		return nil
	}
	// A deadline set beside the handler's own is at most a little later than that.
	if s := w.c.srv.WriteStall; s > 0 {
		_ = w.c.nc.SetWriteDeadline(time.Now().Add(s))
	}
	_, err := w.c.nc.Write([]byte("HTTP/1.1 100 Continue\r\n\r\n"))
	return err
}

// finish completes the answer; false when it cannot be completed.
func (w *response) finish() bool {
	if !w.wroteHead && !w.failed {
		if _, ok := w.header["Content-Length"]; !ok {
			w.length(0)
		}
		w.WriteHeader(http.StatusOK)
	}
	if !w.failed && !w.bodiless && w.want >= 0 && w.sent != w.want {
		w.failed = true
	}
	if w.chunked && !w.failed {
		b := w.buffer()
		b.b = append(b.b, "0\r\n"...)
		w.trailers(b)
		b.b = append(b.b, "\r\n"...)
	}
	if w.failed && w.buf != nil {
		w.buf.b = w.buf.b[:0]
	}
	w.flush()
	return !w.failed
}

// trailers are sent where the handler set them under http.TrailerPrefix.
func (w *response) trailers(b *buffer) {
	for k, vs := range w.header {
		if name, ok := strings.CutPrefix(k, http.TrailerPrefix); ok {
			b.b = appendTrailer(b.b, name, vs)
		}
	}
}

var errHijackBody = errors.New("http/1.1: hijack before the request body was read")

// Hijack gives the connection away; bytes that were read ahead come first. Without
// any the connection is the bare one. It fails while the request's body has not been
// read to its end.
func (w *response) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	if w.c.hijacked {
		return nil, nil, http.ErrHijacked
	}
	if !w.body.whole() {
		return nil, nil, errHijackBody
	}
	w.flush()
	w.stopWatch()
	w.c.hijacked = true
	nc := w.c.nc
	_ = nc.SetDeadline(time.Time{})
	if rest := w.c.rd.take(); len(rest) > 0 {
		nc = &ahead{Conn: nc, rest: rest}
	}
	return nc, bufio.NewReadWriter(bufio.NewReaderSize(nc, 16), bufio.NewWriterSize(nc, 16)), nil
}
