// Package redirect makes the traffic of sandboxes transparent: netfilter rules that bring
// each TCP connection of theirs to egressd's listeners, their DNS to its resolver, and
// nothing else of theirs anywhere.
//
// A [Spec] says whose traffic and which listeners. From it ruleset.go makes one table,
// `inet egressd`, in a form of our own, of which text.go writes what nft reads and
// nft_linux.go what the kernel reads, so that what is printed is what is installed. TPROXY
// also needs a policy route, of which routes_linux.go takes care.
//
// All of it fails closed: rules stay when egressd ends, and what no rule has a place for
// is dropped. [Install], [Remove] and [Status] act on the network namespace of the calling
// thread; who changes namespaces locks the thread first.
package redirect

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

var (
	// ErrUnsupported: not Linux, or a kernel without what the rules need.
	ErrUnsupported = errors.New("transparent redirection is not possible here")
	// ErrPrivilege: the process lacks CAP_NET_ADMIN in its network namespace.
	ErrPrivilege = errors.New("netfilter and routes need CAP_NET_ADMIN")
	// ErrSpec: a Spec that makes no safe set of rules.
	ErrSpec = errors.New("not a usable redirection")
)

// Mode is how TCP reaches egressd. The zero value is none.
type Mode uint8

const (
	// NAT rewrites the destination to the host's own address (REDIRECT): for listen.redirect.
	NAT Mode = iota + 1
	// TProxy leaves packets as they are and routes them to a transparent socket: for listen.tproxy.
	TProxy
)

// String is the name that --mode takes.
func (m Mode) String() string {
	switch m {
	case NAT:
		return "redirect"
	case TProxy:
		return "tproxy"
	}
	return "none"
}

// DefaultMark is the packet mark and the number of the route table that TPROXY uses.
const DefaultMark = 0xe9d

// maxInterfaceName is IFNAMSIZ less its NUL.
const maxInterfaceName = 15

// Spec says whose traffic goes where. At least one of Interfaces, Sources and UIDs has to
// be set. With Interfaces and Sources both, an address of Sources on another interface is
// dropped as forged, and so is any other address on Interfaces.
type Spec struct {
	Mode Mode
	// Port is that of listen.redirect or listen.tproxy, after Mode.
	Port uint16
	// DNSPort is that of listen.dns: DNS to whatever server goes there. 0: DNS over UDP is
	// dropped, over TCP it is a connection like others.
	DNSPort uint16
	// ProxyPort is an explicit proxy on the host that stays reachable. 0: none.
	ProxyPort uint16
	// Interfaces are where sandboxes' packets arrive; a name may end in * for all that
	// begin so.
	Interfaces []string
	// Sources are sandboxes' addresses, IPv4 and IPv6.
	Sources []netip.Prefix
	// UIDs are local users whose processes are sandboxes; with NAT only.
	UIDs []uint32
	// Mark is for TProxy: packet mark and route table. 0: DefaultMark.
	Mark uint32
}

// Validate gives ErrSpec with the reason in one line.
func (s Spec) Validate() error {
	bad := func(format string, args ...any) error {
		return fmt.Errorf("%w: %s", ErrSpec, fmt.Sprintf(format, args...))
	}
	switch {
	case s.Mode != NAT && s.Mode != TProxy:
		return bad("no mode")
	case s.Port == 0:
		return bad("no port to bring connections to")
	case s.Port == s.DNSPort || s.Port == s.ProxyPort || s.DNSPort != 0 && s.DNSPort == s.ProxyPort:
		return bad("two listeners have the same port")
	case len(s.Interfaces) == 0 && len(s.Sources) == 0 && len(s.UIDs) == 0:
		return bad("no interface, no source address and no uid says whose traffic is meant")
	case s.Mode == TProxy && len(s.UIDs) > 0:
		return bad("local users' traffic can be redirected, not tproxied")
	case s.Mark != 0 && s.Mark <= 0xff:
		return bad("marks up to 255 are the kernel's own route tables")
	case slices.Contains(s.UIDs, 0):
		return bad("uid 0 can remove the rules, and egressd may run as it")
	}
	for _, name := range s.Interfaces {
		if !validInterface(name) {
			return bad("%q is no interface name", name)
		}
	}
	for _, p := range s.Sources {
		switch {
		case !p.IsValid() || p.Addr().Is4In6():
			return bad("a source is no address range")
		case p.Bits() == 0:
			return bad("%s is everybody, the destinations included", p)
		case p.Masked().Contains(netip.IPv4Unspecified()) || p.Masked().Contains(netip.IPv6Loopback()) || p.Overlaps(loopback4):
			return bad("%s holds addresses of this host alone", p)
		}
	}
	return nil
}

var loopback4 = netip.PrefixFrom(netip.AddrFrom4([4]byte{127}), 8)

// validInterface keeps out what would mean something else in nft's syntax.
func validInterface(name string) bool {
	stem := strings.TrimSuffix(name, "*")
	if stem == "" || stem == "lo" || len(name) > maxInterfaceName {
		return false
	}
	for _, c := range []byte(stem) {
		if c <= ' ' || c >= 0x7f || strings.IndexByte(`"*/\;{}`, c) >= 0 {
			return false
		}
	}
	return true
}

func (s Spec) mark() uint32 {
	if s.Mark == 0 {
		return DefaultMark
	}
	return s.Mark
}
