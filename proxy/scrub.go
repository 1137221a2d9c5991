package proxy

import (
	"errors"
	"fmt"
	"io"
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

// scrubRequest takes out of a request what would let the origin answer in a form that
// cannot be searched: parts of a body, and codings that are not decoded here.
func scrubRequest(h http.Header) {
	delete(h, "Range")
	delete(h, "If-Range")
	h["Accept-Encoding"] = []string{"gzip, br"}
	if len(h["Sec-Websocket-Extensions"]) > 0 {
		delete(h, "Sec-Websocket-Extensions")
	}
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
	if r.Method == http.MethodHead || resp.StatusCode == http.StatusNoContent || resp.StatusCode == http.StatusNotModified {
		return nil
	}
	codings := resp.Header["Content-Encoding"]
	coding := ""
	if len(codings) == 1 {
		coding = codings[0]
	}
	var body io.Reader
	err := scan.ErrEncoding
	if len(codings) <= 1 {
		body, err = scan.Decoded(resp.Body, coding, scan.Limits{})
	}
	if err != nil {
		return fmt.Errorf("%w: %w", errUpstreamResponse, err)
	}
	delete(resp.Header, "Content-Encoding")
	delete(resp.Header, "Content-Length")
	delete(resp.Header, "Accept-Ranges")
	for _, digest := range [...]string{"Content-Md5", "Digest", "Content-Digest", "Repr-Digest"} {
		delete(resp.Header, digest) // of other bytes
	}
	resp.ContentLength = -1
	resp.Body = &scrubbedBody{Reader: c.m.Replace(body, c.replace), under: resp.Body}
	return nil
}

// scrubbedBody reads the decoded and searched body, and closes the origin's.
type scrubbedBody struct {
	io.Reader
	under io.Closer
}

func (b *scrubbedBody) Read(p []byte) (int, error) {
	n, err := b.Reader.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		err = fmt.Errorf("scrub: %w", err)
	}
	return n, err
}

func (b *scrubbedBody) Close() error { return b.under.Close() }

// trailer searches what comes behind the body.
func (c *scrubber) trailer(h http.Header) {
	if c != nil {
		c.m.Header(h, c.replace)
	}
}
