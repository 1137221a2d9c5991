package proxy_test

import (
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/egressd/egressd/internal/audit"
	"github.com/egressd/egressd/proxy"
)

// dripped is a body of one byte now and then, for as long as anybody reads it.
type dripped struct {
	every time.Duration
	end   time.Time
}

func (d *dripped) Read(p []byte) (int, error) {
	time.Sleep(d.every)
	if time.Now().After(d.end) {
		return 0, io.EOF
	}
	p[0] = 'x'
	return 1, nil
}

func TestAttack_C23_bodies_that_trickle(t *testing.T) {
	t.Parallel() // it mostly waits
	const stall = 800 * time.Millisecond
	g := attacked(t, options{limits: proxy.Limits{SniffTimeout: time.Second, HandshakeTimeout: 2 * time.Second, StallTimeout: stall}})
	post := func(t *testing.T, c *http.Client, contentType string, every, length time.Duration) (a answer, took time.Duration) {
		t.Helper()
		start := time.Now()
		a = do(t, c, http.MethodPost, g.bed.Good.URL("/upload"), func(r *http.Request) {
			r.Body, r.ContentLength = io.NopCloser(&dripped{every: every, end: start.Add(length)}), -1
			r.Header.Set("Content-Type", contentType)
			if strings.HasPrefix(contentType, "application/grpc") {
				r.Header.Set("Te", "trailers")
			}
		})
		return a, time.Since(start)
	}
	for name, policyYAML := range map[string]string{"streamed": basePolicy, "read whole": placeholderPolicy} {
		g.use(policyYAML)
		bothVersions(t, g.stack, func(t *testing.T, c *http.Client) {
			g.forget()
			a, took := post(t, c, "application/json", 50*time.Millisecond, 20*stall)
			if a.err == nil && a.status != http.StatusRequestTimeout || took > 6*stall {
				t.Errorf("C23 %s: %d, %v after %v", name, a.status, a.err, took)
			}
			g.records.wait(t, func(r audit.Record) bool { return r.Status == http.StatusRequestTimeout && r.Sandbox == "one" })
		})
	}
	g.use(basePolicy)
	t.Run("C23 h2 body that stays away", func(t *testing.T) {
		a, took := post(t, g.client("one", tokenOne, true), "text/plain", 4*stall, 20*stall)
		if a.err == nil && a.status != http.StatusRequestTimeout || took > 6*stall {
			t.Errorf("%d, %v after %v", a.status, a.err, took)
		}
	})
	t.Run("C23 a stream of messages has its own pace", func(t *testing.T) {
		if a, _ := post(t, g.client("one", tokenOne, true), "application/grpc+proto", stall/3, 5*stall); a.err != nil || a.status == http.StatusRequestTimeout {
			t.Errorf("%+v", a)
		}
	})
	t.Run("C23 slow, but not that slow", func(t *testing.T) {
		bothVersions(t, g.stack, func(t *testing.T, c *http.Client) {
			if a, _ := post(t, c, "text/plain", 2*time.Millisecond, 4*stall); a.err != nil || a.status != http.StatusOK {
				t.Errorf("%+v", a)
			}
		})
	})
	g.safe(t)
}
