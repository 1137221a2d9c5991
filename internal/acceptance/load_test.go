package acceptance

import (
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// load runs workers that send one request after the other until it is stopped. Each
// request is judged by what had been acknowledged when it was started.
type load struct {
	floor   atomic.Int64 // what requests started from now on must at least show
	stopped atomic.Bool
	workers []func(floor int64) string
	begun   []atomic.Int64 // of each worker: requests started
	done    atomic.Int64
	wg      sync.WaitGroup

	mu     sync.Mutex
	faults []string
	wrong  int
}

// worker adds one. It sends one request and says what is wrong with the answer, "" if
// nothing is.
func (l *load) worker(f func(floor int64) string) { l.workers = append(l.workers, f) }

func (l *load) start(t testing.TB) {
	t.Helper()
	l.begun = make([]atomic.Int64, len(l.workers))
	for i, f := range l.workers {
		l.wg.Go(func() {
			for !l.stopped.Load() {
				floor := l.floor.Load()
				l.begun[i].Add(1)
				fault := f(floor)
				l.done.Add(1)
				if fault != "" {
					l.fault(fault)
				}
			}
		})
	}
	t.Cleanup(func() {
		l.stopped.Store(true)
		l.wg.Wait()
	})
	l.settle(t)
}

func (l *load) fault(text string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.wrong++; len(l.faults) < 10 {
		l.faults = append(l.faults, text)
	}
}

// settle waits until every worker has begun two more requests, so that none is under way
// that was begun before the call.
func (l *load) settle(t testing.TB) {
	t.Helper()
	from := make([]int64, len(l.begun))
	for i := range l.begun {
		from[i] = l.begun[i].Load()
	}
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(time.Millisecond) {
		ready := true
		for i := range l.begun {
			ready = ready && l.begun[i].Load() >= from[i]+2
		}
		if ready {
			return
		}
		if time.Now().After(end) {
			t.Fatal("the load stands still")
		}
	}
}

// stop ends the load; at least so many requests must have been answered, and none wrongly.
func (l *load) stop(t testing.TB, atLeast int64) {
	t.Helper()
	l.stopped.Store(true)
	l.wg.Wait()
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, f := range l.faults {
		t.Error(f)
	}
	t.Logf("%d requests, %d wrong", l.done.Load(), l.wrong)
	if l.wrong > 0 || l.done.Load() < atLeast {
		t.Errorf("%d of %d requests went wrong; at least %d were wanted", l.wrong, l.done.Load(), atLeast)
	}
}
