package acceptance

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/egressd/egressd/internal/testbed"
)

// known is what a writer knows of one source: nothing there, or one version of it. Every
// write has a number of its own, which stands in the description (PUT, PATCH, POST) or in
// the token (all that write a spec).
type known struct {
	exists      bool
	version     uint64
	description string
	token       int64 // number of the write that set the spec
}

// cell is one source with the one writer that changes it.
type cell struct {
	name    string
	bound   bool    // the policy projects it: it can be checked to the value, and not be deleted
	acked   known   // as of the last acknowledged write
	pending []known // what the write under way at the kill would have made of it, if there was one
}

// states are all that the source may be in after a crash.
func (c *cell) states() []known { return append([]known{c.acked}, c.pending...) }

// torture is a daemon that is killed again and again while writers change its sources.
type torture struct {
	t      *testing.T
	d      *daemon
	cells  [][]*cell // by writer
	origin *testbed.Origin
	number atomic.Int64 // of the newest write
	acks   atomic.Int64
	lost   atomic.Int64 // writes whose answer the kill swallowed,
	landed int          // of which so many were there afterwards

	mu    sync.Mutex
	fault string
}

const (
	tortureWriters = 6
	tortureCells   = 4 // of each writer; the first is bound
)

// torturePolicy binds the first source of each writer to a path of its own.
func torturePolicy() string {
	var rules, bindings strings.Builder
	for w := range tortureWriters {
		fmt.Fprintf(&rules, "          - {name: w%[1]d, credentialRef: w%[1]d, protocol: https, domains: [good.test], httpMatch: {paths: [/w%[1]d]}}\n", w)
		fmt.Fprintf(&bindings, "        - {ref: w%[1]d, sourceRef: w%[1]d-0, projection: {type: http_headers, httpHeaders: {headers: [{name: Authorization, valueTemplate: \"Bearer {{ .token }}\"}]}}}\n", w)
	}
	return `apiVersion: egressd/v1
sandboxes:
  - id: one
    identify: {proxyTokens: ["TOKEN"]}
    network:
      egress:
        trafficRules:
          - {name: good, action: allow, domains: [good.test]}
        credentialRules:
` + rules.String() + "      credentialBindings:\n" + bindings.String()
}

// Issue point 10, H01: kill -9 at random points of API writes, 200 times (1,000 times with
// EGRESSD_TORTURE set). After each start, which takes at most 2 s, every acknowledged write
// is there, a write without an answer is there whole or not at all, no acknowledged delete
// is undone, and what is projected is the value that the version stands for.
func TestTortureKill9DuringWrites(t *testing.T) {
	rounds := 200
	if raceOn {
		rounds = 50 // each start takes ten times as long
	}
	if os.Getenv("EGRESSD_TORTURE") != "" {
		rounds = 1000
	}
	ca := testbed.NewCA(t)
	x := &torture{t: t, origin: testbed.NewOrigin(t, ca, testbed.OriginOptions{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = fmt.Fprint(w, r.Header.Get("Authorization"))
	})})}
	for w := range tortureWriters {
		var mine []*cell
		for i := range tortureCells {
			mine = append(mine, &cell{name: fmt.Sprintf("w%d-%d", w, i), bound: i == 0})
		}
		x.cells = append(x.cells, mine)
	}
	x.d = install(t, settings{ca: ca, hosts: map[string]string{"good.test": "127.0.0.2"}, policy: torturePolicy()})
	var slowest time.Duration
	for round := range rounds {
		took := x.d.start()
		slowest = max(slowest, took)
		if took > 2*time.Second*slack {
			t.Errorf("round %d: the start took %v", round, took)
		}
		x.verify(round)
		if t.Failed() {
			t.Fatalf("round %d of %d", round, rounds)
		}
		x.round(time.Duration(rand.Int64N(int64(60 * time.Millisecond))))
		x.d.sane()
	}
	x.d.start()
	x.verify(rounds)
	if got := x.d.cli("", "doctor", "--config", x.d.path("egressd.yaml"), "--listen-proxy", x.d.proxy, "--listen-ops", x.d.ops); got.code != 0 || !strings.Contains(got.stdout, "sources open") {
		t.Errorf("doctor: %s", got)
	}
	x.d.stop()
	t.Logf("%d kills, %d acknowledged writes, %d without an answer (of which %d had been made), slowest start %v", rounds, x.acks.Load(), x.lost.Load(), x.landed, slowest)
	if x.acks.Load() < int64(rounds) || x.landed == 0 || int64(x.landed) == x.lost.Load() {
		t.Error("the kills did not fall into writes")
	}
}

// round lets the writers write until the daemon is killed, after the first has had an
// answer and delay more.
func (x *torture) round(delay time.Duration) {
	var wg sync.WaitGroup
	first := make(chan struct{})
	var once sync.Once
	for _, mine := range x.cells {
		wg.Go(func() {
			for x.write(mine[rand.IntN(len(mine))]) {
				once.Do(func() { close(first) })
			}
		})
	}
	select {
	case <-first:
		time.Sleep(delay)
	case <-time.After(10 * time.Second):
		x.t.Error("no write was answered")
	}
	x.d.kill()
	wg.Wait()
	x.d.api.CloseIdleConnections()
	if x.fault != "" {
		x.t.Fatal(x.fault)
	}
}

// op is one write: how to ask for it and what it makes of the source.
type op struct {
	method, path string
	body         any
	status       int
	then         known
}

// next chooses a write that must succeed in the state that c is in.
func (x *torture) next(c *cell) op {
	n, at, was := x.number.Add(1), "/credential-sources/"+c.name, c.acked
	token, words := fmt.Sprintf("secret-of-write-%d-%s", n, c.name), fmt.Sprintf("write %d", n)
	spec := map[string]any{"name": c.name, "resolverKind": "static_headers", "spec": tokenSpec(token), "description": words}
	if !was.exists {
		return op{http.MethodPost, "/credential-sources", spec, http.StatusCreated, known{true, 1, words, n}}
	}
	switch rand.IntN(6) {
	case 0:
		return op{http.MethodPatch, at, map[string]string{"description": words}, http.StatusOK, known{true, was.version, words, was.token}}
	case 1:
		return op{http.MethodPost, at + "/rotate", map[string]any{"spec": tokenSpec(token)}, http.StatusOK, known{true, was.version + 1, was.description, n}}
	case 2, 3:
		if !c.bound {
			return op{http.MethodDelete, at, nil, http.StatusOK, known{}}
		}
	}
	return op{http.MethodPut, at, spec, http.StatusOK, known{true, was.version + 1, words, n}}
}

// write makes one write and notes what is known after it. It returns false when no answer
// came: the daemon is gone, and the write is there or is not.
func (x *torture) write(c *cell) bool {
	o := x.next(c)
	c.pending = []known{o.then}
	a := x.d.call(o.method, o.path, o.body)
	if a.err != nil {
		x.lost.Add(1)
		return false
	}
	if a.status != o.status {
		x.fail(fmt.Sprintf("%s %s (known: %+v): want %d, got %s", o.method, o.path, c.acked, o.status, a))
		return false
	}
	c.acked, c.pending = o.then, nil
	x.acks.Add(1)
	return true
}

func (x *torture) fail(text string) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.fault = text
}

// verify compares all sources with what is known of them and settles what was pending.
func (x *torture) verify(round int) {
	x.t.Helper()
	var list struct {
		Data []struct {
			Name, Description, Status, Health string
			CurrentVersion                    uint64
		}
	}
	if err := json.Unmarshal(x.d.want(http.StatusOK, http.MethodGet, "/credential-sources", nil).body, &list); err != nil {
		x.t.Fatal(err)
	}
	there := map[string]known{}
	for _, s := range list.Data {
		there[s.Name] = known{exists: true, version: s.CurrentVersion, description: s.Description}
		if s.Status != "active" || s.Health != "ok" {
			x.t.Errorf("round %d: %s is %s, %s", round, s.Name, s.Status, s.Health)
		}
	}
	client := x.d.sandbox(true)
	defer client.CloseIdleConnections()
	for w, mine := range x.cells {
		for _, c := range mine {
			got := there[c.name]
			delete(there, c.name)
			i := slices.IndexFunc(c.states(), func(k known) bool {
				k.token = 0
				return k == got
			})
			if i < 0 {
				x.t.Errorf("round %d: %s is %+v; acknowledged was %+v, under way %+v", round, c.name, got, c.acked, c.pending)
				continue
			}
			x.landed += min(i, 1)
			c.acked, c.pending = c.states()[i], nil
			if c.bound && c.acked.exists {
				x.checkValue(round, client, w, c)
			}
		}
	}
	for name := range there {
		x.t.Errorf("round %d: there is a source %s, which nobody made", round, name)
	}
}

// checkValue asks through the proxy: the origin tells which value it got.
func (x *torture) checkValue(round int, client *sandbox, w int, c *cell) {
	x.t.Helper()
	want := fmt.Sprintf("Bearer secret-of-write-%d-%s", c.acked.token, c.name)
	if a := client.get(x.origin.URL(fmt.Sprintf("/w%d", w))); a.status != http.StatusOK || string(a.body) != want {
		x.t.Errorf("round %d: %s: want %q at the origin, got %s", round, c.name, want, a)
	}
}
