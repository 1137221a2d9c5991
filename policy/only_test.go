package policy

import (
	"crypto/sha256"
	"errors"
	"net/netip"
	"testing"
)

// In a set of OnlyToken the one token is the only identity: neither the addresses nor
// the tokens of the files count, for any sandbox.
func TestOnlyToken(t *testing.T) {
	set, _, err := Compile([]File{{Name: "p.yaml", Data: []byte(`apiVersion: egressd/v1
sandboxes:
  - {id: a, identify: {sourceCIDRs: [127.0.0.0/8], proxyTokens: ["sha256:2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae"]}, network: {mode: allow-all}}
  - {id: b, identify: {sourceCIDRs: [10.0.0.0/8]}}
`)}})
	if err != nil {
		t.Fatal(err)
	}
	local := netip.MustParseAddr("127.0.0.1")
	if sb, err := set.Identify(local, "", ""); err != nil || sb.ID != "a" {
		t.Fatalf("before: %v, %v", sb, err)
	}
	only, ok := set.OnlyToken("a", sha256.Sum256([]byte("the-token")))
	if !ok {
		t.Fatal("sandbox a not found")
	}
	if sb, err := only.Identify(local, "a", "the-token"); err != nil || sb.ID != "a" {
		t.Errorf("with the token: %v, %v", sb, err)
	}
	for _, c := range []struct {
		name, addr, user, token string
		want                    error
	}{
		{"address alone", "127.0.0.1", "", "", ErrUnknownClient},
		{"address and name", "127.0.0.1", "a", "", ErrUnknownClient},
		{"the file's token", "127.0.0.1", "a", "foo", ErrTokenMismatch},
		{"another name", "127.0.0.1", "b", "the-token", ErrTokenMismatch},
		{"another sandbox's address", "10.1.1.1", "", "", ErrUnknownClient},
	} {
		if sb, err := only.Identify(netip.MustParseAddr(c.addr), c.user, c.token); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, %v; want %v", c.name, sb, err, c.want)
		}
	}
	f := Flow{Sandbox: only.Sandbox("a"), Host: "example.com", Port: 443, Protocol: TLS}
	if d := only.Decide(&f); d.Action != Pass {
		t.Errorf("the rules are gone: %v", d)
	}
	if sb, err := set.Identify(local, "", ""); err != nil || sb.ID != "a" {
		t.Errorf("the set itself changed: %v, %v", sb, err)
	}
	if _, ok := set.OnlyToken("none", [32]byte{}); ok {
		t.Error("a sandbox that does not exist was found")
	}
}
