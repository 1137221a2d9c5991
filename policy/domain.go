package policy

import (
	"errors"
	"net/netip"
	"strings"
	"unicode/utf8"

	"golang.org/x/net/idna"
	"golang.org/x/net/publicsuffix"
)

// ErrBadHost is what CanonicalHost and ParseDomainPattern answer; it never repeats
// the input.
var ErrBadHost = errors.New("not a host name or an address in canonical form")

var (
	errPattern = errors.New(`not a domain, "*." and a domain, or "*"`)
	errAddress = errors.New("an address is not a domain: use cidrs")
)

const maxHostLen = 253

// toASCII maps what people type to what DNS carries (UTS #46, non-transitional). LDH
// and hyphens are checked by validName, which also lets '_' through.
var toASCII = idna.New(idna.MapForLookup(), idna.Transitional(false), idna.StrictDomainName(false),
	idna.CheckHyphens(false), idna.CheckJoiners(true), idna.BidiRule(), idna.VerifyDNSLength(false))

// CanonicalHost is the one spelling of a destination: a name in lower-case ASCII
// (IDNA applied) without its trailing dot, labels of letters, digits, '-' and '_' of
// at most 63 bytes, 253 in all, the last of them no number (WHATWG URL, "ends in a
// number"); or an address as netip prints it, without brackets, IPv4-mapped IPv6 as
// IPv4. Anything else is ErrBadHost: octal, hex, short and integer forms of IPv4, zone ids,
// percent signs, NUL, a port. It returns canonical input without allocating.
func CanonicalHost(h string) (string, error) {
	if h == "" || len(h) > 4*maxHostLen {
		return "", ErrBadHost
	}
	if h[0] == '[' || strings.IndexByte(h, ':') >= 0 {
		return canonicalIPv6(h)
	}
	if looksNumeric(h) {
		addr, err := netip.ParseAddr(h)
		if err != nil || !addr.Is4() {
			return "", ErrBadHost
		}
		return h, nil
	}
	name, err := asciiName(h)
	if err != nil || !validName(name) {
		return "", ErrBadHost
	}
	return name, nil
}

func canonicalIPv6(h string) (string, error) {
	if h[0] == '[' {
		if h[len(h)-1] != ']' {
			return "", ErrBadHost
		}
		h = h[1 : len(h)-1]
	}
	addr, err := netip.ParseAddr(h)
	if err != nil || !addr.Is6() || addr.Zone() != "" {
		return "", ErrBadHost
	}
	if addr.Is4In6() {
		return addr.Unmap().String(), nil
	}
	var buf [40]byte
	if string(addr.AppendTo(buf[:0])) == h {
		return h, nil
	}
	return addr.String(), nil
}

// asciiName lower-cases, applies IDNA and strips one trailing dot.
func asciiName(h string) (string, error) {
	ascii, upper := true, false
	for i := range len(h) {
		ascii = ascii && h[i] < 0x80
		upper = upper || h[i] >= 'A' && h[i] <= 'Z'
	}
	if upper && ascii {
		h = strings.ToLower(h)
	}
	if !ascii || hasALabel(h) {
		mapped, err := toASCII.ToASCII(h)
		if err != nil || !utf8.ValidString(h) {
			return "", ErrBadHost
		}
		// What the mapping made must be a fixed point of it.
		if again, err := toASCII.ToASCII(mapped); err != nil || again != mapped {
			return "", ErrBadHost
		}
		h = mapped
	}
	return strings.TrimSuffix(h, "."), nil
}

// hasALabel reports an "xn--" label, whose Punycode must be checked.
func hasALabel(h string) bool {
	return strings.HasPrefix(h, "xn--") || strings.Contains(h, ".xn--")
}

// looksNumeric reports a string of digits and dots, without a trailing dot to hide
// behind.
func looksNumeric(h string) bool {
	for i := range len(h) {
		if h[i] != '.' && (h[i] < '0' || h[i] > '9') {
			return false
		}
	}
	return h[len(h)-1] != '.'
}

// validName checks a lower-case name label by label.
func validName(h string) bool {
	if h == "" || len(h) > maxHostLen {
		return false
	}
	for {
		label, rest, more := strings.Cut(h, ".")
		if !validLabel(label) {
			return false
		}
		if !more {
			return !numericLabel(label)
		}
		h = rest
	}
}

func validLabel(l string) bool {
	if l == "" || len(l) > 63 || l[0] == '-' || l[len(l)-1] == '-' {
		return false
	}
	for i := range len(l) {
		c := l[i]
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' && c != '_' {
			return false
		}
	}
	return true
}

// numericLabel reports a last label that some resolver would read as a number.
func numericLabel(l string) bool {
	if strings.HasPrefix(l, "0x") {
		return true
	}
	for i := range len(l) {
		if l[i] < '0' || l[i] > '9' {
			return false
		}
	}
	return true
}

// isAddress tells a canonical address from a canonical name without allocating.
func isAddress(host string) bool {
	return strings.IndexByte(host, ':') >= 0 || host != "" && looksNumeric(host)
}

// IsSpecialName reports a canonical name that means something only locally: one with
// a single label, localhost, and all below localhost, local, internal and home.arpa (RFC
// 8375). Decide refuses them unless a traffic rule names them.
func IsSpecialName(host string) bool {
	if isAddress(host) {
		return false
	}
	if host == "home.arpa" || strings.HasSuffix(host, ".home.arpa") {
		return true
	}
	switch last := host[strings.LastIndexByte(host, '.')+1:]; last {
	case "localhost", "local", "internal":
		return true
	default:
		return len(last) == len(host)
	}
}

// DomainPattern is a compiled pattern: a name, "*." and a name (every name below it at
// any depth, and itself), or "*" (every name). None matches an address. The zero
// value matches nothing.
type DomainPattern struct {
	name string // canonical; "" for "*" and for the zero value
	kind patternKind
}

type patternKind uint8

const (
	matchNothing patternKind = iota
	matchExact
	matchBelow // the name and all below it
	matchAll
)

// ParseDomainPattern compiles s. Wildcards stand for whole labels at the left end
// only.
func ParseDomainPattern(s string) (DomainPattern, error) {
	if s == "*" {
		return DomainPattern{kind: matchAll}, nil
	}
	name, below := strings.CutPrefix(s, "*.")
	host, err := CanonicalHost(name)
	if err != nil {
		return DomainPattern{}, errPattern
	}
	if isAddress(host) {
		return DomainPattern{}, errAddress
	}
	if below {
		return DomainPattern{name: host, kind: matchBelow}, nil
	}
	return DomainPattern{name: host, kind: matchExact}, nil
}

// Match reports whether a canonical host matches.
func (p DomainPattern) Match(host string) bool {
	if host == "" || isAddress(host) {
		return false
	}
	switch p.kind {
	case matchExact:
		return host == p.name
	case matchBelow:
		return host == p.name || below(host, p.name)
	case matchAll:
		return true
	}
	return false
}

// below reports a host with at least one whole, non-empty label in front of suffix.
func below(host, suffix string) bool {
	n := len(host) - len(suffix) - 1
	return n > 0 && host[n] == '.' && host[n-1] != '.' && host[0] != '.' && host[n+1:] == suffix
}

// String gives the pattern as it is compared.
func (p DomainPattern) String() string {
	switch p.kind {
	case matchAll:
		return "*"
	case matchBelow:
		return "*." + p.name
	}
	return p.name
}

// overPublicSuffix reports a wildcard under which unrelated people register names,
// by the public suffix list with its private section.
func (p DomainPattern) overPublicSuffix() bool {
	if p.kind == matchAll {
		return true
	}
	if p.kind != matchBelow {
		return false
	}
	if suffix, _ := publicsuffix.PublicSuffix(p.name); suffix == p.name {
		return true
	}
	// A wildcard entry of the list ("*.ck") makes every name below p a suffix.
	probe := "x--any." + p.name
	suffix, _ := publicsuffix.PublicSuffix(probe)
	return suffix == probe
}

// overlaps reports whether some host matches both.
func (p DomainPattern) overlaps(q DomainPattern) bool {
	return p.kind == matchAll || q.kind == matchAll || p.Match(q.name) || q.Match(p.name)
}
