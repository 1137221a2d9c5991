package api

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"time"

	"go.uber.org/zap"

	"github.com/egressd/egressd/store"
)

const sourceWord = "credential source"

// expiresSoon is how long before its end a source is reported as expiring.
const expiresSoon = 30 * 24 * time.Hour

// view is a source as it may be read.
func (s *Server) view(m store.Meta, references int) Source {
	out := Source{
		Name: m.Name, ResolverKind: m.Kind, CurrentVersion: m.CurrentVersion, Status: string(m.Status),
		CreatedAt: m.CreatedAt.UTC(), UpdatedAt: m.UpdatedAt.UTC(), Description: m.Description,
		Labels: nonNilMap(m.Labels), Annotations: nonNilMap(m.Annotations),
		AllowedDestinations: nonNil(m.AllowedDestinations), ExternalRefs: nil,
		ManagedMode: "local", Fields: nonNil(m.Fields),
		LastRotatedAt: optional(m.LastRotatedAt), ExpiresAt: optional(m.ExpiresAt),
		ReferenceCount: references, Health: healthNow(m, time.Now()),
	}
	out.ExternalRefs = nonNil(out.ExternalRefs)
	if s.opt.Usage != nil {
		resolved, used := s.opt.Usage(m.Team, m.Name)
		out.LastResolvedAt, out.LastUsedAt = optional(resolved), optional(used)
	}
	return out
}

func (s *Server) viewNow(m store.Meta) Source {
	return s.view(m, len(s.opt.References.Referrers(m.Team, m.Name)))
}

// healthNow adds what time does to what was found when the source was written.
func healthNow(m store.Meta, now time.Time) string {
	said := m.Health
	if said == "ok" {
		said = ""
	}
	left := m.ExpiresAt.Sub(now)
	switch {
	case m.ExpiresAt.IsZero() || left >= expiresSoon:
	case left <= 0:
		said = joined(said, "expired on "+m.ExpiresAt.UTC().Format(time.DateOnly))
	default:
		said = joined(said, fmt.Sprintf("expires in %d days", int(left/(24*time.Hour))))
	}
	if said == "" {
		return "ok"
	}
	return said
}

func joined(a, b string) string {
	if a == "" {
		return b
	}
	return a + "; " + b
}

func optional(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	t = t.UTC()
	return &t
}

func nonNilMap(m map[string]string) map[string]string {
	if m == nil {
		return map[string]string{}
	}
	return m
}

func (s *Server) getSource(c *call) (answer, *failure) {
	m, err := s.opt.Writer.Meta(c.ctx, c.team, c.name)
	if err != nil {
		return answer{}, failStore(sourceWord, err)
	}
	return answer{data: s.viewNow(m), etag: etagOf(m)}, nil
}

func (s *Server) createSource(c *call) (answer, *failure) {
	in := c.in.(*SourceWrite)
	p, _, f := s.put(c, in.Name, in.SourceBody)
	if f != nil {
		return answer{}, f
	}
	defer clear(p.Spec)
	made := func(m store.Meta) answer {
		return answer{data: s.viewNow(m), etag: etagOf(m), location: base + "/credential-sources/" + m.Name}
	}
	if c.answers != nil {
		p.Answer = func(m store.Meta) (store.Answer, error) { return c.answers.keep(c.route, m.Rev, made(m)) }
	}
	m, err := s.opt.Writer.Create(c.ctx, p)
	if err != nil {
		return answer{}, failStore(sourceWord, err)
	}
	s.changed(c, "source created", m)
	if f := s.inForce(c, m.Rev); f != nil {
		return answer{}, f
	}
	return made(m), nil
}

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

// write makes one write that depends on the current metadata. Where the client set no
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

func (s *Server) replaceSource(c *call) (answer, *failure) {
	in := c.in.(*SourceReplace)
	cur, err := s.opt.Writer.Meta(c.ctx, c.team, c.name)
	if err != nil {
		return answer{}, failStore(sourceWord, err)
	}
	if cur.Kind != in.ResolverKind {
		return answer{}, failKindImmutable()
	}
	p, keys, f := s.put(c, c.name, in.SourceBody)
	if f != nil {
		return answer{}, f
	}
	defer clear(p.Spec)
	m, _, unchanged, f := s.update(c, p, keys, func(*store.Put, store.Meta) {})
	if f != nil {
		return answer{}, f
	}
	return answer{data: SourceUpdated{Source: s.viewNow(m), Unchanged: unchanged}, etag: etagOf(m)}, nil
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
			if len(refs) > 0 {
				if err := s.checkBound(p, keys); err != nil {
					return err
				}
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
func (s *Server) checkBound(p store.Put, keys []string) error {
	if s.opt.CheckBound == nil {
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
	if in.Drain == "graceful" && !unchanged && s.opt.Drain != nil {
		s.opt.Drain(m.Team, m.Name, m.CurrentVersion)
	}
	s.changed(c, "source rotated", m, zap.String("drain", in.Drain), zap.String("why", in.Reason))
	ans := answer{data: SourceRotated{Source: s.viewNow(m), Unchanged: unchanged, PreviousVersion: before, Drain: in.Drain}, etag: etagOf(m)}
	s.remember(c, m.Rev, ans)
	return ans, nil
}

func checkRotate(in *SourceRotate) *failure {
	bad := fields{}
	switch in.Drain {
	case "graceful", "none":
	case "close":
		f := fail(http.StatusUnprocessableEntity, CodeUnprocessable, ReasonNotSupportedYet, "drain close is not supported yet")
		f.body.Details.Fields = fields{"drain": {"close is not supported yet; use graceful or none"}}
		return f
	default:
		bad.add("drain", "must be graceful or none")
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

func (s *Server) deleteSource(c *call) (answer, *failure) {
	var gone store.Meta
	f := s.edit(c, func(cur store.Meta) *failure {
		return failWrite(s.unreferenced(c, func() error {
			var ifVersion uint64
			if conditional(c) {
				ifVersion = cur.CurrentVersion
			}
			var err error
			gone, err = s.opt.Writer.Delete(c.ctx, c.team, c.name, ifVersion, c.who.Name)
			return err
		}))
	})
	if f != nil {
		return answer{}, f
	}
	s.changed(c, "source deleted", gone)
	if f := s.inForce(c, gone.Rev); f != nil {
		return answer{}, f
	}
	return answer{data: Deletion{Deleted: true, Message: "credential source deleted"}}, nil
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

func (s *Server) patchSource(c *call) (answer, *failure) {
	in := c.in.(*SourcePatch)
	if c.present["spec"] {
		f := fail(http.StatusUnprocessableEntity, CodeUnprocessable, ReasonSpecInPatch,
			"the stored spec cannot be read, so it cannot be merged into; send the whole spec by PUT or rotate")
		f.body.Details.Fields = fields{"spec": {"use PUT or rotate"}}
		return answer{}, f
	}
	var m store.Meta
	f := s.writeOver(c, func(cur store.Meta) error {
		p, bad := merge(in, c.present, cur)
		if len(bad) > 0 {
			return answered{failFields(bad)}
		}
		p.IfRev, p.Actor = cur.Rev, c.who.Name
		patch := func() error {
			var err error
			m, err = s.opt.Writer.Patch(c.ctx, c.team, c.name, p)
			return err
		}
		if p.Status != nil && *p.Status == store.Archived && cur.Status != store.Archived {
			return s.unreferenced(c, patch) // archived is not bindable
		}
		return patch()
	})
	if f != nil {
		return answer{}, f
	}
	s.changed(c, "source patched", m, zap.String("status", string(m.Status)))
	if f := s.inForce(c, m.Rev); f != nil {
		return answer{}, f
	}
	return answer{data: s.viewNow(m), etag: etagOf(m)}, nil
}

// merge makes the store's patch of a merge patch over the current metadata (RFC 7396).
func merge(in *SourcePatch, present map[string]bool, cur store.Meta) (store.Patch, fields) {
	var p store.Patch
	bad := fields{}
	if present["description"] {
		p.Description = new(string)
		if in.Description != nil {
			*p.Description = *in.Description
		}
		checkDescription(bad, *p.Description)
	}
	if present["labels"] {
		p.Labels = mergePairs(in.Labels, cur.Labels)
		checkPairs(bad, "labels", *p.Labels, maxLabelValue)
	}
	if present["annotations"] {
		p.Annotations = mergePairs(in.Annotations, cur.Annotations)
		checkPairs(bad, "annotations", *p.Annotations, maxAnnotation)
	}
	if present["allowedDestinations"] {
		p.AllowedDestinations = new([]string)
		if in.AllowedDestinations != nil {
			*p.AllowedDestinations = *in.AllowedDestinations
		}
		checkDestinations(bad, *p.AllowedDestinations)
	}
	if present["expiresAt"] {
		checkExpiry(bad, "expiresAt", in.ExpiresAt)
		p.ExpiresAt = new(time.Time)
		if in.ExpiresAt != nil {
			*p.ExpiresAt = in.ExpiresAt.UTC()
		}
	}
	if present["status"] {
		p.Status = statusOf(in.Status)
		if p.Status == nil {
			bad.add("status", "must be active, disabled or archived")
		}
	}
	return p, bad
}

func statusOf(s *string) *store.Status {
	if s == nil {
		return nil
	}
	switch st := store.Status(*s); st {
	case store.Active, store.Disabled, store.Archived:
		return &st
	}
	return nil
}

func mergePairs(patch *map[string]*string, cur map[string]string) *map[string]string {
	out := map[string]string{}
	if patch == nil {
		return &out // null removes all
	}
	maps.Copy(out, cur)
	for k, v := range *patch {
		if v == nil {
			delete(out, k)
			continue
		}
		out[k] = *v
	}
	return &out
}
