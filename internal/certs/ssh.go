package certs

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"encoding/pem"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"
	"golang.org/x/crypto/ssh"
)

// SSHAuthority is egressd's identity towards SSH clients: a host key and a CA that
// certifies it for each destination (PROTOCOL.certkeys of OpenSSH), so that one
// @cert-authority line in a sandbox's known_hosts is enough for all of them. Safe for
// concurrent use.
type SSHAuthority struct {
	ca       ssh.Signer
	host     ssh.Signer
	cache    *lru.Cache[string, *hostCert]
	mintings atomic.Uint64
}

type hostCert struct {
	signers     []ssh.Signer
	from, until int64 // wall clock, Unix seconds
}

const (
	sshComment = "egressd-ssh-ca"
	sshCertTTL = 24 * time.Hour
)

// NewEphemeralSSH makes an authority that exists only in this process.
func NewEphemeralSSH() (*SSHAuthority, error) {
	ca, err := newSSHKey()
	if err != nil {
		return nil, err
	}
	host, err := newSSHKey()
	if err != nil {
		return nil, err
	}
	return newSSHAuthority(ca, host)
}

// LoadOrCreateSSH loads the CA's and the host's private key and makes those that do not
// exist: Ed25519, OpenSSH's format, mode 0600, durable before it returns. Any number of
// processes may do so at once; all come out with the same keys. A CA that is missing
// while its host key is there is an error, since sandboxes that trust the old one would be
// lost without a word.
func LoadOrCreateSSH(caKeyFile, hostKeyFile string) (*SSHAuthority, error) {
	// The CA is published first and looked for last: a host key without one is never a
	// moment of another process's start.
	hostMissing, err := missing(hostKeyFile)
	if err != nil {
		return nil, err
	}
	caMissing, err := missing(caKeyFile)
	if err != nil {
		return nil, err
	}
	if caMissing && !hostMissing {
		return nil, fmt.Errorf("ssh ca key %s does not exist, but the host key %s does: put the ca key back, or remove the host key to have both made anew", caKeyFile, hostKeyFile)
	}
	if caMissing {
		if err := createSSHKey(caKeyFile); err != nil {
			return nil, err
		}
	}
	if hostMissing {
		if err := createSSHKey(hostKeyFile); err != nil {
			return nil, err
		}
	}
	ca, err := loadSSHKey(caKeyFile)
	if err != nil {
		return nil, err
	}
	host, err := loadSSHKey(hostKeyFile)
	if err != nil {
		return nil, err
	}
	return newSSHAuthority(ca, host)
}

func newSSHAuthority(ca, host ssh.Signer) (*SSHAuthority, error) {
	if string(ca.PublicKey().Marshal()) == string(host.PublicKey().Marshal()) {
		return nil, errors.New("ssh ca key and ssh host key are the same key: remove the host key to have one made")
	}
	cache, err := lru.New[string, *hostCert](defaultCacheSize)
	if err != nil {
		return nil, fmt.Errorf("cache of ssh host certificates: %w", err)
	}
	return &SSHAuthority{ca: ca, host: host, cache: cache}, nil
}

func newSSHKey() (ssh.Signer, error) {
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("making an ssh key: %w", err)
	}
	return ssh.NewSignerFromSigner(key)
}

func createSSHKey(file string) error {
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return fmt.Errorf("making an ssh key: %w", err)
	}
	block, err := ssh.MarshalPrivateKey(key, "egressd")
	if err != nil {
		return fmt.Errorf("encoding an ssh key: %w", err)
	}
	return publish(file, pem.EncodeToMemory(block))
}

// loadSSHKey takes what ssh-keygen makes as well: Ed25519, ECDSA, RSA of 2048 bits or more.
func loadSSHKey(file string) (ssh.Signer, error) {
	data, err := readPrivate(file)
	if err != nil {
		return nil, fmt.Errorf("ssh: %w", err)
	}
	raw, err := ssh.ParseRawPrivateKey(data)
	var locked *ssh.PassphraseMissingError
	if errors.As(err, &locked) {
		return nil, fmt.Errorf("ssh key %s has a passphrase: remove it with ssh-keygen -p and protect the file by its mode", file)
	}
	if err != nil {
		return nil, fmt.Errorf("ssh key %s cannot be read as a private key", file) // the parser may quote it
	}
	var key crypto.Signer
	switch k := raw.(type) {
	case *ed25519.PrivateKey:
		key = *k
	case *ecdsa.PrivateKey:
		key = k
	case *rsa.PrivateKey:
		if k.N.BitLen() < 2048 {
			return nil, fmt.Errorf("ssh key %s: RSA of %d bits is too short, 2048 is the least", file, k.N.BitLen())
		}
		key = k
	default:
		return nil, fmt.Errorf("ssh key %s is not Ed25519, ECDSA or RSA", file)
	}
	signer, err := ssh.NewSignerFromSigner(key)
	if err != nil {
		return nil, fmt.Errorf("ssh key %s: %w", file, err)
	}
	if a, ok := signer.(ssh.AlgorithmSigner); ok && signer.PublicKey().Type() == ssh.KeyAlgoRSA {
		// Never SHA-1, in certificates neither.
		return ssh.NewSignerWithAlgorithms(a, []string{ssh.KeyAlgoRSASHA512, ssh.KeyAlgoRSASHA256})
	}
	return signer, nil
}

// HostSigners are the host keys to show a client that wants host: first with a
// certificate that names host and nothing else, then the plain key for clients that know
// no certificates. host is an LDH name or an address in canonical form (ErrBadHost
// otherwise); certificates know no ports. The signers are shared.
func (a *SSHAuthority) HostSigners(host string, _ uint16) ([]ssh.Signer, error) {
	name, _, err := checkHost(host)
	if err != nil {
		return nil, err
	}
	now := time.Now()
	if c, ok := a.cache.Get(name); ok && now.Unix() >= c.from && now.Unix() < c.until {
		return c.signers, nil
	}
	from, to := now.Add(-backdate), now.Add(sshCertTTL)
	cert := &ssh.Certificate{
		Key: a.host.PublicKey(), CertType: ssh.HostCert, KeyId: "egressd for " + name, ValidPrincipals: []string{name},
		Serial: a.mintings.Add(1), ValidAfter: uint64(from.Unix()), ValidBefore: uint64(to.Unix()),
	}
	if err := cert.SignCert(rand.Reader, a.ca); err != nil {
		return nil, fmt.Errorf("signing an ssh host certificate: %w", err)
	}
	certified, err := ssh.NewCertSigner(cert, a.host)
	if err != nil {
		return nil, fmt.Errorf("ssh host certificate: %w", err)
	}
	signers := []ssh.Signer{certified, a.host}
	a.cache.Add(name, &hostCert{signers: signers, from: from.Unix(), until: to.Add(-sshCertTTL / 4).Unix()})
	return signers, nil
}

// KnownHostsLine is what a sandbox puts into its known_hosts to trust egressd as any
// host. No line end.
func (a *SSHAuthority) KnownHostsLine() string {
	return "@cert-authority * " + publicLine(a.ca) + " " + sshComment
}

// HostKeyLine is the same for clients that know no certificates: the plain host key for
// any host on port 22.
func (a *SSHAuthority) HostKeyLine() string {
	return "* " + publicLine(a.host) + " egressd-ssh-host"
}

// Fingerprint is the CA's, as ssh-keygen -l prints it.
func (a *SSHAuthority) Fingerprint() string { return ssh.FingerprintSHA256(a.ca.PublicKey()) }

func publicLine(s ssh.Signer) string {
	return strings.TrimSpace(string(ssh.MarshalAuthorizedKey(s.PublicKey())))
}
