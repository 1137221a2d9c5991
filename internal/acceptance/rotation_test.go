package acceptance

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/egressd/egressd/internal/testbed"
)

const rotationPolicy = `
apiVersion: egressd/v1
sandboxes:
  - id: one
    identify: {proxyTokens: ["TOKEN"]}
    network:
      egress:
        trafficRules:
          - {name: origins, action: allow, domains: [h2.test, h1.test]}
        credentialRules:
          - {name: token, credentialRef: tok, protocol: https, domains: [h2.test, h1.test]}
      credentialBindings:
        - ref: tok
          sourceRef: tok
          projection:
            type: http_headers
            httpHeaders: {headers: [{name: Authorization, valueTemplate: "Bearer {{ .token }}"}]}
`

// versioned is a token that says which version it is.
func versioned(v int64) string { return fmt.Sprintf("v%d.%s", v, strings.Repeat("x", 24)) }

// versionOf answers which version's token came, "none" without one.
func versionOf(seen *atomic.Int64) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		seen.Add(1)
		auth := r.Header.Values("Authorization")
		if len(auth) == 0 {
			_, _ = io.WriteString(w, "none")
			return
		}
		v, _, _ := strings.Cut(strings.TrimPrefix(auth[0], "Bearer "), ".")
		_, _ = fmt.Fprintf(w, "%s %d", v, len(auth))
	})
}

// rotationRig is a daemon with 64 keep-alive clients: h1 and h2, each towards an origin
// that speaks h2 and one that does not.
type rotationRig struct {
	d       *daemon
	clients []*sandbox
	targets []string
	seen    atomic.Int64 // requests that reached an origin
}

func newRotationRig(t *testing.T) *rotationRig {
	r := &rotationRig{}
	ca := testbed.NewCA(t)
	h2 := testbed.NewOrigin(t, ca, testbed.OriginOptions{IP: "127.0.0.10", Names: []string{"h2.test"}, Handler: versionOf(&r.seen)})
	h1 := testbed.NewOrigin(t, ca, testbed.OriginOptions{IP: "127.0.0.11", Names: []string{"h1.test"}, ALPN: []string{"http/1.1"}, Handler: versionOf(&r.seen)})
	r.d = serve(t, settings{ca: ca, hosts: map[string]string{"h2.test": "127.0.0.10", "h1.test": "127.0.0.11"}, policy: rotationPolicy})
	r.d.add("tok", "static_headers", tokenSpec(versioned(1)))
	for i := range 64 {
		r.clients = append(r.clients, r.d.sandbox(i%2 == 0))
		r.targets = append(r.targets, []string{h2.URL("/"), h1.URL("/")}[i/2%2])
	}
	return r
}

// Issue point 4: rotation under load. 64 clients that keep their connections, 100
// rotations; no request that was started after the answer to a PUT carries an older
// version, none fails, and no client loses its connection.
func TestRotationUnderLoad(t *testing.T) {
	r := newRotationRig(t)
	l := &load{}
	var sent atomic.Int64
	sent.Store(1)
	for i, c := range r.clients {
		l.worker(func(floor int64) string {
			a := c.get(r.targets[i])
			var v int64
			var n int
			if _, err := fmt.Sscanf(string(a.body), "v%d %d", &v, &n); a.status != http.StatusOK || err != nil || n != 1 {
				return "failed: " + a.String()
			}
			if ceiling := sent.Load(); v < floor || v > ceiling {
				return fmt.Sprintf("version %d, though %d was acknowledged before the request and %d is the newest", v, floor, ceiling)
			}
			return ""
		})
	}
	l.floor.Store(1)
	l.start(t)
	for v := int64(2); v <= 101; v++ {
		sent.Store(v)
		if v%4 == 0 {
			r.d.want(http.StatusOK, http.MethodPost, "/credential-sources/tok/rotate", map[string]any{"spec": tokenSpec(versioned(v)), "drain": "graceful"})
		} else {
			r.d.want(http.StatusOK, http.MethodPut, "/credential-sources/tok", putToken(versioned(v)))
		}
		l.floor.Store(v)
		time.Sleep(time.Duration(v%5) * 5 * time.Millisecond)
	}
	l.settle(t)
	l.stop(t, 2000)
	// Connections that carried an older version are closed, also those in use at the time.
	if n := r.d.metric("process_open_fds"); n > 500 {
		t.Errorf("the daemon holds %v descriptors for 64 clients after 100 rotations", n)
	}
	for i, c := range r.clients {
		if n := c.dials.Load(); n != 1 {
			t.Errorf("client %d needed %d connections", i, n)
		}
	}
	var m struct {
		Data struct{ CurrentVersion int64 }
	}
	if err := json.Unmarshal(r.d.want(http.StatusOK, http.MethodGet, "/credential-sources/tok", nil).body, &m); err != nil || m.Data.CurrentVersion != 101 {
		t.Errorf("current version %d, want 101 (%v)", m.Data.CurrentVersion, err)
	}
}

// Issue point 4: disable and delete under load. After the answer to disable every request
// gets 503 and the origin sees none of them; after enable all pass; deleting a bound
// source is 409 with file and line, and works once the policy has let go of it.
func TestDisableAndDeleteUnderLoad(t *testing.T) {
	r := newRotationRig(t)
	const enabled, changing, disabled, unbound = 0, 1, 2, 3
	l := &load{}
	for i, c := range r.clients {
		l.worker(func(phase int64) string {
			a := c.get(r.targets[i])
			after := l.floor.Load()
			good := a.status == http.StatusOK && string(a.body) == "v1 1"
			bare := a.status == http.StatusOK && string(a.body) == "none"
			refused := a.status == http.StatusServiceUnavailable && a.header.Get("X-Egressd-Error") == "source_disabled" && a.header.Get("X-Request-Id") != ""
			switch {
			case phase != after || phase == changing: // begun or answered while it changed
				if good || refused || bare && after == unbound {
					return ""
				}
			case phase == enabled && good, phase == disabled && refused, phase == unbound && bare:
				return ""
			}
			return fmt.Sprintf("phase %d to %d: %s", phase, after, a)
		})
	}
	l.start(t)
	status := func(s string, phase int64) {
		t.Helper()
		l.floor.Store(changing)
		r.d.want(http.StatusOK, http.MethodPatch, "/credential-sources/tok", map[string]string{"status": s})
		l.floor.Store(phase)
		l.settle(t)
	}
	for range 5 {
		status("disabled", disabled)
		before := r.seen.Load()
		l.settle(t)
		l.settle(t)
		if n := r.seen.Load() - before; n != 0 {
			t.Errorf("%d requests reached the origin after disable was acknowledged", n)
		}
		status("active", enabled)
	}

	a := r.d.want(http.StatusConflict, http.MethodDelete, "/credential-sources/tok", nil)
	checkReferrer(t, r.d, a)
	l.settle(t) // a refused delete changes nothing for anybody

	l.floor.Store(changing)
	free, _, _ := strings.Cut(rotationPolicy, "        credentialRules:")
	r.d.write("policy/policy.yaml", expand(free))
	r.d.want(http.StatusOK, http.MethodPost, "/policies/reload", nil)
	l.floor.Store(unbound)
	r.d.want(http.StatusOK, http.MethodDelete, "/credential-sources/tok", nil)
	r.d.want(http.StatusNotFound, http.MethodGet, "/credential-sources/tok", nil)
	l.settle(t)
	l.stop(t, 1000)

	// Bound again, the deleted source is no credential: nothing is sent.
	r.d.write("policy/policy.yaml", expand(rotationPolicy))
	r.d.want(http.StatusOK, http.MethodPost, "/policies/reload", nil)
	before := r.seen.Load()
	if a := r.clients[0].get(r.targets[0]); a.status != http.StatusServiceUnavailable || a.header.Get("X-Egressd-Error") != "source_not_found" || r.seen.Load() != before {
		t.Errorf("a deleted source, bound again: %s", a)
	}
}

// checkReferrer wants the 409 to name the binding's file and line.
func checkReferrer(t *testing.T, d *daemon, a reply) {
	t.Helper()
	line := 1 + strings.Count(rotationPolicy[:strings.Index(rotationPolicy, "- ref: tok")], "\n")
	var e struct {
		Error struct {
			Code    string
			Details struct {
				Reason    string
				Referrers []struct {
					Sandbox, Binding, File string
					Line                   int
				}
			}
		}
	}
	if err := json.Unmarshal(a.body, &e); err != nil {
		t.Fatal(err)
	}
	refs := e.Error.Details.Referrers
	if e.Error.Code != "conflict" || e.Error.Details.Reason != "referenced" || len(refs) != 1 ||
		refs[0].Sandbox != "one" || refs[0].Binding != "tok" || !strings.HasSuffix(refs[0].File, "policy.yaml") || refs[0].Line != line {
		t.Errorf("409 must name sandbox one, binding tok and policy.yaml:%d: %s", line, a)
	}
	got := d.cli("", "source", "delete", "tok", "--yes")
	if got.code != 6 || !strings.Contains(got.stderr, fmt.Sprintf("policy.yaml:%d", line)) {
		t.Errorf("source delete: want exit code 6 and the line, got %s", got)
	}
}
