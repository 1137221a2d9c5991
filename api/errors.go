package api

import (
	"context"
	"errors"
	"net/http"
	"strconv"

	"github.com/egressd/egressd/store"
)

// Code is the closed set of error.code.
type Code string

// The codes of the contract; the finer cause stands in error.details.reason.
const (
	CodeBadRequest         Code = "bad_request"
	CodeUnauthorized       Code = "unauthorized"
	CodeForbidden          Code = "forbidden"
	CodeNotFound           Code = "not_found"
	CodeConflict           Code = "conflict"
	CodePreconditionFailed Code = "precondition_failed"
	CodeUnprocessable      Code = "unprocessable"
	CodeTooLarge           Code = "too_large"
	CodeRateLimited        Code = "rate_limited"
	CodeUnavailable        Code = "unavailable"
	CodeInternal           Code = "internal_error"
)

// Reasons that callers may want to tell apart.
const (
	ReasonValidation        = "validation_failed"
	ReasonMalformedJSON     = "malformed_json"
	ReasonMediaType         = "unsupported_media_type"
	ReasonUnknownParameter  = "unknown_parameter"
	ReasonInvalidParameter  = "invalid_parameter"
	ReasonMethod            = "method_not_allowed"
	ReasonMisdirectedHost   = "misdirected_host"
	ReasonCrossOrigin       = "cross_origin"
	ReasonTokenMissing      = "token_missing"
	ReasonTokenInvalid      = "token_invalid"
	ReasonRole              = "role_insufficient"
	ReasonTeam              = "team_bound"
	ReasonExists            = "already_exists"
	ReasonReferenced        = "referenced"
	ReasonKindUnknown       = "resolver_kind_unknown"
	ReasonKindImmutable     = "resolver_kind_immutable"
	ReasonStale             = "etag_stale"
	ReasonIfMatchRequired   = "if_match_required"
	ReasonSpecInPatch       = "spec_in_patch"
	ReasonNotSupportedYet   = "not_supported_yet"
	ReasonMissingKeys       = "bound_keys_missing"
	ReasonIdempotencyReused = "idempotency_key_reused"
	ReasonIdempotencyKey    = "idempotency_key_invalid"
	ReasonNotInForce        = "stored_not_in_force"
	ReasonStore             = "store_unavailable"
	ReasonStoreCorrupt      = "record_corrupt"
	ReasonPolicyInvalid     = "policy_invalid"
	ReasonNotReady          = "not_ready"
)

// ErrorBody is the `error` of a failed answer. Message and Details never repeat what was
// submitted; paths name fields, not values.
type ErrorBody struct {
	Code    Code         `json:"code"`
	Message string       `json:"message"`
	Details ErrorDetails `json:"details"`
}

// ErrorDetails is the machine-readable part of an error.
type ErrorDetails struct {
	Reason      string              `json:"reason,omitempty"`
	Fields      map[string][]string `json:"fields,omitempty"`      // path → messages
	Referrers   []Referrer          `json:"referrers,omitempty"`   // what still binds the source
	Problems    []Problem           `json:"problems,omitempty"`    // policy that does not compile
	MissingKeys []string            `json:"missingKeys,omitempty"` // keys that a bound template needs
}

// failure is an answer that is not a success. It is not an error on purpose: nothing wraps it,
// nothing prints it, and what the operator's log needs of its cause stands beside it.
type failure struct {
	status int
	body   ErrorBody
	header http.Header
	cause  error // for the log's error type only, never its text
}

func fail(status int, code Code, reason, message string) *failure {
	return &failure{status: status, body: ErrorBody{Code: code, Message: message, Details: ErrorDetails{Reason: reason}}}
}

func (f *failure) with(name, value string) *failure {
	if f.header == nil {
		f.header = http.Header{}
	}
	f.header.Set(name, value)
	return f
}

func (f *failure) because(err error) *failure {
	f.cause = err
	return f
}

// fields collects messages by path.
type fields map[string][]string

func (f fields) add(path, message string) { f[path] = append(f[path], message) }

func failFields(f fields) *failure {
	x := fail(http.StatusBadRequest, CodeBadRequest, ReasonValidation, "the request has fields that are not valid; see error.details.fields")
	x.body.Details.Fields = f
	return x
}

func failField(path, message string) *failure { return failFields(fields{path: {message}}) }

func failInternal(cause error) *failure {
	return fail(http.StatusInternalServerError, CodeInternal, "", "internal error; the log has more under this request id").because(cause)
}

func failUnavailable(reason, message string, cause error) *failure {
	return fail(http.StatusServiceUnavailable, CodeUnavailable, reason, message).with("Retry-After", strconv.Itoa(1)).because(cause)
}

func failNotFound(what string) *failure {
	return fail(http.StatusNotFound, CodeNotFound, "", what+" not found")
}

// failStore turns an error of the store into an answer. what is the thing that was sought.
func failStore(what string, err error) *failure {
	switch {
	case errors.Is(err, store.ErrNotFound):
		return failNotFound(what)
	case errors.Is(err, store.ErrExists):
		return fail(http.StatusConflict, CodeConflict, ReasonExists, "a "+what+" of this name exists already")
	case errors.Is(err, store.ErrStale):
		return failStale()
	case errors.Is(err, store.ErrKindImmutable):
		return failKindImmutable()
	case errors.Is(err, store.ErrInvalid):
		return fail(http.StatusBadRequest, CodeBadRequest, ReasonValidation, "the store refuses the record").because(err)
	case errors.Is(err, store.ErrCorrupt):
		return fail(http.StatusInternalServerError, CodeInternal, ReasonStoreCorrupt, "the stored record failed authentication").because(err)
	case errors.Is(err, store.ErrUnavailable), errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled):
		return failUnavailable(ReasonStore, "the store is unavailable", err)
	}
	return failInternal(err)
}

func failStale() *failure {
	return fail(http.StatusPreconditionFailed, CodePreconditionFailed, ReasonStale, "the source has changed since the ETag in If-Match was read")
}

func failKindImmutable() *failure {
	f := fail(http.StatusBadRequest, CodeBadRequest, ReasonKindImmutable, "the resolverKind of a source cannot change; delete it and create it anew")
	f.body.Details.Fields = fields{"resolverKind": {"cannot change"}}
	return f
}
