package redirect

import (
	"fmt"
	"strings"
)

// Text is what Install makes, as a script for `nft -f` that replaces the table in one
// transaction. For TPROXY the route that goes with it stands above, as comments. Errors:
// ErrSpec.
func (s Spec) Text() (string, error) {
	if err := s.Validate(); err != nil {
		return "", err
	}
	var b strings.Builder
	for _, line := range s.routeLines() {
		b.WriteString("# " + line + "\n")
	}
	fmt.Fprintf(&b, "table inet %[1]s\ndelete table inet %[1]s\n", tableName)
	s.rules().write(&b)
	return b.String(), nil
}

// routeLines are the commands for the route of TPROXY.
func (s Spec) routeLines() []string {
	if s.Mode != TProxy {
		return nil
	}
	var out []string
	for _, family := range []string{"-4", "-6"} {
		out = append(out,
			fmt.Sprintf("ip %s rule add fwmark %#x lookup %d priority %d protocol %d", family, s.mark(), s.mark(), rulePriority, routeProtocol),
			fmt.Sprintf("ip %s route add local default dev lo table %d proto %d", family, s.mark(), routeProtocol))
	}
	return out
}

const (
	// rulePriority puts our rule between the kernel's local table (0) and those that
	// VPNs and container networks use (from 100 on).
	rulePriority = 99
	// routeProtocol marks rules and routes as ours, for Remove.
	routeProtocol = 0xe9
)

func (r *ruleset) write(b *strings.Builder) {
	fmt.Fprintf(b, "table inet %s {\n", tableName)
	for _, s := range r.sets {
		fmt.Fprintf(b, "\tset %s {\n\t\ttype %s\n\t\tflags interval\n", s.name, s.kind())
		if len(s.spans) > 0 {
			var all []string
			for _, sp := range s.spans {
				all = append(all, sp.String())
			}
			fmt.Fprintf(b, "\t\telements = { %s }\n", strings.Join(all, ", "))
		}
		b.WriteString("\t}\n\n")
	}
	for i, c := range r.chains {
		if i > 0 {
			b.WriteString("\n")
		}
		c.write(b)
	}
	b.WriteString("}\n")
}

func (s addressSet) kind() string {
	if s.v6 {
		return "ipv6_addr"
	}
	return "ipv4_addr"
}

func (c chain) write(b *strings.Builder) {
	fmt.Fprintf(b, "\tchain %s {\n", c.name)
	if c.hook != "" {
		kind := "filter"
		if c.nat {
			kind = "nat"
		}
		fmt.Fprintf(b, "\t\ttype %s hook %s priority %s; policy accept;\n", kind, c.hook, c.priorityText())
	}
	for _, r := range c.rules {
		fmt.Fprintf(b, "\t\t%s\n", r)
	}
	b.WriteString("\t}\n")
}

// priorityText is as nft lists it: after a name where the hook has one near.
func (c chain) priorityText() string {
	switch {
	case c.priority == priorityMangle:
		return "mangle"
	case c.priority == priorityFilter:
		return "filter - 10"
	case c.hook == "prerouting":
		return "dstnat - 10"
	}
	return fmt.Sprint(c.priority)
}

// String is the rule in nft's syntax.
func (r rule) String() string {
	words := make([]string, 0, len(r))
	for _, t := range r {
		words = append(words, t.String())
	}
	return strings.Join(words, " ")
}

func (t term) String() string {
	switch t.op {
	case opInterface:
		return fmt.Sprintf("iifname %q", t.name)
	case opSource:
		family, not := "ip", ""
		if t.v6 {
			family = "ip6"
		}
		if t.not {
			not = "!= "
		}
		return fmt.Sprintf("%s saddr %s@%s", family, not, t.name)
	case opProtocol:
		return "meta l4proto " + protocolName(uint8(t.num))
	case opPort:
		return fmt.Sprintf("%s dport %d", protocolName(t.proto), t.num)
	case opND:
		return "icmpv6 type " + discoveryName(t.num)
	case opMark:
		return fmt.Sprintf("meta mark 0x%08x", t.num)
	case opUID:
		return fmt.Sprintf("meta skuid %d", t.num)
	case opGoto:
		return "goto " + t.name
	case opRedirect:
		return fmt.Sprintf("redirect to :%d", t.num)
	case opTProxy:
		return fmt.Sprintf("tproxy to :%d meta mark set 0x%08x", t.num, t.mark)
	}
	return t.op.fixed()
}

// fixed are the words of terms without operands.
func (o op) fixed() string {
	switch o {
	case opReply:
		return "ct direction reply"
	case opEstablished:
		return "ct state established,related"
	case opRedirected:
		return "ct status dnat"
	case opLocal:
		return "fib daddr type local"
	case opForged:
		return "fib saddr . iif oif missing"
	case opAccept:
		return "accept"
	case opReject:
		return "reject"
	case opReset:
		return "reject with tcp reset"
	}
	return "drop"
}

func protocolName(p uint8) string {
	if p == protoUDP {
		return "udp"
	}
	return "tcp"
}

func discoveryName(kind uint32) string {
	for _, d := range discovery {
		if d.kind == kind {
			return d.name
		}
	}
	return fmt.Sprint(kind)
}
