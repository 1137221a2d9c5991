package proxy_test

import (
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// Rulesets come and go while requests of every kind are under way, whose heads are
// rewritten as the rules ask about them: run with -race.
func TestAttack_H15_rules_that_look_at_what_is_rewritten(t *testing.T) {
	g := attacked(t, options{})
	headers := strings.Replace(placeholderPolicy, "scrub: true}", `scrub: true, httpMatch: {headers: [{name: X-Kind, values: [a]}]}}`, 1)
	sets := []string{headers, strings.Replace(headers, "values: [a]", "values: [a, b]", 1), placeholderPolicy}
	for _, p := range sets {
		if _, err := g.compile(p); err != nil {
			t.Fatal(err)
		}
	}
	stop := make(chan struct{})
	var wg sync.WaitGroup
	var served atomic.Int32
	for _, h2 := range []bool{false, true} {
		c := g.client("one", tokenOne, h2)
		for range 3 {
			wg.Go(func() {
				for {
					select {
					case <-stop:
						return
					default:
					}
					a := do(t, c, http.MethodPost, g.bed.Good.URL("/echo-slow?k=EGD-PLACEHOLDER-1"), func(r *http.Request) {
						r.Header.Set("X-Kind", "a")
						r.Header.Set("Authorization", "Bearer EGD-PLACEHOLDER-1")
					})
					g.note([]byte(a.body))
					if a.status == http.StatusOK {
						served.Add(1)
					}
				}
			})
		}
	}
	for end := time.Now().Add(2 * time.Second); time.Now().Before(end); time.Sleep(2 * time.Millisecond) {
		for _, p := range sets {
			g.use(p)
		}
	}
	close(stop)
	wg.Wait()
	if served.Load() == 0 {
		t.Error("H15 nothing was served")
	}
	g.use(basePolicy)
	g.safe(t)
}
