package proxy_test

import (
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/egressd/egressd/internal/testbed"
	"github.com/egressd/egressd/proxy"
)

// F07: the streams of one h2 connection cannot become more upstream connections than
// a sandbox may have; another sandbox is not affected, and what is closed is given back.
func TestUpstreamConnectionsPerSandbox(t *testing.T) {
	s := ready(t, options{limits: proxy.Limits{ConnectionsPerSandbox: 4}})
	origin := testbed.NewOrigin(t, s.bed.CA, testbed.OriginOptions{Names: []string{"good.test"}, ALPN: []string{"http/1.1"}})
	one, two := s.client("one", tokenOne, true), s.client("two", tokenTwo, false)
	if a := get(t, one, origin.URL("/")); a.status != http.StatusOK { // one client connection, for all streams
		t.Fatalf("%+v", a)
	}
	for round := range 2 {
		var limited, passed atomic.Int64
		var wg sync.WaitGroup
		for range 20 {
			wg.Go(func() {
				switch a := get(t, one, origin.URL("/wait?ms=700")); {
				case a.status == http.StatusTooManyRequests && a.header.Get("X-Egressd-Error") == "connection_limit":
					limited.Add(1)
				case a.status == http.StatusOK:
					passed.Add(1)
				default:
					t.Errorf("%+v", a)
				}
			})
		}
		if a := get(t, two, origin.URL("/")); a.status != http.StatusOK {
			t.Errorf("round %d: sandbox two beside it: %+v", round, a)
		}
		wg.Wait()
		if passed.Load() != 4 || limited.Load() != 16 {
			t.Errorf("round %d: %d passed, %d limited; want 4 and 16", round, passed.Load(), limited.Load())
		}
		s.use(strings.Replace(basePolicy, "name: all,", "name: every,", 1)) // a new ruleset changes nothing here
	}
}
