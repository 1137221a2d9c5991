package proxy

import (
	"context"
	"errors"
	"net/http"
	"slices"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"
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
	records, err := s.ech.records(t.dest.host, func() ([]dns.RR, error) { return s.names.https(ctx, sandbox, t.dest.host) })
	if err != nil {
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

// echRecords keeps for a minute what the names of tunnels that are passed through publish:
// browsers grease every hello. Safe for concurrent use.
type echRecords struct {
	known *lru.Cache[string, echAnswer]
}

type echAnswer struct {
	records []dns.RR
	until   time.Time
}

const (
	maxECHRecords = 4096
	echLife       = time.Minute
)

func newECHRecords() *echRecords {
	known, _ := lru.New[string, echAnswer](maxECHRecords) // fails on a size below 1 only
	return &echRecords{known: known}
}

// records are those of host; none where it has none or is no name of the public DNS.
func (e *echRecords) records(host string, ask func() ([]dns.RR, error)) ([]dns.RR, error) {
	if a, ok := e.known.Get(host); ok && time.Now().Before(a.until) {
		return a.records, nil
	}
	records, err := ask()
	if err != nil && !errors.Is(err, netguard.ErrNoSuchHost) && !errors.Is(err, netguard.ErrBadName) {
		return nil, err
	}
	e.known.Add(host, echAnswer{records, time.Now().Add(echLife)})
	return records, nil
}
