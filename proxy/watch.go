package proxy

import (
	"errors"
	"io"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"time"

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

// errLeak ends a request body in which something was found that must not leave.
var errLeak = errors.New("the request holds what must not leave")

// watchlist is what requests of one sandbox under one credential rule must not hold: values
// that egressd knows and did not put there, and placeholders that mean nothing where the
// request goes.
type watchlist struct {
	key          watchKey
	team         *teamValues
	known        *knownValues
	own          []int // tags of known that the rule puts there
	placeholders *scan.Matcher
	tokens       *scan.Matcher // issued to the sandbox for another source; nil: none
}

type watchKey struct {
	rules   *Ruleset
	sandbox *policy.Sandbox
	rule    *policy.CredentialRule
	cred    uint64 // the projection that the rule has now
}

// teamValues are the values known of one team's sources, as of some moment: a matcher for
// many values costs milliseconds, so all of the team's requests share one, and how often
// it is made anew is bounded by what it costs.
type teamValues struct {
	making sync.Mutex
	now    atomic.Pointer[knownValues]
}

// knownValues is immutable. A value's tag is its index.
type knownValues struct {
	generation uint64
	values     []secret.String
	matcher    *scan.Matcher
	again      time.Time // not made anew before
}

const (
	leastLag = 200 * time.Millisecond
	lagFor   = 20 // times as long as making it took
)

// of gives the values that are known, or were a moment ago.
func (v *teamValues) of(known Known, team string) *knownValues {
	cur := v.now.Load()
	if cur != nil && (cur.generation == known.Generation() || time.Now().Before(cur.again)) {
		return cur
	}
	if cur == nil {
		v.making.Lock()
	} else if !v.making.TryLock() {
		return cur
	}
	defer v.making.Unlock()
	if cur = v.now.Load(); cur != nil && cur.generation == known.Generation() {
		return cur
	}
	start := time.Now()
	next := &knownValues{}
	next.values, next.generation = known.Known(team)
	var patterns []scan.Pattern
	for tag, value := range next.values {
		patterns = append(patterns, scan.Patterns(value.Reveal(), tag)...)
	}
	next.matcher = scan.New(patterns)
	next.again = time.Now().Add(max(leastLag, lagFor*time.Since(start)))
	v.now.Store(next)
	return next
}

// watchlists keeps what is costly to make. Safe for concurrent use.
type watchlists struct {
	teams        *lru.Cache[string, *teamValues]
	placeholders *lru.Cache[watchKey, *scan.Matcher]
}

const maxWatchlists = 1024

func newWatchlists() *watchlists {
	teams, _ := lru.New[string, *teamValues](maxWatchlists) // fails on a size below 1 only
	placeholders, _ := lru.New[watchKey, *scan.Matcher](maxWatchlists)
	return &watchlists{teams: teams, placeholders: placeholders}
}

// of gives the watchlist for a request, the tunnel's last one where nothing has changed.
func (l *watchlists) of(last *atomic.Pointer[watchlist], b *bound, rule *policy.CredentialRule, pr *inject.Projection) *watchlist {
	key := watchKey{rules: b.rules, sandbox: b.sandbox, rule: rule}
	if pr != nil {
		key.cred = pr.ID
	}
	w := last.Load()
	if w == nil || w.key != key {
		w = &watchlist{key: key, placeholders: l.placeholdersOf(key)}
		if b.rules.Known != nil {
			w.team = l.team(b.sandbox.Team)
		}
	}
	if w.team != nil {
		if now := w.team.of(b.rules.Known, b.sandbox.Team); now != w.known {
			next := *w
			next.known, next.own = now, now.tagsOf(pr)
			w = &next
		}
	}
	if w != last.Load() {
		last.Store(w)
	}
	return w
}

func (l *watchlists) team(name string) *teamValues {
	if t, ok := l.teams.Get(name); ok {
		return t
	}
	t := &teamValues{}
	if other, ok, _ := l.teams.PeekOrAdd(name, t); ok {
		t = other
	}
	return t
}

func (l *watchlists) placeholdersOf(key watchKey) *scan.Matcher {
	key.cred = 0
	if m, ok := l.placeholders.Get(key); ok {
		return m
	}
	var patterns []scan.Pattern
	for _, p := range key.rules.Policy.Placeholders(key.sandbox) {
		if !slices.Contains(p.Rules, key.rule) {
			patterns = append(patterns, scan.Patterns(p.Text, 0)...)
		}
	}
	m := scan.New(patterns)
	l.placeholders.Add(key, m)
	return m
}

// tagsOf finds what pr puts into requests by itself.
func (k *knownValues) tagsOf(pr *inject.Projection) []int {
	if pr == nil {
		return nil
	}
	var tags []int
	for _, own := range pr.Secrets() {
		if tag := slices.IndexFunc(k.values, own.Equal); tag >= 0 {
			tags = append(tags, tag)
		}
	}
	return tags
}

// empty: nothing would be found.
func (w *watchlist) empty() bool {
	return w.tokens == nil && w.placeholders.Empty() && (w.known == nil || w.known.matcher.Empty())
}

// and is w with tokens to look for beside, for one request.
func (w *watchlist) and(tokens *scan.Matcher) *watchlist {
	if tokens == nil {
		return w
	}
	with := *w
	with.tokens = tokens
	return &with
}

// tokensOf names the source whose tokens mean something in a request with pr.
func tokensOf(pr *inject.Projection) string {
	if pr == nil || pr.Placeholders == nil {
		return ""
	}
	return pr.Source
}

// find looks at bytes that are there as a whole.
func (w *watchlist) find(b []byte) *refusal {
	if _, _, _, found := w.placeholders.Find(b); found {
		return misplaced()
	}
	if w.tokens != nil {
		if _, _, _, found := w.tokens.Find(b); found {
			return misplaced()
		}
	}
	for w.known != nil {
		start, _, tag, found := w.known.matcher.Find(b)
		switch {
		case !found:
			return nil
		case !slices.Contains(w.own, tag):
			return leaked()
		}
		b = b[start+1:] // what begins within it may count
	}
	return nil
}

// body goes on looking while a body is read; say is called before it ends with errLeak.
func (w *watchlist) body(body io.ReadCloser, say func(*refusal)) io.ReadCloser {
	var r io.Reader = body
	if !w.placeholders.Empty() {
		r = w.placeholders.Detect(r, func(int) bool {
			say(misplaced())
			return true
		})
	}
	if w.tokens != nil {
		r = w.tokens.Detect(r, func(int) bool {
			say(misplaced())
			return true
		})
	}
	if w.known != nil && !w.known.matcher.Empty() {
		r = w.known.matcher.Detect(r, func(tag int) bool {
			if slices.Contains(w.own, tag) {
				return false
			}
			say(leaked())
			return true
		})
	}
	return &guardedBody{Reader: r, under: body}
}

// watch looks at what the sandbox wrote, before anything is added to it, and goes on looking
// while the body is read.
func (s *Server) watch(r *http.Request, x *record, w *watchlist) *refusal {
	if w.empty() {
		return nil
	}
	if ref := w.findIn(r.RequestURI); ref != nil {
		return ref
	}
	for _, values := range r.Header {
		for _, v := range values {
			if ref := w.findIn(v); ref != nil {
				return ref
			}
		}
	}
	if r.Body != nil && r.Body != http.NoBody {
		found := &leak{list: w}
		x.leak = found // what still reads the body when the exchange is over must not speak of another one
		r.Body = w.body(r.Body, found.ref.Store)
	}
	return nil
}

// findIn costs no copy for what a header holds, mostly.
func (w *watchlist) findIn(s string) *refusal {
	var room [512]byte
	return w.find(append(room[:0], s...))
}

// leak is what was found in one body, or behind it.
type leak struct {
	list *watchlist
	ref  atomic.Pointer[refusal]
}

// trailer looks at what comes behind a body, which then ends with errLeak and without it.
func (l *leak) trailer(h http.Header) error {
	if l == nil {
		return nil
	}
	for _, values := range h {
		for _, v := range values {
			if ref := l.list.findIn(v); ref != nil {
				l.ref.Store(ref)
				clear(h)
				return errLeak
			}
		}
	}
	return nil
}

func (l *leak) refusal() *refusal {
	if l == nil {
		return nil
	}
	return l.ref.Load()
}

func misplaced() *refusal {
	return &refusal{status: http.StatusForbidden, code: codePlaceholder, detail: "a placeholder on its way to where no rule replaces it", close: true}
}

func leaked() *refusal {
	return &refusal{status: http.StatusForbidden, code: codeLeak, detail: "a value of a source that was not put there by a rule", close: true}
}

// guardedBody is a request body that ends with errLeak where it would give something away.
type guardedBody struct {
	io.Reader
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
