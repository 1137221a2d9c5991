package proxy

import (
	"errors"
	"io"
	"net"
	"net/http"

	"github.com/egressd/egressd/policy"
	"github.com/egressd/egressd/proxy/wsframe"
)

// frames is what the messages of one WebSocket are looked at for. A WebSocket that no rule
// wants to see inside has none: its bytes are carried as they are.
type frames struct {
	s     *Server
	x     *record
	b     *bound    // of the request that opened it
	text  bool      // placeholders are replaced in the client's text messages
	scrub *scrubber // of the origin's messages; nil: none
}

// seesFrames says whether rule has to see WebSocket messages.
func seesFrames(rule *policy.CredentialRule) bool {
	if rule == nil {
		return false
	}
	for _, r := range rule.Binding.Projection.Replacements {
		if r.Locations&policy.InBody != 0 {
			return true
		}
	}
	return rule.Scrub
}

// hidesFrames are fields by which both sides could agree on frames that cannot be looked
// into: permessage-deflate, and whatever else there will be.
func hidesFrames(name string) bool { return dashed(name) == "Sec-Websocket-Extensions" }

// frames readies a WebSocket to be looked into; nil where nothing is looked for.
func (s *Server) frames(x *record, b *bound) *frames {
	f := &frames{s: s, x: x, b: b, scrub: x.plan.scrub, text: x.source != nil && x.source.Placeholders.InBody()}
	if !f.text && f.scrub == nil {
		return nil
	}
	return f
}

// answer looks at the head that agrees to the WebSocket.
func (f *frames) answer(h http.Header) *refusal {
	if f == nil {
		return nil
	}
	for k := range h {
		if hidesFrames(k) {
			return &refusal{status: http.StatusBadGateway, code: codeUpstream, detail: "a WebSocket extension that was not offered"}
		}
	}
	if f.scrub != nil {
		f.scrub.fields(h)
	}
	return nil
}

// carry is pipe for a WebSocket that is looked into. It returns the bytes from and to the
// client.
func (f *frames) carry(near, far net.Conn) (in, out int64, err error) {
	o := wsframe.Options{
		FromClient: wsframe.Rules{Stream: f.guarded, Control: f.guard},
		Limit:      f.s.limits.RewriteBodyBytes, Idle: f.s.limits.IdleTimeout, Hold: f.hold,
	}
	if f.text {
		o.FromClient.Text = f.substitute
	}
	if f.scrub != nil {
		o.FromServer = wsframe.Rules{Text: f.scrubText, Stream: f.scrubbed, Resizes: true, Control: f.scrubControl}
	}
	n, err := wsframe.Relay(near, far, o)
	var refused *wsframe.Error
	if !errors.As(err, &refused) {
		return n.In, n.Out, ignoreClosed(err)
	}
	f.refused(refused)
	return n.In, n.Out, nil
}

// refused makes the record say why the WebSocket has ended.
func (f *frames) refused(e *wsframe.Error) {
	ref := &refusal{code: codeBadRequest, detail: e.Error()}
	var le *leakError
	switch {
	case errors.As(e, &le):
		ref = le.ref
	case e.Code == wsframe.CodeTooBig:
		ref.code = codeTooLarge
	case e.Code == wsframe.CodeTryLater:
		ref.code = codeLimit
	case e.Code == wsframe.CodeInternal:
		ref.code = codeInternal
	case !e.FromClient:
		ref.code = codeUpstream
	}
	x := f.x
	x.code, x.detail, x.outcome = ref.code, ref.detail, outcomeDenied
	if !e.FromClient || ref.code == codeInternal {
		x.outcome = outcomeError
	}
	f.s.metrics.refusals.WithLabelValues(ref.code).Inc()
}

// leakError is something in a message that must not leave.
type leakError struct{ ref *refusal }

func (*leakError) Error() string { return errLeak.Error() }

// found ends the WebSocket; the reason names the code that HTTP would get.
func found(ref *refusal) error {
	return &wsframe.Error{Code: wsframe.CodePolicy, Reason: "egressd: " + ref.code, Err: &leakError{ref}}
}

// hold takes of what the sandbox may have in memory.
func (f *frames) hold(n int64) (release func(), ok bool) {
	of, sandbox := f.s.budget, f.b.sandbox.ID
	return func() { of.give(sandbox, n) }, of.take(sandbox, n)
}

func (f *frames) key() sealKey { return sealKey{f.b.sandbox.Team, f.b.sandbox.ID} }

// watchlist is what must not leave now; a WebSocket stays open for long.
func (f *frames) watchlist() *watchlist {
	x := f.x
	return f.s.watches.of(&x.tunnel.watched, f.b, x.decision.Credential, x.source).and(f.s.seals.elsewhere(f.key(), tokensOf(x.source)))
}

func (f *frames) guard(msg []byte) ([]byte, error) {
	if w := f.watchlist(); !w.empty() {
		if ref := w.find(msg); ref != nil {
			return nil, found(ref)
		}
	}
	return msg, nil
}

func (f *frames) guarded(src io.Reader) io.Reader {
	w := f.watchlist()
	if w.empty() {
		return src
	}
	g := &guardedMessage{}
	g.body = w.body(io.NopCloser(src), g.leak.ref.Store)
	return g
}

// guardedMessage is a message that ends in an error where it would give something away.
type guardedMessage struct {
	body io.Reader
	leak leak
}

func (g *guardedMessage) Read(p []byte) (int, error) {
	n, err := g.body.Read(p)
	if ref := g.leak.refusal(); errors.Is(err, errLeak) && ref != nil {
		err = found(ref)
	}
	return n, err
}

// substitute is guard before it puts values in the place of placeholders.
func (f *frames) substitute(msg []byte) ([]byte, error) {
	if _, err := f.guard(msg); err != nil {
		return nil, err
	}
	ph := f.x.source.Placeholders
	if tokens := f.s.seals.view(f.key(), f.x.source); tokens != nil {
		ph = tokens.both
	}
	out, _, err := ph.Text(msg)
	if err != nil {
		return nil, &wsframe.Error{Code: wsframe.CodeTooBig, Reason: "message is too big", Err: err}
	}
	return out, nil
}

// finds is the origin's messages' scrubber, which knows the tokens of now.
func (f *frames) finds() *scrubber {
	x := f.x
	var tokens *sealView
	if x.source.Placeholders != nil {
		tokens = f.s.seals.view(f.key(), x.source)
	}
	f.scrub.findings = f.s.scrubs.of(x.decision.Credential, x.source, tokens)
	return f.scrub
}

func (f *frames) scrubText(msg []byte) ([]byte, error) {
	c := f.finds()
	out, _ := c.matcher.Bytes(msg, c.replace)
	return out, nil
}

func (f *frames) scrubbed(src io.Reader) io.Reader {
	c := f.finds()
	return c.matcher.Replace(src, c.replace)
}

// scrubControl: there may be no room for anything in a value's place.
func (f *frames) scrubControl(payload []byte) ([]byte, error) {
	c := f.finds()
	if _, _, tag, ok := c.matcher.Find(payload); ok {
		c.replace(tag)
		return nil, nil
	}
	return payload, nil
}
