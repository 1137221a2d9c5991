package proxy_test

import (
	"bufio"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/egressd/egressd/proxy"
	"github.com/egressd/egressd/store"
)

// stream is an answer that goes on until it is cut.
type stream struct {
	name string
	body io.ReadCloser
	br   *bufio.Reader
}

// open holds a connection of every kind open with the credential.
func openStreams(t *testing.T, g *rig) []*stream {
	t.Helper()
	var out []*stream
	for _, h2 := range []bool{false, true} {
		c := g.client("one", tokenOne, h2)
		c.Timeout = 0
		resp, err := c.Get(g.bed.Good.URL("/sse?n=100&ms=300"))
		if err != nil {
			t.Fatal(err)
		}
		s := &stream{name: fmt.Sprintf("sse h2=%v", h2), body: resp.Body, br: bufio.NewReader(resp.Body)}
		t.Cleanup(func() { _ = s.body.Close() })
		if _, err := s.br.ReadString('\n'); err != nil {
			t.Fatal(err)
		}
		out = append(out, s)
	}
	return out
}

// ended waits until the stream breaks off.
func (s *stream) ended(t *testing.T, within time.Duration) {
	t.Helper()
	done := make(chan struct{})
	go func() {
		_, _ = io.Copy(io.Discard, s.br)
		close(done)
	}()
	select {
	case <-done:
	case <-time.After(within):
		t.Errorf("%s goes on", s.name)
	}
}

func (s *stream) goesOn(t *testing.T) {
	t.Helper()
	if _, err := s.br.ReadString('\n'); err != nil {
		t.Errorf("%s: %v", s.name, err)
	}
}

func TestWhatIsUnderWayEndsWithWhatAllowedIt(t *testing.T) {
	for name, change := range map[string]func(t *testing.T, g *rig){
		"policy denies": func(_ *testing.T, g *rig) {
			g.use(strings.Replace(basePolicy, "{name: good, action: allow", "{name: good, action: deny", 1))
		},
		"rule is gone": func(_ *testing.T, g *rig) {
			g.use(strings.Replace(basePolicy, "{name: good-token,", "{name: good-token, rollout: disabled,", 1))
		},
		"sandbox is gone": func(_ *testing.T, g *rig) { g.use(strings.Replace(basePolicy, "id: one", "id: other-one", 1)) },
		"token is revoked": func(_ *testing.T, g *rig) {
			g.use(strings.Replace(basePolicy, "TOKENONE", "sha256:"+strings.Repeat("ab", 32), 1))
		},
		"source is disabled": func(t *testing.T, g *rig) { g.setStatus(t, "gh-source", store.Disabled) },
		"source is deleted": func(t *testing.T, g *rig) {
			if _, err := g.store.Delete(t.Context(), "acme", "gh-source", 0, "test"); err != nil {
				t.Fatal(err)
			}
		},
		"rotate, close": func(_ *testing.T, g *rig) {
			m := g.put("acme", "gh-source", "static_headers", headerSpec("another-fake-token"))
			g.srv.CloseSource("acme", "gh-source", m.CurrentVersion)
		},
		"closed one by one": func(_ *testing.T, g *rig) {
			for _, c := range g.srv.Connections() {
				g.srv.CloseConnection(c.ID)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			g := attacked(t, options{})
			streams := openStreams(t, g)
			change(t, g)
			for _, s := range streams {
				s.ended(t, time.Second)
			}
		})
	}
}

func TestWhatIsUnderWayStaysWhereNothingIsTakenAway(t *testing.T) {
	g := attacked(t, options{})
	streams := openStreams(t, g)
	g.use(basePolicy + "\n# the same\n")
	g.put("acme", "gh-source", "static_headers", headerSpec("another-fake-token")) // graceful
	for _, s := range streams {
		s.goesOn(t)
		s.goesOn(t)
	}
}

func TestConnectionsAreListed(t *testing.T) {
	g := attacked(t, options{})
	openStreams(t, g)
	relay := g.open(t, "evil.test:EVILPORT")
	_, _ = g.talk(relay, string(clientHello(t, "evil.test")), 200*time.Millisecond)
	g.dial(t) // says nothing
	var with, silent int
	var passing *proxy.Connection
	var list []proxy.Connection
	for range 100 { // the silent one has to be accepted first
		if list = g.srv.Connections(); len(list) == 4 {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	for i, c := range list {
		switch {
		case c.Sandbox == "":
			silent++
		case c.Protocol == "tls" && strings.HasPrefix(c.Destination, "evil.test:"):
			passing = &list[i]
		}
		for _, x := range c.Exchanges {
			if x.Source != "gh-source" || x.Version != 1 || x.Method != http.MethodGet || x.Rule != "good-token" || c.Team != "acme" || c.Sandbox != "one" {
				t.Errorf("%+v", x)
			}
			with++
		}
	}
	if with != 2 || silent != 1 || passing == nil || passing.Way != "connect" {
		t.Errorf("%d exchanges, %d unidentified, %+v in %+v", with, silent, passing, list)
	}
	if passing != nil && !g.srv.CloseConnection(passing.ID) {
		t.Error("it could not be closed")
	}
	if _, closed := g.talk(relay, "", time.Second); !closed {
		t.Error("the relay lives")
	}
	if g.srv.CloseConnection(1 << 60) {
		t.Error("a connection that is none was closed")
	}
}

func TestBandwidthOfASandbox(t *testing.T) {
	l := quick()
	l.BandwidthPerSandbox = 256 << 10
	g := attacked(t, options{limits: l})
	start := time.Now()
	a := get(t, g.one(), g.bed.Good.URL("/download?n=524288"))
	if a.err != nil || len(a.body) != 512<<10 {
		t.Fatalf("%v, %d bytes", a.err, len(a.body))
	}
	// 512 KiB at 256 KiB/s, less what a bucket holds at once.
	if d := time.Since(start); d < 1500*time.Millisecond {
		t.Errorf("it took %v", d)
	}
}
