package acceptance

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/egressd/egressd/internal/testbed"
)

// swapPolicy is policy A or B. They differ in every layer at once: which port may be
// reached, which path, which headers are projected and from which source. Whoever sees
// one rule of one and one of the other has seen a mixture. apiVersion stands last, so that
// no beginning of the file is a policy by itself.
const swapPolicy = `sandboxes:
  - id: one
    identify: {proxyTokens: ["TOKEN"]}
    network:
      egress:
        trafficRules:
          - {name: both, action: allow, domains: [swap.test]}
          - {name: only-LOWER, action: allow, domains: [LOWER.test]}
        protocolRules:
          - {name: paths-LOWER, protocol: http, domains: [swap.test], http: {paths: {allowedPrefixes: [/both, /LOWER]}}}
        credentialRules:
          - {name: rule-LOWER, credentialRef: ref-LOWER, protocol: https, domains: [swap.test, LOWER.test]}
      credentialBindings:
        - ref: ref-LOWER
          sourceRef: source-LOWER
          projection:
            type: http_headers
            httpHeaders: {headers: [{name: X-Policy, valueTemplate: "UPPER"}, {name: Authorization, valueTemplate: "Bearer {{ .token }}"}, {name: X-Only-UPPER, valueTemplate: "yes"}]}
apiVersion: egressd/v1
`

func swapText(which string) string {
	return expand(strings.NewReplacer("LOWER", strings.ToLower(which), "UPPER", which).Replace(swapPolicy))
}

// swapSeen answers with what of A and of B the request bears.
func swapSeen(w http.ResponseWriter, r *http.Request) {
	_, _ = fmt.Fprintf(w, "%s %s A=%q B=%q", r.Header.Get("X-Policy"), r.Header.Get("Authorization"), r.Header.Get("X-Only-A"), r.Header.Get("X-Only-B"))
}

const (
	wholeA = `A Bearer token-of-a-0123456789 A="yes" B=""`
	wholeB = `B Bearer token-of-b-0123456789 A="" B="yes"`
)

// swapRig is a daemon under policy A with workers that ask for what both allow, for what
// only A allows and for what only B allows.
type swapRig struct {
	d    *daemon
	load *load
	url  map[string]string // by host
	one  []*sandbox
}

func newSwapRig(t *testing.T) *swapRig {
	ca := testbed.NewCA(t)
	r := &swapRig{load: &load{}, url: map[string]string{}}
	hosts := map[string]string{}
	for i, name := range []string{"swap.test", "a.test", "b.test"} {
		ip := fmt.Sprintf("127.0.0.%d", 12+i)
		o := testbed.NewOrigin(t, ca, testbed.OriginOptions{IP: ip, Names: []string{name}, Handler: http.HandlerFunc(swapSeen)})
		hosts[name], r.url[name] = ip, o.URL("")
	}
	r.d = serve(t, settings{ca: ca, hosts: hosts, policy: swapText("A")})
	r.d.add("source-a", "static_headers", tokenSpec("token-of-a-0123456789"))
	r.d.add("source-b", "static_headers", tokenSpec("token-of-b-0123456789"))
	for i := range 16 {
		c := r.d.sandbox(i%2 == 0)
		r.one = append(r.one, c)
		n := i
		r.load.worker(func(floor int64) string {
			n++
			return r.ask(c, n, floor)
		})
	}
	return r
}

// Phases: which policy is in force, as far as was acknowledged. The load's floor is a phase
// plus a multiple of phases that grows with each, so that no two spells of A look the same.
const (
	swapping = 0 // one of them
	inForceA = 1
	inForceB = 2
	phases   = 4
)

// phase says what is in force from now on.
func (r *swapRig) phase(p int64) {
	r.load.floor.Store((r.load.floor.Load()/phases+1)*phases + p)
}

// ask sends the n-th of the kinds of requests and judges the answer by what was in
// force before and after it.
func (r *swapRig) ask(c *sandbox, n int, floor int64) string {
	host, path, a, b := "swap.test", "/both", wholeA, wholeB
	switch n % 5 {
	case 1:
		path, b = "/a/x", ""
	case 2:
		path, a = "/b/x", ""
	case 3:
		host, b = "a.test", ""
	case 4:
		host, a = "b.test", ""
	}
	got := c.get(r.url[host] + path)
	phase := floor % phases
	if r.load.floor.Load() != floor {
		phase = swapping
	}
	matches := func(want string) bool {
		if want != "" {
			return got.status == http.StatusOK && string(got.body) == want
		}
		// Refused per request, or, of a host that may not be reached, the CONNECT itself or,
		// when the swap came behind the CONNECT's answer, its ClientHello.
		return got.status == http.StatusForbidden && got.header.Get("X-Egressd-Error") == "policy_denied" ||
			got.err != nil && host != "swap.test" && (strings.Contains(got.err.Error(), "Forbidden") || strings.Contains(got.err.Error(), "tls: access denied"))
	}
	switch {
	case phase != inForceB && matches(a), phase != inForceA && matches(b):
		return ""
	}
	return fmt.Sprintf("phase %d, %s%s: neither A nor B: %s", phase, host, path, got)
}

// reload makes the daemon read what lies in the directory, in one of three ways.
func (r *swapRig) reload(t *testing.T, n int) {
	t.Helper()
	if n%10 != 9 {
		r.d.want(http.StatusOK, http.MethodPost, "/policies/reload", nil)
		return
	}
	if got := r.d.cli("", "policy", "reload"); got.code != 0 {
		t.Fatalf("policy reload: %s", got)
	}
}

// Issue point 5, H15: a policy swap under load. 120 swaps of two policies that differ in
// several rules; each answer is that of exactly one of them, and after a reload was
// acknowledged that of the new one. Broken files lie there in between.
func TestAttack_H15_policy_swap_under_load(t *testing.T) {
	r := newSwapRig(t)
	r.phase(inForceA)
	r.load.start(t)
	for n := range 120 {
		which, phase := "B", int64(inForceB)
		if n%2 == 1 {
			which, phase = "A", inForceA
		}
		if n%6 == 5 {
			r.breakAndHold(t, n)
		}
		r.phase(swapping)
		r.d.write("policy/policy.yaml", swapText(which))
		r.reload(t, n)
		r.phase(phase)
		time.Sleep(time.Duration(n%4) * 4 * time.Millisecond)
	}
	r.load.settle(t)
	r.load.stop(t, 1500)
	r.d.sane()
}

// breakAndHold puts a file there that does not compile, cut off anywhere or wrong; the
// load's phase stays, so its workers see to it that the old policy is in force.
func (r *swapRig) breakAndHold(t *testing.T, n int) {
	t.Helper()
	text := swapText("A")
	text = text[:rand.IntN(len(text)-1)] // the last byte is a newline
	if n%12 == 11 {
		text = strings.Replace(swapText("B"), "action: allow", "action: alow", 1)
	}
	if err := os.WriteFile(r.d.path("policy/policy.yaml"), []byte(text), 0o600); err != nil { // in place, not by rename
		t.Fatal(err)
	}
	a := r.d.call(http.MethodPost, "/policies/reload", nil)
	if a.status != http.StatusUnprocessableEntity {
		t.Errorf("a broken policy (%d bytes of it): want 422, got %s", len(text), a)
	}
	r.load.settle(t)
}

// Issue point 5: a broken file keeps the old policy in force, and reload, the log, GET
// /policies and the command line say why, with file, line and path.
func TestBrokenPolicyIsNamed(t *testing.T) {
	r := newSwapRig(t)
	text := strings.Replace(swapText("B"), "name: both, action: allow", "name: both, action: alow", 1)
	line := 1 + strings.Count(text[:strings.Index(text, "alow")], "\n")
	file := r.d.path("policy/policy.yaml")
	where := fmt.Sprintf("%s:%d", file, line)
	from := r.d.errout.len()
	r.d.write("policy/policy.yaml", text)

	a := r.d.want(http.StatusUnprocessableEntity, http.MethodPost, "/policies/reload", nil)
	var e struct {
		Error struct {
			Code    string
			Details struct {
				Problems []struct {
					File, Path, Message string
					Line, Column        int
				}
			}
		}
	}
	if err := json.Unmarshal(a.body, &e); err != nil {
		t.Fatal(err)
	}
	ps := e.Error.Details.Problems
	if len(ps) != 1 || ps[0].File != file || ps[0].Line != line || ps[0].Column == 0 || !strings.HasSuffix(ps[0].Path, "trafficRules[0].action") || ps[0].Message == "" {
		t.Errorf("reload: want %s and the path, got %s", where, a)
	}
	for _, part := range []string{`"file":"` + file + `"`, fmt.Sprintf(`"line":%d`, line), "trafficRules[0].action"} {
		if !waitFor(func() bool { return bytes.Contains(r.d.errout.since(from), []byte(part)) }) {
			t.Errorf("%s is not in the log:\n%s", part, r.d.errout.since(from))
		}
	}
	if got := r.d.cli("", "policy", "reload"); got.code != 1 || !strings.Contains(got.stderr, where) {
		t.Errorf("policy reload: want exit code 1 and %s, got %s", where, got)
	}
	if got := r.d.cli("", "policy", "check", r.d.path("policy")); got.code != 1 || !strings.Contains(got.stderr, where) {
		t.Errorf("policy check: want exit code 1 and %s, got %s", where, got)
	}
	if got := r.d.cli("", "policy", "show"); got.code != 0 || !strings.Contains(got.stderr, where) {
		t.Errorf("policy show: want a warning with %s, got %s", where, got)
	}
	r.phase(inForceA)
	if fault := r.ask(r.one[0], 0, r.load.floor.Load()); fault != "" {
		t.Errorf("under the broken file: %s", fault)
	}
	// At boot there is no old policy to keep: the daemon does not start.
	r.d.stop()
	got := command("", nil, "serve", "--config", r.d.path("egressd.yaml"))
	if got.code != 1 || !strings.Contains(got.stderr, where) {
		t.Errorf("serve with a broken policy: want exit code 1 and %s, got %s", where, got)
	}
}

// H15: a half-written file. A writer that takes its time, without a rename and without a
// word to the daemon: the old policy stays until the file is whole, and then, by the watch
// alone, the new one is in force.
func TestAttack_H15_half_written_file(t *testing.T) {
	r := newSwapRig(t)
	r.phase(inForceA)
	r.load.start(t)
	f, err := os.OpenFile(r.d.path("policy/policy.yaml"), os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	text := swapText("B")
	end := len(text) - 2
	for i := 0; i < end; i += 97 {
		if _, err := io.WriteString(f, text[i:min(i+97, end)]); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Duration(rand.IntN(60)) * time.Millisecond)
	}
	time.Sleep(400 * time.Millisecond) // the watch has looked at it by now
	r.load.settle(t)
	r.phase(swapping)
	if _, err := io.WriteString(f, text[end:]); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if !waitFor(func() bool { return bytes.HasPrefix(r.one[0].get(r.url["swap.test"]+"/both").body, []byte("B ")) }) {
		t.Fatal("the watch did not put the whole file in force")
	}
	r.phase(inForceB)
	r.load.settle(t)

	// SIGHUP with a broken file is a reload like any other.
	from := r.d.errout.len()
	if err := os.WriteFile(r.d.path("policy/policy.yaml"), []byte(text[:len(text)/2]), 0o600); err != nil {
		t.Fatal(err)
	}
	r.d.signal(syscall.SIGHUP)
	if !waitFor(func() bool { return bytes.Contains(r.d.errout.since(from), []byte("policy refused")) }) {
		t.Error("the log does not say that the policy was refused")
	}
	r.load.settle(t)
	r.load.stop(t, 500)
}

// waitFor waits up to 10 s.
func waitFor(done func() bool) bool {
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		if done() {
			return true
		}
	}
	return false
}
