package redirect

import (
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"syscall"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// Supported is nil where the other functions can work, and else ErrUnsupported.
func Supported() error { return nil }

// Install puts the rules of s in force, in place of those that are there: at no moment is
// there neither. Errors: ErrSpec, ErrPrivilege, ErrUnsupported; after one of a route the
// rules are in force and TCP is refused.
func Install(s Spec) error {
	if err := s.Validate(); err != nil {
		return err
	}
	conn, err := nftables.New()
	if err != nil {
		return explain("netlink", err)
	}
	table := &nftables.Table{Name: tableName, Family: nftables.TableFamilyINet}
	conn.AddTable(table) // so that there is one to delete
	conn.DelTable(table)
	conn.AddTable(table)
	if err := s.rules().add(conn, table); err != nil {
		return err
	}
	if err := conn.Flush(); err != nil {
		return explain("netfilter", err)
	}
	return setRoutes(s)
}

// Remove takes away all that Install made, whatever Spec it had; nothing there is no
// error. Connections that the rules brought to egressd live on. Errors: ErrPrivilege,
// ErrUnsupported.
func Remove() error {
	conn, err := nftables.New()
	if err != nil {
		return explain("netlink", err)
	}
	table := &nftables.Table{Name: tableName, Family: nftables.TableFamilyINet}
	conn.AddTable(table)
	conn.DelTable(table)
	if err := conn.Flush(); err != nil {
		return explain("netfilter", err)
	}
	return setRoutes(Spec{})
}

// explain tells apart what the caller can do something about. The library wraps some
// errors as text only.
func explain(what string, err error) error {
	text := err.Error()
	switch {
	case errors.Is(err, syscall.EPERM), strings.Contains(text, unix.EPERM.Error()):
		return fmt.Errorf("%w (%s: %w)", ErrPrivilege, what, err)
	case errors.Is(err, syscall.EOPNOTSUPP), errors.Is(err, syscall.EPROTONOSUPPORT), errors.Is(err, syscall.EAFNOSUPPORT), errors.Is(err, syscall.ENOENT):
		return fmt.Errorf("%w: the kernel lacks nf_tables, or its nat, fib, reject or tproxy part (%s: %w)", ErrUnsupported, what, err)
	}
	return fmt.Errorf("%s: %w", what, err)
}

// elementsPerMessage keeps a netlink attribute below 64 KiB.
const elementsPerMessage = 512

func (r *ruleset) add(conn *nftables.Conn, table *nftables.Table) error {
	for i, s := range r.sets {
		set := s.kernel(table)
		set.ID = uint32(i + 1) // of this transaction; the library's own counter is shared
		if err := conn.AddSet(set, nil); err != nil {
			return fmt.Errorf("set %s: %w", s.name, err)
		}
		for elements := s.elements(); len(elements) > 0; {
			n := min(len(elements), elementsPerMessage)
			if err := conn.SetAddElements(set, elements[:n]); err != nil {
				return fmt.Errorf("set %s: %w", s.name, err)
			}
			elements = elements[n:]
		}
	}
	chains := make([]*nftables.Chain, 0, len(r.chains))
	for _, c := range r.chains { // all before the first rule that goes to one
		chains = append(chains, conn.AddChain(c.kernel(table)))
	}
	for i, c := range r.chains {
		for _, rule := range c.rules {
			conn.AddRule(&nftables.Rule{Table: table, Chain: chains[i], Exprs: rule.kernel()})
		}
	}
	return nil
}

func (s addressSet) kernel(table *nftables.Table) *nftables.Set {
	set := &nftables.Set{Table: table, Name: s.name, Interval: true, KeyType: nftables.TypeIPAddr, KeyByteOrder: binaryutil.BigEndian}
	if s.v6 {
		set.KeyType = nftables.TypeIP6Addr
	}
	return set
}

// elements are the beginnings and, exclusive, the ends of spans, as the kernel keeps them,
// after an end that closes what is below the first.
func (s addressSet) elements() []nftables.SetElement {
	var out []nftables.SetElement
	if len(s.spans) > 0 {
		out = append(out, nftables.SetElement{Key: make([]byte, s.spans[0].lo.BitLen()/8), IntervalEnd: true})
	}
	for _, sp := range s.spans {
		out = append(out, nftables.SetElement{Key: sp.lo.AsSlice()})
		if next := sp.hi.Next(); next.IsValid() {
			out = append(out, nftables.SetElement{Key: next.AsSlice(), IntervalEnd: true})
		}
	}
	return out
}

func (c chain) kernel(table *nftables.Table) *nftables.Chain {
	out := &nftables.Chain{Name: c.name, Table: table}
	if c.hook == "" {
		return out
	}
	accept := nftables.ChainPolicyAccept
	out.Type, out.Policy, out.Priority = nftables.ChainTypeFilter, &accept, nftables.ChainPriorityRef(nftables.ChainPriority(c.priority))
	if c.nat {
		out.Type = nftables.ChainTypeNAT
	}
	switch c.hook {
	case "prerouting":
		out.Hooknum = nftables.ChainHookPrerouting
	case "input":
		out.Hooknum = nftables.ChainHookInput
	case "forward":
		out.Hooknum = nftables.ChainHookForward
	case "output":
		out.Hooknum = nftables.ChainHookOutput
	}
	return out
}

func (r rule) kernel() []expr.Any {
	var out []expr.Any
	for _, t := range r {
		out = append(out, t.kernel()...)
	}
	return out
}

// register is the only one that rules use.
const register = 1

// kernel is the term in the form in which nft writes it and the kernel lists it.
func (t term) kernel() []expr.Any {
	switch t.op {
	case opInterface:
		name := make([]byte, unix.IFNAMSIZ)
		copy(name, t.name)
		if stem, wild := strings.CutSuffix(t.name, "*"); wild {
			name = []byte(stem)
		}
		return meta(expr.MetaKeyIIFNAME, name)
	case opSource:
		return t.source()
	case opProtocol:
		return meta(expr.MetaKeyL4PROTO, []byte{uint8(t.num)})
	case opPort:
		return append(meta(expr.MetaKeyL4PROTO, []byte{t.proto}),
			&expr.Payload{DestRegister: register, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
			equal(network16(t.num)))
	case opND:
		return append(append(meta(expr.MetaKeyNFPROTO, []byte{unix.NFPROTO_IPV6}), meta(expr.MetaKeyL4PROTO, []byte{protoICMPv6})...),
			&expr.Payload{DestRegister: register, Base: expr.PayloadBaseTransportHeader, Offset: 0, Len: 1},
			equal([]byte{uint8(t.num)}))
	case opMark:
		return meta(expr.MetaKeyMARK, native32(t.num))
	case opUID:
		return meta(expr.MetaKeySKUID, native32(t.num))
	case opReply:
		return []expr.Any{&expr.Ct{Key: expr.CtKeyDIRECTION, Register: register}, equal([]byte{1})}
	case opEstablished:
		return ctBits(expr.CtKeySTATE, expr.CtStateBitESTABLISHED|expr.CtStateBitRELATED)
	case opRedirected:
		return ctBits(expr.CtKeySTATUS, ipsDstNAT)
	case opLocal:
		return []expr.Any{&expr.Fib{Register: register, ResultADDRTYPE: true, FlagDADDR: true}, equal(native32(unix.RTN_LOCAL))}
	case opForged:
		return []expr.Any{&expr.Fib{Register: register, ResultOIF: true, FlagSADDR: true, FlagIIF: true, FlagPRESENT: true}, equal(native32(0))}
	}
	return t.verdict()
}

// ipsDstNAT is IPS_DST_NAT (linux/netfilter/nf_conntrack_common.h).
const ipsDstNAT = 1 << 5

// natPort is NF_NAT_RANGE_PROTO_SPECIFIED.
const natPort = 2

// icmpxPortUnreachable is NFT_REJECT_ICMPX_PORT_UNREACH.
const icmpxPortUnreachable = 1

func (t term) verdict() []expr.Any {
	switch t.op {
	case opAccept:
		return []expr.Any{&expr.Verdict{Kind: expr.VerdictAccept}}
	case opGoto:
		return []expr.Any{&expr.Verdict{Kind: expr.VerdictGoto, Chain: t.name}}
	case opRedirect:
		return []expr.Any{
			&expr.Immediate{Register: register, Data: network16(t.num)},
			&expr.Redir{RegisterProtoMin: register, RegisterProtoMax: register, Flags: natPort},
		}
	case opTProxy:
		return []expr.Any{
			&expr.Immediate{Register: register, Data: network16(t.num)},
			&expr.TProxy{Family: unix.NFPROTO_UNSPEC, TableFamily: unix.NFPROTO_INET, RegPort: register},
			&expr.Immediate{Register: register, Data: native32(t.mark)},
			&expr.Meta{Key: expr.MetaKeyMARK, SourceRegister: true, Register: register},
		}
	case opReject:
		return []expr.Any{&expr.Reject{Type: unix.NFT_REJECT_ICMPX_UNREACH, Code: icmpxPortUnreachable}}
	case opReset:
		return []expr.Any{&expr.Reject{Type: unix.NFT_REJECT_TCP_RST}}
	}
	return []expr.Any{&expr.Verdict{Kind: expr.VerdictDrop}}
}

func (t term) source() []expr.Any {
	family, offset, length := byte(unix.NFPROTO_IPV4), uint32(12), uint32(4)
	if t.v6 {
		family, offset, length = unix.NFPROTO_IPV6, 8, 16
	}
	return append(meta(expr.MetaKeyNFPROTO, []byte{family}),
		&expr.Payload{DestRegister: register, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: length},
		&expr.Lookup{SourceRegister: register, SetName: t.name, Invert: t.not})
}

func meta(key expr.MetaKey, value []byte) []expr.Any {
	return []expr.Any{&expr.Meta{Key: key, Register: register}, equal(value)}
}

func ctBits(key expr.CtKey, bits uint32) []expr.Any {
	return []expr.Any{
		&expr.Ct{Key: key, Register: register},
		&expr.Bitwise{SourceRegister: register, DestRegister: register, Len: 4, Mask: native32(bits), Xor: make([]byte, 4)},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: register, Data: make([]byte, 4)},
	}
}

func equal(value []byte) expr.Any {
	return &expr.Cmp{Op: expr.CmpOpEq, Register: register, Data: value}
}

func network16(n uint32) []byte { return binary.BigEndian.AppendUint16(nil, uint16(n)) }
func native32(n uint32) []byte  { return binary.NativeEndian.AppendUint32(nil, n) }
