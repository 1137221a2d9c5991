package inject

import (
	"golang.org/x/crypto/ssh"

	"github.com/egressd/egressd/internal/secret"
)

// Login is a user name and a password, checked for NUL and for length.
type Login struct {
	Username string
	Password secret.String
}

// SSHLogin is what is needed to log in at an SSH server and to let a sandbox in.
// Immutable.
type SSHLogin struct {
	Username    string
	Signer      ssh.Signer
	SandboxKeys []ssh.PublicKey // who of the sandbox may come in
	KnownHosts  *KnownHosts
}

// AWSKeys is an access key (source kind aws_access_key) with the bounds of its rule.
type AWSKeys struct {
	AccessKeyID     string
	SecretAccessKey secret.String
	SessionToken    secret.String // empty: none
	Region, Service string        // what may be signed; "" is any
}
