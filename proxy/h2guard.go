package proxy

import (
	"encoding/binary"
	"io"
	"net"
	"net/http"

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

	head    [9]byte // of the frame under way
	got     int     // bytes of it, and of the preface before the first
	left    int     // bytes of the payload
	skip    int     // of these, before the header block
	pad     int     // behind it; -1: its length comes next
	prefix  bool    // the preface has gone
	block   bool    // the frame carries a piece of a header block
	stream  uint32  // whose header block it is
	alien   bool    // it is another protocol
	broken  bool    // nothing more is looked at
	bad     bool    // the block holds what it may not
	fields  *hpack.Decoder
	refused func()
}

// h2Table is the size of the dynamic table that egressd allows.
const h2Table = 4 << 10

func (s *Server) newH2Guard(t *tunnel, c net.Conn) *h2Guard {
	return guardH2(t, c, s.limits.HeaderBytes, func() {
		x := t.begin(s)
		if t.tls {
			x.protocol = "https"
		}
		x.refused(&refusal{status: http.StatusBadRequest, code: codeBadRequest, detail: "connection-specific field in HTTP/2"}, 0)
	})
}

// guardH2 calls refused before each frame that it puts in.
func guardH2(t *tunnel, c net.Conn, maxString int, refused func()) *h2Guard {
	g := &h2Guard{Conn: c, t: t, refused: refused}
	g.fields = hpack.NewDecoder(h2Table, func(f hpack.HeaderField) { g.bad = g.bad || connectionSpecific(f) })
	g.fields.SetMaxStringLength(maxString)
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
	at, ended := g.look(p[:n])
	if g.alien {
		return 0, io.EOF
	}
	if ended {
		g.rest = append(append([]byte(nil), p[at:n]...), g.rest...)
		g.put = binary.BigEndian.AppendUint32([]byte{0, 0, 4, byte(http2.FrameWindowUpdate), 0}, g.stream)
		g.put = append(g.put, 0, 0, 0, 0)
		g.refused()
		return at, nil // what has failed fails again
	}
	return n, err
}

// look follows the frames through b. It stops behind the frame that ends a bad header block,
// at b[at:].
func (g *h2Guard) look(b []byte) (at int, ended bool) {
	for at < len(b) && !g.broken {
		switch {
		case !g.prefix:
			n := min(len(b)-at, len(http2.ClientPreface)-g.got)
			g.alien = g.alien || string(b[at:at+n]) != http2.ClientPreface[g.got:g.got+n]
			if g.got, at = g.got+n, at+n; g.got == len(http2.ClientPreface) {
				g.got, g.prefix = 0, true
			}
			continue
		case g.got < len(g.head):
			n := copy(g.head[g.got:], b[at:])
			if g.got, at = g.got+n, at+n; g.got < len(g.head) {
				continue
			}
			g.begin()
		default:
			n := min(len(b)-at, g.left)
			g.payload(b[at : at+n])
			at += n
		}
		if g.left == 0 && g.got == len(g.head) {
			g.got = 0
			if g.end() {
				return at, true
			}
		}
	}
	return len(b), false
}

func (g *h2Guard) flag(f http2.Flags) bool { return http2.Flags(g.head[4])&f != 0 }

// begin is called with the head of a frame (RFC 9113 section 4.1).
func (g *h2Guard) begin() {
	g.left = int(g.head[0])<<16 | int(g.head[1])<<8 | int(g.head[2])
	g.skip, g.pad = 0, 0
	kind := http2.FrameType(g.head[3])
	g.block = kind == http2.FrameHeaders || kind == http2.FrameContinuation
	if kind == http2.FrameHeaders {
		g.stream = binary.BigEndian.Uint32(g.head[5:]) & (1<<31 - 1)
		if g.flag(http2.FlagHeadersPadded) {
			g.pad = -1
		}
		if g.flag(http2.FlagHeadersPriority) {
			g.skip = 5
		}
	}
}

// payload is a piece of the frame's, g.left before it.
func (g *h2Guard) payload(b []byte) {
	left := g.left
	g.left -= len(b)
	if !g.block {
		return
	}
	if g.pad < 0 && len(b) > 0 {
		g.pad, b, left = int(b[0]), b[1:], left-1
	}
	n := min(g.skip, len(b))
	g.skip, b, left = g.skip-n, b[n:], left-n
	if b = b[:max(0, min(len(b), left-g.pad))]; len(b) > 0 {
		_, err := g.fields.Write(b)
		g.broken = err != nil
	}
}

// end is called behind a frame and says whether it ends a bad header block.
func (g *h2Guard) end() bool {
	if !g.block || !g.flag(http2.FlagHeadersEndHeaders) {
		return false
	}
	g.broken = g.broken || g.fields.Close() != nil
	bad := g.bad && !g.broken
	g.bad = false
	return bad
}
