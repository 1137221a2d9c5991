package proxy

import (
	"testing"
	"testing/synctest"
	"time"
)

// SpendMints takes what a sandbox may have signed until stop, and says how much it got.
func (s *Server) SpendMints(sandbox string, stop <-chan struct{}) int {
	for n := 0; ; {
		select {
		case <-stop:
			return n
		default:
		}
		if s.mints.allow(sandbox) {
			n++
		} else {
			time.Sleep(50 * time.Microsecond)
		}
	}
}

func TestMintsPerSandbox(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMints()
		spend := func(sandbox string) (n int) {
			for m.allow(sandbox) {
				n++
			}
			return n
		}
		if n, o := spend("one"), spend("two"); n != mintsAtOnce || o != mintsAtOnce {
			t.Errorf("%d and %d at once", n, o)
		}
		time.Sleep(time.Second)
		if n := spend("one"); n != mintsPerSecond {
			t.Errorf("%d after a second", n)
		}
		time.Sleep(time.Hour)
		if n := spend("one"); n != mintsAtOnce {
			t.Errorf("%d after an hour", n)
		}
	})
}
