package policydns

import (
	"strings"

	"github.com/miekg/dns"
)

// harmless makes of an HTTPS record (RFC 9460) one that keeps the client on the way that
// egressd sees: without ech (B15), with h2 and http/1.1 as its only protocols (A18) and
// without addresses that nobody has checked. Only alpn, no-default-alpn, port and mandatory
// are kept. nil where that leaves nothing, or not what the record means: one that sends
// to another name, and one that must not be used without what was taken out.
func harmless(rr dns.RR, owner string, ttl uint32) *dns.HTTPS {
	in, ok := rr.(*dns.HTTPS)
	if !ok || in.Priority == 0 || in.Target != "." && !strings.EqualFold(in.Target, in.Hdr.Name) {
		return nil
	}
	out := &dns.HTTPS{SVCB: dns.SVCB{
		Hdr:      dns.RR_Header{Name: owner, Rrtype: dns.TypeHTTPS, Class: dns.ClassINET, Ttl: ttl},
		Priority: in.Priority, Target: ".",
	}}
	kept := map[dns.SVCBKey]bool{}
	var mandatory *dns.SVCBMandatory
	for _, kv := range in.Value {
		switch v := kv.(type) {
		case *dns.SVCBMandatory:
			mandatory = v
			continue
		case *dns.SVCBAlpn:
			alpn := visible(v.Alpn)
			if len(alpn) == 0 {
				continue
			}
			kv = &dns.SVCBAlpn{Alpn: alpn}
		case *dns.SVCBNoDefaultAlpn, *dns.SVCBPort:
		default:
			continue
		}
		kept[kv.Key()] = true
		out.Value = append(out.Value, kv)
	}
	if len(out.Value) == 0 || kept[dns.SVCB_NO_DEFAULT_ALPN] && !kept[dns.SVCB_ALPN] {
		return nil
	}
	if mandatory != nil {
		for _, key := range mandatory.Code {
			if !kept[key] {
				return nil
			}
		}
		out.Value = append([]dns.SVCBKeyValue{mandatory}, out.Value...)
	}
	return out
}

// visible are the protocols that egressd can carry.
func visible(alpn []string) (out []string) {
	for _, p := range alpn {
		if p == "h2" || p == "http/1.1" {
			out = append(out, p)
		}
	}
	return out
}
