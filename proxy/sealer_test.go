package proxy

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/egressd/egressd/inject"
)

func TestSealsEndAndAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, who := newSeals(), sealKey{"acme", "one"}
		pr := &inject.Projection{Source: "gh"}
		short, long := s.seal(who, "gh", "value-short", false, time.Minute), s.seal(who, "gh", "value-long", false, 365*24*time.Hour)
		count := func() int {
			if v := s.view(who, pr); v != nil {
				return len(v.tokens)
			}
			return 0
		}
		if count() != 2 || s.seal(who, "gh", "value-short", false, time.Minute) != short || short == long {
			t.Errorf("%d tokens", count())
		}
		for at, want := range map[string]bool{"gh": false, "": true, "other": true} {
			m := s.elsewhere(who, at)
			if found := m != nil && !m.Empty(); found != want {
				t.Errorf("elsewhere(%q): %v", at, found)
			}
		}
		time.Sleep(2 * time.Minute)
		if v := s.view(who, pr); len(v.tokens) != 1 || v.tokens[0].Placeholder != long {
			t.Errorf("%+v", v)
		}
		time.Sleep(maxSealedLife)
		if count() != 0 {
			t.Error("a token lives for ever")
		}
		for i := range 2 * sealedPerSet {
			s.seal(who, "gh", strings.Repeat("v", i+10), false, time.Hour)
		}
		for i := range 2 * sealedSets {
			s.seal(who, strings.Repeat("s", i+1), "value", false, time.Hour)
		}
		if box, _ := s.boxes.Get(who); len(box.sets) != sealedSets || count() != 0 { // gh was not added to for longest
			t.Errorf("%d sets, %d tokens", len(box.sets), count())
		}
		if s.view(sealKey{"acme", "two"}, pr) != nil || s.view(sealKey{"other", "one"}, pr) != nil {
			t.Error("another's tokens")
		}
		s.forget(who)
		if s.elsewhere(who, "") != nil {
			t.Error("forgotten, and still there")
		}
	})
}

func FuzzTokensIn(f *testing.F) {
	for _, s := range []string{`{"access_token":"abc","expires_in":3600}`, `{"a":{"Refresh_Token":"x\ny"},"id_token":7}`, `[{"accessToken":"a"}]`, `{"access_token":"a",`, `{"access_token"`, "\ufeff{}", `"access_token"`} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		e := &sealer{seals: newSeals(), key: sealKey{"a", "b"}, source: "s", limit: 1 << 20}
		out, err := e.json(bytes.Clone(body))
		if err != nil {
			return
		}
		found, _, ferr := tokensIn(body)
		if ferr != nil || len(found) == 0 {
			if !bytes.Equal(out, body) {
				t.Errorf("changed without a token: %q", out)
			}
			return
		}
		if json.Valid(body) != json.Valid(out) {
			t.Errorf("%q became %q", body, out)
		}
		left, _, err := tokensIn(out)
		if err != nil || len(left) != len(found) {
			t.Fatalf("%q: %v", out, err)
		}
		for _, l := range left {
			if !strings.HasPrefix(l.value, sealPrefix) {
				t.Errorf("%q is left in %q", l.value, out)
			}
		}
	})
}
