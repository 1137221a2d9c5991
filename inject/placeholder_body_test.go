package inject

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"mime/multipart"
	"net/url"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/egressd/egressd/policy"
)

const form = "application/x-www-form-urlencoded"

func TestPlaceholderInBody(t *testing.T) {
	const js = "application/json"
	value := `a"b\c<&>'é/`
	for _, tc := range []struct {
		name, contentType, in, want string
		n                           int
	}{
		{"form", form, "b=2&a=" + ph + "&%50LACEHOLDER_x1=+", "b=2&a=a%22b%5Cc%3C%26%3E%27%C3%A9%2F&a%22b%5Cc%3C%26%3E%27%C3%A9%2F=+", 2},
		{"form with charset", form + "; charset=UTF-8", "a=" + ph, "a=a%22b%5Cc%3C%26%3E%27%C3%A9%2F", 1},
		{"json", js, ` {"k" : "x` + ph + `y", "n":1.50, "n":[ ]}` + "\n", ` {"k" : "xa\"b\\c\u003c\u0026\u003e'é/y", "n":1.50, "n":[ ]}` + "\n", 1},
		{"json, name of a member", "application/vnd.api+json; charset=utf-8", `{"` + ph + `":null}`, `{"a\"b\\c\u003c\u0026\u003e'é/":null}`, 1},
		{"json, escaped by the client", js, `"\u0050LACEHOLDE\u0052_x\u0031\u00e9\ud83d\ude00\n"`, `"a\"b\\c\u003c\u0026\u003e'é/\u00e9\ud83d\ude00\n"`, 1},
		{"json, an escaped backslash", js, `"\\u0050LACEHOLDER_x1"`, `"\\u0050LACEHOLDER_x1"`, 0},
		{"json, a quote before it", js, `["\"","` + ph + `","\\"]`, `["\"","a\"b\\c\u003c\u0026\u003e'é/","\\"]`, 1},
		{"json lines", "application/x-ndjson", `{"a":"` + ph + `"}` + "\n" + `"` + ph + `"` + "\n", `{"a":"a\"b\\c\u003c\u0026\u003e'é/"}` + "\n" + `"a\"b\\c\u003c\u0026\u003e'é/"` + "\n", 2},
		{"json with a byte order mark", js, "\ufeff\"" + ph + "\"", "\ufeff\"a\\\"b\\\\c\\u003c\\u0026\\u003e'é/\"", 1},
		{"no json and no placeholder", js, `{"a":`, `{"a":`, 0},
		{"xml", "application/soap+xml", "<a b='" + ph + "'>" + ph + "</a>", "<a b='a&quot;b\\c&lt;&amp;&gt;&apos;é/'>a&quot;b\\c&lt;&amp;&gt;&apos;é/</a>", 2},
		{"html", "text/html", "<p>" + ph, "<p>a&quot;b\\c&lt;&amp;&gt;&apos;é/", 1},
		{"text", "text/plain; charset=utf-8", "\xff" + ph + "\x00", "\xffa\"b\\c<&>'é/\x00", 1},
		{"yaml", "application/yaml", "a: " + ph, "a: a\"b\\c<&>'é/", 1},
		{"event stream", "text/event-stream", "data: " + ph + "\n\n", "data: a\"b\\c<&>'é/\n\n", 1},
		{"binary without", "application/octet-stream", "\x00\xff", "\x00\xff", 0},
		{"no type and none in it", "", "abc", "abc", 0},
		{"empty", "", "", "", 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			body := []byte(tc.in)
			out, n, err := one(t, value, policy.InBody).Body(tc.contentType, " identity ,", body)
			if diff := cmp.Diff(tc.want, string(out)); diff != "" || n != tc.n || err != nil {
				t.Errorf("%d, %v\n%s", n, err, diff)
			}
			if string(body) != tc.in {
				t.Error("the caller's body was written to")
			}
		})
	}
}

func TestBodiesThatAreRefused(t *testing.T) {
	p := one(t, "fäke]secret", policy.InBody)
	for _, tc := range []struct {
		name, contentType, encoding, body string
		want                              error
	}{
		{"gzip", "application/json", "gzip", `{}`, ErrEncodedBody},
		{"gzip of nothing known", "application/octet-stream", "gzip", "x", ErrEncodedBody},
		{"two codings", "text/plain", "identity, br", "x", ErrEncodedBody},
		{"unknown coding", "text/plain", "x", ph, ErrEncodedBody},
		{"binary", "application/octet-stream", "", "\x00" + ph, ErrBodyForm},
		{"no type", "", "", ph, ErrBodyForm},
		{"broken type", "text/plain; x", "", ph, ErrBodyForm},
		{"grpc", "application/grpc", "", "\x00\x00\x00\x00\x0e" + ph, ErrBodyForm},
		{"another character set", "text/plain; charset=utf-16", "", ph, ErrBodyForm},
		{"non-ASCII in latin1", "text/plain; charset=iso-8859-1", "", ph, ErrUnsafePlace},
		{"multipart/mixed", "multipart/mixed; boundary=b", "", ph, ErrBodyForm},
		{"json, cut off", "application/json", "", `{"a":"` + ph + `"`, ErrBodySyntax},
		{"json, not in a string", "application/json", "", `{"a":` + ph + `}`, ErrBodySyntax},
		{"json, strings that others read otherwise", "application/json", "", `{'a':"'` + ph + `'"}`, ErrBodySyntax},
		{"json, control character", "application/json", "", "\"\n" + ph + `"`, ErrBodySyntax},
		{"json, bad escape", "application/json", "", `"\x` + ph + `"`, ErrBodySyntax},
		{"CDATA", "text/xml", "", "<a><![CDATA[" + ph + "]]></a>", ErrUnsafePlace},
		{"growth", "text/plain", "", strings.Repeat(ph, 1<<20), nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			out, n, err := p.Body(tc.contentType, tc.encoding, []byte(tc.body))
			if tc.want == nil { // the value is shorter than the placeholder
				if n != 1<<20 || err != nil {
					t.Errorf("%d, %v", n, err)
				}
				return
			}
			if out != nil || n != 0 || !errors.Is(err, tc.want) {
				t.Errorf("%q, %d, %v", out, n, err)
			}
		})
	}
	big := one(t, strings.Repeat("v", 16<<10), policy.InBody)
	if out, n, err := big.Body("text/plain", "", []byte(strings.Repeat(ph, 100))); out != nil || n != 0 || !errors.Is(err, ErrGrowth) {
		t.Errorf("growth: %d, %v", n, err)
	}
	if out, n, err := big.Text([]byte(strings.Repeat(ph, 100))); out != nil || n != 0 || !errors.Is(err, ErrGrowth) {
		t.Errorf("growth of a message: %d, %v", n, err)
	}
	for contentType, want := range map[string]bool{form: true, "application/json": true, "text/csv": true, "multipart/form-data; boundary=x": true, "multipart/form-data": false,
		"image/png": false, "application/grpc": false, "": false} {
		if p.Rewrites(contentType) != want || (*Placeholders)(nil).Rewrites(contentType) {
			t.Errorf("%q: %v", contentType, !want)
		}
	}
	// After a CDATA section is closed, entities count again.
	out, n, err := one(t, "<v", policy.InBody).Body("text/xml", "", []byte("<![CDATA["+ph+"]]>"+ph+"<![CDATA["+ph+"]]>"))
	if string(out) != "<![CDATA[<v]]>&lt;v<![CDATA[<v]]>" || n != 3 || err != nil {
		t.Errorf("%q, %d, %v", out, n, err)
	}
}

func TestPlaceholderInMultipart(t *testing.T) {
	var buf bytes.Buffer
	w := multipart.NewWriter(&buf)
	put := func(head, content string) {
		h := map[string][]string{"Content-Disposition": {`form-data; name="` + ph + `"`}}
		if head != "" {
			h["Content-Type"] = []string{head}
		}
		part, err := w.CreatePart(h)
		if err == nil {
			_, err = part.Write([]byte(content))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	put("", "x"+ph)
	put("", "")
	put("application/json", `{"a":"`+ph+`"}`)
	put("image/png", "\x00\r\n\r\n--"+w.Boundary()[:20])
	put(form, "a="+ph)
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	p := one(t, `v"é&`, policy.InBody)
	in := "preamble " + ph + "\r\n" + buf.String() + "epilogue " + ph
	out, n, err := p.Body(w.FormDataContentType(), "", []byte(in))
	if n != 3 || err != nil {
		t.Fatalf("%d, %v", n, err)
	}
	want := strings.Replace(in, "\r\n\r\nx"+ph, "\r\n\r\nxv\"é&", 1)
	want = strings.Replace(want, `{"a":"`+ph, `{"a":"v\"é\u0026`, 1)
	want = strings.Replace(want, "a="+ph, "a=v%22%C3%A9%26", 1)
	if diff := cmp.Diff(want, string(out)); diff != "" {
		t.Error(diff)
	}
	r := multipart.NewReader(bytes.NewReader(out), w.Boundary())
	for i, content := range []string{`xv"é&`, "", `{"a":"v\"é\u0026"}`} {
		part, err := r.NextPart()
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(part)
		if string(got) != content || err != nil || part.FormName() != ph {
			t.Errorf("part %d: %q, %v", i, got, err)
		}
	}
	for name, tc := range map[string]struct {
		body string
		want error
	}{
		"a file of a type that is not rewritten": {"--b\r\nContent-Type: image/png\r\n\r\n" + ph + "\r\n--b--", ErrBodyForm},
		"an encoded part":                        {"--b\r\nContent-Transfer-Encoding: base64\r\n\r\n" + ph + "\r\n--b--", ErrBodyForm},
		"parts in a part":                        {"--b\r\nContent-Type: multipart/form-data; boundary=c\r\n\r\n--c\r\n\r\n" + ph + "\r\n--c--\r\n--b--", ErrBodyForm},
		"two types":                              {"--b\r\nContent-Type: text/plain\r\nContent-Type: image/png\r\n\r\n" + ph + "\r\n--b--", ErrBodyForm},
		"a folded head":                          {"--b\r\nContent-Type: text/plain;\r\n charset=x\r\n\r\n" + ph + "\r\n--b--", ErrBodyForm},
		"json that is none":                      {"--b\r\nContent-Type: application/json\r\n\r\n" + ph + "\r\n--b--", ErrBodySyntax},
		"no end":                                 {"--b\r\n\r\n" + ph + "\r\n--b", ErrBodySyntax},
		"no delimiter":                           {ph, ErrBodySyntax},
		"LF":                                     {"--b\n\n" + ph + "\n--b--", ErrBodySyntax},
		"no blank line":                          {"--b\r\n" + ph + "\r\n--b--", ErrBodySyntax},
		"a longer boundary":                      {"--b\r\n\r\n" + ph + "\r\n--bb\r\n\r\n\r\n--b--", ErrBodySyntax},
	} {
		t.Run(name, func(t *testing.T) {
			out, n, err := p.Body("multipart/form-data; boundary=b", "", []byte(tc.body))
			if out != nil || n != 0 || !errors.Is(err, tc.want) {
				t.Errorf("%q, %d, %v", out, n, err)
			}
			without := strings.ReplaceAll(tc.body, ph, "x")
			if name == "json that is none" {
				return
			}
			if out, n, err := p.Body("multipart/form-data; boundary=b", "", []byte(without)); string(out) != without || n != 0 || err != nil {
				t.Errorf("without a placeholder: %q, %d, %v", out, n, err)
			}
		})
	}
	for _, body := range []string{"--b--", "--b\r\n--b--", "--b \t\r\n\r\n\r\n--b--\r\n"} {
		if out, n, err := p.Body("multipart/form-data; boundary=b", "", []byte(body)); string(out) != body || n != 0 || err != nil {
			t.Errorf("%q: %q, %d, %v", body, out, n, err)
		}
	}
}

func TestPlaceholderInMessage(t *testing.T) {
	p := one(t, `v"\`, policy.InBody)
	for in, want := range map[string]string{
		`{"token":"` + ph + `", "a":[1 ,2]}`: `{"token":"v\"\\", "a":[1 ,2]}`,
		`{"token":"\u0050LACEHOLDER_x1"}`:    `{"token":"v\"\\"}`,
		"auth " + ph + `\`:                   `auth v"\\`,
		`{"open":"` + ph:                     `{"open":"v"\`,
		"42[\"" + ph + "\"]":                 "42[\"v\"\\\"]",
		"plain":                              "plain",
		`{"a":"\n"}`:                         `{"a":"\n"}`,
		"":                                   "",
	} {
		out, n, err := p.Text([]byte(in))
		if string(out) != want || err != nil || (n == 1) != (in != want) {
			t.Errorf("%q: %q, %d, %v", in, out, n, err)
		}
	}
}

// oracle finds ph in what is written with escapes of the form that esc makes.
func oracle(esc func(hi, lo string) string) *regexp.Regexp {
	var out strings.Builder
	for i := range len(ph) {
		digit := func(d byte) string {
			return "[" + strings.ToLower(string("0123456789ABCDEF"[d])) + string("0123456789ABCDEF"[d]) + "]"
		}
		out.WriteString("(?:" + regexp.QuoteMeta(ph[i:i+1]) + "|" + esc(digit(ph[i]>>4), digit(ph[i]&15)) + ")")
	}
	return regexp.MustCompile(out.String())
}

func FuzzTarget(f *testing.F) {
	f.Add("/a/"+ph, "x="+ph, "v")
	f.Add("/"+everyByte(ph), "%50LACEHOLDER_x1&"+ph+ph, "a b&c")
	f.Add("/%", "%%50LACEHOLDER_x1%5", "é")
	re := oracle(func(hi, lo string) string { return "%" + hi + lo })
	f.Fuzz(func(t *testing.T, path, query, value string) {
		if checkFilling(value, policy.InPath|policy.InQuery) != nil || strings.Contains(value, ph) || len(path)+len(query) > 4<<10 {
			t.Skip()
		}
		p := one(t, "x"+value, policy.InPath|policy.InQuery)
		newPath, newQuery, n, err := p.Target(path, query)
		encoded := strings.ReplaceAll(url.QueryEscape("x"+value), "+", "%20")
		wantPath, wantQuery := re.ReplaceAllLiteralString(path, encoded), re.ReplaceAllLiteralString(query, encoded)
		if err != nil {
			if newPath != "" || newQuery != "" || n != 0 {
				t.Errorf("%q, %q, %d beside %v", newPath, newQuery, n, err)
			}
			if errors.Is(err, ErrGrowth) && len(wantPath)+len(wantQuery) <= maxTarget {
				t.Errorf("%v for %d bytes", err, len(wantPath)+len(wantQuery))
			}
			return
		}
		// Every byte outside of the placeholders is where it was.
		if newPath != wantPath || newQuery != wantQuery || n != len(re.FindAllString(path, -1))+len(re.FindAllString(query, -1)) {
			t.Errorf("%q ? %q, %d\nwant %q ? %q", newPath, newQuery, n, wantPath, wantQuery)
		}
		if strings.Count(newPath, "/") != strings.Count(path, "/") || strings.Count(newQuery, "&") != strings.Count(query, "&") {
			t.Errorf("%q ? %q became %q ? %q", path, query, newPath, newQuery)
		}
	})
}

var literal = regexp.MustCompile(`"(?:[^"\\]|\\.)*"`)

func FuzzBodyJSON(f *testing.F) {
	f.Add(`{"a":"`+ph+`"}`, "v")
	f.Add(`["\u0050LACEHOLDER_x1","\\u0050LACEHOLDER_x1",{"\"`+ph+`":"\\"}]`, `"\`)
	f.Add(`{"a":`+ph+`}`, "v")
	f.Add(`"`+ph, "v")
	f.Fuzz(func(t *testing.T, body, value string) {
		if checkFilling(value, policy.InBody) != nil || strings.Contains(value, ph) {
			t.Skip()
		}
		out, n, err := one(t, value, policy.InBody).Body("application/json", "", []byte(body))
		if err != nil {
			if out != nil || n != 0 || json.Valid([]byte(body)) {
				t.Errorf("%q: %d, %v", out, n, err)
			}
			return
		}
		if n == 0 && string(out) != body {
			t.Errorf("%q became %q", body, out)
		}
		if !json.Valid([]byte(body)) {
			return // several texts, or nothing was found
		}
		if !json.Valid(out) {
			t.Fatalf("%q became %q", body, out)
		}
		// Outside of strings nothing changed, and neither did a string without a placeholder.
		was, is := literal.FindAllString(body, -1), literal.FindAllString(string(out), -1)
		if literal.ReplaceAllString(body, "") != literal.ReplaceAllString(string(out), "") || len(was) != len(is) {
			t.Fatalf("%q became %q", body, out)
		}
		found := 0
		for i := range was {
			var a, b string
			if json.Unmarshal([]byte(was[i]), &a) != nil || json.Unmarshal([]byte(is[i]), &b) != nil {
				t.Fatalf("%q, %q", was[i], is[i])
			}
			if c := strings.Count(a, ph); c > 0 {
				found += c
				if b != strings.ReplaceAll(a, ph, value) {
					t.Errorf("%q became %q", was[i], is[i])
				}
			} else if was[i] != is[i] {
				t.Errorf("%q became %q", was[i], is[i])
			}
		}
		if n != found {
			t.Errorf("%d of %d", n, found)
		}
	})
}

func FuzzBodyMultipart(f *testing.F) {
	f.Add("--b\r\nContent-Type: text/plain\r\n\r\n"+ph+"\r\n--b--", "b")
	f.Add("x\r\n--b\r\n\r\n\r\n--b\r\nA: b\r\n\r\n"+ph+"\r\n--b--\r\n", "b")
	f.Fuzz(func(t *testing.T, body, boundary string) {
		out, n, err := one(t, "fake-value", policy.InBody).Body("multipart/form-data; boundary="+boundary, "", []byte(body))
		if err != nil {
			if out != nil || n != 0 || !strings.Contains(body, ph) && !strings.Contains(body, "%") && !strings.Contains(body, `\`) {
				t.Errorf("%q, %d, %v", out, n, err)
			}
			return
		}
		// Undoing it gives what was there, unless parts spelt it in their own way.
		if !strings.Contains(body, "fake-value") && !strings.ContainsAny(body, `%\`) && strings.ReplaceAll(string(out), "fake-value", ph) != body {
			t.Errorf("%q became %q", body, out)
		}
	})
}

func FuzzHeader(f *testing.F) {
	f.Add("Authorization", "Bearer "+ph, "v")
	f.Add("Authorization", "Basic "+b64("u:"+ph), "v:w")
	f.Add("cookie", "a="+ph+ph, "v")
	f.Add("Host", ph, "v")
	f.Fuzz(func(t *testing.T, key, in, value string) {
		if checkFilling(value, policy.InHeader) != nil || strings.Contains(value, ph) || strings.ContainsAny(in, "\r\n\x00") || len(in) > 8<<10 {
			t.Skip()
		}
		h := map[string][]string{key: {in}, "X-Other": {"é"}}
		n, err := one(t, value, policy.InHeader).Header(h)
		out := h[key][0]
		b, basic := parseBasic(in)
		basic = basic && strings.EqualFold(strings.ReplaceAll(key, "_", "-"), "authorization") && strings.Contains(b.login, ph)
		switch {
		case err != nil || n == 0:
			if out != in {
				t.Errorf("%q became %q beside %d, %v", in, out, n, err)
			}
		case basic:
			again, ok := parseBasic(out)
			if !ok || again.login != strings.ReplaceAll(b.login, ph, value) || n != strings.Count(b.login, ph) || again.before != b.before || again.after != b.after {
				t.Errorf("%q became %q", in, out)
			}
		default:
			if out != strings.ReplaceAll(in, ph, value) || n != strings.Count(in, ph) {
				t.Errorf("%q became %q, %d", in, out, n)
			}
		}
		if len(out) > maxValue && out != in || strings.ContainsAny(out, "\r\n\x00") {
			t.Errorf("%q", out)
		}
	})
}
