// Package h1 is a strict HTTP/1.1 codec (RFC 9112): a server loop towards sandboxes
// and a client connection towards origins.
//
// It refuses what lenient parsers disagree about: CL with TE, repeated or signed
// lengths, obs-fold, bare LF and CR, blanks before a colon, odd targets and hosts. What
// net/http's server refuses, h1 refuses (FuzzRequestAgainstNetHTTP holds it to that).
//
// It is made for few system calls: a head and the body bytes that are at hand leave in
// one write, an idle connection holds no buffer, no goroutine is started for a plain
// request. The surface is net/http's types, so that one handler serves h2 as well.
package h1
