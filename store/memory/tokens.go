package memory

import (
	"cmp"
	"context"
	"crypto/subtle"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/egressd/egressd/store"
)

// CreateToken implements store.Tokens.
func (s *Store) CreateToken(ctx context.Context, t store.Token) error {
	if err := store.CheckName(t.Team, t.Name); err != nil {
		return err
	}
	if err := s.lock(ctx); err != nil {
		return err
	}
	defer s.mu.Unlock()
	for _, other := range s.tokens {
		if other.Name == t.Name || other.Hash == t.Hash {
			return fmt.Errorf("create token %q: %w", t.Name, store.ErrExists)
		}
	}
	t.CreatedAt, t.ExpiresAt = store.Stamp(t.CreatedAt), store.Stamp(t.ExpiresAt)
	s.tokens[t.Name] = t
	s.act(store.Activity{Time: store.Stamp(s.now()), Actor: t.CreatedBy, Action: "token.create", Team: t.Team, Name: t.Name})
	return nil
}

// TokenByHash implements store.Tokens.
func (s *Store) TokenByHash(ctx context.Context, hash [32]byte) (store.Token, error) {
	if err := s.lock(ctx); err != nil {
		return store.Token{}, err
	}
	defer s.mu.Unlock()
	for _, t := range s.tokens {
		if subtle.ConstantTimeCompare(t.Hash[:], hash[:]) == 1 {
			return t, nil
		}
	}
	return store.Token{}, fmt.Errorf("token: %w", store.ErrNotFound)
}

// ListTokens implements store.Tokens, by name.
func (s *Store) ListTokens(ctx context.Context) ([]store.Token, error) {
	if err := s.lock(ctx); err != nil {
		return nil, err
	}
	defer s.mu.Unlock()
	list := slices.AppendSeq([]store.Token{}, maps.Values(s.tokens))
	slices.SortFunc(list, func(a, b store.Token) int { return cmp.Compare(a.Name, b.Name) })
	return list, nil
}

// DeleteToken implements store.Tokens.
func (s *Store) DeleteToken(ctx context.Context, name string) error {
	if err := s.lock(ctx); err != nil {
		return err
	}
	defer s.mu.Unlock()
	t, ok := s.tokens[name]
	if !ok {
		return fmt.Errorf("delete token %q: %w", name, store.ErrNotFound)
	}
	delete(s.tokens, name)
	s.act(store.Activity{Time: store.Stamp(s.now()), Action: "token.delete", Team: t.Team, Name: name})
	return nil
}

// Recall implements store.Idempotency.
func (s *Store) Recall(ctx context.Context, key string) (status int, body []byte, bodyHash [32]byte, ok bool, err error) {
	if err := s.lock(ctx); err != nil {
		return 0, nil, bodyHash, false, err
	}
	defer s.mu.Unlock()
	a, ok := s.answers[key]
	if !ok || !s.now().Before(a.expires) {
		return 0, nil, bodyHash, false, nil
	}
	return a.Status, slices.Clone(a.Body), a.BodyHash, true, nil
}

// Remember implements store.Idempotency.
func (s *Store) Remember(ctx context.Context, key string, bodyHash [32]byte, status int, body []byte) error {
	if err := s.lock(ctx); err != nil {
		return err
	}
	defer s.mu.Unlock()
	s.remember(store.Answer{Key: key, BodyHash: bodyHash, Status: status, Body: body}, s.now())
	return nil
}

func (s *Store) remember(a store.Answer, now time.Time) {
	maps.DeleteFunc(s.answers, func(_ string, old answer) bool { return !now.Before(old.expires) })
	if _, ok := s.answers[a.Key]; ok {
		return
	}
	a.Body = slices.Clone(a.Body)
	s.answers[a.Key] = answer{Answer: a, expires: now.Add(store.IdempotencyTTL)}
}

// Activity implements store.Activities.
func (s *Store) Activity(ctx context.Context, limit int) ([]store.Activity, error) {
	if err := s.lock(ctx); err != nil {
		return nil, err
	}
	defer s.mu.Unlock()
	list := slices.Clone(s.activity[max(0, len(s.activity)-max(limit, 0)):])
	slices.Reverse(list)
	return list, nil
}
