// Package postgres lets a sandbox use a PostgreSQL server with a login that it never sees
// (frontend/backend protocol 3, minor versions as both ends agree).
//
// serve.go is the walk: startup.go reads what the sandbox opens with, sandbox.go answers
// it (TLS, its own login), upstream.go dials, puts TLS over the connection and logs in
// with auth.go and scram.go. From then on bytes are carried and not looked at; so are the
// keys with which a query is cancelled, and a connection that cancels one is handed on
// without a credential. errors.go turns what failed into an ErrorResponse.
//
// Every message is read with exactly its own length from the connection, so nothing is
// ever kept in a buffer across the start of TLS: bytes that somebody put behind the
// request or the answer in clear are taken for TLS records and end the connection
// (CVE-2021-23214, CVE-2021-23222).
package postgres
