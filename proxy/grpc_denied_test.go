package proxy_test

import (
	"net/http"
	"strings"
	"testing"
)

// A client of gRPC reads grpc-status and nothing else; one of gRPC-Web or of HTTP/1.1 reads
// the status of HTTP.
func TestDenialInWordsOfGRPC(t *testing.T) {
	g := attacked(t, options{})
	g.use(strings.Replace(basePolicy, "trafficRules:", `protocolRules: [{name: none, protocol: http, http: {paths: {deniedPrefixes: [/]}}}]
        trafficRules:
          - {name: h2c, action: allow, cidrs: [127.0.0.2/32]}`, 1))
	at := g.bed.Plain.Addr().String()
	for kind, want := range map[string]string{"application/grpc": "7", "application/grpc+proto": "7", "application/grpc-web": "", "text/plain": ""} {
		resp, err := h2cClient(t, g, at).Post("http://"+at+"/x", kind, strings.NewReader("hello"))
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
		status := http.StatusForbidden
		if want != "" {
			status = http.StatusOK
		}
		if got := resp.Header.Get("Grpc-Status"); got != want || resp.StatusCode != status || resp.Header.Get("X-Egressd-Error") != "policy_denied" {
			t.Errorf("%s: grpc-status %q, %s, %v", kind, got, resp.Status, resp.Header)
		}
	}
}
