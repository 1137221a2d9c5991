package proxy

import (
	"runtime"
	"runtime/debug"
	"sync"
	"time"
)

const sweepEvery = 15 * time.Second

// janitor closes upstream connections that nobody uses and gives memory back to the
// system after a crowd has left: the runtime alone would keep most of it for minutes.
type janitor struct {
	stop   chan struct{}
	asks   chan struct{}  // sources have changed: see registry.cutRevoked
	leases chan time.Time // when the next lease of a sandbox ends
	once   sync.Once
	wg     sync.WaitGroup
}

func startJanitor(s *Server) *janitor {
	j := &janitor{stop: make(chan struct{}), asks: make(chan struct{}, 1), leases: make(chan time.Time, 1)}
	j.wg.Go(func() {
		lease := time.NewTimer(0)
		<-lease.C
		defer lease.Stop()
		tick := time.NewTicker(sweepEvery)
		defer tick.Stop()
		for {
			select {
			case <-j.stop:
				return
			case <-j.asks:
				s.live.cutRevoked()
			case end := <-j.leases:
				lease.Reset(time.Until(end))
			case <-lease.C:
				s.leaseOver()
			case now := <-tick.C:
				s.sweepLeases() // their timer does not follow a clock that jumps
				s.upstream.sweepOnce(now.Add(-idleLifetime))
				if s.live.shrink() {
					runtime.GC() // pools let go of what they hold at the second collection
					debug.FreeOSMemory()
				}
			}
		}
	})
	return j
}

// sourcesChanged does not wait.
func (j *janitor) sourcesChanged() {
	select {
	case j.asks <- struct{}{}:
	default: // it will look anyway
	}
}

func (j *janitor) end() {
	j.once.Do(func() { close(j.stop) })
	j.wg.Wait()
}

// nextLease tells when the next lease of the ruleset in force ends.
func (j *janitor) nextLease(end time.Time) {
	for {
		select {
		case j.leases <- end:
			return
		case <-j.stop:
			return
		case <-j.leases: // of an older ruleset
		}
	}
}
