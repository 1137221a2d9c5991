package policy

import (
	"net/url"
	"strings"
	"testing"
)

func TestCanonicalPath(t *testing.T) {
	for in, want := range map[string]string{
		"":                      "/",
		"/":                     "/",
		"/a/b":                  "/a/b",
		"/a/b/":                 "/a/b/",
		"//a///b":               "/a/b",
		"/a//":                  "/a/",
		"/a/./b":                "/a/b",
		"/a/.":                  "/a/",
		"/a/..":                 "/",
		"/a/b/..":               "/a/",
		"/../../a":              "/a",
		"/..":                   "/",
		"/.":                    "/",
		"/...":                  "/...",
		"/.well-known/x":        "/.well-known/x",
		"/a%20b":                "/a%20b",
		"/a b":                  "/a%20b",
		"/%7euser":              "/~user",
		"/%7Euser":              "/~user",
		"/a%3ab@c":              "/a:b@c",
		"/a+b":                  "/a%2Bb",
		"/a%2bb":                "/a%2Bb",
		"/a%3Fb%23c":            "/a%3Fb%23c",
		"/%e4%bd%a0":            "/%E4%BD%A0",
		"/你":                    "/%E4%BD%A0",
		"/a;v=1/b":              "/a;v=1/b",
		"/a%3bv=1":              "/a;v=1",
		"/%252e%252e/a":         "/%252e%252e/a",
		"/a[1]":                 "/a%5B1%5D",
		"/v1/a.B/C:do":          "/v1/a.B/C:do",
		"/a/b/c/./../../g":      "/a/g",
		"/x/%2e/y":              "/x/y",
		"/%25":                  "/%25",
		"/a/" + "..%3f":         "/a/..%3F",
		"/\U0001F600":           "/%F0%9F%98%80",
		"/!$&'()*,=:@-._~;x=/z": "/!$&'()*,=:@-._~;x=/z",
	} {
		got, err := CanonicalPath(in)
		if err != nil || got != want {
			t.Errorf("CanonicalPath(%q) = %q, %v; want %q", in, got, err, want)
		}
	}
}

func TestAttack_B31_path_confusion(t *testing.T) {
	for in, want := range map[string]string{
		"/public/../admin":             "/admin",
		"/public/%2e%2e/admin":         "/admin",
		"/public/.%2E/admin":           "/admin",
		"//admin":                      "/admin",
		"/%61dmin":                     "/admin",
		"//evil.test/x":                "/evil.test/x",
		"/../../../../admin":           "/admin",
		"/public/%2E/%2e%2e/./admin//": "/admin/",
	} {
		if got, err := CanonicalPath(in); err != nil || got != want {
			t.Errorf("CanonicalPath(%q) = %q, %v; want %q", in, got, err, want)
		}
	}
	for _, in := range []string{"/admin%2f", "/admin%2F..", "/admin%5c", "/a%5Cb", "/admin%00", `/a\b`, "/a#frag", "/a?q", "/public/..;/admin", "/public/.;/admin",
		"/..;x=1", "/%2e%2e;/admin", "/%2e%2e%3b/admin", "/;/admin", "/;x/admin", "/a/%3bx/admin", "admin", "*", "http://a.test/x", "/a\x00", "/a\r\nb", "/a%0d%0a", "/a%7f", "/a\x7f", "/%", "/%1", "/%zz", "/%u002e",
		"/%c0%ae%c0%ae/admin", "/%c0%af", "/%ff", "/\xff", "/%e0%80%af"} {
		if got, err := CanonicalPath(in); err == nil {
			t.Errorf("CanonicalPath(%q) = %q, want an error", in, got)
		}
	}
}

func TestPathPrefix(t *testing.T) {
	for _, c := range []struct {
		prefix, path     string
		grants, prevents bool
	}{
		{"/", "/", true, true},
		{"/", "/a", true, true},
		{"/a", "/a", true, true},
		{"/a", "/a/", true, true},
		{"/a", "/a/b", true, true},
		{"/a", "/ab", false, false},
		{"/a/", "/a", false, true},
		{"/a/", "/a/", true, true},
		{"/a/", "/a/b", true, true},
		{"/a/", "/ab/", false, false},
		{"/a", "/a;x", false, true},
		{"/a", "/a;x/b", false, true},
		{"/a/b", "/a;x/b", false, true},
		{"/a/b", "/a;x/b;y/c", false, true},
		{"/a/b", "/a;x/bc", false, false},
		{"/a/b", "/a", false, false},
		{"/a;x", "/a;x", true, true},
		{"/a;x/b", "/a;x/b", true, true},
	} {
		p := pathPrefix(c.prefix)
		if got := p.grants(c.path); got != c.grants {
			t.Errorf("%s grants %s: %v", c.prefix, c.path, got)
		}
		if got := p.forbids(c.path); got != c.prevents {
			t.Errorf("%s forbids %s: %v", c.prefix, c.path, got)
		}
	}
}

func FuzzCanonicalPath(f *testing.F) {
	for _, s := range []string{"/", "/a/../b", "/%2e%2e/a", "/..;/a", "//a//", "/a+b%2b", "/%25%32%65", "/\xff", "/a%00", "/;x", "/%e4%bd%a0", "/a/.", "/..."} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, in string) {
		got, err := CanonicalPath(in)
		if err != nil {
			if got != "" {
				t.Fatalf("%q and an error", got)
			}
			return
		}
		if again, err := CanonicalPath(got); err != nil || again != got {
			t.Fatalf("%q → %q → %q, %v", in, got, again, err)
		}
		if got[0] != '/' || strings.Contains(got, "//") {
			t.Fatalf("%q → %q", in, got)
		}
		decoded, err := url.PathUnescape(got)
		if err != nil || strings.ContainsAny(decoded, "\\\x00\r\n") || strings.Count(decoded, "/") != strings.Count(got, "/") {
			t.Fatalf("%q → %q → %q, %v", in, got, decoded, err)
		}
		for _, s := range strings.Split(decoded, "/") {
			if name, _, _ := strings.Cut(s, ";"); name == "." || name == ".." {
				t.Fatalf("%q → %q", in, got)
			}
		}
		// What the standard library parses out of the canonical form is the same path.
		u, err := url.ParseRequestURI(got)
		if err != nil || u.Path != decoded {
			t.Fatalf("%q: url says %+v, %v", got, u, err)
		}
	})
}
