package sigv4

import (
	"bufio"
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/egressd/egressd/internal/secret"
)

const (
	pieceSize = 64 << 10 // of the chunks that leave; S3 wants 8 KiB at least
	maxLine   = 256      // bytes of a chunk's head or a trailer, with its end
	extension = ";chunk-signature="
	trailSig  = "x-amz-trailer-signature:"
	hexSum    = 2 * sha256.Size
	headRoom  = 8 + len(extension) + hexSum + 2
)

// encodedLength is how long n bytes become.
func encodedLength(n int64, trailers []string) int64 {
	whole, rest := n/pieceSize, n%pieceSize
	total := whole * frameLength(pieceSize)
	if rest > 0 {
		total += frameLength(rest)
	}
	total += int64(1 + len(extension) + hexSum + 2) // the last chunk's head
	for _, name := range trailers {
		total += int64(len(name) + 1 + checksumLength(name) + 2)
	}
	if len(trailers) > 0 {
		total += int64(len(trailSig) + hexSum + 2)
	}
	return total + 2
}

func frameLength(n int64) int64 {
	return int64(len(strconv.FormatInt(n, 16))+len(extension)+hexSum+2) + n + 2
}

// chunkSigner makes the chain of signatures that begins with the request's own
// ("Signature Calculations for the Authorization Header: Transferring Payload in Multiple
// Chunks" and, for trailers, "… with Trailing Headers").
type chunkSigner struct {
	key          []byte
	stamp, scope string
	previous     string
}

func newChunkSigner(key secret.String, region, service, seed string, now time.Time) chunkSigner {
	day := now.Format("20060102")
	k := []byte("AWS4" + key.Reveal())
	for _, part := range []string{day, region, service, terminator} {
		k = hmac256(k, part)
	}
	return chunkSigner{key: k, stamp: now.Format("20060102T150405Z"), scope: day + "/" + region + "/" + service + "/" + terminator, previous: seed}
}

func hmac256(key []byte, text string) []byte {
	m := hmac.New(sha256.New, key)
	m.Write([]byte(text))
	return m.Sum(nil)
}

func sumHex(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

func (s *chunkSigner) chunk(data []byte) string {
	return s.next("AWS4-HMAC-SHA256-PAYLOAD", sumHex(nil)+"\n"+sumHex(data))
}

func (s *chunkSigner) trailer(canonical []byte) string {
	return s.next("AWS4-HMAC-SHA256-TRAILER", sumHex(canonical))
}

func (s *chunkSigner) next(kind, rest string) string {
	s.previous = hex.EncodeToString(hmac256(s.key, strings.Join([]string{kind, s.stamp, s.scope, s.previous, rest}, "\n")))
	return s.previous
}

// chunks reads a client's chunks and gives signed ones of its own. It holds one piece and
// a read buffer. What the client signed its chunks with is not looked at.
type chunks struct {
	in       *bufio.Reader
	under    io.Closer
	sign     chunkSigner
	left     int64 // of the data
	inChunk  int64 // of the client's chunk
	trailers []string
	frame    []byte // headRoom, a piece, CRLF
	out      []byte // of frame: what is still to be read
	err      error
}

func newChunks(body io.ReadCloser, length int64, trailers []string) *chunks {
	room := min(length, pieceSize)
	return &chunks{in: bufio.NewReaderSize(body, 4<<10), under: body, left: length, trailers: trailers, frame: make([]byte, headRoom+int(room)+2)}
}

func (c *chunks) Close() error { return c.under.Close() }

func (c *chunks) Read(p []byte) (int, error) {
	for len(c.out) == 0 {
		if c.err != nil {
			return 0, c.err
		}
		if c.left > 0 {
			c.err = c.piece()
		} else if c.err = c.last(); c.err == nil {
			c.err = io.EOF
		}
	}
	n := copy(p, c.out)
	c.out = c.out[n:]
	return n, nil
}

// piece fills and signs one frame.
func (c *chunks) piece() error {
	n := int(min(c.left, pieceSize))
	data := c.frame[headRoom : headRoom+n]
	for got := 0; got < n; {
		if c.inChunk == 0 {
			if err := c.nextChunk(); err != nil {
				return err
			}
		}
		m, err := io.ReadFull(c.in, data[got:got+int(min(c.inChunk, int64(n-got)))])
		got += m
		if c.inChunk -= int64(m); err != nil {
			return short(err)
		}
		if c.inChunk == 0 {
			if err := c.crlf(); err != nil {
				return err
			}
		}
	}
	c.left -= int64(n)
	head := strconv.FormatInt(int64(n), 16) + extension + c.sign.chunk(data) + "\r\n"
	from := headRoom - len(head)
	copy(c.frame[from:], head)
	c.out = append(c.frame[from:headRoom+n], "\r\n"...)
	return nil
}

// nextChunk reads the head of a chunk that has data.
func (c *chunks) nextChunk() error {
	size, err := c.head()
	switch {
	case err != nil:
		return err
	case size == 0:
		return malformed("fewer bytes in chunks than X-Amz-Decoded-Content-Length")
	case size > c.left: // what has been read of this piece is still in left
		return malformed("more bytes in chunks than X-Amz-Decoded-Content-Length")
	}
	c.inChunk = size
	return nil
}

// last reads the end of the client's body and makes ours.
func (c *chunks) last() error {
	if c.inChunk > 0 {
		return malformed("more bytes in chunks than X-Amz-Decoded-Content-Length")
	}
	size, err := c.head()
	if err != nil {
		return err
	}
	if size > 0 {
		return malformed("more bytes in chunks than X-Amz-Decoded-Content-Length")
	}
	var lines, canonical bytes.Buffer
	for _, name := range c.trailers {
		value, err := c.trailer(name)
		if err != nil {
			return err
		}
		lines.WriteString(name + ":" + value + "\r\n")
		canonical.WriteString(name + ":" + value + "\n")
	}
	if len(c.trailers) > 0 {
		if err := c.trailerSignature(); err != nil {
			return err
		}
	}
	if err := c.crlf(); err != nil {
		return err
	}
	if _, err := c.in.ReadByte(); !errors.Is(err, io.EOF) {
		if err != nil {
			return err
		}
		return malformed("bytes behind the last chunk")
	}
	out := []byte("0" + extension + c.sign.chunk(nil) + "\r\n")
	out = append(out, lines.Bytes()...)
	if len(c.trailers) > 0 {
		out = append(out, trailSig+c.sign.trailer(canonical.Bytes())+"\r\n"...)
	}
	c.out = append(out, "\r\n"...)
	return nil
}

// head reads "<size>;chunk-signature=<64 digits>".
func (c *chunks) head() (int64, error) {
	line, err := c.line()
	if err != nil {
		return 0, err
	}
	digits, signature, ok := strings.Cut(line, extension)
	if !ok || len(digits) > 16 || !isHex(digits) || !isHex64(signature) {
		return 0, malformed("a chunk head that is not one")
	}
	size, err := strconv.ParseInt(digits, 16, 64)
	if err != nil {
		return 0, malformed("a chunk size out of bounds")
	}
	return size, nil
}

// trailer reads "<name>:<checksum>". Some clients end it with a line feed before the
// line's own end, as AWS's examples do.
func (c *chunks) trailer(name string) (string, error) {
	line, err := c.rawLine()
	if err != nil {
		return "", err
	}
	if !strings.HasSuffix(line, "\r\n") {
		if err := c.crlf(); err != nil {
			return "", err
		}
	}
	got, value, _ := strings.Cut(strings.TrimSuffix(strings.TrimSuffix(line, "\n"), "\r"), ":")
	value = strings.Trim(value, " ")
	if _, err := base64.StdEncoding.Strict().DecodeString(value); err != nil || strings.ContainsAny(value, "\r\n") ||
		len(value) != checksumLength(name) || !strings.EqualFold(got, name) {
		return "", malformed("a trailer that X-Amz-Trailer does not announce, or no checksum")
	}
	return value, nil
}

func (c *chunks) trailerSignature() error {
	line, err := c.line()
	if err != nil {
		return err
	}
	if signature, ok := strings.CutPrefix(line, trailSig); !ok || !isHex64(signature) {
		return malformed("no signature behind the trailers")
	}
	return nil
}

func (c *chunks) line() (string, error) {
	line, err := c.rawLine()
	if err != nil {
		return "", err
	}
	line, ok := strings.CutSuffix(line, "\r\n")
	if !ok {
		return "", malformed("a line that ends in no CRLF")
	}
	return line, nil
}

func (c *chunks) rawLine() (string, error) {
	line, err := c.in.ReadSlice('\n')
	switch {
	case err == nil && len(line) <= maxLine:
		return string(line), nil
	case err == nil, errors.Is(err, bufio.ErrBufferFull):
		return "", malformed("a line that is too long")
	}
	return "", short(err)
}

func (c *chunks) crlf() error {
	var b [2]byte
	if _, err := io.ReadFull(c.in, b[:]); err != nil {
		return short(err)
	}
	if string(b[:]) != "\r\n" {
		return malformed("a chunk that does not end where it should")
	}
	return nil
}

// short is an end that came too early; other errors are the body's own.
func short(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return malformed("the body ends within its chunks")
	}
	return err
}
