package inject

import (
	"errors"
	"fmt"
	"log/slog"
	"strings"

	"golang.org/x/crypto/ssh"

	"github.com/egressd/egressd/internal/secret"
	"github.com/egressd/egressd/source"
)

// maxLogin is the greatest length of a login's user name and of its password, in bytes;
// what one protocol can carry may be less (SOCKS5: 255).
const maxLogin = 64 << 10

// Login is a user name and a password, neither with a NUL nor over 64 KiB, the user name
// not empty. Immutable.
type Login struct {
	Username string
	Password secret.String
}

// Format hides the password and the user name alike.
func (Login) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte("login [redacted]")) }

// LogValue is what Format writes.
func (Login) LogValue() slog.Value { return slog.StringValue("login [redacted]") }

// MarshalText is what Format writes.
func (Login) MarshalText() ([]byte, error) { return []byte("login [redacted]"), nil }

// SSHLogin is what is needed to log in at an SSH server and to let a sandbox in.
// Immutable.
type SSHLogin struct {
	Username    string // upstream; never empty
	Signer      ssh.Signer
	SandboxKeys []ssh.PublicKey // who of the sandbox may come in; at least one
	KnownHosts  *KnownHosts
}

// Format shows nothing of the key.
func (SSHLogin) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte("ssh login [redacted]")) }

// LogValue is what Format writes.
func (SSHLogin) LogValue() slog.Value { return slog.StringValue("ssh login [redacted]") }

// MarshalText is what Format writes.
func (SSHLogin) MarshalText() ([]byte, error) { return []byte("ssh login [redacted]"), nil }

// AWSKeys is an access key (source kind aws_access_key) with the bounds of its rule.
// Immutable.
type AWSKeys struct {
	AccessKeyID     string
	SecretAccessKey secret.String
	SessionToken    secret.String // empty: none
	Region, Service string        // what may be signed; "" is any
}

// Format shows the bounds only.
func (k AWSKeys) Format(f fmt.State, _ rune) {
	_, _ = fmt.Fprintf(f, "aws keys [redacted] for region %q, service %q", k.Region, k.Service)
}

// LogValue is what Format writes.
func (k AWSKeys) LogValue() slog.Value { return slog.StringValue(fmt.Sprint(k)) }

// MarshalText is what Format writes.
func (k AWSKeys) MarshalText() ([]byte, error) { return []byte(fmt.Sprint(k)), nil }

// loginOf reads a user name and a password.
func loginOf(m *source.Material) (*Login, error) {
	user, okUser := m.Values["username"]
	password, okPassword := m.Values["password"]
	if !okUser || !okPassword || user.Len() == 0 {
		return nil, errors.New("the source holds no user name and password")
	}
	for _, v := range []secret.String{user, password} {
		if v.Len() > maxLogin {
			return nil, errors.New("user name or password is over 64 KiB")
		}
		if strings.IndexByte(v.Reveal(), 0) >= 0 {
			return nil, errors.New("user name or password holds a NUL")
		}
	}
	return &Login{Username: user.Reveal(), Password: password}, nil
}

// awsOf reads an access key; each part goes into a header line and a signature.
func awsOf(m *source.Material, region, service string) (*AWSKeys, error) {
	id, key, token := m.Values["accessKeyId"], m.Values["secretAccessKey"], m.Values["sessionToken"]
	if id.Len() == 0 || key.Len() == 0 {
		return nil, errors.New("the source holds no access key")
	}
	for _, v := range []secret.String{id, key, token} {
		if v.Len() == 0 {
			continue
		}
		if err := checkValue(v.Reveal()); err != nil {
			return nil, fmt.Errorf("access key: %w", err)
		}
	}
	if strings.ContainsAny(id.Reveal(), "/, =") {
		return nil, errors.New("access key: its id holds a character that no id has")
	}
	return &AWSKeys{AccessKeyID: id.Reveal(), SecretAccessKey: key, SessionToken: token, Region: region, Service: service}, nil
}

// sshPlan is what a binding says of an SSH login.
type sshPlan struct {
	username string
	keys     []ssh.PublicKey
	hosts    *KnownHosts
}

func (p *sshPlan) login(m *source.Material) (*SSHLogin, error) {
	if m.SSH == nil {
		return nil, errors.New("the source holds no SSH key")
	}
	return &SSHLogin{Username: p.username, Signer: m.SSH, SandboxKeys: p.keys, KnownHosts: p.hosts}, nil
}
