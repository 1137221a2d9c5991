// Package testbed holds what tests dial: origins over TLS that record every byte, a
// scripted TCP server for hostile answers, a scripted DNS server, a git server that
// demands Basic, and a certificate authority that can also make broken certificates.
// All of it is on 127.0.0.0/8, on free ports; a test maps names to addresses with
// upstream.hosts ([Bed.Hosts]) and writes the port into its URLs.
//
// Everything started here ends with the test that started it, and the test waits for
// that. Only tests import this package.
package testbed
