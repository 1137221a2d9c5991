package sshbridge

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/egressd/egressd/inject"
	"github.com/egressd/egressd/proxy/wire"
)

// TestAttack_E01_another_host_key: with any key but the known one nothing of the login is
// sent, and the sandbox is told.
func TestAttack_E01_another_host_key(t *testing.T) {
	t.Run("real sshd", func(t *testing.T) {
		d := startSSHD(t)
		r := newRig(t, d)
		r.use(r.login("root", parsePrivate(t, d.userKey, ""), host+" "+publicOf(newSigner(t))))
		g := r.ssh("", host, "echo in")
		if g.status != 255 || g.stdout != "" || !strings.Contains(g.stderr, "egressd: no login at good.test: "+wire.CodeHostKey) {
			t.Errorf("%+v", g)
		}
		if err := r.ended(); code(err) != wire.CodeHostKey {
			t.Error(err)
		}
		if strings.Contains(readFile(t, d.log), "publickey") {
			t.Error("the origin has seen a login")
		}
	})
	for name, lines := range map[string]func(o *origin) []string{
		"another key":      func(*origin) []string { return []string{host + " " + publicOf(newSigner(t))} },
		"nothing is known": func(*origin) []string { return nil },
		"of another host":  func(o *origin) []string { return []string{"evil.test " + publicOf(o.signer)} },
		"of another port":  func(o *origin) []string { return []string{"[good.test]:2222 " + publicOf(o.signer)} },
		"revoked": func(o *origin) []string {
			return []string{host + " " + publicOf(o.signer), "@revoked * " + publicOf(o.signer)}
		},
		"negated": func(o *origin) []string { return []string{"*,!good.test " + publicOf(o.signer)} },
		"of a CA": func(o *origin) []string { return []string{"@cert-authority * " + publicOf(o.signer)} },
		"of a type it lacks": func(*origin) []string {
			return []string{host + " " + publicLine(t, keygen(t, t.TempDir()+"/k", "-t", "ecdsa"))}
		},
	} {
		t.Run(name, func(t *testing.T) {
			o := newOrigin(t)
			r := o.rig()
			r.use(r.login("git", o.user, lines(o)...))
			if _, err := r.tryClient(r.clientConfig()); err == nil {
				t.Error("the sandbox is in")
			}
			if err := r.ended(); code(err) != wire.CodeHostKey {
				t.Error(err)
			}
			if got := o.seen(&o.methods); len(got) != 0 {
				t.Errorf("userauth began: %v", got)
			}
		})
	}
}

func (r *rig) clientConfig() *ssh.ClientConfig {
	r.t.Helper()
	return &ssh.ClientConfig{Auth: []ssh.AuthMethod{ssh.PublicKeys(parsePrivate(r.t, r.clientKey, ""))}}
}

// TestAttack_E02_real_host_keys has sshd show what known_hosts must take or refuse.
func TestAttack_E02_real_host_keys(t *testing.T) {
	dir := t.TempDir()
	ca := keygen(t, dir+"/ca", "-t", "ed25519")
	key := keygen(t, dir+"/key", "-t", "ed25519")
	run(t, "ssh-keygen", "-q", "-s", ca, "-I", "host", "-h", "-n", host, "-V", "-5m:+1h", key+".pub")
	d := startSSHD(t, "HostKey "+key, "HostCertificate "+key+"-cert.pub")
	hashed := write(t, dir+"/hashed", host+" "+publicLine(t, key)+"\n")
	run(t, "ssh-keygen", "-q", "-H", "-f", hashed)
	for name, tt := range map[string]struct {
		ok    bool
		lines []string
	}{
		"@cert-authority":            {true, []string{"@cert-authority *.test " + publicLine(t, ca)}},
		"hashed by ssh-keygen":       {true, []string{strings.TrimSpace(readFile(t, hashed))}},
		"wildcard":                   {true, []string{"g?od.* " + publicLine(t, key)}},
		"port 22 in brackets is not": {false, []string{"[good.test]:22 " + publicLine(t, key)}},
		"@cert-authority of others":  {false, []string{"@cert-authority *.example " + publicLine(t, ca)}},
		"@cert-authority, revoked":   {false, []string{"@cert-authority *.test " + publicLine(t, ca), "@revoked * " + publicLine(t, ca)}},
		"@revoked key":               {false, []string{host + " " + publicLine(t, key), "@revoked " + host + " " + publicLine(t, key)}},
		"the CA's key as the host's": {false, []string{host + " " + publicLine(t, ca)}},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, d)
			r.use(r.login("root", parsePrivate(t, d.userKey, ""), tt.lines...))
			g := r.ssh("", host, "echo in")
			if (g.stdout == "in\n") != tt.ok {
				t.Errorf("%+v", g)
			}
			if err := r.ended(); !tt.ok && code(err) != wire.CodeHostKey {
				t.Error(err)
			}
		})
	}
}

// TestAttack_E07_user_names: whatever the sandbox calls itself, the rule's name goes up.
func TestAttack_E07_user_names(t *testing.T) {
	o := newOrigin(t)
	r := o.rig()
	for _, name := range []string{"root", "git", "", "a b\x00c", strings.Repeat("x", 1000)} {
		c := r.clientConfig()
		if c.User = name; name == "" {
			c.User = "anybody"
		}
		conn, err := r.tryClient(c)
		if err != nil {
			t.Fatalf("%q: %v", name, err)
		}
		_ = conn.Close()
	}
	for _, u := range o.seen(&o.users) {
		if u != "git" {
			t.Errorf("the origin was asked for %q", u)
		}
	}
}

// TestAttack_E08_methods: the sandbox has its key and nothing else, and so has egressd.
func TestAttack_E08_methods(t *testing.T) {
	other := newSigner(t)
	for name, auth := range map[string][]ssh.AuthMethod{
		"none":                 {},
		"password":             {ssh.Password("fake-password")},
		"keyboard-interactive": {ssh.KeyboardInteractive(func(string, string, []string, []bool) ([]string, error) { return nil, nil })},
		"another key":          {ssh.PublicKeys(other)},
	} {
		t.Run("of the sandbox: "+name, func(t *testing.T) {
			o := newOrigin(t)
			r := o.rig()
			if _, err := r.tryClient(&ssh.ClientConfig{Auth: auth}); err == nil {
				t.Fatal("it is in")
			}
			if err := r.ended(); code(err) != wire.CodeAuthRequired {
				t.Error(err)
			}
			r.mu.Lock()
			defer r.mu.Unlock()
			if r.opened != 0 {
				t.Error("opened")
			}
		})
	}
	t.Run("CVE-2024-45337: asked with the one, signed with the other", func(t *testing.T) {
		o := newOrigin(t)
		r := o.rig()
		good := parsePrivate(t, r.clientKey, "")
		conn, err := r.tryClient(&ssh.ClientConfig{Auth: []ssh.AuthMethod{ssh.PublicKeys(&lying{good, other}, other)}})
		if err == nil {
			_ = conn.Close()
			t.Error("it is in")
		}
	})
	t.Run("upstream that takes passwords only", func(t *testing.T) {
		o := newOrigin(t)
		o.config.PublicKeyCallback = nil
		o.config.PasswordCallback = func(ssh.ConnMetadata, []byte) (*ssh.Permissions, error) { return &ssh.Permissions{}, nil }
		r := o.rig()
		if _, err := r.tryClient(r.clientConfig()); err == nil {
			t.Fatal("it is in")
		}
		if err := r.ended(); code(err) != wire.CodeUpstreamLogin || !errors.Is(err, wire.ErrLogin) {
			t.Error(err)
		}
		if got := o.seen(&o.methods); !slices.Equal(got, []string{"none"}) {
			t.Errorf("tried %v", got)
		}
	})
	t.Run("upstream that wants a second factor", func(t *testing.T) {
		o := newOrigin(t)
		o.config.PublicKeyCallback = func(ssh.ConnMetadata, ssh.PublicKey) (*ssh.Permissions, error) {
			return nil, &ssh.PartialSuccessError{Next: ssh.ServerAuthCallbacks{PasswordCallback: func(ssh.ConnMetadata, []byte) (*ssh.Permissions, error) { return nil, nil }}}
		}
		r := o.rig()
		if _, err := r.tryClient(r.clientConfig()); err == nil {
			t.Fatal("it is in")
		}
		if err := r.ended(); code(err) != wire.CodeUpstreamLogin {
			t.Error(err)
		}
		if got := o.seen(&o.methods); slices.Contains(got, "password") {
			t.Errorf("tried %v", got)
		}
	})
	t.Run("upstream that does not know the key", func(t *testing.T) {
		o := newOrigin(t)
		r := o.rig()
		r.use(r.login("git", newSigner(t), host+" "+publicOf(o.signer)))
		g := r.ssh("", host, "echo in")
		if g.status != 255 || !strings.Contains(g.stderr, "no login at good.test: "+wire.CodeUpstreamLogin) {
			t.Errorf("%+v", g)
		}
	})
	t.Run("RSA upstream signs with SHA-2 only", func(t *testing.T) {
		o := newOrigin(t)
		o.user = parsePrivate(t, keygen(t, t.TempDir()+"/rsa", "-t", "rsa", "-b", "2048"), "")
		o.config.PublicKeyAuthAlgorithms = []string{ssh.KeyAlgoRSA}
		r := o.rig()
		if _, err := r.tryClient(r.clientConfig()); err == nil {
			t.Error("it has signed with SHA-1")
		}
	})
}

// lying shows one key and signs with another.
type lying struct {
	shown ssh.Signer
	ssh.Signer
}

func (l *lying) PublicKey() ssh.PublicKey { return l.shown.PublicKey() }

// TestAttack_E09_certificates: a certificate of the sandbox is no key of the rule, whoever
// signed it.
func TestAttack_E09_certificates(t *testing.T) {
	o := newOrigin(t)
	r := o.rig()
	key := parsePrivate(t, r.clientKey, "")
	for name, c := range map[string]*ssh.Certificate{
		"of the key itself": {CertType: ssh.UserCert, ValidBefore: ssh.CertTimeInfinity, ValidPrincipals: []string{"anybody"}},
		"expired":           {CertType: ssh.UserCert, ValidBefore: 1},
		"source-address": {CertType: ssh.UserCert, ValidBefore: ssh.CertTimeInfinity, Permissions: ssh.Permissions{
			CriticalOptions: map[string]string{"source-address": ""}}},
		"host certificate": {CertType: ssh.HostCert, ValidBefore: ssh.CertTimeInfinity},
	} {
		t.Run(name, func(t *testing.T) {
			c.Key = key.PublicKey()
			if err := c.SignCert(rand.Reader, key); err != nil {
				t.Fatal(err)
			}
			s, err := ssh.NewCertSigner(c, key)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := r.tryClient(&ssh.ClientConfig{Auth: []ssh.AuthMethod{ssh.PublicKeys(s)}}); err == nil {
				t.Error("it is in")
			}
			if err := r.ended(); code(err) != wire.CodeAuthRequired {
				t.Error(err)
			}
		})
	}
}

// TestAttack_E10_terrapin: AEAD only, and ChaCha20 with strict key exchange only.
func TestAttack_E10_terrapin(t *testing.T) {
	for _, cipher := range []string{"aes128-ctr", "aes256-ctr", "aes128-cbc", "3des-cbc"} {
		o := newOrigin(t)
		r := o.rig()
		c := r.clientConfig()
		c.Ciphers = []string{cipher}
		if _, err := r.tryClient(c); err == nil {
			t.Errorf("%s: the sandbox is in", cipher)
		}
		o = newOrigin(t)
		o.config.Ciphers = []string{cipher}
		r = o.rig()
		if _, err := r.tryClient(r.clientConfig()); err == nil {
			t.Errorf("%s: upstream", cipher)
		}
		if got := o.seen(&o.methods); len(got) != 0 {
			t.Errorf("%s: userauth began: %v", cipher, got)
		}
	}
	for _, tt := range []struct {
		cipher string
		strip  bool
		ok     bool
	}{
		{ssh.CipherChaCha20Poly1305, false, true},
		{ssh.CipherChaCha20Poly1305, true, false},
		{ssh.CipherAES128GCM, true, true},
		{ssh.CipherAES256GCM, false, true},
	} {
		t.Run(fmt.Sprintf("%s, strict %v, of the sandbox", tt.cipher, !tt.strip), func(t *testing.T) {
			o := newOrigin(t)
			r := o.rig()
			c := r.clientConfig()
			c.Ciphers = []string{tt.cipher}
			// What is stripped is part of the exchange hash at both ends, so the client must be one
			// that does not offer it, not a man in the middle.
			err := r.clientThrough(c, tt.strip, strictClient)
			if (err == nil) != tt.ok {
				t.Error(err)
			}
		})
	}
	t.Run("upstream without strict key exchange", func(t *testing.T) {
		w := watchKex(nil, strictServer)
		if w.check(ssh.NegotiatedAlgorithms{Read: ssh.DirectionAlgorithms{Cipher: ssh.CipherChaCha20Poly1305}}) == nil {
			t.Error("one direction is enough to be refused")
		}
		w.strict.Store(true)
		if err := w.check(ssh.NegotiatedAlgorithms{Write: ssh.DirectionAlgorithms{Cipher: ssh.CipherChaCha20Poly1305}}); err != nil {
			t.Error(err)
		}
	})
}

// clientThrough logs in at a bridge that sees, with strip, a first packet in which marker
// is spelt otherwise. x/crypto's client knows what it sent, so the exchange hashes would
// differ: admission and its watch are what is asked.
func (r *rig) clientThrough(c *ssh.ClientConfig, strip bool, marker string) error {
	r.t.Helper()
	if !strip {
		conn, err := r.tryClient(c)
		if err == nil {
			_ = conn.Close()
		}
		return err
	}
	w := watchKex(&scripted{data: kexInit(r.t, "curve25519-sha256,kex-loose-c-v00@openssh.com")}, marker)
	if _, err := w.Read(make([]byte, 10)); err != nil {
		r.t.Fatal(err)
	}
	return w.check(ssh.NegotiatedAlgorithms{Read: ssh.DirectionAlgorithms{Cipher: c.Ciphers[0]}, Write: ssh.DirectionAlgorithms{Cipher: c.Ciphers[0]}})
}

// scripted is a connection that says data.
type scripted struct {
	net.Conn
	data []byte
	step int // bytes per read; 0: all
}

func (s *scripted) Read(p []byte) (int, error) {
	if len(s.data) == 0 {
		return 0, errors.New("over")
	}
	n := len(s.data)
	if s.step > 0 {
		n = min(n, s.step)
	}
	n = copy(p, s.data[:n])
	s.data = s.data[n:]
	return n, nil
}

// kexInit is a version and a KEXINIT that offers names.
func kexInit(t testing.TB, names string) []byte {
	t.Helper()
	payload := append([]byte{msgKex}, make([]byte, 16)...)
	payload = append(payload, ssh.Marshal(struct{ Names string }{names})...)
	payload = append(payload, make([]byte, 4*9+5)...)
	padding := 4 + (8-(len(payload)+5+4)%8)%8
	packet := ssh.Marshal(struct {
		Length  uint32
		Padding byte
		Rest    []byte `ssh:"rest"`
	}{uint32(1 + len(payload) + padding), byte(padding), append(payload, make([]byte, padding)...)})
	return append([]byte("comment\r\nSSH-2.0-x\r\n"), packet...)
}

func TestKexWatch(t *testing.T) {
	for name, tt := range map[string]struct {
		data   []byte
		strict bool
		err    error
	}{
		"strict":       {kexInit(t, "a,"+strictClient), true, nil},
		"not":          {kexInit(t, "a,b"), false, nil},
		"part of name": {kexInit(t, "x"+strictClient), false, nil},
		"other packet": {append([]byte("SSH-2.0-x\r\n"), 0, 0, 0, 12, 4, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0), false, errHello},
		"huge packet":  {append([]byte("SSH-2.0-x\r\n"), 0xff, 0xff, 0xff, 0xff, 4, 20), false, errHello},
		"no packet":    {append([]byte("SSH-2.0-x\r\n"), 0, 0, 0, 1, 0, 20), false, errHello},
		"no end":       {bytes.Repeat([]byte("x"), 200<<10), false, errHello},
	} {
		for _, step := range []int{0, 1, 7, 4096} {
			if len(tt.data) > maxHello && step > 0 && step < 4096 {
				continue
			}
			t.Run(fmt.Sprintf("%s by %d", name, step), func(t *testing.T) {
				w := watchKex(&scripted{data: slices.Clone(tt.data), step: step}, strictClient)
				var got []byte
				var err error
				for p := make([]byte, 100); err == nil && len(got) < len(tt.data); {
					var n int
					n, err = w.Read(p)
					got = append(got, p[:n]...)
				}
				if !errors.Is(err, tt.err) || w.strict.Load() != tt.strict {
					t.Errorf("strict %v, %v", w.strict.Load(), err)
				}
				if err == nil && !bytes.Equal(got, tt.data) {
					t.Error("bytes were changed")
				}
			})
		}
	}
}

// TestAttack_E11_cost: slow, huge and endless handshakes end by themselves.
func TestAttack_E11_cost(t *testing.T) {
	quick := func(r *rig) { r.handshake = 700 * time.Millisecond }
	t.Run("a sandbox that says nothing", func(t *testing.T) {
		o := newOrigin(t)
		r := o.rig(quick)
		c := dialRaw(t, r.addr)
		start := time.Now()
		if err := r.ended(); code(err) != wire.CodeBadRequest || time.Since(start) > 5*time.Second {
			t.Errorf("%v after %v", err, time.Since(start))
		}
		_ = c.Close()
	})
	t.Run("a sandbox that stops in the key exchange", func(t *testing.T) {
		o := newOrigin(t)
		r := o.rig(quick)
		c := dialRaw(t, r.addr)
		if _, err := c.Write(kexInit(t, "curve25519-sha256")); err != nil {
			t.Fatal(err)
		}
		if err := r.ended(); code(err) != wire.CodeBadRequest {
			t.Error(err)
		}
	})
	t.Run("an origin that says nothing", func(t *testing.T) {
		r := newOrigin(t).rig(quick, func(r *rig) {
			r.dial = func(context.Context) (net.Conn, error) {
				a, b := net.Pipe()
				t.Cleanup(func() { _ = b.Close() })
				return a, nil
			}
		})
		g := r.ssh("", host, "true")
		if g.status != 255 {
			t.Errorf("%+v", g)
		}
		if err := r.ended(); code(err) != wire.CodeUpstream {
			t.Error(err)
		}
	})
	t.Run("an origin that cannot be reached", func(t *testing.T) {
		r := newOrigin(t).rig(func(r *rig) {
			r.dial = func(context.Context) (net.Conn, error) { return nil, errors.New("fake-detail") }
		})
		g := r.ssh("", host, "true")
		if !strings.Contains(g.stderr, "no login at good.test: "+wire.CodeUnreachable) || strings.Contains(g.stderr, "fake-detail") {
			t.Errorf("%+v", g)
		}
		if err := r.ended(); code(err) != wire.CodeUnreachable {
			t.Error(err)
		}
	})
	t.Run("a source that fails", func(t *testing.T) {
		r := newOrigin(t).rig(func(r *rig) {
			r.credential = func(context.Context) (*inject.Projection, error) {
				return nil, &inject.Error{Code: inject.CodeSourceUnavailable, Source: "fake-source-name", Err: errors.New("fake-detail")}
			}
		})
		g := r.ssh("", host, "true")
		if !strings.Contains(g.stderr, inject.CodeSourceUnavailable) || strings.Contains(g.stderr, "fake-") {
			t.Errorf("%+v", g)
		}
		var e *inject.Error
		if err := r.ended(); !errors.As(err, &e) {
			t.Error(err)
		}
	})
	for name, p := range map[string]*inject.Projection{"no projection": nil, "of another type": {}, "without a key": {SSH: &inject.SSHLogin{}}} {
		t.Run(name, func(t *testing.T) {
			r := newOrigin(t).rig(func(r *rig) {
				r.credential = func(context.Context) (*inject.Projection, error) { return p, nil }
			})
			if _, err := r.tryClient(r.clientConfig()); err == nil {
				t.Error("it is in")
			}
		})
	}
	t.Run("rubbish", func(t *testing.T) {
		o := newOrigin(t)
		r := o.rig(quick)
		for _, s := range []string{"GET / HTTP/1.1\r\n\r\n", "SSH-1.5-x\r\n", strings.Repeat("\n", 100), "SSH-2.0-x\r\n\xff\xff\xff\xff\xff\xff"} {
			c := dialRaw(t, r.addr)
			_, _ = c.Write([]byte(s))
			if err := r.ended(); code(err) != wire.CodeBadRequest {
				t.Errorf("%q: %v", s, err)
			}
			_ = c.Close()
		}
	})
	t.Run("key exchanges without end", func(t *testing.T) {
		e := &exchanges{start: time.Now()}
		s := counted{newSigner(t), e}
		var err error
		n := 0
		for ; err == nil && n < 10*exchangesAtOnce; n++ {
			_, err = s.SignWithAlgorithm(nil, []byte("x"), ssh.KeyAlgoED25519)
		}
		if !errors.Is(err, errRekeys) || n < exchangesAtOnce {
			t.Errorf("%d, %v", n, err)
		}
		if _, err := s.Sign(nil, []byte("x")); !errors.Is(err, errRekeys) {
			t.Error(err)
		}
	})
	t.Run("RSA keys of absurd size", func(t *testing.T) {
		o := newOrigin(t)
		r := o.rig(quick)
		blob := ssh.Marshal(struct {
			Name string
			E, N []byte
		}{"ssh-rsa", []byte{1, 0, 1}, append([]byte{0, 0x80}, make([]byte, 8191)...)})
		if _, err := ssh.ParsePublicKey(blob); err == nil {
			t.Error("x/crypto/ssh takes RSA of 65536 bits")
		}
		if conn, err := r.tryClient(r.clientConfig()); err != nil {
			t.Error(err)
		} else {
			_ = conn.Close()
		}
	})
}

func dialRaw(t testing.TB, addr string) net.Conn {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// TestAttack_E12_host_key: the same key and a certificate for the name that was wanted,
// which ssh checks against one @cert-authority line; host keys of the origin do not come
// through.
func TestAttack_E12_host_key(t *testing.T) {
	d := startSSHD(t)
	r := newRig(t, d)
	g := r.ssh("", "-v", host, "sleep 0.3; echo in")
	g.want(t, 0, "in\n")
	if !strings.Contains(g.stderr, "Server host certificate: ssh-ed25519-cert-v01@openssh.com") {
		t.Error("no host certificate")
	}
	if strings.Contains(g.stderr, "hostkeys-00") || strings.Contains(readFile(t, r.dir+"/known_hosts"), publicLine(t, d.hostKey)) {
		t.Error("the origin's host keys came through")
	}
	// Not good for another name, not with another CA.
	if g := r.ssh("", "-o", "HostKeyAlias=evil.test", host, "echo in"); g.status != 255 || g.stdout != "" {
		t.Errorf("%+v", g)
	}
	other := newRig(t, d)
	r.ca = other.ca
	if g := r.ssh("", host, "echo in"); g.status != 255 || g.stdout != "" {
		t.Errorf("%+v", g)
	}
	t.Run("asked to prove keys", func(t *testing.T) {
		ok, _, err := other.client().SendRequest("hostkeys-prove-00@openssh.com", true, []byte("x"))
		if ok || err != nil {
			t.Errorf("%v %v", ok, err)
		}
	})
}

// TestAttack_E13_banner: the origin's banner comes without escape sequences, and short.
func TestAttack_E13_banner(t *testing.T) {
	o := newOrigin(t)
	o.config.BannerCallback = func(ssh.ConnMetadata) string {
		return "hello\x1b[2J\x1b]0;x\x07\r\n\u202eevil\u0085\x9b\n" + strings.Repeat("long ", 10<<10)
	}
	r := o.rig()
	var mu sync.Mutex
	var got string
	c := r.clientConfig()
	c.BannerCallback = func(m string) error { mu.Lock(); defer mu.Unlock(); got += m; return nil }
	conn, err := r.tryClient(c)
	if err != nil {
		t.Fatal(err)
	}
	_ = conn.Close()
	mu.Lock()
	defer mu.Unlock()
	if !strings.HasPrefix(got, "hello[2J]0;x\nevil\nlong ") || len(got) > maxBanner {
		t.Errorf("%d bytes: %q", len(got), got[:min(len(got), 100)])
	}
	if text := oneLine("a\nb\x1bc\u202ed", 100); text != "a bcd" {
		t.Errorf("%q", text)
	}
}
