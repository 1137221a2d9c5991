package proxy

import (
	"crypto/rand"
	"encoding/base32"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"

	"github.com/egressd/egressd/inject"
	"github.com/egressd/egressd/internal/scan"
	"github.com/egressd/egressd/internal/secret"
)

// Bounds of what is remembered of tokens.
const (
	sealPrefix    = "egd_"
	sealedPerSet  = 32   // of one sandbox and source
	sealedSets    = 8    // of one sandbox
	sealedBoxes   = 4096 // sandboxes
	maxSealedLife = 30 * 24 * time.Hour
)

// seals remembers the tokens that origins issued to sandboxes' requests, and what the
// sandboxes got in their place. It is in memory alone: a sandbox logs in again after a
// restart. Safe for concurrent use.
type seals struct {
	mu    sync.Mutex
	boxes *lru.Cache[sealKey, *sealBox]
	count atomic.Uint64 // generations, of all sets
}

type sealKey struct{ team, sandbox string }

// sealBox is one sandbox's.
type sealBox struct {
	sets    []*sealSet
	foreign map[string]*scan.Matcher // by source: what elsewhere has made
}

// sealSet are the tokens of one sandbox that were issued for one source.
type sealSet struct {
	source     string
	generation uint64
	tokens     []sealed // oldest first
	view       *sealView
}

type sealed struct {
	inject.Opaque
	until time.Time
}

// sealView is what a request of a rule with that source may use. Immutable.
type sealView struct {
	generation uint64
	base       *inject.Placeholders // the rule's own: two rules may write one material in different ways
	until      time.Time
	both       *inject.Placeholders // the rule's own and the tokens
	tokens     []inject.Opaque
}

func newSeals() *seals {
	boxes, _ := lru.New[sealKey, *sealBox](sealedBoxes) // fails on a size below 1 only
	return &seals{boxes: boxes}
}

// seal gives what stands for value from now on, for as long as the token lives. A refresh
// token belongs in the body of a request for another one and nowhere else.
func (s *seals) seal(key sealKey, source, value string, refresh bool, life time.Duration) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	box, ok := s.boxes.Get(key)
	if !ok {
		box = &sealBox{foreign: map[string]*scan.Matcher{}}
		s.boxes.Add(key, box)
	}
	set := box.set(source)
	until := time.Now().Add(min(life, maxSealedLife))
	set.generation, set.view = s.count.Add(1), nil
	clear(box.foreign)
	v := secret.New(value)
	if i := slices.IndexFunc(set.tokens, func(t sealed) bool { return t.Value.Equal(v) }); i >= 0 {
		set.tokens[i].until = until
		return set.tokens[i].Placeholder
	}
	if len(set.tokens) >= sealedPerSet {
		set.tokens = slices.Delete(set.tokens, 0, 1)
	}
	t := sealed{inject.Opaque{Placeholder: newSealText(), Value: v, BodyOnly: refresh}, until}
	set.tokens = append(set.tokens, t)
	return t.Placeholder
}

func newSealText() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails (crypto/rand)
	return sealPrefix + strings.ToLower(base32.StdEncoding.WithPadding(base32.NoPadding).EncodeToString(b[:]))
}

// set finds or makes a set; the one that was not added to for longest gives way.
func (b *sealBox) set(source string) *sealSet {
	for _, s := range b.sets {
		if s.source == source {
			return s
		}
	}
	if len(b.sets) >= sealedSets {
		i := 0
		for j, s := range b.sets {
			if s.generation < b.sets[i].generation {
				i = j
			}
		}
		b.sets = slices.Delete(b.sets, i, i+1)
	}
	s := &sealSet{source: source}
	b.sets = append(b.sets, s)
	return s
}

// live drops what is over.
func (s *sealSet) live(now time.Time) []sealed {
	n := len(s.tokens)
	s.tokens = slices.DeleteFunc(s.tokens, func(t sealed) bool { return !now.Before(t.until) })
	if len(s.tokens) != n {
		s.view = nil
	}
	return s.tokens
}

// view gives the placeholders of pr together with the sandbox's tokens for its source; nil
// when it has none.
func (s *seals) view(key sealKey, pr *inject.Projection) *sealView {
	s.mu.Lock()
	defer s.mu.Unlock()
	box, ok := s.boxes.Get(key)
	if !ok {
		return nil
	}
	for _, set := range box.sets {
		if set.source != pr.Source {
			continue
		}
		now := time.Now()
		if v := set.view; v != nil && v.base == pr.Placeholders && now.Before(v.until) {
			return v
		}
		tokens := set.live(now)
		if len(tokens) == 0 {
			return nil
		}
		v := &sealView{generation: set.generation, base: pr.Placeholders, until: tokens[0].until}
		for _, t := range tokens {
			v.tokens = append(v.tokens, t.Opaque)
			if t.until.Before(v.until) {
				v.until = t.until
			}
		}
		v.both = pr.Placeholders.With(v.tokens)
		set.view = v
		return v
	}
	return nil
}

// elsewhere finds the tokens that mean nothing in a request for source; nil: there are none.
// Most sandboxes have none.
func (s *seals) elsewhere(key sealKey, source string) *scan.Matcher {
	if s.count.Load() == 0 {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	box, ok := s.boxes.Get(key)
	if !ok {
		return nil
	}
	if m, ok := box.foreign[source]; ok {
		return m
	}
	var patterns []scan.Pattern
	for _, set := range box.sets {
		if set.source == source {
			continue
		}
		for _, t := range set.live(time.Now()) {
			patterns = append(patterns, scan.Patterns(t.Placeholder, 0)...)
		}
	}
	var m *scan.Matcher
	if patterns != nil {
		m = scan.New(patterns)
	}
	box.foreign[source] = m
	return m
}

// forget drops what a sandbox has.
func (s *seals) forget(key sealKey) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.boxes.Remove(key)
}
