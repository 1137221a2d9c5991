package policy

import "strings"

// glob is a pattern in which "*" stands for any run of bytes, none included and "/"
// too, and all else for itself.
type glob string

// match compares in time linear in the text for each "*", whatever the two hold.
func (g glob) match(s string) bool { return matchGlob(g, s, false) }

// matchFold is match without regard to ASCII case.
func (g glob) matchFold(s string) bool { return matchGlob(g, s, true) }

func matchGlob[T string | []byte](pat glob, s T, fold bool) bool {
	p, i := 0, 0
	star, resume := -1, 0 // the last "*", and where in s it would end next
	for i < len(s) {
		switch {
		case p < len(pat) && pat[p] == '*':
			star, resume = p, i
			p++
		case p < len(pat) && sameByte(pat[p], s[i], fold):
			p++
			i++
		case star >= 0:
			resume++
			p, i = star+1, resume
		default:
			return false
		}
	}
	return strings.Trim(string(pat[p:]), "*") == ""
}

func sameByte(a, b byte, fold bool) bool {
	return a == b || fold && lowerByte(a) == lowerByte(b)
}

func lowerByte(c byte) byte {
	if c >= 'A' && c <= 'Z' {
		c += 'a' - 'A'
	}
	return c
}

// globPolicy holds lists of globs; as everywhere, denied stands before allowed.
type globPolicy struct {
	denied, allowed []glob
	limited         bool // an allowed list stands there, if only an empty one
}

func (p *globPolicy) any() bool { return p.limited || len(p.denied) > 0 }

func (p *globPolicy) allows(s string) bool {
	for _, g := range p.allowed {
		if g.match(s) {
			return true
		}
	}
	return false
}

// denies errs on the side of refusing: case does not count.
func (p *globPolicy) denies(s string) bool {
	for _, g := range p.denied {
		if g.matchFold(s) {
			return true
		}
	}
	return false
}
