package sqlite

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"sync"
	"time"

	"github.com/egressd/egressd/store"
)

// row is one of sources; born is the revision that created it, so that versions of an
// earlier source of the same name cannot be put back.
type row struct {
	store.Meta
	born store.Rev
	doc  []byte // JSON of document, as stored and as MACed
}

// document is the part of Meta that only people read, except AllowedDestinations.
type document struct {
	Description         string            `json:"description,omitempty"`
	Labels              map[string]string `json:"labels,omitempty"`
	Annotations         map[string]string `json:"annotations,omitempty"`
	AllowedDestinations []string          `json:"allowedDestinations,omitempty"`
	ExternalRefs        json.RawMessage   `json:"externalRefs,omitempty"`
	Fields              []store.Field     `json:"fields,omitempty"`
	Health              string            `json:"health,omitempty"`
}

func (r *row) encodeDoc() error {
	b, err := json.Marshal(document{
		Description: r.Description, Labels: r.Labels, Annotations: r.Annotations,
		AllowedDestinations: r.AllowedDestinations, ExternalRefs: r.ExternalRefs,
		Fields: r.Fields, Health: r.Health,
	})
	r.doc = b
	return err
}

func (r *row) decodeDoc() error {
	var doc document
	if err := json.Unmarshal(r.doc, &doc); err != nil {
		return fmt.Errorf("%w: document", store.ErrCorrupt)
	}
	r.Description, r.Labels, r.Annotations = doc.Description, doc.Labels, doc.Annotations
	r.AllowedDestinations, r.ExternalRefs = doc.AllowedDestinations, doc.ExternalRefs
	r.Fields, r.Health = doc.Fields, doc.Health
	return nil
}

// digest covers everything in the row.
func (r *row) digest() []byte {
	sum := sha256.Sum256(store.NewRecord("source/1").
		Str(r.Team).Str(r.Name).Str(r.Kind).Uint(r.CurrentVersion).Str(string(r.Status)).
		Uint(uint64(r.Rev)).Uint(uint64(r.born)).Bytes(r.doc).
		Uint(uint64(micros(r.CreatedAt))).Uint(uint64(micros(r.UpdatedAt))).
		Uint(uint64(micros(r.LastRotatedAt))).Uint(uint64(micros(r.ExpiresAt))))
	return sum[:]
}

// head is one of heads. Of a deleted source it is all that remains.
type head struct {
	version   uint64
	rev       store.Rev
	tombstone bool
	mac       []byte
}

// macHead authenticates a head together with the row that it is the head of, nil for a tombstone.
func (d *DB) macHead(k key, h head, r *row) []byte {
	rec := store.NewRecord("head/1").Str(k.team).Str(k.name).Uint(h.version).Uint(uint64(h.rev))
	if r == nil {
		rec = rec.Str("tombstone")
	} else {
		rec = rec.Str("live").Bytes(r.digest())
	}
	mac := d.sealer.Authenticate(rec)
	return mac[:]
}

// verify says whether row and head belong together, are what this key holder wrote
// last, and are not older than floor, what was seen of the source before the read
// began. Exists is false for a source that never was or is deleted.
func (d *DB) verify(k key, h *head, r *row, floor store.Rev) (exists bool, err error) {
	switch {
	case h == nil && r == nil && floor == 0:
		return false, nil
	case h == nil:
		return false, corrupt(k, "its head record is missing")
	case h.tombstone != (r == nil):
		return false, corrupt(k, "row and head record disagree on deletion")
	case r != nil && (r.Rev != h.rev || r.CurrentVersion != h.version):
		return false, corrupt(k, "not the revision that its head record names")
	case !hmac.Equal(h.mac, d.macHead(k, *h, r)):
		return false, corrupt(k, "row and head record do not authenticate")
	case h.rev < floor:
		return false, corrupt(k, "older than a state seen before")
	}
	return r != nil, nil
}

// version is one of versions.
type version struct {
	number   uint64
	kind     string
	rev      store.Rev
	created  time.Time
	digest   []byte
	mac      []byte
	envelope []byte
}

func (d *DB) macVersion(k key, v *version) []byte {
	envelope := sha256.Sum256(v.envelope)
	mac := d.sealer.Authenticate(store.NewRecord("version/1").Str(k.team).Str(k.name).Uint(v.number).Str(v.kind).
		Uint(uint64(v.rev)).Uint(uint64(micros(v.created))).Bytes(v.digest).Bytes(envelope[:]))
	return mac[:]
}

// verifyVersion says whether v is a version of this incarnation of the source.
func (d *DB) verifyVersion(r *row, v *version) error {
	k := key{r.Team, r.Name}
	switch {
	case !hmac.Equal(v.mac, d.macVersion(k, v)):
		return corrupt(k, fmt.Sprintf("version %d does not authenticate", v.number))
	case v.kind != r.Kind || v.rev < r.born || v.rev > r.Rev:
		return corrupt(k, fmt.Sprintf("version %d is of another source", v.number))
	}
	return nil
}

func corrupt(k key, why string) error {
	return fmt.Errorf("%w: source %q of team %q: %s", store.ErrCorrupt, k.name, k.team, why)
}

type key struct{ team, name string }

// watermark is the highest revision seen of each source, for as long as the process
// lives. It has an entry per source that ever was: some 100 bytes each.
type watermark struct {
	mu   sync.Mutex
	revs map[key]store.Rev
}

func (w *watermark) of(k key) store.Rev {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.revs[k]
}

func (w *watermark) raise(k key, rev store.Rev) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.revs == nil {
		w.revs = make(map[key]store.Rev)
	}
	if rev > w.revs[k] {
		w.revs[k] = rev
	}
}

func micros(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixMicro()
}

func fromMicros(us int64) time.Time {
	if us == 0 {
		return time.Time{}
	}
	return time.UnixMicro(us).UTC()
}
