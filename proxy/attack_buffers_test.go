package proxy_test

import (
	"fmt"
	"net/http"
	"runtime"
	"sync"
	"testing"
	"time"
)

// Streams that a client opens and does not read hold little of what origins send: not
// what net/http's client would buffer, 4 MiB for each.
func TestAttack_H18_unread_streams(t *testing.T) {
	g := attacked(t, options{})
	c := g.client("one", tokenOne, true)
	c.Transport.(*http.Transport).HTTP2 = &http.HTTP2Config{MaxReceiveBufferPerStream: 64 << 10, MaxReceiveBufferPerConnection: 8 << 20}
	heap := func() uint64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	before := heap()
	const streams = 80
	var wg sync.WaitGroup
	for range streams {
		wg.Go(func() {
			resp, err := c.Get(g.bed.Good.URL(fmt.Sprintf("/download?n=%d", 64<<20)))
			if err != nil {
				t.Error(err)
				return
			}
			t.Cleanup(func() { _ = resp.Body.Close() })
		})
	}
	wg.Wait()
	time.Sleep(time.Second) // what the origin may send has come
	if grown := int64(heap()) - int64(before); grown > 48<<20 {
		t.Errorf("H18 %d unread streams of one connection hold %d MiB", streams, grown>>20)
	}
}
