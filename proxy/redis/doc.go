// Package redis logs a sandbox in at a Redis server (RESP2 and RESP3) with a credential
// that the sandbox never sees.
//
// egressd logs in before a byte of the sandbox is passed on, and from then on looks at the
// name of every command until the connection ends, since a login can come at any time and
// pipelined with anything. What is looked for is replaced by one other command, so that the
// server itself answers in its place and replies keep their order:
//
//	AUTH u p            AUTH with the credential: +OK, as the sandbox expects
//	HELLO 3 AUTH u p …  HELLO 3 AUTH with the credential …
//	RESET               RESET and, since it logs out, AUTH with the credential, whose reply is
//	                    taken out (replies.go)
//	what is refused     a command that does not exist, "egressd:<code>": -ERR unknown command …
//
// Refused are the sandbox's own login where the rule requires another, and what shows the
// server's passwords or their hashes, changes them, or makes the server present them
// elsewhere (rules.go): CONFIG GET requirepass, ACL SETUSER, REPLICAOF and their like. Other
// commands are the affair of the account that is logged in: give it an ACL without @admin
// and @dangerous. One that has them can have the server meet a cluster of the sandbox's
// choice, from a script too, which no one on the wire can see. ACL WHOAMI and
// CLIENT LIST show its name. MONITOR and SLOWLOG show no passwords: Redis leaves them out.
//
// Commands are arrays of bulk strings, streamed with limits (commands.go); inline commands
// are taken when they need no quoting, and sent on as arrays.
package redis
