package mcp

import (
	"bytes"
	"io"
)

const (
	chunkSize = 16 << 10
	maxEmpty  = 100 // reads in a row that gave nothing
)

// stream filters server-sent events (HTML §9.2.6). Lines leave as they come until an
// event has data; its data is held until the empty line that dispatches it.
type stream struct {
	f    *Filter
	body io.ReadCloser

	chunk   []byte
	partial []byte // of a line
	event   []byte // lines from the first with data on
	lines   []line // of event
	out     []byte // may go; out[:sent] has
	sent    int
	err     error // after out

	fresh   bool // no line yet: a byte order mark may lead
	afterCR bool // the last line ended with CR: LF would be part of its end
}

// line is event[from:to]; its text ends at end.
type line struct {
	from, end, to int
	data          bool
}

func (s *stream) Close() error { return s.body.Close() }

func (s *stream) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	for empty := 0; s.sent == len(s.out) && s.err == nil; {
		if s.pull() > 0 {
			empty = 0
		} else if empty++; empty == maxEmpty && s.err == nil {
			return 0, io.ErrNoProgress
		}
	}
	if s.sent < len(s.out) {
		n := copy(p, s.out[s.sent:])
		s.sent += n
		return n, nil
	}
	return 0, s.err
}

// pull reads once from body and takes in what came.
func (s *stream) pull() int {
	if s.chunk == nil {
		s.chunk = make([]byte, chunkSize)
	}
	s.out, s.sent = small(s.out), 0
	n, err := s.body.Read(s.chunk)
	if failed := s.feed(s.chunk[:n]); failed != nil {
		s.err = failed
		return n
	}
	if err == io.EOF {
		// Nobody has to act on an event without its empty line, but somebody may.
		if failed := s.finish(); failed != nil {
			err = failed
		}
	}
	s.err = err
	return n
}

func (s *stream) feed(b []byte) error {
	if s.afterCR && len(b) > 0 {
		s.afterCR = false
		if b[0] == '\n' {
			s.lateLF()
			b = b[1:]
		}
	}
	for len(b) > 0 {
		end := lineEnd(b)
		if end < 0 {
			s.partial = append(s.partial, b...)
			break
		}
		to := end + 1
		if b[end] == '\r' {
			if to == len(b) {
				s.afterCR = true
			} else if b[to] == '\n' {
				to++
			}
		}
		text, eol := b[:end], b[end:to]
		if len(s.partial) > 0 {
			text = append(s.partial, text...)
			s.partial = small(text) // line copies
		}
		if err := s.line(text, eol); err != nil {
			return err
		}
		b = b[to:]
	}
	if len(s.partial)+len(s.event) > or(s.f.MaxMessage, DefaultMessage) {
		return ErrTooLarge
	}
	return nil
}

func lineEnd(b []byte) int {
	lf := bytes.IndexByte(b, '\n')
	if lf >= 0 {
		b = b[:lf]
	}
	if cr := bytes.IndexByte(b, '\r'); cr >= 0 {
		return cr
	}
	return lf
}

// lateLF puts the LF of a CRLF that was cut where its CR has gone.
func (s *stream) lateLF() {
	if n := len(s.lines); n > 0 {
		s.event = append(s.event, '\n')
		s.lines[n-1].to++
		return
	}
	s.out = append(s.out, '\n')
}

func (s *stream) finish() error {
	if len(s.partial) > 0 {
		text := s.partial
		s.partial = nil
		if err := s.line(text, nil); err != nil {
			return err
		}
	}
	return s.dispatch()
}

// line takes one line in: text, and its end as sent.
func (s *stream) line(text, eol []byte) error {
	_, isData := dataOf(text)
	if s.fresh {
		_, isData = dataOf(bytes.TrimPrefix(text, []byte("\ufeff")))
		s.fresh = false
		if bytes.HasPrefix(text, []byte("\ufeff")) {
			s.out = append(s.out, "\ufeff"...)
			text = text[len("\ufeff"):]
		}
	}
	switch {
	case len(text) == 0:
		if err := s.dispatch(); err != nil {
			return err
		}
		s.out = append(s.out, eol...)
	case isData || len(s.lines) > 0:
		l := line{from: len(s.event), data: isData}
		s.event = append(s.event, text...)
		l.end = len(s.event)
		s.event = append(s.event, eol...)
		l.to = len(s.event)
		s.lines = append(s.lines, l)
	default:
		s.out = append(append(s.out, text...), eol...)
	}
	return nil
}

// dataOf gives the value of a data field.
func dataOf(text []byte) ([]byte, bool) {
	value, ok := bytes.CutPrefix(text, []byte("data"))
	if !ok {
		return nil, false
	}
	if len(value) == 0 {
		return nil, true
	}
	if value[0] != ':' {
		return nil, false
	}
	return bytes.TrimPrefix(value[1:], []byte(" ")), true
}

// dispatch lets the event go that is held, filtered.
func (s *stream) dispatch() error {
	if len(s.lines) == 0 {
		return nil
	}
	data, err := s.data()
	if err != nil {
		return err
	}
	first := true
	for _, l := range s.lines {
		switch {
		case !l.data || data == nil:
			s.out = append(s.out, s.event[l.from:l.to]...)
		case first:
			first = false
			for d := range bytes.SplitSeq(data, []byte("\n")) {
				s.out = append(append(append(s.out, "data: "...), d...), s.event[l.end:l.to]...)
			}
		}
	}
	s.event, s.lines = small(s.event), s.lines[:0]
	return nil
}

// small empties b, and lets go of what one large event in a long stream has needed.
func small(b []byte) []byte {
	if cap(b) > 4*chunkSize {
		return nil
	}
	return b[:0]
}

// data gives what the event's data becomes; nil: it stays.
func (s *stream) data() ([]byte, error) {
	var all []byte
	for _, l := range s.lines {
		if !l.data {
			continue
		}
		value, _ := dataOf(s.event[l.from:l.end])
		if all != nil {
			all = append(all, '\n')
		}
		all = append(all, value...)
		if all == nil {
			all = []byte{}
		}
	}
	out, changed, err := s.f.filter(all)
	if err != nil || !changed {
		return nil, err
	}
	return out, nil
}
