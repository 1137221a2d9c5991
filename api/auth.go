package api

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"errors"
	"fmt"
	"math"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/egressd/egressd/store"
)

// peerKey is the context key of the uid at the other end of a unix socket.
type peerKey struct{}

// peerOf is the uid that ConnContext noted; ok is false when nobody is known.
func peerOf(ctx context.Context) (uid uint32, ok bool) {
	uid, ok = ctx.Value(peerKey{}).(uint32)
	return uid, ok
}

// Role orders what a principal may do. The zero value may nothing.
type Role uint8

// The roles of today; each contains the one before.
const (
	RoleNone Role = iota
	RoleRead
	RoleAdmin
)

// String is the role's name in the API.
func (r Role) String() string {
	switch r {
	case RoleRead:
		return "read"
	case RoleAdmin:
		return "admin"
	}
	return "none"
}

func roleOf(name string) Role {
	switch name {
	case "read":
		return RoleRead
	case "admin":
		return RoleAdmin
	}
	return RoleNone
}

// DefaultTeam owns what no team was named for.
const DefaultTeam = "default"

// Principal is who a request comes from. Team is AllTeams for one that is bound to none.
type Principal struct {
	Name      string // the token's name, or uid:N
	Role      Role
	Team      string
	Via       string // token | socket
	ExpiresAt time.Time
}

const (
	viaToken    = "token"
	viaSocket   = "socket"
	tokenPrefix = "egd_"
	tokenBytes  = 32
)

// newToken makes a token value with 256 random bits and the hash it is known by.
func newToken() (value string, hash [32]byte) {
	var b [tokenBytes]byte
	_, _ = rand.Read(b[:]) // never fails (crypto/rand)
	value = tokenPrefix + base64.RawURLEncoding.EncodeToString(b[:])
	return value, sha256.Sum256([]byte(value))
}

// authenticate finds out who asks. A presented token decides, also on the socket; without one
// the socket's peer does, if it is the daemon's own user or root.
func (s *Server) authenticate(r *http.Request) (Principal, *failure) {
	uid, local := peerOf(r.Context())
	presented := r.Header.Values("Authorization")
	if len(presented) == 0 {
		if local && (uid == s.euid || uid == 0) {
			return Principal{Name: fmt.Sprintf("uid:%d", uid), Role: RoleAdmin, Team: AllTeams, Via: viaSocket}, nil
		}
		s.meter.refused("token_missing")
		return Principal{}, failToken(ReasonTokenMissing, "a bearer token is needed", `Bearer realm="egressd"`)
	}
	from := guesser(r.RemoteAddr, uid, local)
	value, ok := bearer(presented)
	hash := sha256.Sum256([]byte(value))
	if wait := s.guess.wait(from, hash); wait > 0 {
		s.meter.refused("rate_limited")
		return Principal{}, fail(http.StatusTooManyRequests, CodeRateLimited, "", "too many wrong tokens from this address; wait").
			with("Retry-After", strconv.Itoa(int(math.Ceil(wait.Seconds()))))
	}
	var t store.Token
	err := store.ErrNotFound
	if ok {
		t, err = s.opt.Tokens.TokenByHash(r.Context(), hash)
	}
	if err != nil && !errors.Is(err, store.ErrNotFound) {
		return Principal{}, failStore("token", err)
	}
	good := err == nil && subtle.ConstantTimeCompare(t.Hash[:], hash[:]) == 1
	expired := !t.ExpiresAt.IsZero() && !time.Now().Before(t.ExpiresAt)
	if !good || expired || roleOf(t.Role) == RoleNone {
		s.guess.failed(from, hash)
		s.meter.refused("token_invalid")
		return Principal{}, failToken(ReasonTokenInvalid, "the token is not valid", `Bearer realm="egressd", error="invalid_token"`)
	}
	s.guess.succeeded(hash)
	team := t.Team
	if team == "" {
		team = DefaultTeam
	}
	return Principal{Name: t.Name, Role: roleOf(t.Role), Team: team, Via: viaToken, ExpiresAt: t.ExpiresAt}, nil
}

func failToken(reason, message, challenge string) *failure {
	return fail(http.StatusUnauthorized, CodeUnauthorized, reason, message).with("WWW-Authenticate", challenge)
}

// bearer takes the token out of the one Authorization header; ok is false when it has not the
// form of a token of ours.
func bearer(presented []string) (value string, ok bool) {
	scheme, value, found := strings.Cut(presented[0], " ")
	value = strings.TrimSpace(value)
	if len(presented) != 1 || !found || !strings.EqualFold(scheme, "Bearer") {
		return value, false
	}
	raw, prefixed := strings.CutPrefix(value, tokenPrefix)
	b, err := base64.RawURLEncoding.DecodeString(raw)
	return value, prefixed && err == nil && len(b) == tokenBytes
}
