package memory

import (
	"fmt"
	"testing"

	"go.uber.org/goleak"

	"github.com/egressd/egressd/store"
	"github.com/egressd/egressd/store/storetest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestContract(t *testing.T) {
	storetest.Run(t, func(t *testing.T, env storetest.Env) store.Store {
		s := NewAt(env.Sealer, env.Now)
		t.Cleanup(func() { _ = s.Close() })
		return s
	})
}

func TestWatchResetsWhenTheLogIsTooShort(t *testing.T) {
	sealer, _, err := store.EphemeralKeys()
	if err != nil {
		t.Fatal(err)
	}
	s := New(sealer)
	for i := range 2*keptChanges + 1 {
		d := fmt.Sprint(i)
		if i == 0 {
			_, err = s.Create(t.Context(), store.Put{Meta: store.Meta{Name: "api", Kind: "k"}, Spec: []byte("x")})
		} else {
			_, err = s.Patch(t.Context(), "", "api", store.Patch{Description: &d})
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	for e, err := range s.Watch(t.Context(), 1) {
		if err != nil || e.Type != store.EventReset || e.Rev != 2*keptChanges+1 {
			t.Errorf("%+v, %v", e, err)
		}
		break
	}
	if len(s.changes) > 2*keptChanges || len(s.activity) > 2*keptActivity {
		t.Errorf("%d changes, %d activities are kept", len(s.changes), len(s.activity))
	}
}
