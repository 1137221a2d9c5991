//go:build !linux

package proxy

import (
	"context"
	"errors"
	"net"
	"net/netip"
)

var errNoTransparent = errors.New("transparent listeners need Linux")

func originalDst(net.Conn, Kind) (netip.AddrPort, error) { return netip.AddrPort{}, errNoTransparent }

// ListenTransparent is for Linux.
func ListenTransparent(context.Context, Kind, string) ([]net.Listener, error) {
	return nil, errNoTransparent
}
