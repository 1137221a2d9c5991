package store

import (
	"bytes"
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/hpke"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"
)

// KeyPaths names the three key files, each one line of text.
//
// Seal holds 32 random bytes, the only secret to back up: the private key and the
// digest key are derived from it. Public and Digest are all that the management plane
// reads. They are made again if missing, so a crash at first start leaves nothing half done.
type KeyPaths struct {
	Seal   string // data plane only
	Public string // public key, with a MAC by the digest key so that it cannot be replaced
	Digest string // digests of specs and MACs of records
}

// DefaultKeyPaths are seal.key, seal.pub and digest.key in dir.
func DefaultKeyPaths(dir string) KeyPaths {
	return KeyPaths{
		Seal:   filepath.Join(dir, "seal.key"),
		Public: filepath.Join(dir, "seal.pub"),
		Digest: filepath.Join(dir, "digest.key"),
	}
}

const (
	seedLen    = 32
	sealTag    = "egressd-seal-key-1"
	publicTag  = "egressd-seal-pub-1"
	digestTag  = "egressd-digest-key-1"
	labelSeal  = "egressd/seal/x-wing/1"
	labelMAC   = "egressd/digest/hmac-sha256/1"
	labelCheck = "egressd/seal.pub/1"
)

// LoadOrCreateKeys returns both halves of the keys in dir, made at first start: dir
// with mode 0700, files with 0600. Processes that start at once agree on one set.
// Errors wrap ErrKeys and say what to do.
func LoadOrCreateKeys(dir string) (Sealer, Opener, error) {
	return DefaultKeyPaths(dir).LoadOrCreate()
}

// EphemeralKeys returns keys that live in memory only, for one-shot runs and tests.
func EphemeralKeys() (Sealer, Opener, error) {
	seed := make([]byte, seedLen)
	if _, err := rand.Read(seed); err != nil {
		return nil, nil, fmt.Errorf("%w: %w", ErrKeys, err)
	}
	k, err := deriveKeys(seed)
	if err != nil {
		return nil, nil, err
	}
	return k.sealer(), k.opener(), nil
}

// LoadOrCreate is LoadOrCreateKeys for files anywhere.
func (p KeyPaths) LoadOrCreate() (Sealer, Opener, error) {
	k, err := p.loadSeal()
	if errors.Is(err, fs.ErrNotExist) {
		k, err = p.create()
	}
	if err != nil {
		return nil, nil, err
	}
	// Derived files: compared when there, made when missing.
	if err := ensureFile(p.Digest, k.digestFile()); err != nil {
		return nil, nil, p.mismatch(p.Digest, err)
	}
	if err := ensureFile(p.Public, k.publicFile()); err != nil {
		return nil, nil, p.mismatch(p.Public, err)
	}
	return k.sealer(), k.opener(), nil
}

// LoadSealer reads the public half only: what a management plane on its own is given.
func (p KeyPaths) LoadSealer() (Sealer, error) {
	digestKey, err := readKey(p.Digest, digestTag)
	if err != nil {
		return nil, err
	}
	fields, err := readFields(p.Public, publicTag, 2, othersMayRead)
	if err != nil {
		return nil, err
	}
	if !hmac.Equal(fields[1], checkOf(digestKey, fields[0])) {
		return nil, fmt.Errorf("%w: %s does not belong to %s: restore both from one backup",
			ErrKeys, p.Public, p.Digest)
	}
	pub, err := hpke.MLKEM768X25519().NewPublicKey(fields[0])
	if err != nil {
		return nil, fmt.Errorf("%w: %s is not a public key: %w", ErrKeys, p.Public, err)
	}
	return &sealer{recipients: []hpke.PublicKey{pub}, digestKey: digestKey}, nil
}

// LoadOpener reads the private half only, and checks that Public belongs to it.
func (p KeyPaths) LoadOpener() (Opener, error) {
	k, err := p.loadSeal()
	if err != nil {
		return nil, err
	}
	if err := sameFile(p.Public, k.publicFile()); err != nil {
		return nil, p.mismatch(p.Public, err)
	}
	return k.opener(), nil
}

func (p KeyPaths) loadSeal() (*keys, error) {
	seed, err := readKey(p.Seal, sealTag)
	if err != nil {
		return nil, err
	}
	return deriveKeys(seed)
}

// create makes the seal key, unless the derived files say that there was one.
func (p KeyPaths) create() (*keys, error) {
	for _, other := range []string{p.Public, p.Digest} {
		if !exists(other) {
			continue
		}
		// Whoever made it made the seal key first: look once more before complaining.
		k, err := p.loadSeal()
		if errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("%w: %s is missing but %s is there: restore it from backup; "+
				"no stored source opens without it (to start anew, move the store and its keys away)",
				ErrKeys, p.Seal, other)
		}
		return k, err
	}
	seed := make([]byte, seedLen)
	if _, err := rand.Read(seed); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrKeys, err)
	}
	err := createFile(p.Seal, formatLine(sealTag, seed))
	if err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, fmt.Errorf("%w: cannot make %s: %w", ErrKeys, p.Seal, err)
	}
	return p.loadSeal() // the winner's, if another process was faster
}

func (p KeyPaths) mismatch(path string, err error) error {
	if errors.Is(err, errOtherContent) {
		return fmt.Errorf("%w: %s does not belong to %s: restore both from one backup, or remove %s to have it made again",
			ErrKeys, path, p.Seal, path)
	}
	if errors.Is(err, ErrKeys) {
		return err
	}
	return fmt.Errorf("%w: %s: %w", ErrKeys, path, err)
}

// keys is everything derived from one seed.
type keys struct {
	private   hpke.PrivateKey
	digestKey []byte
}

func deriveKeys(seed []byte) (*keys, error) {
	raw, err := hkdf.Key(sha256.New, seed, nil, labelSeal, seedLen)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrKeys, err)
	}
	defer clear(raw)
	private, err := hpke.MLKEM768X25519().NewPrivateKey(raw)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrKeys, err)
	}
	digestKey, err := hkdf.Key(sha256.New, seed, nil, labelMAC, seedLen)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrKeys, err)
	}
	return &keys{private: private, digestKey: digestKey}, nil
}

func (k *keys) sealer() Sealer {
	return &sealer{recipients: []hpke.PublicKey{k.private.PublicKey()}, digestKey: k.digestKey}
}

func (k *keys) opener() Opener {
	return &opener{keys: map[keyID]hpke.PrivateKey{idOf(k.private.PublicKey()): k.private}}
}

func (k *keys) digestFile() []byte { return formatLine(digestTag, k.digestKey) }

func (k *keys) publicFile() []byte {
	pub := k.private.PublicKey().Bytes()
	return formatLine(publicTag, pub, checkOf(k.digestKey, pub))
}

// checkOf ties a public key to the digest key.
func checkOf(digestKey, pub []byte) []byte {
	h := hmac.New(sha256.New, digestKey)
	h.Write(NewRecord(labelCheck).Bytes(pub))
	return h.Sum(nil)
}

func formatLine(tag string, parts ...[]byte) []byte {
	line := tag
	for _, p := range parts {
		line += " " + base64.StdEncoding.EncodeToString(p)
	}
	return []byte(line + "\n")
}

// readKey reads a file that holds one secret key and refuses a weak one.
func readKey(path, tag string) ([]byte, error) {
	fields, err := readFields(path, tag, 1, ownerOnly)
	if err != nil {
		return nil, err
	}
	if why := weakness(fields[0]); why != "" {
		return nil, fmt.Errorf("%w: %s holds a weak key (%s): remove it to have one made, or restore the right one",
			ErrKeys, path, why)
	}
	return fields[0], nil
}

func readFields(path, tag string, n int, a audience) ([][]byte, error) {
	b, err := readGuarded(path, a)
	if err != nil {
		return nil, err
	}
	defer clear(b)
	words := strings.Fields(string(b))
	if len(words) != n+1 || words[0] != tag {
		return nil, fmt.Errorf("%w: %s is not a key file of egressd: it must be one line that begins with %q",
			ErrKeys, path, tag)
	}
	fields := make([][]byte, n)
	for i, w := range words[1:] {
		if fields[i], err = base64.StdEncoding.Strict().DecodeString(w); err != nil {
			return nil, fmt.Errorf("%w: %s is damaged: not base64: restore it from backup", ErrKeys, path)
		}
	}
	return fields, nil
}

// weakness names what is wrong with a key, "" if nothing is. Random bytes fail these
// checks less often than once in 10^12.
func weakness(key []byte) string {
	if len(key) != seedLen {
		return fmt.Sprintf("%d bytes instead of %d", len(key), seedLen)
	}
	printable, step := true, true
	seen := make(map[byte]bool)
	for i, c := range key {
		printable = printable && c >= 0x20 && c < 0x7f
		step = step && (i < 2 || c-key[i-1] == key[1]-key[0])
		seen[c] = true
	}
	switch {
	case bytes.Equal(key, make([]byte, seedLen)):
		return "all zero"
	case step:
		return "a sequence"
	case printable:
		return "a passphrase instead of random bytes"
	case len(seen) < seedLen/2:
		return "too little entropy"
	default:
		return ""
	}
}
