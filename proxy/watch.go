package proxy

import (
	"errors"
	"io"
	"net/http"
	"sync/atomic"

	lru "github.com/hashicorp/golang-lru/v2"

	"github.com/egressd/egressd/inject"
	"github.com/egressd/egressd/internal/scan"
	"github.com/egressd/egressd/internal/secret"
	"github.com/egressd/egressd/policy"
)

// Known are the secret values that the resolver has in memory. Safe for concurrent use.
type Known interface {
	Known(team string) (values []secret.String, generation uint64)
	Generation() uint64 // changes when Known may have
}

// What a watchlist finds, as tags of its matcher.
const (
	tagSecret = iota
	tagPlaceholder
)

// errLeak ends a request body in which something was found that must not leave.
var errLeak = errors.New("the request holds what must not leave")

// watchlist is what requests of one sandbox under one credential rule must not hold: values
// that egressd knows and did not put there, and placeholders that mean nothing where the
// request goes.
type watchlist struct {
	key        watchKey
	generation uint64
	matcher    *scan.Matcher
}

type watchKey struct {
	rules   *Ruleset
	sandbox *policy.Sandbox
	rule    *policy.CredentialRule
	cred    uint64 // the projection that the rule has now
}

// watchlists keeps what is costly to make. Safe for concurrent use.
type watchlists struct {
	made *lru.Cache[watchKey, *watchlist]
}

const maxWatchlists = 1024

func newWatchlists() *watchlists {
	made, _ := lru.New[watchKey, *watchlist](maxWatchlists) // fails on a size below 1 only
	return &watchlists{made: made}
}

// of gives the matcher for a request, from the tunnel where it has not changed.
func (l *watchlists) of(last *atomic.Pointer[watchlist], b *bound, rule *policy.CredentialRule, pr *inject.Projection) *scan.Matcher {
	key := watchKey{rules: b.rules, sandbox: b.sandbox, rule: rule}
	if pr != nil {
		key.cred = pr.ID
	}
	var generation uint64
	if b.rules.Known != nil {
		generation = b.rules.Known.Generation()
	}
	if w := last.Load(); w != nil && w.key == key && w.generation == generation {
		return w.matcher
	}
	w, ok := l.made.Get(key)
	if !ok || w.generation != generation {
		w = makeWatchlist(key, pr)
		l.made.Add(key, w)
	}
	last.Store(w)
	return w.matcher
}

func makeWatchlist(key watchKey, pr *inject.Projection) *watchlist {
	w := &watchlist{key: key}
	var patterns []scan.Pattern
	if known := key.rules.Known; known != nil {
		var values []secret.String
		values, w.generation = known.Known(key.sandbox.Team)
		var own []secret.String
		if pr != nil {
			own = pr.Secrets()
		}
		for _, v := range values {
			if !contains(own, v) {
				patterns = append(patterns, scan.Patterns(v.Reveal(), tagSecret)...)
			}
		}
	}
	for _, p := range key.rules.Policy.Placeholders(key.sandbox) {
		if !meansIt(p.Rules, key.rule) {
			patterns = append(patterns, scan.Patterns(p.Text, tagPlaceholder)...)
		}
	}
	w.matcher = scan.New(patterns)
	return w
}

func contains(list []secret.String, v secret.String) bool {
	for _, o := range list {
		if o.Equal(v) {
			return true
		}
	}
	return false
}

// meansIt: the rule is one of those that give the placeholder a meaning.
func meansIt(rules []*policy.CredentialRule, rule *policy.CredentialRule) bool {
	for _, r := range rules {
		if r == rule {
			return true
		}
	}
	return false
}

// watch looks at what the sandbox wrote, before anything is added to it, and goes on looking
// while the body is read.
func (s *Server) watch(r *http.Request, x *record, m *scan.Matcher) *refusal {
	if m.Empty() {
		return nil
	}
	if tag, found := findIn(m, r.RequestURI); found {
		return leaked(tag)
	}
	for _, values := range r.Header {
		for _, v := range values {
			if tag, found := findIn(m, v); found {
				return leaked(tag)
			}
		}
	}
	if r.Body != nil && r.Body != http.NoBody {
		found := new(leak)
		x.leak = found // what still reads the body when the exchange is over must not speak of another one
		r.Body = &guardedBody{Reader: m.Detect(r.Body, func(tag int) { found.tag.Store(int32(tag) + 1) }), under: r.Body}
	}
	return nil
}

// findIn costs no copy for what a header holds, mostly.
func findIn(m *scan.Matcher, s string) (tag int, found bool) {
	var room [512]byte
	b := append(room[:0], s...)
	_, _, tag, found = m.Find(b)
	return tag, found
}

// leak is what was found in one body.
type leak struct{ tag atomic.Int32 }

func (l *leak) refusal() *refusal {
	if l == nil || l.tag.Load() == 0 {
		return nil
	}
	return leaked(int(l.tag.Load()) - 1)
}

func leaked(tag int) *refusal {
	if tag == tagPlaceholder {
		return &refusal{status: http.StatusForbidden, code: codePlaceholder, detail: "a placeholder on its way to where no rule replaces it", close: true}
	}
	return &refusal{status: http.StatusForbidden, code: codeLeak, detail: "a value of a source that was not put there by a rule", close: true}
}

// guardedBody is a request body that ends with errLeak where it would give something away.
type guardedBody struct {
	*scan.Reader
	under io.Closer
}

func (b *guardedBody) Read(p []byte) (int, error) {
	n, err := b.Reader.Read(p)
	if errors.Is(err, scan.ErrFound) {
		err = errLeak
	}
	return n, err
}

func (b *guardedBody) Close() error { return b.under.Close() }
