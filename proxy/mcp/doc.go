// Package mcp enforces which tools of a Model Context Protocol server a sandbox may see
// and call, over its HTTP transports (JSON-RPC 2.0 in POST bodies, answers as JSON or as
// server-sent events). It knows policy only as a function from a tool's name to an answer.
//
// What holds is the judgement of requests (request.go): no body that contains a call of a
// tool that is not allowed is passed on, and no body that two parsers might read in two
// ways. Names are compared exactly, after JSON's escapes: a server that folds case calls a
// denied tool by another name, so that `allowed` is safer than `denied`.
//
// Lists of tools in answers are filtered (response.go, sse.go), so that a model is neither
// tempted nor told by descriptions of what it may not call. An answer is filtered by its
// form, whatever request it belongs to: a stream that was resumed, or opened by GET, brings
// answers to requests of other connections.
//
// json.go is our reader of JSON. It keeps positions, which encoding/json does not, so that
// all that is not filtered stays as it was, byte for byte; encoding/json says first whether
// a document is JSON at all.
package mcp
