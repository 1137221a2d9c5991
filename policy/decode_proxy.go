package policy

import (
	"strconv"
	"strings"
)

// proxy reads egress.proxy. What stands in address is never repeated: people put
// user names and passwords there.
func (d *decoder) proxy(v value) *proxyDecl {
	p := &proxyDecl{at: d.at(v)}
	d.object(v, fields{
		"type": func(v value) { p.typ = ProxyType(d.enum(v, string(ProxySOCKS5), string(ProxyHTTP))) },
		"address": func(v value) {
			s, ok := d.str(v)
			if !ok {
				return
			}
			if p.host, p.port, ok = splitHostPort(s); !ok {
				d.fail(v, "want host:port, like proxy.example.com:1080; a login goes into credentialRef")
			}
		},
		"credentialRef": func(v value) { p.ref, p.refAt = d.title(v), d.at(v) },
	}, "type", "address")
	return p
}

// splitHostPort takes "name:port", "192.0.2.1:port" and "[2001:db8::1]:port".
func splitHostPort(s string) (host string, port uint16, ok bool) {
	i := strings.LastIndexByte(s, ':')
	if i < 0 {
		return "", 0, false
	}
	n, err := strconv.ParseUint(s[i+1:], 10, 16)
	if err != nil || n == 0 || s[i+1] == '0' || s[i+1] == '+' {
		return "", 0, false
	}
	raw := s[:i]
	if strings.IndexByte(raw, ':') >= 0 && raw[0] != '[' {
		return "", 0, false
	}
	host, err = CanonicalHost(raw)
	return host, uint16(n), err == nil
}
