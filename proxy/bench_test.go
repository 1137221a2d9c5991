package proxy_test

import (
	"crypto/tls"
	"io"
	"net/http"
	"testing"

	"github.com/egressd/egressd/internal/h1"
)

// BenchmarkExchange is one keep-alive request through interception with a projected
// header; client and origin run in this process too.
func BenchmarkExchange(b *testing.B) {
	s := ready(b, options{})
	target := s.expand("good.test:GOODPORT")
	status, nc, _ := s.connect(target, "one", tokenOne)
	if status != http.StatusOK {
		b.Fatal(status)
	}
	tc := tls.Client(nc, &tls.Config{ServerName: "good.test", RootCAs: s.roots(), NextProtos: []string{"http/1.1"}})
	cc := h1.NewClientConn(tc, h1.DefaultLimits())
	req, _ := http.NewRequest(http.MethodGet, "https://x/", nil)
	req.Header.Set("User-Agent", "bench")
	req.Header.Set("Accept", "*/*")
	b.ReportAllocs()
	for b.Loop() {
		resp, err := cc.RoundTrip(req, &h1.RoundTripOptions{Target: "/bearer", Host: target, Done: func(bool) {}})
		if err != nil {
			b.Fatal(err)
		}
		if _, err := io.Copy(io.Discard, resp.Body); err != nil || resp.StatusCode != http.StatusOK {
			b.Fatal(resp.StatusCode, err)
		}
	}
}
