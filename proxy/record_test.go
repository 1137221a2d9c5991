package proxy_test

import (
	"net/http"
	"testing"

	"github.com/egressd/egressd/internal/audit"
)

// TestRecordNamesTheSandbox looks at every way in: who asked is known in each record,
// also where the answer is a refusal, and nowhere where the login failed.
func TestRecordNamesTheSandbox(t *testing.T) {
	s := ready(t, options{})
	last := func(destination string) audit.Record {
		t.Helper()
		return s.records.wait(t, func(a audit.Record) bool { return a.Destination == destination })
	}
	if a := get(t, s.one(), "http://evil.test:1/"); a.status != http.StatusBadGateway {
		t.Errorf("cleartext to a port where nobody is: %+v", a)
	}
	if r := last("evil.test:1"); r.Sandbox != "one" || r.Team != "acme" {
		t.Errorf("absolute-form: %+v", r)
	}
	if a := get(t, s.one(), "http://denied.test/"); a.status != http.StatusForbidden {
		t.Errorf("absolute-form to a denied host: %+v", a)
	}
	if r := last("denied.test:80"); r.Sandbox != "one" || r.Outcome != "denied" {
		t.Errorf("refused absolute-form: %+v", r)
	}
	if status, _, _ := s.connect("denied.test:443", "one", tokenOne); status != http.StatusForbidden {
		t.Errorf("CONNECT to a denied host: %d", status)
	}
	if r := last("denied.test:443"); r.Sandbox != "one" || r.Outcome != "denied" {
		t.Errorf("refused CONNECT: %+v", r)
	}
	if status, _, _ := s.connect("good.test:443", "one", tokenTwo); status != http.StatusProxyAuthRequired {
		t.Errorf("wrong token: %d", status)
	}
	if r := s.records.wait(t, func(a audit.Record) bool { return a.Status == http.StatusProxyAuthRequired }); r.Sandbox != "" {
		t.Errorf("a failed login is recorded as that sandbox: %+v", r)
	}
}
