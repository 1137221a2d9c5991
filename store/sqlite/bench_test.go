package sqlite

import (
	"fmt"
	"testing"

	"github.com/egressd/egressd/store"
)

func benchStore(b *testing.B) *DB {
	b.Helper()
	d, _, err := openDir(b.Context(), b.TempDir(), Options{})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = d.Close() })
	return d
}

func BenchmarkGet(b *testing.B) {
	d := benchStore(b)
	for i := range 1000 {
		if _, err := d.Create(b.Context(), put(fmt.Sprint(i), "spec")); err != nil {
			b.Fatal(err)
		}
	}
	i := 0
	for b.Loop() {
		if _, err := d.Get(b.Context(), "blue", fmt.Sprint(i%1000), 0); err != nil {
			b.Fatal(err)
		}
		i++
	}
}

// BenchmarkPut is a durable new version: sealed, fsynced, recorded.
func BenchmarkPut(b *testing.B) {
	d := benchStore(b)
	if _, err := d.Create(b.Context(), put("api", "spec")); err != nil {
		b.Fatal(err)
	}
	i := 0
	for b.Loop() {
		i++
		if _, _, err := d.Update(b.Context(), put("api", fmt.Sprint(i))); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkPatch(b *testing.B) {
	d := benchStore(b)
	if _, err := d.Create(b.Context(), put("api", "spec")); err != nil {
		b.Fatal(err)
	}
	i := 0
	for b.Loop() {
		i++
		text := fmt.Sprint(i)
		if _, err := d.Patch(b.Context(), "blue", "api", store.Patch{Description: &text}); err != nil {
			b.Fatal(err)
		}
	}
}
