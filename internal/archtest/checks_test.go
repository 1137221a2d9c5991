package archtest

import (
	"fmt"
	"strings"
	"testing"
)

// TestChecks lets each check find what it is for, and leave alone what it is not for.
func TestChecks(t *testing.T) {
	lengthsOnly := func(fs []*file) []string {
		bad, _ := checkLengths(fs)
		return bad
	}
	for _, tc := range []struct {
		name  string
		check func([]*file) []string
		path  string
		src   string
		want  string // "" for nothing
	}{
		{"proxy imports store", checkLayers, "proxy/a.go", imports("store"), "must not import store"},
		{"proxy imports a driver", checkLayers, "proxy/a.go", imports("source/static"), "must not import source/static"},
		{"proxy imports api", checkLayers, "proxy/sshbridge/a.go", imports("api"), "must not import api"},
		{"proxy imports inject", checkLayers, "proxy/a.go", imports("inject", "policy", "source", "internal/h1"), ""},
		{"api imports proxy", checkLayers, "api/a.go", imports("proxy"), "must not import proxy"},
		{"api imports inject", checkLayers, "api/a.go", imports("inject"), "must not import inject"},
		{"api imports a backend", checkLayers, "api/a.go", imports("store/sqlite"), "must not import store/sqlite"},
		{"api imports store", checkLayers, "api/a.go", imports("store", "source", "internal/audit"), ""},
		{"policy imports anything", checkLayers, "policy/a.go", imports("internal/secret"), "must not import internal/secret"},
		{"store imports anything", checkLayers, "store/a.go", imports("internal/secret"), "must not import internal/secret"},
		{"backend imports backend", checkLayers, "store/sqlite/a.go", imports("store/memory"), "must not import store/memory"},
		{"leaf imports leaf", checkLayers, "internal/certs/a.go", imports("internal/secret"), "must not import internal/secret"},
		{"driver imports driver", checkLayers, "source/vault/a.go", imports("source/static"), "must not import source/static"},
		{"a test may", checkLayers, "policy/a_test.go", imports("store"), ""},
		{"unknown package", checkLayers, "brandnew/a.go", imports("store"), "is in no layer"},
		{"cmd imports all", checkLayers, "cmd/egressd/a.go", imports("api", "proxy", "store/sqlite", "source/static"), ""},

		{"goproxy elsewhere", checkOnlyIn, "proxy/http.go", `package proxy; import "github.com/elazarl/goproxy"`, "only the explicit edge"},
		{"goproxy below", checkOnlyIn, "internal/x/a.go", `package x; import "github.com/elazarl/goproxy/ext/auth"`, "only the explicit edge"},
		{"goproxy at the edge", checkOnlyIn, "proxy/explicit.go", `package proxy; import "github.com/elazarl/goproxy"`, ""},
		{"goproxy in a test", checkOnlyIn, "internal/certs/a_test.go", `package certs; import "github.com/elazarl/goproxy"`, ""},
		{"testbed outside tests", checkOnlyIn, "proxy/a.go", imports("internal/testbed"), "fake origins"},
		{"pprof in a test", checkOnlyIn, "proxy/a_test.go", `package proxy; import _ "net/http/pprof"`, "default mux"},
		{"backend in proxy", checkOnlyIn, "proxy/a.go", imports("store/memory"), "chosen by cmd"},

		{"background", checkMentions, "proxy/a.go", `package proxy; import "context"; var _ = context.Background`, "owner"},
		{"background, renamed", checkMentions, "proxy/a.go", `package proxy; import c "context"; func f() { c.TODO() }`, "owner"},
		{"background in a test", checkMentions, "proxy/a_test.go", `package proxy; import "context"; var _ = context.Background`, ""},
		{"background in cmd", checkMentions, "cmd/egressd/a.go", `package main; import "context"; var _ = context.Background`, ""},
		{"getenv", checkMentions, "source/a.go", `package source; import "os"; var x = os.Getenv("A")`, "one place"},
		{"global logger", checkMentions, "proxy/a.go", `package proxy; import "log"; func f() { log.Printf("") }`, "never global"},
		{"logger for a server", checkMentions, "proxy/a.go", `package proxy; import "log"; var f = log.New`, ""},
		{"default client", checkMentions, "source/a.go", `package source; import "net/http"; func f() { http.Get("") }`, "DefaultClient"},
		{"a method called Get", checkMentions, "source/a.go", `package source; import "net/http"; func f(h http.Header) { h.Get("") }`, ""},
		{"skip verify, literal", checkMentions, "proxy/a.go", `package proxy; import "crypto/tls"; var c = tls.Config{InsecureSkipVerify: true}`, "proved who it is"},
		{"skip verify, assigned", checkMentions, "cmd/egressd/a.go", `package main; func f(c *T) { c.InsecureSkipVerify = true }`, "proved who it is"},
		{"host key", checkMentions, "proxy/sshbridge/a.go", `package sshbridge; import "golang.org/x/crypto/ssh"; var k = ssh.InsecureIgnoreHostKey()`, "proved who it is"},

		{"api mentions Reader", checkReadSide, "api/a.go", `package api; import "github.com/egressd/egressd/store"; type T struct { r store.Reader }`, "store.Reader"},
		{"api mentions Sealed, renamed", checkReadSide, "api/a.go", `package api; import s "github.com/egressd/egressd/store"; var x s.Sealed`, "store.Sealed"},
		{"api dots store", checkReadSide, "api/a.go", `package api; import . "github.com/egressd/egressd/store"; var x Opener`, "with a dot"},
		{"api mentions Writer", checkReadSide, "api/a.go", `package api; import "github.com/egressd/egressd/store"; var w store.Writer`, ""},
		{"cmd mentions Store", checkReadSide, "cmd/egressd/a.go", `package main; import "github.com/egressd/egressd/store"; var w store.Store`, ""},

		{"no comment", checkPackageComments, "proxy/a.go", "package proxy", "what the package is"},
		{"comment that does not name it", checkPackageComments, "proxy/a.go", "// Stuff.\npackage proxy", "what the package is"},
		{"comment", checkPackageComments, "proxy/a.go", "// Package proxy is.\npackage proxy", ""},

		{"init", checkInits, "proxy/a.go", "package proxy; func init() {}", "init()"},
		{"method init", checkInits, "proxy/a.go", "package proxy; func (T) init() {}", ""},

		{"mutex", checkPackageVars, "proxy/a.go", `package proxy; import "sync"; var mu sync.Mutex`, "sync.Mutex"},
		{"atomic", checkPackageVars, "proxy/a.go", `package proxy; import "sync/atomic"; var n atomic.Pointer[int]`, "atomic.Pointer"},
		{"once, pointer", checkPackageVars, "proxy/a.go", `package proxy; import "sync"; var o = &sync.Once{}`, "sync.Once"},
		{"pool", checkPackageVars, "proxy/a.go", `package proxy; import "sync"; var p = sync.Pool{}`, ""},
		{"made map", checkPackageVars, "proxy/a.go", `package proxy; var m = make(map[string]int)`, "to be filled"},
		{"nil map", checkPackageVars, "proxy/a.go", `package proxy; var m map[string]int`, "to be filled"},
		{"table", checkPackageVars, "proxy/a.go", `package proxy; var m = map[string]int{"a": 1}; func f() int { return m["a"] }`, ""},
		{"assigned", checkPackageVars, "proxy/a.go", `package proxy; var n int; func f() { n = 1 }`, "n is changed"},
		{"counted", checkPackageVars, "proxy/a.go", `package proxy; var n int; func f() { n++ }`, "n is changed"},
		{"element assigned", checkPackageVars, "proxy/a.go", `package proxy; var m = map[string]int{"a": 1}; func f() { m["b"] = 2 }`, "m is changed"},
		{"element deleted", checkPackageVars, "proxy/a.go", `package proxy; var m = map[string]int{"a": 1}; func f() { delete(m, "a") }`, "m is changed"},
		{"blank", checkPackageVars, "proxy/a.go", `package proxy; var _ I = T{}; func f() { _ = g() }`, ""},
		{"a local of that name", checkPackageVars, "proxy/a.go", `package proxy; var n int; func f(n int) { n = 1 }; func g() { n := 0; n++ }`, ""},

		{"long function", lengthsOnly, "proxy/a.go", "package proxy\nfunc f() {\n" + strings.Repeat("\n", 80) + "}", "f has 82 lines"},
		{"function", lengthsOnly, "proxy/a.go", "package proxy\nfunc f() {\n" + strings.Repeat("\n", 78) + "}", ""},
		{"long file", lengthsOnly, "proxy/a.go", "package proxy\n" + strings.Repeat("\n", 601), "600 are the most"},
		{"long test", lengthsOnly, "proxy/a_test.go", "package proxy\n" + strings.Repeat("\n", 601), ""},
		{"wide interface", lengthsOnly, "proxy/a.go", "package proxy; type I interface { a(); b(); c(); d(); e(); f(); g() }", "7 methods"},
		{"wide by embedding", lengthsOnly, "proxy/a.go", "package proxy; type A interface { a(); b(); c(); d() }; type I interface { A; e(); f(); g() }", "7 methods"},
		{"hand", lengthsOnly, "proxy/a.go", "package proxy; type I interface { a(); b(); c(); d(); e(); f() }", ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			f, err := parse(tc.path, tc.src)
			if err != nil {
				t.Fatal(err)
			}
			bad := strings.Join(tc.check([]*file{f}), "\n")
			if tc.want == "" && bad != "" {
				t.Errorf("found %s", bad)
			}
			if !strings.Contains(bad, tc.want) {
				t.Errorf("found %q, want something with %q", bad, tc.want)
			}
			if bad != "" && !strings.HasPrefix(bad, tc.path) && !strings.HasPrefix(bad, f.dir()) {
				t.Errorf("does not say where: %q", bad)
			}
		})
	}
}

// imports is a file that imports packages of ours.
func imports(ours ...string) string {
	var b strings.Builder
	b.WriteString("package x\n")
	for _, p := range ours {
		fmt.Fprintf(&b, "import %q\n", module+"/"+p)
	}
	return b.String()
}

func TestChangedAcrossFiles(t *testing.T) {
	a, err := parse("proxy/a.go", "package proxy; var n int")
	if err != nil {
		t.Fatal(err)
	}
	b, err := parse("proxy/b.go", "package proxy; func f() { n = 1 }")
	if err != nil {
		t.Fatal(err)
	}
	if bad := checkPackageVars([]*file{a, b}); len(bad) != 1 || !strings.HasPrefix(bad[0], "proxy/b.go:1") {
		t.Errorf("found %q", bad)
	}
}
