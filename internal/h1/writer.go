package h1

import (
	"bufio"
	"errors"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// response writes one answer. It is reused for every request of a connection.
type response struct {
	c      *conn
	req    *http.Request
	header http.Header

	status     int
	wroteHead  bool // the head is in buf or on the wire
	sentHead   bool // some of it is on the wire
	bodiless   bool
	chunked    bool
	closeAfter bool
	failed     bool  // a write failed, or the handler broke the framing
	want, sent int64 // Content-Length (-1: none) and body bytes so far
	buf        *buffer
	mu         sync.Mutex // wire order of 100 Continue against the head

	body  *requestBody // nil: none; not req.Body, which a handler may wrap
	watch *watcher
}

func (w *response) reset(req *http.Request) {
	if w.header == nil {
		w.header = make(http.Header, 16)
	} else {
		clear(w.header)
	}
	w.req, w.status, w.want, w.sent = req, 0, -1, 0
	w.wroteHead, w.sentHead, w.bodiless, w.chunked, w.failed = false, false, false, false, false
	w.closeAfter = req.ProtoMinor == 0 || hasOption(req.Header["Connection"], "close")
	w.watch = nil
}

func (w *response) Header() http.Header { return w.header }

func (w *response) length(n int64) { w.header["Content-Length"] = []string{strconv.FormatInt(n, 10)} }

var (
	errShort  = errors.New("http/1.1: handler wrote fewer bytes than Content-Length")
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
	delete(w.header, "Transfer-Encoding")
	if hasOption(w.header["Connection"], "close") || w.c.drained.Load() {
		w.closeAfter = true
	}
	delete(w.header, "Connection")
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
		if !w.wroteHead && k == "Content-Length" || strings.HasPrefix(k, http.TrailerPrefix) {
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
			b.b = append(b.b, "Date: "...)
			b.b = time.Now().UTC().AppendFormat(b.b, http.TimeFormat)
			b.b = append(b.b, "\r\n"...)
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
	w.sent += int64(len(p))
	if w.chunked {
		return w.writeChunk(p)
	}
	b := w.buffer()
	if len(b.b)+len(p) <= cap(b.b) {
		b.b = append(b.b, p...)
		if w.sent == w.want || w.want < 0 {
			w.flush()
		}
	} else {
		w.flush()
		w.send(p)
	}
	if w.failed {
		return 0, errFailed
	}
	return len(p), nil
}

// chunkBuffers hold one chunk with its framing, so that it leaves in one write.
var chunkBuffers = sync.Pool{New: func() any { return &buffer{b: make([]byte, 0, 48<<10)} }}

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
	if s := w.c.srv.WriteStall; s > 0 {
		if now := time.Now(); now.Sub(w.c.wrote) > s/4 {
			w.c.wrote = now
			_ = w.c.nc.SetWriteDeadline(now.Add(s))
		}
	}
	w.sentHead = true
	if _, err := w.c.nc.Write(p); err != nil {
		w.failed = true
	}
}

// sendContinue answers Expect: 100-continue, unless the final head is out.
func (w *response) sendContinue() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.wroteHead {
		return nil
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
		name, ok := strings.CutPrefix(k, http.TrailerPrefix)
		if !ok || !all(name, isToken) || name == "" {
			continue
		}
		for _, v := range vs {
			if all(v, isValue) {
				b.b = appendField(b.b, name, v)
			}
		}
	}
}

// Hijack gives the connection away; bytes that were read ahead come first. Without
// any the connection is the bare one.
func (w *response) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	if w.c.hijacked {
		return nil, nil, http.ErrHijacked
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

// ahead is a connection of which some bytes have been read.
type ahead struct {
	net.Conn
	rest []byte
}

func (a *ahead) Read(p []byte) (int, error) {
	if len(a.rest) > 0 {
		n := copy(p, a.rest)
		a.rest = a.rest[n:]
		return n, nil
	}
	return a.Conn.Read(p)
}

// CloseWrite half-closes where the connection can.
func (a *ahead) CloseWrite() error {
	if hc, ok := a.Conn.(interface{ CloseWrite() error }); ok {
		return hc.CloseWrite()
	}
	return nil
}

// watcher reads one byte ahead while a handler waits.
type watcher struct {
	done    chan struct{}
	stopped atomic.Bool
}

// WatchDisconnect implements DisconnectWatcher.
func (w *response) WatchDisconnect(abort func()) {
	c := w.c
	if w.watch != nil || c.hijacked || c.rd.buf != nil && c.rd.buffered() > 0 {
		return
	}
	if w.body != nil && !w.body.read() {
		return
	}
	wt := &watcher{done: make(chan struct{})}
	w.watch = wt
	_ = c.nc.SetReadDeadline(time.Time{})
	go func() { // stopWatch waits for it
		defer close(wt.done)
		n, err := c.nc.Read(c.first[:])
		if n == 1 {
			c.rd.acquire()
			c.rd.buf.b[0], c.rd.r, c.rd.w = c.first[0], 0, 1
			return
		}
		if err != nil && !wt.stopped.Load() {
			abort()
		}
	}()
}

func (w *response) stopWatch() {
	if w.watch == nil {
		return
	}
	w.watch.stopped.Store(true)
	_ = w.c.nc.SetReadDeadline(aLongTimeAgo)
	<-w.watch.done
	w.watch = nil
	w.c.deadline = time.Time{}
	_ = w.c.nc.SetReadDeadline(time.Time{})
}
