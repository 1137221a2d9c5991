// Package api is the management plane: it writes credential sources, shows everything about
// them except what is under spec, and answers questions about policy, tokens and the
// interception CA.
//
// One table (routes.go) says which routes exist, who may call them, and which Go types go in
// and out; the dispatcher, the authorisation, the OpenAPI document and the tests all read it.
// A request passes, in this order:
//
//	request id → panic guard → Host and Origin → who is it → route → role → query → body → handler → envelope
//
// The rule that keeps secrets in: everything under spec is write-only. The package holds a
// store.Writer, which has no way to read a spec, and nothing of the data plane; a submitted
// spec lives in a type that cannot be formatted, no message repeats what was submitted, and a
// panic is logged by its type alone.
//
// A write is answered only when it is durable and in force (Options.Applied): the request
// after a 200 uses the new version. Where it is stored and the data plane does not confirm it
// in time, the answer is a 503 with the reason stored_not_in_force.
//
// If-Match is honoured (412 when stale) and optional; Options.RequireIfMatch makes its absence
// on PUT, PATCH and DELETE a 428. The ETag is strong and made of version and revision, never of
// what is stored, and the store compares the revision in the write's own transaction.
//
// Statuses beyond the eleven codes: 405, 415 and 421 bear the code bad_request and a reason
// (method_not_allowed, unsupported_media_type, misdirected_host), 428 bears precondition_failed.
package api
