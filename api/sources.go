package api

import (
	"fmt"
	"time"

	"github.com/egressd/egressd/store"
)

const sourceWord = "credential source"

// expiresSoon is how long before its end a source is reported as expiring.
const expiresSoon = 30 * 24 * time.Hour

// view is a source as it may be read. It asks nobody, so it may run inside a store's transaction.
func view(m store.Meta, references int) Source {
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
	return out
}

// viewNow is view with what others know of the source.
func (s *Server) viewNow(m store.Meta) Source {
	out := view(m, len(s.opt.References.Referrers(m.Team, m.Name)))
	if s.opt.Usage != nil {
		resolved, used := s.opt.Usage(m.Team, m.Name)
		out.LastResolvedAt, out.LastUsedAt = optional(resolved), optional(used)
	}
	return out
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
	p, keys, f := s.put(c, in.Name, in.SourceBody)
	if f != nil {
		return answer{}, f
	}
	defer clear(p.Spec)
	var m store.Meta
	var made func(store.Meta) answer
	err := s.opt.References.WithReferrers(p.Team, p.Name, func(refs []Referrer) error {
		made = func(m store.Meta) answer {
			return answer{data: view(m, len(refs)), etag: etagOf(m), location: base + "/credential-sources/" + m.Name}
		}
		if c.answers != nil {
			p.Answer = func(m store.Meta) (store.Answer, error) { return c.answers.keep(c.route, m.Rev, made(m)) }
		}
		if err := s.checkBound(p, keys, refs); err != nil { // policy may name a source before there is one
			return err
		}
		var err error
		m, err = s.opt.Writer.Create(c.ctx, p)
		return err
	})
	if err != nil {
		return answer{}, failWrite(err)
	}
	s.changed(c, "source created", m)
	if f := s.inForce(c, m.Rev); f != nil {
		return answer{}, f
	}
	return made(m), nil
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
