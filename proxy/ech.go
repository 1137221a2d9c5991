package proxy

import (
	"context"
	"errors"
	"net/http"
	"slices"

	"github.com/miekg/dns"

	"github.com/egressd/egressd/internal/netguard"
	"github.com/egressd/egressd/internal/sniff"
)

// checkECH refuses a ClientHello that is to be passed through and hides another name from
// the rules: its encrypted_client_hello is sealed to a key that the name outside publishes.
// Any other id is GREASE, which browsers always send (RFC 9849 section 6.2). Intercepted
// tunnels need none of this: egressd has no key, so that a real one is rejected there.
func (s *Server) checkECH(ctx context.Context, t *tunnel, sandbox string) *refusal {
	if t.ech == 0 || t.dest.ip.IsValid() {
		return nil
	}
	id := uint8(t.ech - 1)
	records, err := s.names.https(ctx, sandbox, t.dest.host)
	switch {
	case errors.Is(err, netguard.ErrNoSuchHost), errors.Is(err, netguard.ErrBadName):
		return nil // it has none, or is no name of the public DNS
	case err != nil:
		return dialRefusal(err)
	}
	for _, rr := range records {
		if publishes(rr, id) {
			return &refusal{status: http.StatusForbidden, code: codeProtocol, detail: "ClientHello hides another name (ECH)"}
		}
	}
	return nil
}

// publishes: the record bears a configuration with this id, or one that cannot be read.
func publishes(rr dns.RR, id uint8) bool {
	h, ok := rr.(*dns.HTTPS)
	if !ok {
		return false
	}
	for _, kv := range h.Value {
		if ech, ok := kv.(*dns.SVCBECHConfig); ok {
			ids, whole := sniff.ECHConfigIDs(ech.ECH)
			if !whole || slices.Contains(ids, id) {
				return true
			}
		}
	}
	return false
}
