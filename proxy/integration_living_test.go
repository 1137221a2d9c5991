package proxy_test

import (
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/egressd/egressd/internal/audit"
	"github.com/egressd/egressd/internal/testbed"
	"github.com/egressd/egressd/proxy"
	"github.com/egressd/egressd/store"
)

// TestLiving: what is open of each protocol ends within one second with what allowed it, and
// nothing else does.
func TestLiving(t *testing.T) {
	f := newFarm(t, proxy.Limits{SniffTimeout: 2 * time.Second, HandshakeTimeout: 8 * time.Second, StallTimeout: 50 * time.Second})
	f.use(f.policy(nil))
	others := f.openAll(t, sandboxTwo)
	replace := func(old, by string) func(*testing.T) {
		return func(*testing.T) { f.use(f.policy(func(s string) string { return strings.ReplaceAll(s, old, by) })) }
	}
	sources := func(do func(name string)) func(*testing.T) {
		return func(*testing.T) {
			for _, name := range []string{"tok", "login", "key"} {
				do(name)
			}
		}
	}
	all, credentialed := func(*living) bool { return true }, func(l *living) bool { return l.source != "" }
	for _, tc := range []struct {
		name   string
		change func(t *testing.T)
		ends   func(*living) bool
	}{
		{"policy denies", replace("action: allow", "action: deny"), all},
		{"the traffic rule goes", func(t *testing.T) {
			f.use(f.policy(func(s string) string {
				return strings.NewReplacer("domains: [api.test, old.test, free.test, ssh.test, redis.test, pg.test, mqtt.test, socks.test]", "domains: [x.test]", "domains: [echo.test], ", "domains: [y.test], ").Replace(s)
			}))
		}, all},
		{"the credential rules go", replace("credentialRef: ", "rollout: disabled, credentialRef: "), credentialed},
		{"the bindings name other sources", func(t *testing.T) {
			f.use(f.policy(func(s string) string {
				return strings.NewReplacer("sourceRef: tok", "sourceRef: tok2", "sourceRef: key", "sourceRef: key2", "sourceRef: login", "sourceRef: login2").Replace(s)
			}))
		}, credentialed},
		{"another way out", replace("egress:", "egress:\n        proxy: {type: socks5, address: \"127.0.0.1:9\"}"), all},
		{"sources are disabled", sources(func(name string) { f.setStatus(t, name, store.Disabled) }), credentialed},
		{"sources are deleted", sources(func(name string) {
			if _, err := f.store.Delete(t.Context(), "acme", name, 0, "test"); err != nil {
				t.Fatal(err)
			}
		}), credentialed},
		{"rotated, and closed", func(*testing.T) {
			before := map[string]uint64{}
			for _, name := range []string{"tok", "login", "key"} {
				m, err := f.store.Meta(t.Context(), "acme", name)
				if err != nil {
					t.Fatal(err)
				}
				before[name] = m.CurrentVersion
			}
			f.put("acme", "tok", "static_headers", headerSpec("another"))
			f.put("acme", "login", "static_username_password", basicSpec("app", "another"))
			key, _ := newSSHKey(t)
			f.put("acme", "key", "static_ssh_private_key", map[string]any{"staticSSHPrivateKey": map[string]string{"privateKeyPem": key}})
			for name, v := range before {
				f.srv.CloseSource("acme", name, v+1)
			}
		}, credentialed},
		{"the token is revoked", replace(tokenHash(tokenOne), "sha256:"+strings.Repeat("ab", 32)), all},
		{"the sandbox is gone", replace("id: one", "id: another"), all},
		{"the lease is over", func(*testing.T) {
			end := time.Now().Add(700 * time.Millisecond)
			f.use(f.policy(func(s string) string {
				return strings.Replace(s, "identify: {", "identify: {leaseUntil: \""+end.Format(time.RFC3339Nano)+"\", ", 1)
			}))
			time.Sleep(time.Until(end))
		}, all},
		{"closed one by one", func(*testing.T) {
			for _, c := range f.srv.Connections() {
				if c.Sandbox == "one" && !f.srv.CloseConnection(c.ID) {
					t.Errorf("%+v was not closed", c)
				}
			}
		}, all},
	} {
		t.Run(tc.name, func(t *testing.T) {
			f.t = t
			f.use(f.policy(nil))
			opened := f.openAll(t, sandboxOne)
			tc.change(t)
			var ending []*living
			for _, l := range opened {
				if tc.ends(l) {
					ending = append(ending, l)
				}
			}
			allEnd(t, ending)
			for _, l := range opened {
				if !tc.ends(l) && l.ping() != nil {
					t.Errorf("%s has ended", l.name)
				}
			}
			for _, l := range others {
				if err := l.ping(); err != nil {
					t.Errorf("%s of the other sandbox: %v", l.name, err)
				}
			}
			for _, name := range []string{"tok", "login", "key"} {
				if m, err := f.store.Meta(t.Context(), "acme", name); err == nil && m.Status == store.Disabled {
					f.setStatus(t, name, store.Active)
				}
			}
			f.sources("acme")
		})
	}
	f.t = t
	f.use(f.policy(nil))
	t.Run("nothing ends when nothing is taken away", func(t *testing.T) {
		opened := append(f.openAll(t, sandboxOne), others...)
		f.use(f.policy(nil) + "\n# the same\n")
		f.put("acme", "login", "static_username_password", basicSpec("app", "another"))
		f.put("acme", "tok", "static_headers", headerSpec("another"))
		for _, l := range opened {
			if err := l.ping(); err != nil {
				t.Errorf("%s: %v", l.name, err)
			}
		}
	})
	for protocol, rule := range map[string]string{"redis": "redis", "postgres": "pg", "mqtt": "mqtt", "socks5": "socks", "ssh": "ssh", "websocket": "api", "https": "api"} {
		f.records.wait(t, func(a audit.Record) bool {
			return a.Sandbox == "one" && a.Team == "acme" && a.Protocol == protocol && a.CredentialRule == rule && a.Source != "" && a.Version > 0 && a.BytesOut > 0 && a.Duration > 0
		})
	}
	f.clean(t)
}

// The head of a stream does not wait for its first byte.
func TestHeadsLeaveAtOnce(t *testing.T) {
	t.Parallel()
	g := attacked(t, options{})
	for name, alpn := range map[string][]string{"h2 origin": nil, "h1 origin": {"http/1.1"}} {
		t.Run(name, func(t *testing.T) {
			seen := make(chan struct{})
			origin := testbed.NewOrigin(t, g.bed.CA, testbed.OriginOptions{ALPN: alpn, Mount: map[string]http.Handler{"/late": http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				_ = http.NewResponseController(w).Flush()
				select {
				case <-seen:
				case <-r.Context().Done():
				}
				_, _ = io.WriteString(w, "body")
			})}})
			bothVersions(t, g.stack, func(t *testing.T, c *http.Client) {
				c.Timeout = 3 * time.Second
				resp, err := c.Get(origin.URL("/late"))
				if err != nil {
					t.Fatal(err)
				}
				defer func() { _ = resp.Body.Close() }()
				seen <- struct{}{}
				if b, err := io.ReadAll(resp.Body); err != nil || string(b) != "body" {
					t.Errorf("%q %v", b, err)
				}
			})
		})
	}
}
