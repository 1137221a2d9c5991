package proxy_test

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"

	"github.com/egressd/egressd/internal/testbed"
)

const wsCertPolicy = `
apiVersion: egressd/v1
sandboxes:
  - id: one
    team: acme
    identify: {proxyTokens: ["TOKENONE"]}
    network:
      egress:
        trafficRules: [{name: good, action: allow, domains: [good.test]}]
        credentialRules: [{name: cert, credentialRef: cert, domains: [good.test]}]
      credentialBindings:
        - {ref: cert, sourceRef: cert-source, projection: {type: tls_client_certificate}}
`

// A WebSocket that was opened with a client certificate ends with the rule that gave it.
func TestWebSocketWithAClientCertificateEndsWithItsRule(t *testing.T) {
	s := newStack(t, "", options{})
	client := s.bed.CA.ClientCert(t, "sandbox")
	s.put("acme", "cert-source", "static_tls_client_certificate", map[string]any{"staticTLSClientCertificate": map[string]string{
		"certificatePem": testbed.CertPEM(client), "privateKeyPem": testbed.KeyPEM(t, client)}})
	s.use(wsCertPolicy)
	origin := testbed.NewOrigin(t, s.bed.CA, testbed.OriginOptions{ClientCAs: s.bed.CA.Pool(), RequireClientCert: true})
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	c, _, err := websocket.Dial(ctx, strings.Replace(origin.URL("/ws"), "https://", "wss://", 1), &websocket.DialOptions{HTTPClient: s.one()})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.CloseNow() }()
	if err := c.Write(ctx, websocket.MessageText, []byte("hello")); err != nil {
		t.Fatal(err)
	}
	if _, got, err := c.Read(ctx); err != nil || string(got) != "hello" {
		t.Fatalf("%q %v", got, err)
	}
	s.use(strings.Replace(wsCertPolicy, "domains: [good.test]}]\n      credentialBindings", "domains: [good.test], rollout: disabled}]\n      credentialBindings", 1))
	if _, _, err := c.Read(ctx); err == nil || ctx.Err() != nil {
		t.Errorf("the WebSocket outlived the rule of its certificate: %v", err)
	}
}
