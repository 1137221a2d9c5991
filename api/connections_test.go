package api

import (
	"testing"
)

func TestConnections(t *testing.T) {
	r := newRig(t)
	at := "/api/v1/connections"
	r.world.open = []Connection{
		{ID: "1", Sandbox: "a", Team: DefaultTeam, Way: "connect", Protocol: "redis", Source: "db", Version: 2},
		{ID: "2", Sandbox: "b", Team: "acme", Way: "tproxy", Protocol: "tls", Exchanges: []Exchange{{RequestID: "x-1", Source: "gh", Version: 1}}},
	}
	list := func(query string) []Connection {
		t.Helper()
		g := r.do("GET", at+query, nil)
		g.want(t, 200, "", "")
		return into[[]Connection](t, g)
	}
	for query, want := range map[string]string{"": "12", "?sandbox=a": "1", "?source=gh": "2", "?source=db": "1", "?protocol=tls": "2", "?sandbox=a&source=gh": ""} {
		got := ""
		for _, c := range list(query) {
			got += c.ID
			if c.Exchanges == nil {
				t.Errorf("%q: exchanges is null", query)
			}
		}
		if got != want {
			t.Errorf("%q: %q, want %q", query, got, want)
		}
	}
	r.do("GET", at+"?colour=red", nil).want(t, 400, CodeBadRequest, "unknown_parameter")
	acme := r.token("acme-admin", "admin", "acme")
	if got := into[[]Connection](t, r.do("GET", at, nil, head("Authorization", "Bearer "+acme))); len(got) != 1 || got[0].ID != "2" {
		t.Errorf("another team's: %+v", got)
	}
	r.do("DELETE", at+"/1", nil, head("Authorization", "Bearer "+acme)).want(t, 404, CodeNotFound, "")
	r.do("DELETE", at+"/1", nil, head("Authorization", "Bearer "+r.read)).want(t, 403, CodeForbidden, "role_insufficient")
	r.do("DELETE", at+"/x", nil).want(t, 404, CodeNotFound, "")
	r.do("DELETE", at+"/1", nil).want(t, 200, "", "")
	r.do("DELETE", at+"/1", nil).want(t, 404, CodeNotFound, "")
	if got := list(""); len(got) != 1 {
		t.Errorf("%+v", got)
	}
}
