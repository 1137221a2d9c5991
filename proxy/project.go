package proxy

import (
	"errors"
	"io"
	"net/http"
	"strings"

	"github.com/egressd/egressd/inject"
	"github.com/egressd/egressd/policy"
)

// project makes of a decided request what leaves. In this order: what is needed is
// resolved; what the sandbox wrote is searched for what must not leave; its own
// credentials go, also where resolving has failed and the rule is fail-open; the
// credential goes in; what is left is signed.
func (s *Server) project(r *http.Request, t *tunnel, x *record, b *bound, path, query string) (string, string, *refusal) {
	p, rule := &x.plan, x.decision.Credential
	if ref := s.resolve(r, x, b); ref != nil {
		return path, query, ref
	}
	if ref := s.watch(r, x, s.watches.of(&t.watched, b, rule, x.source).and(s.seals.elsewhere(sealKey{b.sandbox.Team, b.sandbox.ID}, tokensOf(x.source)))); ref != nil {
		return path, query, ref
	}
	if x.decision.MCP != nil {
		if ref := s.filterMCP(r, x); ref != nil {
			return path, query, ref
		}
	}
	if x.source != nil && x.source.Placeholders != nil {
		return s.substitute(r, x, sealKey{b.sandbox.Team, b.sandbox.ID}, path, query)
	}
	if x.source != nil && x.source.AWS != nil {
		return s.resign(r, x, path, query)
	}
	if x.decision.StripClientAuth {
		inject.StripClientAuth(r.Header)
		query = inject.StripQueryAuth(query)
	}
	if x.source == nil {
		return path, query, nil
	}
	x.source.Apply(r.Header, rule.KeepClientAuth)
	s.scrubLater(r, p, rule, x.source, nil)
	return path, query, nil
}

// resolve gets the material of both layers, and leaves a fail-open one out.
func (s *Server) resolve(r *http.Request, x *record, b *bound) *refusal {
	p := &x.plan
	if rule := x.decision.ClientCert; rule != nil {
		in := b.rules.Injectors.Injector(rule)
		pr, err := in.Resolve(r.Context(), x.dest.host, x.dest.port)
		switch {
		case err == nil:
			x.cert, p.cert, p.certFrom = pr, pr, in
			p.key.cert = pr.ID
		case rule.FailOpen:
			x.skipped = resolveCode(err)
		default:
			return unresolved(rule, err)
		}
	}
	rule := x.decision.Credential
	if rule == nil {
		return nil
	}
	in := b.rules.Injectors.Injector(rule)
	pr, err := in.Resolve(r.Context(), x.dest.host, x.dest.port)
	switch {
	case err == nil:
		x.source, p.cred, p.credFrom = pr, pr, in
		p.key.cred = pr.ID
	case rule.FailOpen:
		x.skipped = resolveCode(err)
	default:
		return unresolved(rule, err)
	}
	return nil
}

// scrubLater has the answer searched for what pr has put in, and tokens.
func (s *Server) scrubLater(r *http.Request, p *plan, rule *policy.CredentialRule, pr *inject.Projection, tokens *sealView) {
	if rule.Scrub {
		p.scrub = &scrubber{findings: s.scrubs.of(rule, pr, tokens)}
		seeThrough(r.Header)
	}
}

// substitute puts values in the place of placeholders. What the sandbox authenticates itself
// with goes, but for what holds one: that is the operator's.
func (s *Server) substitute(r *http.Request, x *record, who sealKey, path, query string) (string, string, *refusal) {
	ph, rule := x.source.Placeholders, x.decision.Credential
	tokens := s.seals.view(who, x.source)
	if tokens != nil {
		ph = tokens.both
	}
	if x.decision.StripClientAuth {
		ph.StripClientAuth(r.Header)
		query = ph.StripQueryAuth(query)
	}
	inHeader, err := ph.Header(r.Header)
	if err != nil {
		return path, query, unfit(err)
	}
	path, query, inTarget, err := ph.Target(path, query)
	if err != nil {
		return path, query, unfit(err)
	}
	inBody, ref := s.substituteBody(r, x, ph)
	if ref != nil {
		return path, query, ref
	}
	if ph.InBody() && r.Method == http.MethodPost && inHeader+inTarget+inBody > 0 { // it may be how tokens are asked for
		x.plan.seal = &sealer{seals: s.seals, key: who, source: x.source.Source, limit: s.limits.RewriteBodyBytes, share: x.share}
		seeThrough(r.Header)
	}
	s.scrubLater(r, &x.plan, rule, x.source, tokens)
	return path, query, nil
}

// substituteBody reads a body whole, to its limit, and gives it its new length.
func (s *Server) substituteBody(r *http.Request, x *record, ph *inject.Placeholders) (int, *refusal) {
	if !ph.InBody() || r.Body == nil || r.Body == http.NoBody || !ph.Rewrites(r.Header.Get("Content-Type")) {
		return 0, nil
	}
	body, ref := s.wholeBody(r, x)
	if ref != nil {
		return 0, ref
	}
	out, n, err := ph.Body(r.Header.Get("Content-Type"), strings.Join(r.Header["Content-Encoding"], ","), body)
	if err != nil {
		return 0, unfit(err)
	}
	setBody(r, out)
	return n, nil
}

// wholeBody reads a request body that has to be looked at as one.
func (s *Server) wholeBody(r *http.Request, x *record) ([]byte, *refusal) {
	limit := s.limits.RewriteBodyBytes
	if r.ContentLength > limit {
		return nil, &refusal{status: http.StatusRequestEntityTooLarge, code: codeTooLarge, close: true}
	}
	held := bodySize(r, limit)
	if !x.share.hold(held) {
		return nil, tooMuchHeld()
	}
	body, err := io.ReadAll(io.LimitReader(r.Body, limit+1))
	x.share.but(held, int64(len(body)))
	switch {
	case errors.Is(err, errLeak):
		return nil, x.leak.refusal()
	case tooSlow(err):
		return nil, slowBody(err)
	case err != nil:
		return nil, &refusal{status: http.StatusBadRequest, code: codeBadRequest, detail: "request body: " + err.Error(), close: true}
	case int64(len(body)) > limit:
		return nil, &refusal{status: http.StatusRequestEntityTooLarge, code: codeTooLarge, close: true}
	}
	return body, nil
}

// bodySize is how large the body is, at most.
func bodySize(r *http.Request, limit int64) int64 {
	if r.ContentLength >= 0 {
		return r.ContentLength
	}
	return limit
}

func setBody(r *http.Request, body []byte) {
	_ = r.Body.Close()
	r.Body, r.ContentLength, r.Trailer = newBody(body), int64(len(body)), nil
	delete(r.Header, "Trailer")
}

// unfit is a request in which a placeholder cannot be replaced.
func unfit(err error) *refusal {
	if errors.Is(err, inject.ErrEncodedBody) {
		return &refusal{status: http.StatusUnsupportedMediaType, code: codeEncoded, detail: err.Error(), close: true}
	}
	return &refusal{status: http.StatusBadRequest, code: codeBadRequest, detail: err.Error(), close: true}
}

func resolveCode(err error) string {
	var ie *inject.Error
	if errors.As(err, &ie) {
		return ie.Code
	}
	return codeInternal
}

func unresolved(rule *policy.CredentialRule, err error) *refusal {
	status := http.StatusServiceUnavailable
	code := resolveCode(err)
	if code == inject.CodeDestinationNotAllowed {
		status = http.StatusForbidden
	}
	return &refusal{status: status, code: code, rule: rule.Name, detail: err.Error()}
}
