package main

import (
	"strings"
	"testing"
)

func TestSummary(t *testing.T) {
	in := strings.Join([]string{
		`{"Action":"output","Package":"p","Test":"TestA","Output":"=== RUN   TestA\n"}`,
		`{"Action":"pass","Package":"p","Test":"TestA"}`,
		`{"Action":"output","Package":"p","Test":"TestB","Output":"    b_test.go:1: broken\n"}`,
		`{"Action":"fail","Package":"p","Test":"TestB"}`,
		`{"Action":"output","Package":"p","Test":"TestC","Output":"    c_test.go:1: no such kernel\n"}`,
		`{"Action":"skip","Package":"p","Test":"TestC"}`,
		`{"Action":"output","Package":"p","Test":"TestD","Output":"panic: oops\n"}`,
		`{"Action":"output","Package":"p","Output":"FAIL\tp\t0.1s\n"}`,
		`{"Action":"fail","Package":"p"}`,
		`{"Action":"output","Package":"q","Output":"ok  \tq\t0.1s\n"}`,
		`{"Action":"pass","Package":"q"}`,
		`go: warning: something`,
	}, "\n")
	var out strings.Builder
	s := &summary{out: &out, buffered: map[string]*strings.Builder{}}
	if err := s.read(strings.NewReader(in)); err != nil {
		t.Fatal(err)
	}
	got := out.String()
	for _, want := range []string{"broken", "no such kernel", "panic: oops", "FAIL\tp", "ok  \tq", "go: warning: something"} {
		if !strings.Contains(got, want) {
			t.Errorf("%q is not in:\n%s", want, got)
		}
	}
	if strings.Contains(got, "RUN   TestA") {
		t.Errorf("a passed test was printed:\n%s", got)
	}
	if !strings.HasSuffix(got, "1 passed, 1 failed, 1 skipped\n") {
		t.Errorf("last line of:\n%s", got)
	}
	if !s.broken {
		t.Error("a failed package must fail the run")
	}
}
