//go:build !linux

package hardening

import "math"

// HardenProcess does nothing here: egressd is meant to hold secrets on Linux.
func HardenProcess() error { return nil }

// RaiseFileLimit leaves the limit to the Go runtime, which raises it at start.
func RaiseFileLimit() (uint64, error) { return math.MaxUint64, nil }
