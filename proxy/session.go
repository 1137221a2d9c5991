package proxy

import (
	"errors"
	"net/netip"
	"sync/atomic"
	"time"

	"github.com/egressd/egressd/inject"
	"github.com/egressd/egressd/internal/secret"
	"github.com/egressd/egressd/policy"
)

// Ruleset is one generation of policy and injectors, published together. Immutable.
type Ruleset struct {
	Policy    *policy.Set
	Injectors *inject.Table
	Known     Known // nil: no value is looked for in what leaves
}

// claims are what a client said and showed about who it is. They are kept for the
// life of a connection, so that a new ruleset is asked again who that is.
type claims struct {
	addr  netip.Addr
	user  string
	token secret.String
	given bool // a token was sent
}

// session is the identity of one client connection. Safe for concurrent use.
type session struct {
	srv    *Server
	claims claims
	bound  atomic.Pointer[bound]
}

// bound is who the claims are under one ruleset.
type bound struct {
	rules   *Ruleset
	sandbox *policy.Sandbox
}

var errNoRules = errors.New("no policy is loaded")

// bind returns the current ruleset and who the client is under it. It costs one
// atomic load per request while the ruleset stays.
func (ss *session) bind() (*bound, error) {
	rules := ss.srv.rules.Load()
	if b := ss.bound.Load(); b != nil && b.rules == rules && !b.over() {
		return b, nil
	}
	b, err := ss.bindTo(rules)
	if err != nil {
		return nil, err
	}
	ss.bound.Store(b)
	return b, nil
}

func (ss *session) bindTo(rules *Ruleset) (*bound, error) {
	if rules == nil || rules.Policy == nil {
		return nil, errNoRules
	}
	token := ""
	if ss.claims.given {
		token = ss.claims.token.Reveal()
	}
	sb, err := rules.Policy.Identify(ss.claims.addr, ss.claims.user, token)
	if err != nil {
		return nil, err
	}
	if sb == nil {
		return nil, policy.ErrUnknownClient
	}
	b := &bound{rules: rules, sandbox: sb}
	if b.over() {
		return nil, errLeaseOver
	}
	return b, nil
}

// over: the sandbox's lease of its identity has ended; its address may be another's now.
func (b *bound) over() bool {
	return !b.sandbox.LeaseUntil.IsZero() && !time.Now().Before(b.sandbox.LeaseUntil)
}

var errLeaseOver = errors.New("the sandbox's lease is over")

// scheduleLease makes the janitor end what is open of a sandbox with its lease.
func (s *Server) scheduleLease(r *Ruleset) {
	if r == nil || r.Policy == nil {
		return
	}
	var next time.Time
	now := time.Now()
	for _, sb := range r.Policy.Sandboxes() {
		if end := sb.LeaseUntil; end.After(now) && (next.IsZero() || end.Before(next)) {
			next = end
		}
	}
	if !next.IsZero() {
		s.janitor.nextLease(next)
	}
}

// forgetNames drops what sandboxes that are no more were told by DNS and what stands for
// tokens of theirs: their addresses and ids may become others'.
func (s *Server) forgetNames(was, now *Ruleset) {
	if was == nil || was.Policy == nil {
		return
	}
	for _, sb := range was.Policy.Sandboxes() {
		if now == nil || now.Policy == nil || now.Policy.Sandbox(sb.ID) == nil {
			s.memory.Forget(sb.ID)
			s.seals.forget(sealKey{sb.Team, sb.ID})
		}
	}
}

// leaseOver is called when a lease has ended.
func (s *Server) leaseOver() {
	s.sweepLeases()
	s.scheduleLease(s.rules.Load())
}

// sweepLeases ends what is open of sandboxes whose lease is over.
func (s *Server) sweepLeases() {
	r := s.rules.Load()
	if r == nil || r.Policy == nil {
		return
	}
	ended := false
	for _, sb := range r.Policy.Sandboxes() {
		if (&bound{sandbox: sb}).over() {
			ended = true
			s.memory.Forget(sb.ID)
		}
	}
	if ended {
		s.live.recheck(r)
	}
}
