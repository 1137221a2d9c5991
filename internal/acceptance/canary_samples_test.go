package acceptance

import (
	"crypto/ed25519"
	"crypto/rand"
	"encoding/pem"
	"strings"
	"testing"

	"golang.org/x/crypto/ssh"

	"github.com/egressd/egressd/internal/testbed"
)

// sample is one spec of a kind with a canary in every field.
type sample struct {
	kind, block string
	fields      map[string]any
	leaves      []string // what may stand nowhere but at the origin
	inject      []string // those of leaves that are projected
}

func (s sample) spec() map[string]any { return map[string]any{s.block: s.fields} }

func (s sample) body(name string) map[string]any {
	return map[string]any{"name": name, "resolverKind": s.kind, "spec": s.spec()}
}

// keyLines are the lines of a PEM text that hold key material.
func keyLines(text string) (out []string) {
	for line := range strings.SplitSeq(text, "\n") {
		if len(line) >= 24 && !strings.HasPrefix(line, "-----") {
			out = append(out, line)
		}
	}
	return out
}

func headersSample() sample {
	token, other, odd := testbed.NewToken(), testbed.NewCanary(), testbed.NewCanary()
	return sample{
		kind: "static_headers", block: "staticHeaders", inject: []string{token, other},
		fields: map[string]any{"values": map[string]string{"token": token, "other": other, "unused": odd}}, leaves: []string{token, other, odd},
	}
}

func basicSample() sample {
	user, password := "user-"+testbed.NewToken(), testbed.NewCanary()
	return sample{
		kind: "static_username_password", block: "staticUsernamePassword", inject: []string{user, password},
		fields: map[string]any{"username": user, "password": password}, leaves: []string{user, password},
	}
}

// certSample bears its canary in the certificate's name too: that would show up if
// anything described the certificate instead of quoting it.
func certSample(t *testing.T, clients, servers *testbed.CA) sample {
	t.Helper()
	name := "canary-" + rand.Text()
	c := clients.ClientCert(t, name)
	cert, key := testbed.CertPEM(c), testbed.KeyPEM(t, c)
	return sample{
		kind: "static_tls_client_certificate", block: "staticTLSClientCertificate",
		fields: map[string]any{"certificatePem": cert, "privateKeyPem": key, "caPem": string(servers.PEM())},
		leaves: append(append(keyLines(cert), keyLines(key)...), name),
	}
}

func sshSample(t *testing.T, encrypted bool) sample {
	t.Helper()
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	s := sample{kind: "static_ssh_private_key", block: "staticSSHPrivateKey", fields: map[string]any{}}
	comment := "canary-" + rand.Text()
	block, err := ssh.MarshalPrivateKey(key, comment)
	if encrypted {
		phrase := testbed.NewCanary()
		s.fields["passphrase"], s.leaves = phrase, append(s.leaves, phrase)
		block, err = ssh.MarshalPrivateKeyWithPassphrase(key, comment, []byte(phrase))
	}
	if err != nil {
		t.Fatal(err)
	}
	text := string(pem.EncodeToMemory(block))
	s.fields["privateKeyPem"] = text
	s.leaves = append(append(s.leaves, keyLines(text)[1:]...), comment) // the first line is the same in all keys
	return s
}

// awsSample has a key id of AWS's form; it is no secret there, and still nobody's business.
func awsSample() sample {
	id, key, token := "CANARY"+rand.Text()[:14], testbed.NewCanary(), testbed.NewToken()
	return sample{
		kind: "aws_access_key", block: "awsAccessKey", inject: []string{id, token},
		fields: map[string]any{"accessKeyId": id, "secretAccessKey": key, "sessionToken": token}, leaves: []string{key, id, token},
	}
}
