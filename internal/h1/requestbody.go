package h1

import (
	"io"
	"net/http"
	"sync"
	"sync/atomic"
)

// requestBody is a request's body. One reader at a time; Close may come from
// another goroutine.
type requestBody struct {
	c       *conn // nil: the request has no body
	req     *http.Request
	expects atomic.Bool // 100 Continue is due before the first byte
	touched atomic.Bool // a byte has been asked for
	mu      sync.Mutex
	p       payload
	closed  bool
}

func (b *requestBody) Read(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return 0, http.ErrBodyReadAfterClose
	}
	b.touched.Store(true)
	if b.expects.Swap(false) {
		if err := b.c.resp.sendContinue(); err != nil {
			return 0, err
		}
	}
	b.c.inBody = true
	n, err := b.p.Read(p)
	if err == io.EOF && b.p.trailer != nil {
		b.req.Trailer = b.p.trailer
	}
	return n, err
}

// whole says whether the body has been read to its end and nobody is reading it.
func (b *requestBody) whole() bool {
	if b.c == nil {
		return true
	}
	if !b.mu.TryLock() {
		return false
	}
	defer b.mu.Unlock()
	return b.p.err == io.EOF
}

// Close ends a Read in flight, and all that would follow.
func (b *requestBody) Close() error {
	b.lock()
	b.closed = true
	b.mu.Unlock()
	return nil
}

// lock takes the lock, from a reader if need be: its connection will not be used for
// another request. A reader sets its deadline first and then looks at cut, so that
// either it sees cut or its deadline is overwritten.
func (b *requestBody) lock() {
	if b.mu.TryLock() {
		return
	}
	b.c.cut.Store(true)
	_ = b.c.nc.SetReadDeadline(aLongTimeAgo)
	b.mu.Lock()
}

// tooMuch says whether more is left of a body that nobody asked for than finish
// would read.
func (b *requestBody) tooMuch() bool {
	return b.c != nil && !b.touched.Load() && (b.expects.Load() || b.req.ContentLength > drainLimit)
}

// finish ends the body when the handler is done: a reader that is still there is
// thrown out, a short rest is read. False: the connection cannot be used again.
func (b *requestBody) finish() bool {
	b.lock()
	defer b.mu.Unlock()
	b.closed = true
	switch {
	case b.p.err == io.EOF:
		return !b.c.cut.Load()
	case b.p.err != nil, b.c.cut.Load(), b.expects.Load(), b.p.left > drainLimit:
		return false // expects: never asked for, the client may send it or not
	}
	buf := getBuffer(&readBuffers)
	defer readBuffers.Put(buf)
	b.c.inBody = true
	for left := drainLimit; left > 0; {
		n, err := b.p.Read(buf.b)
		if left -= n; err != nil {
			return err == io.EOF
		}
	}
	return false
}
