package policy

import (
	"encoding/hex"
	"net/netip"
	"path/filepath"
	"strings"
	"time"

	"gopkg.in/yaml.v3"
)

type cidrDecl struct {
	at     place
	prefix netip.Prefix
}

type tokenDecl struct {
	at  place
	sum [32]byte
}

// decodeFile reads one file into its declarations.
func decodeFile(f File) (*fileDecl, Problems, []Warning) {
	root, problems := parse(f)
	if root == nil {
		return &fileDecl{}, problems, nil
	}
	d := &decoder{file: f.Name, problems: problems}
	decl := d.root(value{n: root})
	return decl, d.problems, d.warnings
}

func (d *decoder) root(v value) *fileDecl {
	decl := &fileDecl{}
	d.object(v, fields{
		"apiVersion": func(v value) { d.enum(v, apiVersion) },
		"templates": func(v value) {
			d.list(v, func(v value) { decl.templates = append(decl.templates, d.template(v)) })
		},
		"sandboxes": func(v value) {
			d.list(v, func(v value) { decl.sandboxes = append(decl.sandboxes, d.sandbox(v)) })
		},
	}, "apiVersion")
	return decl
}

func (d *decoder) template(v value) *templateDecl {
	t := &templateDecl{at: d.at(v), network: &networkDecl{}}
	d.object(v, fields{
		"name":    func(v value) { t.name = d.identifier(v) },
		"network": func(v value) { t.network = d.network(v) },
	}, "name")
	return t
}

func (d *decoder) sandbox(v value) *sandboxDecl {
	s := &sandboxDecl{at: d.at(v), team: "default"}
	d.object(v, fields{
		"id":       func(v value) { s.id = d.identifier(v) },
		"team":     func(v value) { s.team = d.identifier(v) },
		"template": func(v value) { s.template, s.templateAt = d.identifier(v), d.at(v) },
		"identify": func(v value) { d.identify(v, s) },
		"network":  func(v value) { s.network = d.network(v) },
	}, "id")
	if len(s.cidrs) == 0 && len(s.tokens) == 0 {
		d.warn(v, "nothing identifies this sandbox: give it identify.sourceCIDRs or identify.proxyTokens")
	}
	return s
}

func (d *decoder) identify(v value, s *sandboxDecl) {
	d.object(v, fields{
		"sourceCIDRs": func(v value) {
			d.list(v, func(v value) {
				if p, ok := d.prefix(v); ok {
					if p != p.Masked() {
						d.fail(v, "bits are set behind the prefix length: %s would identify more than one address; write %s or a /%d", show(p.String()), p.Masked(), p.Addr().BitLen())
						return
					}
					s.cidrs = append(s.cidrs, cidrDecl{d.at(v), p})
				}
			})
		},
		"proxyTokens": func(v value) {
			d.list(v, func(v value) {
				if sum, ok := d.tokenSum(v); ok {
					s.tokens = append(s.tokens, tokenDecl{d.at(v), sum})
				}
			})
		},
		"leaseUntil": func(v value) { s.lease = d.timestamp(v) },
	})
}

// timestamp reads an RFC 3339 date and time, quoted or not.
func (d *decoder) timestamp(v value) time.Time {
	if v.n.Kind != yaml.ScalarNode || v.n.Tag != "!!str" && v.n.Tag != "!!timestamp" {
		d.wrongType(v, "a date and time")
		return time.Time{}
	}
	t, err := time.Parse(time.RFC3339, v.n.Value)
	if err != nil {
		d.fail(v, "want a date and time by RFC 3339, like 2026-11-21T06:30:00Z")
	}
	return t
}

// tokenSum reads "sha256:<64 hex digits>"; what stands there is never repeated.
func (d *decoder) tokenSum(v value) (sum [32]byte, ok bool) {
	s, ok := d.str(v)
	if !ok {
		return sum, false
	}
	digits, prefixed := strings.CutPrefix(s, "sha256:")
	raw, err := hex.DecodeString(digits)
	if !prefixed || err != nil || len(raw) != len(sum) {
		d.fail(v, "want sha256: and the 64 hex digits of the token's SHA-256")
		return sum, false
	}
	return [32]byte(raw), true
}

func (d *decoder) network(v value) *networkDecl {
	n := &networkDecl{at: d.at(v)}
	d.object(v, fields{
		"mode":        func(v value) { n.mode = d.enum(v, "block-all", "allow-all") },
		"enforcement": func(v value) { n.enforce = d.enum(v, "enforce", "report") },
		"egress":      func(v value) { d.egress(v, n) },
		"credentialBindings": func(v value) {
			d.list(v, func(v value) { n.bindings = append(n.bindings, d.binding(v)) })
		},
	})
	unique(d, n.traffic, func(r *trafficRule) (string, place) { return r.name, r.at })
	unique(d, n.protocol, func(r *protocolRule) (string, place) { return r.name, r.at })
	unique(d, n.credential, func(r *credentialRule) (string, place) { return r.name, r.at })
	unique(d, n.bindings, func(b *bindingDecl) (string, place) { return b.Ref, b.at })
	return n
}

// unique refuses a name that stands twice in one list; merging goes by names.
func unique[T any](d *decoder, list []T, name func(T) (string, place)) {
	first := make(map[string]place, len(list))
	for _, item := range list {
		key, at := name(item)
		if key == "" {
			continue
		}
		if earlier, dup := first[key]; dup {
			d.problems.add(at.problem("the name %s stands here twice, first at %s", show(key), earlier))
			continue
		}
		first[key] = at
	}
}

func (d *decoder) egress(v value, n *networkDecl) {
	d.object(v, fields{
		"trafficRules": func(v value) {
			d.list(v, func(v value) { n.traffic = append(n.traffic, d.trafficRule(v)) })
		},
		"protocolRules": func(v value) {
			d.list(v, func(v value) { n.protocol = append(n.protocol, d.protocolRule(v)) })
		},
		"credentialRules": func(v value) {
			d.list(v, func(v value) { n.credential = append(n.credential, d.credentialRule(v)) })
		},
		"proxy": func(v value) { n.proxy = d.proxy(v) },
	})
}

// rule begins a rule: its place and, until a name is read, its label.
func (d *decoder) rule(v value) rule {
	at := d.at(v)
	return rule{at: at, label: place{file: filepath.Base(at.file), line: at.line}.String()}
}

// ruleFields are those that all kinds of rules share.
func (d *decoder) ruleFields(r *rule) fields {
	return fields{
		"name": func(v value) {
			if r.name = d.title(v); r.name != "" {
				r.label = r.name
			}
		},
		"domains": func(v value) { d.domains(v, r) },
		"ports": func(v value) {
			for _, v := range d.ports(v, r) {
				d.fail(v, "egressd carries no UDP: only traffic rules that deny may say udp")
			}
		},
	}
}

func (f fields) with(more fields) fields {
	for k, read := range more {
		f[k] = read
	}
	return f
}

func (d *decoder) trafficRule(v value) *trafficRule {
	r := &trafficRule{rule: d.rule(v)}
	d.object(v, d.ruleFields(&r.rule).with(fields{
		"action": func(v value) {
			s := d.enum(v, "allow", "deny")
			r.allow = s == "allow"
		},
		"cidrs":        func(v value) { d.cidrs(v, &r.rule) },
		"ports":        func(v value) { r.udp = append(r.udp, d.ports(v, &r.rule)...) },
		"appProtocols": func(v value) { d.appProtocols(v, r) },
	}), "action")
	d.refuseUDP(r)
	return r
}

// appProtocols reads a list. UDP leaves by no way through egressd, so that a rule may
// deny it, which holds already, but not allow it.
func (d *decoder) appProtocols(v value, r *trafficRule) {
	d.list(v, func(v value) {
		s := d.enum(v, appProtocolNames()...)
		p, ok := protocolNamed(s)
		if s == "udp" {
			p, ok, r.udp = udpOnly, true, append(r.udp, v)
		}
		if ok {
			r.protocols |= 1 << p
		}
	})
}

// refuseUDP refuses what an allow rule says of UDP.
func (d *decoder) refuseUDP(r *trafficRule) {
	for _, v := range r.udp {
		if r.allow {
			d.fail(v, "egressd carries no UDP, so that nothing would be allowed: names are asked of its own resolver (listen.dns), and a deny rule may say udp")
		}
	}
	r.udp = nil
}

// appProtocolNames are the words of appProtocols, in the order of the manual.
func appProtocolNames() []string {
	return []string{"http", "tls", "ssh", "socks5", "mqtt", "redis", "amqp", "dns", "mongodb", "postgres", "udp"}
}

// protocolNamed finds a protocol that can be recognised by its word.
func protocolNamed(word string) (Protocol, bool) {
	for p := HTTP; p <= MongoDB; p++ {
		if p.String() == word {
			return p, true
		}
	}
	return 0, false
}

func (d *decoder) domains(v value, r *rule) {
	d.list(v, func(v value) {
		s, ok := d.str(v)
		if !ok {
			return
		}
		p, err := ParseDomainPattern(s)
		if err != nil {
			d.fail(v, "%s: %v", show(s), err)
			return
		}
		r.domains = append(r.domains, p)
	})
}

func (d *decoder) cidrs(v value, r *rule) {
	var ps []netip.Prefix
	d.list(v, func(v value) {
		p, ok := d.prefix(v)
		if !ok {
			return
		}
		if p != p.Masked() {
			d.warn(v, "bits are set behind the prefix length: %s is read as %s", show(p.String()), p.Masked())
		}
		ps = append(ps, p.Masked())
	})
	r.cidrs = newPrefixSet(ps)
}

func (d *decoder) prefix(v value) (netip.Prefix, bool) {
	s, ok := d.str(v)
	if !ok {
		return netip.Prefix{}, false
	}
	p, err := netip.ParsePrefix(s)
	switch {
	case err != nil:
		d.fail(v, "%s is no CIDR: want an address and a prefix length, like 10.0.0.0/8 or 192.0.2.1/32", show(s))
		return p, false
	case p.Addr().Is4In6():
		d.fail(v, "an IPv4-mapped IPv6 range: write it as IPv4")
		return p, false
	}
	return p, true
}

// ports gives the places where udp stands: such a port matches nothing here.
func (d *decoder) ports(v value, r *rule) (udp []value) {
	d.list(v, func(v value) {
		var lo, hi uint64
		overUDP := false
		d.object(v, fields{
			"port":    func(v value) { lo = d.integer(v, 1, 65535) },
			"endPort": func(v value) { hi = d.integer(v, 1, 65535) },
			"protocol": func(v value) {
				if overUDP = d.enum(v, "tcp", "udp") == "udp"; overUDP {
					udp = append(udp, v)
				}
			},
		}, "port")
		p := portRange{uint16(lo), uint16(max(lo, hi))}
		switch {
		case hi != 0 && hi < lo:
			d.fail(v, "endPort %d is lower than port %d", hi, lo)
		case lo == 0:
		case overUDP:
			r.ports, r.udpPorts = append(r.ports, portRange{lo: 1}), append(r.udpPorts, p)
		default:
			r.ports = append(r.ports, p)
		}
	})
	return udp
}

// isList reports a field that is there as a list, if only an empty one.
func isList(v value) bool { return v.n.Kind == yaml.SequenceNode }
