package certs

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

const maxPEMFile = 8 << 20

// ownMark stands before the key in a file that LoadOrCreate made. Without it, a key whose
// certificate is missing is somebody else's, and no certificate is made for it.
const ownMark = "# made by egressd: the private key of its interception CA\n"

// LoadOrCreate loads the CA from two PEM files and makes them if neither exists: a P-256
// key, mode 0600, and its certificate. Any number of processes may do so at once; all
// come out with the same CA, also after one was killed in between. Files that exist are
// an operator's own CA and are checked like Load does.
func LoadOrCreate(certFile, keyFile string, o Options) (*Authority, error) {
	certMissing, err := missing(certFile)
	if err != nil {
		return nil, err
	}
	keyMissing, err := missing(keyFile)
	if err != nil {
		return nil, err
	}
	switch {
	case !certMissing && !keyMissing:
		return Load(certFile, keyFile, o)
	case keyMissing && !certMissing:
		return nil, fmt.Errorf("ca key %s does not exist, but its certificate %s does: put the key back, or remove the certificate to have a new CA made", keyFile, certFile)
	case keyMissing:
		if err := createKey(keyFile); err != nil {
			return nil, err
		}
	}
	if err := createCert(certFile, keyFile); err != nil {
		return nil, err
	}
	return Load(certFile, keyFile, o)
}

func missing(file string) (bool, error) {
	_, err := os.Stat(file)
	if errors.Is(err, fs.ErrNotExist) {
		return true, nil
	}
	if err != nil {
		return false, fmt.Errorf("ca file: %w", err)
	}
	return false, nil
}

func createKey(file string) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return fmt.Errorf("making a ca key: %w", err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return fmt.Errorf("encoding the ca key: %w", err)
	}
	data := append([]byte(ownMark), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})...)
	return publish(file, data)
}

// createCert makes the certificate for a key that createKey made, here or elsewhere.
func createCert(certFile, keyFile string) error {
	data, err := readPrivate(keyFile)
	if err != nil {
		return err
	}
	if !strings.HasPrefix(string(data), ownMark) {
		return fmt.Errorf("ca certificate %s does not exist, but its key %s does: put the certificate there, or name another key file", certFile, keyFile)
	}
	key, err := parseKey(keyFile, data)
	if err != nil {
		return err
	}
	cert, err := selfSign(key, OwnValidity)
	if err != nil {
		return err
	}
	return publish(certFile, encodeCert(cert.Raw))
}

// publish makes file appear with all its data at once and durably, or leaves the one
// that another process published first. Mode 0600 from the first moment on.
func publish(file string, data []byte) (err error) {
	dir := filepath.Dir(file)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("making the ca's directory: %w", err)
	}
	var nonce [8]byte
	if _, err := rand.Read(nonce[:]); err != nil {
		return fmt.Errorf("naming a temporary file: %w", err)
	}
	temp := file + ".new-" + hex.EncodeToString(nonce[:])
	if err := writeSynced(temp, data); err != nil {
		_ = os.Remove(temp) // the first error is the one to tell
		return err
	}
	defer func() {
		if rerr := os.Remove(temp); err == nil && rerr != nil {
			err = fmt.Errorf("removing a temporary ca file: %w", rerr)
		}
	}()
	// A link fails if the name exists, which a rename does not.
	if err := os.Link(temp, file); err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("publishing a ca file: %w", err)
	}
	return syncDir(dir)
}

func writeSynced(file string, data []byte) error {
	f, err := os.OpenFile(file, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return fmt.Errorf("writing a ca file: %w", err)
	}
	_, err = f.Write(data)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return fmt.Errorf("writing a ca file: %w", err)
	}
	return nil
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("syncing the ca's directory: %w", err)
	}
	if err := errors.Join(d.Sync(), d.Close()); err != nil {
		return fmt.Errorf("syncing the ca's directory: %w", err)
	}
	return nil
}

// Load loads a CA: the first certificate of certFile signs, those behind it are its
// chain. The key is RSA of 2048 bits or more, ECDSA or Ed25519, in PKCS #8, SEC 1 or
// PKCS #1, not encrypted, in a file that only its owner can read. Errors are one line
// and say what to do.
func Load(certFile, keyFile string, o Options) (*Authority, error) {
	chain, err := LoadPEMFiles([]string{certFile})
	if err != nil {
		return nil, fmt.Errorf("ca certificate: %w", err)
	}
	data, err := readPrivate(keyFile)
	if err != nil {
		return nil, err
	}
	key, err := parseKey(keyFile, data)
	if err != nil {
		return nil, err
	}
	if err := checkCA(chain[0], key, time.Now()); err != nil {
		return nil, fmt.Errorf("ca certificate %s: %w", certFile, err)
	}
	return newAuthority(chain, key, o)
}

// readPrivate reads a key file, unless others than its owner can.
func readPrivate(file string) (data []byte, err error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, fmt.Errorf("ca key: %w", err)
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	st, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("ca key: %w", err)
	}
	if !st.Mode().IsRegular() {
		return nil, fmt.Errorf("ca key %s is not a regular file", file)
	}
	if mode := st.Mode().Perm(); mode&0o077 != 0 {
		return nil, fmt.Errorf("ca key %s can be used by others than its owner (mode %04o): run chmod 600 %s, and make a new CA if others had access", file, mode, file)
	}
	data, err = io.ReadAll(io.LimitReader(f, maxPEMFile))
	if err != nil {
		return nil, fmt.Errorf("ca key: %w", err)
	}
	return data, nil
}

func parseKey(file string, data []byte) (crypto.Signer, error) {
	for {
		block, rest := pem.Decode(data)
		if block == nil {
			return nil, fmt.Errorf("ca key %s holds no private key in PEM form", file)
		}
		data = rest
		if strings.Contains(block.Type, "ENCRYPTED") || block.Headers["DEK-Info"] != "" {
			return nil, fmt.Errorf("ca key %s is encrypted: decrypt it with openssl pkey and protect it by its mode", file)
		}
		if !strings.HasSuffix(block.Type, "PRIVATE KEY") {
			continue // EC PARAMETERS and certificates may stand beside it
		}
		key, err := parseDER(block)
		if err != nil {
			// The parser's words stay out: they may quote what it read.
			return nil, fmt.Errorf("ca key %s: its %q block is not a private key of RSA, ECDSA or Ed25519", file, block.Type)
		}
		if r, ok := key.(*rsa.PrivateKey); ok && r.N.BitLen() < 2048 {
			return nil, fmt.Errorf("ca key %s: RSA of %d bits is too short, 2048 is the least", file, r.N.BitLen())
		}
		return key, nil
	}
}

var errKeyType = errors.New("unsupported key type")

func parseDER(block *pem.Block) (crypto.Signer, error) {
	switch block.Type {
	case "EC PRIVATE KEY":
		return x509.ParseECPrivateKey(block.Bytes)
	case "RSA PRIVATE KEY":
		return x509.ParsePKCS1PrivateKey(block.Bytes)
	}
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, err
	}
	switch k := key.(type) {
	case *rsa.PrivateKey:
		return k, nil
	case *ecdsa.PrivateKey:
		return k, nil
	case ed25519.PrivateKey:
		return k, nil
	}
	return nil, errKeyType
}

// publicKeys are SHA-256 of the SubjectPublicKeyInfo of CAs whose private keys anybody can
// read: the ones that goproxy carries in its source, since 2017 and before.
var publicKeys = [...]string{
	"c012de113a81789eb5c392c0580156bbc281f9f93e07f08cafa3329672e6993b",
	"475ca7b1ba8d3a6658570733d036e963c20d791ea94e34f5b15ff15ff296dd71",
}

// checkCA refuses what must not sign, or could not with success.
func checkCA(c *x509.Certificate, key crypto.Signer, now time.Time) error {
	sum := sha256.Sum256(c.RawSubjectPublicKeyInfo)
	pub, comparable := key.Public().(interface{ Equal(crypto.PublicKey) bool })
	switch {
	case slices.Contains(publicKeys[:], hex.EncodeToString(sum[:])):
		return errors.New("its private key is public (it is goproxy's built-in CA): make a CA of your own")
	case !comparable || !pub.Equal(c.PublicKey):
		return errors.New("it does not belong to the key: check that certificate and key files are a pair")
	case !c.BasicConstraintsValid || !c.IsCA:
		return errors.New("it is not a CA certificate (basic constraints): issue one with CA:TRUE")
	case c.KeyUsage != 0 && c.KeyUsage&x509.KeyUsageCertSign == 0:
		return errors.New("its key usage does not allow signing certificates: issue one with keyCertSign")
	case !allowsServerAuth(c):
		return errors.New("its extended key usage does not allow serverAuth: issue one that does")
	case now.After(c.NotAfter):
		return fmt.Errorf("it expired on %s: renew it, or remove certificate and key to have a new CA made", c.NotAfter.UTC().Format(time.DateOnly))
	case now.Before(c.NotBefore):
		return fmt.Errorf("it is not valid before %s: check the clock", c.NotBefore.UTC().Format(time.RFC3339))
	}
	return nil
}

func allowsServerAuth(c *x509.Certificate) bool {
	if len(c.ExtKeyUsage) == 0 && len(c.UnknownExtKeyUsage) == 0 {
		return true
	}
	return slices.Contains(c.ExtKeyUsage, x509.ExtKeyUsageServerAuth) || slices.Contains(c.ExtKeyUsage, x509.ExtKeyUsageAny)
}
