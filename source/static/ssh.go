package static

import (
	"bytes"
	"crypto"
	"encoding/json"
	"encoding/pem"
	"errors"

	"golang.org/x/crypto/ssh"

	"github.com/egressd/egressd/internal/secret"
	"github.com/egressd/egressd/source"
)

// maxKDFRounds bounds bcrypt's rounds in an OpenSSH key: ssh-keygen writes 16 to 24,
// the field holds 32 bits, and each costs milliseconds.
const maxKDFRounds = 256

func decodeSSH(block json.RawMessage, errs source.FieldErrors) source.Parsed {
	var spec struct {
		Key        *string `json:"privateKeyPem"`
		Passphrase *string `json:"passphrase,omitempty"`
	}
	if !decode(block, &spec, errs) {
		return source.Parsed{}
	}
	p := source.Parsed{Canonical: spec, Set: []string{"privateKeyPem"}, Material: &source.Material{}}
	passphrase := optional("passphrase", spec.Passphrase, errs)
	if passphrase != "" {
		p.Set = append(p.Set, "passphrase")
		given("passphrase", passphrase, errs)
	}
	text := required("privateKeyPem", spec.Key, errs)
	if !given("privateKeyPem", text, errs) || len(errs) > 0 {
		return p
	}
	if fault := checkSSHBlock(text); fault != "" {
		errs.Add("privateKeyPem", fault)
		return p
	}
	key := sshKey(text, passphrase, errs)
	if key == nil {
		return p
	}
	signer, err := ssh.NewSignerFromKey(key)
	if err != nil {
		errs.Add("privateKeyPem", "this type of key is not supported (RSA, ECDSA, Ed25519)")
		return p
	}
	p.Material.SSH, p.Material.KeyText = signer, keyText(text)
	if passphrase != "" {
		p.Material.KeyText = append(p.Material.KeyText, secret.New(passphrase))
	}
	return p
}

// checkSSHBlock looks at what must be refused before any of it is decrypted.
func checkSSHBlock(text string) string {
	parsed, ok := blocks(text)
	switch {
	case !ok:
		return "is not PEM"
	case len(parsed) > 1:
		return "holds more than one PEM block"
	case parsed[0].Type == "ENCRYPTED PRIVATE KEY":
		return "is encrypted PKCS #8, which is not supported; rewrite it with ssh-keygen -p -f KEY"
	case parsed[0].Type == "OPENSSH PRIVATE KEY" && kdfRounds(parsed[0]) > maxKDFRounds:
		return "asks for more than 256 rounds of key derivation"
	}
	return ""
}

// kdfRounds reads the rounds from the head of an OpenSSH key (PROTOCOL.key); 0 when
// there are none or it is not well formed, which the parser then reports.
func kdfRounds(block *pem.Block) uint32 {
	rest, ok := bytes.CutPrefix(block.Bytes, []byte("openssh-key-v1\x00"))
	if !ok {
		return 0
	}
	var head struct {
		Cipher, KDF string
		Options     string
		Rest        []byte `ssh:"rest"`
	}
	if ssh.Unmarshal(rest, &head) != nil || head.KDF != "bcrypt" {
		return 0
	}
	var options struct {
		Salt   string
		Rounds uint32
	}
	if ssh.Unmarshal([]byte(head.Options), &options) != nil {
		return 0
	}
	return options.Rounds
}

func sshKey(text, passphrase string, errs source.FieldErrors) any {
	key, err := ssh.ParseRawPrivateKey([]byte(text))
	var missing *ssh.PassphraseMissingError
	switch encrypted := errors.As(err, &missing); {
	case encrypted && passphrase == "":
		errs.Add("passphrase", "is required: the key is encrypted")
		return nil
	case encrypted:
		if key, err = ssh.ParseRawPrivateKeyWithPassphrase([]byte(text), []byte(passphrase)); err != nil {
			errs.Add("passphrase", "does not open the key")
			return nil
		}
	case err != nil:
		errs.Add("privateKeyPem", "does not parse as an SSH private key")
		return nil
	case passphrase != "":
		errs.Add("passphrase", "is given, but the key is not encrypted")
		return nil
	}
	signer, ok := key.(crypto.Signer) // DSA keys are none
	if !ok {
		errs.Add("privateKeyPem", "this type of key is not supported (RSA, ECDSA, Ed25519)")
		return nil
	}
	if fault := weak(signer.Public()); fault != "" {
		errs.Add("privateKeyPem", fault)
		return nil
	}
	return key
}
