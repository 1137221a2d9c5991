package sshbridge

import (
	"strings"
	"unicode"
	"unicode/utf8"
)

const (
	maxBanner  = 4 << 10
	maxMessage = 512
)

// printable is text of an origin that a terminal may show: no escape sequences, no
// characters that are not for display or turn its direction, no more than limit bytes
// (E13).
func printable(s string, limit int) string {
	if len(s) > limit {
		s = s[:limit]
	}
	return strings.Map(func(r rune) rune {
		switch {
		case r == '\n' || r == '\t':
			return r
		case r == utf8.RuneError || !unicode.IsPrint(r):
			return -1
		}
		return r
	}, s)
}

// oneLine is printable text without line ends.
func oneLine(s string, limit int) string {
	return strings.Map(func(r rune) rune {
		if r == '\n' || r == '\t' {
			return ' '
		}
		return r
	}, printable(s, limit))
}
