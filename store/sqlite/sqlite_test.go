package sqlite

import (
	"path/filepath"
	"testing"

	"github.com/egressd/egressd/store"
	"github.com/egressd/egressd/store/storetest"
)

func TestContract(t *testing.T) {
	storetest.Run(t, func(t *testing.T, env storetest.Env) store.Store {
		return openAt(t, filepath.Join(t.TempDir(), "store.db"), env)
	})
}

func TestContractOfTwoHandles(t *testing.T) {
	storetest.RunShared(t, func(t *testing.T, env storetest.Env) (a, b store.Store) {
		path := filepath.Join(t.TempDir(), "store.db")
		return openAt(t, path, env), openAt(t, path, env)
	})
}

func openAt(t *testing.T, path string, env storetest.Env) *DB {
	t.Helper()
	d, err := Open(t.Context(), path, env.Sealer, Options{Now: env.Now})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	})
	return d
}
