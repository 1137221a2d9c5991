package redis

import (
	"bytes"
	"errors"
	"io"
	"net"
	"strings"

	"github.com/egressd/egressd/proxy/wire"
)

// Limits of what a sandbox may send. Arguments of commands that are not looked into are
// streamed, so that theirs cost nothing here; Redis has its own, lower ones.
const (
	bufferSize = 16 << 10 // a command that is looked into, or an inline one, as a whole
	maxArgs    = 1 << 24
	maxBulk    = 512 << 20 // proto-max-bulk-len, as Redis comes
	maxName    = 128
	maxLooked  = 64 // arguments of a command that is looked into
)

// errShort: more bytes are needed to go on.
var errShort = errors.New("more bytes are needed")

// commands reads what a client sends and gives out what may go to the server. A Read that
// fails for a deadline may be repeated: no byte is lost.
type commands struct {
	src io.Reader
	// rewrite says what goes out in the place of a command that is looked into.
	rewrite func(args []string) ([]byte, error)

	buf  [bufferSize]byte
	r, w int // buf[r:w] is what was read and not given out

	out  []byte // to be given out before anything else
	raw  int64  // bytes that go out as they are
	tail int    // bytes of the CR LF behind them that are still to come
	args int    // bulk strings still to come of a command that is not looked into
	err  error  // what the next Read says
}

// Read gives out what is there, and waits only when there is nothing.
func (c *commands) Read(p []byte) (int, error) {
	n := 0
	for n < len(p) && c.err == nil {
		m, err := c.advance(p[n:])
		n += m
		if err == nil {
			continue
		}
		if !errors.Is(err, errShort) {
			c.err = err // for good: the framing is gone
		} else if n > 0 {
			return n, nil
		} else if c.raw > 0 { // nothing of it is in buf
			return c.through(p)
		} else if err := c.fill(); err != nil {
			return 0, err
		}
	}
	if n > 0 || len(p) == 0 {
		return n, nil
	}
	return 0, c.err
}

// through spares a long bulk string the way over buf.
func (c *commands) through(p []byte) (int, error) {
	n, err := c.src.Read(p[:min(int64(len(p)), c.raw)])
	c.raw -= int64(n)
	return n, err
}

// fill reads more behind what is there.
func (c *commands) fill() error {
	if c.r > 0 {
		c.w = copy(c.buf[:], c.buf[c.r:c.w])
		c.r = 0
	}
	if c.w == len(c.buf) {
		return wire.Bad("a command of more than %d bytes that must be looked into", bufferSize)
	}
	n, err := c.src.Read(c.buf[c.w:])
	c.w += n
	if n > 0 {
		return nil
	}
	if err == nil {
		err = io.ErrNoProgress
	}
	return err
}

// advance takes one step and gives out what it has for p.
func (c *commands) advance(p []byte) (int, error) {
	switch {
	case len(c.out) > 0:
		n := copy(p, c.out)
		c.out = c.out[n:]
		return n, nil
	case c.raw > 0:
		return c.copyRaw(p)
	case c.r == c.w:
		return 0, errShort
	case c.tail > 0:
		b := c.buf[c.r]
		if b != "\r\n"[2-c.tail] {
			return 0, wire.Bad("no CR LF behind a bulk string")
		}
		p[0] = b
		c.r++
		c.tail--
		return 1, nil
	case c.args > 0:
		n, size, err := bulkHeader(c.buf[c.r:c.w])
		if err == nil {
			c.args--
			c.raw, c.tail = int64(n+size), 2
		}
		return 0, err
	}
	return 0, c.command()
}

func (c *commands) copyRaw(p []byte) (int, error) {
	if c.r == c.w {
		return 0, errShort
	}
	n := copy(p[:min(int64(len(p)), c.raw)], c.buf[c.r:c.w])
	c.r += n
	c.raw -= int64(n)
	return n, nil
}

// command begins one. What is looked into is not begun before it is there as a whole.
func (c *commands) command() error {
	b := c.buf[c.r:c.w]
	n, count := 0, 0
	var err error
	if b[0] == '*' {
		n, count, err = number(b, '*', maxArgs)
	}
	if err != nil {
		return err
	}
	if count == 0 { // inline, or an empty array, to which Redis says nothing
		args, n, err := whole(b)
		if err == nil {
			err = c.replace(args, n)
		}
		return err
	}
	name, end, err := bulk(b, n)
	if err != nil {
		return err
	}
	if name, err = commandName(name); err != nil {
		return err
	}
	if !looksInto(name) {
		c.raw, c.args = int64(end), count-1
		return nil
	}
	args, end, err := whole(b)
	if err == nil {
		err = c.replace(args, end)
	}
	return err
}

// whole reads one command with its arguments, the name in upper case; no arguments for one
// that is empty. n is how many bytes it has.
func whole(b []byte) (args []string, n int, err error) {
	if len(b) == 0 {
		return nil, 0, errShort
	}
	if b[0] != '*' {
		return inline(b)
	}
	n, count, err := number(b, '*', maxArgs)
	if err == nil && count > maxLooked {
		err = wire.Bad("a command with %d arguments that must be looked into", count)
	}
	for i := 0; i < count && err == nil; i++ {
		var arg string
		arg, n, err = bulk(b, n)
		args = append(args, arg)
	}
	if err == nil && count > 0 {
		args[0], err = commandName(args[0])
	}
	return args, n, err
}

// peek waits for one whole command and leaves it where it is: n bytes, for skip.
func (c *commands) peek() (args []string, n int, err error) {
	for {
		args, n, err = whole(c.buf[c.r:c.w])
		switch {
		case errors.Is(err, errShort):
			if err := c.fill(); err != nil {
				return nil, 0, err
			}
		case err != nil || len(args) > 0:
			return args, n, err
		default:
			c.skip(n)
		}
	}
}

func (c *commands) skip(n int) { c.r += n }

// replace puts something else in the place of the next n bytes, which are the command args.
func (c *commands) replace(args []string, n int) error {
	if len(args) > 0 {
		out, err := c.rewrite(args)
		if err != nil {
			return err
		}
		c.out = out
	}
	c.r += n
	return nil
}

// commandName is s in upper case. Redis compares names as C strings after hashing all their
// bytes, so that what stands behind a NUL has a chance of not counting: only what can be
// printed is a name.
func commandName(s string) (string, error) {
	if s == "" || len(s) > maxName {
		return "", wire.Bad("a command name of %d bytes", len(s))
	}
	for i := range len(s) {
		if s[i] <= ' ' || s[i] > '~' {
			return "", wire.Bad("a command name with byte %#x", s[i])
		}
	}
	return strings.ToUpper(s), nil
}

// number reads the line of a type and a length: how many bytes it has, and the length.
// For arrays, -1 is read as 0.
func number(b []byte, typ byte, limit int) (n, v int, err error) {
	const maxLine = 1 + 10 + 2
	if len(b) == 0 {
		return 0, 0, errShort
	}
	if b[0] != typ {
		return 0, 0, wire.Bad("byte %#x where %q belongs", b[0], typ)
	}
	end := bytes.IndexByte(b[:min(len(b), maxLine)], '\n')
	if end < 0 {
		if len(b) >= maxLine {
			return 0, 0, wire.Bad("a length of more than 10 digits")
		}
		return 0, 0, errShort
	}
	digits := b[1:max(end-1, 1)]
	if b[end-1] != '\r' || len(digits) == 0 {
		return 0, 0, wire.Bad("a malformed length")
	}
	if typ == '*' && string(digits) == "-1" {
		return end + 1, 0, nil
	}
	for i, d := range digits {
		if d < '0' || d > '9' || i == 0 && d == '0' && len(digits) > 1 {
			return 0, 0, wire.Bad("a malformed length")
		}
		v = v*10 + int(d-'0')
	}
	if v > limit {
		return 0, 0, wire.Bad("a length of %d", v)
	}
	return end + 1, v, nil
}

func bulkHeader(b []byte) (n, size int, err error) { return number(b, '$', maxBulk) }

// bulk reads the bulk string at b[from:], whole, and says where it ends.
func bulk(b []byte, from int) (s string, end int, err error) {
	n, size, err := bulkHeader(b[from:])
	if err != nil {
		return "", 0, err
	}
	if size > bufferSize {
		return "", 0, wire.Bad("an argument of %d bytes that must be looked into", size)
	}
	start := from + n
	end = start + size + 2
	if len(b) < end {
		return "", 0, errShort
	}
	if b[end-2] != '\r' || b[end-1] != '\n' {
		return "", 0, wire.Bad("no CR LF behind a bulk string")
	}
	return string(b[start : end-2]), end, nil
}

// inline reads a line of words; none for an empty line. What would need Redis's rules of
// quoting is refused.
func inline(b []byte) (args []string, n int, err error) {
	end := bytes.IndexByte(b, '\n')
	if end < 0 {
		return nil, 0, errShort
	}
	line := bytes.TrimSuffix(b[:end], []byte{'\r'})
	for _, ch := range line {
		if (ch < ' ' && ch != '\t') || ch == '"' || ch == '\'' || ch == '\\' || ch >= 0x7f {
			return nil, 0, wire.Bad("an inline command with byte %#x", ch)
		}
	}
	for _, f := range bytes.Fields(line) {
		args = append(args, string(f))
	}
	if len(args) > maxLooked {
		return nil, 0, wire.Bad("an inline command with %d arguments", len(args))
	}
	if len(args) > 0 {
		args[0], err = commandName(args[0])
	}
	return args, end + 1, err
}

// array is a command on the wire.
func array(args ...string) []byte {
	b := appendInt([]byte{'*'}, len(args))
	for _, a := range args {
		b = append(b, '$')
		b = appendInt(b, len(a))
		b = append(append(b, a...), '\r', '\n')
	}
	return b
}

// clientConn is the sandbox's connection whose reads are filtered.
type clientConn struct {
	net.Conn
	cmds *commands
}

func (c *clientConn) Read(p []byte) (int, error) { return c.cmds.Read(p) }
func (c *clientConn) CloseWrite() error          { return closeWrite(c.Conn) }

// closeWrite half-closes what can be, else closes.
func closeWrite(c net.Conn) error {
	if hc, ok := c.(interface{ CloseWrite() error }); ok {
		return hc.CloseWrite()
	}
	return c.Close()
}
