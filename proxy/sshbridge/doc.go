// Package sshbridge carries one SSH connection of a sandbox to an SSH server with a key
// that the sandbox does not have (projection ssh_proxy).
//
// It is a server towards the sandbox and a client towards the origin. Serve logs in at the
// origin while the sandbox's own handshake runs, and lets the sandbox in only when that
// has succeeded: a sandbox never gets a session that cannot work, and never a hint of
// what the login was. What is asked for inside is decided by policy one by one
// (Options.Allow) and then passed on channel for channel, request for request.
//
// # What passes
//
// Channels of type session with pty-req, window-change, env by list, shell, exec,
// subsystem, signal, break and eow@openssh.com one way, exit-status, exit-signal,
// xon-xoff and eow@openssh.com the other; stdout and stderr apart; half-close, but the
// origin's end of a session's output only together with its close (see channel.output);
// direct-tcpip where policy allows forwarding. All else is refused: agent and X11
// forwarding, tcpip-forward and its like, channels that the origin opens, hostkeys-00.
//
// # Cryptography
//
// AEAD ciphers only, AES-GCM preferred. ChaCha20-Poly1305 is good against CVE-2023-48795
// only with strict key exchange, so a peer that chooses the one without the other is
// refused (kexwatch.go). No SHA-1 anywhere, no finite-field key exchange towards the
// sandbox. The sandbox comes in with a public key of the rule and with nothing else;
// upstream there is one key and no other method.
//
// # Bounds
//
// The login as a whole has one deadline, both directions. At most 10 channels at a time,
// a bounded number of key exchanges, of text in errors and banners, of bytes in a command
// line. Each end is asked for a sign of life when it is silent, and cut when it gives
// none. Panics of this package end one connection; those of the goroutines of
// x/crypto/ssh cannot be caught from here.
//
// # Identity
//
// Both legs say SSH-2.0-OpenSSH_9.9_egressd, since OpenSSH sends eow@openssh.com to its own
// kind only, and without it `ssh host yes | head` never ends.
package sshbridge
