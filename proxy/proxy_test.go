package proxy_test

import (
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"fmt"
	"net/http"
	"strings"
	"testing"
)

func tokenHash(token string) string {
	h := sha256.Sum256([]byte(token))
	return "sha256:" + hex.EncodeToString(h[:])
}

func (s *stack) roots() *x509.CertPool {
	p := x509.NewCertPool()
	p.AddCert(s.ca.Cert())
	p.AddCert(s.bed.CA.Cert) // for what is passed through
	return p
}

func TestRequestLeavesWithTheCredential(t *testing.T) {
	s := newStack(t, "", options{})
	s.put("acme", "gh-source", "static_headers", headerSpec(canary))
	s.use(basePolicy)
	s.bed.Good.SetBearer(canary)
	for _, h2 := range []bool{false, true} {
		t.Run(fmt.Sprintf("h2=%v", h2), func(t *testing.T) {
			c := s.client("one", tokenOne, h2)
			a := get(t, c, s.bed.Good.URL("/bearer"))
			if a.err != nil || a.status != http.StatusOK {
				t.Fatalf("got %+v", a)
			}
			if last := s.bed.Good.Last(t); last.Header.Get("Authorization") != "Bearer "+canary {
				t.Fatalf("origin saw %v", last.Header)
			}
			a = get(t, s.client("two", tokenTwo, h2), s.bed.Good.URL("/bearer"))
			if a.status != http.StatusUnauthorized {
				t.Fatalf("sandbox two without a credential got %+v", a)
			}
		})
	}
}

func TestRotationReachesTheNextRequestOnTheSameConnection(t *testing.T) {
	s := newStack(t, "", options{})
	s.put("acme", "gh-source", "static_headers", headerSpec("first"))
	s.use(basePolicy)
	c := s.one()
	for i := range 20 {
		want := fmt.Sprintf("value-%d", i)
		s.put("acme", "gh-source", "static_headers", headerSpec(want))
		if a := get(t, c, s.bed.Good.URL("/echo")); !strings.Contains(a.body, "Bearer "+want) {
			t.Fatalf("round %d: %+v", i, a)
		}
	}
}

func TestUnknownClientAndDeniedDestination(t *testing.T) {
	s := newStack(t, basePolicy, options{})
	for _, c := range []struct {
		user, token, target string
		want                int
	}{
		{"one", "", "good.test:443", http.StatusProxyAuthRequired},
		{"one", "wrong", "good.test:443", http.StatusProxyAuthRequired},
		{"two", tokenOne, "good.test:443", http.StatusProxyAuthRequired},
		{"one", tokenOne, "other.test:443", http.StatusForbidden},
		{"one", tokenOne, "good.test", http.StatusBadRequest},
		{"one", tokenOne, "good.test:443", http.StatusOK},
	} {
		if got, _, _ := s.connect(c.target, c.user, c.token); got != c.want {
			t.Errorf("%+v: got %d", c, got)
		}
	}
}

const basicPolicy = `
apiVersion: egressd/v1
sandboxes:
  - id: one
    team: acme
    identify: {proxyTokens: ["TOKENONE"]}
    network:
      egress:
        trafficRules: [{name: good, action: allow, domains: [good.test]}]
        credentialRules: [{name: login, credentialRef: login, domains: [good.test]}]
      credentialBindings:
        - {ref: login, sourceRef: login-source, projection: {type: username_password}}
`

func TestUserNameAndPasswordAsBasic(t *testing.T) {
	s := newStack(t, "", options{})
	s.put("acme", "login-source", "static_username_password", basicSpec("robot", canary))
	s.use(basicPolicy)
	s.bed.Good.SetBasic("robot", canary)
	for _, h2 := range []bool{false, true} {
		own := func(r *http.Request) { r.SetBasicAuth("somebody", "else") }
		if a := do(t, s.client("one", tokenOne, h2), http.MethodGet, s.bed.Good.URL("/basic"), own); a.status != http.StatusOK {
			t.Errorf("h2=%v: %+v", h2, a)
		}
	}
	s.put("acme", "login-source", "static_username_password", basicSpec("robot", "changed"))
	if a := get(t, s.one(), s.bed.Good.URL("/basic")); a.status != http.StatusUnauthorized {
		t.Errorf("with the wrong password: %+v", a)
	}
}
