package certs

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"os"

	pkcs12 "software.sslmate.com/src/go-pkcs12"
)

// ErrNoSystemRoots: none of the usual files with the system's root certificates exists.
var ErrNoSystemRoots = errors.New("no system root certificates found: install the package ca-certificates, or name root files in upstream.extraCAFiles")

// systemRoots are where distributions keep all roots in one file. Fixed: which CAs an
// upstream is verified against must not follow the environment.
var systemRoots = [...]string{
	"/etc/ssl/certs/ca-certificates.crt",                // Debian, Ubuntu, Arch, Gentoo, distroless
	"/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem", // Fedora, RHEL
	"/etc/pki/tls/certs/ca-bundle.crt",                  // older RHEL
	"/etc/ssl/ca-bundle.pem",                            // openSUSE
	"/etc/pki/tls/cacert.pem",
	"/etc/ssl/cert.pem", // Alpine, OpenBSD, macOS
	"/usr/local/etc/ssl/cert.pem",
	"/usr/local/share/certs/ca-root-nss.crt", // FreeBSD
}

// SystemPool is what upstreams are verified against: the system's roots from their fixed
// places, never from SSL_CERT_FILE, and those of extraCAFiles. ErrNoSystemRoots if there is
// neither.
func SystemPool(extraCAFiles []string) (*x509.CertPool, error) {
	return poolFrom(systemRoots[:], extraCAFiles)
}

func poolFrom(paths, extraCAFiles []string) (*x509.CertPool, error) {
	roots, err := firstOf(paths)
	if err != nil {
		return nil, err
	}
	extra, err := LoadPEMFiles(extraCAFiles)
	if err != nil {
		return nil, fmt.Errorf("upstream.extraCAFiles: %w", err)
	}
	if len(roots)+len(extra) == 0 {
		return nil, ErrNoSystemRoots
	}
	pool := x509.NewCertPool()
	for _, c := range append(roots, extra...) {
		pool.AddCert(c)
	}
	return pool, nil
}

// SystemBundle is a PEM bundle for a child process to trust: the roots in file, or the
// system's if file is "" (give the SSL_CERT_FILE that the child would have used), and
// all certificates in extraPEM. Each certificate is in it once, and nothing else.
// ErrNoSystemRoots if there would be no roots beside extraPEM's.
func SystemBundle(file string, extraPEM ...[]byte) ([]byte, error) {
	return bundleFrom(systemRoots[:], file, extraPEM)
}

func bundleFrom(paths []string, file string, extraPEM [][]byte) ([]byte, error) {
	var roots []*x509.Certificate
	var err error
	if file != "" {
		roots, err = LoadPEMFiles([]string{file})
	} else if roots, err = firstOf(paths); err == nil && len(roots) == 0 {
		err = ErrNoSystemRoots
	}
	if err != nil {
		return nil, err
	}
	for _, extra := range extraPEM {
		cs, err := parseCerts(extra)
		if err != nil {
			return nil, fmt.Errorf("certificate to add to the bundle: %w", err)
		}
		roots = append(roots, cs...)
	}
	var b bytes.Buffer
	seen := make(map[string]bool, len(roots))
	for _, c := range roots {
		if !seen[string(c.Raw)] {
			seen[string(c.Raw)] = true
			b.Write(encodeCert(c.Raw))
		}
	}
	return b.Bytes(), nil
}

// firstOf reads the first file that exists; none is no error. A certificate in it that
// does not parse is left out, as Go's own loader does: system bundles carry oddities.
func firstOf(paths []string) ([]*x509.Certificate, error) {
	for _, p := range paths {
		data, err := readFile(p)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("system root certificates: %w", err)
		}
		var out []*x509.Certificate
		for block, rest := pem.Decode(data); block != nil; block, rest = pem.Decode(rest) {
			if c, err := x509.ParseCertificate(block.Bytes); err == nil && block.Type == "CERTIFICATE" {
				out = append(out, c)
			}
		}
		if len(out) > 0 {
			return out, nil
		}
	}
	return nil, nil
}

// LoadPEMFiles reads all certificates of the files. A file without one, or with one that
// does not parse, is an error that names it.
func LoadPEMFiles(files []string) ([]*x509.Certificate, error) {
	var out []*x509.Certificate
	for _, f := range files {
		data, err := readFile(f)
		if err != nil {
			return nil, err // the path is in it
		}
		cs, err := parseCerts(data)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", f, err)
		}
		out = append(out, cs...)
	}
	return out, nil
}

func readFile(name string) (data []byte, err error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	data, err = io.ReadAll(io.LimitReader(f, maxPEMFile+1))
	if err == nil && len(data) > maxPEMFile {
		err = fmt.Errorf("%s is larger than %d MiB: it cannot be a file of certificates", name, maxPEMFile>>20)
	}
	return data, err
}

func parseCerts(data []byte) ([]*x509.Certificate, error) {
	var out []*x509.Certificate
	for block, rest := pem.Decode(data); block != nil; block, rest = pem.Decode(rest) {
		if block.Type != "CERTIFICATE" {
			continue
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("certificate %d does not parse: check that the file is whole", len(out)+1)
		}
		out = append(out, c)
	}
	if len(out) == 0 {
		return nil, errors.New("holds no certificate in PEM form (-----BEGIN CERTIFICATE-----)")
	}
	return out, nil
}

// Truststore is pem's certificates as a PKCS #12 trust store that Java reads (8u301,
// 11.0.12, 17 and later) with -Djavax.net.ssl.trustStore. The password protects nothing
// secret; Java wants one.
func Truststore(pem []byte, password string) ([]byte, error) {
	cs, err := parseCerts(pem)
	if err != nil {
		return nil, fmt.Errorf("trust store: %w", err)
	}
	// Java looks entries up by alias, so each needs one of its own; the encoder takes
	// the subject's, and subjects repeat.
	entries := make([]pkcs12.TrustStoreEntry, len(cs))
	for i, c := range cs {
		entries[i] = pkcs12.TrustStoreEntry{Cert: c, FriendlyName: fmt.Sprintf("egressd-%03d", i)}
	}
	out, err := pkcs12.Modern.EncodeTrustStoreEntries(entries, password)
	if err != nil {
		return nil, fmt.Errorf("trust store: %w", err)
	}
	return out, nil
}
