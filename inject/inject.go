// Package inject turns what a binding says into what goes upstream: Compile makes one
// Injector per credential rule, an Injector resolves its source and renders it once per
// version, a Projection is applied to a request's header or TLS configuration.
package inject

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"strings"

	"github.com/egressd/egressd/internal/secret"
	"github.com/egressd/egressd/source"
)

// Codes of Error, the words of X-Egressd-Error.
const (
	CodeSourceNotFound        = "source_not_found"
	CodeSourceDisabled        = "source_disabled"
	CodeSourceCorrupt         = "source_corrupt"
	CodeSourceInvalid         = "source_invalid"
	CodeSourceUnavailable     = "source_unavailable"
	CodeDestinationNotAllowed = "destination_not_allowed"
	CodeTemplateFailed        = "template_failed"
)

// Error says why nothing can be injected. Err is for the operator's log; neither it
// nor anything else here holds a value of the source.
type Error struct {
	Code    string
	Source  string
	Version uint64 // 0: not known
	Err     error
}

// Error is for the operator's log.
func (e *Error) Error() string {
	name := e.Source
	if e.Version != 0 {
		name = fmt.Sprintf("%s@%d", e.Source, e.Version)
	}
	return fmt.Sprintf("source %s: %s: %v", name, e.Code, e.Err)
}

func (e *Error) Unwrap() error { return e.Err }

// Header is one field to set, its value checked for the wire (RFC 9110, 5.5). Every
// way of formatting it hides the value.
type Header struct{ Name, Value string }

// String is the name alone.
func (h Header) String() string { return h.Name + ": [redacted]" }

// Format, MarshalText and LogValue keep every way of printing to String.
func (h Header) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte(h.String())) }

// MarshalText is String.
func (h Header) MarshalText() ([]byte, error) { return []byte(h.String()), nil }

// LogValue is String.
func (h Header) LogValue() slog.Value { return slog.StringValue(h.String()) }

// Projection is a source made ready for one rule. Immutable and shared by all
// requests until the source changes; its pointer may be compared.
type Projection struct {
	Source  string // the source's name
	Version uint64
	// ID is the material's: not 0, the same for all rules that project one version, and never
	// used again. With the sandbox, the key of pooled upstream connections.
	ID      uint64
	Headers []Header
	// ClientCert authenticates to the upstream, only after the upstream has proved
	// itself; CAs, if not nil, narrow whom to trust as that upstream: it must chain
	// to one of them as well.
	ClientCert *tls.Certificate
	CAs        *x509.CertPool
	// Login is what username_password logs in with where the protocol has a login of its
	// own; nil for other projections.
	Login *Login
	// SSH is the login of ssh_proxy, Placeholders what placeholder_substitution replaces, AWS
	// the keys of aws_sigv4; nil for other projections.
	SSH          *SSHLogin
	Placeholders *Placeholders
	AWS          *AWSKeys

	values  [][]string      // of Headers, ready for http.Header; never written to
	secrets []secret.String // see Secrets
}

// String names the projection and shows nothing of it.
func (p *Projection) String() string {
	if p == nil {
		return "no projection"
	}
	return fmt.Sprintf("%s@%d [redacted]", p.Source, p.Version)
}

// Format, MarshalText and LogValue keep every way of printing to String.
func (p *Projection) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte(p.String())) }

// MarshalText is String.
func (p *Projection) MarshalText() ([]byte, error) { return []byte(p.String()), nil }

// LogValue is String.
func (p *Projection) LogValue() slog.Value { return slog.StringValue(p.String()) }

// newProjection is the one way to make one, so that values and Headers agree.
func newProjection(m *source.Material, headers []Header) *Projection {
	p := &Projection{Source: m.Name, Version: m.Version, ID: m.ID, Headers: headers}
	if p.ID == 0 {
		p.ID = rand.Uint64() | 1 // material that no Resolver made; 0 would be everybody's pool
	}
	for _, h := range headers {
		p.values = append(p.values, []string{h.Value})
	}
	return p
}

// Apply removes from h what the client sent to authenticate itself (see
// StripClientAuth; with keepClientAuth only what the projection sets itself), however
// it was spelt, then sets each projected header exactly once. It is the last thing done to
// h before it is sent. Where two projections apply to one request, that of the client
// certificate goes first: each removes what was there before it. Placeholders are not
// replaced by it but by Placeholders.Header afterwards: what they stand in stays.
//
// The values set are shared slices: replace them in h, do not write into them.
func (p *Projection) Apply(h http.Header, keepClientAuth bool) {
	if p.Placeholders != nil && !keepClientAuth {
		p.Placeholders.StripClientAuth(h)
		keepClientAuth = true
	}
	for key := range h {
		if p.sets(key) || !keepClientAuth && isAuthName(key) {
			delete(h, key)
		}
	}
	for i := range p.Headers {
		h[p.Headers[i].Name] = p.values[i]
	}
}

func (p *Projection) sets(key string) bool {
	for i := range p.Headers {
		if sameName(p.Headers[i].Name, key) {
			return true
		}
	}
	return false
}

// sameName compares field names as the loosest receiver does: CGI and WSGI servers
// (RFC 3875, 4.1.18) cannot tell "-" from "_".
func sameName(a, b string) bool {
	if len(a) != len(b) {
		return false
	}
	if strings.EqualFold(a, b) {
		return true
	}
	for i := range len(a) {
		if fold(a[i]) != fold(b[i]) {
			return false
		}
	}
	return true
}

func fold(c byte) byte {
	switch {
	case 'A' <= c && c <= 'Z':
		return c + 'a' - 'A'
	case c == '_':
		return '-'
	}
	return c
}
