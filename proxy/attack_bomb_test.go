package proxy_test

import (
	"bytes"
	"compress/gzip"
	"fmt"
	"io"
	"net/http"
	"runtime"
	"strings"
	"testing"

	"github.com/andybalholm/brotli"

	"github.com/egressd/egressd/internal/testbed"
)

// An origin answers with little that becomes very much, where egressd looks into answers.
func TestAttack_C30_bombs_for_the_scrubber(t *testing.T) {
	zeros := make([]byte, 1<<20)
	bomb := func(w io.WriteCloser, mib int) {
		for range mib {
			_, _ = w.Write(zeros)
		}
		_ = w.Close()
	}
	var gz, br, inner, nested bytes.Buffer
	bomb(gzip.NewWriter(&gz), 1024)
	bomb(brotli.NewWriterLevel(&br, 5), 1024)
	bomb(gzip.NewWriter(&inner), 256)
	w := gzip.NewWriter(&nested)
	_, _ = w.Write(inner.Bytes())
	_ = w.Close()
	g := attacked(t, options{})
	serve := func(coding string, body []byte) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Encoding", coding)
			w.Header().Set("Content-Type", "application/json")
			_, _ = w.Write(body)
		})
	}
	origin := testbed.NewOrigin(t, g.bed.CA, testbed.OriginOptions{IP: "127.0.0.2", Names: []string{"good.test"}, Mount: map[string]http.Handler{
		"/bomb/gzip": serve("gzip", gz.Bytes()), "/bomb/br": serve("br", br.Bytes()), "/bomb/twice": serve("gzip, gzip", nested.Bytes()), "/bomb/inner": serve("gzip", nested.Bytes()),
	}})
	scrub := strings.Replace(basePolicy, "domains: [good.test]}\n      credentialBindings", "domains: [good.test], scrub: true}\n      credentialBindings", 1)
	mcp := strings.Replace(basePolicy, "credentialRules:", "protocolRules:\n          - {name: tools, protocol: mcp, domains: [good.test], mcp: {tools: {allowed: [look]}}}\n        credentialRules:", 1)
	for name, policyYAML := range map[string]string{"scrub": scrub, "mcp": mcp} {
		g.use(policyYAML)
		bothVersions(t, g.stack, func(t *testing.T, c *http.Client) {
			for _, path := range []string{"/bomb/gzip", "/bomb/br", "/bomb/twice"} {
				t.Run("C30 "+name+" "+path, func(t *testing.T) {
					var before, after runtime.MemStats
					runtime.ReadMemStats(&before)
					resp, err := c.Get(origin.URL(path))
					n := int64(0)
					if err == nil {
						n, err = io.Copy(io.Discard, resp.Body)
						_ = resp.Body.Close()
						if err == nil && resp.StatusCode != http.StatusBadGateway {
							t.Errorf("%d and %d bytes, to a clean end", resp.StatusCode, n)
						}
					}
					runtime.ReadMemStats(&after)
					if n > 64<<20 {
						t.Errorf("%d MiB were let through", n>>20)
					}
					if grown := int64(after.HeapSys) - int64(before.HeapSys); grown > 128<<20 {
						t.Errorf("the heap grew by %d MiB", grown>>20)
					}
				})
			}
		})
	}
	g.use(scrub)
	t.Run("C30 what is inside is not opened", func(t *testing.T) {
		a := get(t, g.one(), origin.URL("/bomb/inner"))
		if a.err != nil || a.status != http.StatusOK || a.body != inner.String() {
			t.Errorf("%d, %d bytes, %v", a.status, len(a.body), a.err)
		}
	})
	t.Run("C30 requests are not opened", func(t *testing.T) {
		a := do(t, g.one(), http.MethodPost, origin.URL("/upload"), func(r *http.Request) {
			r.Body, r.ContentLength = io.NopCloser(bytes.NewReader(gz.Bytes())), int64(gz.Len())
			r.Header.Set("Content-Encoding", "gzip")
		})
		reqs := origin.Requests()
		got := reqs[len(reqs)-1]
		if a.err != nil || got.BodySHA256 != sum(gz.String()) || fmt.Sprint(got.Header["Content-Encoding"]) != "[gzip]" {
			t.Errorf("%+v: %+v", a, got)
		}
	})
	g.use(basePolicy)
	g.safe(t)
}
