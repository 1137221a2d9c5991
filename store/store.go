// Package store is the contract of where credential sources live: a Reader for the data
// plane, a Writer without a way to read a spec for the management plane.
package store

import (
	"context"
	"encoding/json"
	"errors"
	"iter"
	"time"
)

// Rev is the store-wide revision: one ordered sequence over all changes, never
// reused, the only thing invalidation goes by.
type Rev uint64

// Sentinel errors of the contract; backends wrap them.
var (
	ErrNotFound      = errors.New("not found")
	ErrExists        = errors.New("already exists")
	ErrStale         = errors.New("version is not the current one") // If-Match
	ErrKindImmutable = errors.New("resolver kind cannot change")
	ErrCorrupt       = errors.New("record failed authentication") // AEAD, rollback watermark
	ErrUnavailable   = errors.New("store unavailable")
	ErrInvalid       = errors.New("not a valid record")                     // empty name, over a limit, a status that Patch may not set
	ErrTooNew        = errors.New("store was written by a newer egressd")   // never opened for writing by an older one
	ErrKeys          = errors.New("sealing keys cannot be used")            // missing, weak, readable by others, not a pair
	ErrWrongKeys     = errors.New("store was made with other sealing keys") // key files swapped or not restored with the database
)

// Limits that every backend keeps.
const (
	KeptVersions   = 10             // of each source; older ones are removed
	IdempotencyTTL = 24 * time.Hour // of a remembered Answer
	MaxNameBytes   = 128            // of a team or a source's name
	MaxSpecBytes   = 8 << 20        // of a spec in canonical JSON (the API refuses bodies over 1 MiB)
)

// Status of a source.
type Status string

const (
	Active   Status = "active"
	Disabled Status = "disabled" // kill switch: the next request fails
	Archived Status = "archived" // not bindable
	Deleted  Status = "deleted"  // tombstone; never returned by List or Meta
)

// Meta is all of a source that may be read. It holds nothing from the spec but
// which fields are set.
type Meta struct {
	Team, Name          string
	Kind                string
	CurrentVersion      uint64
	Status              Status
	Description         string
	Labels, Annotations map[string]string
	AllowedDestinations []string
	ExternalRefs        json.RawMessage
	Fields              []Field
	CreatedAt           time.Time
	UpdatedAt           time.Time
	LastRotatedAt       time.Time
	ExpiresAt           time.Time // zero: never
	Health              string    // "ok", or a warning such as "expires in 3 days"
	Rev                 Rev       // revision of the last change to this source
}

// Field says that one leaf of the spec is set, never what it holds.
type Field struct {
	Path   string `json:"path"`
	Set    bool   `json:"set"`
	Origin string `json:"origin"` // "local"
}

// Sealed is one version of a source as the data plane reads it: the envelope
// opens only with the private key, bound to team, name, version and kind.
type Sealed struct {
	Team, Name, Kind    string
	Version             uint64
	Rev                 Rev
	Status              Status
	AllowedDestinations []string
	Envelope            []byte
}

// EventType of a change.
type EventType uint8

const (
	EventPut    EventType = iota + 1 // new version, or metadata or status changed
	EventDelete                      // tombstoned
	EventReset                       // something may have been missed: drop everything cached
)

// Event is one change, in revision order.
type Event struct {
	Type       EventType
	Rev        Rev
	Team, Name string
	Version    uint64
}

// Reader is the data plane's side. Safe for concurrent use.
type Reader interface {
	// Get returns a version, 0 for the current one. ErrNotFound for an unknown or
	// deleted source or version.
	Get(ctx context.Context, team, name string, version uint64) (Sealed, error)
	// Watch yields every change after since, in order, and blocks for more until
	// ctx ends. A backend that cannot be sure yields EventReset first. Changes
	// made by other processes are seen too.
	Watch(ctx context.Context, since Rev) iter.Seq2[Event, error]
	// Rev is the latest committed revision.
	Rev(ctx context.Context) (Rev, error)
}

// Put is one write of a source. Spec is the canonical JSON of the spec block; it is
// sealed before it reaches the backend's storage and never comes back.
type Put struct {
	Meta      // Team, Name, Kind, Description, Labels, Annotations, AllowedDestinations, ExternalRefs, ExpiresAt, Fields, Health
	Spec      []byte
	IfVersion uint64 // 0: no condition; else ErrStale unless it is the current version
	IfRev     Rev    // 0: no condition; else ErrStale unless it is Meta.Rev, which metadata changes move too
	Actor     string
	// Answer, if set, makes what Create is about to answer, to be remembered in the
	// same transaction: a retry after a crash finds the change and its answer or neither.
	Answer func(Meta) (Answer, error)
}

// Answer is what a POST answered, kept for retries with the same Idempotency-Key.
type Answer struct {
	Key      string // scoped by the caller to principal and route
	BodyHash [32]byte
	Status   int
	Body     []byte
}

// Patch changes metadata or status; nil fields stay. It makes no new version.
type Patch struct {
	Description         *string
	Labels, Annotations *map[string]string
	AllowedDestinations *[]string
	Status              *Status
	ExpiresAt           *time.Time // points to the zero time: never
	IfVersion           uint64
	IfRev               Rev
	Actor               string
}

// Writer is the management plane's side. It has no way to read a spec. A call that
// returned nil is durable. Safe for concurrent use.
type Writer interface {
	Create(ctx context.Context, p Put) (Meta, error)
	// Update replaces; unchanged reports that the spec was identical and no new
	// version was made (metadata may still have changed).
	Update(ctx context.Context, p Put) (m Meta, unchanged bool, err error)
	Patch(ctx context.Context, team, name string, p Patch) (Meta, error)
	Delete(ctx context.Context, team, name string, ifVersion uint64, actor string) (Meta, error)
	Meta(ctx context.Context, team, name string) (Meta, error)
	List(ctx context.Context, team string) ([]Meta, error)
}

// Token is an API token as stored: only the SHA-256 of its value.
type Token struct {
	Name      string
	Role      string // admin | read
	Team      string
	Hash      [32]byte
	CreatedBy string // actor
	CreatedAt time.Time
	ExpiresAt time.Time // zero: never; the caller compares
}

// Tokens keeps API tokens and idempotency records beside the sources.
type Tokens interface {
	CreateToken(ctx context.Context, t Token) error // ErrExists
	TokenByHash(ctx context.Context, hash [32]byte) (Token, error)
	ListTokens(ctx context.Context) ([]Token, error)
	DeleteToken(ctx context.Context, name string) error
}

// Idempotency remembers answers of POST by key (scoped by the caller to principal,
// route and body hash) for 24 h.
type Idempotency interface {
	// Recall returns a remembered answer; ok is false when there is none or it is
	// older than IdempotencyTTL.
	Recall(ctx context.Context, key string) (status int, body []byte, bodyHash [32]byte, ok bool, err error)
	// Remember keeps the first answer of a key: a later one does not replace it.
	Remember(ctx context.Context, key string, bodyHash [32]byte, status int, body []byte) error
}

// Activity is one change as it was made, recorded in the change's own transaction.
type Activity struct {
	Time       time.Time
	Actor      string
	Action     string // create, update, patch, delete, token.create, token.delete
	Team, Name string // Name is the token's for token.*
	Version    uint64
	Rev        Rev // 0 for token.*
}

// Activities reads what was changed, newest first.
type Activities interface {
	Activity(ctx context.Context, limit int) ([]Activity, error)
}

// Store is what a backend package returns; the wiring hands each side only its half.
type Store interface {
	Reader
	Writer
	Tokens
	Idempotency
	Activities
	Close() error
}

// Sealer seals a spec for storage (management plane: public key only); Opener opens
// it (data plane). Both are bound to team, name, version and kind.
type Sealer interface {
	Seal(team, name, kind string, version uint64, spec []byte) ([]byte, error)
	// Digest is a keyed digest of a spec, for "is it the same as before" and nothing
	// else; useless without the key file.
	Digest(team, name, kind string, spec []byte) [32]byte
	// Authenticate MACs a head record (the rollback watermark).
	Authenticate(record []byte) [32]byte
}

// Opener is the data plane's.
type Opener interface {
	// Open returns the spec, or ErrCorrupt for whatever does not authenticate: altered,
	// truncated, swapped between teams, names, versions or kinds, sealed to another key.
	Open(s Sealed) ([]byte, error)
}
