package proxy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"time"

	"golang.org/x/net/http2"

	"github.com/egressd/egressd/inject"
	"github.com/egressd/egressd/internal/h1"
	"github.com/egressd/egressd/policy"
	"github.com/egressd/egressd/proxy/mcp"
)

// serveInTunnel answers one request that came out of a tunnel: intercepted TLS
// (HTTP/1.1 or h2) or cleartext after CONNECT.
func (s *Server) serveInTunnel(w http.ResponseWriter, r *http.Request) {
	t := tunnelOf(r.Context())
	x := t.begin(s)
	x.method = r.Method
	b, err := t.sess.bind()
	if err != nil {
		x.refuse(w, &refusal{status: http.StatusForbidden, code: codePolicyDenied, detail: err.Error(), close: true})
		return
	}
	if s.isDraining() {
		w.Header()["Connection"] = []string{"close"}
	}
	s.exchange(w, r, t, x, b)
}

// plan is what a decided request leaves with.
type plan struct {
	key       poolKey
	route     route
	target    string // origin-form, as it is sent
	authority string
	websocket bool
	trailers  bool               // grpc: trailers pass both ways
	cred      *inject.Projection // what was projected, for the pool
	cert      *inject.Projection // offered when the origin asks

	credFrom, certFrom *inject.Injector // where they come from; nil: none

	scrub *scrubber   // of the answer; nil: none
	ws    *frames     // what its messages are looked at for; nil: they are not
	seal  *sealer     // of the answer; nil: none
	mcp   *mcp.Filter // of the answer; nil: none
}

// exchange decides one request by one ruleset, projects, forwards and records.
func (s *Server) exchange(w http.ResponseWriter, r *http.Request, t *tunnel, x *record, b *bound) {
	x.grpc = speaksGRPC(r)
	if r.ProtoMajor == 2 { // its stream can be ended alone
		ctx, cancel := context.WithCancel(r.Context())
		defer cancel()
		body := r.Body
		// The transport does not look at its context while it waits for more of a body.
		x.cancel = func() { cancel(); _ = body.Close() }
		r = r.WithContext(ctx)
	}
	if least := newTrickle(w, r, s.limits.StallTimeout); least != nil {
		defer least.end()
		r.Body = least
	}
	held := share{of: s.budget, sandbox: b.sandbox.ID}
	defer held.release()
	x.share = &held
	since := s.changes.now()
	if ref := s.plan(r, t, x, b); ref != nil {
		x.refuse(w, ref)
		return
	}
	defer x.over()
	t.flights.add(x)
	defer t.flights.remove(x)
	if now := s.rules.Load(); now != b.rules { // it changed between the decision and add
		if time.Since(x.start) > lastWord && !x.stays(now) {
			x.failed(w, &refusal{status: http.StatusForbidden, code: codePolicyDenied, detail: "the policy changed while the request came", close: true})
			return
		}
		t.handle.recheckFlights()
	}
	if since.ended(x.stamps(), x.revoked) {
		x.failed(w, takenAway())
		return
	}
	s.forward(w, r, x, &x.plan)
}

// speaksGRPC: a refusal has to be in words of gRPC. Not of gRPC-Web, which has other ones.
func speaksGRPC(r *http.Request) bool {
	kind := r.Header.Get("Content-Type")
	return r.ProtoMajor == 2 && strings.HasPrefix(kind, "application/grpc") && !strings.HasPrefix(kind, "application/grpc-web")
}

// plan checks what the request claims, decides, and prepares r.Header to be sent.
func (s *Server) plan(r *http.Request, t *tunnel, x *record, b *bound) *refusal {
	p := &x.plan
	path, query, looks, ref := x.claim(r, t, b)
	if ref != nil {
		return ref
	}
	upgrade := dropNominated(r.Header) // rules must not match a field that is not sent
	if ref := s.permit(r, t, x, b); ref != nil {
		return ref
	}
	if looks.methods {
		remove(r.Header, overridesMethod)
	}
	var te bool
	p.websocket, te = cleanRequest(r.Header, upgrade)
	if p.trailers = te && strings.HasPrefix(r.Header.Get("Content-Type"), "application/grpc"); p.trailers {
		r.Header["Te"] = []string{"trailers"}
	}
	if p.websocket && seesFrames(x.decision.Credential) {
		remove(r.Header, hidesFrames)
	}
	path, query, ref = s.project(r, t, x, b, path, query)
	if ref != nil {
		return ref
	}
	if p.websocket {
		p.ws = s.frames(x, b)
	}
	p.target = path
	if query != "" || strings.HasSuffix(r.RequestURI, "?") {
		p.target += "?" + query
	}
	return nil
}

// claim compares what the request says of its destination with the tunnel's, and makes of the
// rest the flow that is decided on.
func (x *record) claim(r *http.Request, t *tunnel, b *bound) (path, query string, l *looks, ref *refusal) {
	authority := x.dest.authority(t.tls)
	x.plan.authority = authority
	if !x.dest.matches(r.Host, authority, t.tls) {
		return "", "", nil, &refusal{status: http.StatusMisdirectedRequest, code: codeMisdirected, detail: "dest_mismatch: Host or :authority differs from the tunnel's destination", close: true}
	}
	switch r.Method {
	case http.MethodTrace, http.MethodConnect, "TRACK":
		return "", "", nil, &refusal{status: http.StatusMethodNotAllowed, code: codeMethod}
	}
	path, query, ok := splitTarget(r.RequestURI)
	if !ok {
		return "", "", nil, &refusal{status: http.StatusBadRequest, code: codeBadRequest, detail: "request target"}
	}
	f := &x.flow
	*f = policy.Flow{Sandbox: b.sandbox, Host: x.dest.host, Port: x.dest.port, Addr: x.dest.ip, Protocol: policy.HTTP,
		Request: true, Method: r.Method, Path: path, RawQuery: query, Header: r.Header}
	x.protocol = "http"
	if t.tls {
		f.Protocol, x.protocol = policy.TLS, "https"
	}
	if l = t.looksAt(b, f); l.paths {
		c, err := policy.CanonicalPath(path)
		if err != nil {
			return "", "", nil, &refusal{status: http.StatusBadRequest, code: codeBadPath, detail: err.Error()}
		}
		path, f.Path = c, c // what was matched is what is sent
	}
	x.path = path
	return path, query, l, nil
}

// permit decides, and settles by which way the request leaves and what it shares a connection
// with.
func (s *Server) permit(r *http.Request, t *tunnel, x *record, b *bound) *refusal {
	p := &x.plan
	dec, addrs, ref := s.decide(r.Context(), b, &x.flow)
	x.decision = dec
	switch {
	case ref != nil:
		return ref
	case dec.Action == policy.Deny:
		return denied(dec)
	case dec.Action == policy.Pass:
		// A rule-less request inside a connection that is served anyway (cleartext, or a
		// ruleset that has changed since): it is carried without a credential.
		x.decision.Credential, x.decision.ClientCert = nil, nil
	}
	p.key = poolKey{sandbox: b.sandbox.ID, team: b.sandbox.Team, dest: x.dest, tls: t.tls}
	if dec.Proxy != nil {
		if p.route, ref = s.routeFor(r.Context(), b, dec.Proxy); ref != nil {
			return ref
		}
		p.key.route = p.route.key()
	}
	if len(addrs) > 0 {
		p.key.addr = addrs[0] // the decision holds for this address: dial no other
	}
	return nil
}

// splitTarget takes an origin-form target apart without decoding.
func splitTarget(target string) (path, query string, ok bool) {
	if target == "" || target[0] != '/' || strings.HasPrefix(target, "//") {
		return "", "", false
	}
	for i := range len(target) {
		if c := target[i]; c <= ' ' || c >= 0x7f || c == '#' || c == '\\' {
			return "", "", false
		}
	}
	path, query, _ = strings.Cut(target, "?")
	return path, query, true
}

// forward sends the request and copies the answer back.
func (s *Server) forward(w http.ResponseWriter, r *http.Request, x *record, p *plan) {
	pace := s.paces.pace(x.flow.Sandbox.ID)
	body := countBody(r, pace)
	switch {
	case !p.trailers:
		r.Trailer = nil
	case body != nil:
		cred, strip, leak := x.source, x.decision.StripClientAuth, x.leak // x may be another's when the body ends
		body.atEnd = func() error {
			cleanRequestTrailer(r.Trailer, cred, strip)
			return leak.trailer(r.Trailer)
		}
	}
	resp, err := s.upstream.roundTrip(&x.flight, w, r, p)
	if err == nil {
		defer func() { _ = resp.Body.Close() }()
		if x.leak.refusal() != nil { // it answers a request that was broken off
			err = errLeak
		}
	}
	if err != nil {
		x.bytesIn = body.count()
		s.upstreamError(w, r, x, err)
		return
	}
	keep := x.decision.Credential != nil && x.decision.Credential.KeepClientAuth
	if resp.StatusCode == http.StatusSwitchingProtocols {
		s.upgrade(w, resp, x, keep)
		return
	}
	if err := s.inspectAnswer(r, resp, x); err != nil {
		_ = resp.Body.Close()
		s.upstreamError(w, r, x, err)
		return
	}
	if !cleanResponse(resp.Header, x.source != nil || x.cert != nil, keep) {
		s.upstreamError(w, r, x, fmt.Errorf("%w: several Content-Length values", errUpstreamResponse))
		return
	}
	if resp.StatusCode < http.StatusOK || resp.StatusCode > 999 { // h2: net/http passes any number on
		s.upstreamError(w, r, x, fmt.Errorf("%w: status", errUpstreamResponse))
		return
	}
	x.status = resp.StatusCode
	h := setHeader(w, resp)
	w.WriteHeader(resp.StatusCode)
	if f, ok := w.(http.Flusher); ok && resp.ContentLength < 0 && !bodiless(r, resp) {
		f.Flush() // a stream's head does not wait for its first byte
	}
	var stall *stallGuard
	if r.ProtoMajor == 2 {
		stall = &stallGuard{rc: http.NewResponseController(w), limit: s.limits.StallTimeout}
	}
	x.bytesOut, err = copyBody(r.Context(), w, resp, stall, pace)
	x.bytesIn = body.count()
	if err != nil {
		x.outcome, x.detail = outcomeAborted, "body: "+err.Error()
		panic(http.ErrAbortHandler) // never a clean end to a truncated answer
	}
	if f, ok := w.(http.Flusher); ok && x.bytesOut == 0 && body != nil && r.ProtoMajor == 1 {
		f.Flush() // the h1 server would first wait for the rest of a body that nobody wants any more
	}
	cleanTrailer(resp.Trailer)
	p.scrub.fields(resp.Trailer)
	for k, v := range resp.Trailer {
		h[http.TrailerPrefix+k] = v
	}
}

// setHeader gives w the fields of resp beside its own and returns w's header. Where no
// trailers can follow, the map is lent: it is not looked at again when the handler returns.
func setHeader(w http.ResponseWriter, resp *http.Response) http.Header {
	own := w.Header()
	if hs, ok := w.(h1.HeaderSetter); ok && len(own) == 0 && resp.ContentLength >= 0 {
		hs.SetHeader(resp.Header)
		return resp.Header
	}
	for k, v := range resp.Header {
		own[k] = v
	}
	return own
}

// interim passes 1xx answers on to h1 clients. To h2 clients it cannot: net/http sends
// the header map itself, not a copy, and returns before that is done when the stream or
// the connection ends; whatever is written to the map next would then race with the
// sender, which for a map ends the process.
func interim(w http.ResponseWriter, status int, in http.Header) {
	if _, ok := w.(h1.HeaderSetter); !ok {
		return
	}
	if status == http.StatusContinue || status == http.StatusSwitchingProtocols {
		return // 100 is answered by our own server, when the body is first read
	}
	cleanResponse(in, true, false)
	h := w.Header()
	for k, v := range in {
		h[k] = v
	}
	w.WriteHeader(status)
	clear(h)
}

func (s *Server) upstreamError(w http.ResponseWriter, r *http.Request, x *record, err error) {
	var pe *h1.ProtocolError
	var ref *refusal
	switch {
	case x.leak.refusal() != nil:
		ref = x.leak.refusal()
	case r.Context().Err() != nil, errors.Is(err, errClientGone):
		x.outcome, x.detail = outcomeAborted, "the client went away"
		panic(http.ErrAbortHandler)
	case errors.Is(err, errClientBody) && tooSlow(err):
		ref = slowBody(err)
	case errors.Is(err, errClientBody) && errors.As(err, &pe):
		ref = &refusal{status: http.StatusBadRequest, code: codeBadRequest, detail: pe.Reason, close: true}
	case errors.Is(err, errUpstreamResponse):
		ref = &refusal{status: http.StatusBadGateway, code: codeUpstream, detail: err.Error()}
		if isTimeout(err) || x.grpc && r.Header.Get("Grpc-Timeout") != "" && cancelled(err) {
			ref.status, ref.code = http.StatusGatewayTimeout, codeUpstreamTimeout
		}
	default:
		ref = dialRefusal(err)
	}
	x.failed(w, ref)
}

// cancelled: the origin gave the stream up, as gRPC servers do when the client's deadline,
// which they were told of, has passed.
func cancelled(err error) bool {
	var se http2.StreamError
	return errors.As(err, &se) && se.Code == http2.ErrCodeCancel
}

// failed answers for an origin that did not; who began the exchange finishes the record.
func (x *record) failed(w http.ResponseWriter, ref *refusal) {
	x.bytesOut = x.answer(w, ref)
	x.status, x.code, x.detail, x.outcome = ref.status, ref.code, ref.detail, outcomeError
	if ref.status < http.StatusInternalServerError {
		x.outcome = outcomeDenied
	}
	x.srv.metrics.refusals.WithLabelValues(ref.code).Inc()
}

type copyBuffer [32 << 10]byte

// buffers are shared by all copies; nothing of a sandbox's bytes is read from one
// before it was written by the same copy.
var buffers = sync.Pool{New: func() any { return new(copyBuffer) }}

// copyBody passes every read on at once: a stream of any content type is never held
// back, and an answer that came in one piece leaves in one piece.
func copyBody(ctx context.Context, w http.ResponseWriter, resp *http.Response, stall *stallGuard, at *pace) (int64, error) {
	buf, _ := buffers.Get().(*copyBuffer)
	defer buffers.Put(buf)
	defer stall.close()
	flusher, _ := w.(http.Flusher)
	h2 := stall != nil
	var total int64
	for {
		n, err := resp.Body.Read(buf[:])
		if n > 0 {
			if werr := at.wait(ctx, false, n); werr != nil {
				return total, werr
			}
			whole := err == io.EOF || total+int64(n) == resp.ContentLength
			if whole {
				stall.last()
			} else {
				stall.begin()
			}
			if _, werr := w.Write(buf[:n]); werr != nil {
				return total, werr
			}
			total += int64(n)
			if flusher != nil && err == nil && !whole && (h2 || resp.ContentLength >= 0) {
				flusher.Flush()
			}
			stall.end()
		}
		if err == io.EOF {
			return total, nil
		}
		if err != nil {
			return total, err
		}
	}
}
