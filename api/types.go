package api

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"time"

	"go.uber.org/zap/zapcore"

	"github.com/egressd/egressd/store"
)

const redacted = "[redacted]"

// SourceBody is what POST and PUT of a credential source have in common. Spec is write-only:
// `{"<block of the kind>": {…}}`. Formatting or logging a body prints nothing of it; only
// encoding/json writes it, for clients.
type SourceBody struct {
	ResolverKind        string            `json:"resolverKind"`
	Spec                json.RawMessage   `json:"spec"`
	Description         string            `json:"description,omitempty"`         // ≤ 1,024 characters
	Labels              map[string]string `json:"labels,omitempty"`              // ≤ 64
	Annotations         map[string]string `json:"annotations,omitempty"`         // ≤ 64
	AllowedDestinations []string          `json:"allowedDestinations,omitempty"` // ≤ 256; bounds where anyone may send it
	ExternalRefs        []json.RawMessage `json:"externalRefs,omitempty"`        // not supported yet
	ExpiresAt           *time.Time        `json:"expiresAt,omitempty"`
}

// SourceWrite is the body of POST /credential-sources.
type SourceWrite struct {
	Name string `json:"name"`
	SourceBody
}

// SourceReplace is the body of PUT /credential-sources/{name}: a full replacement; the name of
// the path wins over Name.
type SourceReplace struct {
	Name string `json:"name,omitempty"`
	SourceBody
}

// SourceRotate is the body of POST /credential-sources/{name}/rotate: a new version with the
// metadata as it is.
type SourceRotate struct {
	Spec json.RawMessage `json:"spec"`
	// Drain says what happens to connections of the old version. graceful (default): pooled
	// ones end after their request, what has logged in lives on; close: all that is open with
	// an older version is cut; none: nothing.
	Drain  string `json:"drain,omitempty"`
	Reason string `json:"reason,omitempty"` // for the operator's log, ≤ 256 characters
}

// SourcePatch is the body of PATCH /credential-sources/{name}, a JSON merge patch (RFC 7396):
// null removes, what is absent stays. Spec is refused: the old one cannot be read.
type SourcePatch struct {
	Description         *string             `json:"description,omitempty"`
	Labels              *map[string]*string `json:"labels,omitempty"`
	Annotations         *map[string]*string `json:"annotations,omitempty"`
	AllowedDestinations *[]string           `json:"allowedDestinations,omitempty"`
	Status              *string             `json:"status,omitempty"` // active | disabled | archived
	ExpiresAt           *time.Time          `json:"expiresAt,omitempty"`
	Spec                json.RawMessage     `json:"spec,omitempty"`
}

// Format prints nothing of the body.
func (SourceBody) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte(redacted)) }

// LogValue prints nothing of the body.
func (SourceBody) LogValue() slog.Value { return slog.StringValue(redacted) }

// MarshalLogObject prints nothing of the body.
func (SourceBody) MarshalLogObject(e zapcore.ObjectEncoder) error {
	e.AddString("body", redacted)
	return nil
}

// Format prints nothing of the body.
func (SourceRotate) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte(redacted)) }

// LogValue prints nothing of the body.
func (SourceRotate) LogValue() slog.Value { return slog.StringValue(redacted) }

// MarshalLogObject prints nothing of the body.
func (SourceRotate) MarshalLogObject(e zapcore.ObjectEncoder) error {
	e.AddString("body", redacted)
	return nil
}

// Format prints nothing of the body.
func (SourcePatch) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte(redacted)) }

// LogValue prints nothing of the body.
func (SourcePatch) LogValue() slog.Value { return slog.StringValue(redacted) }

// MarshalLogObject prints nothing of the body.
func (SourcePatch) MarshalLogObject(e zapcore.ObjectEncoder) error {
	e.AddString("body", redacted)
	return nil
}

// Source is all of a credential source that may be read.
type Source struct {
	Name                string            `json:"name"`
	ResolverKind        string            `json:"resolverKind"`
	CurrentVersion      uint64            `json:"currentVersion"`
	Status              string            `json:"status"` // active | disabled | archived
	CreatedAt           time.Time         `json:"createdAt"`
	UpdatedAt           time.Time         `json:"updatedAt"`
	Description         string            `json:"description"`
	Labels              map[string]string `json:"labels"`
	Annotations         map[string]string `json:"annotations"`
	AllowedDestinations []string          `json:"allowedDestinations"`
	ExternalRefs        []json.RawMessage `json:"externalRefs"`
	ManagedMode         string            `json:"managedMode"` // local: its values are in egressd's own store
	ManagedBy           string            `json:"managedBy"`
	Fields              []store.Field     `json:"fields"`
	LastRotatedAt       *time.Time        `json:"lastRotatedAt"`
	LastResolvedAt      *time.Time        `json:"lastResolvedAt"` // null: not known
	LastUsedAt          *time.Time        `json:"lastUsedAt"`     // null: not known
	ExpiresAt           *time.Time        `json:"expiresAt"`      // null: never
	ReferenceCount      int               `json:"referenceCount"` // bindings in the policy in force
	Health              string            `json:"health"`         // "ok" or a warning
}

// SourceUpdated is the answer to PUT.
type SourceUpdated struct {
	Source
	Unchanged bool `json:"unchanged,omitempty"` // the spec was identical: no new version
}

// SourceRotated is the answer to rotate.
type SourceRotated struct {
	Source
	Unchanged       bool   `json:"unchanged,omitempty"`
	PreviousVersion uint64 `json:"previousVersion"`
	Drain           string `json:"drain"`
}

// Deletion is the answer to DELETE.
type Deletion struct {
	Deleted bool   `json:"deleted"`
	Message string `json:"message"`
}

// TokenWrite is the body of POST /tokens.
type TokenWrite struct {
	Name      string     `json:"name"`
	Role      string     `json:"role"`           // admin | read
	Team      string     `json:"team,omitempty"` // default: that of who asks; "*": every team
	ExpiresAt *time.Time `json:"expiresAt,omitempty"`
}

// Token is an API token without its value.
type Token struct {
	Name      string     `json:"name"`
	Role      string     `json:"role"`
	Team      string     `json:"team"`
	CreatedAt time.Time  `json:"createdAt"`
	ExpiresAt *time.Time `json:"expiresAt"`
}

// TokenCreated is the answer to POST /tokens, the one time the value is shown.
type TokenCreated struct {
	Token
	Value string `json:"token"`
}

// Identity is the answer to GET /whoami.
type Identity struct {
	Name      string     `json:"name"` // the token's name, or uid:N
	Role      string     `json:"role"`
	Team      string     `json:"team"` // "*": every team
	Via       string     `json:"via"`  // token | socket
	ExpiresAt *time.Time `json:"expiresAt"`
}

// KindView describes one resolverKind. Schema is the JSON Schema of its spec.
type KindView struct {
	Kind         string         `json:"kind"`
	Block        string         `json:"block"`
	About        string         `json:"about"`
	Schema       map[string]any `json:"schema"`
	Inputs       []KindInput    `json:"inputs"`
	Projections  []string       `json:"projections"`
	TemplateVars []string       `json:"templateVars"`
	OpenVars     bool           `json:"openVars"` // the template variables are the source's own keys
}

// KindInput is one member of a kind's block, as a prompt asks for it.
type KindInput struct {
	Name      string `json:"name"`
	About     string `json:"about"`
	Map       bool   `json:"map"` // string → string
	Required  bool   `json:"required"`
	Secret    bool   `json:"secret"`
	Multiline bool   `json:"multiline"`
}

// CAView is the interception CA's certificate.
type CAView struct {
	CertificatePEM    string    `json:"certificatePem"`
	FingerprintSHA256 string    `json:"fingerprintSha256"` // of the DER, hex
	Subject           string    `json:"subject"`
	NotBefore         time.Time `json:"notBefore"`
	NotAfter          time.Time `json:"notAfter"`
}

// Version names the build that answers.
type Version struct {
	Version    string `json:"version"`
	Commit     string `json:"commit"`
	GoVersion  string `json:"goVersion"`
	APIVersion string `json:"apiVersion"`
}

// Health is the answer of /healthz and /readyz.
type Health struct {
	Status string `json:"status"`
}
