package sshbridge

import (
	"crypto/rand"
	"errors"
	"io"
	"sync/atomic"
	"time"

	"golang.org/x/crypto/ssh"
)

const version = "SSH-2.0-OpenSSH_9.9_egressd"

// serverAlgorithms are for the leg of the sandbox: what every OpenSSH since 6.5 has, and
// nothing with a modular exponentiation to be made to compute.
func serverAlgorithms(rekeyBytes uint64) ssh.Config {
	return ssh.Config{
		RekeyThreshold: rekeyBytes,
		KeyExchanges:   []string{ssh.KeyExchangeMLKEM768X25519, ssh.KeyExchangeCurve25519, ssh.KeyExchangeECDHP256, ssh.KeyExchangeECDHP384, ssh.KeyExchangeECDHP521},
		Ciphers:        []string{ssh.CipherAES128GCM, ssh.CipherAES256GCM, ssh.CipherChaCha20Poly1305},
		// Not used with AEAD ciphers, but they must be named, and agreed on by old peers.
		MACs: []string{ssh.HMACSHA256ETM, ssh.HMACSHA512ETM, ssh.HMACSHA256, ssh.HMACSHA512},
	}
}

// clientAlgorithms are for the leg of the origin, where curves may be missing.
func clientAlgorithms(rekeyBytes uint64) ssh.Config {
	c := serverAlgorithms(rekeyBytes)
	c.KeyExchanges = append(c.KeyExchanges, ssh.KeyExchangeDH16SHA512, ssh.KeyExchangeDH14SHA256)
	return c
}

// userAlgorithms are the signatures that log a sandbox in: no SHA-1.
func userAlgorithms() []string {
	return []string{
		ssh.KeyAlgoED25519, ssh.KeyAlgoSKED25519, ssh.KeyAlgoSKECDSA256, ssh.KeyAlgoECDSA256, ssh.KeyAlgoECDSA384, ssh.KeyAlgoECDSA521,
		ssh.KeyAlgoRSASHA256, ssh.KeyAlgoRSASHA512,
	}
}

// sha2Only keeps an RSA key from signing with SHA-1.
func sha2Only(s ssh.Signer) (ssh.Signer, error) {
	if s.PublicKey().Type() != ssh.KeyAlgoRSA {
		return s, nil
	}
	a, ok := s.(ssh.AlgorithmSigner)
	if !ok {
		return nil, errors.New("an RSA key that cannot sign with SHA-2")
	}
	return ssh.NewSignerWithAlgorithms(a, []string{ssh.KeyAlgoRSASHA512, ssh.KeyAlgoRSASHA256})
}

// exchanges bounds how often keys are exchanged: each costs a signature and a
// Diffie-Hellman, and the peer alone decides how often (E11).
type exchanges struct {
	start time.Time
	n     atomic.Int64
}

const (
	exchangesAtOnce = 1000
	exchangesPerSec = 10
)

var errRekeys = errors.New("ssh: too many key exchanges")

func (e *exchanges) count() error {
	if float64(e.n.Add(1)) > exchangesAtOnce+exchangesPerSec*time.Since(e.start).Seconds() {
		return errRekeys
	}
	return nil
}

// counted is a host key whose signatures, one per key exchange, are counted.
type counted struct {
	ssh.Signer
	by *exchanges
}

func (c counted) Sign(_ io.Reader, data []byte) (*ssh.Signature, error) {
	if err := c.by.count(); err != nil {
		return nil, err
	}
	return c.Signer.Sign(rand.Reader, data)
}

// SignWithAlgorithm makes it an ssh.AlgorithmSigner.
func (c counted) SignWithAlgorithm(_ io.Reader, data []byte, algorithm string) (*ssh.Signature, error) {
	if err := c.by.count(); err != nil {
		return nil, err
	}
	if a, ok := c.Signer.(ssh.AlgorithmSigner); ok {
		return a.SignWithAlgorithm(rand.Reader, data, algorithm)
	}
	return c.Signer.Sign(rand.Reader, data)
}
