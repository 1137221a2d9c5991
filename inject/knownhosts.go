package inject

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha1" //nolint:gosec // the format of hashed names (sshd(8)); it protects nothing here
	"encoding/base64"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"
	"golang.org/x/crypto/ssh"
)

// Errors of Check. A key that is not known is ErrHostKeyUnknown when nothing at all is
// known of the host, and ErrHostKeyMismatch when other keys are.
var (
	ErrHostKeyUnknown  = errors.New("no key is known for this host")
	ErrHostKeyMismatch = errors.New("the host's key is not one of those that are known")
	ErrHostKeyRevoked  = errors.New("the host's key is revoked")
)

// knownHostsCache is how many destinations an instance remembers the lines of: hashed
// names cost an HMAC per line.
const knownHostsCache = 256

// KnownHosts is what is known of SSH servers' keys: the lines of a known_hosts file
// (sshd(8), SSH_KNOWN_HOSTS FILE FORMAT). The zero value and nil know nothing and refuse
// every key. Immutable to its users and safe for concurrent use.
//
// It follows OpenSSH, with three exceptions on the safe side: a key that stands behind
// @revoked is refused for every host and not only for the hosts of its line, a line
// without a port is good for port 22 only, and a certificate without principals is good
// for no host.
type KnownHosts struct {
	lines   []*knownHost
	exact   map[string][]int // by name as it is looked up: lines that have just such names
	scanned []int            // lines that must be matched one by one
	revoked map[string]struct{}
	cache   *lru.Cache[string, []*knownHost]
}

// knownHost is one line that is not @revoked.
type knownHost struct {
	ca       bool
	patterns []hostPattern // nil: hashed
	salt     []byte
	hash     []byte
	key      ssh.PublicKey
	blob     []byte
}

type hostPattern struct {
	text   string // in lower case
	negate bool
}

// ParseKnownHosts reads the lines of a known_hosts file, with or without line ends. Blank
// lines and comments are skipped. An error names the line, counted from 1, and never
// quotes more of it than a marker or a key type.
func ParseKnownHosts(lines []string) (*KnownHosts, error) {
	cache, err := lru.New[string, []*knownHost](knownHostsCache)
	if err != nil {
		return nil, fmt.Errorf("cache of known hosts: %w", err)
	}
	k := &KnownHosts{exact: map[string][]int{}, revoked: map[string]struct{}{}, cache: cache}
	for i, line := range lines {
		if err := k.add(line); err != nil {
			return nil, fmt.Errorf("known_hosts line %d: %w", i+1, err)
		}
	}
	return k, nil
}

func (k *KnownHosts) add(line string) error {
	line = strings.TrimSuffix(strings.TrimSuffix(line, "\n"), "\r")
	if strings.ContainsAny(line, "\r\n\x00") {
		return errors.New("it holds a line break or a NUL: one entry is one line")
	}
	fields := strings.FieldsFunc(line, func(r rune) bool { return r == ' ' || r == '\t' })
	if len(fields) == 0 || fields[0][0] == '#' {
		return nil
	}
	marker := ""
	if fields[0][0] == '@' {
		marker, fields = fields[0], fields[1:]
		if marker != "@cert-authority" && marker != "@revoked" {
			return fmt.Errorf("marker %.40q is not supported: there are @cert-authority and @revoked", marker)
		}
	}
	if len(fields) < 3 {
		return errors.New("it must be: [marker] names keytype base64-key [comment]")
	}
	if fields[0][0] == '@' {
		return errors.New("it has two markers")
	}
	key, err := parseHostKey(fields[1], fields[2])
	if err != nil {
		return err
	}
	if marker == "@revoked" {
		if cert, ok := key.(*ssh.Certificate); ok {
			key = cert.Key
		}
		k.revoked[string(key.Marshal())] = struct{}{}
		return checkNames(fields[0])
	}
	if _, ok := key.(*ssh.Certificate); ok {
		return errors.New("it holds a certificate, where a key belongs")
	}
	h := &knownHost{ca: marker != "", key: key, blob: key.Marshal()}
	return k.index(h, fields[0])
}

func checkNames(names string) error {
	return new(knownHost).parseNames(names)
}

// parseHostKey reads the key, which must be of the type that stands before it and one
// that can be asked for.
func parseHostKey(kind, encoded string) (ssh.PublicKey, error) {
	blob, err := base64.StdEncoding.DecodeString(encoded)
	if err != nil {
		return nil, errors.New("its key is not base64")
	}
	key, err := ssh.ParsePublicKey(blob)
	if err != nil {
		return nil, fmt.Errorf("its key of type %.40q cannot be read", kind)
	}
	if key.Type() != kind {
		return nil, fmt.Errorf("it says %.40q, but its key is %q", kind, key.Type())
	}
	if _, isCert := key.(*ssh.Certificate); !isCert && len(algorithmsOf(key)) == 0 {
		return nil, fmt.Errorf("keys of type %q are not supported", kind)
	}
	return key, nil
}

// index files h under its names. Lines that have plain names only are found by a map,
// so that 10^5 lines cost what one costs.
func (k *KnownHosts) index(h *knownHost, names string) error {
	if err := h.parseNames(names); err != nil {
		return err
	}
	n := len(k.lines)
	k.lines = append(k.lines, h)
	plain := h.patterns != nil && !slices.ContainsFunc(h.patterns, func(p hostPattern) bool {
		return p.negate || strings.ContainsAny(p.text, "*?")
	})
	if !plain {
		k.scanned = append(k.scanned, n)
		return nil
	}
	for _, p := range h.patterns {
		k.exact[p.text] = append(k.exact[p.text], n)
	}
	return nil
}

// parseNames reads the first field of a line: one hashed name, or patterns and commas.
func (h *knownHost) parseNames(names string) error {
	if strings.HasPrefix(names, "|") {
		parts := strings.Split(names, "|")
		if len(parts) != 4 || parts[1] != "1" {
			return errors.New("its hashed name is not |1|salt|hash")
		}
		salt, err := base64.StdEncoding.DecodeString(parts[2])
		if err != nil {
			return errors.New("the salt of its hashed name is not base64")
		}
		hash, err := base64.StdEncoding.DecodeString(parts[3])
		if err != nil || len(hash) != sha1.Size || len(salt) != sha1.Size {
			return errors.New("its hashed name is not two times 20 bytes in base64")
		}
		h.salt, h.hash = salt, hash
		return nil
	}
	for name := range strings.SplitSeq(names, ",") {
		if name == "" {
			continue // as OpenSSH does
		}
		p := hostPattern{text: strings.ToLower(name)}
		if p.text, p.negate = strings.CutPrefix(p.text, "!"); p.text == "" {
			return errors.New("a negation has no name")
		}
		h.patterns = append(h.patterns, p)
	}
	if len(h.patterns) == 0 {
		return errors.New("it names no host")
	}
	return nil
}

// lookupName is how a destination is written in known_hosts.
func lookupName(host string, port uint16) string {
	host = strings.ToLower(host)
	if port == 22 {
		return host
	}
	return "[" + host + "]:" + strconv.Itoa(int(port))
}

// match returns the lines for a destination in their order.
func (k *KnownHosts) match(host string, port uint16) []*knownHost {
	if k == nil || len(k.lines) == 0 {
		return nil
	}
	name := lookupName(host, port)
	if found, ok := k.cache.Get(name); ok {
		return found
	}
	at := slices.Clone(k.exact[name])
	for _, n := range k.scanned {
		if k.lines[n].match(name) {
			at = append(at, n)
		}
	}
	slices.Sort(at)
	found := make([]*knownHost, 0, len(at))
	for _, n := range slices.Compact(at) {
		found = append(found, k.lines[n])
	}
	k.cache.Add(name, found)
	return found
}

func (h *knownHost) match(name string) bool {
	if h.patterns == nil {
		mac := hmac.New(sha1.New, h.salt)
		mac.Write([]byte(name))
		return hmac.Equal(mac.Sum(nil), h.hash)
	}
	matched := false
	for _, p := range h.patterns {
		if !wildcard(p.text, name) {
			continue
		}
		if p.negate {
			return false
		}
		matched = true
	}
	return matched
}

// wildcard matches * and ? over any byte, in time that is at most the product of both
// lengths.
func wildcard(pattern, s string) bool {
	p, i, star, mark := 0, 0, -1, 0
	for i < len(s) {
		switch {
		case p < len(pattern) && pattern[p] == '*':
			star, mark = p, i
			p++
		case p < len(pattern) && (pattern[p] == '?' || pattern[p] == s[i]):
			p++
			i++
		case star >= 0: // let the last star take one byte more
			mark++
			p, i = star+1, mark
		default:
			return false
		}
	}
	return strings.Trim(pattern[p:], "*") == ""
}

// Algorithms are the host key algorithms to ask a destination for, in the order of the
// lines that know it; empty when none does. RSA is asked for with SHA-2 only.
func (k *KnownHosts) Algorithms(host string, port uint16) []string {
	var out []string
	add := func(names ...string) {
		for _, n := range names {
			if !slices.Contains(out, n) {
				out = append(out, n)
			}
		}
	}
	for _, h := range k.match(host, port) {
		if h.ca { // the host's key may be of any type, whatever its CA's is
			add(ssh.CertAlgoED25519v01, ssh.CertAlgoECDSA256v01, ssh.CertAlgoECDSA384v01, ssh.CertAlgoECDSA521v01,
				ssh.CertAlgoRSASHA512v01, ssh.CertAlgoRSASHA256v01)
			continue
		}
		add(algorithmsOf(h.key)...)
	}
	return out
}

func algorithmsOf(key ssh.PublicKey) []string {
	switch t := key.Type(); t {
	case ssh.KeyAlgoRSA:
		return []string{ssh.KeyAlgoRSASHA512, ssh.KeyAlgoRSASHA256}
	case ssh.KeyAlgoED25519, ssh.KeyAlgoECDSA256, ssh.KeyAlgoECDSA384, ssh.KeyAlgoECDSA521:
		return []string{t}
	}
	return nil
}

// Check says whether key, a plain key or a host certificate, is one that is known for the
// destination. Its errors are ErrHostKeyUnknown, ErrHostKeyMismatch, ErrHostKeyRevoked or
// wrap ErrHostKeyMismatch with what is wrong with a certificate.
func (k *KnownHosts) Check(host string, port uint16, key ssh.PublicKey) error {
	if k == nil {
		return ErrHostKeyUnknown
	}
	cert, isCert := key.(*ssh.Certificate)
	if isCert {
		if k.isRevoked(cert.Key) || k.isRevoked(cert.SignatureKey) {
			return ErrHostKeyRevoked
		}
	} else if k.isRevoked(key) {
		return ErrHostKeyRevoked
	}
	known := k.match(host, port)
	if len(known) == 0 {
		return ErrHostKeyUnknown
	}
	if isCert {
		return checkHostCert(known, host, cert)
	}
	blob := key.Marshal()
	for _, h := range known {
		if !h.ca && bytes.Equal(h.blob, blob) {
			return nil
		}
	}
	return ErrHostKeyMismatch
}

func (k *KnownHosts) isRevoked(key ssh.PublicKey) bool {
	_, ok := k.revoked[string(key.Marshal())]
	return ok
}

// checkHostCert: the CA is known for this host, the certificate names it, is a host's, is
// valid now, has no option that nobody understands, and was not signed with SHA-1.
func checkHostCert(known []*knownHost, host string, cert *ssh.Certificate) error {
	ca := cert.SignatureKey.Marshal()
	if !slices.ContainsFunc(known, func(h *knownHost) bool { return h.ca && bytes.Equal(h.blob, ca) }) {
		return fmt.Errorf("%w: its certificate is of a CA that is not known for it", ErrHostKeyMismatch)
	}
	if cert.CertType != ssh.HostCert {
		return fmt.Errorf("%w: its certificate is not for hosts", ErrHostKeyMismatch)
	}
	if f := cert.Signature.Format; f == ssh.KeyAlgoRSA {
		return fmt.Errorf("%w: its certificate is signed with %s", ErrHostKeyMismatch, f)
	}
	host = strings.ToLower(host)
	at := slices.IndexFunc(cert.ValidPrincipals, func(p string) bool { return wildcard(p, host) })
	if at < 0 {
		return fmt.Errorf("%w: its certificate does not name it", ErrHostKeyMismatch)
	}
	checker := ssh.CertChecker{Clock: time.Now}
	if err := checker.CheckCert(cert.ValidPrincipals[at], cert); err != nil {
		return fmt.Errorf("%w: %w", ErrHostKeyMismatch, err)
	}
	return nil
}
