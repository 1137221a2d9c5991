package policy

import (
	"strings"
	"unicode/utf8"
)

// maxCommand bounds a command line that rules look at.
const maxCommand = 4096

// shellMeta is what makes a shell do more than run one command with plain words. None
// of it passes a rule that looks at commands, unless it stands in single quotes.
const shellMeta = ";&|`$<>(){}\\"

// simpleCommand reports a command line that is one command and its words: no shell
// reads anything else into it. Quotes must be closed; single quotes make everything
// plain, double quotes only what is plain already. Line breaks, NUL and other controls
// and bytes that are no UTF-8 are refused wherever they stand.
func simpleCommand(line string) bool {
	if len(line) > maxCommand || !utf8.ValidString(line) {
		return false
	}
	quote, before := byte(0), byte(' ')
	for i := range len(line) {
		c := line[i]
		switch {
		case c < ' ' && c != '\t' || c == 0x7f:
			return false
		case quote == '\'':
			if c == '\'' {
				quote = 0
			}
		case strings.IndexByte(shellMeta, c) >= 0:
			return false
		case c == '#' && quote == 0 && (before == ' ' || before == '\t'):
			return false // the rest would be a comment
		case c == quote:
			quote = 0
		case quote == 0 && (c == '\'' || c == '"'):
			quote = c
		}
		before = c
	}
	return quote == 0
}

// words takes a simple command apart. Its text is written to buf, without quotes and
// with one space between words, of which the first n end at ends. It does not allocate.
type words struct {
	buf  [maxCommand + 1]byte
	n    int // bytes in buf
	ends [3]int
	all  int // words in all
}

// read answers false when line is not a simple command or has no word.
func (w *words) read(line string) bool {
	if !simpleCommand(line) {
		return false
	}
	in, quote := false, byte(0)
	for i := range len(line) {
		c := line[i]
		switch {
		case quote == 0 && (c == ' ' || c == '\t'):
			if in {
				w.end()
			}
			in = false
			continue
		case !in:
			in = true
			if w.all > 0 {
				w.put(' ')
			}
		}
		switch {
		case c == quote:
			quote = 0
		case quote == 0 && (c == '\'' || c == '"'):
			quote = c
		default:
			w.put(c)
		}
	}
	if in {
		w.end()
	}
	return w.all > 0
}

func (w *words) put(c byte) {
	w.buf[w.n] = c
	w.n++
}

func (w *words) end() {
	if w.all < len(w.ends) {
		w.ends[w.all] = w.n
	}
	w.all++
}
