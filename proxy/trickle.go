package proxy

import (
	"errors"
	"net/http"
	"strings"
	"sync"
	"time"
)

// leastBodyRate is what a request body has to bring on average while it is waited for,
// in bytes per second: a modem's speed. What arrives a byte at a time, always just before
// the stall timeout, would hold two connections for as long as it likes.
const leastBodyRate = 128

var errTrickle = errors.New("request body: slower than 128 bytes a second")

// trickle judges how fast a sandbox sends a request body. Only the time in which it is
// waited for counts: not what an origin or a bandwidth limit takes. nil judges nothing.
// It is used by one reader at a time; close may come from elsewhere.
type trickle struct {
	window time.Duration
	waited time.Duration // in this window
	got    int64
	judged bool // the first window is free: who types by hand may take a minute

	mu    sync.Mutex
	rc    *http.ResponseController // of an h2 stream, whose silence nothing else ends; nil: h1
	timer *time.Timer
	over  bool // the handler has returned or is about to: rc must not be used
}

// newTrickle is for the body of r. A stream of messages has its own pace and is let be.
func newTrickle(w http.ResponseWriter, r *http.Request, window time.Duration) *trickle {
	if mediaType := r.Header.Get("Content-Type"); strings.HasPrefix(mediaType, "application/grpc") || strings.HasPrefix(mediaType, "application/connect+") {
		return nil
	}
	k := &trickle{window: window}
	if r.ProtoMajor == 2 {
		k.rc = http.NewResponseController(w)
	}
	return k
}

// read is one read of the body, under the clock.
func (k *trickle) read(p []byte, from func([]byte) (int, error)) (int, error) {
	if k == nil {
		return from(p)
	}
	k.arm()
	start := time.Now()
	n, err := from(p)
	k.disarm()
	k.waited += time.Since(start)
	if k.got += int64(n); k.waited < k.window {
		return n, err
	}
	slow := k.judged && k.got < int64(leastBodyRate*k.waited.Seconds())
	k.waited, k.got, k.judged = 0, 0, true
	if slow && err == nil {
		err = errTrickle
	}
	return n, err
}

func (k *trickle) arm() {
	if k.rc == nil {
		return
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	switch {
	case k.over:
	case k.timer == nil:
		k.timer = time.AfterFunc(k.window, k.expire)
	default:
		k.timer.Reset(k.window)
	}
}

func (k *trickle) disarm() {
	if k.rc == nil {
		return
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.timer != nil {
		k.timer.Stop()
	}
}

func (k *trickle) expire() {
	k.mu.Lock()
	defer k.mu.Unlock()
	if !k.over {
		_ = k.rc.SetReadDeadline(time.Unix(1, 0))
	}
}

// close comes before the handler returns.
func (k *trickle) close() {
	if k == nil || k.rc == nil {
		return
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.over = true
	if k.timer != nil {
		k.timer.Stop()
	}
}
