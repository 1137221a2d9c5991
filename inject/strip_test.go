package inject

import (
	"net/http"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func project(t testing.TB, headers ...string) *Projection {
	t.Helper()
	p, err := injector(t, serve(material(1, map[string]string{"token": "CANARY"})), rule(0, headers...)).Resolve(t.Context(), "good.test", 443)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestAttack_C12_duplicate_auth(t *testing.T) {
	p := project(t, "Authorization: Bearer {{ .token }}", "X-Custom-Id: {{ .token }}")
	for _, keep := range []bool{false, true} {
		h := http.Header{
			"Authorization": {"Bearer mine", "Bearer two"}, "authorization": {"raw"}, "AUTHORIZATION": {"raw"}, "aUTHORIZATION": {"x"},
			"X-Custom-Id": {"mine"}, "x-custom-id": {"raw"}, "X_Custom_Id": {"CGI reads the same name"}, "X-Custom_Id": {"and this"},
			"Accept": {"*/*"}, "X-Custom": {"kept"},
		}
		p.Apply(h, keep)
		want := http.Header{"Authorization": {"Bearer CANARY"}, "X-Custom-Id": {"CANARY"}, "Accept": {"*/*"}, "X-Custom": {"kept"}}
		if diff := cmp.Diff(want, h); diff != "" {
			t.Errorf("keep %v: %s", keep, diff)
		}
	}
}

func TestAttack_A15_own_account(t *testing.T) {
	auth := []string{
		"Authorization", "Proxy-Authorization", "Cookie", "Cookie2", "X-Api-Key", "Api-Key", "X-Auth-Token", "X-Access-Token", "X-Goog-Api-Key",
		"X-Goog-Iam-Authorization-Token", "X-Amz-Security-Token", "Private-Token", "Job-Token", "Deploy-Token", "Ocp-Apim-Subscription-Key",
		"X-Functions-Key", "X-Shopify-Access-Token", "X-Vault-Token", "X-Gitlab-Token", "DD-API-KEY", "DD-APPLICATION-KEY", "Dpop", "Signature",
		"Xi-Api-Key", "X-Some-Vendor-Api-Key", "X-Forwarded-Access-Token", "X-Anything-Authorization", "X_API_KEY", "x-api-key", "X-ApI-kEy",
		"Some-Vendor-Client-Secret", strings.Repeat("Long-", 30) + "Api-Key",
	}
	kept := []string{
		"Accept", "Accept-Encoding", "Content-Type", "User-Agent", "X-Csrf-Token", "X-Amz-Date", "X-Amz-Content-Sha256", "If-Match", "Range",
		"Idempotency-Key", "X-Request-Id", "X-Continuation-Token", "Sec-Websocket-Key", "Sec-Websocket-Protocol", "Origin", "X-Goog-User-Project",
		"Openai-Organization", "Anthropic-Version", "X-Github-Api-Version", "Authority", "X-Ms-Session-Token", strings.Repeat("Long-", 30),
	}
	fill := func() http.Header {
		h := http.Header{}
		for _, k := range append(append([]string{}, auth...), kept...) {
			h[k] = []string{"mine"}
		}
		return h
	}
	stripped, applied := fill(), fill()
	StripClientAuth(stripped)
	project(t, "X-Injected: {{ .token }}").Apply(applied, false)
	for _, k := range auth {
		if stripped[k] != nil || applied[k] != nil {
			t.Errorf("%s stayed", k)
		}
	}
	for _, k := range kept {
		if stripped[k] == nil || applied[k] == nil {
			t.Errorf("%s was removed", k)
		}
	}
	keep := fill()
	project(t, "Authorization: {{ .token }}").Apply(keep, true)
	if keep.Get("Authorization") != "CANARY" || keep.Get("X-Vault-Token") != "mine" || len(keep) != len(fill()) {
		t.Errorf("keepClientAuth: %v", keep)
	}
}

func TestAttack_A15_query(t *testing.T) {
	for _, tc := range [][2]string{
		{"", ""}, {"a=1&b=%2f&&c", "a=1&b=%2f&&c"}, {"&", "&"}, {";;", ";;"},
		{"access_token=x", ""}, {"a=1&access_token=x", "a=1"}, {"access_token=x&a=1", "a=1"}, {"a=1&access_token=x&b=2", "a=1&b=2"},
		{"a=1&&access_token=x&&b=2", "a=1&&&b=2"}, {"access_token=x&", ""}, {"a=%zz&api_key=x&b=+", "a=%zz&b=+"},
		{"ACCESS_TOKEN=x&Api-Key=y&apikey=z&api.key=w&api+key=v&a=1", "a=1"}, {"%61ccess_token=x&a=1", "a=1"}, {"access%5Ftoken=x", ""},
		{"access_token[]=x&access_token%5B0%5D=y&a=1", "a=1"}, {"a=1;access_token=x;b=2", "a=1;b=2"}, {"access_token", ""},
		{"auth_token=x&private_token=y&q=access_token", "q=access_token"}, {"token=x", ""}, {"tokens=x&pageToken=y&next_token=z", "tokens=x&pageToken=y&next_token=z"},
		{"X-Amz-Signature=s&X-Amz-Credential=c&X-Amz-Security-Token=t&X-Amz-Date=d&x=1", "X-Amz-Date=d&x=1"},
		{"X-Goog-Signature=s&X-Goog-Credential=c&x=1", "x=1"}, {"sv=2024&sig=abc&se=x", "sv=2024&se=x"}, {"sig=figure&page=1", "sig=figure&page=1"},
		{"key=AIzaXXXX&q=1", "q=1"}, {"key=PROJ-1&q=1", "key=PROJ-1&q=1"}, {" token =x&a", "a"},
	} {
		if got := StripQueryAuth(tc[0]); got != tc[1] {
			t.Errorf("%q → %q, want %q", tc[0], got, tc[1])
		}
	}
}

func FuzzStripQueryAuth(f *testing.F) {
	for _, s := range []string{"a=1&access_token=x;sig=1&sv", "&;&token", "%61pi_key=1&=&"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, q string) {
		out := StripQueryAuth(q)
		if len(out) > len(q) || StripQueryAuth(out) != out && !strings.Contains(strings.ToLower(q), "sig") {
			t.Errorf("%q → %q → %q", q, out, StripQueryAuth(out))
		}
		sas := hasSAS(q)
		kept := strings.FieldsFunc(out, func(c rune) bool { return c == '&' || c == ';' })
		for _, pair := range strings.FieldsFunc(q, func(c rune) bool { return c == '&' || c == ';' }) {
			switch {
			case isAuthParam(pair, sas):
			case len(kept) == 0 || kept[0] != pair:
				t.Fatalf("%q → %q lost or changed %q", q, out, pair)
			default:
				kept = kept[1:]
			}
		}
		if len(kept) != 0 {
			t.Errorf("%q → %q kept %q", q, out, kept)
		}
	})
}

func TestApplyAllocatesNothing(t *testing.T) {
	p := project(t, "Authorization: Bearer {{ .token }}")
	h := http.Header{"Accept": {"*/*"}, "User-Agent": {"x"}, "Authorization": {"mine"}, "Content-Type": {"text/plain"}}
	if n := testing.AllocsPerRun(100, func() { p.Apply(h, false) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
	h.Add("Authorization", "second") // must not write into the shared slice
	other := http.Header{}
	p.Apply(other, false)
	if got := other["Authorization"]; len(got) != 1 || got[0] != "Bearer CANARY" {
		t.Errorf("shared slice changed: %q", got)
	}
}
