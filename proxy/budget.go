package proxy

import (
	"net/http"
	"sync"
)

// wholeBodies is how many bodies of the largest size one sandbox may have in memory at a
// time, because they are rewritten or judged as one: an h2 client could otherwise begin a
// hundred on each of its connections and send all but the last byte.
const wholeBodies = 64

// budget bounds the bytes that are held for each sandbox. Safe for concurrent use.
type budget struct {
	most int64
	mu   sync.Mutex
	of   map[string]int64
}

func newBudget(most int64) *budget { return &budget{most: most, of: map[string]int64{}} }

func (b *budget) take(sandbox string, n int64) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.of[sandbox]+n > b.most {
		return false
	}
	b.of[sandbox] += n
	return true
}

func (b *budget) give(sandbox string, n int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.of[sandbox] -= n; b.of[sandbox] <= 0 {
		delete(b.of, sandbox)
	}
}

// share is what one exchange has taken of a sandbox's budget.
type share struct {
	of      *budget
	sandbox string
	n       int64
}

// hold takes n more, until release; false when the sandbox holds too much already.
func (h *share) hold(n int64) bool {
	if !h.of.take(h.sandbox, n) {
		return false
	}
	h.n += n
	return true
}

// but gives back what was held for more than came.
func (h *share) but(held, came int64) {
	if n := held - came; n > 0 {
		h.of.give(h.sandbox, n)
		h.n -= n
	}
}

func (h *share) release() {
	if h.n > 0 {
		h.of.give(h.sandbox, h.n)
		h.n = 0
	}
}

// tooMuchHeld ends one request: what is held is of others on the same connection.
func tooMuchHeld() *refusal {
	return &refusal{status: http.StatusTooManyRequests, code: codeLimit, detail: "bodies held whole"}
}
