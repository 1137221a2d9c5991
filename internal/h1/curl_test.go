package h1

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"net/http"
	"os/exec"
	"strings"
	"testing"
	"time"
)

// TestCurl: a client that we did not write.
func TestCurl(t *testing.T) {
	addr := serve(t, testServer(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/refuse" {
			w.WriteHeader(http.StatusRequestEntityTooLarge)
			_, _ = io.WriteString(w, "too large")
			return
		}
		sum := sha256.New()
		n, err := io.Copy(sum, r.Body)
		if err != nil {
			t.Error(err)
		}
		w.Header()["X-Minor"] = []string{fmt.Sprint(r.ProtoMinor)}
		_, _ = fmt.Fprintf(w, "%s %d %s", r.Method, n, hex.EncodeToString(sum.Sum(nil))[:8])
	}))
	large := bytes.Repeat([]byte("0123456789abcdef"), 512<<10) // 8 MiB: curl asks before it sends
	sum := sha256.Sum256(large)
	largeSum := hex.EncodeToString(sum[:])[:8]
	const emptySum = "e3b0c442"
	for _, c := range []struct {
		name  string
		args  []string
		stdin []byte
		want  []string
		not   string
	}{
		{"GET", nil, nil, []string{"HTTP/1.1 200", "GET 0 " + emptySum}, ""},
		{"two on one connection", []string{"http://" + addr + "/2"}, nil, []string{"GET 0", "Re-using existing connection"}, ""},
		{"POST with Expect", []string{"--data-binary", "@-"}, large, []string{"HTTP/1.1 100 Continue", "POST 8388608 " + largeSum}, "Done waiting for 100-continue"},
		{"POST with Expect, refused", []string{"--data-binary", "@-", "--url", "http://" + addr + "/refuse", "--next"}, large, []string{"HTTP/1.1 413", "too large"}, "100 Continue"},
		{"chunked upload", []string{"-H", "Transfer-Encoding: chunked", "-T", "-"}, large, []string{"PUT 8388608 " + largeSum}, ""},
		{"HEAD", []string{"--head"}, nil, []string{"HTTP/1.1 200", "X-Minor: 1"}, "Transfer-Encoding: chunked\r\nX"},
		{"HTTP 1.0", []string{"--http1.0"}, nil, []string{"GET 0", "X-Minor: 0", "Connection: close"}, "chunked"},
	} {
		t.Run(c.name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
			defer cancel()
			args := append([]string{"--silent", "--show-error", "--verbose", "--noproxy", "*", "--max-time", "8"}, c.args...)
			cmd := exec.CommandContext(ctx, "curl", append(args, "http://"+addr+"/")...)
			cmd.Stdin = bytes.NewReader(c.stdin)
			out, err := cmd.CombinedOutput()
			if err != nil {
				t.Fatalf("%v: %.2000s", err, out)
			}
			for _, w := range c.want {
				if !strings.Contains(string(out), w) {
					t.Errorf("no %q in %.3000s", w, out)
				}
			}
			if c.not != "" && strings.Contains(string(out), c.not) {
				t.Errorf("%q in %.3000s", c.not, out)
			}
		})
	}
}
