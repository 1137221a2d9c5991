package h1

import (
	"errors"
	"io"
	"net/http"
	"strings"
)

// payload reads a message body by its framing. Not safe for concurrent use.
type payload struct {
	rd      *reader
	framing framing
	left    int64 // of the length, or of the current chunk
	toClose bool  // framed by the end of the connection
	started bool  // a chunk has been seen: its CRLF is due
	err     error // sticky; io.EOF when the body was read whole
	trailer http.Header
}

func (p *payload) Read(b []byte) (int, error) {
	if p.err != nil {
		return 0, p.err
	}
	if len(b) == 0 {
		return 0, nil
	}
	if p.framing.chunked && p.left == 0 {
		if p.err = p.nextChunk(); p.err != nil {
			return 0, p.err
		}
	}
	if !p.toClose && int64(len(b)) > p.left {
		b = b[:p.left]
	}
	n, err := p.rd.Read(b)
	if !p.toClose {
		p.left -= int64(n)
	}
	switch {
	case errors.Is(err, io.EOF) && p.toClose:
		p.err = io.EOF
	case errors.Is(err, io.EOF):
		p.err = io.ErrUnexpectedEOF
	case err != nil:
		p.err = err
	case p.left == 0 && !p.framing.chunked && !p.toClose:
		p.err = io.EOF
	}
	if n > 0 && !errors.Is(p.err, io.EOF) {
		return n, nil // the error comes with the next read
	}
	return n, p.err
}

// nextChunk reads a chunk's size line; at the last chunk it reads the trailers and
// returns io.EOF.
func (p *payload) nextChunk() error {
	if p.started {
		if err := p.rd.crlf(); err != nil {
			return unexpected(err)
		}
	}
	p.started = true
	line, err := p.rd.line(maxChunkLine)
	if err != nil {
		return unexpected(err)
	}
	n, err := parseChunkLine(line)
	if err != nil {
		return err
	}
	if p.left = n; n > 0 {
		return nil
	}
	if p.trailer, err = readTrailers(p.rd); err != nil {
		return unexpected(err)
	}
	return io.EOF
}

func unexpected(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}

// parseChunkLine takes 1 to 15 hexadecimal digits and extensions whose bytes are
// those of a field value; extensions mean nothing to us and are not passed on.
func parseChunkLine(line []byte) (int64, error) {
	var n int64
	i := 0
	for ; i < len(line); i++ {
		c := line[i]
		switch {
		case c >= '0' && c <= '9':
			c -= '0'
		case c >= 'a' && c <= 'f':
			c -= 'a' - 10
		case c >= 'A' && c <= 'F':
			c -= 'A' - 10
		default:
			c = 0xff
		}
		if c == 0xff {
			break
		}
		if i >= 15 {
			return 0, bad("chunk_too_large")
		}
		n = n<<4 | int64(c)
	}
	if i == 0 {
		return 0, bad("bad_chunk_size")
	}
	if ext := line[i:]; len(ext) > 0 {
		if ext[0] != ';' {
			return 0, bad("bad_chunk_size")
		}
		for _, c := range ext {
			if class[c]&isValue == 0 {
				return 0, bad("bad_chunk_extension")
			}
		}
	}
	return n, nil
}

// neverTrailer says whether a field would change a message's framing, routing,
// authentication or meaning if it were taken from its trailers (RFC 9110 section
// 6.5.1). name is canonical.
func neverTrailer(name string) bool {
	switch name {
	case "Host", "Te", "Connection", "Keep-Alive", "Proxy-Connection", "Upgrade", "Expect", "Max-Forwards",
		"Authorization", "Proxy-Authorization", "Proxy-Authenticate", "Www-Authenticate", "Authentication-Info",
		"Proxy-Authentication-Info", "Cookie", "Set-Cookie", "Location", "Retry-After", "Vary", "Range", "Cache-Control",
		"Content-Encoding", "Content-Type", "Content-Range", "Content-Length", "Transfer-Encoding", "Trailer":
		return true
	}
	return false
}

// framesMessage says whether a field would frame the message. name is canonical.
func framesMessage(name string) bool {
	return name == "Content-Length" || name == "Transfer-Encoding" || name == "Trailer"
}

func readTrailers(rd *reader) (http.Header, error) {
	var all strings.Builder
	n := 0
	for {
		line, err := rd.line(maxTrailerBytes)
		if err != nil {
			return nil, err
		}
		if len(line) == 0 {
			break
		}
		if n++; n > maxTrailers || all.Len()+len(line) > maxTrailerBytes {
			return nil, bad("trailers_too_large")
		}
		all.Write(line)
		all.WriteString("\r\n")
	}
	if n == 0 {
		return nil, nil
	}
	h, err := parseFields(all.String(), n, nil, nil)
	if err != nil {
		return nil, err
	}
	for k := range h {
		if framesMessage(k) {
			return nil, bad("framing_in_trailers")
		}
		if neverTrailer(k) {
			delete(h, k)
		}
	}
	return h, nil
}

// appendTrailer appends the fields of one trailer name, unless it must not be one.
func appendTrailer(b []byte, name string, values []string) []byte {
	if name == "" || !all(name, isToken) || neverTrailer(http.CanonicalHeaderKey(name)) {
		return b
	}
	for _, v := range values {
		if all(v, isValue) {
			b = appendField(b, name, v)
		}
	}
	return b
}
