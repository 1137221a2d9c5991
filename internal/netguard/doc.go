// Package netguard resolves names and opens connections for traffic that a sandbox
// asked for, and keeps it from where no sandbox may reach.
//
// One decision has three steps, all of one Guard: Lookup asks DNS once, Check says whether
// an address may be dialled, Dial connects to those of the addresses that may, by address
// and never by name, and checks again in the socket's control hook. So the address that
// was checked is the address that is dialled, whatever DNS says next.
//
// Names go to DNS servers directly, rooted; neither /etc/hosts, nor search domains, nor
// the C library's resolver take part (it would read 0x7f.1 as an address).
package netguard
