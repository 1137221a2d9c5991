package proxy

import (
	"errors"
	"io"
	"net/http"
	"time"

	"github.com/egressd/egressd/inject"
	"github.com/egressd/egressd/inject/sigv4"
	"github.com/egressd/egressd/internal/h1"
)

// resign signs with the rule's key what the sandbox has signed with its own. What its
// signature claims is read before all that it authenticates itself with goes; nothing may
// change the head afterwards.
func (s *Server) resign(r *http.Request, x *record, path, query string) (string, string, *refusal) {
	keys, rule := x.source.AWS, x.decision.Credential
	claim, err := sigv4.Read(r.Header, query, sigv4.Bounds{Region: keys.Region, Service: keys.Service})
	if err != nil {
		return path, query, unsigned(rule.Name, err)
	}
	if x.decision.StripClientAuth {
		inject.StripClientAuth(r.Header)
		query = inject.StripQueryAuth(query)
	}
	s.scrubLater(r, &x.plan, rule, x.source, nil)
	out := sigv4.Request{Method: r.Method, TLS: x.plan.key.tls, Authority: x.plan.authority, Path: path, RawQuery: query, Header: r.Header}
	if claim.NeedsBody() && r.Body != nil && r.Body != http.NoBody {
		body, ref := s.wholeBody(r, x)
		if ref != nil {
			return path, query, ref
		}
		setBody(r, body)
		out.Whole = body
	}
	out.Body, out.ContentLength = r.Body, r.ContentLength
	err = claim.Sign(r.Context(), &out, sigv4.Keys{AccessKeyID: keys.AccessKeyID, SecretAccessKey: keys.SecretAccessKey, SessionToken: keys.SessionToken}, time.Now())
	if err != nil {
		return path, query, unsigned(rule.Name, err)
	}
	if out.Body != r.Body {
		r.Body, r.ContentLength, r.Trailer = signedBody{out.Body}, out.ContentLength, nil
	}
	return out.Path, out.RawQuery, nil
}

// unsigned is a request that cannot be signed.
func unsigned(rule string, err error) *refusal {
	ref := &refusal{status: http.StatusBadRequest, code: codeInternal, rule: rule, detail: err.Error(), close: true}
	var se *sigv4.Error
	if !errors.As(err, &se) {
		ref.status = http.StatusInternalServerError
		return ref
	}
	switch se.Code {
	case sigv4.CodeUnsigned, sigv4.CodeScope:
		ref.status = http.StatusForbidden
	}
	ref.code = se.Code
	return ref
}

// signedBody says of chunks that are not as they should be whose fault that is.
type signedBody struct{ io.ReadCloser }

func (b signedBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	var se *sigv4.Error
	if errors.As(err, &se) {
		err = &h1.ProtocolError{Status: http.StatusBadRequest, Reason: se.Reason}
	}
	return n, err
}
