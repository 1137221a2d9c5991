package redis

import (
	"bytes"
	"net"
	"sync/atomic"

	"github.com/egressd/egressd/proxy/wire"
)

// replies reads what a server answers, follows where one reply ends and the next begins, and
// takes out the reply to the AUTH that was sent behind a RESET. Where the framing is not
// understood (a replication stream), bytes pass as they are from there on.
type replies struct {
	net.Conn
	resets atomic.Int32 // sent and not answered yet; written by the other direction too

	lost bool
	left int64 // values that the reply now being read still has; 0: between replies
	skip int64 // bytes of a bulk string and its CR LF
	line []byte
	long bool // the line is longer than is kept
	take bool // the next reply is not the sandbox's
}

const (
	maxLine   = 512 // of a line that is kept; a length has far less
	maxValues = 1 << 40
)

// CloseWrite half-closes towards the server.
func (r *replies) CloseWrite() error { return closeWrite(r.Conn) }

// Read gives out what of the next bytes is the sandbox's.
func (r *replies) Read(p []byte) (int, error) {
	for {
		n, err := r.Conn.Read(p)
		kept, bad := r.filter(p[:n])
		if bad != nil {
			return kept, bad
		}
		if kept > 0 || err != nil || len(p) == 0 {
			return kept, err
		}
	}
}

// filter moves together in p what is to be kept, and says how much it is.
func (r *replies) filter(p []byte) (kept int, err error) {
	for at := 0; at < len(p); {
		if r.lost {
			return kept + copy(p[kept:], p[at:]), nil
		}
		n, cut, err := r.scan(p[at:])
		if err != nil {
			return kept, err
		}
		if !cut {
			if kept != at {
				copy(p[kept:], p[at:at+n])
			}
			kept += n
		}
		at += n
	}
	return kept, nil
}

// scan reads one piece of b, at least a byte: the rest of a bulk string, or of a line.
// cut says that it is to be taken out.
func (r *replies) scan(b []byte) (n int, cut bool, err error) {
	if r.skip > 0 {
		n = int(min(int64(len(b)), r.skip))
		r.skip -= int64(n)
		return n, false, nil
	}
	cut = r.take && r.left == 0
	end := bytes.IndexByte(b, '\n')
	n = end + 1
	if end < 0 {
		n = len(b)
	}
	if room := maxLine - len(r.line); n <= room {
		r.line = append(r.line, b[:n]...)
	} else {
		r.line, r.long = append(r.line, b[:room]...), true
	}
	if end < 0 && (!cut || !r.long) {
		return n, cut, nil
	}
	whole, proper := bytes.CutSuffix(r.line, []byte("\r\n"))
	if cut {
		r.take = false
		if string(whole) != "+OK" || !proper {
			return 0, false, &wire.Refusal{Code: wire.CodeUpstreamLogin, Detail: "the login after RESET failed", Err: wire.ErrLogin}
		}
	} else if !proper && !r.long || !r.value(whole) {
		r.lost = true
	}
	r.line, r.long = r.line[:0], false
	return n, cut, nil
}

// value takes the line with which a value begins into account.
func (r *replies) value(line []byte) bool {
	if len(line) == 0 {
		return false
	}
	top := r.left == 0
	if top {
		r.left = 1
	}
	size, sized := length(line[1:])
	switch line[0] {
	case '+', '-':
		if top && r.resets.Load() > 0 && answersReset(line) {
			r.resets.Add(-1)
			r.take = true
		}
		r.left--
	case ':', ',', '#', '_', '(':
		r.left--
	case '$', '=', '!':
		r.left--
		if sized {
			r.skip = size + 2
		}
	case '*', '~', '>':
		r.left += size - 1
	case '%':
		r.left += 2*size - 1
	case '|': // attributes stand before a value
		r.left += 2 * size
	default:
		return false
	}
	isSized := bytes.IndexByte([]byte("$=!*~>%|"), line[0]) >= 0
	null := string(line[1:]) == "-1"
	return r.left >= 0 && r.left <= maxValues && (!isSized || !r.long && (sized || null))
}

// answersReset knows +RESET, and the errors of servers that have no such command or
// do not take it now. They name it as it was sent, in upper case.
func answersReset(line []byte) bool {
	return string(line) == "+RESET" || line[0] == '-' && (bytes.Contains(line, []byte("RESET")) || bytes.Contains(line, []byte("can only reset")))
}

// length reads up to 12 digits.
func length(digits []byte) (n int64, ok bool) {
	if len(digits) == 0 || len(digits) > 12 {
		return 0, false
	}
	for _, d := range digits {
		if d < '0' || d > '9' {
			return 0, false
		}
		n = n*10 + int64(d-'0')
	}
	return n, true
}
