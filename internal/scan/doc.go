// Package scan finds known byte strings in streams, faster than a stream can be
// encrypted: values that must not come back in an answer, values that must not leave in a
// request, placeholders on the way to somebody else.
//
// matcher.go is the search (Wu–Manber), encodings.go the forms in which a value may be
// written, reader.go the search over a stream in which a value may lie across any border,
// header.go the same for header fields, decode.go the content codings underneath.
//
// It is best effort against an origin that wants to tell: a value that is reversed,
// encoded twice, in UTF-16, base32, base64 with line breaks, or in parts is not found.
package scan
