// Package proxy carries every outbound byte of a sandbox.
//
// The life of a connection:
//
//	listener ▶ explicit edge (goproxy) ▶ inbound ▶ dispatch: sniff ▶ Decide (connection)
//	   ├ Pass    ▶ netguard ▶ dial ▶ relay (splice)
//	   ├ Inspect ▶ intercept TLS (or cleartext) ▶ h1.Server or http.Server (h2) ▶ exchange:
//	   │            authority check ▶ Decide (request) ▶ resolve ▶ project ▶ upstream pool ▶ record
//	   └ Deny    ▶ record, refuse, close
//
// What a sandbox says about its destination is only ever compared: the one
// destination of a connection is computed when the tunnel is opened, and policy,
// credential, dial and upstream TLS name derive from it. Nothing is forwarded on a
// path that forgot to decide: the zero Decision denies.
//
// The seam from connection to requests is serve.go: it alone knows that HTTP/1.1
// is served by internal/h1 and HTTP/2 by net/http.
package proxy
