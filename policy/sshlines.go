package policy

import (
	"bytes"
	"crypto/rsa"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"

	"golang.org/x/crypto/ssh"
)

// The lengths of RSA keys that are worth checking a signature by. Longer ones are an
// attack on the time that takes.
const (
	minRSABits = 2048
	maxRSABits = 8192
)

// Errors of lines with keys. None repeats the line: a private key may have been pasted.
var (
	errControl    = errors.New("holds a line break or another control character: one line each")
	errAuthorized = errors.New("not an authorized_keys line: want a type, a key and perhaps a comment, like ssh-ed25519 AAAA… name")
	errOptions    = errors.New("options in front of a key are not supported: want only type, key and comment")
	errUserCert   = errors.New("a certificate: want a plain public key")
	errKnownHost  = errors.New("not a known_hosts line: want hosts, a type and a key, like example.com ssh-ed25519 AAAA…")
	errHostField  = errors.New("not a list of hosts: want names, patterns, [host]:port, or one hashed |1|…|…")
	errHostCert   = errors.New("a certificate: want the key of the host, or @cert-authority and the key that signs")
)

// checkAuthorizedKey takes a line of authorized_keys(5) without options.
func checkAuthorizedKey(line string) error {
	if strings.ContainsFunc(line, isControl) {
		return errControl
	}
	key, _, options, rest, err := ssh.ParseAuthorizedKey([]byte(line))
	switch {
	case err != nil || len(bytes.TrimSpace(rest)) > 0:
		return errAuthorized
	case len(options) > 0:
		return errOptions
	}
	if _, ok := key.(*ssh.Certificate); ok {
		return errUserCert
	}
	return checkStrength(key)
}

// checkKnownHost takes a line of the file format of sshd(8): plain, hashed and pattern
// hosts, [host]:port, @cert-authority and @revoked.
func checkKnownHost(line string) error {
	if strings.ContainsFunc(line, isControl) {
		return errControl
	}
	words, marker := strings.Fields(line), ""
	if len(words) > 0 && words[0][0] == '@' {
		if marker = words[0]; marker != "@cert-authority" && marker != "@revoked" {
			return errors.New("an unknown marker: there are only @cert-authority and @revoked")
		}
		words = words[1:]
	}
	if len(words) < 3 {
		return errKnownHost
	}
	if err := checkHostField(words[0]); err != nil {
		return err
	}
	raw, err := base64.StdEncoding.DecodeString(words[2])
	if err != nil {
		return errKnownHost
	}
	key, err := ssh.ParsePublicKey(raw)
	if err != nil || key.Type() != words[1] {
		return errKnownHost
	}
	if _, ok := key.(*ssh.Certificate); ok {
		return errHostCert
	}
	if marker == "@revoked" {
		return nil // the weaker, the better
	}
	return checkStrength(key)
}

// checkStrength refuses keys that prove little or cost much.
func checkStrength(key ssh.PublicKey) error {
	if key.Type() == "ssh-dss" {
		return errors.New("a DSA key, which proves nothing today")
	}
	crypto, ok := key.(ssh.CryptoPublicKey)
	if !ok {
		return nil
	}
	if k, ok := crypto.CryptoPublicKey().(*rsa.PublicKey); ok && (k.N.BitLen() < minRSABits || k.N.BitLen() > maxRSABits) {
		return fmt.Errorf("an RSA key of %d bits: want %d to %d", k.N.BitLen(), minRSABits, maxRSABits)
	}
	return nil
}

// checkHostField looks at the first field of a known_hosts line.
func checkHostField(field string) error {
	if field[0] == '|' {
		return checkHashedHost(field)
	}
	positive := false
	for host := range strings.SplitSeq(field, ",") {
		name, negated := strings.CutPrefix(host, "!")
		positive = positive || !negated
		if inner, ok := strings.CutPrefix(name, "["); ok {
			addr, port, found := strings.Cut(inner, "]:")
			if !found || !isPort(port) {
				return errHostField
			}
			name = addr
		}
		if name == "" || strings.ContainsAny(name, "[]|!@/") {
			return errHostField
		}
	}
	if !positive {
		return errHostField // matches nothing
	}
	return nil
}

// isPort reports what may stand behind "]:", patterns included.
func isPort(s string) bool {
	for i := range len(s) {
		if c := s[i]; (c < '0' || c > '9') && c != '*' && c != '?' {
			return false
		}
	}
	return s != "" && len(s) <= 5
}

// checkHashedHost looks at "|1|salt|hash", both base64 of the 20 bytes of HMAC-SHA1.
func checkHashedHost(field string) error {
	parts := strings.Split(field, "|")
	if len(parts) != 4 || parts[1] != "1" {
		return errHostField
	}
	for _, p := range parts[2:] {
		if raw, err := base64.StdEncoding.DecodeString(p); err != nil || len(raw) != 20 {
			return errHostField
		}
	}
	return nil
}
