package policy

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"net/netip"
	"testing"
)

func tokenHash(token string) string { return fmt.Sprintf("sha256:%x", sha256.Sum256([]byte(token))) }

func identitySet(t *testing.T) *Set {
	return compileText(t, fmt.Sprintf(`
apiVersion: egressd/v1
sandboxes:
  - {id: a, identify: {sourceCIDRs: [10.0.0.1/32, "2001:db8::/64"], proxyTokens: [%q, %q]}}
  - {id: b, team: other, identify: {sourceCIDRs: [10.0.0.2/32], proxyTokens: [%q]}}
  - {id: wide, identify: {sourceCIDRs: [10.0.0.0/8]}}
  - {id: token-only, identify: {proxyTokens: [%q]}}
  - {id: none}
`, tokenHash("token of a"), tokenHash("second of a"), tokenHash("token of b"), tokenHash("t")))
}

func TestIdentify(t *testing.T) {
	set := identitySet(t)
	for _, c := range []struct {
		name, src, user, token string
		want                   string
		err                    error
	}{
		{"by address", "10.0.0.1", "", "", "a", nil},
		{"longest prefix", "10.0.0.3", "", "", "wide", nil},
		{"mapped", "::ffff:10.0.0.2", "", "", "b", nil},
		{"ipv6", "2001:db8::77", "", "", "a", nil},
		{"zone", "2001:db8::77%eth0", "", "", "a", nil},
		{"unknown address", "192.0.2.1", "", "", "", ErrUnknownClient},
		{"user without token", "10.0.0.1", "a", "", "a", nil},
		{"another user without token", "10.0.0.1", "b", "", "", ErrTokenMismatch},
		{"unknown address, user without token", "192.0.2.1", "a", "", "", ErrUnknownClient},
		{"token", "192.0.2.1", "a", "token of a", "a", nil},
		{"second token", "192.0.2.1", "a", "second of a", "a", nil},
		{"token and own address", "10.0.0.1", "a", "token of a", "a", nil},
		{"token only", "127.0.0.1", "token-only", "t", "token-only", nil},
		{"wrong token never falls back to the address", "10.0.0.1", "a", "wrong", "", ErrTokenMismatch},
		{"token without user", "10.0.0.1", "", "token of a", "", ErrTokenMismatch},
		{"token of another user", "192.0.2.1", "b", "token of a", "", ErrTokenMismatch},
		{"unknown user", "192.0.2.1", "nobody", "token of a", "", ErrTokenMismatch},
		{"the hash is no token", "192.0.2.1", "a", tokenHash("token of a"), "", ErrTokenMismatch},
		{"a sandbox without identity", "192.0.2.1", "none", "x", "", ErrTokenMismatch},
		{"F03 token of a from the address of b", "10.0.0.2", "a", "token of a", "", ErrTokenMismatch},
		{"F03 token of a from the range of wide", "10.7.7.7", "a", "token of a", "", ErrTokenMismatch},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := set.Identify(netip.MustParseAddr(c.src), c.user, c.token)
			if !errors.Is(err, c.err) || (got != nil) != (c.want != "") || got != nil && got.ID != c.want {
				t.Errorf("got %+v, %v; want %q, %v", got, err, c.want, c.err)
			}
		})
	}
	if got, err := set.Identify(netip.Addr{}, "", ""); got != nil || !errors.Is(err, ErrUnknownClient) {
		t.Errorf("no address: %v, %v", got, err)
	}
	if sb := set.Sandbox("b"); sb.Team != "other" || set.Sandbox("a").Team != "default" {
		t.Errorf("teams: %+v", sb)
	}
}

func TestAttack_B27_no_policy_knows_and_allows_nobody(t *testing.T) {
	empty, _, err := Compile(nil)
	if err != nil {
		t.Fatal(err)
	}
	foreign := identitySet(t).Sandbox("a")
	for name, set := range map[string]*Set{"nil": nil, "zero": {}, "no files": empty} {
		t.Run(name, func(t *testing.T) {
			if sb, err := set.Identify(netip.MustParseAddr("127.0.0.1"), "a", "token of a"); sb != nil || err == nil {
				t.Errorf("identified %v", sb)
			}
			if sb, err := set.Identify(netip.MustParseAddr("127.0.0.1"), "", ""); sb != nil || !errors.Is(err, ErrUnknownClient) {
				t.Errorf("identified %v, %v", sb, err)
			}
			for _, sb := range []*Sandbox{nil, {}, {ID: "a"}, foreign} {
				for p := Undetermined; p <= SSH+3; p++ {
					f := &Flow{Sandbox: sb, Host: "good.test", Port: 443, Protocol: p, Request: p == TLS, Method: "GET", Path: "/"}
					if d := set.Decide(f); d != (Decision{Reason: ReasonUnknownSandbox}) {
						t.Errorf("decided %+v", d)
					}
					if set.LooksAtPaths(f) || set.LooksAtMethods(f) {
						t.Error("looks at requests of nobody")
					}
					set.Explain(f)
				}
			}
			if len(set.Sandboxes())+len(set.CredentialRules())+len(set.Referrers("default", "x")) != 0 || set.Sandbox("a") != nil {
				t.Error("holds something")
			}
			set.View()
		})
	}
	if (Decision{}).Action != Deny {
		t.Error("the zero decision allows")
	}
}
