package h1

import (
	"net"
	"time"
)

// readDeadline remembers the read deadline that is set on a connection: to set one
// costs a timer, and most are never reached. Not safe for concurrent use.
type readDeadline struct{ at time.Time }

// set makes the deadline d from now, unless one within a quarter before that is
// set; 0 is none.
func (r *readDeadline) set(nc net.Conn, d time.Duration) {
	if d <= 0 {
		r.clear(nc)
		return
	}
	want := time.Now().Add(d)
	if diff := want.Sub(r.at); diff < 0 || diff > d/4 {
		r.at = want
		_ = nc.SetReadDeadline(want)
	}
}

// exactly makes the deadline d from now; 0 is none.
func (r *readDeadline) exactly(nc net.Conn, d time.Duration) {
	if d <= 0 {
		r.clear(nc)
		return
	}
	r.at = time.Now().Add(d)
	_ = nc.SetReadDeadline(r.at)
}

func (r *readDeadline) clear(nc net.Conn) {
	if r.at != (time.Time{}) {
		r.at = time.Time{}
		_ = nc.SetReadDeadline(time.Time{})
	}
}

// forget is for when somebody else may have set a deadline: no claim is made about
// what is set, and the next call sets one.
func (r *readDeadline) forget() { r.at = aLongTimeAgo }

// writeDeadline is the same for writes.
type writeDeadline struct{ at time.Time }

func (w *writeDeadline) set(nc net.Conn, d time.Duration) {
	if d <= 0 {
		if w.at != (time.Time{}) {
			w.at = time.Time{}
			_ = nc.SetWriteDeadline(time.Time{})
		}
		return
	}
	want := time.Now().Add(d)
	if diff := want.Sub(w.at); diff < 0 || diff > d/4 {
		w.at = want
		_ = nc.SetWriteDeadline(want)
	}
}
