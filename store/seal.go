package store

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hmac"
	"crypto/hpke"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// Envelope, format 1 (all numbers big-endian):
//
//	byte 1 | byte n, 1–8 recipients
//	n × ( key id [16] | uint16 length | HPKE encapsulated key and wrapped data key )
//	nonce [12] | AES-256-GCM ciphertext and tag
//
// A fresh data key seals each version, so no key ever meets two messages and nonces
// cannot collide. HPKE (RFC 9180) wraps that key to each recipient; X-Wing as KEM, so
// that a database copied today stays shut to a quantum computer later. The HPKE info
// and the GCM associated data both name algorithm, key ids, team, name, version and kind.
const (
	envelopeFormat = 1
	envelopeAlg    = "egressd/envelope/1 X-Wing HKDF-SHA256 AES-256-GCM"
	keyIDLen       = 16
	dataKeyLen     = 32
	maxRecipients  = 8
	gcmOverhead    = 12 + 16
)

type keyID [keyIDLen]byte

func idOf(pub hpke.PublicKey) keyID {
	sum := sha256.Sum256(pub.Bytes())
	return keyID(sum[:keyIDLen])
}

// sealer is a Sealer. It holds public keys and the digest key, never a private one.
type sealer struct {
	recipients []hpke.PublicKey
	digestKey  []byte
}

// opener is an Opener.
type opener struct {
	keys map[keyID]hpke.PrivateKey
}

// Both print nothing of what they hold.
func (*sealer) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, "[sealer]") }
func (*opener) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, "[opener]") }

func (s *sealer) Seal(team, name, kind string, version uint64, spec []byte) ([]byte, error) {
	dataKey := make([]byte, dataKeyLen)
	if _, err := rand.Read(dataKey); err != nil {
		return nil, fmt.Errorf("data key: %w", err)
	}
	defer clear(dataKey)

	out := []byte{envelopeFormat, byte(len(s.recipients))}
	ids := make([]byte, 0, keyIDLen*len(s.recipients))
	for _, pub := range s.recipients {
		id := idOf(pub)
		ids = append(ids, id[:]...)
		wrapped, err := hpke.Seal(pub, hpke.HKDFSHA256(), hpke.AES256GCM(),
			bindTo(id[:], team, name, kind, version), dataKey)
		if err != nil {
			return nil, fmt.Errorf("wrap data key: %w", err)
		}
		out = append(out, id[:]...)
		out = binary.BigEndian.AppendUint16(out, uint16(len(wrapped)))
		out = append(out, wrapped...)
	}
	gcm, err := newGCM(dataKey)
	if err != nil {
		return nil, err
	}
	return gcm.Seal(out, nil, spec, bindTo(ids, team, name, kind, version)), nil
}

func (s *sealer) Digest(team, name, kind string, spec []byte) [32]byte {
	return s.mac(NewRecord("egressd/digest/1").Str(team).Str(name).Str(kind).Bytes(spec))
}

func (s *sealer) Authenticate(record []byte) [32]byte {
	return s.mac(NewRecord("egressd/record/1").Bytes(record))
}

func (s *sealer) mac(r Record) [32]byte {
	h := hmac.New(sha256.New, s.digestKey)
	h.Write(r)
	return [32]byte(h.Sum(nil))
}

// Open is safe for concurrent use.
func (o *opener) Open(s Sealed) ([]byte, error) {
	env, err := parseEnvelope(s.Envelope)
	if err != nil {
		return nil, fmt.Errorf("%w: source %q version %d: %w", ErrCorrupt, s.Name, s.Version, err)
	}
	spec, err := o.open(env, s)
	if err != nil {
		return nil, fmt.Errorf("%w: source %q version %d: %w", ErrCorrupt, s.Name, s.Version, err)
	}
	return spec, nil
}

func (o *opener) open(env envelope, s Sealed) ([]byte, error) {
	for _, r := range env.recipients {
		key, ok := o.keys[r.id]
		if !ok {
			continue
		}
		dataKey, err := hpke.Open(key, hpke.HKDFSHA256(), hpke.AES256GCM(),
			bindTo(r.id[:], s.Team, s.Name, s.Kind, s.Version), r.wrapped)
		if err != nil || len(dataKey) != dataKeyLen {
			return nil, errors.New("data key does not unwrap")
		}
		defer clear(dataKey)
		gcm, err := newGCM(dataKey)
		if err != nil {
			return nil, err
		}
		spec, err := gcm.Open(nil, nil, env.box, bindTo(env.ids, s.Team, s.Name, s.Kind, s.Version))
		if err != nil {
			return nil, errors.New("spec does not authenticate")
		}
		return spec, nil
	}
	return nil, errors.New("sealed to another key")
}

// envelope is a parsed one; its slices point into the input.
type envelope struct {
	recipients []wrappedKey
	ids        []byte // all key ids, in order
	box        []byte // nonce, ciphertext, tag
}

type wrappedKey struct {
	id      keyID
	wrapped []byte
}

var errEnvelope = errors.New("envelope is not well-formed")

func parseEnvelope(b []byte) (envelope, error) {
	if len(b) < 2 {
		return envelope{}, errEnvelope
	}
	if b[0] != envelopeFormat {
		return envelope{}, fmt.Errorf("%w: format %d is unknown", errEnvelope, b[0])
	}
	n := int(b[1])
	if n == 0 || n > maxRecipients {
		return envelope{}, errEnvelope
	}
	b = b[2:]
	var env envelope
	for range n {
		if len(b) < keyIDLen+2 {
			return envelope{}, errEnvelope
		}
		id := keyID(b[:keyIDLen])
		size := int(binary.BigEndian.Uint16(b[keyIDLen:]))
		b = b[keyIDLen+2:]
		if len(b) < size {
			return envelope{}, errEnvelope
		}
		env.recipients = append(env.recipients, wrappedKey{id: id, wrapped: b[:size:size]})
		env.ids = append(env.ids, id[:]...)
		b = b[size:]
	}
	if len(b) < gcmOverhead {
		return envelope{}, errEnvelope
	}
	env.box = b
	return env, nil
}

// bindTo is what an envelope is bound to.
func bindTo(ids []byte, team, name, kind string, version uint64) []byte {
	return NewRecord(envelopeAlg).Bytes(ids).Str(team).Str(name).Uint(version).Str(kind)
}

func newGCM(key []byte) (cipher.AEAD, error) {
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, fmt.Errorf("data key: %w", err)
	}
	gcm, err := cipher.NewGCMWithRandomNonce(block)
	if err != nil {
		return nil, fmt.Errorf("data key: %w", err)
	}
	return gcm, nil
}
