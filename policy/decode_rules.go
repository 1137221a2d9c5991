package policy

import (
	"net/http"
	"strings"

	"golang.org/x/net/http/httpguts"
)

func (d *decoder) httpPolicy(v value, r *protocolRule) {
	d.object(v, fields{
		"methods": func(v value) {
			d.object(v, fields{
				"denied":  func(v value) { r.methods.denied = d.methods(v) },
				"allowed": func(v value) { r.methods.allowed, r.methods.limited = d.methods(v), d.limits(v) },
			})
		},
		"paths": func(v value) {
			p := &r.paths
			d.object(v, fields{
				"denied":         func(v value) { p.denied = d.paths(v) },
				"deniedPrefixes": func(v value) { p.deniedPrefixes = d.prefixes(v) },
				"allowed": func(v value) {
					p.allowed = d.paths(v)
					p.limited = d.limits(v) || p.limited
				},
				"allowedPrefixes": func(v value) {
					p.allowedPrefixes = d.prefixes(v)
					p.limited = d.limits(v) || p.limited
				},
			})
		},
	})
}

// limits notes an allowed list. An empty one allows nothing: a list that lost its
// items must not open everything.
func (d *decoder) limits(v value) bool {
	if isList(v) && len(v.n.Content) == 0 {
		d.warn(v, "an empty allowed list allows nothing; leave it out to allow everything")
	}
	return isList(v)
}

func (d *decoder) httpMatch(v value) *httpMatch {
	m := &httpMatch{}
	d.object(v, fields{
		"methods":      func(v value) { m.methods = d.methods(v) },
		"paths":        func(v value) { m.paths = d.paths(v) },
		"pathPrefixes": func(v value) { m.prefixes = d.prefixes(v) },
		"query": func(v value) {
			d.list(v, func(v value) { m.query = append(m.query, d.valueMatch(v, false)) })
		},
		"headers": func(v value) {
			d.list(v, func(v value) { m.headers = append(m.headers, d.valueMatch(v, true)) })
		},
	})
	return m
}

// valueMatch reads {name, values, present}. What would mean "absent" is refused, as
// it cannot be told from a default left in by a generator.
func (d *decoder) valueMatch(v value, header bool) valueMatch {
	var m valueMatch
	present := false
	d.object(v, fields{
		"name": func(v value) {
			m.name, _ = d.str(v)
			if header && m.name != "" {
				if !httpguts.ValidHeaderFieldName(m.name) {
					d.fail(v, "not a header name")
				}
				if m.name = http.CanonicalHeaderKey(m.name); m.name == "Host" {
					d.fail(v, "the host is matched by domains")
				}
			}
		},
		"values": func(v value) {
			if m.values = d.strs(v); len(m.values) == 0 && isList(v) {
				d.fail(v, "must not be empty: leave it out and say present: true to match any value")
			}
		},
		"present": func(v value) {
			if present = d.boolean(v); !present && v.n.Value == "false" {
				d.fail(v, "only present: true can be matched")
			}
		},
	}, "name")
	if len(m.values) == 0 && !present {
		d.fail(v, "give values, or present: true")
	}
	return m
}

func (d *decoder) methods(v value) []string {
	out := []string{}
	d.list(v, func(v value) {
		s, ok := d.str(v)
		if !ok {
			return
		}
		for i := range len(s) {
			if c := s[i]; (c < 'A' || c > 'Z') && (i == 0 || c != '-' && c != '_') || len(s) > 32 {
				d.fail(v, "want an HTTP method in upper case")
				return
			}
		}
		out = append(out, s)
	})
	return out
}

func (d *decoder) paths(v value) []string {
	out := []string{}
	d.list(v, func(v value) {
		s, ok := d.str(v)
		if !ok {
			return
		}
		switch p, err := CanonicalPath(s); {
		case s[0] != '/':
			d.fail(v, "a path starts with '/'")
		case strings.ContainsAny(s, "?*"):
			d.fail(v, "a path holds neither a query nor wildcards: use query, or a prefix")
		case err != nil:
			d.fail(v, "%v", err)
		default:
			out = append(out, p)
		}
	})
	return out
}

func (d *decoder) prefixes(v value) []pathPrefix {
	var out []pathPrefix
	for _, p := range d.paths(v) {
		out = append(out, pathPrefix(p))
	}
	return out
}

func (d *decoder) credentialRule(v value) *credentialRule {
	r := &credentialRule{rule: d.rule(v)}
	unsafe := false
	var domains []value
	d.object(v, d.ruleFields(&r.rule).with(fields{
		"domains": func(v value) {
			d.domains(v, &r.rule)
			d.list(v, func(v value) { domains = append(domains, v) })
		},
		"credentialRef": func(v value) { r.ref, r.refAt = d.title(v), d.at(v) },
		"protocol":      func(v value) { r.protocol = d.credentialProtocol(v) },
		"cidrs":         func(v value) { d.cidrs(v, &r.rule) },
		"httpMatch":     func(v value) { r.match = d.httpMatch(v) },
		"tlsMode":       func(v value) { d.tlsMode(v) },
		"failurePolicy": func(v value) {
			s := d.enum(v, "fail-closed", "fail-open")
			r.failOpen = s == "fail-open"
		},
		"rollout": func(v value) {
			s := d.enum(v, "enabled", "disabled")
			r.disabled = s == "disabled"
		},
		"allowCleartext": func(v value) { r.allowCleartext = d.boolean(v) },
		"keepClientAuth": func(v value) { r.keepClientAuth = d.boolean(v) },
		"unsafeWildcard": func(v value) { unsafe = d.boolean(v) },
		"scrub":          func(v value) { r.scrub = d.boolean(v) },
		"sandboxLogin":   func(v value) { r.sandboxLogin = d.sandboxLogin(v) },
	}), "credentialRef")
	if !unsafe {
		d.refuseWide(v, r, domains)
	}
	d.checkCredentialRule(v, r)
	return r
}

func (d *decoder) credentialProtocol(v value) credentialProtocol {
	return credentialProtocol(d.enum(v, "http", "https", "grpc", "tls", "ssh", "socks5", "mqtt", "redis", "postgres"))
}

// maxLoginField bounds a user name or password: SOCKS5 has one byte for its length.
const maxLoginField = 255

// sandboxLogin reads placeholders: they are compared, and never printed.
func (d *decoder) sandboxLogin(v value) *SandboxLogin {
	l := &SandboxLogin{}
	field := func(to *string) func(value) {
		return func(v value) {
			s, ok := d.str(v)
			switch {
			case !ok:
			case len(s) > maxLoginField:
				d.fail(v, "longer than %d bytes", maxLoginField)
			case strings.ContainsFunc(s, isControl):
				d.fail(v, "holds a line break or another control character")
			default:
				*to = s
			}
		}
	}
	d.object(v, fields{"username": field(&l.Username), "password": field(&l.Password)}, "password")
	return l
}

func isControl(r rune) bool { return r < 0x20 || r == 0x7f }

// refuseWide refuses to let a credential go wherever someone can register a name.
func (d *decoder) refuseWide(v value, r *credentialRule, domains []value) {
	if r.everywhere() && len(domains) == 0 {
		d.fail(v, "a credential rule without domains would send the credential anywhere; name them, or say unsafeWildcard: true")
	}
	for _, v := range domains {
		if p, err := ParseDomainPattern(v.n.Value); err == nil && p.overPublicSuffix() {
			d.fail(v, "%s covers names that unrelated people register; name the domains, or say unsafeWildcard: true", show(p.String()))
		}
	}
}

// checkCredentialRule looks at what only the fields together show; what the projection
// has to do with it, see checkProjection.
func (d *decoder) checkCredentialRule(v value, r *credentialRule) {
	if r.match != nil && r.protocol != anyProtocol && !r.protocol.isHTTP() {
		d.fail(v, "httpMatch on protocol %s, which looks at no request", r.protocol)
	}
	if r.allowCleartext && !r.protocol.maybeClear() {
		d.fail(v, "allowCleartext on protocol %s, which is never cleartext", r.protocol)
	}
	if r.scrub && r.protocol != anyProtocol && !r.protocol.isHTTP() {
		d.fail(v, "scrub on protocol %s: only answers to HTTP requests are looked through", r.protocol)
	}
	if r.failOpen && (r.protocol.isLogin() || r.protocol == onlySSH) {
		d.fail(v, "fail-open on protocol %s: without the credential there is no way to log in", r.protocol)
	}
	if r.sandboxLogin != nil && r.protocol != anyProtocol && !r.protocol.isLogin() {
		d.fail(v, "sandboxLogin on protocol %s: only socks5, mqtt, redis and postgres have such a login", r.protocol)
	}
	if r.protocol == onlyHTTP && !r.allowCleartext {
		d.warn(v, "protocol http without allowCleartext: true never applies, and cleartext requests that match are refused")
	}
}
