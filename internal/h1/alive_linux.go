package h1

import "golang.org/x/sys/unix"

// peerClosed sees a FIN also behind bytes that nobody has read.
func peerClosed(fd int) bool {
	fds := [1]unix.PollFd{{Fd: int32(fd), Events: unix.POLLRDHUP}}
	n, err := unix.Poll(fds[:], 0)
	return err == nil && n > 0
}
