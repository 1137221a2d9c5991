package proxy_test

import (
	"fmt"
	"io"
	"net/http"
	"testing"
	"time"

	"github.com/egressd/egressd/store"
)

// A body that is read whole gives a sandbox time between the moment in which its credential is
// resolved and the one in which its request leaves.
func TestTakenAwayWhileABodyComes(t *testing.T) {
	for name, change := range map[string]func(t *testing.T, g *rig){
		"nothing":  func(*testing.T, *rig) {},
		"disabled": func(t *testing.T, g *rig) { g.setStatus(t, "gh-source", store.Disabled) },
		"deleted": func(t *testing.T, g *rig) {
			if _, err := g.store.Delete(t.Context(), "acme", "gh-source", 0, "test"); err != nil {
				t.Fatal(err)
			}
			time.Sleep(200 * time.Millisecond) // until it is in force
		},
		"rotated, close": func(_ *testing.T, g *rig) {
			m := g.put("acme", "gh-source", "static_headers", headerSpec("another-fake-token"))
			g.srv.CloseSource("acme", "gh-source", m.CurrentVersion)
		},
	} {
		for _, h2 := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s h2=%v", name, h2), func(t *testing.T) {
				g := attacked(t, options{})
				g.use(placeholderPolicy)
				status, code := g.slowPost(t, h2, func() { change(t, g) })
				switch got := g.bed.Good.Requests(); {
				case name == "nothing" && (status != http.StatusOK || len(got) != 1):
					t.Errorf("status %d, the origin got %+v", status, got)
				case name != "nothing" && (status != http.StatusServiceUnavailable || code == "" || len(got) > 0):
					t.Errorf("status %d, %q, the origin got %+v", status, code, got)
				}
			})
		}
	}
}

// slowPost does something when the credential has been resolved and the body is still coming.
func (g *rig) slowPost(t *testing.T, h2 bool, meanwhile func()) (status int, code string) {
	t.Helper()
	r, w := io.Pipe()
	req, err := http.NewRequest(http.MethodPost, g.bed.Good.URL("/echo"), r)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "text/plain")
	done := make(chan *http.Response, 1)
	go func() {
		defer close(done)
		resp, err := g.client("one", tokenOne, h2).Do(req)
		if err != nil {
			t.Error(err)
			return
		}
		done <- resp
	}()
	_, _ = io.WriteString(w, "say EGD-PLACE")
	for range 300 {
		if !g.resolver.LastResolved("acme", "gh-source").IsZero() {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	time.Sleep(50 * time.Millisecond)
	meanwhile()
	_, _ = io.WriteString(w, "HOLDER-1.")
	_ = w.Close()
	resp := <-done
	if resp == nil {
		t.FailNow()
	}
	defer func() { _ = resp.Body.Close() }()
	_, _ = io.Copy(io.Discard, resp.Body)
	return resp.StatusCode, resp.Header.Get("X-Egressd-Error")
}
