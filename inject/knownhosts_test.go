package inject

import (
	"crypto"
	"crypto/dsa" //nolint:staticcheck // a key that must be refused
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/base64"
	"errors"
	"fmt"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/knownhosts"
)

func hostKey(t testing.TB) ssh.Signer {
	t.Helper()
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return signerOf(t, key)
}

func signerOf(t testing.TB, key crypto.Signer) ssh.Signer {
	t.Helper()
	s, err := ssh.NewSignerFromSigner(key)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func line(s ssh.Signer) string {
	return strings.TrimSpace(string(ssh.MarshalAuthorizedKey(s.PublicKey())))
}

func hostCert(t testing.TB, ca, key ssh.Signer, change func(*ssh.Certificate)) *ssh.Certificate {
	t.Helper()
	c := &ssh.Certificate{
		Key: key.PublicKey(), CertType: ssh.HostCert, ValidPrincipals: []string{"good.test"},
		ValidAfter: uint64(time.Now().Add(-time.Minute).Unix()), ValidBefore: uint64(time.Now().Add(time.Hour).Unix()),
	}
	if change != nil {
		change(c)
	}
	if err := c.SignCert(rand.Reader, ca); err != nil {
		t.Fatal(err)
	}
	return c
}

func known(t testing.TB, lines ...string) *KnownHosts {
	t.Helper()
	k, err := ParseKnownHosts(lines)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func TestAttack_E02_known_hosts(t *testing.T) {
	a, b := hostKey(t), hostKey(t)
	hashed := func(name string) string { return knownhosts.HashHostname(name) }
	for name, tt := range map[string]struct {
		lines []string
		host  string
		port  uint16
		want  error // for key a
	}{
		"plain":                          {[]string{"good.test " + line(a)}, "good.test", 22, nil},
		"comment behind":                 {[]string{"good.test " + line(a) + " some comment"}, "good.test", 22, nil},
		"another key":                    {[]string{"good.test " + line(b)}, "good.test", 22, ErrHostKeyMismatch},
		"another host":                   {[]string{"evil.test " + line(a)}, "good.test", 22, ErrHostKeyUnknown},
		"nothing":                        {nil, "good.test", 22, ErrHostKeyUnknown},
		"second of two":                  {[]string{"good.test " + line(b), "good.test " + line(a)}, "good.test", 22, nil},
		"list":                           {[]string{"x.test,good.test,192.0.2.1 " + line(a)}, "192.0.2.1", 22, nil},
		"case":                           {[]string{"GOOD.Test " + line(a)}, "good.test", 22, nil},
		"CRLF":                           {[]string{"good.test " + line(a) + "\r\n"}, "good.test", 22, nil},
		"tabs, blanks and comments":      {[]string{"", "# x", "  \t", " \tgood.test\t " + line(a)}, "good.test", 22, nil},
		"port":                           {[]string{"[good.test]:2222 " + line(a)}, "good.test", 2222, nil},
		"another port":                   {[]string{"[good.test]:2222 " + line(a)}, "good.test", 2223, ErrHostKeyUnknown},
		"port where none is asked":       {[]string{"[good.test]:2222 " + line(a)}, "good.test", 22, ErrHostKeyUnknown},
		"no port where one is asked":     {[]string{"good.test " + line(a)}, "good.test", 2222, ErrHostKeyUnknown},
		"IPv6":                           {[]string{"2001:db8::1 " + line(a)}, "2001:db8::1", 22, nil},
		"IPv6 and port":                  {[]string{"[2001:db8::1]:2222 " + line(a)}, "2001:db8::1", 2222, nil},
		"star":                           {[]string{"*.test " + line(a)}, "good.test", 22, nil},
		"star crosses dots":              {[]string{"*.test " + line(a)}, "a.b.good.test", 22, nil},
		"question mark":                  {[]string{"g??d.test " + line(a)}, "good.test", 22, nil},
		"question mark is one":           {[]string{"go?.test " + line(a)}, "good.test", 22, ErrHostKeyUnknown},
		"star and port":                  {[]string{"[*.test]:2222 " + line(a)}, "good.test", 2222, nil},
		"star alone is any port":         {[]string{"* " + line(a)}, "good.test", 2222, nil},
		"negated":                        {[]string{"*.test,!good.test " + line(a)}, "good.test", 22, ErrHostKeyUnknown},
		"negated first":                  {[]string{"!good.test,*.test " + line(a)}, "good.test", 22, ErrHostKeyUnknown},
		"negated other":                  {[]string{"*.test,!evil.test " + line(a)}, "good.test", 22, nil},
		"negation alone matches nothing": {[]string{"!evil.test " + line(a)}, "good.test", 22, ErrHostKeyUnknown},
		"negation in another line":       {[]string{"!good.test,x " + line(a), "good.test " + line(a)}, "good.test", 22, nil},
		"hashed":                         {[]string{hashed("good.test") + " " + line(a)}, "good.test", 22, nil},
		"hashed, other host":             {[]string{hashed("evil.test") + " " + line(a)}, "good.test", 22, ErrHostKeyUnknown},
		"hashed with port":               {[]string{hashed("[good.test]:2222") + " " + line(a)}, "good.test", 2222, nil},
		"hashed with port, not 22":       {[]string{hashed("[good.test]:2222") + " " + line(a)}, "good.test", 22, ErrHostKeyUnknown},
		"revoked":                        {[]string{"good.test " + line(a), "@revoked good.test " + line(a)}, "good.test", 22, ErrHostKeyRevoked},
		"revoked before":                 {[]string{"@revoked * " + line(a), "good.test " + line(a)}, "good.test", 22, ErrHostKeyRevoked},
		"revoked elsewhere":              {[]string{"@revoked evil.test " + line(a), "good.test " + line(a)}, "good.test", 22, ErrHostKeyRevoked},
		"another one revoked":            {[]string{"@revoked * " + line(b), "good.test " + line(a)}, "good.test", 22, nil},
		"a CA is no host":                {[]string{"@cert-authority good.test " + line(a)}, "good.test", 22, ErrHostKeyMismatch},
	} {
		t.Run(name, func(t *testing.T) {
			k := known(t, tt.lines...)
			for range 2 { // the second time from the cache
				if err := k.Check(tt.host, tt.port, a.PublicKey()); !errors.Is(err, tt.want) {
					t.Errorf("%v, want %v", err, tt.want)
				}
			}
			got := k.Algorithms(tt.host, tt.port)
			if errors.Is(tt.want, ErrHostKeyUnknown) != (len(got) == 0) {
				t.Errorf("algorithms %v", got)
			}
		})
	}
	t.Run("nil and zero", func(t *testing.T) {
		var none *KnownHosts
		for _, k := range []*KnownHosts{none, {}} {
			if k.Check("good.test", 22, a.PublicKey()) == nil || k.Algorithms("good.test", 22) != nil {
				t.Error("they know something")
			}
		}
	})
}

func TestAttack_E02_certificates(t *testing.T) {
	ca, other, key := hostKey(t), hostKey(t), hostKey(t)
	authority := "@cert-authority *.test " + line(ca)
	for name, tt := range map[string]struct {
		lines  []string
		ca     ssh.Signer
		change func(*ssh.Certificate)
		host   string
		want   error
	}{
		"good":               {want: nil},
		"hashed authority":   {lines: []string{"@cert-authority " + knownhosts.HashHostname("good.test") + " " + line(ca)}},
		"wildcard principal": {change: func(c *ssh.Certificate) { c.ValidPrincipals = []string{"x", "*.test"} }},
		"for ever":           {change: func(c *ssh.Certificate) { c.ValidAfter, c.ValidBefore = 0, ssh.CertTimeInfinity }},
		"another CA":         {ca: other, want: ErrHostKeyMismatch},
		"CA of other hosts":  {lines: []string{"@cert-authority *.example " + line(ca), "good.test " + line(other)}, want: ErrHostKeyMismatch},
		"CA as plain key":    {lines: []string{"*.test " + line(ca)}, want: ErrHostKeyMismatch},
		"another host":       {host: "evil.test", want: ErrHostKeyMismatch},
		"nobody knows":       {host: "good.example", want: ErrHostKeyUnknown},
		"no principal":       {change: func(c *ssh.Certificate) { c.ValidPrincipals = nil }, want: ErrHostKeyMismatch},
		"of a user":          {change: func(c *ssh.Certificate) { c.CertType = ssh.UserCert }, want: ErrHostKeyMismatch},
		"expired":            {change: func(c *ssh.Certificate) { c.ValidBefore = uint64(time.Now().Add(-time.Second).Unix()) }, want: ErrHostKeyMismatch},
		"not yet":            {change: func(c *ssh.Certificate) { c.ValidAfter = uint64(time.Now().Add(time.Hour).Unix()) }, want: ErrHostKeyMismatch},
		"critical option":    {change: func(c *ssh.Certificate) { c.CriticalOptions = map[string]string{"force-command": "x"} }, want: ErrHostKeyMismatch},
		"revoked key":        {lines: []string{authority, "@revoked * " + line(key)}, want: ErrHostKeyRevoked},
		"revoked CA":         {lines: []string{authority, "@revoked * " + line(ca)}, want: ErrHostKeyRevoked},
		"revoked CA first":   {lines: []string{"@revoked * " + line(ca), authority}, want: ErrHostKeyRevoked},
	} {
		t.Run(name, func(t *testing.T) {
			if tt.lines == nil {
				tt.lines = []string{authority}
			}
			if tt.ca == nil {
				tt.ca = ca
			}
			if tt.host == "" {
				tt.host = "good.test"
			}
			err := known(t, tt.lines...).Check(tt.host, 22, hostCert(t, tt.ca, key, tt.change))
			if !errors.Is(err, tt.want) {
				t.Errorf("%v, want %v", err, tt.want)
			}
		})
	}
	t.Run("signature changed", func(t *testing.T) {
		c := hostCert(t, ca, key, nil)
		c.Serial++
		if err := known(t, authority).Check("good.test", 22, c); !errors.Is(err, ErrHostKeyMismatch) {
			t.Error(err)
		}
	})
	t.Run("signed with SHA-1", func(t *testing.T) {
		weak := rsaSigner(t)
		sha1Only, err := ssh.NewSignerWithAlgorithms(weak.(ssh.AlgorithmSigner), []string{ssh.KeyAlgoRSA})
		if err != nil {
			t.Fatal(err)
		}
		k := known(t, "@cert-authority * "+line(weak))
		if err := k.Check("good.test", 22, hostCert(t, sha1Only, key, nil)); !errors.Is(err, ErrHostKeyMismatch) {
			t.Error(err)
		}
		sha2, err := ssh.NewSignerWithAlgorithms(weak.(ssh.AlgorithmSigner), []string{ssh.KeyAlgoRSASHA512})
		if err != nil {
			t.Fatal(err)
		}
		if err := k.Check("good.test", 22, hostCert(t, sha2, key, nil)); err != nil {
			t.Error(err)
		}
	})
}

func rsaSigner(t testing.TB) ssh.Signer {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	return signerOf(t, key)
}

func ecdsaSigner(t testing.TB, c elliptic.Curve) ssh.Signer {
	t.Helper()
	key, err := ecdsa.GenerateKey(c, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return signerOf(t, key)
}

func TestKnownHosts_algorithms(t *testing.T) {
	ed, r, ec, ca := hostKey(t), rsaSigner(t), ecdsaSigner(t, elliptic.P384()), hostKey(t)
	certs := []string{
		ssh.CertAlgoED25519v01, ssh.CertAlgoECDSA256v01, ssh.CertAlgoECDSA384v01, ssh.CertAlgoECDSA521v01,
		ssh.CertAlgoRSASHA512v01, ssh.CertAlgoRSASHA256v01,
	}
	rsaNames := []string{ssh.KeyAlgoRSASHA512, ssh.KeyAlgoRSASHA256}
	for name, tt := range map[string]struct {
		lines []string
		want  []string
	}{
		"in their order":          {[]string{"good.test " + line(r), "good.test " + line(ec), "good.test " + line(ed)}, append(slices.Clone(rsaNames), ssh.KeyAlgoECDSA384, ssh.KeyAlgoED25519)},
		"plain names among globs": {[]string{"*.test " + line(ed), "good.test " + line(r), "* " + line(ec)}, append([]string{ssh.KeyAlgoED25519}, append(slices.Clone(rsaNames), ssh.KeyAlgoECDSA384)...)},
		"once each":               {[]string{"good.test " + line(ed), "good.test " + line(hostKey(t))}, []string{ssh.KeyAlgoED25519}},
		"of this host":            {[]string{"x.test " + line(r), "good.test " + line(ed)}, []string{ssh.KeyAlgoED25519}},
		"authority":               {[]string{"@cert-authority *.test " + line(ca)}, certs},
		"authority, then key":     {[]string{"@cert-authority *.test " + line(ca), "good.test " + line(ec)}, append(slices.Clone(certs), ssh.KeyAlgoECDSA384)},
		"one name twice":          {[]string{"good.test,good.test " + line(ed)}, []string{ssh.KeyAlgoED25519}},
	} {
		t.Run(name, func(t *testing.T) {
			if diff := cmp.Diff(tt.want, known(t, tt.lines...).Algorithms("good.test", 22)); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestKnownHosts_lines_that_are_refused(t *testing.T) {
	a := hostKey(t)
	blob := base64.StdEncoding.EncodeToString(a.PublicKey().Marshal())
	params := dsa.Parameters{}
	if err := dsa.GenerateParameters(&params, rand.Reader, dsa.L1024N160); err != nil {
		t.Fatal(err)
	}
	old := dsa.PrivateKey{PublicKey: dsa.PublicKey{Parameters: params, Y: new(big.Int).Exp(params.G, big.NewInt(5), params.P)}, X: big.NewInt(5)}
	dsaPublic, err := ssh.NewPublicKey(&old.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	for name, bad := range map[string]string{
		"unknown marker":       "@trusted good.test " + line(a),
		"two markers":          "@revoked @cert-authority good.test " + line(a),
		"marker and nothing":   "@revoked",
		"no key":               "good.test",
		"no blob":              "good.test ssh-ed25519",
		"other type":           "good.test ssh-rsa " + blob,
		"not base64":           "good.test ssh-ed25519 AAAA*",
		"cut off":              "good.test ssh-ed25519 " + blob[:20],
		"unknown type":         "good.test ssh-foo " + blob,
		"SSH 1":                "good.test 1024 35 123456789",
		"DSA":                  "good.test " + strings.TrimSpace(string(ssh.MarshalAuthorizedKey(dsaPublic))),
		"hash with a bad salt": "|1|x|" + base64.StdEncoding.EncodeToString(make([]byte, 20)) + " " + line(a),
		"hash of other size":   "|1|" + base64.StdEncoding.EncodeToString(make([]byte, 20)) + "|AAAA " + line(a),
		"hash version":         "|2|AAAA|AAAA " + line(a),
		"hash in a list":       knownhosts.HashHostname("good.test") + ",x.test " + line(a),
		"empty negation":       "good.test,! " + line(a),
		"no name":              ", " + line(a),
		"line break":           "good.test " + line(a) + "\nevil.test " + line(a),
		"NUL":                  "good.test\x00 " + line(a),
		"certificate":          "good.test " + strings.TrimSpace(string(ssh.MarshalAuthorizedKey(hostCert(t, a, hostKey(t), nil)))),
		"revoked, bad name":    "@revoked |1|x|y " + line(a),
	} {
		t.Run(name, func(t *testing.T) {
			k, err := ParseKnownHosts([]string{"# comment", "good.test " + line(a), bad})
			if err == nil || k != nil || !strings.HasPrefix(err.Error(), "known_hosts line 3: ") {
				t.Errorf("%v, %v", k, err)
			}
		})
	}
}

// TestAttack_E02_100000_lines: what a large file costs is paid at load, once per host.
func TestAttack_E02_100000_lines(t *testing.T) {
	const n = 100_000
	a := hostKey(t)
	lines := make([]string, 0, n)
	for i := range n - 2 {
		switch i % 10 {
		case 0:
			lines = append(lines, fmt.Sprintf("|1|%s|%s %s", base64.StdEncoding.EncodeToString(fmt.Appendf(nil, "%020d", i)), base64.StdEncoding.EncodeToString(make([]byte, 20)), line(a)))
		default:
			lines = append(lines, fmt.Sprintf("h%d.test %s", i, line(a)))
		}
	}
	last := hostKey(t)
	lines = append(lines, knownhosts.HashHostname("good.test")+" "+line(last), "**a**a**a**a**a**a**a**a**a**a*b "+line(a))
	start := time.Now()
	k := known(t, lines...)
	if took := time.Since(start); took > 10*time.Second {
		t.Errorf("parsing took %v", took)
	}
	if err := k.Check("good.test", 22, last.PublicKey()); err != nil {
		t.Error(err)
	}
	start = time.Now()
	for range 1000 {
		if err := k.Check("good.test", 22, last.PublicKey()); err != nil {
			t.Fatal(err)
		}
	}
	if took := time.Since(start); took > time.Second {
		t.Errorf("1000 checks took %v", took)
	}
	if err := k.Check(strings.Repeat("a", 250), 22, a.PublicKey()); !errors.Is(err, ErrHostKeyUnknown) {
		t.Error(err)
	}
	if _, err := ParseKnownHosts(append(lines, "@x y z w")); err == nil || !strings.Contains(err.Error(), "line "+strconv.Itoa(n+1)) {
		t.Error(err)
	}
}

// TestKnownHosts_agrees compares with ssh-keygen -F and with x/crypto/ssh/knownhosts over
// lines of every form. Where they part on purpose is said in KnownHosts.
func TestKnownHosts_agrees(t *testing.T) {
	keygen, err := exec.LookPath("ssh-keygen")
	if err != nil {
		t.Fatalf("ssh-keygen is missing: run scripts/deps.sh: %v", err)
	}
	hosts := []struct {
		host string
		port uint16
	}{{"good.test", 22}, {"good.test", 2222}, {"www.good.test", 22}, {"evil.test", 22}, {"192.0.2.7", 22}, {"192.0.2.7", 2222}, {"2001:db8::1", 22}, {"2001:db8::1", 2222}}
	names := []string{
		"good.test", "good.test,evil.test", "*.test", "*.test,!good.test", "!good.test", "?ood.test", "[good.test]:2222", "[*.test]:2222",
		"192.0.2.*", "192.0.2.7,good.test", "[192.0.2.7]:2222", "2001:db8::1", "[2001:db8::1]:2222", "GOOD.TEST",
		knownhosts.HashHostname("good.test"), knownhosts.HashHostname("[good.test]:2222"), knownhosts.HashHostname("192.0.2.7"),
		"*good*", "g*d.t*t", "****", "[*]:2222", "!evil.test,*.test", "www.*,good.*",
	}
	key := hostKey(t)
	dir := t.TempDir()
	for i, name := range names {
		file := filepath.Join(dir, strconv.Itoa(i))
		if err := os.WriteFile(file, []byte(name+" "+line(key)+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		k := known(t, name+" "+line(key))
		theirs, err := knownhosts.New(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, h := range hosts {
			got := k.Check(h.host, h.port, key.PublicKey()) == nil
			at := h.host
			if h.port != 22 {
				at = fmt.Sprintf("[%s]:%d", h.host, h.port)
			}
			out, err := exec.CommandContext(t.Context(), keygen, "-F", at, "-f", file).Output()
			if openssh := err == nil && len(out) > 0; got != openssh {
				t.Errorf("%q, %s: ours %v, ssh-keygen -F %v", name, at, got, openssh)
			}
			// x/crypto compares ports apart from names, and case.
			if name == "****" && h.port != 22 || name == "GOOD.TEST" || strings.HasPrefix(name, "*good") && h.port != 22 || name == "[*]:2222" {
				continue
			}
			x := theirs(net.JoinHostPort(h.host, strconv.Itoa(int(h.port))), &net.TCPAddr{}, key.PublicKey()) == nil
			if got != x {
				t.Errorf("%q, %s: ours %v, x/crypto %v", name, at, got, x)
			}
		}
	}
}

func FuzzParseKnownHosts(f *testing.F) {
	key := hostKey(f)
	for _, s := range []string{
		"good.test " + line(key), "@cert-authority *.test,!x " + line(key), "@revoked * " + line(key), "[good.test]:22 " + line(key) + " c\r\n",
		knownhosts.HashHostname("good.test") + " " + line(key), "#", "@", "|1||| " + line(key), "a,,b " + line(key),
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		k, err := ParseKnownHosts([]string{s})
		if err != nil {
			if k != nil || !strings.HasPrefix(err.Error(), "known_hosts line 1: ") {
				t.Fatalf("%v, %v", k, err)
			}
			return
		}
		for _, port := range []uint16{22, 2222} {
			err := k.Check("good.test", port, key.PublicKey())
			if err == nil && len(k.Algorithms("good.test", port)) == 0 {
				t.Fatal("a key is known and cannot be asked for")
			}
			if strings.Contains(s, "@") && strings.HasPrefix(strings.TrimSpace(s), "@") && err == nil {
				t.Fatal("a line with a marker lets a plain key in")
			}
		}
	})
}
