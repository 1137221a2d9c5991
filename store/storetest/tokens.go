package storetest

import (
	"crypto/sha256"
	"errors"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/egressd/egressd/store"
)

func testIdempotency(t *testing.T, f *fixture) {
	if _, _, _, ok, err := f.Recall(t.Context(), "k"); ok || err != nil {
		t.Fatalf("recalled what was never remembered: %v", err)
	}
	hash := sha256.Sum256([]byte("body"))
	if err := f.Remember(t.Context(), "k", hash, 201, []byte("answer")); err != nil {
		t.Fatal(err)
	}
	if err := f.Remember(t.Context(), "k", sha256.Sum256([]byte("other")), 500, []byte("second")); err != nil {
		t.Fatal(err)
	}
	if err := f.Remember(t.Context(), "empty", hash, 204, nil); err != nil {
		t.Fatal(err)
	}
	f.pass(store.IdempotencyTTL - time.Second)
	status, body, got, ok, err := f.Recall(t.Context(), "k")
	if err != nil || !ok || status != 201 || string(body) != "answer" || got != hash {
		t.Errorf("recalled %d %q %x %v %v", status, body, got, ok, err)
	}
	if status, body, _, ok, err := f.Recall(t.Context(), "empty"); err != nil || !ok || status != 204 || len(body) != 0 {
		t.Errorf("recalled %d %q %v %v", status, body, ok, err)
	}
	f.pass(2 * time.Second)
	if _, _, _, ok, err := f.Recall(t.Context(), "k"); ok || err != nil {
		t.Errorf("recalled after its time: %v", err)
	}
	if err := f.Remember(t.Context(), "k", hash, 202, []byte("anew")); err != nil {
		t.Fatal(err)
	}
	if status, _, _, ok, _ := f.Recall(t.Context(), "k"); !ok || status != 202 {
		t.Errorf("after its time a key is free again: %d %v", status, ok)
	}
}

func testAnswer(t *testing.T, f *fixture) {
	hash := sha256.Sum256([]byte("body"))
	p := put("api", "one")
	p.Answer = func(m store.Meta) (store.Answer, error) {
		return store.Answer{Key: "k", BodyHash: hash, Status: 201, Body: []byte("made " + m.Name)}, nil
	}
	if _, err := f.Create(t.Context(), p); err != nil {
		t.Fatal(err)
	}
	status, body, got, ok, err := f.Recall(t.Context(), "k")
	if err != nil || !ok || status != 201 || string(body) != "made api" || got != hash {
		t.Errorf("recalled %d %q %v %v", status, body, ok, err)
	}
	// What cannot be answered is not made, what is not made is not answered.
	failed := errors.New("no answer")
	p = put("other", "one")
	p.Answer = func(store.Meta) (store.Answer, error) { return store.Answer{}, failed }
	_, err = f.Create(t.Context(), p)
	wantErr(t, err, failed)
	_, err = f.Meta(t.Context(), team, "other")
	wantErr(t, err, store.ErrNotFound)
	p = put("api", "two")
	p.Answer = func(store.Meta) (store.Answer, error) { return store.Answer{Key: "k2", Status: 201}, nil }
	_, err = f.Create(t.Context(), p)
	wantErr(t, err, store.ErrExists)
	if _, _, _, ok, _ := f.Recall(t.Context(), "k2"); ok {
		t.Error("an answer was kept of a create that failed")
	}
}

func testTokens(t *testing.T, f *fixture) {
	token := store.Token{
		Name: "ci", Role: "read", Team: team, Hash: sha256.Sum256([]byte("value")), CreatedBy: "owner",
		CreatedAt: f.clock(), ExpiresAt: f.clock().Add(time.Hour),
	}
	if err := f.CreateToken(t.Context(), token); err != nil {
		t.Fatal(err)
	}
	got, err := f.TokenByHash(t.Context(), token.Hash)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(token, got); d != "" {
		t.Errorf("token (-want +got):\n%s", d)
	}
	sameName, sameHash := token, token
	sameName.Hash = sha256.Sum256([]byte("other"))
	sameHash.Name = "other"
	wantErr(t, f.CreateToken(t.Context(), sameName), store.ErrExists)
	wantErr(t, f.CreateToken(t.Context(), sameHash), store.ErrExists)
	wantErr(t, f.CreateToken(t.Context(), store.Token{}), store.ErrInvalid)

	second := store.Token{Name: "admin", Role: "admin", Hash: sha256.Sum256([]byte("second")), CreatedAt: f.clock()}
	if err := f.CreateToken(t.Context(), second); err != nil {
		t.Fatal(err)
	}
	list, err := f.ListTokens(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff([]store.Token{second, token}, list); d != "" {
		t.Errorf("list (-want +got):\n%s", d)
	}
	if err := f.DeleteToken(t.Context(), "ci"); err != nil {
		t.Fatal(err)
	}
	_, err = f.TokenByHash(t.Context(), token.Hash)
	wantErr(t, err, store.ErrNotFound)
	wantErr(t, f.DeleteToken(t.Context(), "ci"), store.ErrNotFound)
	if err := f.CreateToken(t.Context(), token); err != nil {
		t.Errorf("the name of a deleted token: %v", err)
	}
}

func testActivity(t *testing.T, f *fixture) {
	f.create(t, "api", "one")
	f.pass(time.Minute)
	f.update(t, "api", "two")
	if _, _, err := f.Update(t.Context(), put("api", "two")); err != nil { // no change, no record
		t.Fatal(err)
	}
	status := store.Disabled
	if _, err := f.Patch(t.Context(), team, "api", store.Patch{Status: &status, Actor: "operator"}); err != nil {
		t.Fatal(err)
	}
	if _, err := f.Delete(t.Context(), team, "api", 0, "operator"); err != nil {
		t.Fatal(err)
	}
	if err := f.CreateToken(t.Context(), store.Token{Name: "ci", Team: team, CreatedBy: "owner"}); err != nil {
		t.Fatal(err)
	}
	now, first := f.clock(), f.clock().Add(-time.Minute)
	want := []store.Activity{
		{Time: now, Actor: "owner", Action: "token.create", Team: team, Name: "ci"},
		{Time: now, Actor: "operator", Action: "delete", Team: team, Name: "api", Version: 2, Rev: 4},
		{Time: now, Actor: "operator", Action: "patch", Team: team, Name: "api", Version: 2, Rev: 3},
		{Time: now, Actor: "tester", Action: "update", Team: team, Name: "api", Version: 2, Rev: 2},
		{Time: first, Actor: "tester", Action: "create", Team: team, Name: "api", Version: 1, Rev: 1},
	}
	got, err := f.Activity(t.Context(), 10)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("activity (-want +got):\n%s", d)
	}
	if got, err := f.Activity(t.Context(), 2); err != nil || len(got) != 2 || got[0].Action != "token.create" {
		t.Errorf("the last two: %+v, %v", got, err)
	}
}
