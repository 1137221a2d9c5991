package mcp

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"strings"
	"unicode"
)

// The sizes that Filter takes when none are given.
const (
	DefaultRequest = 4 << 20
	DefaultMessage = 16 << 20
)

// maxBatch is the most messages in one body: each may have an answer.
const maxBatch = 1000

// Filter judges what goes through one HTTP exchange that a protocol rule of protocol mcp
// applies to. The zero value denies every tool. It holds no state: it may be shared, and
// copied.
type Filter struct {
	// Allows says whether a tool may be listed and called, and which rule says no.
	Allows func(tool string) (ok bool, rule string)
	// MaxRequest is the most bytes that a request body may have; 0: DefaultRequest.
	MaxRequest int
	// MaxMessage is the most bytes that a JSON answer or one event may have; 0: DefaultMessage.
	MaxMessage int
}

// Cause says why a request was refused; a closed set, fit for a label.
type Cause string

// The causes.
const (
	CauseTool    Cause = "tool"    // a tool that is not allowed
	CauseParse   Cause = "parse"   // not JSON, or JSON that can be read in two ways
	CauseInvalid Cause = "invalid" // JSON that is no JSON-RPC, or might be read as a call
	CauseCoding  Cause = "coding"  // a content coding or charset
	CauseSize    Cause = "size"
)

// Decision is the outcome for one request. The zero value refuses.
type Decision struct {
	Pass  bool
	Cause Cause
	// Tool is the first that is not allowed, cut to 128 bytes, and Rule the rule that says
	// so: for the operator.
	Tool, Rule string
	// Status and Body are the answer to a refused request. Body is a JSON-RPC error, or
	// several; none with 202, which is how notifications are answered.
	Status int
	Body   []byte
}

// Answer gives the status that suits the client behind a request with this header. Who
// does not accept JSON by name may use the older transport, in which nobody reads what
// POST brings, and a call would be waited for until its time is up: such a client gets
// 403 in place of 200. The body is the same.
func (d *Decision) Answer(h http.Header) int {
	accept := strings.ToLower(strings.Join(h.Values("Accept"), ","))
	if d.Status != http.StatusOK || strings.Contains(accept, "application/json") || strings.Contains(accept, "text/event-stream") {
		return d.Status
	}
	return http.StatusForbidden
}

// JSON-RPC 2.0 §5.1. MCP answers a call of a tool that a server does not have with
// invalid params, and a tool that the filter has taken from the list is one; codes of
// one's own are no better, for SDKs have given them meanings (-32001: timed out).
const (
	codeParse   = -32700
	codeInvalid = -32600
	codeParams  = -32602
)

// Request reads and judges the body of a request, whatever its method and content type
// say that it is; call it for every request that has one. When the request passes, body
// is what to send, the same bytes. err is that of reading, which ends the exchange.
func (f *Filter) Request(h http.Header, r io.Reader) (body []byte, d Decision, err error) {
	if !plainText(h) {
		return nil, refuse(CauseCoding, http.StatusUnsupportedMediaType, codeParse, "coded bodies are not accepted by policy"), nil
	}
	most := or(f.MaxRequest, DefaultRequest)
	body, err = io.ReadAll(io.LimitReader(r, int64(most)+1))
	if err != nil {
		return nil, Decision{}, fmt.Errorf("reading a request: %w", err)
	}
	if len(body) > most {
		return nil, refuse(CauseSize, http.StatusRequestEntityTooLarge, codeInvalid, "request too large for policy"), nil
	}
	if d = f.judge(body); !d.Pass {
		return nil, d, nil
	}
	return body, d, nil
}

func or(v, preset int) int {
	if v > 0 {
		return v
	}
	return preset
}

// plainText: what we read as UTF-8, a server must not read as something else.
func plainText(h http.Header) bool {
	for _, v := range h.Values("Content-Encoding") {
		if v = strings.TrimSpace(v); v != "" && !strings.EqualFold(v, "identity") {
			return false
		}
	}
	types := h.Values("Content-Type")
	return len(types) == 0 || len(types) == 1 && utf8Charset(types[0])
}

func utf8Charset(contentType string) bool {
	_, params, err := mime.ParseMediaType(contentType)
	if err != nil {
		return !strings.Contains(strings.ToLower(contentType), "charset")
	}
	switch strings.ToLower(params["charset"]) {
	case "", "utf-8", "utf8", "us-ascii":
		return true
	}
	return false
}

// judge looks at a whole body.
func (f *Filter) judge(b []byte) Decision {
	at := skipSpace(b, 0)
	if !wellFormed(b) {
		return refuse(CauseParse, http.StatusBadRequest, codeParse, "parse error")
	}
	if _, err := unambiguous(b, at, maxDepth); err != nil {
		return refuse(CauseParse, http.StatusBadRequest, codeParse, "parse error: "+err.Error())
	}
	var calls []call
	var err error
	batch := b[at] == '['
	if batch {
		_, err = elements(b, at, func(value, _ span) error {
			c, err := parse(b, value)
			if calls = append(calls, c); len(calls) > maxBatch {
				return errInvalid
			}
			return err
		})
	} else {
		calls = make([]call, 1)
		calls[0], err = parse(b, span{at, skipValue(b, at)})
	}
	if err != nil || len(calls) == 0 {
		return refuse(CauseInvalid, http.StatusBadRequest, codeInvalid, "invalid request")
	}
	return f.decide(calls, batch)
}

// call is one message. id is nil in notifications and in the client's own answers.
type call struct {
	id     []byte
	isCall bool // tools/call
	tool   string
	named  bool // tool was given, as a string
}

var errInvalid = errors.New("not a JSON-RPC message")

// parse reads the message at s. It fails for what is none, and for what a lenient server
// might take for a tools/call that it is not to us.
func parse(b []byte, s span) (call, error) {
	if !s.is(b, '{') {
		return call{}, errInvalid
	}
	m, err := pick(b, s.from, "jsonrpc", "id", "method", "params", "result", "error")
	if err != nil {
		return call{}, err
	}
	method, isRequest := m["method"]
	_, hasResult := m["result"]
	_, hasError := m["error"]
	id, hasID := m["id"]
	if hasID && b[id.from] != '"' && b[id.from] != '-' && b[id.from] != 'n' && (b[id.from] < '0' || b[id.from] > '9') {
		return call{}, errInvalid
	}
	if isRequest == (hasResult || hasError) {
		return call{}, errInvalid // neither a request nor an answer, or both
	}
	if !isRequest {
		return call{}, nil
	}
	c := call{}
	if hasID {
		c.id = id.of(b)
	}
	name, ok := text(b, method)
	if !ok {
		return call{}, errInvalid
	}
	if c.isCall = name == "tools/call"; !c.isCall {
		if strings.EqualFold(bare(name), "tools/call") {
			return call{}, errInvalid
		}
		return c, nil
	}
	if params := m["params"]; params.is(b, '{') {
		p, err := pick(b, params.from, "name", "arguments")
		if err != nil {
			return call{}, err
		}
		c.tool, c.named = text(b, p["name"])
	}
	return c, nil
}

// bare leaves out what somebody might trim.
func bare(name string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsSpace(r) || !unicode.IsGraphic(r) {
			return -1
		}
		return r
	}, name)
}

// decide refuses all when one is refused: nothing is half done.
func (f *Filter) decide(calls []call, batch bool) Decision {
	d := Decision{Pass: true}
	message := ""
	for _, c := range calls {
		if !c.isCall {
			continue
		}
		if !c.named {
			d, message = Decision{Cause: CauseInvalid}, "invalid params: no name of a tool"
			break
		}
		if ok, rule := f.allows(c.tool); !ok {
			d, message = Decision{Cause: CauseTool, Tool: clip(c.tool), Rule: rule}, "tool not allowed by policy"
			break
		}
	}
	if d.Pass {
		return d
	}
	if batch {
		message = "batch refused: " + message
	}
	var answers [][]byte
	for _, c := range calls {
		if c.id != nil {
			answers = append(answers, answer(c.id, codeParams, message))
		}
	}
	switch {
	case len(answers) == 0:
		d.Status = http.StatusAccepted
	case batch:
		d.Status, d.Body = http.StatusOK, append(append([]byte{'['}, bytes.Join(answers, []byte{','})...), ']')
	default:
		d.Status, d.Body = http.StatusOK, answers[0]
	}
	return d
}

func (f *Filter) allows(tool string) (ok bool, rule string) {
	if f.Allows == nil {
		return false, ""
	}
	return f.Allows(tool)
}

func clip(s string) string {
	if len(s) > 128 {
		s = strings.ToValidUTF8(s[:128], "")
	}
	return s
}

func refuse(cause Cause, status, code int, message string) Decision {
	return Decision{Cause: cause, Status: status, Body: answer([]byte("null"), code, message)}
}

// answer is a JSON-RPC error. id is JSON; message is ours and needs no escapes.
func answer(id []byte, code int, message string) []byte {
	return fmt.Appendf(nil, `{"jsonrpc":"2.0","id":%s,"error":{"code":%d,"message":"%s"}}`, id, code, message)
}
