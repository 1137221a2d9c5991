package wire

import (
	"context"
	"errors"
	"io"
	"net"
	"time"
)

const (
	defaultTime = 10 * time.Second // of a phase for which no limit was given
	lingerTime  = 500 * time.Millisecond
	lingerBytes = 64 << 10
)

// Phase gives c until the end of d (10 s for none), or of ctx, for what is done on it. end
// takes the bound away and says with err what ended the phase first.
func Phase(ctx context.Context, c net.Conn, d time.Duration) (end func(err error) error) {
	if d <= 0 {
		d = defaultTime
	}
	_ = c.SetDeadline(time.Now().Add(d))
	stop := context.AfterFunc(ctx, func() { _ = c.SetDeadline(time.Unix(1, 0)) })
	return func(err error) error {
		if !stop() && ctx.Err() != nil {
			return errors.Join(context.Cause(ctx), err)
		}
		return errors.Join(err, c.SetDeadline(time.Time{}))
	}
}

// Last writes the last that a client is told. It waits half a second for the client to go, so
// that bytes that it has sent ahead do not turn the answer into a reset.
func Last(c net.Conn, answer []byte) {
	_ = c.SetDeadline(time.Now().Add(lingerTime))
	if _, err := c.Write(answer); err != nil {
		return
	}
	if hc, ok := c.(interface{ CloseWrite() error }); ok && hc.CloseWrite() == nil {
		_, _ = io.CopyN(io.Discard, c, lingerBytes)
	}
}
