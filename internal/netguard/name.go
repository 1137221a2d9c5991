package netguard

import (
	"fmt"
	"strings"
)

// canonical is name in lower case without its trailing dot, if it is a DNS name of
// letters, digits, hyphens and underscores (service names have them) whose last label is
// no number: those are addresses to somebody.
func canonical(name string) (string, error) {
	name = strings.ToLower(strings.TrimSuffix(name, "."))
	if len(name) == 0 || len(name) > 253 {
		return "", fmt.Errorf("%w: it has %d bytes", ErrBadName, len(name))
	}
	last := ""
	for label := range strings.SplitSeq(name, ".") {
		if len(label) == 0 || len(label) > 63 || !plain(label) {
			return "", fmt.Errorf("%w: a label is empty, too long or has other bytes than letters, digits, - and _", ErrBadName)
		}
		last = label
	}
	if isNumber(last) {
		return "", fmt.Errorf("%w: its last label is a number", ErrBadName)
	}
	return name, nil
}

func plain(label string) bool {
	for i := range len(label) {
		c := label[i]
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' && c != '_' {
			return false
		}
	}
	return true
}

// isNumber knows what inet_aton would read: decimal, octal and hexadecimal.
func isNumber(label string) bool {
	if hex, ok := strings.CutPrefix(label, "0x"); ok {
		return strings.Trim(hex, "0123456789abcdef") == ""
	}
	return strings.Trim(label, "0123456789") == ""
}

// neverAsked are names that no DNS server may answer for: names of one label, which only
// search domains give a meaning, and localhost (RFC 6761 section 6.3).
func neverAsked(name string) bool {
	return !strings.Contains(name, ".") || strings.HasSuffix(name, ".localhost")
}

// SpecialName says that a canonical name belongs to a network of somebody's own and not
// to the public DNS: one label, localhost, .local (RFC 6762) and .internal, home.arpa
// (RFC 8375). Such a name should be reachable only where a rule names it. Lookup itself
// refuses the first two and asks DNS for the others; what the answer may be is Check's.
func SpecialName(name string) bool {
	if neverAsked(name) || name == "home.arpa" {
		return true
	}
	for _, suffix := range []string{".local", ".internal", ".home.arpa"} {
		if strings.HasSuffix(name, suffix) {
			return true
		}
	}
	return false
}
