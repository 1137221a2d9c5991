package certs

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
)

// ErrBadHost: a leaf was asked for something that is neither an LDH name nor an address.
var ErrBadHost = errors.New("host is not a name or an address that a certificate can be made for")

// checkHost takes a DNS name of letters, digits and hyphens (RFC 1123 section 2.1, at most
// 253 bytes, labels of 1 to 63) or an address in canonical form without a zone. It
// returns the name in lower case and, for an address, the address. A name whose last
// label is a number is refused: some would read it as an address.
func checkHost(host string) (name string, addr netip.Addr, err error) {
	if addr, err := netip.ParseAddr(host); err == nil {
		if addr.Zone() != "" || addr.Is4In6() || addr.String() != host {
			return "", netip.Addr{}, fmt.Errorf("%w: address is not in canonical form", ErrBadHost)
		}
		return host, addr, nil
	}
	if len(host) == 0 || len(host) > 253 {
		return "", netip.Addr{}, fmt.Errorf("%w: it has %d bytes", ErrBadHost, len(host))
	}
	last := ""
	for label := range strings.SplitSeq(host, ".") {
		if !isLDH(label) {
			return "", netip.Addr{}, fmt.Errorf("%w: a label is not letters, digits and hyphens", ErrBadHost)
		}
		last = label
	}
	if isNumber(last) {
		return "", netip.Addr{}, fmt.Errorf("%w: its last label is a number", ErrBadHost)
	}
	return strings.ToLower(host), netip.Addr{}, nil
}

func isLDH(label string) bool {
	if len(label) == 0 || len(label) > 63 || label[0] == '-' || label[len(label)-1] == '-' {
		return false
	}
	for i := range len(label) {
		c := label[i]
		if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && c != '-' {
			return false
		}
	}
	return true
}

// isNumber knows what inet_aton would read: decimal, octal and hexadecimal.
func isNumber(label string) bool {
	if len(label) >= 2 && label[0] == '0' && label[1]|0x20 == 'x' {
		return strings.Trim(label[2:], "0123456789abcdefABCDEF") == ""
	}
	return strings.Trim(label, "0123456789") == ""
}
