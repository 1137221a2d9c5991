package api

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"net/url"
	"reflect"
	"runtime"
	"strconv"
	"strings"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"github.com/egressd/egressd/source"
)

// TeamHeader lets a principal that is bound to no team say for which team it acts.
const TeamHeader = "Egressd-Team"

// call is one request on its way through the stages.
type call struct {
	ctx     context.Context
	r       *http.Request
	id      string
	who     Principal
	team    string // that sources are looked up in
	route   *route // nil until found
	name    string // the {name} of the path
	query   url.Values
	body    []byte
	in      any             // pointer to a value of route.in's type
	present map[string]bool // members of the body's object
	answers *remembered     // set when the answer is to be remembered
}

// answer is a success.
type answer struct {
	status   int // 0: the route's
	data     any
	etag     string
	location string
	next     string // token of the next page
	raw      []byte // instead of data: the whole body
	replayed bool
}

// envelope is every JSON answer.
type envelope struct {
	Success       bool       `json:"success"`
	Data          any        `json:"data,omitempty"`
	NextPageToken string     `json:"nextPageToken,omitempty"`
	Error         *ErrorBody `json:"error,omitempty"`
}

func newID() string {
	var b [12]byte
	_, _ = rand.Read(b[:]) // never fails (crypto/rand)
	return base64.RawURLEncoding.EncodeToString(b[:])
}

func (s *Server) serve(w http.ResponseWriter, r *http.Request) {
	start := time.Now()
	c := &call{r: r, ctx: r.Context(), id: newID()}
	defer func() { clear(c.body) }() // the one copy of a submitted spec that can be cleared
	secure(w.Header())
	w.Header().Set("X-Request-Id", c.id)
	ans, f := s.guarded(c)
	status := s.write(w, c, ans, f)
	s.record(c, f, status, time.Since(start))
}

// panicked stands for a recovered panic; of its value only the type is kept.
type panicked struct{ kind, at string }

func (p *panicked) Error() string { return "panic of type " + p.kind + " at " + p.at }

func (s *Server) guarded(c *call) (ans answer, f *failure) {
	defer func() {
		if v := recover(); v != nil {
			ans, f = answer{}, failInternal(&panicked{kind: fmt.Sprintf("%T", v), at: panicSite()})
		}
	}()
	return s.stages(c)
}

// panicSite is the function and line that panicked: the first frame below the runtime's.
func panicSite() string {
	var pcs [32]uintptr
	frames := runtime.CallersFrames(pcs[:runtime.Callers(3, pcs[:])])
	for {
		fr, more := frames.Next()
		if fr.Function != "" && !strings.HasPrefix(fr.Function, "runtime.") {
			return fr.Function + ":" + strconv.Itoa(fr.Line)
		}
		if !more {
			return "unknown"
		}
	}
}

// stages is the life of a request up to its handler.
func (s *Server) stages(c *call) (answer, *failure) {
	if f := s.checkHost(c.r); f != nil {
		return answer{}, f
	}
	if f := s.checkOrigin(c.r); f != nil {
		return answer{}, f
	}
	who, f := s.authenticate(c.r)
	if f != nil {
		return answer{}, f
	}
	c.who = who
	if f := c.chooseTeam(); f != nil {
		return answer{}, f
	}
	rt, name, allow := find(s.routes, c.r.Method, c.r.URL.EscapedPath())
	if rt == nil && len(allow) > 0 {
		return answer{}, fail(http.StatusMethodNotAllowed, CodeBadRequest, ReasonMethod, "this path does not have that method; see Allow").
			with("Allow", strings.Join(allow, ", "))
	}
	if rt == nil {
		return answer{}, failNotFound("resource")
	}
	c.route, c.name = rt, name
	if rt.role == RoleNone || c.who.Role < rt.role {
		return answer{}, fail(http.StatusForbidden, CodeForbidden, ReasonRole, "this needs the role "+rt.role.String())
	}
	if rt.unbound && c.who.Team != AllTeams {
		return answer{}, failTeam()
	}
	if f := c.readQuery(); f != nil {
		return answer{}, f
	}
	if f := c.readBody(); f != nil {
		return answer{}, f
	}
	if rt.method == http.MethodGet {
		return rt.handler(s, c)
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(c.ctx), workTimeout)
	defer cancel()
	c.ctx = ctx
	return s.once(c)
}

func failTeam() *failure {
	return fail(http.StatusForbidden, CodeForbidden, ReasonTeam, "this principal is bound to its team")
}

// chooseTeam settles the team a request acts for: the principal's own, or what one that is
// bound to none asks for.
func (c *call) chooseTeam() *failure {
	asked := c.r.Header.Values(TeamHeader)
	if len(asked) > 1 || len(asked) == 1 && !nameRE.MatchString(asked[0]) {
		return failField("header."+TeamHeader, "must be one team's name")
	}
	c.team = c.who.Team
	if c.who.Team != AllTeams {
		if len(asked) == 1 && asked[0] != c.who.Team {
			return failTeam()
		}
		return nil
	}
	c.team = DefaultTeam
	if len(asked) == 1 {
		c.team, c.who.Team = asked[0], asked[0]
	}
	return nil
}

func (c *call) readQuery() *failure {
	q, err := url.ParseQuery(c.r.URL.RawQuery)
	if err != nil {
		return fail(http.StatusBadRequest, CodeBadRequest, ReasonInvalidParameter, "the query string is malformed")
	}
	known := map[string]param{}
	for _, p := range c.route.query {
		known[p.name] = p
	}
	for name, values := range q {
		p, ok := known[name]
		if !ok {
			return fail(http.StatusBadRequest, CodeBadRequest, ReasonUnknownParameter, "the query has a parameter that this route does not know")
		}
		if len(values) > 1 && !p.many {
			return failParam(p.name, "may be given once")
		}
	}
	c.query = q
	return nil
}

func failParam(name, message string) *failure {
	f := failField("query."+name, message)
	f.body.Details.Reason = ReasonInvalidParameter
	return f
}

func failTooLarge() *failure {
	return fail(http.StatusRequestEntityTooLarge, CodeTooLarge, "", "the body is larger than 1 MiB").with("Connection", "close")
}

// readBody reads and decodes the body as the route's Go type, strictly.
func (c *call) readBody() *failure {
	if c.r.ContentLength > MaxBody {
		return failTooLarge()
	}
	body, err := readAll(c.r.Body, c.r.ContentLength)
	c.body = body
	switch {
	case err != nil:
		return fail(http.StatusBadRequest, CodeBadRequest, "", "the body could not be read").because(err).with("Connection", "close")
	case len(body) > MaxBody:
		return failTooLarge()
	case c.route.in == nil:
		if b := bytes.TrimSpace(body); len(b) > 0 && string(b) != "{}" {
			return fail(http.StatusBadRequest, CodeBadRequest, "", "this route takes no body")
		}
		return nil
	}
	want := c.route.media
	if want == "" {
		want = mediaJSON
	}
	got, params, err := mime.ParseMediaType(c.r.Header.Get("Content-Type"))
	charset, other := params["charset"], len(params)
	if charset != "" {
		other--
	}
	if err != nil || got != want || other > 0 || charset != "" && !strings.EqualFold(charset, "utf-8") || len(c.r.Header.Values("Content-Type")) != 1 {
		return fail(http.StatusUnsupportedMediaType, CodeBadRequest, ReasonMediaType, "the Content-Type must be "+want).with("Accept", want)
	}
	return c.decode()
}

// readAll reads up to one byte more than MaxBody; it never grows a buffer in a way that leaves
// copies behind.
func readAll(r io.Reader, length int64) ([]byte, error) {
	if length >= 0 {
		buf := make([]byte, length)
		_, err := io.ReadFull(r, buf)
		return buf, err
	}
	buf := make([]byte, 0, MaxBody+1)
	for len(buf) < cap(buf) {
		n, err := r.Read(buf[len(buf):cap(buf)])
		buf = buf[:len(buf)+n]
		if errors.Is(err, io.EOF) {
			return buf, nil
		}
		if err != nil {
			return buf, err
		}
	}
	return buf, nil
}

func (c *call) decode() *failure {
	t := reflect.TypeOf(c.route.in)
	v := reflect.New(t)
	if err := source.DecodeStrict(c.body, v.Interface()); err != nil {
		var fe source.FieldErrors
		if !errors.As(err, &fe) {
			return fail(http.StatusBadRequest, CodeBadRequest, ReasonMalformedJSON, "the body is not valid JSON")
		}
		f := failFields(fields(fe))
		if _, whole := fe[""]; whole {
			f.body.Details.Reason = ReasonMalformedJSON
		}
		return f
	}
	var members map[string]json.RawMessage
	if err := json.Unmarshal(c.body, &members); err != nil || members == nil {
		return failField("", "must be an object")
	}
	c.in, c.present = v.Interface(), map[string]bool{}
	for m := range members {
		c.present[m] = true
	}
	missing := fields{}
	for _, m := range membersOf(t) {
		if m.required && !c.present[m.name] {
			missing.add(m.name, "is required")
		}
	}
	if len(missing) > 0 {
		return failFields(missing)
	}
	return nil
}

// write sends the answer and returns its status.
func (s *Server) write(w http.ResponseWriter, c *call, ans answer, f *failure) int {
	h := w.Header()
	var body []byte
	status := ans.status
	switch {
	case f != nil:
		for name, values := range f.header {
			h[name] = values
		}
		status, body = f.status, encode(envelope{Error: &f.body})
	case ans.raw != nil:
		body = ans.raw
	default:
		body = encode(envelope{Success: true, Data: ans.data, NextPageToken: ans.next})
	}
	if status == 0 {
		status = c.route.status
	}
	h.Set("Content-Type", mediaJSON)
	if f == nil && c.route.produces != "" {
		h.Set("Content-Type", c.route.produces)
	}
	for name, value := range map[string]string{"Etag": ans.etag, "Location": ans.location} {
		if value != "" {
			h.Set(name, value)
		}
	}
	if ans.replayed {
		h.Set("Idempotency-Replayed", "true")
	}
	h.Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(status)
	_, _ = w.Write(body) // the client may be gone; what was done is done
	return status
}

// encode marshals types of ours, which cannot fail.
func encode(v any) []byte {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return []byte(`{"success":false,"error":{"code":"internal_error","message":"the answer could not be encoded","details":{}}}` + "\n")
	}
	return b.Bytes()
}

// record writes the log line and the metrics of a request. Neither ever holds the path as
// sent, a header, or anything of the body.
func (s *Server) record(c *call, f *failure, status int, took time.Duration) {
	pattern := "none"
	if c.route != nil {
		pattern = c.route.pattern
	}
	s.meter.answered(pattern, c.r.Method, status, took)
	level := zapcore.DebugLevel
	switch {
	case status >= http.StatusInternalServerError:
		level = zapcore.ErrorLevel
	case f != nil || c.r.Method != http.MethodGet && c.r.Method != http.MethodHead:
		level = zapcore.InfoLevel
	}
	ce := s.opt.Log.Check(level, "api request")
	if ce == nil {
		return
	}
	out := []zap.Field{
		zap.String("request_id", c.id), zap.String("route", pattern), zap.String("method", methodLabel(c.r.Method)),
		zap.Int("status", status), zap.String("actor", c.who.Name), zap.Duration("took", took),
	}
	if f != nil {
		out = append(out, zap.String("code", string(f.body.Code)), zap.String("reason", f.body.Details.Reason))
		var p *panicked
		switch {
		case errors.As(f.cause, &p):
			out = append(out, zap.String("panic_type", p.kind), zap.String("panic_at", p.at))
		case f.cause != nil:
			out = append(out, zap.Error(f.cause))
		}
	}
	ce.Write(out...)
}
