package inject

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"github.com/egressd/egressd/policy"
	"github.com/egressd/egressd/source"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// code wants an *Error of that code which shows nothing of any value.
func code(t *testing.T, err error, want string) {
	t.Helper()
	var e *Error
	if !errors.As(err, &e) || e.Code != want {
		t.Fatalf("err = %v, want %s", err, want)
	}
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q"} {
		if text := fmt.Sprintf(verb, err); strings.Contains(text, "CANARY") {
			t.Errorf("%s shows it: %s", verb, text)
		}
	}
}

func TestResolveRendersOncePerVersion(t *testing.T) {
	f := serve(material(1, map[string]string{"token": "one"}))
	in := injector(t, f, rule(0, "authorization: Bearer {{ .token }}", "X-Id: {{ .token | upper }}"))
	first, err := in.Resolve(t.Context(), "good.test", 443)
	if err != nil {
		t.Fatal(err)
	}
	want := []Header{{"Authorization", "Bearer one"}, {"X-Id", "ONE"}}
	if diff := cmp.Diff(want, first.Headers); diff != "" || first.Source != "gh" || first.Version != 1 || first.ID != 1001 {
		t.Errorf("%v %s", first, diff)
	}
	if again, _ := in.Resolve(t.Context(), "good.test", 443); again != first {
		t.Error("rendered anew")
	}
	f.material.Store(material(2, map[string]string{"token": "two"}))
	second, err := in.Resolve(t.Context(), "good.test", 443)
	if err != nil || second.Headers[0].Value != "Bearer two" || second.ID != 1002 || second.Version != 2 {
		t.Errorf("%v, %v", second, err)
	}
	ctx := t.Context()
	if n := testing.AllocsPerRun(1000, func() { _, _ = in.Resolve(ctx, "good.test", 443) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func TestResolvePassesTheReference(t *testing.T) {
	f := serve(material(3, map[string]string{"token": "x"}))
	r := rule(0, "X-Id: {{ .token }}")
	r.Binding.Version, r.Binding.CacheTTL, r.Team = 3, 5e9, "other"
	if _, err := injector(t, f, r).Resolve(t.Context(), "good.test", 443); err != nil {
		t.Fatal(err)
	}
	if got, want := *f.asked.Load(), (source.Ref{Team: "other", Name: "gh", Version: 3, MaxAge: 5e9}); got != want {
		t.Errorf("asked for %+v, want %+v", got, want)
	}
}

func TestBasic(t *testing.T) {
	r := rule(0)
	r.Binding.Projection.Type = policy.UsernamePassword
	f := serve(material(1, map[string]string{"username": "Aladdin", "password": "open sesame"}))
	in := injector(t, f, r)
	p, err := in.Resolve(t.Context(), "good.test", 443)
	if err != nil || len(p.Headers) != 1 || p.Headers[0] != (Header{"Authorization", "Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ=="}) {
		t.Errorf("%v, %v", p, err) // the example of RFC 7617
	}
	f.material.Store(material(2, map[string]string{"token": "CANARY"}))
	_, err = in.Resolve(t.Context(), "good.test", 443)
	code(t, err, CodeSourceInvalid)
}

func TestClientCertificate(t *testing.T) {
	r := rule(0)
	r.Binding.Projection.Type = policy.TLSClientCertificate
	m := material(1, nil)
	m.ClientCert, m.CAs = &tls.Certificate{}, x509.NewCertPool()
	f := serve(m)
	in := injector(t, f, r)
	p, err := in.Resolve(t.Context(), "good.test", 443)
	if err != nil || p.ClientCert != m.ClientCert || p.CAs != m.CAs || len(p.Headers) != 0 {
		t.Errorf("%v, %v", p, err)
	}
	h := http.Header{"Authorization": {"mine"}, "Accept": {"*/*"}}
	p.Apply(h, false)
	if len(h) != 1 {
		t.Errorf("%v", h)
	}
	f.material.Store(material(2, map[string]string{"token": "x"}))
	_, err = in.Resolve(t.Context(), "good.test", 443)
	code(t, err, CodeSourceInvalid)
}

func TestResolveErrors(t *testing.T) {
	for _, tc := range []struct {
		err  error
		want string
	}{
		{source.ErrNotFound, CodeSourceNotFound},
		{fmt.Errorf("%w: x", source.ErrDisabled), CodeSourceDisabled},
		{fmt.Errorf("%w: x", source.ErrCorrupt), CodeSourceCorrupt},
		{fmt.Errorf("%w: x", source.ErrInvalid), CodeSourceInvalid},
		{fmt.Errorf("%w: x", source.ErrUnavailable), CodeSourceUnavailable},
		{context.Canceled, CodeSourceUnavailable},
	} {
		_, err := injector(t, &fakeSource{err: tc.err}, rule(0, "X-Id: {{ .token }}")).Resolve(t.Context(), "good.test", 443)
		code(t, err, tc.want)
		if !errors.Is(err, tc.err) {
			t.Errorf("%v does not wrap %v", err, tc.err)
		}
	}
	p, err := (&Injector{}).Resolve(t.Context(), "good.test", 443)
	code(t, err, CodeSourceUnavailable)
	if p != nil {
		t.Error("the zero injector gave a projection")
	}
}

func TestTemplateFailsAtResolve(t *testing.T) {
	_, err := injector(t, serve(material(4, map[string]string{"other": "CANARY"})), rule(0, "X-Id: {{ .token }}")).Resolve(t.Context(), "good.test", 443)
	code(t, err, CodeTemplateFailed)
	if !strings.Contains(err.Error(), "header X-Id: the source has no key token") || !strings.Contains(err.Error(), "gh@4") {
		t.Error(err)
	}
}

// The value is looked at again after templating, whatever let it in.
func TestAttack_C13_line_end_in_secret(t *testing.T) {
	for name, tc := range map[string]struct{ value, template string }{
		"CRLF":                    {"CANARY\r\nX-Evil: 1", "{{ .token }}"},
		"LF":                      {"CANARY\nHost: e", "Bearer {{ .token }}"},
		"NUL":                     {"CANARY\x00", "{{ .token }}"},
		"70 KB":                   {strings.Repeat("CANARY", 12000), "{{ .token }}"},
		"leading space":           {" CANARY", "{{ .token }}"},
		"trailing space":          {"CANARY ", "Bearer {{ .token }}"},
		"non-ASCII":               {"CANARYé", "{{ .token }}"},
		"template adds LF":        {"CANARY", "{{ .token }}\n"},
		"template adds CRLF":      {"CANARY", `{{ .token }}{{ "\r\nX-Evil: 1" }}`},
		"printf adds LF":          {"CANARY", `{{ printf "%s\n" .token }}`},
		"b64dec yields LF":        {"Q0FOQVJZCg==", `{{ b64dec .token }}`},
		"empty after template":    {"CANARY", `{{ if not .token }}x{{ end }}`},
		"space left by condition": {"CANARY", `Bearer {{ if not .token }}x{{ end }}`},
	} {
		t.Run(name, func(t *testing.T) {
			p, err := injector(t, serve(material(1, map[string]string{"token": tc.value})), rule(0, "X-Id: "+tc.template)).Resolve(t.Context(), "good.test", 443)
			code(t, err, CodeTemplateFailed)
			if p != nil {
				t.Error("a projection beside the error")
			}
		})
	}
}

func TestAllowedDestinations(t *testing.T) {
	m := material(1, map[string]string{"token": "CANARY"})
	m.AllowedDestinations = []string{"good.test:443", "*.wide.test"}
	f := serve(m)
	in := injector(t, f, rule(0, "X-Id: {{ .token }}"))
	for _, d := range []struct {
		host string
		port uint16
		ok   bool
	}{{"good.test", 443, true}, {"a.b.wide.test", 8443, true}, {"wide.test", 80, true},
		{"good.test", 80, false}, {"evil.test", 443, false}, {"evilwide.test", 443, false}, {"x.good.test", 443, false}} {
		p, err := in.Resolve(t.Context(), d.host, d.port)
		if d.ok != (err == nil) || d.ok != (p != nil) {
			t.Errorf("%s:%d: %v, %v", d.host, d.port, p, err)
		}
		if !d.ok {
			code(t, err, CodeDestinationNotAllowed)
		}
	}
	bad := material(2, map[string]string{"token": "CANARY"})
	bad.AllowedDestinations = []string{"*"}
	f.material.Store(bad)
	_, err := in.Resolve(t.Context(), "good.test", 443)
	code(t, err, CodeSourceInvalid) // a bound that cannot be read bounds everything
}

// Under rotation each answer is of one version, never older than what was in force.
func TestRenderRace(t *testing.T) {
	f := serve(material(1, map[string]string{"token": "v1"}))
	in := injector(t, f, rule(0, "X-Id: {{ .token }}", "X-Two: {{ .token }}"))
	ctx, stop := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for ctx.Err() == nil {
				floor := f.material.Load().Version
				p, err := in.Resolve(t.Context(), "good.test", 443)
				if err != nil {
					t.Error(err)
					return
				}
				want := fmt.Sprint("v", p.Version)
				if p.Version < floor || p.Headers[0].Value != want || p.Headers[1].Value != want {
					t.Errorf("version %d of at least %d: %s", p.Version, floor, p.Headers[0].Value)
				}
			}
		})
	}
	for v := uint64(2); v < 500; v++ {
		f.material.Store(material(v, map[string]string{"token": fmt.Sprint("v", v)}))
	}
	stop()
	wg.Wait()
}

func TestAttack_G08_projection_is_never_printed(t *testing.T) {
	f := serve(material(1, map[string]string{"token": "CANARY"}))
	r := rule(0, "Authorization: Bearer {{ .token }}")
	table, err := compile([]*policy.CredentialRule{r}, f, unknown)
	if err != nil {
		t.Fatal(err)
	}
	in := table.Injector(r)
	p, err := in.Resolve(t.Context(), "good.test", 443)
	if err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	log := slog.New(slog.NewJSONHandler(&out, nil))
	for _, v := range []any{p, p.Headers, p.Headers[0], &p.Headers[0], in, table, f.material.Load(), struct{ P *Projection }{p}, struct{ H []Header }{p.Headers}, in.state.Load().projection} {
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%d"} {
			fmt.Fprintf(&out, verb+"\n", v)
		}
		log.Info("x", "v", v)
		if raw, err := json.Marshal(v); err == nil {
			out.Write(raw)
		}
	}
	func() {
		defer func() { fmt.Fprintf(&out, "%+v", recover()) }()
		panic(p)
	}()
	if got := out.String(); strings.Contains(got, "CANARY") || strings.Contains(got, fmt.Sprintf("%x", "CANARY")) {
		t.Errorf("shown in\n%s", got)
	}
}

func BenchmarkInjector(b *testing.B) {
	f := serve(material(1, map[string]string{"token": "x"}))
	in := injector(b, f, rule(0, "Authorization: Bearer {{ .token }}"))
	ctx := b.Context()
	h := http.Header{"Accept": {"*/*"}, "User-Agent": {"x"}, "Accept-Encoding": {"gzip"}, "X-Request-Id": {"1"}, "Content-Type": {"text/plain"}}
	b.ReportAllocs()
	for b.Loop() {
		p, err := in.Resolve(ctx, "good.test", 443)
		if err != nil {
			b.Fatal(err)
		}
		p.Apply(h, false)
	}
}
