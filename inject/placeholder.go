package inject

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/egressd/egressd/policy"
)

// Errors of Placeholders. What they are returned for must not be sent: nothing of it was
// replaced.
var (
	// ErrEncodedBody: the body has a Content-Encoding, so nobody can say what is in it.
	ErrEncodedBody = errors.New("an encoded body cannot be rewritten")
	// ErrBodyForm: a placeholder stands in a body, or a part of one, of a type in which
	// nothing is replaced.
	ErrBodyForm = errors.New("a placeholder stands in a body of a type that is not rewritten")
	// ErrBodySyntax: a placeholder stands in a body that is not what its type says.
	ErrBodySyntax = errors.New("a placeholder stands in a body that does not parse as its type")
	// ErrUnsafePlace: the value would not be one value where the placeholder stands.
	ErrUnsafePlace = errors.New("the value cannot stand where the placeholder does")
	// ErrGrowth: so many placeholders that the result would be too large.
	ErrGrowth = errors.New("too many placeholders")
)

const (
	maxPlaceholder  = 256      // bytes
	minPlaceholder  = 8        // bytes
	maxReplacements = 64       // of one projection
	maxTarget       = 64 << 10 // bytes of a request's path and query
	maxGrowth       = 1 << 20  // bytes that one body, or all headers, may grow by
)

// Placeholders is the projection placeholder_substitution, rendered: what the sandbox
// holds in a secret's place, and what it is replaced by in the places that the operator
// named (never elsewhere). Immutable and safe for concurrent use; nil and the zero value
// replace nothing. Every way of printing it hides the values.
//
// Each call replaces all or returns an error and replaces nothing; a value is never
// searched for placeholders itself.
type Placeholders struct {
	by **fillings // fmt follows a pointer to a struct in fields of others, and no pointer to a pointer
}

// fillings by place. Immutable.
type fillings struct {
	header, query, path, body []filling
	rendered                  []string // all values, in the order of the replacements
}

// filling is a replacement, its value written as each place wants it.
type filling struct {
	placeholder               string
	value, percent, json, xml string
}

// String shows nothing.
func (Placeholders) String() string { return "placeholders [redacted]" }

// Format, MarshalText and LogValue keep every way of printing to String.
func (p Placeholders) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte(p.String())) }

// MarshalText is String.
func (p Placeholders) MarshalText() ([]byte, error) { return []byte(p.String()), nil }

// LogValue is String.
func (p Placeholders) LogValue() slog.Value { return slog.StringValue(p.String()) }

// places are the fillings, none for nil.
func (p *Placeholders) places() *fillings {
	if p == nil || p.by == nil {
		return &fillings{}
	}
	return *p.by
}

// For gives the placeholder that stands for value, "" when none does.
func (p *Placeholders) For(value string) string {
	all := p.places()
	for _, list := range [...][]filling{all.header, all.query, all.path, all.body} {
		for _, f := range list {
			if f.value == value {
				return f.placeholder
			}
		}
	}
	return ""
}

// replacementPlan is a replacement, compiled.
type replacementPlan struct {
	placeholder string
	value       *valueTemplate
	locations   policy.Location
	line        int
}

// checkPlaceholder refuses what could not be told from the rest of a request, or that
// clients escape each in their own way.
func checkPlaceholder(r policy.Replacement, earlier []replacementPlan) error {
	const all = policy.InHeader | policy.InQuery | policy.InPath | policy.InBody
	p := r.Placeholder
	switch {
	case len(p) < minPlaceholder || len(p) > maxPlaceholder:
		return fmt.Errorf("placeholder has %d bytes (%d–%d)", len(p), minPlaceholder, maxPlaceholder)
	case r.Locations == 0 || r.Locations&^all != 0:
		return errors.New("placeholder has no locations")
	case strings.ContainsAny(p, "\"'`\\"):
		return errors.New("placeholder holds a quote or a backslash")
	case r.Locations&policy.InBody != 0 && strings.Contains(p, "%"):
		return errors.New("placeholder holds % and cannot stand in a form")
	case r.Locations&(policy.InPath|policy.InQuery) != 0 && percentEncode(p) != p:
		return errors.New("placeholder holds more than letters, digits and - . _ ~ and cannot stand in a path or query")
	}
	for _, c := range []byte(p) {
		if c <= ' ' || c > '~' {
			return errors.New("placeholder holds a blank, a control character or one that is not ASCII")
		}
	}
	for _, e := range earlier {
		switch {
		case e.placeholder == p && e.locations&r.Locations != 0:
			return errors.New("placeholder is replaced twice in one place")
		case e.placeholder != p && (strings.Contains(e.placeholder, p) || strings.Contains(p, e.placeholder)):
			return errors.New("placeholder is a part of another one")
		}
	}
	return nil
}

// fillPlaceholders renders the replacements. The error names a replacement by its number.
func (p *plan) fillPlaceholders(fields map[string]string) (*Placeholders, error) {
	out := &fillings{}
	for i, r := range p.replacements {
		value, err := r.value.execute(fields)
		if err == nil {
			err = checkFilling(value, r.locations)
		}
		for _, other := range p.replacements {
			if err == nil && strings.Contains(value, other.placeholder) {
				err = errors.New("value holds a placeholder")
			}
		}
		if err != nil {
			return nil, fmt.Errorf("replacement %d: %w", i+1, err)
		}
		out.rendered = append(out.rendered, value)
		f := filling{placeholder: r.placeholder, value: value, percent: percentEncode(value), json: jsonEscape(value), xml: xmlEscape(value)}
		for _, place := range []struct {
			at policy.Location
			in *[]filling
		}{{policy.InHeader, &out.header}, {policy.InQuery, &out.query}, {policy.InPath, &out.path}, {policy.InBody, &out.body}} {
			if r.locations&place.at != 0 {
				*place.in = append(*place.in, f)
			}
		}
	}
	return &Placeholders{&out}, nil
}

// checkFilling is what a value must be for the places that it goes to. A control
// character is nowhere allowed: a line end that is harmless in one place is a second line
// in the next that the value is copied to.
func checkFilling(value string, in policy.Location) error {
	switch {
	case value == "":
		return errors.New("value is empty")
	case !utf8.ValidString(value):
		return errors.New("value is not UTF-8")
	case strings.ContainsFunc(value, unicode.IsControl):
		return errors.New("value holds a control character")
	case in&policy.InPath != 0 && strings.ContainsAny(value, `/\%`):
		return errors.New(`value holds one of / \ % and cannot stand in a path`) // servers decode those twice, or too early
	case in&policy.InPath != 0 && dotSegment(value):
		return errors.New("value is a dot segment and cannot stand in a path")
	}
	if in&policy.InHeader != 0 {
		return checkValue(value)
	}
	return nil
}

// percentEncode leaves unreserved characters alone (RFC 3986, 2.3).
func percentEncode(value string) string {
	const hex = "0123456789ABCDEF"
	var out strings.Builder
	for _, c := range []byte(value) {
		if 'a' <= c|0x20 && c|0x20 <= 'z' || '0' <= c && c <= '9' || strings.IndexByte("-._~", c) >= 0 {
			out.WriteByte(c)
		} else {
			out.Write([]byte{'%', hex[c>>4], hex[c&15]})
		}
	}
	return out.String()
}

// jsonEscape is what stands between a string's quotes (RFC 8259, 7).
func jsonEscape(value string) string {
	out, err := json.Marshal(value)
	if err != nil || len(out) < 2 {
		return "" // strings always encode
	}
	return string(out[1 : len(out)-1])
}

func xmlEscape(value string) string {
	return strings.NewReplacer("&", "&amp;", "<", "&lt;", ">", "&gt;", `"`, "&quot;", "'", "&apos;").Replace(value)
}
