package api

import (
	"errors"
	"net/http"
	"slices"
	"time"

	"go.uber.org/zap"

	"github.com/egressd/egressd/store"
)

func viewToken(t store.Token) Token {
	return Token{Name: t.Name, Role: t.Role, Team: t.Team, CreatedAt: t.CreatedAt.UTC(), ExpiresAt: optional(t.ExpiresAt)}
}

// sees says whether the principal may know of a token: one that is bound to a team knows that
// team's only.
func (p Principal) sees(t store.Token) bool { return p.Team == AllTeams || p.Team == t.Team }

func (s *Server) listTokens(c *call) (answer, *failure) {
	all, err := s.opt.Tokens.ListTokens(c.ctx)
	if err != nil {
		return answer{}, failStore("token", err)
	}
	out := []Token{}
	for _, t := range all {
		if c.who.sees(t) {
			out = append(out, viewToken(t))
		}
	}
	return answer{data: out}, nil
}

func (s *Server) createToken(c *call) (answer, *failure) {
	in := c.in.(*TokenWrite)
	bad := fields{}
	if !nameRE.MatchString(in.Name) {
		bad.add("name", nameMessage)
	}
	if roleOf(in.Role) == RoleNone {
		bad.add("role", "must be admin or read")
	}
	team := in.Team
	if team == "" {
		team = c.who.Team
	}
	if team != AllTeams && !nameRE.MatchString(team) {
		bad.add("team", `must be a team's name or "*"`)
	}
	checkExpiry(bad, "expiresAt", in.ExpiresAt)
	if len(bad) > 0 {
		return answer{}, failFields(bad)
	}
	if c.who.Team != AllTeams && team != c.who.Team {
		return answer{}, failTeam()
	}
	value, hash := newToken()
	t := store.Token{Name: in.Name, Role: in.Role, Team: team, Hash: hash, CreatedBy: c.who.Name, CreatedAt: time.Now().UTC()}
	if in.ExpiresAt != nil {
		t.ExpiresAt = in.ExpiresAt.UTC()
	}
	if c.who.Via == viaToken && !c.who.ExpiresAt.IsZero() && (t.ExpiresAt.IsZero() || t.ExpiresAt.After(c.who.ExpiresAt)) {
		return answer{}, fail(http.StatusForbidden, CodeForbidden, ReasonRole, "a token that expires cannot make one that lives longer")
	}
	if err := s.opt.Tokens.CreateToken(c.ctx, t); err != nil {
		if errors.Is(err, store.ErrExists) {
			return answer{}, fail(http.StatusConflict, CodeConflict, ReasonExists, "a token of this name exists already")
		}
		return answer{}, failStore("token", err)
	}
	s.opt.Log.Info("token created", zap.String("request_id", c.id), zap.String("actor", c.who.Name), zap.String("token", t.Name), zap.String("role", t.Role))
	return answer{data: TokenCreated{Token: viewToken(t), Value: value}}, nil
}

func (s *Server) deleteToken(c *call) (answer, *failure) {
	all, err := s.opt.Tokens.ListTokens(c.ctx)
	if err != nil {
		return answer{}, failStore("token", err)
	}
	if !slices.ContainsFunc(all, func(t store.Token) bool { return t.Name == c.name && c.who.sees(t) }) {
		return answer{}, failNotFound("token")
	}
	if err := s.opt.Tokens.DeleteToken(c.ctx, c.name); err != nil {
		return answer{}, failStore("token", err)
	}
	s.opt.Log.Info("token revoked", zap.String("request_id", c.id), zap.String("actor", c.who.Name), zap.String("token", c.name))
	return answer{data: Deletion{Deleted: true, Message: "token revoked"}}, nil
}

func (s *Server) whoami(c *call) (answer, *failure) {
	return answer{data: Identity{
		Name: c.who.Name, Role: c.who.Role.String(), Team: c.who.Team, Via: c.who.Via, ExpiresAt: optional(c.who.ExpiresAt),
	}}, nil
}
