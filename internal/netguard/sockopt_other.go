//go:build !linux

package netguard

import (
	"syscall"
	"time"
)

// setUserTimeout does nothing where the kernel has no such option; keep-alive remains.
func setUserTimeout(syscall.RawConn, time.Duration) error { return nil }
