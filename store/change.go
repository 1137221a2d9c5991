package store

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"time"
	"unicode/utf8"
)

// What a write makes of a source's metadata. Pure, so that all backends mean the same.

// Stamp is t as stores keep it: UTC, whole microseconds, no monotonic clock.
func Stamp(t time.Time) time.Time {
	if t.IsZero() {
		return time.Time{}
	}
	return t.UTC().Truncate(time.Microsecond)
}

// Check returns ErrInvalid for what no backend takes.
func (p Put) Check() error {
	if p.Kind == "" {
		return fmt.Errorf("%w: no kind", ErrInvalid)
	}
	if len(p.Spec) == 0 || len(p.Spec) > MaxSpecBytes {
		return fmt.Errorf("%w: spec of %d bytes", ErrInvalid, len(p.Spec))
	}
	if len(p.ExternalRefs) > 0 && !json.Valid(p.ExternalRefs) {
		return fmt.Errorf("%w: externalRefs is not JSON", ErrInvalid)
	}
	return CheckName(p.Team, p.Name)
}

// CheckName returns ErrInvalid for a name that no backend takes. The API's own rule is narrower.
func CheckName(team, name string) error {
	if name == "" {
		return fmt.Errorf("%w: no name", ErrInvalid)
	}
	for _, s := range []string{team, name} {
		if len(s) > MaxNameBytes || !utf8.ValidString(s) || bytes.IndexByte([]byte(s), 0) >= 0 {
			return fmt.Errorf("%w: name over %d bytes or not text", ErrInvalid, MaxNameBytes)
		}
	}
	return nil
}

// Guard is the If-Match of a write: ErrStale unless the conditions, where set, hold.
func (m Meta) Guard(ifVersion uint64, ifRev Rev) error {
	if ifVersion != 0 && ifVersion != m.CurrentVersion {
		return fmt.Errorf("%w: it is %d", ErrStale, m.CurrentVersion)
	}
	if ifRev != 0 && ifRev != m.Rev {
		return fmt.Errorf("%w: changed since", ErrStale)
	}
	return nil
}

// First is the metadata of a source at its creation: version 1, active.
func (p Put) First(now time.Time) Meta {
	m := Meta{Team: p.Team, Name: p.Name, Kind: p.Kind, Status: Active}.Replaced(p)
	m.CurrentVersion = 1
	m.CreatedAt, m.UpdatedAt, m.LastRotatedAt = Stamp(now), Stamp(now), Stamp(now)
	return m
}

// Replaced is m with p's metadata; version, status, times and revision stay.
func (m Meta) Replaced(p Put) Meta {
	m.Description = p.Description
	m.Labels = p.Labels
	m.Annotations = p.Annotations
	m.AllowedDestinations = p.AllowedDestinations
	m.ExternalRefs = p.ExternalRefs
	m.Fields = p.Fields
	m.Health = p.Health
	m.ExpiresAt = p.ExpiresAt
	return m.Clone()
}

// Patched is m with p's set fields. ErrInvalid for a status that a patch may not set.
func (m Meta) Patched(p Patch) (Meta, error) {
	if p.Description != nil {
		m.Description = *p.Description
	}
	if p.Labels != nil {
		m.Labels = *p.Labels
	}
	if p.Annotations != nil {
		m.Annotations = *p.Annotations
	}
	if p.AllowedDestinations != nil {
		m.AllowedDestinations = *p.AllowedDestinations
	}
	if p.ExpiresAt != nil {
		m.ExpiresAt = *p.ExpiresAt
	}
	if p.Status != nil {
		switch *p.Status {
		case Active, Disabled, Archived:
			m.Status = *p.Status
		default:
			return Meta{}, fmt.Errorf("%w: status %q", ErrInvalid, *p.Status)
		}
	}
	return m.Clone(), nil
}

// Touched is m as of a change: the version moved on if rotated, and the times with it.
func (m Meta) Touched(rotated bool, now time.Time) Meta {
	m.UpdatedAt = Stamp(now)
	if rotated {
		m.CurrentVersion++
		m.LastRotatedAt = m.UpdatedAt
	}
	return m
}

// Same says whether nothing differs.
func (m Meta) Same(o Meta) bool { return reflect.DeepEqual(m.Clone(), o.Clone()) }

// Clone shares nothing with m, and writes empty maps and lists as nil.
func (m Meta) Clone() Meta {
	m.Labels = cloneMap(m.Labels)
	m.Annotations = cloneMap(m.Annotations)
	m.AllowedDestinations = cloneSlice(m.AllowedDestinations)
	m.Fields = cloneSlice(m.Fields)
	m.ExternalRefs = compact(m.ExternalRefs)
	m.ExpiresAt = Stamp(m.ExpiresAt)
	return m
}

func cloneMap(m map[string]string) map[string]string {
	if len(m) == 0 {
		return nil
	}
	return maps.Clone(m)
}

func cloneSlice[T any](s []T) []T {
	if len(s) == 0 {
		return nil
	}
	return slices.Clone(s)
}

func compact(raw json.RawMessage) json.RawMessage {
	var b bytes.Buffer
	if len(raw) == 0 || json.Compact(&b, raw) != nil || b.String() == "null" {
		return nil
	}
	return b.Bytes()
}
