package acceptance

import (
	"crypto/tls"
	"fmt"
	"net/http"
	"testing"
	"time"

	"github.com/egressd/egressd/internal/testbed"
)

const mtlsPolicy = `
apiVersion: egressd/v1
sandboxes:
  - id: one
    identify: {proxyTokens: ["TOKEN"]}
    network:
      egress:
        trafficRules:
          - {name: all, action: allow, domains: [alone.test, both.test, asks.test]}
        credentialRules:
          - {name: alone-cert, credentialRef: cert, protocol: tls, domains: [alone.test]}
          - {name: both-cert, credentialRef: cert, protocol: tls, domains: [both.test]}
          - {name: both-token, credentialRef: token, protocol: https, domains: [both.test]}
          - {name: asks-token, credentialRef: token, protocol: https, domains: [asks.test]}
      credentialBindings:
        - {ref: cert, sourceRef: client-cert, projection: {type: tls_client_certificate}}
        - ref: token
          sourceRef: token
          projection:
            type: http_headers
            httpHeaders: {headers: [{name: Authorization, valueTemplate: "Bearer {{ .token }}"}]}
`

// mtlsBed is one origin that demands a certificate for alone.test and one for both.test
// (which wants a bearer token besides), and one that takes any certificate or none.
type mtlsBed struct {
	ca, clients       *testbed.CA
	alone, both, asks *testbed.Origin
}

func newMTLSBed(t *testing.T, token string) *mtlsBed {
	t.Helper()
	b := &mtlsBed{ca: testbed.NewCA(t), clients: testbed.NewCA(t)}
	demand := func(ip, name string) *testbed.Origin {
		return testbed.NewOrigin(t, b.ca, testbed.OriginOptions{IP: ip, Names: []string{name}, ClientCAs: b.clients.Pool(), RequireClientCert: true, Bearer: token})
	}
	b.alone, b.both = demand("127.0.0.7", "alone.test"), demand("127.0.0.8", "both.test")
	b.asks = testbed.NewOrigin(t, b.ca, testbed.OriginOptions{IP: "127.0.0.9", Names: []string{"asks.test"}, RequestClientCert: true, Bearer: token})
	return b
}

func (b *mtlsBed) hosts() map[string]string {
	return map[string]string{"alone.test": "127.0.0.7", "both.test": "127.0.0.8", "asks.test": "127.0.0.9"}
}

func certSpec(t testing.TB, c tls.Certificate) map[string]any {
	return map[string]any{"staticTLSClientCertificate": map[string]any{"certificatePem": testbed.CertPEM(c), "privateKeyPem": testbed.KeyPEM(t, c)}}
}

// Issue point 3: an origin that requires a client certificate answers through egressd for
// the bound host, alone and together with an injected header; another origin that asks
// for one gets none, though its requests carry the other credential.
func TestClientCertificate(t *testing.T) {
	token := testbed.NewToken()
	b := newMTLSBed(t, token)
	d := serve(t, settings{ca: b.ca, hosts: b.hosts(), policy: mtlsPolicy})

	// Without the source nothing is sent, rather than something without a certificate.
	one := d.sandbox(false)
	if a := one.get(b.alone.URL("/cert")); a.status != http.StatusServiceUnavailable || a.header.Get("X-Egressd-Error") != "source_not_found" {
		t.Fatalf("before the source is there: %s", a)
	}
	d.add("client-cert", "static_tls_client_certificate", certSpec(t, b.clients.ClientCert(t, "sandbox-one")))
	d.add("token", "static_headers", tokenSpec(token))

	for _, h2 := range []bool{false, true} {
		t.Run(fmt.Sprintf("h2=%v", h2), func(t *testing.T) {
			for _, o := range []*testbed.Origin{b.alone, b.both, b.asks} {
				o.Reset()
			}
			c := d.sandbox(h2)
			for _, w := range []struct {
				o      *testbed.Origin
				path   string
				status int
				body   string
			}{
				{b.alone, "/cert", 200, "sandbox-one\n"},
				{b.alone, "/bearer", 401, "bearer token wanted\n"}, // the certificate alone, no header
				{b.both, "/cert", 200, "sandbox-one\n"},
				{b.both, "/bearer", 200, "authorized\n"},
				{b.asks, "/cert", 401, "client certificate wanted\n"},
				{b.asks, "/bearer", 200, "authorized\n"},
			} {
				if a := c.get(w.o.URL(w.path)); a.status != w.status || string(a.body) != w.body {
					t.Errorf("%s: want %d %q, got %s", w.o.URL(w.path), w.status, w.body, a)
				}
			}
			if got := b.both.Last(t); got.ClientCert != "sandbox-one" || got.Header.Get("Authorization") != "Bearer "+token {
				t.Errorf("both at once: certificate %q, %d Authorization fields", got.ClientCert, len(got.Header["Authorization"]))
			}
		})
	}
	for _, c := range b.asks.Conns() {
		if c.ClientCert != "" || c.HandshakeErr != "" {
			t.Errorf("the origin that merely asked: certificate %q, handshake %q", c.ClientCert, c.HandshakeErr)
		}
	}
	if len(b.asks.Conns()) == 0 {
		t.Error("the origin that merely asks saw no connection")
	}
	testbed.NoLeak(t, "what the asking origin got", b.asks.Captured(), "sandbox-one")
}

// Issue points 3 and 4: a rotated client certificate is the one that the next request's
// connection shows, though connections of the old one are pooled; a disabled one cuts all.
func TestClientCertificateRotation(t *testing.T) {
	b := newMTLSBed(t, testbed.NewToken())
	d := serve(t, settings{ca: b.ca, hosts: b.hosts(), policy: mtlsPolicy})
	d.add("client-cert", "static_tls_client_certificate", certSpec(t, b.clients.ClientCert(t, "v1")))
	l := &load{}
	for i := range 16 {
		c := d.sandbox(i%2 == 0)
		l.worker(func(floor int64) (fault string) {
			a := c.get(b.alone.URL("/cert"))
			var v int64
			if _, err := fmt.Sscanf(string(a.body), "v%d", &v); a.status != http.StatusOK || err != nil {
				return "failed: " + a.String()
			}
			if v < floor {
				return fmt.Sprintf("v%d after v%d was acknowledged", v, floor)
			}
			return ""
		})
	}
	l.floor.Store(1)
	l.start(t)
	for v := int64(2); v <= 21; v++ {
		spec := certSpec(t, b.clients.ClientCert(t, fmt.Sprintf("v%d", v)))
		d.want(http.StatusOK, http.MethodPut, "/credential-sources/client-cert", map[string]any{"resolverKind": "static_tls_client_certificate", "spec": spec})
		l.floor.Store(v)
		time.Sleep(15 * time.Millisecond)
	}
	l.stop(t, 500)

	d.want(http.StatusOK, http.MethodPatch, "/credential-sources/client-cert", map[string]string{"status": "disabled"})
	before := len(b.alone.Requests())
	for _, h2 := range []bool{false, true} {
		if a := d.sandbox(h2).get(b.alone.URL("/cert")); a.status != http.StatusServiceUnavailable || a.header.Get("X-Egressd-Error") != "source_disabled" {
			t.Errorf("after disable: %s", a)
		}
	}
	if after := len(b.alone.Requests()); after != before {
		t.Errorf("%d requests reached the origin after its source was disabled", after-before)
	}
}
