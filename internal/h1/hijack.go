package h1

import (
	"net"
	"sync/atomic"
)

// ahead is a connection of which some bytes have been read.
type ahead struct {
	net.Conn
	rest []byte
}

func (a *ahead) Read(p []byte) (int, error) {
	if len(a.rest) > 0 {
		n := copy(p, a.rest)
		a.rest = a.rest[n:]
		return n, nil
	}
	return a.Conn.Read(p)
}

// CloseWrite half-closes where the connection can.
func (a *ahead) CloseWrite() error {
	if hc, ok := a.Conn.(interface{ CloseWrite() error }); ok {
		return hc.CloseWrite()
	}
	return nil
}

// NetConn gives the connection beneath, whose next bytes come after those read ahead.
func (a *ahead) NetConn() net.Conn { return a.Conn }

// watcher reads one byte ahead while a handler waits.
type watcher struct {
	done    chan struct{}
	stopped atomic.Bool
}

// WatchDisconnect implements DisconnectWatcher.
func (w *response) WatchDisconnect(abort func()) {
	c := w.c
	// The body first: while it is being read its reader owns the connection's.
	if w.watch != nil || c.hijacked || !w.body.whole() || c.rd.buffered() > 0 {
		return
	}
	wt := &watcher{done: make(chan struct{})}
	w.watch = wt
	c.read.clear(c.nc)
	go func() { // stopWatch waits for it
		defer close(wt.done)
		n, err := c.nc.Read(c.first[:])
		if n == 1 {
			c.rd.put(c.first[0])
			return
		}
		if err != nil && !wt.stopped.Load() {
			abort()
		}
	}()
}

func (w *response) stopWatch() {
	if w.watch == nil {
		return
	}
	w.watch.stopped.Store(true)
	_ = w.c.nc.SetReadDeadline(aLongTimeAgo)
	<-w.watch.done
	w.watch = nil
	w.c.read.forget()
}
