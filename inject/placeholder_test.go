package inject

import (
	"encoding/base64"
	"errors"
	"net/http"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/egressd/egressd/policy"
)

const (
	ph       = "PLACEHOLDER_x1" // begins with a letter that is no hex digit, for the oracles
	ph2      = "zz-other-dummy.key"
	anyplace = policy.InHeader | policy.InQuery | policy.InPath | policy.InBody
)

// substitution is a rule with the projection.
func substitution(list ...policy.Replacement) *policy.CredentialRule {
	r := rule(0)
	r.Binding.Projection.Type = policy.PlaceholderSubstitution
	for i := range list {
		list[i].Line = 20 + i
	}
	r.Binding.Projection.Replacements = list
	return r
}

func replacement(placeholder, template string, in policy.Location) policy.Replacement {
	return policy.Replacement{Placeholder: placeholder, ValueTemplate: template, Locations: in}
}

// placeholders resolves the rule against one material.
func placeholders(t testing.TB, values map[string]string, list ...policy.Replacement) *Placeholders {
	t.Helper()
	p, err := injector(t, serve(material(1, values)), substitution(list...)).Resolve(t.Context(), "good.test", 443)
	if err != nil {
		t.Fatal(err)
	}
	return p.Placeholders
}

// one replaces ph by value wherever it may stand.
func one(t testing.TB, value string, in policy.Location) *Placeholders {
	t.Helper()
	return placeholders(t, map[string]string{"v": value}, replacement(ph, "{{ .v }}", in))
}

func b64(s string) string { return base64.StdEncoding.EncodeToString([]byte(s)) }

func TestPlaceholderInHeader(t *testing.T) {
	for _, tc := range []struct{ name, key, in, want string }{
		{"bearer", "Authorization", "Bearer " + ph, "Bearer s3cr+t/=&"},
		{"twice and around", "X-Any", "\xe9 " + ph + ",\t" + ph + " ü", "\xe9 s3cr+t/=&,\ts3cr+t/=& ü"},
		{"cookie", "Cookie", "a=b; t=" + ph + "; c=d", "a=b; t=s3cr+t/=&; c=d"},
		{"basic password", "Authorization", "Basic " + b64("me:"+ph), "Basic " + b64("me:s3cr+t/=&")},
		{"basic user", "Authorization", "Basic " + b64(ph+":x"), "Basic " + b64("s3cr+t/=&:x")},
		{"basic whole", "Authorization", "basic  " + b64(ph) + " ", "basic  " + b64("s3cr+t/=&") + " "},
		{"basic unpadded", "authorization", "BASIC " + strings.TrimRight(b64("u:"+ph), "="), "BASIC " + strings.TrimRight(b64("u:s3cr+t/=&"), "=")},
		{"basic as it is", "Authorization", "Basic " + ph, "Basic s3cr+t/=&"},
		{"basic elsewhere", "X-Other", "Basic " + b64("me:"+ph), "Basic " + b64("me:"+ph)},
		{"other case", "X-Any", strings.ToLower(ph), strings.ToLower(ph)},
		{"encoded", "X-Any", "%50LACEHOLDER_x1", "%50LACEHOLDER_x1"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			h := http.Header{tc.key: {"untouched", tc.in}, "X-Plain": {"é"}}
			n, err := one(t, "s3cr+t/=&", policy.InHeader).Header(h)
			want := http.Header{tc.key: {"untouched", tc.want}, "X-Plain": {"é"}}
			if diff := cmp.Diff(want, h); diff != "" || err != nil || (n > 0) != (tc.in != tc.want) {
				t.Errorf("%d, %v\n%s", n, err, diff)
			}
		})
	}
}

// Where a secret goes is the operator's to say: not to a place that the rule does not
// name, not to a field that steers the message, and nothing that the sandbox sends
// changes its form.
func TestAttack_A16_where_the_secret_goes(t *testing.T) {
	t.Run("fields that frame or route", func(t *testing.T) {
		p := one(t, "fake-secret", anyplace)
		for _, key := range []string{"Host", "host", "Content-Length", "Transfer-Encoding", "transfer_encoding", "Connection", "Keep-Alive", "TE", "Trailer", "Upgrade", "Expect",
			"Proxy-Authorization", "proxy_authorization", "Proxy-Connection", "Proxy-X", "Content-Type", "Content-Encoding", "HTTP2-Settings"} {
			h := http.Header{key: {ph, "Basic " + b64(ph)}}
			if n, err := p.Header(h); n != 0 || err != nil || h[key][0] != ph {
				t.Errorf("%s: %d, %v, %q", key, n, err, h[key])
			}
		}
	})
	for name, in := range map[string]policy.Location{"header": policy.InHeader, "query": policy.InQuery, "path": policy.InPath, "body": policy.InBody} {
		t.Run("only in the "+name, func(t *testing.T) {
			p := one(t, "fake-secret", in)
			h := http.Header{"X-Key": {ph}}
			n, err := p.Header(h)
			if err != nil || (n == 1) != (in == policy.InHeader) || (h["X-Key"][0] == "fake-secret") != (in == policy.InHeader) {
				t.Errorf("header: %d, %v", n, err)
			}
			path, query, n, err := p.Target("/"+ph, ph)
			if err != nil || (n == 1) != (in&(policy.InPath|policy.InQuery) != 0) || (path == "/fake-secret") != (in == policy.InPath) || (query == "fake-secret") != (in == policy.InQuery) {
				t.Errorf("target: %d, %v", n, err)
			}
			body, n, err := p.Body("text/plain", "", []byte(ph))
			if err != nil || (n == 1) != (in == policy.InBody) || (string(body) == "fake-secret") != (in == policy.InBody) || p.InBody() != (in == policy.InBody) {
				t.Errorf("body: %d, %v", n, err)
			}
			body, n, err = p.Text([]byte(ph))
			if err != nil || (n == 1) != (in == policy.InBody) || (string(body) == "fake-secret") != (in == policy.InBody) {
				t.Errorf("message: %d, %v", n, err)
			}
		})
	}
	t.Run("a value is not searched", func(t *testing.T) {
		p := placeholders(t, map[string]string{"a": "xx", "b": "yy"}, replacement(ph, "{{ .a }}", policy.InHeader), replacement(ph2, "{{ .b }}", policy.InHeader))
		h := http.Header{"X": {ph2 + ph + ph2}, "Y": {ph[:7] + ph2 + ph[7:]}}
		n, err := p.Header(h)
		if n != 4 || err != nil || h["X"][0] != "yyxxyy" || h["Y"][0] != ph[:7]+"yy"+ph[7:] {
			t.Errorf("%d, %v, %q", n, err, h)
		}
	})
	t.Run("the user name ends where it ended", func(t *testing.T) {
		p := one(t, "user:password", policy.InHeader)
		for _, login := range []string{ph + ":x", "a" + ph + ":", ph + "x:" + ph} {
			h := http.Header{"Authorization": {"Basic " + b64(login)}, "X-Key": {ph}}
			if n, err := p.Header(h); n != 0 || !errors.Is(err, ErrUnsafePlace) || h["X-Key"][0] != ph {
				t.Errorf("%s: %d, %v, %q", login, n, err, h)
			}
		}
		h := http.Header{"Authorization": {"Basic " + b64("u:"+ph)}}
		if n, err := p.Header(h); n != 1 || err != nil || h["Authorization"][0] != "Basic "+b64("u:user:password") {
			t.Errorf("%d, %v, %q", n, err, h)
		}
	})
	t.Run("the boundary", func(t *testing.T) {
		body := "--fake-secret\r\n\r\n" + ph + "\r\n--fake-secret--\r\n"
		out, n, err := one(t, "x--fake-secret--", policy.InBody).Body("multipart/form-data; boundary=fake-secret", "", []byte(body))
		if out != nil || n != 0 || !errors.Is(err, ErrUnsafePlace) {
			t.Errorf("%q, %d, %v", out, n, err)
		}
	})
	t.Run("nothing replaces", func(t *testing.T) {
		for _, p := range []*Placeholders{nil, {}} {
			h := http.Header{"X": {ph}}
			n, err := p.Header(h)
			path, query, m, err2 := p.Target("/"+ph, ph)
			body, k, err3 := p.Body("text/plain", "gzip", []byte(ph))
			if n+m+k != 0 || err != nil || err2 != nil || err3 != nil || h["X"][0] != ph || path != "/"+ph || query != ph || string(body) != ph || p.InBody() || p.InTarget() || p.InHeader() {
				t.Error("a projection without placeholders replaced something")
			}
		}
	})
}

// The value is looked at for each place that it goes to, whatever let it in.
func TestAttack_C13_placeholder_values(t *testing.T) {
	places := map[string]policy.Location{"header": policy.InHeader, "query": policy.InQuery, "path": policy.InPath, "body": policy.InBody}
	for name, tc := range map[string]struct {
		value, template string
		only            policy.Location // 0: every place
	}{
		"CRLF":             {"CANARY\r\nX-Evil: 1", "{{ .v }}", 0},
		"LF":               {"CANARY\nHost: e", "{{ .v }}", 0},
		"CR":               {"CANARY\r", "{{ .v }}", 0},
		"NUL":              {"CANARY\x00", "{{ .v }}", 0},
		"DEL":              {"CANARY\x7f", "{{ .v }}", 0},
		"C1 control":       {"CANARY\u0085x", "{{ .v }}", 0},
		"no UTF-8":         {"CANARY\xff", "{{ .v }}", 0},
		"70 KB":            {strings.Repeat("CANARY", 12000), "{{ .v }}", 0},
		"template adds LF": {"CANARY", "{{ .v }}\n", 0},
		"template CRLF":    {"CANARY", `{{ .v }}{{ "\r\nX: 1" }}`, 0},
		"empty":            {"CANARY", "{{ if not .v }}x{{ end }}", 0},
		"decoded LF":       {"Q0FOQVJZCg==", "{{ b64dec .v }}", 0},
		"the placeholder":  {"CANARY" + ph, "{{ .v }}", 0},
		"another's":        {"CANARY" + ph2, "{{ .v }}", 0},
		"non-ASCII":        {"CANARYé", "{{ .v }}", policy.InHeader},
		"leading space":    {" CANARY", "{{ .v }}", policy.InHeader},
		"slash":            {"CANARY/../x", "{{ .v }}", policy.InPath},
		"backslash":        {`CANARY\x`, "{{ .v }}", policy.InPath},
		"percent":          {"CANARY%2f", "{{ .v }}", policy.InPath},
		"dot":              {".", "{{ .v }}", policy.InPath},
		"dots":             {"..", "{{ .v }}", policy.InPath},
		"dots with CANARY": {"..;CANARY", "{{ .v }}", policy.InPath},
	} {
		for place, at := range places {
			t.Run(name+" in the "+place, func(t *testing.T) {
				r := substitution(replacement(ph2, "fixed", policy.InHeader), replacement(ph, tc.template, at))
				p, err := injector(t, serve(material(1, map[string]string{"v": tc.value})), r).Resolve(t.Context(), "good.test", 443)
				if tc.only != 0 && tc.only != at {
					if err != nil {
						t.Error(err)
					}
					return
				}
				code(t, err, CodeTemplateFailed)
				if p != nil || !strings.Contains(err.Error(), "replacement 2") && name != "another's" {
					t.Errorf("%v beside %v", p, err)
				}
			})
		}
	}
}

func TestPlaceholderInTarget(t *testing.T) {
	for _, tc := range []struct {
		name, value, path, query, wantPath, wantQuery string
		n                                             int
	}{
		{"query", "a b&c=d+é", "/x", "b=2&a=" + ph + "&a=1&&;=", "/x", "b=2&a=a%20b%26c%3Dd%2B%C3%A9&a=1&&;=", 1},
		{"name of a parameter", "k", "/", ph + "=1", "/", "k=1", 1},
		{"both", "k~", "/bot" + ph + "/getMe", "?" + ph, "/botk~/getMe", "?k~", 2},
		{"encoded by the client", "k", "/%50LACEHOLDER%5fx%31", "a=%50LACEHOLDER%5Fx1%", "/k", "a=k%", 2},
		{"all of it encoded", "v", "/" + everyByte(ph), everyByte(ph) + everyByte(ph), "/v", "vv", 3},
		{"encoded twice is another text", "v", "/%2550LACEHOLDER_x1", "%2550LACEHOLDER_x1", "/%2550LACEHOLDER_x1", "%2550LACEHOLDER_x1", 0},
		{"colon in a path", "123:abc", "/bot" + ph, "", "/bot123%3Aabc", "", 1},
		{"rest stays", "v", "/a//%2F/%zz/é/" + ph, "x=%zz&y=%&z=%4", "/a//%2F/%zz/é/v", "x=%zz&y=%&z=%4", 1},
		{"slash in a query", "a/b", "/", "x=" + ph, "/", "x=a%2Fb", 1},
		{"nothing", "v", "/%41/b", "c=%42", "/%41/b", "c=%42", 0},
		{"cut off", "v", "/PLACEHOLDER_x", "%50LACEHOLDER_x", "/PLACEHOLDER_x", "%50LACEHOLDER_x", 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			in := policy.InPath | policy.InQuery
			if strings.ContainsAny(tc.value, "/") {
				in = policy.InQuery
			}
			path, query, n, err := one(t, tc.value, in).Target(tc.path, tc.query)
			if path != tc.wantPath || query != tc.wantQuery || n != tc.n || err != nil {
				t.Errorf("%q ? %q, %d, %v", path, query, n, err)
			}
		})
	}
	// A value that is harmless alone makes a step of what the client left around it.
	for _, path := range []string{"/a/." + ph, "/a/" + ph + ".", "/a/%2e" + ph + "/b", "/" + ph + ".;x"} {
		if _, _, n, err := one(t, ".x", policy.InPath).Target(path, ""); n != 1 || err != nil {
			t.Errorf("%s: %d, %v", path, n, err)
		}
	}
	if !dotSegment("%2e.") || !dotSegment("..;a=b") || dotSegment("...") || !segmentsChange("/a", "/a/b") || !segmentsChange("/x/a", "/x/.") || segmentsChange("/../a", "/../b") {
		t.Error("dot segments")
	}
	long := strings.Repeat(ph+"&", 4000)
	if path, query, n, err := one(t, strings.Repeat("v", 100), policy.InQuery).Target("/", long); path+query != "" || n != 0 || !errors.Is(err, ErrGrowth) {
		t.Errorf("growth: %d, %v", n, err)
	}
}

func everyByte(s string) string {
	var out strings.Builder
	for i := range len(s) {
		const upper, lower = "0123456789ABCDEF", "0123456789abcdef"
		digits := upper
		if i%2 == 0 {
			digits = lower
		}
		out.Write([]byte{'%', digits[s[i]>>4], digits[s[i]&15]})
	}
	return out.String()
}

func TestPlaceholdersThatAreRefused(t *testing.T) {
	for _, tc := range []struct {
		name string
		list []policy.Replacement
		want string
	}{
		{"none", nil, "p.yaml:7:0: binding gh: projection has no replacements"},
		{"short", []policy.Replacement{replacement("1234567", "x", policy.InBody)}, "p.yaml:20:0: binding gh: replacement 1: placeholder has 7 bytes"},
		{"long", []policy.Replacement{replacement(strings.Repeat("x", 257), "x", policy.InBody)}, "placeholder has 257 bytes"},
		{"blank", []policy.Replacement{replacement("a place holder", "x", policy.InBody)}, "a blank"},
		{"line end", []policy.Replacement{replacement("place\nholder", "x", policy.InBody)}, "control character"},
		{"non-ASCII", []policy.Replacement{replacement("platzhälter", "x", policy.InBody)}, "not ASCII"},
		{"quote", []policy.Replacement{replacement(`place"holder`, "x", policy.InHeader)}, "a quote or a backslash"},
		{"backslash", []policy.Replacement{replacement(`place\holder`, "x", policy.InHeader)}, "a quote or a backslash"},
		{"percent", []policy.Replacement{replacement(`place%20holder`, "x", policy.InBody)}, "cannot stand in a form"},
		{"slash in a path", []policy.Replacement{replacement("place/holder", "x", policy.InPath)}, "cannot stand in a path"},
		{"braces in a query", []policy.Replacement{replacement("{placeholder}", "x", policy.InQuery)}, "cannot stand in a path or query"},
		{"no place", []policy.Replacement{replacement(ph, "x", 0)}, "no locations"},
		{"unknown place", []policy.Replacement{replacement(ph, "x", 1<<7)}, "no locations"},
		{"template", []policy.Replacement{replacement(ph, "{{ .a", policy.InBody)}, "replacement 1: template does not parse"},
		{"twice", []policy.Replacement{replacement(ph, "x", policy.InBody), replacement(ph, "y", policy.InBody|policy.InPath)}, "p.yaml:21:0: binding gh: replacement 2: placeholder is replaced twice"},
		{"part", []policy.Replacement{replacement(ph, "x", policy.InBody), replacement(ph+"2", "y", policy.InPath)}, "part of another"},
		{"whole", []policy.Replacement{replacement(ph+"2", "x", policy.InBody), replacement(ph, "y", policy.InPath)}, "part of another"},
		{"its own value", []policy.Replacement{replacement(ph, ph, policy.InBody)}, "the value would hold a placeholder"},
		{"another's", []policy.Replacement{replacement(ph, "x"+ph2+"{{ .v }}", policy.InBody), replacement(ph2, "y", policy.InBody)}, "the value would hold a placeholder"},
		{"many", make([]policy.Replacement, 65), "more than 64"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			table, err := compile([]*policy.CredentialRule{substitution(tc.list...)}, serve(nil), unknown)
			if err == nil || !strings.Contains(err.Error(), tc.want) || table != nil {
				t.Errorf("%v, want %s", err, tc.want)
			}
		})
	}
	h0 := http.Header{"X": {"a <{TOKEN}>%=+"}}
	angles := placeholders(t, map[string]string{"v": "s"}, replacement("<{TOKEN}>%", "{{ .v }}", policy.InHeader))
	if n, err := angles.Header(h0); n != 1 || err != nil || h0["X"][0] != "a s=+" {
		t.Errorf("%q, %v", h0, err)
	}
	// One placeholder may be two values in two places.
	p := placeholders(t, map[string]string{"v": "s/s"}, replacement(ph, "{{ .v }}", policy.InHeader), replacement(ph, "{{ .v | b64enc }}", policy.InQuery))
	h := http.Header{"X": {ph}}
	if n, err := p.Header(h); n != 1 || err != nil || h["X"][0] != "s/s" {
		t.Errorf("%v, %v", h, err)
	}
	if _, query, _, err := p.Target("/", ph); err != nil || query != "cy9z" {
		t.Errorf("%q, %v", query, err)
	}
}

func TestHeaderGrowthAndLength(t *testing.T) {
	p := one(t, strings.Repeat("v", 10<<10), policy.InHeader)
	h := http.Header{"X": {ph + ph}, "Y": {ph}}
	if n, err := p.Header(h); n != 0 || err == nil || h["Y"][0] != ph {
		t.Errorf("over 16 KiB: %d, %v", n, err)
	}
	h = http.Header{"X": nil}
	for range 200 {
		h["X"] = append(h["X"], ph)
	}
	if n, err := p.Header(h); n != 0 || !errors.Is(err, ErrGrowth) || h["X"][0] != ph {
		t.Errorf("over 1 MiB: %d, %v", n, err)
	}
}

// What the client sent to authenticate itself goes, but for what a placeholder stands in.
func TestStripBesidePlaceholders(t *testing.T) {
	p := one(t, "fake-secret", policy.InHeader|policy.InQuery)
	h := http.Header{
		"Authorization": {"Bearer mine", "Bearer " + ph, "Basic " + b64("u:"+ph)}, "X-Api-Key": {"mine"}, "Cookie": {"a=mine; b=" + ph + ";c=mine;d=" + ph, "e=mine"},
		"Proxy-Authorization": {"Basic " + b64("u:"+ph), ph}, "Accept": {"*/*"}, "x_api_key": {ph},
	}
	pr := &Projection{Placeholders: p}
	pr.Apply(h, false)
	want := http.Header{
		"Authorization": {"Bearer " + ph, "Basic " + b64("u:"+ph)}, "Cookie": {"b=" + ph + "; d=" + ph}, "Accept": {"*/*"}, "x_api_key": {ph},
	}
	if diff := cmp.Diff(want, h); diff != "" {
		t.Error(diff)
	}
	if n, err := p.Header(h); n != 5 || err != nil {
		t.Errorf("%d, %v", n, err)
	}
	h = http.Header{"Authorization": {"Bearer mine"}}
	pr.Apply(h, true)
	if len(h) != 1 {
		t.Error("keepClientAuth did not keep")
	}
	(*Placeholders)(nil).StripClientAuth(h)
	if len(h) != 0 {
		t.Error("nil did not strip")
	}
	query := "token=mine&api_key=" + everyByte(ph) + "&x=1&access_token=" + ph + "&password=y"
	if got := p.StripQueryAuth(query); got != "api_key="+everyByte(ph)+"&x=1&access_token="+ph {
		t.Error(got)
	}
	if got := one(t, "fake-secret", policy.InHeader).StripQueryAuth(query); got != "x=1" {
		t.Error(got)
	}
}

func BenchmarkPlaceholders(b *testing.B) {
	p := placeholders(b, map[string]string{"v": "fake-secret"}, replacement(ph, "{{ .v }}", anyplace), replacement(ph2, "{{ .v }}", anyplace))
	h := http.Header{"Accept": {"*/*"}, "User-Agent": {"x"}, "Accept-Encoding": {"gzip"}, "X-Request-Id": {"1"}, "Content-Type": {"text/plain"}}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := p.Header(h); err != nil {
			b.Fatal(err)
		}
		if _, _, _, err := p.Target("/repos/acme/x", "a=1&b=2"); err != nil {
			b.Fatal(err)
		}
	}
}
