package proxy

import (
	"errors"
	"io"
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
// waited for counts: not what an origin or a bandwidth limit takes. It is used by one
// reader at a time; end may come from elsewhere.
type trickle struct {
	io.ReadCloser
	window time.Duration
	waited time.Duration // in this window
	got    int64
	judged bool // the first window is free: who types by hand may take a minute

	mu    sync.Mutex
	rc    *http.ResponseController // of an h2 stream, whose silence nothing else ends; nil: h1
	timer *time.Timer
	over  bool // the handler has returned or is about to: rc must not be used
}

// newTrickle is for the body of r; nil when there is none to judge. An h2 stream
// of messages has its own pace and is let be.
func newTrickle(w http.ResponseWriter, r *http.Request, window time.Duration) *trickle {
	if r.Body == nil || r.Body == http.NoBody {
		return nil
	}
	if r.ProtoMajor != 2 {
		return &trickle{ReadCloser: r.Body, window: window}
	}
	if mediaType := r.Header.Get("Content-Type"); strings.HasPrefix(mediaType, "application/grpc") || strings.HasPrefix(mediaType, "application/connect+") {
		return nil
	}
	return &trickle{ReadCloser: r.Body, window: window, rc: http.NewResponseController(w)}
}

// Read is one read of the body, under the clock.
func (k *trickle) Read(p []byte) (int, error) {
	k.arm()
	start := time.Now()
	n, err := k.ReadCloser.Read(p)
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

// end comes before the handler returns.
func (k *trickle) end() {
	if k.rc == nil {
		return
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.over = true
	if k.timer != nil {
		k.timer.Stop()
	}
}

// tooSlow: a sandbox has not sent its body in time.
func tooSlow(err error) bool { return errors.Is(err, errTrickle) || isTimeout(err) }

func slowBody(err error) *refusal {
	return &refusal{status: http.StatusRequestTimeout, code: codeBadRequest, detail: err.Error(), close: true}
}
