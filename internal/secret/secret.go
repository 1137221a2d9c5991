// Package secret holds a string type that cannot be formatted, logged or marshalled.
package secret

import (
	"fmt"
	"log/slog"
)

const redacted = "[redacted]"

// String is a secret value. Every way of formatting it yields "[redacted]"; Reveal
// alone gives the value, so that its uses can be found by name.
//
// The value is behind a pointer: fmt cannot call our methods on a String in an
// unexported field, and prints an address then.
type String struct{ v *string }

// New wraps v.
func New(v string) String { return String{&v} }

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

func (String) String() string               { return redacted }
func (String) GoString() string             { return redacted }
func (String) Format(f fmt.State, _ rune)   { _, _ = f.Write([]byte(redacted)) }
func (String) MarshalText() ([]byte, error) { return []byte(redacted), nil }
func (String) MarshalJSON() ([]byte, error) { return []byte(`"` + redacted + `"`), nil }
func (String) MarshalYAML() (any, error)    { return redacted, nil }
func (String) LogValue() slog.Value         { return slog.StringValue(redacted) }
