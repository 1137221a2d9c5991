package api

import (
	"context"
	"errors"
	"net/http"

	"go.uber.org/zap"

	"github.com/egressd/egressd/store"
)

// edit runs f on a source's current metadata while no other write of it is under way here. It
// answers for If-Match first and gives f the revision that the store must still have.
func (s *Server) edit(c *call, f func(cur store.Meta) *failure) *failure {
	mu := s.lock(&s.sources, c.team, c.name)
	mu.Lock()
	defer mu.Unlock()
	cur, err := s.opt.Writer.Meta(c.ctx, c.team, c.name)
	if err != nil {
		return failStore(sourceWord, err)
	}
	if x := s.checkIfMatch(c, cur); x != nil {
		return x
	}
	return f(cur)
}

// retries is how often a write without If-Match is tried when another process was faster.
const retries = 5

// writeOver makes one write that depends on the current metadata. Where the client set no
// condition, losing to another process is no failure of the client's: it is tried again.
func (s *Server) writeOver(c *call, f func(cur store.Meta) error) *failure {
	var last *failure
	for range retries {
		var lost bool
		last = s.edit(c, func(cur store.Meta) *failure {
			err := f(cur)
			lost = errors.Is(err, store.ErrStale) && !conditional(c)
			return failWrite(err)
		})
		if !lost {
			return last
		}
	}
	return failUnavailable(ReasonStore, "the source is being changed by others all the time; try again", nil)
}

// answered is a failure on its way through code that returns errors.
type answered struct{ *failure }

func (answered) Error() string { return "request refused" }

func failWrite(err error) *failure {
	var a answered
	switch {
	case err == nil:
		return nil
	case errors.As(err, &a):
		return a.failure
	}
	return failStore(sourceWord, err)
}

// update stores a new version and waits until it is in force. over may take metadata from
// what is there; the write then depends on it.
func (s *Server) update(c *call, p store.Put, keys []string, over func(p *store.Put, cur store.Meta)) (m store.Meta, before uint64, unchanged bool, f *failure) {
	f = s.writeOver(c, func(cur store.Meta) error {
		over(&p, cur)
		before = cur.CurrentVersion
		if conditional(c) {
			p.IfRev = cur.Rev
		}
		return s.opt.References.WithReferrers(c.team, c.name, func(refs []Referrer) error {
			if err := s.checkBound(p, keys, refs); err != nil {
				return err
			}
			var err error
			m, unchanged, err = s.opt.Writer.Update(c.ctx, p)
			return err
		})
	})
	if f != nil {
		return m, before, unchanged, f
	}
	s.changed(c, "source updated", m, zap.Bool("unchanged", unchanged))
	return m, before, unchanged, s.inForce(c, m.Rev)
}

// checkBound asks whether the policy in force could still project the source.
func (s *Server) checkBound(p store.Put, keys []string, refs []Referrer) error {
	if s.opt.CheckBound == nil || len(refs) == 0 {
		return nil
	}
	err := s.opt.CheckBound(p.Team, p.Name, p.Kind, keys)
	if err == nil {
		return nil
	}
	var missing *MissingKeysError
	if !errors.As(err, &missing) {
		return answered{failInternal(err)}
	}
	f := fail(http.StatusUnprocessableEntity, CodeUnprocessable, ReasonMissingKeys, missing.Error()+"; see error.details.missingKeys")
	f.body.Details.MissingKeys, f.body.Details.Referrers = missing.Keys, missing.Referrers
	return answered{f}
}

// unreferenced runs f if no binding names the source, while none can come to.
func (s *Server) unreferenced(c *call, f func() error) error {
	return s.opt.References.WithReferrers(c.team, c.name, func(refs []Referrer) error {
		if len(refs) == 0 {
			return f()
		}
		x := fail(http.StatusConflict, CodeConflict, ReasonReferenced, "policy still refers to the source; see error.details.referrers")
		x.body.Details.Referrers = refs
		return answered{x}
	})
}

// inForce waits until the data plane is at rev.
func (s *Server) inForce(c *call, rev store.Rev) *failure {
	ctx, cancel := context.WithTimeout(c.ctx, applyTimeout)
	defer cancel()
	if err := s.opt.Applied(ctx, rev); err != nil {
		return failUnavailable(ReasonNotInForce, "the change is stored and will come in force, but the data plane has not confirmed it yet", err)
	}
	return nil
}

// changed is the operator's line about a change: names and numbers only.
func (s *Server) changed(c *call, what string, m store.Meta, more ...zap.Field) {
	s.opt.Log.Info(what, append([]zap.Field{
		zap.String("request_id", c.id), zap.String("actor", c.who.Name), zap.String("team", m.Team), zap.String("source", m.Name),
		zap.Uint64("version", m.CurrentVersion), zap.Uint64("rev", uint64(m.Rev)),
	}, more...)...)
}
