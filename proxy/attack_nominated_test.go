package proxy_test

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"
)

// A field that a rule asks for before it injects is one that the origin gets as well:
// naming it in Connection does not have it matched and then taken away.
func TestAttack_C10_nominating_what_a_rule_matches(t *testing.T) {
	g := attacked(t, options{})
	g.use(strings.Replace(basePolicy, "protocol: https, domains: [good.test]}", `protocol: https, domains: [good.test], httpMatch: {headers: [{name: X-Dry-Run, values: ["1"]}]}}`, 1))
	for _, c := range []struct {
		fields string
		token  bool
	}{
		{"X-Dry-Run: 1\r\n", true},
		{"X-Dry-Run: 1\r\nConnection: x-dry-run\r\n", false},
		{"X-Dry-Run: 1\r\nConnection: keep-alive, X-DRY-RUN\r\n", false},
	} {
		tc := g.good(t, "http/1.1")
		_, _ = fmt.Fprintf(tc, "GET /anything HTTP/1.1\r\nHost: %s\r\n%s\r\n", g.goodHost(), c.fields)
		resp := make([]byte, 12)
		_ = tc.SetReadDeadline(time.Now().Add(5 * time.Second))
		if _, err := tc.Read(resp); err != nil {
			t.Fatal(err)
		}
		h := g.bed.Good.Last(t).Header
		if got := h.Get("Authorization") != ""; got != c.token || got && h.Get("X-Dry-Run") != "1" {
			t.Errorf("C10 %q: credential %v, X-Dry-Run %q", c.fields, got, h.Get("X-Dry-Run"))
		}
	}
	g.use(basePolicy)
	g.safe(t)
}

// C10: what is removed by name is removed under the names that CGI origins cannot tell from it.
func TestAttack_C10_names_with_underscores(t *testing.T) {
	g := attacked(t, options{})
	for _, h2 := range []bool{false, true} {
		a := do(t, g.client("one", tokenOne, h2), http.MethodGet, g.bed.Good.URL("/anything/"), func(r *http.Request) {
			for _, k := range []string{"X_Forwarded_For", "x-forwarded_host", "Proxy_Authorization", "TRANSFER_ENCODING", "X_Real_IP"} {
				r.Header[k] = []string{"forged"}
			}
			r.Header["X_other_name"] = []string{"kept"}
		})
		if a.status != http.StatusOK {
			t.Fatalf("%+v", a)
		}
		h := fmt.Sprint(g.bed.Good.Last(t).Header)
		if strings.Contains(h, "forged") || !strings.Contains(h, "kept") {
			t.Errorf("C10 h2=%v: the origin got %s", h2, h)
		}
	}
	g.safe(t)
}
