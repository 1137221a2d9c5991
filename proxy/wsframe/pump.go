package wsframe

import (
	"errors"
	"io"
	"sync"
)

// Rules say what is done to what one direction carries. The zero value lets all of it pass.
// Its functions are called by one goroutine, one message at a time. An *Error that one of
// them, or the reader that Stream returns, fails with ends the WebSocket with its code.
type Rules struct {
	// Text gets each text message whole, no longer than Options.Limit, and returns what is
	// sent instead, UTF-8; it may keep neither. nil: text messages are as binary ones.
	Text func(msg []byte) ([]byte, error)
	// Stream gets each other message as it arrives and returns what reads it instead; what
	// it gives must come from what it has read. nil: as it is.
	Stream func(src io.Reader) io.Reader
	// Resizes: what Stream gives can be of another length than the message.
	Resizes bool
	// Control gets what Ping, Pong and, behind its code, Close carry, and returns what is
	// sent instead, no more than it got.
	Control func(payload []byte) ([]byte, error)
}

const chunk = 32 << 10

// chunks are shared by all messages; nothing is read from one before it was written by the
// same message.
var chunks = sync.Pool{New: func() any { return new([chunk]byte) }}

// pump carries one direction.
type pump struct {
	from       *source
	to         *side
	fromClient bool
	rules      Rules
	limit      int64
	hold       Hold
	small      [maxControl]byte
}

// run carries until a Close has been carried (errClosed) or something fails.
func (p *pump) run() error {
	for {
		h, err := p.next()
		if err != nil {
			return err
		}
		if h.Opcode == Continuation {
			return violation("continuation of nothing")
		}
		if err := p.message(h); err != nil {
			return err
		}
	}
}

// next gives the head of the next data frame; control frames before it have been carried.
func (p *pump) next() (Header, error) {
	for {
		h, err := ReadHeader(p.from)
		if err != nil {
			return h, err
		}
		if h.Masked != p.fromClient { // section 5.1
			return h, violation("mask")
		}
		if !h.Opcode.control() {
			return h, nil
		}
		if err := p.control(h); err != nil {
			return h, err
		}
	}
}

func (p *pump) control(h Header) error {
	b := p.small[:h.Length]
	if _, err := io.ReadFull(p.from, b); err != nil {
		return unexpected(err)
	}
	if h.Masked {
		xor(h.Mask, 0, b)
	}
	text := b
	if h.Opcode == Close {
		if err := checkClose(b); err != nil {
			return err
		}
		text = b[min(2, len(b)):]
	}
	if p.rules.Control != nil {
		out, err := p.rules.Control(text)
		if err != nil {
			return ruled(err)
		}
		b = b[:len(b)-len(text)+copy(text, out)]
	}
	if err := p.to.frame(h.Opcode, true, b); err != nil {
		return err
	}
	if h.Opcode == Close {
		return errClosed
	}
	return nil
}

// message carries the message that begins with h.
func (p *pump) message(h Header) error {
	buf, _ := chunks.Get().(*[chunk]byte)
	defer chunks.Put(buf)
	m := &payload{p: p, op: h.Opcode, h: h, left: h.Length, checked: h.Opcode == Text}
	if h.Opcode == Text && p.rules.Text != nil {
		return p.whole(m, buf[:])
	}
	var r io.Reader = m
	if p.rules.Stream != nil {
		r = p.rules.Stream(m)
	}
	switch {
	case !h.Fin || p.rules.Resizes:
		return p.fragments(m, r, buf[:])
	case h.Length < chunk: // so that it is refused before any of it has left
		n, err := fill(r, buf[:])
		if err == nil && int64(n) != h.Length {
			err = errResized
		}
		if err != nil {
			return err
		}
		return p.to.frame(h.Opcode, true, buf[:n])
	}
	return p.single(m, r, buf[:])
}

// fill reads r, which holds less than buf can, to its end.
func fill(r io.Reader, buf []byte) (n int, err error) {
	for n < len(buf) && err == nil {
		var k int
		k, err = r.Read(buf[n:])
		n += k
	}
	if err == io.EOF {
		return n, nil
	}
	if err == nil {
		err = errResized
	}
	return n, err
}

var errResized error = &Error{Code: CodeInternal, Reason: "a message is not of the length that it was to have"}

// whole reads a message to its end, at most as much as the limit, rewrites and sends it.
func (p *pump) whole(m *payload, buf []byte) error {
	if m.h.Length > p.limit {
		return tooBig()
	}
	msg := make([]byte, 0, min(m.h.Length, chunk))
	held := p.hold == nil
	for {
		n, err := m.Read(buf)
		msg = append(msg, buf[:n]...)
		if int64(len(msg)) > p.limit {
			return tooBig()
		}
		if len(msg) > chunk && !held {
			release, ok := p.hold(p.limit)
			if !ok {
				return &Error{Code: CodeTryLater, Reason: "too many large messages"}
			}
			defer release()
			held = true
		}
		if err == io.EOF {
			break
		}
		if err != nil {
			return err
		}
	}
	out, err := p.rules.Text(msg)
	if err != nil {
		return ruled(err)
	}
	return p.to.frame(Text, true, out)
}

// ruled is what a rule has failed with.
func ruled(err error) error {
	if e := (*Error)(nil); errors.As(err, &e) {
		return err
	}
	return &Error{Code: CodeInternal, Reason: "internal error", Err: err}
}

func tooBig() error { return &Error{Code: CodeTooBig, Reason: "message is too big"} }

// single streams a message, which is longer than buf, in the one frame that it came in.
func (p *pump) single(m *payload, r io.Reader, buf []byte) error {
	left := m.h.Length
	if err := p.to.begin(m.op, true, left); err != nil {
		return err
	}
	for left >= int64(len(buf)) {
		n, err := r.Read(buf[:min(int64(len(buf)), left-1)])
		if n > 0 {
			if err := p.to.goOn(buf[:n], false); err != nil {
				return err
			}
			left -= int64(n)
		}
		if err != nil {
			return unexpected(err)
		}
	}
	// Its last bytes leave when all of it has been seen.
	n, err := fill(r, buf)
	if err == nil && int64(n) != left {
		err = errResized
	}
	if err != nil {
		return err
	}
	return p.to.goOn(buf[:n], true)
}

// fragments streams a message in frames as long as what arrives at once.
func (p *pump) fragments(m *payload, r io.Reader, buf []byte) error {
	op := m.op
	for {
		n, err := r.Read(buf)
		for n < len(buf) && m.ended && err == nil { // there is nothing more to wait for
			var k int
			k, err = r.Read(buf[n:])
			n += k
		}
		if err != nil && err != io.EOF {
			return err
		}
		if n > 0 || err == io.EOF {
			if werr := p.to.frame(op, err == io.EOF, buf[:n]); werr != nil {
				return werr
			}
			op = Continuation
		}
		if err == io.EOF {
			return nil
		}
	}
}

// payload reads one message, unmasked, and carries the control frames that stand in it.
type payload struct {
	p       *pump
	op      Opcode
	h       Header // of the frame under way
	left    int64  // of it
	ended   bool   // the last byte has been read
	checked bool   // it is text
	text    utf8Check
}

func (m *payload) Read(b []byte) (int, error) {
	for m.left == 0 {
		if m.h.Fin {
			return 0, m.end()
		}
		h, err := m.p.next()
		if err != nil {
			return 0, unexpected(err)
		}
		if h.Opcode != Continuation {
			return 0, violation("a message within another one")
		}
		m.h, m.left = h, h.Length
	}
	if len(b) == 0 {
		return 0, nil
	}
	n, err := m.p.from.Read(b[:min(int64(len(b)), m.left)])
	b = b[:n]
	if m.h.Masked {
		xor(m.h.Mask, m.h.Length-m.left, b)
	}
	m.left -= int64(n)
	m.ended = m.left == 0 && m.h.Fin
	if m.checked && !m.text.valid(b) || m.ended && !m.text.whole() {
		return 0, errNotText
	}
	if n > 0 {
		err = nil // it comes again
	}
	return n, unexpected(err)
}

func (m *payload) end() error {
	m.ended = true
	if !m.text.whole() {
		return errNotText
	}
	return io.EOF
}

var errNotText error = &Error{Code: CodeInvalidData, Reason: "text is not UTF-8"}
