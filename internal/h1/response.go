package h1

import (
	"net/http"
	"strings"
)

// badGateway is an origin's message that must not be passed on.
func badGateway(err error) error {
	if pe, ok := err.(*ProtocolError); ok { //nolint:errorlint // made in this package, unwrapped
		return &ProtocolError{Status: http.StatusBadGateway, Reason: pe.Reason}
	}
	return err
}

// parseResponse interprets a response head.
func parseResponse(a *Answer, head string, lines int) (err error) {
	resp := &a.resp
	end := strings.Index(head, "\r\n")
	line := head[:end]
	resp.ProtoMajor = 1
	switch {
	case strings.HasPrefix(line, "HTTP/1.1 "):
		resp.Proto, resp.ProtoMinor = "HTTP/1.1", 1
	case strings.HasPrefix(line, "HTTP/1.0 "):
		resp.Proto = "HTTP/1.0"
	default:
		return bad("bad_status_line")
	}
	line = line[len("HTTP/1.x "):]
	if len(line) < 3 || len(line) > 3 && line[3] != ' ' || !all(line, isValue) {
		return bad("bad_status_line")
	}
	n, ok := parseLength(line[:3])
	if !ok || n < 100 {
		return bad("bad_status")
	}
	resp.StatusCode = int(n)
	resp.Status = line
	resp.Header, err = parseFields(head[end+2:], lines-1, a.header, a.values[:])
	a.header = resp.Header
	return err
}

// frameResponse says how long the body is (RFC 9112 section 6.3). toClose: until the
// connection ends. none: there is no body.
func frameResponse(resp *http.Response, method string) (f framing, toClose, none bool, err error) {
	if f, err = parseFraming(resp.Header, resp.ProtoMinor == 0); err != nil {
		return f, false, false, err
	}
	if resp.StatusCode < 200 || resp.StatusCode == http.StatusNoContent || resp.StatusCode == http.StatusNotModified || method == http.MethodHead {
		resp.ContentLength = f.length
		return f, false, true, nil
	}
	switch {
	case f.chunked:
		resp.ContentLength = -1
	case f.length >= 0:
		resp.ContentLength = f.length
		none = f.length == 0
	default:
		resp.ContentLength, toClose = -1, true
	}
	return f, toClose, none, nil
}
