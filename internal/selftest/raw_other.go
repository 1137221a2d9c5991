//go:build !linux

package selftest

import (
	"context"
	"net/netip"
)

type rawKind struct {
	name  string
	proto int
}

const onLinux = "tried on Linux only"

func rawProbes() []rawKind { return nil }

func tryPing(context.Context, netip.Addr) (Verdict, string)     { return Skipped, onLinux }
func tryRaw(context.Context, netip.Addr, int) (Verdict, string) { return Skipped, onLinux }
func tryVsock(context.Context) (Verdict, string)                { return Skipped, onLinux }
