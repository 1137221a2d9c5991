package inject

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/crypto/ssh"

	"github.com/egressd/egressd/internal/secret"
	"github.com/egressd/egressd/policy"
	"github.com/egressd/egressd/source"
	"github.com/egressd/egressd/source/static"
)

func typed(p policy.ProjectionType) *policy.CredentialRule {
	r := rule(0)
	r.Binding.Projection.Type = p
	return r
}

func sshSigner(t testing.TB) ssh.Signer {
	t.Helper()
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	s, err := ssh.NewSignerFromKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func authorized(key ssh.PublicKey) string {
	return strings.TrimSpace(string(ssh.MarshalAuthorizedKey(key)))
}

// sshRule lets the given key in and knows the given host key of good.test.
func sshRule(sandbox, host ssh.PublicKey) *policy.CredentialRule {
	r := typed(policy.SSHProxy)
	r.Binding.Projection.SSH = policy.SSHLogin{
		SandboxPublicKeys: []string{authorized(sandbox) + " me@sandbox"}, UpstreamUsername: "git",
		KnownHosts: []string{"good.test " + authorized(host)}, KnownHostsLine: 31,
	}
	return r
}

func TestLogin(t *testing.T) {
	f := serve(material(1, map[string]string{"username": "me", "password": "p:é"}))
	in := injector(t, f, typed(policy.UsernamePassword))
	p, err := in.Resolve(t.Context(), "good.test", 6379)
	if err != nil || p.Login == nil || p.Login.Username != "me" || p.Login.Password.Reveal() != "p:é" {
		t.Fatalf("%v, %v", p, err)
	}
	if len(p.Headers) != 1 || p.Headers[0].Value != "Basic "+b64("me:p:é") || p.SSH != nil || p.AWS != nil || p.Placeholders != nil {
		t.Error("the projection for http has changed")
	}
	long := strings.Repeat("CANARY", 20000)
	for name, values := range map[string]map[string]string{
		"C13 NUL in the password":  {"username": "u", "password": "CANARY\x00x"},
		"C13 NUL in the user name": {"username": "CANARY\x00", "password": "p"},
		"C13 120 KB password":      {"username": "u", "password": long},
		"C13 120 KB user name":     {"username": long, "password": "p"},
		"C13 over a header's line": {"username": "u", "password": long[:15000]},
		"colon":                    {"username": "CANARY:x", "password": "p"},
		"no user name":             {"username": "", "password": "CANARY"},
		"no password":              {"username": "CANARY"},
	} {
		t.Run(name, func(t *testing.T) {
			f.material.Store(material(2, values))
			p, err := in.Resolve(t.Context(), "good.test", 6379)
			code(t, err, CodeSourceInvalid)
			if p != nil {
				t.Error("a projection beside the error")
			}
		})
	}
}

func TestSSHLogin(t *testing.T) {
	signer, sandbox, host := sshSigner(t), sshSigner(t).PublicKey(), sshSigner(t).PublicKey()
	m := material(1, nil)
	m.SSH = signer
	f := serve(m)
	in := injector(t, f, sshRule(sandbox, host))
	p, err := in.Resolve(t.Context(), "good.test", 22)
	if err != nil || p.SSH == nil || p.SSH.Username != "git" || p.SSH.Signer != signer || len(p.SSH.SandboxKeys) != 1 || authorized(p.SSH.SandboxKeys[0]) != authorized(sandbox) {
		t.Fatalf("%v, %v", p, err)
	}
	if err := p.SSH.KnownHosts.Check("good.test", 22, host); err != nil {
		t.Error(err)
	}
	if err := p.SSH.KnownHosts.Check("good.test", 22, sandbox); err == nil {
		t.Error("a foreign host key was accepted")
	}
	// The lines are read once for a binding, not for each version.
	m2 := material(2, nil)
	m2.SSH = sshSigner(t)
	f.material.Store(m2)
	p2, err := in.Resolve(t.Context(), "good.test", 22)
	if err != nil || p2.SSH.KnownHosts != p.SSH.KnownHosts || p2.SSH.Signer != m2.SSH {
		t.Errorf("%v, %v", p2, err)
	}
	if p.Secrets() != nil || len(p.Headers) != 0 {
		t.Error("a login by key has nothing that is sent")
	}
	f.material.Store(material(3, map[string]string{"token": "x"}))
	_, err = in.Resolve(t.Context(), "good.test", 22)
	code(t, err, CodeSourceInvalid)
}

func TestSSHRulesThatAreRefused(t *testing.T) {
	key := sshSigner(t).PublicKey()
	weak, err := rsa.GenerateKey(rand.Reader, 1024)
	if err != nil {
		t.Fatal(err)
	}
	weakKey, err := ssh.NewPublicKey(&weak.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	ca := sshSigner(t)
	cert := &ssh.Certificate{Key: key, CertType: ssh.UserCert, ValidBefore: ssh.CertTimeInfinity}
	if err := cert.SignCert(rand.Reader, ca); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name   string
		change func(*policy.SSHLogin)
		want   string
	}{
		{"nobody may come in", func(s *policy.SSHLogin) { s.SandboxPublicKeys = nil }, "p.yaml:7:0: binding gh: projection has no sandboxPublicKeys"},
		{"no host is known", func(s *policy.SSHLogin) { s.KnownHosts = nil }, "p.yaml:31:0: binding gh: projection has no knownHosts"},
		{"host line", func(s *policy.SSHLogin) { s.KnownHosts = append(s.KnownHosts, "good.test nonsense") }, "p.yaml:31:0: binding gh: known_hosts line 2"},
		{"no key", func(s *policy.SSHLogin) { s.SandboxPublicKeys[0] = "ssh-ed25519 AAAA" }, "sandboxPublicKeys.0: is not an authorized_keys line"},
		{"two lines", func(s *policy.SSHLogin) { s.SandboxPublicKeys[0] += "\n" + authorized(key) }, "more than one line"},
		{"options", func(s *policy.SSHLogin) { s.SandboxPublicKeys[0] = `from="10.0.0.1" ` + authorized(key) }, "has options"},
		{"weak", func(s *policy.SSHLogin) { s.SandboxPublicKeys[0] = authorized(weakKey) }, "less than 2048 bits"},
		{"certificate", func(s *policy.SSHLogin) { s.SandboxPublicKeys[0] = authorized(cert) }, "is not supported"},
		{"no user name", func(s *policy.SSHLogin) { s.UpstreamUsername = "" }, "upstreamUsername"},
		{"C13 user name", func(s *policy.SSHLogin) { s.UpstreamUsername = "git\nx" }, "upstreamUsername"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := sshRule(key, key)
			tc.change(&r.Binding.Projection.SSH)
			table, err := compile([]*policy.CredentialRule{r}, serve(nil), kind(static.SSHPrivateKey))
			if err == nil || !strings.Contains(err.Error(), tc.want) || table != nil {
				t.Errorf("%v, want %s", err, tc.want)
			}
		})
	}
}

func TestAWSKeys(t *testing.T) {
	r := typed(policy.AWSSigV4)
	r.Binding.Projection.AWS = policy.AWSBounds{Region: "eu-central-1", Service: "s3"}
	f := serve(material(1, map[string]string{"accessKeyId": "FAKEKEYID", "secretAccessKey": "fake-secret-key"}))
	in := injector(t, f, r)
	p, err := in.Resolve(t.Context(), "good.test", 443)
	if err != nil || p.AWS == nil {
		t.Fatalf("%v, %v", p, err)
	}
	if a := p.AWS; a.AccessKeyID != "FAKEKEYID" || a.SecretAccessKey.Reveal() != "fake-secret-key" || a.SessionToken.Len() != 0 || a.Region != "eu-central-1" || a.Service != "s3" {
		t.Errorf("%v", a)
	}
	for name, values := range map[string]map[string]string{
		"C13 CRLF in the secret": {"accessKeyId": "FAKEKEYID", "secretAccessKey": "CANARY\r\nx"},
		"C13 LF in the token":    {"accessKeyId": "FAKEKEYID", "secretAccessKey": "x", "sessionToken": "CANARY\n"},
		"C13 NUL in the id":      {"accessKeyId": "CANARY\x00", "secretAccessKey": "x"},
		"a scope in the id":      {"accessKeyId": "CANARY/20260101", "secretAccessKey": "x"},
		"no secret":              {"accessKeyId": "CANARY"},
		"no id":                  {"secretAccessKey": "CANARY"},
		"nothing":                {"token": "CANARY"},
	} {
		t.Run(name, func(t *testing.T) {
			f.material.Store(material(2, values))
			p, err := in.Resolve(t.Context(), "good.test", 443)
			code(t, err, CodeSourceInvalid)
			if p != nil {
				t.Error("a projection beside the error")
			}
		})
	}
}

func TestSecrets(t *testing.T) {
	resolve := func(r *policy.CredentialRule, notSecret []string, values map[string]string) []string {
		t.Helper()
		m := material(1, values)
		m.NotSecret = notSecret
		p, err := injector(t, serve(m), r).Resolve(t.Context(), "good.test", 443)
		if err != nil {
			t.Fatal(err)
		}
		var out []string
		for _, s := range p.Secrets() {
			out = append(out, s.Reveal())
		}
		return out
	}
	login := map[string]string{"username": "a-user-name", "password": "fake-password"}
	for _, tc := range []struct {
		name string
		got  []string
		want []string
	}{
		{"header", resolve(rule(0, "Authorization: Bearer {{ .token }}", "X-Same: {{ .token }}"), nil, map[string]string{"token": "fake-token", "unused": "fake-unused"}),
			[]string{"Bearer fake-token", "fake-token"}},
		{"made of two", resolve(rule(0, `Authorization: Token {{ printf "%s:%s" .a .b | b64enc }}`), nil, map[string]string{"a": "fake-a", "b": "short"}),
			[]string{"Token " + b64("fake-a:short"), b64("fake-a:short"), "fake-a"}},
		{"no field", resolve(rule(0, "X-Version: 2026-01-01-long"), nil, map[string]string{"token": "fake-token"}), nil},
		{"only a name", resolve(rule(0, "X-User: {{ .username }}"), []string{"username"}, login), nil},
		{"short", resolve(rule(0, "X-Key: {{ .token }}"), nil, map[string]string{"token": "12345"}), nil},
		{"login", resolve(typed(policy.UsernamePassword), []string{"username"}, login),
			[]string{"Basic " + b64("a-user-name:fake-password"), b64("a-user-name:fake-password"), "fake-password"}},
		{"placeholders", resolve(substitution(replacement(ph, "{{ .a }}", policy.InBody), replacement(ph2, "Bearer {{ .b | upper }}", policy.InHeader)), nil,
			map[string]string{"a": "fake-a", "b": "fake-bb", "c": "fake-c"}), []string{"Bearer FAKE-BB", "FAKE-BB", "fake-bb", "fake-a"}},
		{"aws", resolve(typed(policy.AWSSigV4), nil, map[string]string{"accessKeyId": "FAKEKEYID", "secretAccessKey": "fake-secret-key", "sessionToken": "fake-session-token"}),
			[]string{"fake-session-token", "fake-secret-key"}},
	} {
		if diff := cmp.Diff(tc.want, tc.got); diff != "" {
			t.Errorf("%s\n%s", tc.name, diff)
		}
	}
	if (*Projection)(nil).Secrets() != nil || (&Projection{}).Secrets() != nil {
		t.Error("no projection has secrets")
	}
}

// Whatever a projection holds, no way of printing it shows it.
func TestAttack_G08_logins_are_never_printed(t *testing.T) {
	values := map[string]string{"v": "CANARY-value", "username": "CANARY-user", "password": "CANARY-pass", "accessKeyId": "CANARY-id", "secretAccessKey": "CANARY-key"}
	m := material(1, values)
	m.SSH = sshSigner(t)
	m.KeyText = []secret.String{secret.New("CANARY-line")}
	var shown []any
	for _, r := range []*policy.CredentialRule{
		substitution(replacement(ph, "CANARY {{ .v }}", anyplace&^policy.InPath)), typed(policy.UsernamePassword), typed(policy.AWSSigV4),
		sshRule(m.SSH.PublicKey(), m.SSH.PublicKey()),
	} {
		in := injector(t, serve(m), r)
		p, err := in.Resolve(t.Context(), "good.test", 443)
		if err != nil {
			t.Fatal(err)
		}
		type hidden struct{ p any }
		shown = append(shown, p, in, p.Secrets(), struct{ P any }{p}, &hidden{p})
		switch {
		case p.Placeholders != nil:
			shown = append(shown, p.Placeholders, *p.Placeholders, []any{p.Placeholders}, struct{ P *Placeholders }{p.Placeholders}, struct{ p Placeholders }{*p.Placeholders})
		case p.Login != nil:
			shown = append(shown, p.Login, *p.Login, map[string]any{"a": p.Login}, struct{ L Login }{*p.Login})
		case p.AWS != nil:
			shown = append(shown, p.AWS, *p.AWS, struct{ K AWSKeys }{*p.AWS})
		case p.SSH != nil:
			shown = append(shown, p.SSH, *p.SSH, struct{ S SSHLogin }{*p.SSH}, []*SSHLogin{p.SSH})
		}
	}
	shown = append(shown, m, &tls.Certificate{})
	var out strings.Builder
	log := slog.New(slog.NewJSONHandler(&out, nil))
	for _, v := range shown {
		verbs := []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%d"}
		if strings.Contains(fmt.Sprintf("%T", v), "hidden") {
			verbs = verbs[:3] // fmt follows a hidden pointer for a verb that does not suit it
		}
		for _, verb := range verbs {
			fmt.Fprintf(&out, verb+"\n", v)
		}
		log.Info("x", "v", v)
		if raw, err := json.Marshal(v); err == nil {
			out.Write(raw)
		}
		func() {
			defer func() { fmt.Fprintf(&out, "%+v", recover()) }()
			panic(v)
		}()
	}
	for _, canary := range []string{"CANARY", fmt.Sprintf("%x", "CANARY"), b64("CANARY-user:")[:14], strings.Trim(fmt.Sprint([]byte("CANARY")), "[]")} {
		if strings.Contains(out.String(), canary) {
			t.Errorf("%q is shown", canary)
		}
	}
	if n := strings.Count(out.String(), "[redacted]"); n < 100 {
		t.Errorf("only %d values were shown as redacted", n)
	}
}

// Templates of replacements are held against the source as those of headers are.
func TestReplacementTemplates(t *testing.T) {
	r := substitution(replacement(ph, "{{ .username }}", policy.InBody), replacement(ph2, "{{ .token }}", policy.InHeader))
	_, err := compile([]*policy.CredentialRule{r}, serve(nil), kind(static.UsernamePassword))
	if err == nil || !strings.Contains(err.Error(), "p.yaml:21:0: binding gh: replacement 2: the source has no field token: it has username, password") {
		t.Error(err)
	}
	table, err := compile([]*policy.CredentialRule{r}, serve(nil), unknown)
	if err != nil {
		t.Fatal(err)
	}
	want := []Missing{{"username", "gh", "p.yaml", 20}, {"token", "gh", "p.yaml", 21}}
	if diff := cmp.Diff(want, table.MissingKeys("acme", "gh", []string{"other"})); diff != "" {
		t.Error(diff)
	}
	if got := table.MissingKeys("acme", "gh", []string{"token", "username"}); got != nil {
		t.Errorf("%v", got)
	}
	p, err := injector(t, serve(material(1, map[string]string{"username": "me"})), r).Resolve(t.Context(), "good.test", 443)
	code(t, err, CodeTemplateFailed)
	if p != nil || !strings.Contains(err.Error(), "replacement 2: the source has no key token") {
		t.Error(err)
	}
}

func TestEveryProjectionHasAKind(t *testing.T) {
	all := []policy.ProjectionType{policy.HTTPHeaders, policy.PlaceholderSubstitution, policy.UsernamePassword, policy.TLSClientCertificate, policy.AWSSigV4, policy.SSHProxy}
	for _, p := range all {
		if !slices.ContainsFunc(static.Kinds(), func(k source.Kind) bool { return slices.Contains(k.Projections, string(p)) }) {
			t.Errorf("no kind suits %s", p)
		}
	}
	r := typed("resend")
	if table, err := compile([]*policy.CredentialRule{r}, serve(nil), unknown); err == nil || table != nil {
		t.Error("an unknown projection compiled")
	}
	if out := (&plan{kind: "resend"}).render(material(1, nil)); out.err == nil || out.projection != nil {
		t.Error("an unknown projection was rendered")
	}
}
