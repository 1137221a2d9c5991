package isolate

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

const rulesStep = "nftables: "

// Of linux/netfilter/nf_conntrack_common.h and nf_tables.h.
const (
	ctInvalid        = 1 << 0
	ctEstablished    = 1 << 1
	ctRelated        = 1 << 2
	ctStatusDstNAT   = 1 << 5
	rejectTCPReset   = 1
	rejectICMPX      = 2
	icmpxPort        = 1
	icmpxAdmin       = 3
	offsetDst4       = 16
	offsetDst6       = 24
	offsetDstPort    = 2
	reg              = 1
	dns              = 53
	loopbackNet4Byte = 127
)

// makeRules leads what the command sends to the listeners and refuses the rest. In the words
// of nft:
//
//	table inet egressd {
//	  chain lead { type nat hook output priority dstnat
//	    udp dport 53 redirect to :65053
//	    tcp dport 53 redirect to :65053
//	    LOOPBACK accept
//	    meta l4proto tcp redirect to :65001
//	  }
//	  chain guard { type filter hook output priority filter; policy drop
//	    ct state established,related accept
//	    ct state invalid drop
//	    ct status dnat accept
//	    tcp dport { 65001, 65053 } reject with tcp reset
//	    udp dport 65053 reject
//	    LOOPBACK accept
//	    meta l4proto udp reject with icmpx port-unreachable
//	    reject with icmpx admin-prohibited
//	  }
//	}
//
// LOOPBACK being ip daddr { 127.0.0.0/8, OWN4 } and ip6 daddr { ::1, OWN6 }. What is refused
// is refused at once, so that a client of QUIC falls back to TCP.
func makeRules() error {
	c, err := nftables.New()
	if err != nil {
		return err
	}
	table := c.AddTable(&nftables.Table{Family: nftables.TableFamilyINet, Name: "egressd"})
	drop := nftables.ChainPolicyDrop
	lead := c.AddChain(&nftables.Chain{Name: "lead", Table: table, Type: nftables.ChainTypeNAT,
		Hooknum: nftables.ChainHookOutput, Priority: nftables.ChainPriorityNATDest})
	guard := c.AddChain(&nftables.Chain{Name: "guard", Table: table, Type: nftables.ChainTypeFilter,
		Hooknum: nftables.ChainHookOutput, Priority: nftables.ChainPriorityFilter, Policy: &drop})
	add := func(chain *nftables.Chain, parts ...[]expr.Any) {
		c.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: slices.Concat(parts...)})
	}
	add(lead, toPort(unix.IPPROTO_UDP, dns), redirect(dnsPort))
	add(lead, toPort(unix.IPPROTO_TCP, dns), redirect(dnsPort))
	for _, here := range loopback() {
		add(lead, here, verdict(expr.VerdictAccept))
	}
	add(lead, l4proto(unix.IPPROTO_TCP), redirect(redirectPort))

	add(guard, ctHas(expr.CtKeySTATE, ctEstablished|ctRelated), verdict(expr.VerdictAccept))
	add(guard, ctHas(expr.CtKeySTATE, ctInvalid), verdict(expr.VerdictDrop))
	add(guard, ctHas(expr.CtKeySTATUS, ctStatusDstNAT), verdict(expr.VerdictAccept))
	add(guard, toPort(unix.IPPROTO_TCP, redirectPort), reset())
	add(guard, toPort(unix.IPPROTO_TCP, dnsPort), reset())
	add(guard, toPort(unix.IPPROTO_UDP, dnsPort), reject(icmpxPort))
	for _, here := range loopback() {
		add(guard, here, verdict(expr.VerdictAccept))
	}
	add(guard, l4proto(unix.IPPROTO_UDP), reject(icmpxPort))
	add(guard, reject(icmpxAdmin))
	if err := c.Flush(); err != nil {
		return fmt.Errorf("rules: %w", err)
	}
	return nil
}

// loopback matches what stays between the command's own processes, one rule each.
func loopback() [][]expr.Any {
	a4, a6, one := own4().As4(), own6().As16(), netip.IPv6Loopback().As16()
	return [][]expr.Any{
		daddr(unix.NFPROTO_IPV4, offsetDst4, []byte{loopbackNet4Byte}),
		daddr(unix.NFPROTO_IPV4, offsetDst4, a4[:]),
		daddr(unix.NFPROTO_IPV6, offsetDst6, one[:]),
		daddr(unix.NFPROTO_IPV6, offsetDst6, a6[:]),
	}
}

// daddr matches a family and the first bytes of the address aimed at.
func daddr(family byte, offset uint32, prefix []byte) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: reg},
		&expr.Cmp{Op: expr.CmpOpEq, Register: reg, Data: []byte{family}},
		&expr.Payload{DestRegister: reg, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: uint32(len(prefix))},
		&expr.Cmp{Op: expr.CmpOpEq, Register: reg, Data: prefix},
	}
}

func l4proto(proto byte) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: reg},
		&expr.Cmp{Op: expr.CmpOpEq, Register: reg, Data: []byte{proto}},
	}
}

func toPort(proto byte, port uint16) []expr.Any {
	return append(l4proto(proto),
		&expr.Payload{DestRegister: reg, Base: expr.PayloadBaseTransportHeader, Offset: offsetDstPort, Len: 2},
		&expr.Cmp{Op: expr.CmpOpEq, Register: reg, Data: binary.BigEndian.AppendUint16(nil, port)})
}

// redirect sends to a port of this namespace's loopback.
func redirect(port uint16) []expr.Any {
	return []expr.Any{
		&expr.Immediate{Register: reg, Data: binary.BigEndian.AppendUint16(nil, port)},
		&expr.Redir{RegisterProtoMin: reg, Flags: unix.NF_NAT_RANGE_PROTO_SPECIFIED},
	}
}

// ctHas matches when any of bits is set.
func ctHas(key expr.CtKey, bits uint32) []expr.Any {
	zero := make([]byte, 4)
	return []expr.Any{
		&expr.Ct{Key: key, Register: reg},
		&expr.Bitwise{SourceRegister: reg, DestRegister: reg, Len: 4, Mask: binary.NativeEndian.AppendUint32(nil, bits), Xor: zero},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: reg, Data: zero},
	}
}

func verdict(k expr.VerdictKind) []expr.Any { return []expr.Any{&expr.Verdict{Kind: k}} }

func reject(code uint8) []expr.Any {
	return []expr.Any{&expr.Reject{Type: rejectICMPX, Code: code}}
}

// reset is how a TCP client learns at once that it is refused.
func reset() []expr.Any { return []expr.Any{&expr.Reject{Type: rejectTCPReset}} }
