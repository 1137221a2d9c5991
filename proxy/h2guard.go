package proxy

import (
	"encoding/binary"
	"io"
	"net"
	"net/http"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// h2Guard is a sandbox's HTTP/2 connection on its way to net/http, which answers 400, and
// nothing else, to a head with fields of HTTP/1.1's connection. Such a head is malformed
// (RFC 9113 section 8.2.2): its stream has to end with PROTOCOL_ERROR, and an operator to
// see it. The guard puts a frame behind it that net/http ends a stream for: WINDOW_UPDATE
// by nothing (section 6.9).
//
// It is read by one goroutine. What it cannot parse it lets pass: net/http ends those
// connections; but not what is no HTTP/2 at all, which net/http would take for HTTP/1.
type h2Guard struct {
	net.Conn
	t *tunnel

	put  []byte // to be read next, and not looked at
	rest []byte // to be read then

	begun    bool // the preface has been waited for
	alien    bool // in vain
	patience time.Duration
	frames   h2Frames
	refused  func() // called for each frame that is put in
}

// h2Frames follows the header blocks in what a client sends.
type h2Frames struct {
	head   [9]byte // of the frame under way
	got    int     // bytes of it
	left   int     // bytes of the payload
	skip   int     // of these, before the header block
	pad    int     // behind it; -1: its length comes next
	block  bool    // the frame carries a piece of a header block
	stream uint32  // whose header block it is
	bad    bool    // the block holds what it may not
	broken bool    // nothing more is looked at
	fields *hpack.Decoder
}

// h2Table is the size of the dynamic table that egressd allows.
const h2Table = 4 << 10

func (s *Server) newH2Guard(t *tunnel, c net.Conn) *h2Guard {
	return guardH2(t, c, s.limits, func() {
		x := t.begin(s)
		if t.tls {
			x.protocol = "https"
		}
		x.refused(&refusal{status: http.StatusBadRequest, code: codeBadRequest, detail: "connection-specific field in HTTP/2"}, 0)
	})
}

func guardH2(t *tunnel, c net.Conn, l Limits, refused func()) *h2Guard {
	g := &h2Guard{Conn: c, t: t, refused: refused, patience: l.HandshakeTimeout}
	f := &g.frames
	f.fields = hpack.NewDecoder(h2Table, func(h hpack.HeaderField) { f.bad = f.bad || connectionSpecific(h) })
	f.fields.SetMaxStringLength(l.HeaderBytes)
	return g
}

// connectionSpecific fields mean something to HTTP/1.1 only (RFC 9113 section 8.2.2).
func connectionSpecific(f hpack.HeaderField) bool {
	switch f.Name {
	case "connection", "proxy-connection", "keep-alive", "transfer-encoding", "upgrade":
		return true
	case "te":
		return f.Value != "trailers"
	}
	return false
}

func (g *h2Guard) Read(p []byte) (n int, err error) {
	if !g.begun {
		g.begun = true
		if g.preface() {
			g.put = []byte(http2.ClientPreface)
		} else {
			g.alien = true
		}
	}
	switch {
	case g.alien:
		return 0, io.EOF // net/http answers any other error in words of HTTP/1
	case len(g.put) > 0:
		n = copy(p, g.put)
		g.put = g.put[n:]
		return n, nil
	case len(g.rest) > 0:
		n = copy(p, g.rest)
		g.rest = g.rest[n:]
	default:
		n, err = g.Conn.Read(p)
	}
	at, ended := g.frames.look(p[:n])
	if ended {
		g.rest = append(append([]byte(nil), p[at:n]...), g.rest...)
		g.put = binary.BigEndian.AppendUint32([]byte{0, 0, 4, byte(http2.FrameWindowUpdate), 0}, g.frames.stream)
		g.put = append(g.put, 0, 0, 0, 0)
		g.refused()
		return at, nil // what has failed fails again
	}
	return n, err
}

// preface reads what HTTP/2 begins with, and no more when something else comes.
func (g *h2Guard) preface() bool {
	if g.SetReadDeadline(time.Now().Add(g.patience)) != nil {
		return false
	}
	var b [len(http2.ClientPreface)]byte
	for n := 0; n < len(b); {
		k, err := g.Conn.Read(b[n:])
		if n += k; err != nil && n < len(b) || string(b[:n]) != http2.ClientPreface[:n] {
			return false
		}
	}
	return g.SetReadDeadline(time.Time{}) == nil
}

// look follows the frames through b. It stops behind the frame that ends a bad header block,
// at b[at:].
func (f *h2Frames) look(b []byte) (at int, ended bool) {
	for at < len(b) && !f.broken {
		switch {
		case f.got < len(f.head):
			n := copy(f.head[f.got:], b[at:])
			if f.got, at = f.got+n, at+n; f.got < len(f.head) {
				continue
			}
			f.begin()
		default:
			n := min(len(b)-at, f.left)
			f.payload(b[at : at+n])
			at += n
		}
		if f.left == 0 && f.got == len(f.head) {
			f.got = 0
			if f.end() {
				return at, true
			}
		}
	}
	return len(b), false
}

func (f *h2Frames) flag(v http2.Flags) bool { return http2.Flags(f.head[4])&v != 0 }

// begin is called with the head of a frame (RFC 9113 section 4.1).
func (f *h2Frames) begin() {
	f.left = int(f.head[0])<<16 | int(f.head[1])<<8 | int(f.head[2])
	f.skip, f.pad = 0, 0
	kind := http2.FrameType(f.head[3])
	f.block = kind == http2.FrameHeaders || kind == http2.FrameContinuation
	if kind == http2.FrameHeaders {
		f.stream = binary.BigEndian.Uint32(f.head[5:]) & (1<<31 - 1)
		if f.flag(http2.FlagHeadersPadded) {
			f.pad = -1
		}
		if f.flag(http2.FlagHeadersPriority) {
			f.skip = 5
		}
	}
}

// payload is a piece of the frame's, f.left before it.
func (f *h2Frames) payload(b []byte) {
	left := f.left
	f.left -= len(b)
	if !f.block {
		return
	}
	if f.pad < 0 && len(b) > 0 {
		f.pad, b, left = int(b[0]), b[1:], left-1
	}
	n := min(f.skip, len(b))
	f.skip, b, left = f.skip-n, b[n:], left-n
	if b = b[:max(0, min(len(b), left-f.pad))]; len(b) > 0 {
		_, err := f.fields.Write(b)
		f.broken = err != nil
	}
}

// end is called behind a frame and says whether it ends a bad header block.
func (f *h2Frames) end() bool {
	if !f.block || !f.flag(http2.FlagHeadersEndHeaders) {
		return false
	}
	f.broken = f.broken || f.fields.Close() != nil
	bad := f.bad && !f.broken
	f.bad = false
	return bad
}
