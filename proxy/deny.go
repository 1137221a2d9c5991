package proxy

import (
	"net/http"
	"strconv"

	"github.com/egressd/egressd/inject"
	"github.com/egressd/egressd/inject/sigv4"
	"github.com/egressd/egressd/policy"
	"github.com/egressd/egressd/proxy/wire"
)

// refusal is an answer of egressd's own. code goes to the client, reason and rule
// only to the operator (RFC 9457 for the body).
type refusal struct {
	status int
	code   string // closed set: X-Egressd-Error and the metrics label
	rule   string
	detail string // operator's log only
	close  bool   // end the connection after the answer
	own    bool   // body is the answer, in words of the protocol inside
	body   []byte
}

// Codes of X-Egressd-Error, beside those of inject, inject/sigv4 and proxy/wire. The list is
// closed: it is a metrics label.
const (
	codePolicyDenied    = "policy_denied"
	codePlaintext       = "plaintext_credential_refused"
	codeProtocol        = "protocol_not_allowed"
	codeMisdirected     = "misdirected_request"
	codeBadRequest      = "bad_request"
	codeBadPath         = "bad_path"
	codeMethod          = "method_not_allowed"
	codeAuthRequired    = "proxy_authentication_required"
	codeBackoff         = "too_many_failures"
	codeLimit           = "connection_limit"
	codeForbiddenAddr   = "forbidden_address"
	codeNoSuchHost      = "no_such_host"
	codeDNS             = "dns_failure"
	codeDial            = "upstream_unreachable"
	codeUpstreamTLS     = "upstream_tls_failed"
	codeUpstream        = "upstream_failed"
	codeUpstreamTimeout = "upstream_timeout"
	codeInternal        = "internal_error"
	codeNoPolicy        = "no_policy"
	codeLeak            = "secret_in_request"
	codePlaceholder     = "placeholder_misplaced"
	codeTooLarge        = "body_too_large"
	codeEncoded         = "encoded_body"
	codeShutdown        = "shutting_down"
)

// statusOf is what an audit line says for a code that came without one.
func statusOf(code string) int {
	switch code {
	case codeBadRequest, codeBadPath, sigv4.CodeMalformed, sigv4.CodeUnsupported:
		return http.StatusBadRequest
	case wire.CodeAuthRequired:
		return http.StatusProxyAuthRequired
	case codeLimit, codeBackoff:
		return http.StatusTooManyRequests
	case codePolicyDenied, codePlaintext, codeProtocol, codeForbiddenAddr, inject.CodeDestinationNotAllowed,
		sigv4.CodeUnsigned, sigv4.CodeScope:
		return http.StatusForbidden
	case codeMisdirected:
		return http.StatusMisdirectedRequest
	case codeUpstreamTimeout:
		return http.StatusGatewayTimeout
	case inject.CodeSourceNotFound, inject.CodeSourceDisabled, inject.CodeSourceCorrupt, inject.CodeSourceInvalid, inject.CodeSourceUnavailable,
		inject.CodeTemplateFailed, codeShutdown:
		return http.StatusServiceUnavailable
	case codeInternal:
		return http.StatusInternalServerError
	}
	return http.StatusBadGateway
}

func denied(d policy.Decision) *refusal {
	r := &refusal{status: http.StatusForbidden, code: codePolicyDenied, rule: d.Rule, detail: d.Reason.String()}
	switch d.Reason {
	case policy.ReasonPlaintextCredential:
		r.code, r.close = codePlaintext, true // nothing else can follow there
	case policy.ReasonUnknownProtocol, policy.ReasonNeedsInspection:
		r.code = codeProtocol
	}
	return r
}

const problemType = "application/problem+json"

// problemBody is the fixed shape of every refusal: nothing in it but the code and
// the request id depends on the request.
func problemBody(status int, code, requestID string) []byte {
	b := make([]byte, 0, 192)
	b = append(b, `{"type":"about:blank","title":"`...)
	b = append(b, http.StatusText(status)...)
	b = append(b, `","status":`...)
	b = strconv.AppendInt(b, int64(status), 10)
	b = append(b, `,"code":"`...)
	b = append(b, code...)
	b = append(b, `","request_id":"`...)
	b = append(b, requestID...)
	return append(b, "\"}\n"...)
}

// grpcStatus is a refusal's code in gRPC's words (grpc/doc/http-grpc-status-mapping.md, but
// for what only a proxy says).
func (r *refusal) grpcStatus() int {
	switch r.status {
	case http.StatusBadRequest, http.StatusMisdirectedRequest, http.StatusRequestEntityTooLarge, http.StatusUnsupportedMediaType:
		return 3 // INVALID_ARGUMENT
	case http.StatusUnauthorized, http.StatusProxyAuthRequired:
		return 16 // UNAUTHENTICATED
	case http.StatusForbidden:
		return 7 // PERMISSION_DENIED
	case http.StatusTooManyRequests:
		return 8 // RESOURCE_EXHAUSTED
	case http.StatusGatewayTimeout:
		return 4 // DEADLINE_EXCEEDED
	case http.StatusBadGateway, http.StatusServiceUnavailable:
		return 14 // UNAVAILABLE
	case http.StatusMethodNotAllowed, http.StatusNotImplemented:
		return 12 // UNIMPLEMENTED
	}
	return 13 // INTERNAL
}

// writeGRPC answers with trailers only (gRPC over HTTP/2, "Responses").
func (r *refusal) writeGRPC(w http.ResponseWriter, requestID string) {
	h := w.Header()
	h["Content-Type"] = []string{"application/grpc"}
	h["Grpc-Status"] = []string{strconv.Itoa(r.grpcStatus())}
	h["Grpc-Message"] = []string{"egressd: " + r.code + ", request " + requestID}
	h["X-Egressd-Error"] = []string{r.code}
	h["X-Request-Id"] = []string{requestID}
	w.WriteHeader(http.StatusOK)
}

func (r *refusal) write(w http.ResponseWriter, requestID string) int {
	body, typ := problemBody(r.status, r.code, requestID), problemType
	if r.own {
		body, typ = r.body, "application/json"
	}
	h := w.Header()
	h["Content-Type"] = []string{typ}
	h["Content-Length"] = []string{strconv.Itoa(len(body))}
	h["Cache-Control"] = []string{"no-store"}
	h["X-Egressd-Error"] = []string{r.code}
	h["X-Request-Id"] = []string{requestID}
	if r.status == http.StatusProxyAuthRequired {
		h["Proxy-Authenticate"] = []string{`Basic realm="egressd"`}
	}
	if r.close {
		h["Connection"] = []string{"close"}
	}
	w.WriteHeader(r.status)
	_, _ = w.Write(body) //nolint:gosec // JSON of our own words; the client may be gone: nothing to do about it
	return len(body)
}

// raw is the same answer for a hijacked connection.
func (r *refusal) raw(requestID string) []byte {
	body := problemBody(r.status, r.code, requestID)
	b := make([]byte, 0, 512)
	b = append(b, "HTTP/1.1 "...)
	b = strconv.AppendInt(b, int64(r.status), 10)
	b = append(b, ' ')
	b = append(b, http.StatusText(r.status)...)
	b = append(b, "\r\nContent-Type: "+problemType+"\r\nContent-Length: "...)
	b = strconv.AppendInt(b, int64(len(body)), 10)
	if r.status == http.StatusProxyAuthRequired {
		b = append(b, "\r\nProxy-Authenticate: Basic realm=\"egressd\""...)
	}
	b = append(b, "\r\nX-Egressd-Error: "+r.code+"\r\nX-Request-Id: "+requestID+"\r\nConnection: close\r\n\r\n"...)
	return append(b, body...)
}
