package netguard

import (
	"context"
	"fmt"

	"github.com/miekg/dns"
)

const maxHTTPS = 8 // records of one answer

// HTTPS returns the HTTPS records (RFC 9460) of host as DNS gives them, at the end of its
// aliases, at most 8. Nothing in them has been checked, and no name or address that they
// bear may be used without Lookup and Check. An address and a name of Options.Hosts have
// none. Answers are not kept. Errors: ErrBadName, ErrNoSuchHost (no record), ErrLookup.
func (g *Guard) HTTPS(ctx context.Context, host string) (records []dns.RR, err error) {
	name, err := canonical(host)
	if err != nil {
		return nil, err
	}
	if _, fixed := g.hosts[name]; fixed {
		return nil, ErrNoSuchHost
	}
	if neverAsked(name) {
		return nil, fmt.Errorf("%w: it is not a name of the public DNS", ErrBadName)
	}
	defer func() {
		if recover() != nil { // as in askSafely
			records, err = nil, fmt.Errorf("%w: answer could not be read", ErrLookup)
		}
	}()
	ctx, cancel := context.WithTimeout(ctx, g.lookupTimeout)
	defer cancel()
	r, q, err := g.query(ctx, name, dns.TypeHTTPS)
	if err != nil {
		return nil, err
	}
	return readHTTPS(r, q.Name)
}

// readHTTPS is read for records that are no addresses.
func readHTTPS(r *dns.Msg, name string) (out []dns.RR, err error) {
	records := r.Answer[:min(len(r.Answer), maxRecords)]
	owner := dns.CanonicalName(name)
	for range maxCNAMEs {
		next := ""
		for _, rr := range records {
			h := rr.Header()
			if h.Class != dns.ClassINET || dns.CanonicalName(h.Name) != owner {
				continue
			}
			switch v := rr.(type) {
			case *dns.CNAME:
				next = dns.CanonicalName(v.Target)
			case *dns.HTTPS:
				if len(out) < maxHTTPS {
					out = append(out, v)
				}
			}
		}
		if len(out) > 0 {
			return out, nil
		}
		if next == "" {
			break
		}
		owner = next
	}
	return nil, ErrNoSuchHost
}
