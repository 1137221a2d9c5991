package source

import (
	"fmt"
	"log/slog"
)

// String names the material and shows nothing of it.
func (m *Material) String() string {
	if m == nil {
		return "no material"
	}
	return fmt.Sprintf("%s/%s@%d (%s) [redacted]", m.Team, m.Name, m.Version, m.Kind)
}

// Format, MarshalJSON and LogValue keep every way of printing to String.
func (m *Material) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte(m.String())) }

// MarshalJSON is String as a JSON string.
func (m *Material) MarshalJSON() ([]byte, error) { return fmt.Appendf(nil, "%q", m.String()), nil }

// LogValue is String.
func (m *Material) LogValue() slog.Value { return slog.StringValue(m.String()) }

// Format shows what an inspection found, without the canonical spec.
func (in Inspection) Format(f fmt.State, _ rune) {
	_, _ = fmt.Fprintf(f, "inspection{fields %d, health %s, spec [redacted]}", len(in.Fields), in.Health)
}

// MarshalJSON refuses: there is no readable form of a spec.
func (in Inspection) MarshalJSON() ([]byte, error) { return []byte(`"[redacted]"`), nil }
