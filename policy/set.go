package policy

import (
	"slices"
)

// Sandbox finds a sandbox by its ID; nil when there is none.
func (s *Set) Sandbox(id string) *Sandbox {
	if s == nil {
		return nil
	}
	return s.byID[id]
}

// Sandboxes gives all sandboxes, by ID. The caller may keep the slice.
func (s *Set) Sandboxes() []*Sandbox {
	if s == nil {
		return nil
	}
	return slices.Clone(s.sandboxes)
}

// CredentialRules gives all enabled credential rules of all sandboxes, by Index. The
// caller may keep the slice.
func (s *Set) CredentialRules() []*CredentialRule {
	if s == nil {
		return nil
	}
	return slices.Clone(s.creds)
}

// Referrers gives the bindings that refer to a team's source, in the order of the
// files. A template's binding counts for the teams of the sandboxes that use it, and
// for every team as long as none does.
func (s *Set) Referrers(team, source string) []Referrer {
	if s == nil {
		return nil
	}
	return slices.Concat(s.referrers[sourceRef{"", source}], s.referrers[sourceRef{team, source}])
}

// Hash tells two inputs apart: 16 hex digits of a SHA-256 over the files' base names
// and contents.
func (s *Set) Hash() string {
	if s == nil {
		return ""
	}
	return s.hash
}
