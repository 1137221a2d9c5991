package api

import (
	"errors"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/egressd/egressd/source"
	"github.com/egressd/egressd/store"
)

// Limits of metadata.
const (
	maxDescription  = 1024
	maxPairs        = 64
	maxLabelValue   = 256
	maxAnnotation   = 4096
	maxDestinations = 256
	maxReason       = 256
)

var pairKeyRE = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9_./-]{0,126}[A-Za-z0-9])?$`)

const nameMessage = "must be 1 to 128 of letters, digits, _ . - and start with a letter or digit"

func at(list string, i int) string { return list + "." + strconv.Itoa(i) }

// hasControl says whether s has a control character, or bytes that are no text.
func hasControl(s string) bool {
	return !utf8.ValidString(s) || strings.ContainsFunc(s, unicode.IsControl)
}

// hasControlBut is hasControl that lets line breaks and tabs be.
func hasControlBut(s string) bool {
	return !utf8.ValidString(s) || strings.ContainsFunc(s, func(r rune) bool { return unicode.IsControl(r) && r != '\n' && r != '\t' })
}

func checkDescription(bad fields, s string) {
	if utf8.RuneCountInString(s) > maxDescription || hasControlBut(s) {
		bad.add("description", "must be at most 1024 characters without control characters")
	}
}

func checkPairs(bad fields, path string, pairs map[string]string, maxValue int) {
	if len(pairs) > maxPairs {
		bad.add(path, "may hold at most 64 entries")
	}
	for i, k := range slices.Sorted(maps.Keys(pairs)) {
		// The key is the client's own text, so the place names it.
		if !pairKeyRE.MatchString(k) {
			bad.add(path+".#"+strconv.Itoa(i+1), "has a key that is not 1 to 128 of letters, digits, _ . / - between letters or digits")
		}
		if utf8.RuneCountInString(pairs[k]) > maxValue || hasControlBut(pairs[k]) {
			bad.add(path+".#"+strconv.Itoa(i+1), "has a value that is too long or has control characters")
		}
	}
}

func checkDestinations(bad fields, list []string) {
	if len(list) > maxDestinations {
		bad.add("allowedDestinations", "may hold at most 256 entries")
		return
	}
	for i := range list {
		if _, err := source.ParseDestinations(list[i : i+1]); err != nil {
			bad.add(at("allowedDestinations", i), `must be a host, "*.host" or either with ":port"`)
		}
	}
}

func checkExpiry(bad fields, path string, t *time.Time) {
	if t != nil && !t.After(time.Now()) {
		bad.add(path, "must be in the future")
	}
}

// LaterKind says whether the API is going to have a kind of this name.
func LaterKind(name string) bool {
	switch name {
	case "api_key_issuer", "issued_api_key", "oauth2_client_credentials", "oauth2_refresh_token", "github_app", "aws_sts", "gcp_service_account":
		return true
	}
	return false
}

// put checks a body and makes the store's write of it; nothing of it is stored yet.
func (s *Server) put(c *call, name string, b SourceBody) (store.Put, []string, *failure) {
	bad := fields{}
	if !nameRE.MatchString(name) {
		bad.add("name", nameMessage)
	}
	checkDescription(bad, b.Description)
	checkPairs(bad, "labels", b.Labels, maxLabelValue)
	checkPairs(bad, "annotations", b.Annotations, maxAnnotation)
	checkDestinations(bad, b.AllowedDestinations)
	checkExpiry(bad, "expiresAt", b.ExpiresAt)
	if len(b.ExternalRefs) > 0 {
		bad.add("externalRefs", "not supported yet")
	}
	in, f := s.inspect(bad, b.ResolverKind, b.Spec)
	if f != nil {
		return store.Put{}, nil, f
	}
	p := store.Put{Spec: in.Canonical, Actor: c.who.Name}
	p.Team, p.Name, p.Kind = c.team, name, b.ResolverKind
	p.Description, p.Labels, p.Annotations = b.Description, b.Labels, b.Annotations
	p.AllowedDestinations, p.Fields, p.Health, p.ExpiresAt = b.AllowedDestinations, in.Fields, in.Health, in.ExpiresAt
	if b.ExpiresAt != nil {
		p.ExpiresAt = b.ExpiresAt.UTC()
	}
	return p, in.Keys, nil
}

// inspect checks a spec by its kind and answers for everything that is in bad as well.
func (s *Server) inspect(bad fields, kind string, spec []byte) (source.Inspection, *failure) {
	k, ok := s.opt.Kinds.Kind(kind)
	if !ok {
		message, reason := "is not a known kind; see /api/v1/resolver-kinds", ReasonKindUnknown
		if LaterKind(kind) {
			message, reason = "not supported yet; see /api/v1/resolver-kinds", ReasonNotSupportedYet
		}
		bad.add("resolverKind", message)
		f := failFields(bad)
		f.body.Details.Reason = reason
		return source.Inspection{}, f
	}
	in, err := k.Inspect(spec, time.Now())
	var fe source.FieldErrors
	switch {
	case errors.Is(err, source.ErrTooLarge):
		return in, failTooLarge()
	case errors.As(err, &fe):
		for path, messages := range fe.Under("spec") {
			bad[path] = append(bad[path], messages...)
		}
	case err != nil:
		return in, failInternal(err)
	}
	if len(bad) > 0 {
		return in, failFields(bad)
	}
	in.Health = lasting(k, spec, in)
	return in, nil
}

// lasting is the part of a health warning that does not change with time: what expires is
// told at every read anew (see healthNow).
func lasting(k source.Kind, spec []byte, in source.Inspection) string {
	if in.ExpiresAt.IsZero() || time.Until(in.ExpiresAt) >= expiresSoon {
		return in.Health
	}
	h, err := k.Health(spec, time.Time{})
	if err != nil {
		return in.Health
	}
	return h
}
