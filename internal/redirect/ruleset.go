package redirect

// tableName is our one table, of family inet.
const tableName = "egressd"

// op is what one term of a rule matches or does.
type op uint8

const (
	opInterface   op = iota // arrived on the interface name
	opSource                // source address is in the set; v6, not
	opProtocol              // transport protocol num
	opPort                  // transport protocol proto, destination port num
	opND                    // ICMPv6 type num, of neighbour discovery
	opReply                 // answers a connection that the other side began
	opEstablished           // of a connection that is known, or an error about one
	opRedirected            // its destination was rewritten
	opLocal                 // destination is an address of this host
	opForged                // there is no route to the source by where it came from
	opMark                  // carries mark num
	opUID                   // sent by a process of uid num
	opAccept
	opDrop
	opGoto     // chain name
	opRedirect // destination becomes this host, port num
	opTProxy   // to the transparent socket on port num, with mark
	opReject   // ICMP port unreachable
	opReset    // TCP reset
)

type term struct {
	op      op
	name    string
	num     uint32
	proto   uint8
	mark    uint32
	v6, not bool
}

const (
	protoTCP    = 6
	protoUDP    = 17
	protoICMPv6 = 58

	portDNS  = 53
	portQUIC = 443
)

// discovery are the ICMPv6 types without which IPv6 has no neighbours (RFC 4861), in the
// directions that a host needs.
var discovery = [...]struct {
	kind uint32
	name string
}{{133, "nd-router-solicit"}, {135, "nd-neighbor-solicit"}, {136, "nd-neighbor-advert"}}

type rule []term

type ruleset struct {
	sets   []addressSet
	chains []chain
}

type addressSet struct {
	name  string
	v6    bool
	spans []span
}

// chain has a hook, or is where others go to.
type chain struct {
	name     string
	nat      bool // else filter
	hook     string
	priority int
	rules    []rule
}

// Hooks are passed in this order: the filter at prerouting sees a packet as it was sent,
// the NAT goes before that of others (Docker publishes ports at -100), and the filters at
// input and forward go before the host's own, whose acceptance of a packet they overrule.
const (
	priorityMangle = -150
	priorityNAT    = -110
	priorityFilter = -10
)

const (
	sources4 = "sources4"
	sources6 = "sources6"
)

// rules makes the table of a valid Spec.
func (s Spec) rules() *ruleset {
	r := &ruleset{}
	if len(s.Sources) > 0 {
		r.sets = []addressSet{
			{sources4, false, spansOf(s.Sources, false)},
			{sources6, true, spansOf(s.Sources, true)},
		}
	}
	if len(s.Interfaces) > 0 || len(s.Sources) > 0 {
		r.chains = append(r.chains, s.arriving(), s.local(), passing(),
			chain{name: "prerouting", hook: "prerouting", priority: priorityMangle, rules: s.classify("arriving", true)})
		if s.Mode == NAT || s.DNSPort != 0 {
			r.chains = append(r.chains, s.toListener("to_proxy"),
				chain{name: "nat_prerouting", nat: true, hook: "prerouting", priority: priorityNAT, rules: s.classify("to_proxy", false)})
		}
		r.chains = append(r.chains,
			chain{name: "input", hook: "input", priority: priorityFilter, rules: s.classify("to_host", false)},
			chain{name: "forward", hook: "forward", priority: priorityFilter, rules: s.classify("to_others", false)})
	}
	if len(s.UIDs) > 0 {
		r.chains = append(r.chains, s.toListener("to_proxy_here"), s.leaving(),
			chain{name: "nat_output", nat: true, hook: "output", priority: priorityNAT, rules: s.users("to_proxy_here")},
			chain{name: "output", hook: "output", priority: priorityFilter, rules: s.users("leaving")})
	}
	return r
}

// classify sends sandboxes' packets to a chain. With check, a sandbox's address that comes
// by none of the interfaces is dropped, where there are interfaces.
func (s Spec) classify(to string, check bool) []rule {
	var out []rule
	for _, name := range s.Interfaces {
		out = append(out, rule{{op: opInterface, name: name}, {op: opGoto, name: to}})
	}
	if len(s.Sources) == 0 {
		return out
	}
	verdict := term{op: opGoto, name: to}
	if check && len(s.Interfaces) > 0 {
		verdict = term{op: opDrop}
	}
	return append(out,
		rule{{op: opSource, name: sources4}, verdict},
		rule{{op: opSource, name: sources6, v6: true}, verdict})
}

func (s Spec) users(to string) []rule {
	var out []rule
	for _, uid := range s.UIDs {
		out = append(out, rule{{op: opUID, num: uid}, {op: opGoto, name: to}})
	}
	return out
}

// arriving looks at packets as they were sent: who pretends to be another, QUIC, and TCP
// for TPROXY.
func (s Spec) arriving() chain {
	rules := neighbours()
	if len(s.Interfaces) > 0 && len(s.Sources) > 0 {
		rules = append(rules,
			rule{{op: opSource, name: sources4, not: true}, {op: opDrop}},
			rule{{op: opSource, name: sources6, v6: true, not: true}, {op: opDrop}})
	}
	rules = append(rules,
		rule{{op: opForged}, {op: opDrop}},
		rule{{op: opPort, proto: protoUDP, num: portQUIC}, {op: opReject}})
	if s.Mode == TProxy {
		rules = append(rules, rule{{op: opReply}, {op: opAccept}})
		if s.DNSPort != 0 {
			rules = append(rules, rule{{op: opPort, proto: protoTCP, num: portDNS}, {op: opAccept}})
		}
		rules = append(rules,
			rule{{op: opLocal}, {op: opAccept}},
			rule{{op: opProtocol, num: protoTCP}, {op: opTProxy, num: uint32(s.Port), mark: s.mark()}, {op: opAccept}})
	}
	return chain{name: "arriving", rules: rules}
}

// toListener rewrites destinations. The host's own addresses are left alone, for the
// filter to refuse.
func (s Spec) toListener(name string) chain {
	var rules []rule
	if s.DNSPort != 0 {
		for _, proto := range []uint8{protoTCP, protoUDP} {
			rules = append(rules, rule{{op: opPort, proto: proto, num: portDNS}, {op: opRedirect, num: uint32(s.DNSPort)}})
		}
	}
	if s.Mode == NAT {
		rules = append(rules,
			rule{{op: opLocal}, {op: opAccept}},
			rule{{op: opProtocol, num: protoTCP}, {op: opRedirect, num: uint32(s.Port)}})
	}
	return chain{name: name, rules: rules}
}

// listeners lets through what is for egressd. The transparent listeners take what was
// brought to them and not what was sent to them.
func (s Spec) listeners() []rule {
	var rules []rule
	if s.Mode == NAT {
		rules = append(rules, rule{{op: opRedirected}, {op: opPort, proto: protoTCP, num: uint32(s.Port)}, {op: opAccept}})
	} else {
		rules = append(rules, rule{{op: opMark, num: s.mark()}, {op: opProtocol, num: protoTCP}, {op: opAccept}})
	}
	if s.DNSPort != 0 {
		for _, proto := range []uint8{protoTCP, protoUDP} {
			rules = append(rules, rule{{op: opLocal}, {op: opPort, proto: proto, num: uint32(s.DNSPort)}, {op: opAccept}})
		}
	}
	if s.ProxyPort != 0 {
		rules = append(rules, rule{{op: opLocal}, {op: opPort, proto: protoTCP, num: uint32(s.ProxyPort)}, {op: opAccept}})
	}
	return rules
}

// local is the host itself, with all of its addresses.
func (s Spec) local() chain {
	rules := append([]rule{replies()}, neighbours()...)
	return chain{name: "to_host", rules: append(append(rules, s.listeners()...), refuse()...)}
}

// passing is all that would be forwarded: the world and other sandboxes.
func passing() chain {
	return chain{name: "to_others", rules: append([]rule{replies()}, refuse()...)}
}

// leaving is what local users' processes send.
func (s Spec) leaving() chain {
	rules := append([]rule{replies()}, s.listeners()...)
	rules = append(rules, rule{{op: opPort, proto: protoUDP, num: portQUIC}, {op: opReject}})
	return chain{name: "leaving", rules: append(rules, refuse()...)}
}

// replies are of connections that the other side began. An error about a connection that
// the sandbox began is none: it could carry anything anywhere.
func replies() rule { return rule{{op: opReply}, {op: opEstablished}, {op: opAccept}} }

func neighbours() []rule {
	var out []rule
	for _, d := range discovery {
		out = append(out, rule{{op: opND, num: d.kind}, {op: opAccept}})
	}
	return out
}

// refuse ends TCP at once, so that clients do not wait, and drops the rest.
func refuse() []rule {
	return []rule{{{op: opProtocol, num: protoTCP}, {op: opReset}}, {{op: opDrop}}}
}
