// Package secret holds a string type that cannot be formatted, logged or marshalled.
package secret

import (
	"crypto/subtle"
	"fmt"
	"log/slog"
)

const redacted = "[redacted]"

// String is a secret value. Every way of formatting it yields "[redacted]"; Reveal
// alone gives the value, so that its uses can be found by name. It is immutable; the
// zero value is the empty string. Copies share the value, and == compares identity: use
// Equal.
type String struct {
	// A pointer, because fmt calls no methods on unexported fields of other structs: it
	// would print a string, of a pointer it prints the address.
	v *string
}

// New wraps v.
func New(v string) String { return String{v: &v} }

// Reveal returns the value. Call it only where the value goes into upstream traffic
// or a parser of key material.
func (s String) Reveal() string {
	if s.v == nil {
		return ""
	}
	return *s.v
}

// Len is the value's length in bytes.
func (s String) Len() int { return len(s.Reveal()) }

// Equal compares in a time that depends on the lengths alone.
func (s String) Equal(o String) bool {
	return subtle.ConstantTimeCompare([]byte(s.Reveal()), []byte(o.Reveal())) == 1
}

// String and what follows are the ways in which fmt, zap, slog, encoding/json, yaml.v3,
// encoding/gob and text encoders ask a value for its words.
func (String) String() string { return redacted }

// GoString answers %#v.
func (String) GoString() string { return redacted }

// Format answers every verb.
func (String) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte(redacted)) }

// MarshalText answers encoders of text, map keys among them.
func (String) MarshalText() ([]byte, error) { return []byte(redacted), nil }

// MarshalJSON answers encoding/json.
func (String) MarshalJSON() ([]byte, error) { return []byte(`"` + redacted + `"`), nil }

// MarshalYAML answers yaml.v3.
func (String) MarshalYAML() (any, error) { return redacted, nil }

// MarshalBinary answers encoding/gob.
func (String) MarshalBinary() ([]byte, error) { return []byte(redacted), nil }

// LogValue answers log/slog.
func (String) LogValue() slog.Value { return slog.StringValue(redacted) }
