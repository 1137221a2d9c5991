// Command bench compares egressd with references that it carries itself, side by side
// and in interleaved rounds (`make bench`):
//
//	direct    no proxy
//	relay     the upper bound: heads scanned as bytes, one header replaced, one write per message;
//	          of SSH, a plain relay of x/crypto/ssh
//	goproxy   goproxy's own interception loop, tuned
//	hijack    goproxy's CONNECT handed to one net/http server with a tuned transport
//	egressd   the built binary, with policy, audit, metrics and leak guard on
//	before    another build of it, if -before gives one: what a change has cost
//
// Each proxy is a process of its own on one core with GOMAXPROCS=1; the load and the
// origin share the other core. What counts is requests per CPU-second of the proxy,
// which survives a noisy machine. Every response is checked for the injected credential.
//
// It prints the table with the gates of the project and writes bench/results.md. All
// traffic stays on loopback, and every loop is bounded in count or time.
package main
