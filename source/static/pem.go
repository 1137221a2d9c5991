package static

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"strings"

	"github.com/egressd/egressd/internal/secret"
	"github.com/egressd/egressd/source"
)

const (
	minRSA   = 2048 // bits
	maxRSA   = 16384
	maxChain = 10  // certificates that are sent
	maxCAs   = 512 // certificates that are trusted
)

// blocks reads PEM. Text before a block is allowed, as tools write it; anything after
// the last block that is not blank is not, because it is a block cut short.
func blocks(text string) ([]*pem.Block, bool) {
	var out []*pem.Block
	for rest := []byte(text); ; {
		block, after := pem.Decode(rest)
		if block == nil {
			return out, len(out) > 0 && len(bytes.TrimSpace(rest)) == 0
		}
		// pem.Decode skips a damaged block in silence; one BEGIN per block shows it.
		if bytes.Count(rest[:len(rest)-len(after)], []byte("-----BEGIN ")) != 1 {
			return nil, false
		}
		out, rest = append(out, block), after
	}
}

func certificates(path, text string, limit int, errs source.FieldErrors) []*x509.Certificate {
	parsed, ok := blocks(text)
	if !ok {
		errs.Add(path, "is not PEM")
		return nil
	}
	if len(parsed) > limit {
		errs.Add(path, fmt.Sprintf("has more than %d certificates", limit))
		return nil
	}
	var out []*x509.Certificate
	for i, block := range parsed {
		if block.Type != "CERTIFICATE" {
			errs.Add(path, fmt.Sprintf("PEM block %d is not a certificate", i+1))
			return nil
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			errs.Add(path, fmt.Sprintf("certificate %d does not parse", i+1))
			return nil
		}
		if fault := weak(cert.PublicKey); fault != "" {
			errs.Add(path, fmt.Sprintf("certificate %d: %s", i+1, fault))
		}
		out = append(out, cert)
	}
	return out
}

// weak says why a public key is refused, "" if it is not.
func weak(key any) string {
	switch key := key.(type) {
	case *rsa.PublicKey:
		if bits := key.N.BitLen(); bits < minRSA || bits > maxRSA {
			return fmt.Sprintf("an RSA key of %d bits is refused (%d–%d)", bits, minRSA, maxRSA)
		}
		return ""
	case *ecdsa.PublicKey, ed25519.PublicKey:
		return ""
	default:
		return "this type of key is not supported (RSA, ECDSA, Ed25519)"
	}
}

// tlsKey reads the one private key, in PKCS #8, PKCS #1 or SEC 1.
func tlsKey(path, text string, errs source.FieldErrors) crypto.Signer {
	parsed, ok := blocks(text)
	if !ok {
		errs.Add(path, "is not PEM")
		return nil
	}
	var key *pem.Block
	for _, block := range parsed {
		switch {
		case block.Type == "EC PARAMETERS": // openssl writes it in front of the key
		case block.Type == "CERTIFICATE":
			errs.Add(path, "holds a certificate: only the private key belongs here")
			return nil
		case key != nil:
			errs.Add(path, "holds more than one key")
			return nil
		default:
			key = block
		}
	}
	switch {
	case key == nil:
		errs.Add(path, "holds no private key")
	case key.Type == "ENCRYPTED PRIVATE KEY", key.Headers["DEK-Info"] != "":
		errs.Add(path, "is encrypted; decrypt it first (openssl pkey -in KEY -out KEY.plain)")
	default:
		signer, fault := parseKey(key)
		if fault == "" {
			fault = weak(signer.Public())
		}
		if fault == "" {
			return signer
		}
		errs.Add(path, fault)
	}
	return nil
}

func parseKey(block *pem.Block) (crypto.Signer, string) {
	var key any
	var err error
	switch block.Type {
	case "PRIVATE KEY":
		key, err = x509.ParsePKCS8PrivateKey(block.Bytes)
	case "RSA PRIVATE KEY":
		key, err = x509.ParsePKCS1PrivateKey(block.Bytes)
	case "EC PRIVATE KEY":
		key, err = x509.ParseECPrivateKey(block.Bytes)
	default:
		return nil, "is not a private key in PKCS #8, PKCS #1 or SEC 1"
	}
	if err != nil {
		return nil, "does not parse as a private key"
	}
	signer, ok := key.(crypto.Signer)
	if !ok {
		return nil, "this type of key cannot sign"
	}
	return signer, ""
}

const (
	minKeyLine  = 32 // bytes: what a line of PEM must have to tell one key from all others
	maxKeyLines = 16 // of one key; each is searched for in many spellings
)

// keyText is what a private key is recognised by in traffic: the lines of its base64, as
// every way of quoting PEM leaves those whole (raw, JSON, one line without breaks). The
// first line of several is left out, as it is the same in many keys, and of many lines the
// last stand for all. Text of another width is not recognised.
func keyText(text string) []secret.String {
	var out []secret.String
	inside, first := false, true
	var lines []string
	for line := range strings.SplitSeq(text, "\n") {
		line = strings.TrimSpace(line)
		switch {
		case strings.HasPrefix(line, "-----BEGIN "):
			inside, first = strings.HasSuffix(line, "PRIVATE KEY-----"), true
		case strings.HasPrefix(line, "-----"):
			inside = false
		case !inside || strings.Contains(line, ":") || len(line) < minKeyLine:
		case first:
			first = false
			lines = append(lines, line)
		default:
			out = append(out, secret.New(line))
		}
	}
	if len(out) == 0 { // a key of one line
		for _, line := range lines {
			out = append(out, secret.New(line))
		}
	}
	return out[max(0, len(out)-maxKeyLines):]
}
