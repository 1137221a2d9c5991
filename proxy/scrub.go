package proxy

import (
	"net/http"

	lru "github.com/hashicorp/golang-lru/v2"

	"github.com/egressd/egressd/inject"
	"github.com/egressd/egressd/internal/scan"
	"github.com/egressd/egressd/policy"
)

// redacted stands in an answer where a value was.
var redacted = []byte("[redacted]")

// scrubbers keeps what finds values for each projection that answers are searched for. Safe
// for concurrent use.
type scrubbers struct {
	made *lru.Cache[scrubKey, *findings]
}

// findings is immutable.
type findings struct {
	matcher *scan.Matcher
	words   [][]byte // by tag: what stands in the value's place
}

const maxScrubbers = 1024

func newScrubbers() *scrubbers {
	made, _ := lru.New[scrubKey, *findings](maxScrubbers) // fails on a size below 1 only
	return &scrubbers{made: made}
}

// scrubKey: two rules may write one material in different ways.
type scrubKey struct {
	rule *policy.CredentialRule
	cred uint64
	seal uint64 // generation of the sandbox's tokens
}

// of gives what finds the values that rule has projected, and names the placeholder of each
// that has one.
func (c *scrubbers) of(rule *policy.CredentialRule, pr *inject.Projection, tokens *sealView) *findings {
	key := scrubKey{rule: rule, cred: pr.ID}
	if tokens != nil {
		key.seal = tokens.generation
	}
	if f, ok := c.made.Get(key); ok {
		return f
	}
	f := &findings{}
	var patterns []scan.Pattern
	for tag, v := range pr.Secrets() {
		word := redacted
		if p := pr.Placeholders.For(v.Reveal()); p != "" {
			word = []byte(p)
		}
		f.words = append(f.words, word)
		patterns = append(patterns, scan.Patterns(v.Reveal(), tag)...)
	}
	if tokens != nil {
		for _, o := range tokens.tokens {
			patterns = append(patterns, scan.Patterns(o.Value.Reveal(), len(f.words))...)
			f.words = append(f.words, []byte(o.Placeholder))
		}
	}
	f.matcher = scan.New(patterns)
	c.made.Add(key, f)
	return f
}

// scrubber searches one answer.
type scrubber struct {
	*findings
	found int
}

func (c *scrubber) replace(tag int) []byte {
	c.found++
	return c.words[tag]
}

// answer puts the search into resp, whose length is then not known before. An answer in a
// coding that cannot be looked into is refused.
func (c *scrubber) answer(r *http.Request, resp *http.Response) error {
	c.matcher.Header(resp.Header, c.replace)
	if bodiless(r, resp) {
		return nil
	}
	body, err := decoded(resp)
	if err != nil {
		return err
	}
	lengthUnknown(resp)
	resp.Body = &readCloser{c.matcher.Replace(body, c.replace), resp.Body}
	return nil
}

// fields searches what comes behind the body, or before the answer: hints.
func (c *scrubber) fields(h http.Header) {
	if c != nil {
		c.matcher.Header(h, c.replace)
	}
}
