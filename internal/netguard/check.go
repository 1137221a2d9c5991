package netguard

import (
	"encoding/binary"
	"fmt"
	"net/netip"
)

// forbidden4 is what is not the public IPv4 internet (IANA's special-purpose registry).
func forbidden4(a netip.Addr) string {
	v := binary.BigEndian.Uint32(a.AsSlice())
	in := func(net uint32, bits int) bool { return v>>(32-bits) == net>>(32-bits) }
	switch {
	case in(0x7f000000, 8):
		return "loopback"
	case in(0x00000000, 8):
		return "unspecified"
	case in(0x0a000000, 8), in(0xac100000, 12), in(0xc0a80000, 16):
		return "private"
	case in(0xa9fe0000, 16):
		return "link-local"
	case in(0x64400000, 10):
		return "shared by carriers (100.64.0.0/10)"
	case in(0xc0000000, 24):
		return "reserved for protocols (192.0.0.0/24)"
	case in(0xc0000200, 24), in(0xc6336400, 24), in(0xcb007100, 24):
		return "for documentation"
	case in(0xc6120000, 15):
		return "for benchmarks (198.18.0.0/15)"
	case in(0xc0586300, 24):
		return "a 6to4 relay (192.88.99.0/24)"
	case in(0xe0000000, 4):
		return "multicast"
	case in(0xf0000000, 4):
		return "reserved or broadcast"
	}
	return ""
}

// forbidden6 is what is not the public IPv6 internet. Only 2000::/3 is; in it, and in
// the well-known NAT64 prefix, an IPv4 address may hide, which is looked at by embedded.
func forbidden6(a netip.Addr) string {
	b := a.As16()
	word := func(i int) uint16 { return binary.BigEndian.Uint16(b[2*i:]) }
	switch {
	case a.IsLoopback():
		return "loopback"
	case a.IsUnspecified():
		return "unspecified"
	case b[0] == 0xff:
		return "multicast"
	case b[0]&0xfe == 0xfc:
		return "unique local (fc00::/7)"
	case b[0] == 0xfe && b[1]&0xc0 == 0x80:
		return "link-local"
	case b[0]>>5 != 1 && !isNAT64(b):
		return "outside the public range 2000::/3"
	case word(0) == 0x2001 && word(1) == 0xdb8, word(0) == 0x3fff && word(1)>>12 == 0:
		return "for documentation"
	case word(0) == 0x2001 && word(1) < 0x200:
		return "reserved for protocols (2001::/23)"
	}
	return ""
}

// isNAT64 is 64:ff9b::/96 (RFC 6052).
func isNAT64(b [16]byte) bool {
	return [12]byte(b[:12]) == [12]byte{0, 0x64, 0xff, 0x9b}
}

// embedded yields the IPv4 addresses that a public-looking IPv6 address stands for:
// NAT64 (RFC 6052), 6to4 (RFC 3056), Teredo's server and client (RFC 4380) and ISATAP
// (RFC 5214).
func embedded(a netip.Addr) (out [2]netip.Addr, n int) {
	if a.Is4() {
		return out, 0
	}
	b := a.As16()
	add := func(v [4]byte) { out[n] = netip.AddrFrom4(v); n++ }
	switch {
	case isNAT64(b):
		add([4]byte(b[12:]))
	case b[0] == 0x20 && b[1] == 0x02:
		add([4]byte(b[2:6]))
	case [4]byte(b[:4]) == [4]byte{0x20, 0x01}:
		add([4]byte(b[4:8]))
		add([4]byte{^b[12], ^b[13], ^b[14], ^b[15]})
	case b[8]&^2 == 0 && b[9] == 0 && b[10] == 0x5e && b[11] == 0xfe:
		add([4]byte(b[12:]))
	}
	return out, n
}

// isMetadata knows the addresses that clouds serve credentials and agents from.
func isMetadata(a netip.Addr) bool {
	switch a.String() {
	case "169.254.169.254", // AWS, GCP, Azure, OCI, DigitalOcean, OpenStack …
		"169.254.170.2", "169.254.170.23", // ECS tasks, EKS pod identity
		"169.254.169.253", "169.254.169.123", // AWS DNS and time
		"169.254.0.23",                                                    // Tencent
		"100.100.100.200",                                                 // Alibaba
		"168.63.129.16",                                                   // Azure's wire server; a public address
		"192.0.0.192",                                                     // Oracle
		"fd00:ec2::254", "fd00:ec2::23", "fd00:ec2::253", "fd00:ec2::123", // AWS
		"fd20:ce::254",    // GCP
		"fd00:42::42",     // Scaleway
		"fe80::a9fe:a9fe": // OpenStack
		return true
	}
	return false
}

// Check says whether a sandbox's traffic may be dialled to dst: nil or
// ErrForbiddenAddress with the reason, which is for the operator and not for the
// sandbox.
func (g *Guard) Check(dst netip.AddrPort) error {
	a := dst.Addr()
	if !a.IsValid() || a.Zone() != "" || dst.Port() == 0 {
		return fmt.Errorf("%w: %s: not an address and port without a zone", ErrForbiddenAddress, dst)
	}
	a = a.Unmap()
	if err := g.checkOwn(a, dst.Port()); err != nil {
		return err
	}
	if why := g.refuse(a); why != "" {
		return fmt.Errorf("%w: %s is %s", ErrForbiddenAddress, a, why)
	}
	return nil
}

// refuse gives the reason against an unmapped address, or "". What metadata is served
// from stays closed in every disguise, even where the range around the disguise is open.
func (g *Guard) refuse(a netip.Addr) string {
	inner, n := embedded(a)
	switch {
	case g.allowsExactly(a):
		return ""
	case isMetadata(a):
		return "a cloud metadata address"
	}
	for _, v4 := range inner[:n] {
		if isMetadata(v4) {
			return "a cloud metadata address in IPv6"
		}
	}
	if g.allows(a) {
		return ""
	}
	if a.Is4() {
		return forbidden4(a)
	}
	if why := forbidden6(a); why != "" {
		return why
	}
	for _, v4 := range inner[:n] {
		if why := forbidden4(v4); why != "" && !g.allows(v4) {
			return why + " in IPv6"
		}
	}
	return ""
}

func (g *Guard) allows(a netip.Addr) bool {
	for _, p := range g.allow {
		if p.Contains(a) {
			return true
		}
	}
	return false
}

func (g *Guard) allowsExactly(a netip.Addr) bool {
	for _, p := range g.allow {
		if p.IsSingleIP() && p.Addr() == a {
			return true
		}
	}
	return false
}

// checkOwn refuses egressd's own listeners: the port of one, on any address that leads to
// this machine, whichever of them it listens on. That takes too much rather than too little.
func (g *Guard) checkOwn(a netip.Addr, port uint16) error {
	if g.own == nil {
		return nil
	}
	match := false
	for _, l := range g.own() {
		if l.Port() != port {
			continue
		}
		if l.Addr().Unmap() == a {
			return fmt.Errorf("%w: %s is egressd itself", ErrForbiddenAddress, netip.AddrPortFrom(a, port))
		}
		match = true
	}
	if !match {
		return nil
	}
	local, err := g.isLocal(a)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrForbiddenAddress, err)
	}
	if local {
		return fmt.Errorf("%w: %s is egressd itself", ErrForbiddenAddress, netip.AddrPortFrom(a, port))
	}
	return nil
}

func (g *Guard) isLocal(a netip.Addr) (bool, error) {
	if a.IsLoopback() || a.IsUnspecified() {
		return true, nil
	}
	inner, n := embedded(a) // a disguise of an address of ours is ours
	for _, v4 := range inner[:n] {
		if local, err := g.isLocal(v4); local || err != nil {
			return local, err
		}
	}
	return g.local.has(a)
}
