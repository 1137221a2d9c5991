package source

import (
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"golang.org/x/net/idna"
)

// ErrDestination: a pattern of allowedDestinations that is not one.
var ErrDestination = errors.New(`must be a host, "*.host" or either with ":port"`)

// Destinations bound where material may be sent. The zero value, of an empty list,
// bounds nothing. Immutable.
type Destinations struct{ patterns []destination }

type destination struct {
	host string // canonical; of a wildcard without "*."
	wild bool
	port uint16 // 0: any
}

// ParseDestinations reads allowedDestinations: "host", "*.host" (the host and every
// name below it, as in policy), either with ":port"; addresses as they are, IPv6 with
// a port in brackets. The error names the pattern by its place, from 0.
func ParseDestinations(list []string) (Destinations, error) {
	var out Destinations
	for i, text := range list {
		d, ok := parseDestination(text)
		if !ok {
			return Destinations{}, fmt.Errorf("allowedDestinations.%d %w", i, ErrDestination)
		}
		out.patterns = append(out.patterns, d)
	}
	return out, nil
}

func parseDestination(text string) (destination, bool) {
	var d destination
	host := text
	if addr, err := netip.ParseAddr(text); err == nil && addr.Zone() == "" {
		return destination{host: addr.Unmap().String()}, true
	}
	if at := strings.LastIndexByte(text, ':'); at >= 0 && !strings.HasSuffix(text, "]") {
		port, err := strconv.ParseUint(text[at+1:], 10, 16)
		if err != nil || port == 0 {
			return d, false
		}
		host, d.port = text[:at], uint16(port)
	}
	if inner, ok := strings.CutPrefix(host, "["); ok {
		inner, ok = strings.CutSuffix(inner, "]")
		addr, err := netip.ParseAddr(inner)
		if !ok || err != nil || !addr.Is6() || addr.Zone() != "" {
			return d, false
		}
		d.host = addr.Unmap().String()
		return d, true
	}
	host, d.wild = strings.CutPrefix(host, "*.")
	if addr, err := netip.ParseAddr(host); err == nil {
		d.host = addr.String()
		return d, addr.Is4() && !d.wild
	}
	var ok bool
	d.host, ok = canonicalName(host)
	return d, ok
}

// canonicalName is lower case, IDNA in ASCII, without a trailing dot.
func canonicalName(name string) (string, bool) {
	name, err := idna.Lookup.ToASCII(strings.TrimSuffix(name, "."))
	if err != nil || name == "" || len(name) > 253 {
		return "", false
	}
	name = strings.ToLower(name)
	for label := range strings.SplitSeq(name, ".") {
		if label == "" || len(label) > 63 {
			return "", false
		}
		for _, c := range []byte(label) {
			if c != '-' && c != '_' && (c < '0' || c > '9') && (c < 'a' || c > 'z') {
				return "", false
			}
		}
	}
	// "2130706433", "0x7f.1": a name whose last label is a number is an address
	// in disguise for some resolvers.
	last := name[strings.LastIndexByte(name, '.')+1:]
	if last[0] >= '0' && last[0] <= '9' {
		return "", false
	}
	return name, true
}

// Allow tells whether material may go to host (canonical, as policy has it) and port.
func (d Destinations) Allow(host string, port uint16) bool {
	for _, p := range d.patterns {
		if (p.port == 0 || p.port == port) && p.covers(host) {
			return true
		}
	}
	return len(d.patterns) == 0
}

func (p destination) covers(host string) bool {
	if host == p.host {
		return true
	}
	rest, ok := strings.CutSuffix(host, p.host)
	return p.wild && ok && len(rest) > 1 && strings.HasSuffix(rest, ".")
}

// Outside are those of a rule's domain patterns ("host", "*.host", "*") that the
// bound does not wholly contain, whatever the port. Nil when nothing is bounded.
func (d Destinations) Outside(domains []string) []string {
	var out []string
	for _, domain := range domains {
		if len(d.patterns) > 0 && !d.contains(domain) {
			out = append(out, domain)
		}
	}
	return out
}

func (d Destinations) contains(domain string) bool {
	host, wild := strings.CutPrefix(domain, "*.")
	if canonical, ok := canonicalName(host); ok {
		host = canonical
	}
	for _, p := range d.patterns {
		if p.covers(host) && (p.wild || !wild) {
			return true
		}
	}
	return false
}
