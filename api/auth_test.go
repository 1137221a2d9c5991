package api

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/egressd/egressd/store"
)

// TestAuthorisationTable asks every row as nobody, as read and as admin.
func TestAuthorisationTable(t *testing.T) {
	r := newRig(t)
	team := r.token("team-admin", "admin", "acme")
	for _, rt := range r.s.routes {
		path := strings.Replace(rt.pattern, "{name}", "zz", 1)
		t.Run(rt.method+" "+rt.pattern, func(t *testing.T) {
			if rt.role != RoleRead && rt.role != RoleAdmin {
				t.Fatalf("role %v", rt.role)
			}
			if g := r.dial(rt.method, path, nil).want(t, 401, CodeUnauthorized, ReasonTokenMissing); !strings.HasPrefix(g.header.Get("WWW-Authenticate"), "Bearer ") {
				t.Errorf("WWW-Authenticate %q", g.header.Get("WWW-Authenticate"))
			}
			if g := r.dial(rt.method, path, nil, auth(r.read)); rt.role == RoleAdmin {
				g.want(t, 403, CodeForbidden, ReasonRole)
			} else if g.status == 401 || g.status == 403 {
				t.Errorf("read: %d", g.status)
			}
			if g := r.dial(rt.method, path, nil, auth(r.admin)); g.status == 401 || g.status == 403 {
				t.Errorf("admin: %d", g.status)
			}
			if g := r.do(rt.method, path, nil); g.status == 401 || g.status == 403 {
				t.Errorf("socket's owner: %d", g.status)
			}
			g := r.dial(rt.method, path, nil, auth(team))
			if rt.unbound {
				g.want(t, 403, CodeForbidden, ReasonTeam)
			} else if g.status == 401 || g.status == 403 {
				t.Errorf("admin of a team: %d", g.status)
			}
		})
	}
	// What mutates is for admins; what the table calls read changes nothing.
	for _, rt := range r.s.routes {
		reads := rt.method == http.MethodGet || rt.pattern == base+"/policies/check" || rt.pattern == base+"/policies/explain"
		if reads == (rt.role == RoleAdmin) && rt.pattern != base+"/tokens" {
			t.Errorf("%s %s is for %v", rt.method, rt.pattern, rt.role)
		}
	}
	if f := (&route{}).role; f != RoleNone {
		t.Errorf("a row without a role is for %v", f)
	}
}

func TestARowWithoutARoleIsForNobody(t *testing.T) {
	r := newRig(t)
	r.s.routes = append(r.s.routes, route{method: "GET", pattern: "/api/v1/forgotten", handler: (*Server).whoami, status: 200})
	r.do("GET", "/api/v1/forgotten", nil).want(t, 403, CodeForbidden, ReasonRole)
}

func TestWhoIsAsking(t *testing.T) {
	r := newRig(t)
	if who := into[Identity](t, r.do("GET", base+"/whoami", nil).want(t, 200, "", "")); who.Role != "admin" || who.Via != "socket" || who.Team != AllTeams || !strings.HasPrefix(who.Name, "uid:") {
		t.Errorf("%+v", who)
	}
	// A token that is presented decides, on the socket too.
	if who := into[Identity](t, r.do("GET", base+"/whoami", nil, auth(r.read)).want(t, 200, "", "")); who.Role != "read" || who.Name != "root-read" {
		t.Errorf("%+v", who)
	}
	r.do("GET", base+"/whoami", nil, auth("egd_wrong")).want(t, 401, CodeUnauthorized, ReasonTokenInvalid)
}

func TestTheSocketIsForItsOwnerAndRoot(t *testing.T) {
	r := newRig(t)
	ask := func(uid any) int {
		q := httptest.NewRequest("GET", "http://localhost"+base+"/whoami", nil)
		if uid != nil {
			q = q.WithContext(context.WithValue(q.Context(), peerKey{}, uid))
		}
		w := httptest.NewRecorder()
		r.s.Handler().ServeHTTP(w, q)
		return w.Code
	}
	if got := []int{ask(r.s.euid), ask(uint32(0)), ask(r.s.euid + 4711), ask(nil)}; fmt.Sprint(got) != "[200 200 401 401]" {
		t.Errorf("owner, root, stranger, unknown: %v", got)
	}
}

func TestTokens(t *testing.T) {
	r := newRig(t)
	g := r.do("POST", base+"/tokens", map[string]any{"name": "ci", "role": "read", "expiresAt": time.Now().Add(time.Hour)}).want(t, 201, "", "")
	made := into[TokenCreated](t, g)
	if !strings.HasPrefix(made.Value, "egd_") || len(made.Value) != 4+43 || made.Role != "read" || made.Team != AllTeams {
		t.Fatalf("%s", g.raw)
	}
	r.dial("GET", at0, nil, auth(made.Value)).want(t, 200, "", "")
	r.dial("GET", at0, nil, head("Authorization", "bearer  "+made.Value)).want(t, 200, "", "")
	if g := r.do("GET", base+"/tokens", nil).want(t, 200, "", ""); strings.Contains(string(g.raw), made.Value) || len(into[[]Token](t, g)) != 3 {
		t.Errorf("%s", g.raw)
	}
	r.do("POST", base+"/tokens", map[string]any{"name": "ci", "role": "admin"}).want(t, 409, CodeConflict, ReasonExists)
	for path, body := range map[string]map[string]any{
		"name":      {"name": "../x", "role": "read"},
		"role":      {"name": "x", "role": "root"},
		"team":      {"name": "x", "role": "read", "team": "a/b"},
		"expiresAt": {"name": "x", "role": "read", "expiresAt": "2001-01-01T00:00:00Z"},
		"token":     {"name": "x", "role": "read", "token": "egd_mine"},
		"hash":      {"name": "x", "role": "read", "hash": "00"},
	} {
		r.do("POST", base+"/tokens", body).want(t, 400, CodeBadRequest, ReasonValidation).wantField(t, path)
	}
	r.do("POST", base+"/tokens", map[string]any{"name": "x", "role": "read"}, head(KeyHeader, "k")).want(t, 400, CodeBadRequest, ReasonIdempotencyKey)
	r.do("DELETE", base+"/tokens/ci", nil).want(t, 200, "", "")
	r.do("DELETE", base+"/tokens/ci", nil).want(t, 404, CodeNotFound, "")
	r.dial("GET", at0, nil, auth(made.Value)).want(t, 401, CodeUnauthorized, ReasonTokenInvalid)
	for _, a := range []string{"Basic " + made.Value, "Bearer", "Bearer ", "Bearer x", r.admin, "Bearer " + r.admin + " ", "Bearer " + r.admin + "A"} {
		if got := r.dial("GET", at0, nil, head("Authorization", a)).status; got != 401 && a != "Bearer "+r.admin+" " {
			t.Errorf("Authorization %q: %d", a, got)
		}
	}
}

func TestTokensExpire(t *testing.T) {
	r := newRig(t)
	value, hash := newToken()
	old := store.Token{Name: "old", Role: "admin", Team: AllTeams, Hash: hash, CreatedAt: time.Now().Add(-2 * time.Hour), ExpiresAt: time.Now().Add(-time.Second)}
	if err := r.store.CreateToken(context.Background(), old); err != nil {
		t.Fatal(err)
	}
	r.dial("GET", at0, nil, auth(value)).want(t, 401, CodeUnauthorized, ReasonTokenInvalid)
	g := r.do("POST", base+"/tokens", map[string]any{"name": "brief", "role": "admin", "expiresAt": time.Now().Add(time.Hour)}).want(t, 201, "", "")
	brief := into[TokenCreated](t, g).Value
	r.dial("POST", base+"/tokens", map[string]any{"name": "eternal", "role": "admin"}, auth(brief)).want(t, 403, CodeForbidden, ReasonRole)
	r.dial("POST", base+"/tokens", map[string]any{"name": "briefer", "role": "admin", "expiresAt": time.Now().Add(time.Minute)}, auth(brief)).want(t, 201, "", "")
}

// TestAttack_F09_enumeration: what is not of one's team answers as what does not exist.
func TestAttack_F09_enumeration(t *testing.T) {
	r := newRig(t)
	acme := r.token("acme-admin", "admin", "acme")
	r.do("POST", at0, headers("gh", "token", "x")).want(t, 201, "", "")
	same := func(name string, a, b *got) {
		t.Helper()
		if a.status != b.status || string(a.raw) != string(b.raw) {
			t.Errorf("%s: %d %s, but for what does not exist %d %s", name, a.status, a.raw, b.status, b.raw)
		}
	}
	spec := map[string]any{"spec": headerSpec(map[string]string{"token": "x"})}
	for _, tc := range []struct {
		method, tail string
		body         any
	}{{"GET", "", nil}, {"PUT", "", headers("x", "token", "y")}, {"PATCH", "", `{"status":"disabled"}`}, {"DELETE", "", nil}, {"POST", "/rotate", spec}} {
		there, nowhere := r.dial(tc.method, at0+"/gh"+tc.tail, tc.body, auth(acme)), r.dial(tc.method, at0+"/nowhere"+tc.tail, tc.body, auth(acme))
		there.want(t, 404, CodeNotFound, "")
		same(tc.method+tc.tail, there, nowhere)
		// And a role that may not asks in vain, whether or not it exists.
		if tc.method != "GET" {
			same("read "+tc.method, r.dial(tc.method, at0+"/gh"+tc.tail, tc.body, auth(r.read)), r.dial(tc.method, at0+"/nowhere"+tc.tail, tc.body, auth(r.read)))
		}
	}
	same("token", r.dial("DELETE", base+"/tokens/root-admin", nil, auth(acme)), r.dial("DELETE", base+"/tokens/nobody", nil, auth(acme)))
	same("list", r.dial("GET", at0, nil, auth(acme)), r.dial("GET", at0+"?search=gh", nil, auth(acme)))
	// Without a token every path answers alike.
	same("no token", r.dial("GET", at0+"/gh", nil), r.dial("GET", "/api/v1/nowhere", nil))
	if g := r.dial("GET", base+"/tokens", nil, auth(acme)); strings.Contains(string(g.raw), "root") {
		t.Errorf("tokens of others: %s", g.raw)
	}
	// The same name in two teams is two sources.
	r.dial("POST", at0, headers("gh", "token", "acme's"), auth(acme)).want(t, 201, "", "")
	r.dial("DELETE", at0+"/gh", nil, auth(acme)).want(t, 200, "", "")
	r.do("GET", at0+"/gh", nil).want(t, 200, "", "")
}

func TestTeams(t *testing.T) {
	r := newRig(t)
	acme := r.token("acme-admin", "admin", "acme")
	r.do("POST", at0, headers("gh", "token", "x"), head(TeamHeader, "acme")).want(t, 201, "", "")
	r.do("GET", at0+"/gh", nil).want(t, 404, CodeNotFound, "")
	r.dial("GET", at0+"/gh", nil, auth(acme)).want(t, 200, "", "")
	r.dial("GET", at0, nil, auth(acme), head(TeamHeader, "default")).want(t, 403, CodeForbidden, ReasonTeam)
	r.do("GET", at0, nil, head(TeamHeader, "../x")).want(t, 400, CodeBadRequest, ReasonValidation)
	r.do("POST", base+"/policies/reload", nil, head(TeamHeader, "acme")).want(t, 403, CodeForbidden, ReasonTeam)
	if v := into[PolicyView](t, r.dial("GET", base+"/policies", nil, auth(acme))); v.Sandboxes[0].Team != "acme" {
		t.Errorf("%+v", v)
	}
	r.dial("POST", base+"/tokens", map[string]any{"name": "up", "role": "read", "team": "*"}, auth(acme)).want(t, 403, CodeForbidden, ReasonTeam)
	if tok := into[TokenCreated](t, r.dial("POST", base+"/tokens", map[string]any{"name": "mine", "role": "read"}, auth(acme))); tok.Team != "acme" {
		t.Errorf("%+v", tok.Token)
	}
}

func TestAttack_G09_token_guessing(t *testing.T) {
	t.Run("backoff", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			th, err := newThrottle()
			if err != nil {
				t.Fatal(err)
			}
			looked, began := 0, time.Now()
			for range 100_000 {
				_, hash := newToken()
				if th.wait("127.0.0.1", hash) > 0 { // loopback is no exception
					time.Sleep(time.Millisecond)
					continue
				}
				looked++
				th.failed("127.0.0.1", hash)
			}
			if took := time.Since(began); looked > 40 || took < time.Minute {
				t.Errorf("100,000 guesses: %d looked at in %v", looked, took)
			}
			_, other := newToken()
			if th.wait("192.0.2.1", other) != 0 {
				t.Error("another address waits too")
			}
			time.Sleep(maxWait + forgetAfter)
			if th.wait("127.0.0.1", other) != 0 {
				t.Error("it waits for ever")
			}
		})
	})
	t.Run("addresses", func(t *testing.T) {
		for remote, want := range map[string]string{
			"192.0.2.1:5": "192.0.2.1", "[::ffff:192.0.2.1]:9": "192.0.2.1", "[2001:db8:1:2:3::4]:1": "2001:db8:1:2::/64", "@": "unknown",
		} {
			if got := guesser(remote, 0, false); got != want {
				t.Errorf("%s counts as %s", remote, got)
			}
		}
	})
	r := newRig(t)
	r.dial("GET", at0, nil, auth(r.read)).want(t, 200, "", "") // an honest client was here before
	limited := 0
	for range 60 {
		guess, _ := newToken()
		switch g := r.dial("GET", at0, nil, auth(guess)); g.status {
		case 401:
		case 429:
			g.want(t, 429, CodeRateLimited, "")
			if g.header.Get("Retry-After") == "" {
				t.Error("no Retry-After")
			}
			limited++
		default:
			t.Fatalf("status %d", g.status)
		}
	}
	if limited < 45 {
		t.Errorf("%d of 60 guesses were limited", limited)
	}
	r.dial("GET", at0, nil, auth(r.read)).want(t, 200, "", "")               // and is still served
	r.dial("GET", at0, nil, auth(r.admin)).want(t, 429, CodeRateLimited, "") // a token never seen from here must wait
	r.do("GET", at0, nil).want(t, 200, "", "")
}

func TestAttack_G24_the_store_is_not_trusted_to_compare(t *testing.T) {
	wrong := looseTokens{}
	r := newRig(t, func(o *Options) { wrong.Tokens = o.Tokens; o.Tokens = &wrong })
	value, _ := newToken()
	// The store answers with somebody's token for any hash, as a prefix or truncating index would.
	wrong.any = true
	r.dial("GET", at0, nil, auth(value)).want(t, 401, CodeUnauthorized, ReasonTokenInvalid)
	wrong.any = false
	r.dial("GET", at0, nil, auth(r.read)).want(t, 200, "", "")
	// ETags that share a prefix, a length or all but one character with the right one.
	etag := r.do("POST", at0, headers("gh", "token", "x")).want(t, 201, "", "").header.Get("Etag")
	for _, bad := range []string{etag[:len(etag)-1], etag + "0", `"v1.9"`, strings.ToUpper(etag), strings.Trim(etag, `"`), `""`, "", `"*"`} {
		r.do("DELETE", at0+"/gh", nil, head("If-Match", bad)).want(t, 412, CodePreconditionFailed, ReasonStale)
	}
}

type looseTokens struct {
	store.Tokens
	any bool
}

func (l *looseTokens) TokenByHash(ctx context.Context, hash [32]byte) (store.Token, error) {
	if !l.any {
		return l.Tokens.TokenByHash(ctx, hash)
	}
	all, err := l.ListTokens(ctx)
	if err != nil || len(all) == 0 {
		return store.Token{}, store.ErrNotFound
	}
	return all[0], nil
}
