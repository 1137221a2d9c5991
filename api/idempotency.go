package api

import (
	"crypto/hmac"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"encoding/json"
	"net/http"

	"github.com/egressd/egressd/store"
)

// KeyHeader makes a POST safe to repeat for 24 h.
const KeyHeader = "Idempotency-Key"

const maxKeyBytes = 255

// remembered is what ties a request to its stored answer.
type remembered struct {
	key  string // of principal, team, method, path and Idempotency-Key
	body [32]byte
}

// kept is the stored form of an answer. Rev lets a replay wait until the write is in force,
// as the first answer did.
type kept struct {
	ETag     string    `json:"etag,omitempty"`
	Location string    `json:"location,omitempty"`
	Rev      store.Rev `json:"rev,omitempty"`
	Body     string    `json:"body"` // as it was sent, to the byte
}

// once runs the handler of a mutation, or gives the answer that the same principal got for
// the same request before.
func (s *Server) once(c *call) (answer, *failure) {
	values := c.r.Header.Values(KeyHeader)
	if len(values) == 0 || c.route.replay == replayNatural {
		return c.route.handler(s, c)
	}
	if c.route.replay == replayRefused {
		return answer{}, fail(http.StatusBadRequest, CodeBadRequest, ReasonIdempotencyKey,
			"this answer shows a secret once and is not kept, so "+KeyHeader+" is refused here")
	}
	if len(values) != 1 || !validKey(values[0]) {
		return answer{}, fail(http.StatusBadRequest, CodeBadRequest, ReasonIdempotencyKey, KeyHeader+" must be 1 to 255 visible ASCII characters")
	}
	m := s.tie(c, values[0])
	mu := s.lock(&s.replays, m.key)
	mu.Lock()
	defer mu.Unlock()
	status, stored, body, ok, err := s.opt.Idempotency.Recall(c.ctx, m.key)
	if err != nil {
		return answer{}, failStore("answer", err)
	}
	if ok {
		return s.replay(c, m, status, stored, body)
	}
	c.answers = m
	return c.route.handler(s, c)
}

func validKey(k string) bool {
	if len(k) == 0 || len(k) > maxKeyBytes {
		return false
	}
	for _, b := range []byte(k) {
		if b < 0x21 || b > 0x7e {
			return false
		}
	}
	return true
}

// tie computes the record's key and the body's digest. A body may hold a secret that could be
// guessed, so no plain hash of it is stored: it is keyed by the client's key, which is not
// stored either, and by the server's where there is one.
func (s *Server) tie(c *call, key string) *remembered {
	scope := store.NewRecord("egressd api idempotency").Str(c.who.Via).Str(c.who.Name).Str(c.team).
		Str(c.route.method).Str(c.r.URL.EscapedPath()).Str(key)
	sum := sha256.Sum256(scope)
	mac := hmac.New(sha256.New, []byte(key))
	_, _ = mac.Write(c.body)
	m := &remembered{key: base64.RawURLEncoding.EncodeToString(sum[:]), body: [32]byte(mac.Sum(nil))}
	if s.opt.BodyDigest != nil {
		m.body = s.opt.BodyDigest(m.body[:])
	}
	return m
}

func (s *Server) replay(c *call, m *remembered, status int, stored []byte, body [32]byte) (answer, *failure) {
	if subtle.ConstantTimeCompare(m.body[:], body[:]) != 1 {
		return answer{}, fail(http.StatusUnprocessableEntity, CodeUnprocessable, ReasonIdempotencyReused, KeyHeader+" was used before with another body")
	}
	var k kept
	if err := json.Unmarshal(stored, &k); err != nil {
		return answer{}, failInternal(err)
	}
	if f := s.inForce(c, k.Rev); f != nil {
		return answer{}, f
	}
	return answer{status: status, raw: []byte(k.Body), etag: k.ETag, location: k.Location, replayed: true}, nil
}

// keep is the stored form of a successful answer.
func (m *remembered) keep(rt *route, rev store.Rev, ans answer) (store.Answer, error) {
	b, err := json.Marshal(kept{ETag: ans.etag, Location: ans.location, Rev: rev, Body: string(encode(envelope{Success: true, Data: ans.data}))})
	return store.Answer{Key: m.key, BodyHash: m.body, Status: rt.status, Body: b}, err
}
