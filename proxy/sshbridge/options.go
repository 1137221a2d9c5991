package sshbridge

import (
	"errors"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/egressd/egressd/policy"
)

// Limits of one connection.
const (
	MaxChannels = 10
	// maxLogin is the longest that both logins may take together, whatever the session says.
	maxLogin = 20 * time.Second
	// When one end is gone, what it had sent may flow for as long as it does not stand still
	// for flushTime.
	flushTime    = 2 * time.Second
	flushMost    = time.Minute
	defaultAlive = 30 * time.Second
	leastSilence = 5 * time.Second
	leastRekey   = 32 << 10
)

// Options of Serve. HostSigners and Allow are required.
type Options struct {
	// HostSigners are egressd's host keys for a destination, the preferred one first.
	HostSigners func(host string, port uint16) ([]ssh.Signer, error)
	// Allow decides one thing that is asked for. It is called for every shell, exec,
	// subsystem and direct-tcpip, never twice for one, from several goroutines.
	Allow func(policy.SSHRequest) bool
	// AcceptEnv are environment variables to pass on beside the usual ones; a * at the end
	// matches any rest.
	AcceptEnv []string
	// MaxChannels is how many channels may be open at a time: 10 at most and by default.
	MaxChannels int
	// KeepAlive is how long an end may be silent before it is asked for a sign of life; 30 s
	// if zero. Three times that, and 5 s at
	// least, without an answer end the connection.
	KeepAlive time.Duration
	// RekeyBytes is after how many bytes keys are exchanged anew; 0: as the cipher's RFC
	// says. It is 32 KiB at least: OpenSSH takes no key exchange before its login is over.
	RekeyBytes uint64
}

func (o Options) withDefaults() (Options, error) {
	if o.HostSigners == nil || o.Allow == nil {
		return o, errors.New("ssh: no host keys or no policy")
	}
	if o.MaxChannels <= 0 || o.MaxChannels > MaxChannels {
		o.MaxChannels = MaxChannels
	}
	if o.KeepAlive <= 0 {
		o.KeepAlive = defaultAlive
	}
	if o.RekeyBytes != 0 {
		o.RekeyBytes = max(o.RekeyBytes, leastRekey)
	}
	return o, nil
}
