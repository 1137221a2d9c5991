package api

import (
	"maps"
	"net/http"
	"time"

	"go.uber.org/zap"

	"github.com/egressd/egressd/store"
)

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
