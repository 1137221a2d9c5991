package proxy

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync/atomic"
)

// errClientBody marks an error that came from the sandbox's side of a request body.
var errClientBody = errors.New("request body")

// bodyCounter counts what was read of a request body and marks its errors.
type bodyCounter struct {
	io.ReadCloser
	n     atomic.Int64
	pace  *pace
	ctx   context.Context //nolint:containedctx // of the request
	atEnd func() error    // nil, or what to do when the body and its trailers have been read
}

// countBody wraps r.Body; nil when there is none.
func countBody(r *http.Request, at *pace) *bodyCounter {
	if r.Body == nil || r.Body == http.NoBody {
		return nil
	}
	b := &bodyCounter{ReadCloser: r.Body, pace: at, ctx: r.Context()}
	r.Body = b
	return b
}

func (b *bodyCounter) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	b.n.Add(int64(n))
	if werr := b.pace.wait(b.ctx, true, n); werr != nil && err == nil {
		err = werr
	}
	switch {
	case err == nil:
	case errors.Is(err, io.EOF):
		if b.atEnd == nil {
			break
		}
		if lerr := b.atEnd(); lerr != nil {
			err = fmt.Errorf("%w: %w", errClientBody, lerr)
		}
	default:
		err = fmt.Errorf("%w: %w", errClientBody, err)
	}
	return n, err
}

func (b *bodyCounter) count() int64 {
	if b == nil {
		return 0
	}
	return b.n.Load()
}

// newBody is a body that is there already.
func newBody(b []byte) io.ReadCloser {
	if len(b) == 0 {
		return http.NoBody
	}
	return io.NopCloser(bytes.NewReader(b))
}
