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

// scrubbers keeps a matcher for each projection that answers are searched for. Safe for
// concurrent use.
type scrubbers struct {
	made *lru.Cache[scrubKey, *scan.Matcher]
}

const maxScrubbers = 1024

func newScrubbers() *scrubbers {
	made, _ := lru.New[scrubKey, *scan.Matcher](maxScrubbers) // fails on a size below 1 only
	return &scrubbers{made: made}
}

// scrubKey: two rules may write one material in different ways.
type scrubKey struct {
	rule *policy.CredentialRule
	cred uint64
}

// of gives what finds the values that rule has projected.
func (c *scrubbers) of(rule *policy.CredentialRule, pr *inject.Projection) *scan.Matcher {
	key := scrubKey{rule, pr.ID}
	if m, ok := c.made.Get(key); ok {
		return m
	}
	var patterns []scan.Pattern
	for _, v := range pr.Secrets() {
		patterns = append(patterns, scan.Patterns(v.Reveal(), 0)...)
	}
	m := scan.New(patterns)
	c.made.Add(key, m)
	return m
}

// scrubber searches one answer.
type scrubber struct {
	m     *scan.Matcher
	found int
}

func (c *scrubber) replace(int) []byte {
	c.found++
	return redacted
}

// answer puts the search into resp, whose length is then not known before. An answer in a
// coding that cannot be looked into is refused.
func (c *scrubber) answer(r *http.Request, resp *http.Response) error {
	c.m.Header(resp.Header, c.replace)
	if bodiless(r, resp) {
		return nil
	}
	body, err := decoded(resp)
	if err != nil {
		return err
	}
	lengthUnknown(resp)
	resp.Body = &readCloser{c.m.Replace(body, c.replace), resp.Body}
	return nil
}

// fields searches what comes behind the body, or before the answer: hints.
func (c *scrubber) fields(h http.Header) {
	if c != nil {
		c.m.Header(h, c.replace)
	}
}
