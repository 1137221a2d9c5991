package policy

import (
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"net/netip"
	"slices"
)

var (
	// ErrUnknownClient: neither a token nor the address identifies a sandbox.
	ErrUnknownClient = errors.New("client is not a known sandbox")
	// ErrTokenMismatch: a token was sent that is not the named sandbox's, or that of a
	// sandbox other than the one the address identifies.
	ErrTokenMismatch = errors.New("client's token does not match")
)

// identities finds a sandbox by address, longest prefix first, and knows the tokens.
type identities struct {
	prefixes     map[netip.Prefix]*Sandbox
	bits4, bits6 []uint8 // prefix lengths, longest first
	tokens       map[*Sandbox][][32]byte
}

// Identify finds the sandbox behind a connection from src that sent user and token
// as proxy credentials (token "" when it sent none). A token must be one of the
// sandbox named user (compared by SHA-256, in constant time), and then the address
// may not identify another; a wrong token is never made good by the address. Without
// one the sandbox with the longest sourceCIDR that contains src is taken, and user, if
// sent at all, must name it. Errors: ErrUnknownClient, ErrTokenMismatch. It does not
// allocate.
func (s *Set) Identify(src netip.Addr, user, token string) (*Sandbox, error) {
	if s == nil {
		return nil, ErrUnknownClient
	}
	byAddr := s.sources.lookup(plainAddr(src))
	if token == "" {
		switch {
		case byAddr == nil:
			return nil, ErrUnknownClient
		case user != "" && user != byAddr.ID:
			return nil, ErrTokenMismatch
		}
		return byAddr, nil
	}
	named := s.byID[user]
	if !s.sources.holds(named, token) || byAddr != nil && byAddr != named {
		return nil, ErrTokenMismatch
	}
	return named, nil
}

func (ids *identities) lookup(src netip.Addr) *Sandbox {
	if !src.IsValid() {
		return nil
	}
	lengths := ids.bits4
	if src.Is6() {
		lengths = ids.bits6
	}
	for _, n := range lengths {
		p, err := src.Prefix(int(n))
		if err != nil {
			continue
		}
		if sb, ok := ids.prefixes[p]; ok {
			return sb
		}
	}
	return nil
}

// holds compares with every token of the sandbox, so that the time tells nothing; a
// sandbox that does not exist costs a comparison too.
func (ids *identities) holds(sb *Sandbox, token string) bool {
	sum := sha256.Sum256([]byte(token))
	match := 0
	for _, want := range ids.tokens[sb] {
		match |= subtle.ConstantTimeCompare(sum[:], want[:])
	}
	var none [32]byte
	subtle.ConstantTimeCompare(sum[:], none[:])
	return sb != nil && match == 1
}

type identityBuilder struct {
	prefixes map[netip.Prefix]cidrOwner
	tokens   map[[32]byte]place
	ids      identities
}

type cidrOwner struct {
	at place
	sb *Sandbox
}

func newIdentityBuilder() *identityBuilder {
	return &identityBuilder{
		prefixes: map[netip.Prefix]cidrOwner{}, tokens: map[[32]byte]place{},
		ids: identities{prefixes: map[netip.Prefix]*Sandbox{}, tokens: map[*Sandbox][][32]byte{}},
	}
}

func (b *identityBuilder) add(c *compiler, s *sandboxDecl, sb *Sandbox) {
	for _, cidr := range s.cidrs {
		if first, dup := b.prefixes[cidr.prefix]; dup {
			c.fail(cidr.at, "%s identifies a sandbox already, %s at %s", cidr.prefix, show(first.sb.ID), first.at)
			continue
		}
		b.prefixes[cidr.prefix] = cidrOwner{cidr.at, sb}
		b.ids.prefixes[cidr.prefix] = sb
	}
	for _, t := range s.tokens {
		if first, dup := b.tokens[t.sum]; dup {
			c.fail(t.at, "the same token stands already at %s", first)
			continue
		}
		b.tokens[t.sum] = t.at
		b.ids.tokens[sb] = append(b.ids.tokens[sb], t.sum)
	}
}

func (b *identityBuilder) build() identities {
	for p := range b.prefixes {
		lengths := &b.ids.bits4
		if p.Addr().Is6() {
			lengths = &b.ids.bits6
		}
		if n := uint8(p.Bits()); !slices.Contains(*lengths, n) {
			*lengths = append(*lengths, n)
		}
	}
	for _, l := range [][]uint8{b.ids.bits4, b.ids.bits6} {
		slices.SortFunc(l, func(a, b uint8) int { return int(b) - int(a) })
	}
	return b.ids
}
