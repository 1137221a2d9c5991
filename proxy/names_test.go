package proxy_test

import (
	"net/http"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/egressd/egressd/internal/testbed"
)

// H19: a sandbox that asks for many names of a name server which never answers is told so
// beyond its share, and another sandbox's names are looked up as if nothing were.
func TestAttack_H19_lookups_per_sandbox(t *testing.T) {
	ns := testbed.NewNS(t)
	ns.On("slow.test", testbed.DNSAnswer{Drop: true})
	s := newStack(t, lookupPolicy, options{ns: []string{ns.Addr()}})
	one, two := s.one(), s.client("two", tokenTwo, false)
	var limited, other atomic.Int64
	var wg sync.WaitGroup
	for range 200 {
		wg.Go(func() {
			if a := get(t, one, "http://slow.test:81/"); a.status == http.StatusTooManyRequests && a.header.Get("X-Egressd-Error") == "connection_limit" {
				limited.Add(1)
			} else {
				other.Add(1)
			}
		})
	}
	if a := get(t, two, s.bed.Plain.URL("/")); a.status != http.StatusOK {
		t.Errorf("sandbox two beside it: %+v", a)
	}
	wg.Wait()
	if limited.Load() == 0 || other.Load() > 128 {
		t.Errorf("%d were refused, %d waited; want at most 128 to wait", limited.Load(), other.Load())
	}
}

const lookupPolicy = `
apiVersion: egressd/v1
sandboxes:
  - id: one
    identify: {proxyTokens: ["TOKENONE"]}
    network: {egress: {trafficRules: [{name: slow, action: allow, domains: [slow.test]}]}}
  - id: two
    identify: {proxyTokens: ["TOKENTWO"]}
    network: {egress: {trafficRules: [{name: good, action: allow, domains: [good.test]}]}}
`
