package inject

import (
	"context"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/egressd/egressd/internal/secret"
	"github.com/egressd/egressd/policy"
	"github.com/egressd/egressd/source"
)

// fakeSource resolves every reference to one material, or one error.
type fakeSource struct {
	material atomic.Pointer[source.Material]
	err      error
	asked    atomic.Pointer[source.Ref]
}

func (f *fakeSource) Resolve(_ context.Context, ref source.Ref) (*source.Material, error) {
	if f.err != nil {
		return nil, f.err
	}
	if was := f.asked.Load(); was == nil || *was != ref {
		first := ref // so that only this escapes, and the hot path can be counted
		f.asked.Store(&first)
	}
	return f.material.Load(), nil
}

func material(version uint64, values map[string]string) *source.Material {
	m := &source.Material{Team: "acme", Name: "gh", Kind: "static_headers", Version: version, ID: 1000 + version, Values: map[string]secret.String{}}
	for k, v := range values {
		m.Values[k] = secret.New(v)
	}
	return m
}

func serve(m *source.Material) *fakeSource {
	f := &fakeSource{}
	f.material.Store(m)
	return f
}

// rule makes a credential rule whose binding projects the given headers ("Name: template").
func rule(index int, headers ...string) *policy.CredentialRule {
	b := &policy.Binding{Ref: "gh", SourceRef: "gh", File: "p.yaml", Line: 7}
	b.Projection.Type = policy.HTTPHeaders
	for i, h := range headers {
		name, text, _ := strings.Cut(h, ": ")
		b.Projection.Headers = append(b.Projection.Headers, policy.HeaderTemplate{Name: name, ValueTemplate: text, Line: 10 + i})
	}
	return &policy.CredentialRule{Index: index, Name: fmt.Sprint("rule-", index), Team: "acme", Binding: b, File: "p.yaml", Line: 3, Domains: []string{"good.test"}}
}

func unknown(string, string) (string, bool) { return "", false }

func kind(name string) KindOf { return func(string, string) (string, bool) { return name, true } }

func injector(t testing.TB, f *fakeSource, r *policy.CredentialRule) *Injector {
	t.Helper()
	table, err := compile([]*policy.CredentialRule{r}, f, unknown)
	if err != nil {
		t.Fatal(err)
	}
	return table.Injector(r)
}
