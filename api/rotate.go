package api

import (
	"go.uber.org/zap"

	"github.com/egressd/egressd/store"
)

func (s *Server) rotateSource(c *call) (answer, *failure) {
	in := c.in.(*SourceRotate)
	if in.Drain == "" {
		in.Drain = "graceful"
	}
	if f := checkRotate(in); f != nil {
		return answer{}, f
	}
	cur, err := s.opt.Writer.Meta(c.ctx, c.team, c.name)
	if err != nil {
		return answer{}, failStore(sourceWord, err)
	}
	seen, f := s.inspect(fields{}, cur.Kind, in.Spec)
	if f != nil {
		return answer{}, f
	}
	defer clear(seen.Canonical)
	m, before, unchanged, f := s.update(c, store.Put{Spec: seen.Canonical, Actor: c.who.Name}, seen.Keys, func(p *store.Put, now store.Meta) {
		p.Meta, p.IfRev = now, now.Rev
		p.Kind = cur.Kind // deleted and made anew as another kind meanwhile: the store refuses
		p.Fields, p.Health = seen.Fields, seen.Health
		if !seen.ExpiresAt.IsZero() {
			p.ExpiresAt = seen.ExpiresAt
		}
	})
	if f != nil {
		return answer{}, f
	}
	if in.Drain != "none" && !unchanged && s.opt.Drain != nil {
		s.opt.Drain(m.Team, m.Name, m.CurrentVersion, in.Drain == "close")
	}
	s.changed(c, "source rotated", m, zap.String("drain", in.Drain), zap.String("why", in.Reason))
	ans := answer{data: SourceRotated{Source: s.viewNow(m), Unchanged: unchanged, PreviousVersion: before, Drain: in.Drain}, etag: etagOf(m)}
	s.remember(c, m.Rev, ans)
	return ans, nil
}

func checkRotate(in *SourceRotate) *failure {
	bad := fields{}
	switch in.Drain {
	case "graceful", "none", "close":
	default:
		bad.add("drain", "must be graceful, close or none")
	}
	if len(in.Reason) > maxReason || hasControl(in.Reason) {
		bad.add("reason", "must be at most 256 bytes without control characters")
	}
	if len(bad) > 0 {
		return failFields(bad)
	}
	return nil
}

// remember keeps an answer whose write can be repeated without harm if this is lost: an
// identical spec makes no second version.
func (s *Server) remember(c *call, rev store.Rev, ans answer) {
	if c.answers == nil {
		return
	}
	a, err := c.answers.keep(c.route, rev, ans)
	if err == nil {
		err = s.opt.Idempotency.Remember(c.ctx, a.Key, a.BodyHash, a.Status, a.Body)
	}
	if err != nil {
		s.opt.Log.Warn("answer was not remembered", zap.String("request_id", c.id), zap.Error(err))
	}
}
