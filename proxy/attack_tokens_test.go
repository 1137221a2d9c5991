package proxy_test

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"sync"
	"testing"

	"github.com/egressd/egressd/internal/testbed"
	"github.com/egressd/egressd/store"
)

// What a token endpoint issues. None of it may reach a sandbox.
const (
	issuedAccess  = "egressd-canary-issued-access-3Kd92mPq/+="
	issuedRefresh = "egressd-canary-issued-refresh-8Wz51cNt"
	issuedID      = "egressd-canary-issued-id.token.77Lq"
)

const tokenPolicy = `
apiVersion: egressd/v1
sandboxes:
  - id: one
    team: acme
    identify: {proxyTokens: ["TOKENONE"]}
    network:
      egress:
        trafficRules:
          - {name: all, action: allow, domains: [good.test, evil.test, other.test]}
        protocolRules:
          - {name: look, protocol: http, domains: [evil.test], http: {methods: {denied: [PURGE]}}}
        credentialRules:
          - {name: token, credentialRef: endpoint, protocol: https, domains: [good.test]}
          - {name: api, credentialRef: api, protocol: https, domains: [other.test], scrub: true}
      credentialBindings:
        - ref: endpoint
          sourceRef: gh-source
          projection:
            type: placeholder_substitution
            placeholderSubstitution:
              replacements: [{placeholder: EGD-PLACEHOLDER-1, valueTemplate: "{{ .token }}", locations: [header, body]}]
        - ref: api
          sourceRef: gh-source
          projection:
            type: placeholder_substitution
            placeholderSubstitution:
              replacements: [{placeholder: EGD-PLACEHOLDER-2, valueTemplate: "{{ .token }}", locations: [header]}]
  - id: two
    team: acme
    identify: {proxyTokens: ["TOKENTWO"]}
    network:
      egress:
        trafficRules:
          - {name: all, action: allow, domains: [good.test, evil.test, other.test]}
        credentialRules:
          - {name: api, credentialRef: api, protocol: https, domains: [other.test]}
      credentialBindings:
        - ref: api
          sourceRef: gh-source
          projection:
            type: placeholder_substitution
            placeholderSubstitution:
              replacements: [{placeholder: EGD-PLACEHOLDER-2, valueTemplate: "{{ .token }}", locations: [header]}]
`

var sealText = regexp.MustCompile(`^egd_[a-z2-7]{26}$`)

// issuer answers POSTs with tokens, and says what it got.
type issuer struct {
	mu   sync.Mutex
	got  []string
	kind string
	body string
}

func (i *issuer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	b, _ := io.ReadAll(r.Body)
	i.mu.Lock()
	defer i.mu.Unlock()
	i.got = append(i.got, r.Header.Get("Authorization")+" "+r.URL.RawQuery+" "+string(b))
	w.Header().Set("Content-Type", i.kind)
	_, _ = io.WriteString(w, i.body)
}

func (i *issuer) last() string {
	i.mu.Lock()
	defer i.mu.Unlock()
	if len(i.got) == 0 {
		return ""
	}
	return i.got[len(i.got)-1]
}

func (i *issuer) says(kind, body string) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.kind, i.body = kind, body
}

func jsonOf(v any) string {
	b, _ := json.Marshal(v)
	return string(b)
}

func TestAttack_A22_token_endpoint(t *testing.T) {
	g := attacked(t, options{})
	g.use(tokenPolicy)
	tokens, api := &issuer{}, &issuer{}
	endpoint := testbed.NewOrigin(t, g.bed.CA, testbed.OriginOptions{IP: "127.0.0.2", Names: []string{"good.test"}, Handler: tokens})
	service := testbed.NewOrigin(t, g.bed.CA, testbed.OriginOptions{IP: "127.0.0.4", Names: []string{"other.test"}, Handler: api})
	api.says("text/plain", "done")
	post := func(t *testing.T, c *http.Client, target, body string, edit func(*http.Request)) answer {
		t.Helper()
		a := do(t, c, http.MethodPost, target, func(r *http.Request) {
			r.Body, r.ContentLength = io.NopCloser(strings.NewReader(body)), int64(len(body))
			r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
			if edit != nil {
				edit(r)
			}
		})
		g.note([]byte(a.body))
		testbed.NoLeak(t, "the sandbox", []byte(a.body+fmt.Sprint(a.header)), issuedAccess, issuedRefresh, issuedID, canary)
		return a
	}
	grant := "grant_type=refresh_token&refresh_token=EGD-PLACEHOLDER-1"
	bothVersions(t, g.stack, func(t *testing.T, c *http.Client) {
		tokens.says("application/json; charset=utf-8", ` { "token_type" : "Bearer", "access_token":`+jsonOf(issuedAccess)+`, "expires_in": 3600, "Refresh_Token":`+jsonOf(issuedRefresh)+
			`, "user":{"id_token":"`+issuedID+`"}, "scope":["a", "b"], "n": 1.50 } `)
		a := post(t, c, endpoint.URL("/token"), grant, nil)
		var out struct {
			Access  string `json:"access_token"`
			Refresh string `json:"Refresh_Token"`
			User    struct {
				ID string `json:"id_token"`
			}
		}
		if err := json.Unmarshal([]byte(a.body), &out); err != nil || a.status != http.StatusOK || !sealText.MatchString(out.Access) || !sealText.MatchString(out.Refresh) || !sealText.MatchString(out.User.ID) {
			t.Fatalf("A22 %v, %+v", err, a)
		}
		if want := ` { "token_type" : "Bearer", "access_token":"` + out.Access + `", "expires_in": 3600, "Refresh_Token":"` + out.Refresh + `", "user":{"id_token":"` + out.User.ID + `"}, "scope":["a", "b"], "n": 1.50 } `; a.body != want {
			t.Errorf("A22 the rest of the answer has changed: %s", a.body)
		}
		if got := tokens.last(); !strings.Contains(got, "refresh_token="+canary) {
			t.Errorf("A22 the endpoint got %q", got)
		}
		t.Run("A22 used", func(t *testing.T) {
			if a := post(t, c, service.URL("/x?at="+out.Access), "", func(r *http.Request) { r.Header.Set("Authorization", "Bearer "+out.Access) }); a.status != http.StatusOK {
				t.Errorf("%+v", a)
			}
			if got, want := api.last(), "Bearer "+issuedAccess+" at="+url.QueryEscape(issuedAccess); !strings.HasPrefix(got, want) {
				t.Errorf("the service got %q, want %q", got, want)
			}
			post(t, c, service.URL("/"), "", func(r *http.Request) { r.SetBasicAuth("u", out.Access) })
			if got, want := api.last(), base64.StdEncoding.EncodeToString([]byte("u:"+issuedAccess)); !strings.Contains(got, want) {
				t.Errorf("the service got %q", got)
			}
			post(t, c, endpoint.URL("/token"), "grant_type=refresh_token&refresh_token="+out.Refresh, nil)
			if got := tokens.last(); !strings.Contains(got, "refresh_token="+issuedRefresh) {
				t.Errorf("the endpoint got %q", got)
			}
		})
		t.Run("A22 a refresh token in a header", func(t *testing.T) {
			post(t, c, service.URL("/"), "", func(r *http.Request) { r.Header.Set("X-Key", out.Refresh) })
			post(t, c, service.URL("/?t="+out.Refresh), "", func(r *http.Request) { r.Header.Set("Authorization", "Bearer "+out.Refresh) })
			if got := api.last(); strings.Contains(got, issuedRefresh) {
				t.Errorf("the service got %q", got)
			}
		})
		t.Run("A22 the same token, the same placeholder", func(t *testing.T) {
			if again := post(t, c, endpoint.URL("/token"), grant, nil); again.body != a.body {
				t.Errorf("%s", again.body)
			}
		})
		t.Run("A22 reflected by the service", func(t *testing.T) {
			api.says("application/json", `{"you":`+jsonOf("Bearer "+issuedAccess)+`}`)
			defer api.says("text/plain", "done")
			if a := post(t, c, service.URL("/"), "", func(r *http.Request) { r.Header.Set("Authorization", "Bearer "+out.Access) }); a.body != `{"you":"Bearer `+out.Access+`"}` {
				t.Errorf("%+v", a)
			}
		})
		t.Run("A22 to somebody else", func(t *testing.T) {
			at := g.bed.Evil.URL("/echo")
			g.refusedWith(t, c, "placeholder_misplaced", at, "", func(r *http.Request) { r.Header.Set("Authorization", "Bearer "+out.Access) })
			g.refusedWith(t, c, "placeholder_misplaced", at+"?t="+out.Access, "", nil)
			g.refusedWith(t, c, "placeholder_misplaced", at, "x="+out.Refresh, nil)
		})
		t.Run("A22 by somebody else", func(t *testing.T) {
			two := g.client("two", tokenTwo, false)
			if a := post(t, two, service.URL("/"), "", func(r *http.Request) { r.Header.Set("X-Key", "Bearer "+out.Access) }); a.status != http.StatusOK || strings.Contains(api.last(), issuedAccess) {
				t.Errorf("%+v, the service got %q", a, api.last())
			}
		})
	})
	for name, tc := range map[string]struct {
		kind, body string
		status     int
	}{
		"form":                 {"application/x-www-form-urlencoded", "access_token=" + url.QueryEscape(issuedAccess) + "&scope=a%20b&token_type=bearer", 200},
		"escaped name":         {"application/json", `{"access\u005ftoken":` + jsonOf(issuedAccess) + `}`, 200},
		"twice":                {"application/json", `{"access_token":"` + issuedID + `","access_token":` + jsonOf(issuedAccess) + `}`, 200},
		"camel case":           {"application/vnd.x+json", `{"accessToken":` + jsonOf(issuedAccess) + `}`, 200},
		"broken JSON":          {"application/json", `{"access_token":` + jsonOf(issuedAccess) + `,`, 502},
		"large":                {"application/json", `{"access_token":` + jsonOf(issuedAccess) + `,"pad":"` + strings.Repeat("x", 1<<20) + `"}`, 502},
		"not fit for a header": {"application/json", `{"access_token":"a\nb"}`, 502},
		"large, but no token":  {"application/json", `{"pad":"` + strings.Repeat("x", 1<<20) + `"}`, 200},
		"no token":             {"application/json", `{"access":"` + strings.Repeat("y", 100) + `", "access_token": 7}`, 200},
		"no JSON":              {"application/json", `hello`, 200},
	} {
		t.Run("A22 "+name, func(t *testing.T) {
			tokens.says(tc.kind, tc.body)
			a := post(t, g.one(), endpoint.URL("/token"), grant, nil)
			if a.status != tc.status || tc.status == 200 && !strings.Contains(tc.body, "issued") && a.body != tc.body {
				t.Errorf("%d %.200s", a.status, a.body)
			}
			if tc.status == 200 && strings.Contains(tc.body, "issued") && !strings.Contains(a.body, "egd_") {
				t.Errorf("%s", a.body)
			}
		})
	}
	t.Run("A22 a source that is disabled", func(t *testing.T) {
		tokens.says("application/json", `{"access_token":`+jsonOf(issuedAccess)+`}`)
		var out struct {
			Access string `json:"access_token"`
		}
		if err := json.Unmarshal([]byte(post(t, g.one(), endpoint.URL("/token"), grant, nil).body), &out); err != nil {
			t.Fatal(err)
		}
		g.setStatus(t, "gh-source", store.Disabled)
		defer g.setStatus(t, "gh-source", store.Active)
		if a := post(t, g.one(), service.URL("/"), "", func(r *http.Request) { r.Header.Set("Authorization", "Bearer "+out.Access) }); a.status != http.StatusServiceUnavailable {
			t.Errorf("%+v", a)
		}
	})
	g.use(basePolicy)
	g.safe(t)
}
