package mcp

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/egressd/egressd/internal/scan"
)

// Errors of answers. The exchange must end with one: 502, or a reset when bytes have left.
var (
	ErrMalformed = errors.New("an answer can be read in two ways")
	ErrTooLarge  = errors.New("an answer or event is too large to be filtered")
)

// Response gives body with the tools that are not allowed taken out of lists of tools:
// out of result.tools of each JSON-RPC message in a JSON document or event stream. All
// else stays byte for byte; events leave as soon as they are complete, a JSON document
// when it has been read. Other content types give body itself. body must have no content
// coding. Where the result is not body, its length and digests are no longer known.
//
// Reading ends with ErrMalformed or ErrTooLarge where a list might be hidden from us.
func (f *Filter) Response(contentType string, body io.ReadCloser) (io.ReadCloser, error) {
	media, _, _ := strings.Cut(contentType, ";")
	media = strings.ToLower(strings.TrimSpace(media))
	if strings.Contains(media, ",") {
		return nil, fmt.Errorf("content type: %w", ErrMalformed)
	}
	events := media == "text/event-stream"
	if !events && !isJSON(media) {
		return body, nil
	}
	if media != "" && !utf8Charset(contentType) {
		return nil, fmt.Errorf("charset: %w", ErrMalformed)
	}
	if events {
		return &stream{f: f, body: body, fresh: true}, nil
	}
	return &document{f: f, body: body}, nil
}

// isJSON includes what has no type: clients that do not look at it would parse it.
func isJSON(media string) bool {
	switch media {
	case "", "application/json", "text/json", "application/json-rpc", "application/jsonrequest":
		return true
	}
	return strings.HasSuffix(media, "+json")
}

// document is a JSON body, read whole at the first Read.
type document struct {
	f    *Filter
	body io.ReadCloser
	r    *bytes.Reader
	err  error
}

func (d *document) Read(p []byte) (int, error) {
	if d.r == nil && d.err == nil {
		d.err = d.load()
	}
	if d.err != nil {
		return 0, d.err
	}
	return d.r.Read(p)
}

func (d *document) load() error {
	most := or(d.f.MaxMessage, DefaultMessage)
	b, err := io.ReadAll(io.LimitReader(d.body, int64(most)+1))
	if err != nil {
		return err
	}
	if len(b) > most {
		return ErrTooLarge
	}
	b, _, err = d.f.filter(b)
	d.r = bytes.NewReader(b)
	return err
}

func (d *document) Close() error { return d.body.Close() }

// filter gives b without the tools that are not allowed, and whether it differs.
func (f *Filter) filter(b []byte) (out []byte, changed bool, err error) {
	if bytes.IndexByte(b, 0) >= 0 {
		return nil, false, ErrMalformed // UTF-16, which some clients detect
	}
	if !mayList(b) {
		return b, false, nil
	}
	at := 0
	if bytes.HasPrefix(b, []byte("\ufeff")) {
		at = len("\ufeff")
	}
	doc := b[at:]
	first := skipSpace(doc, 0)
	if first == len(doc) || doc[first] != '{' && doc[first] != '[' {
		return b, false, nil // no message: the older transport's endpoint event
	}
	if !wellFormed(doc) {
		return nil, false, ErrMalformed
	}
	edits, err := f.edits(doc, first)
	if err != nil {
		return nil, false, err
	}
	if len(edits) == 0 {
		return b, false, nil
	}
	out = append(out, b[:at]...)
	done := 0
	for _, e := range edits {
		out = append(append(out, doc[done:e.from]...), e.with...)
		done = e.to
	}
	return append(out, doc[done:]...), true, nil
}

// listWords are in every document that has a key which is, or may be taken for, "tools":
// of these letters only the last folds to one that is not ASCII. The second is how all
// escapes of ASCII letters begin.
var listWords = scan.New([]scan.Pattern{
	{Bytes: []byte("tool"), Fold: scan.FoldLetters},
	{Bytes: []byte(`\u00`)},
})

// mayList spares nearly every message being parsed.
func mayList(b []byte) bool {
	_, _, _, ok := listWords.Find(b)
	return ok
}

// edit replaces a part of a document.
type edit struct {
	span
	with []byte
}

func (f *Filter) edits(b []byte, at int) ([]edit, error) {
	var out []edit
	message := func(value, _ span) error {
		if !value.is(b, '{') {
			return nil
		}
		e, err := f.message(b, value.from)
		if e != nil {
			out = append(out, *e)
		}
		return err
	}
	var err error
	if b[at] == '[' {
		_, err = elements(b, at, message)
	} else {
		err = message(span{at, len(b)}, span{})
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	return out, nil
}

// message gives what to change in the message at i; nil: nothing.
func (f *Filter) message(b []byte, i int) (*edit, error) {
	m, err := pick(b, i, "result")
	if err != nil || !m["result"].is(b, '{') {
		return nil, err
	}
	result, err := pick(b, m["result"].from, "tools")
	if err != nil || !result["tools"].is(b, '[') {
		return nil, err
	}
	tools := result["tools"]
	var kept [][]byte
	named, removed := false, false
	end, err := elements(b, tools.from, func(value, around span) error {
		name, err := toolName(b, value)
		if err != nil {
			return err
		}
		named = named || name.is(b, '"')
		if f.lists(b, name) {
			kept = append(kept, around.of(b))
		} else {
			removed = true
		}
		return nil
	})
	if err != nil || !named || !removed {
		return nil, err // a result of something else may have a list of that name too
	}
	return &edit{span{tools.from + 1, end}, bytes.Join(kept, []byte{','})}, nil
}

// toolName finds the name in an element of result.tools, if it has one.
func toolName(b []byte, s span) (span, error) {
	if !s.is(b, '{') {
		return span{}, nil
	}
	t, err := pick(b, s.from, "name")
	return t["name"], err
}

// lists says whether the tool whose name's literal is at s may be listed.
func (f *Filter) lists(b []byte, s span) bool {
	name, ok := text(b, s)
	if ok {
		ok, _ = f.allows(name)
	}
	return ok
}
