package api

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"flag"
	"fmt"
	"maps"
	"math/big"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"
	"pgregory.net/rapid"

	"github.com/egressd/egressd/internal/testbed"
	"github.com/egressd/egressd/source/static"
)

// sample is one spec of a kind, and every leaf in it.
type sample struct {
	kind, block string
	fields      map[string]any // of the block
	leaves      []string
}

func (s sample) spec() map[string]any { return map[string]any{s.block: s.fields} }

func (s sample) body(name string) map[string]any {
	return map[string]any{"name": name, "resolverKind": s.kind, "spec": s.spec()}
}

// leaf draws a value that cannot occur by chance. It has characters that encodings change.
func leaf(t *rapid.T, label string) string {
	core := rapid.StringMatching(`[a-zA-Z0-9]{14}[ -9;-~]{2,20}`).Draw(t, label)
	return core + `<"&+ /` + core[:3]
}

// pemLeaves are the lines of a PEM text that hold key material, and the text itself.
func pemLeaves(text string) []string {
	out := []string{text}
	for line := range strings.SplitSeq(text, "\n") {
		if len(line) >= 24 && !strings.HasPrefix(line, "-----") {
			out = append(out, line)
		}
	}
	return out
}

// keys are made once: they are slow and their values do not steer anything.
type keys struct {
	certs []sample
	sshes []sample
}

func makeKeys(t *testing.T) keys {
	t.Helper()
	var out keys
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	for i := range 4 {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		must(err)
		tmpl := &x509.Certificate{
			SerialNumber: big.NewInt(int64(i + 1)), Subject: pkix.Name{CommonName: "client"},
			NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Duration(i*20*24+1) * time.Hour),
			ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
		}
		der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
		must(err)
		pk, err := x509.MarshalPKCS8PrivateKey(key)
		must(err)
		cert := string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
		priv := string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pk}))
		out.certs = append(out.certs, sample{
			kind: static.TLSClientCertificate, block: "staticTLSClientCertificate", fields: map[string]any{"certificatePem": cert, "privateKeyPem": priv},
			leaves: append(pemLeaves(cert), pemLeaves(priv)...),
		})
		_, ek, err := ed25519.GenerateKey(rand.Reader)
		must(err)
		s := sample{kind: static.SSHPrivateKey, block: "staticSSHPrivateKey"}
		if i == 0 {
			phrase := testbed.NewCanary()
			b, err := ssh.MarshalPrivateKeyWithPassphrase(ek, "c", []byte(phrase))
			must(err)
			text := string(pem.EncodeToMemory(b))
			s.fields, s.leaves = map[string]any{"privateKeyPem": text, "passphrase": phrase}, append(pemLeaves(text), phrase)
		} else {
			b, err := ssh.MarshalPrivateKey(ek, "c")
			must(err)
			text := string(pem.EncodeToMemory(b))
			s.fields, s.leaves = map[string]any{"privateKeyPem": text}, pemLeaves(text)
		}
		out.sshes = append(out.sshes, s)
	}
	return out
}

func (k keys) draw(t *rapid.T, kind string) sample {
	switch kind {
	case static.Headers:
		values := map[string]any{}
		s := sample{kind: kind, block: "staticHeaders", fields: map[string]any{"values": values}}
		for _, key := range rapid.SliceOfNDistinct(rapid.StringMatching(`[a-z]{1,8}`), 1, 4, rapid.ID).Draw(t, "keys") {
			v := leaf(t, "value")
			values[key] = v
			s.leaves = append(s.leaves, v)
		}
		return s
	case static.UsernamePassword:
		u, p := leaf(t, "username"), leaf(t, "password")
		return sample{kind: kind, block: "staticUsernamePassword", fields: map[string]any{"username": u, "password": p}, leaves: []string{u, p}}
	case static.AWSAccessKey:
		id := rapid.StringMatching(`[A-Z0-9]{20}`).Draw(t, "access key id")
		key, token := leaf(t, "secret access key"), leaf(t, "session token")
		return sample{
			kind: kind, block: "awsAccessKey", leaves: []string{id, key, token},
			fields: map[string]any{static.AccessKeyID: id, static.SecretAccessKey: key, static.SessionToken: token},
		}
	case static.TLSClientCertificate:
		return rapid.SampledFrom(k.certs).Draw(t, "cert")
	}
	return rapid.SampledFrom(k.sshes[1:]).Draw(t, "ssh")
}

// drive pushes two specs of one kind through every route, right and wrong in every way that
// comes to mind, and says how many of the right ways were refused.
func drive(r *rig, name string, a, b sample, tried []string) (refused []string) {
	ok := func(g *got, what string) *got {
		if g.status >= 300 {
			refused = append(refused, fmt.Sprintf("%s: %d %s", what, g.status, g.raw))
		}
		return g
	}
	at := at0 + "/" + name
	key := head(KeyHeader, "canary-"+name)
	ok(r.do("POST", at0, a.body(name), key), "create")
	ok(r.do("POST", at0, a.body(name), key), "create again")
	r.do("POST", at0, b.body(name), key)
	r.do("POST", at0, a.body(name))
	etag := ok(r.do("GET", at, nil), "get").header.Get("Etag")
	ok(r.do("GET", at0, nil), "list")
	ok(r.do("PUT", at, a.body(name)), "put the same")
	ok(r.do("PUT", at, b.body(name)), "put another")
	r.do("PUT", at, a.body(name), head("If-Match", etag))
	ok(r.do("POST", at+"/rotate", map[string]any{"spec": a.spec()}, key), "rotate")
	ok(r.do("POST", at+"/rotate", map[string]any{"spec": a.spec()}, key), "rotate again")
	r.do("POST", at+"/rotate", map[string]any{"spec": b.spec()}, key)
	ok(r.do("PATCH", at, `{"status":"disabled","labels":{"a":"b"}}`), "patch")
	r.do("PATCH", at, map[string]any{"spec": b.spec()})
	driveWrong(r, name, a)
	for _, l := range tried {
		driveLeaf(r, name, a, l+"~") // so that it can be no name: names are readable by contract
	}
	r.world.setFail(errors.New("behind"))
	r.do("PUT", at, b.body(name))
	r.do("POST", at0, b.body(name+"x"))
	r.world.setFail(nil)
	r.world.onView = func() { panic(a) }
	r.do("GET", base+"/policies", nil)
	r.world.onView = nil
	ok(r.do("DELETE", at, nil), "delete")
	r.do("GET", at, nil)
	r.do("DELETE", at+"x", nil)
	for _, rt := range r.s.routes {
		if rt.method == http.MethodGet {
			r.do("GET", strings.Replace(rt.pattern, "{name}", name, 1), nil)
		}
	}
	r.send(r.tcp, "http://"+r.ops+"/metrics", "GET", nil)
	return refused
}

// driveWrong sends the whole spec where it does not belong.
func driveWrong(r *rig, name string, a sample) {
	for _, kind := range []string{static.Headers, static.UsernamePassword, static.TLSClientCertificate, static.SSHPrivateKey, static.AWSAccessKey, "aws_sts", "nope"} {
		body := a.body("wrong")
		body["resolverKind"] = kind
		if kind != a.kind {
			r.do("POST", at0, body)
			r.do("PUT", at0+"/"+name, body)
		}
	}
	extra := maps.Clone(a.fields)
	extra["extra"] = a.leaves
	for _, spec := range []any{
		map[string]any{a.block: extra}, map[string]any{a.block: a.fields, "other": a.fields}, map[string]any{a.block: a.leaves}, a.leaves, a.leaves[0],
		map[string]any{a.block: map[string]any{"values": a.leaves}}, map[string]any{a.block: []any{a.fields}}, a.fields,
	} {
		body := a.body("wrong")
		body["spec"] = spec
		r.do("POST", at0, body)
		r.do("PUT", at0+"/"+name, body)
		r.do("POST", at0+"/"+name+"/rotate", map[string]any{"spec": spec})
	}
	whole, err := json.Marshal(a.body("wrong"))
	if err != nil {
		r.t.Fatal(err)
	}
	text := string(whole)
	for _, body := range []string{
		text[:len(text)-3], text + text, strings.Replace(text, "{", `{"name":"wrong",`, 1), strings.Replace(text, `"spec"`, `"Spec"`, 1), text + "\xff",
		text + strings.Repeat(" ", MaxBody), strings.Replace(text, "{", `{"\ud800":1,`, 1), strings.Repeat("[", 100) + text + strings.Repeat("]", 100),
	} {
		r.do("POST", at0, body)
		r.do("PUT", at0+"/"+name, body)
		r.do("PATCH", at0+"/"+name, body)
	}
	r.do("POST", at0, text, head("Content-Type", "text/plain"))
	r.dial("POST", at0, text)
	r.dial("POST", at0, text, auth(r.read))
	r.do("POST", at0, text, host("evil.test"))
	r.do("POST", base+"/policies/reload", text)
	r.do("POST", base+"/tokens", text)
}

// driveLeaf puts one leaf wherever a client can put a string, apart from the metadata that is
// readable by contract.
func driveLeaf(r *rig, name string, a sample, l string) {
	at := at0 + "/" + name
	swap := func(field string, v any) map[string]any { b := a.body("wrong"); b[field] = v; return b }
	for _, body := range []map[string]any{
		swap("name", l), swap("resolverKind", l), swap("spec", map[string]any{l: l}), swap("spec", map[string]any{a.block: map[string]any{l + " ": l}}),
		swap("spec", map[string]any{"staticHeaders": map[string]any{"values": map[string]any{l + " ": l}}}), swap(l, l), swap("expiresAt", l),
		swap("spec", map[string]any{a.block: map[string]any{"privateKeyPem": l, "certificatePem": l, "username": l + "\n", "password": l + "\x00", "passphrase": l, "accessKeyId": l + "/", "secretAccessKey": l + "\n", "sessionToken": l + "\r"}}),
		swap("allowedDestinations", []string{l + " "}), swap("labels", map[string]string{l + " ": l}), swap("labels", map[string]any{"a": []string{l}}), swap("externalRefs", []any{l}),
	} {
		r.do("POST", at0, body)
		r.do("PUT", at, body)
	}
	r.do("PATCH", at, map[string]any{"status": l})
	r.do("PATCH", at, map[string]any{"expiresAt": l})
	r.do("PATCH", at, map[string]any{l: l})
	r.do("POST", at+"/rotate", map[string]any{"spec": a.spec(), "drain": l})
	r.do("POST", at+"/rotate", map[string]any{"spec": l})
	r.do("POST", base+"/tokens", map[string]any{"name": l, "role": l, "team": l})
	r.do("POST", base+"/policies/explain", map[string]any{"sandbox": l, "url": l, "headers": map[string]string{"Authorization": l}, "method": l, "exec": l, "subsystem": l, "protocol": l})
	escaped := url.PathEscape(l)
	r.do("GET", at0+"/"+escaped, nil)
	r.do("GET", "/"+escaped, nil)
	r.do("DELETE", base+"/tokens/"+escaped, nil)
	r.do("GET", base+"/resolver-kinds/"+escaped, nil)
	for _, p := range append(listParams(), param{name: l}) {
		r.do("GET", at0+"?"+url.QueryEscape(p.name)+"="+url.QueryEscape(l), nil)
	}
	if strings.ContainsAny(l, "\r\n\x00") {
		return // no header can carry it
	}
	for _, h := range []string{"If-Match", KeyHeader, TeamHeader, "Content-Type", "Origin", "Sec-Fetch-Site", "X-Request-Id", "User-Agent", "Cookie"} {
		r.do("PUT", at, a.body(name), head(h, l))
		r.do("POST", at0, a.body(name), head(h, l))
	}
	r.do("GET", at, nil, auth(l), bare("Cookie"))
	r.do("GET", at, nil, head("Authorization", l))
}

// scan looks for leaves in everything that came out since the buffers were emptied.
func scan(t interface {
	Errorf(string, ...any)
	Fatalf(string, ...any)
}, r *rig, leaves []string,
) {
	for where, text := range map[string]string{"answers": r.seen.String(), "logs": r.logs.String()} {
		if len(text) < 1000 {
			t.Fatalf("%d bytes of %s were recorded", len(text), where)
		}
		for i, l := range leaves {
			if found := testbed.Leaks([]byte(text), l); len(found) > 0 {
				t.Errorf("leaf %d is in the %s: %v", i, where, found)
			}
		}
	}
}

// TestAttack_G01_G08_canary: no leaf of a submitted spec stands in anything that comes out:
// answers with their heads, log lines at debug level, metrics, the OpenAPI document.
func TestAttack_G01_G08_canary(t *testing.T) {
	r := newRig(t)
	k := makeKeys(t)
	kinds := []string{}
	for _, kind := range r.s.opt.Kinds.Kinds() {
		kinds = append(kinds, kind.Name)
	}
	if f := flag.Lookup("rapid.checks"); f.Value.String() == f.DefValue {
		if err := f.Value.Set("6"); err != nil { // of each kind, some 300 requests each; more by the flag
			t.Fatal(err)
		}
		defer func() { _ = f.Value.Set(f.DefValue) }()
	}
	n := 0
	for _, kind := range kinds {
		t.Run(kind, func(t *testing.T) {
			rapid.Check(t, func(t *rapid.T) {
				n++
				a, b := k.draw(t, kind), k.draw(t, kind)
				r.seen.Reset()
				r.logs.Reset()
				_ = r.s.guess.fails.Remove(guesser("", r.s.euid, true)) // wrong tokens of the last round
				tried := rapid.SliceOfNDistinct(rapid.SampledFrom(a.leaves), 1, min(2, len(a.leaves)), rapid.ID).Draw(t, "tried")
				if refused := drive(r, fmt.Sprintf("s%d", n), a, b, tried); len(refused) > 0 {
					t.Fatalf("refused: %s", strings.Join(refused, "\n"))
				}
				scan(t, r, slices.Concat(a.leaves, b.leaves))
			})
		})
	}
	t.Run("encrypted key", func(t *testing.T) { // once: its key derivation is slow
		r.seen.Reset()
		r.logs.Reset()
		a, b := k.sshes[1], k.sshes[0]
		if refused := drive(r, "encrypted", a, b, nil); len(refused) > 0 {
			t.Fatalf("refused: %s", strings.Join(refused, "\n"))
		}
		driveLeaf(r, "encrypted", a, b.leaves[len(b.leaves)-1]+"~")
		scan(t, r, slices.Concat(a.leaves, b.leaves))
	})
	t.Run("the scan can find", func(t *testing.T) {
		r.seen.Reset()
		l := testbed.NewCanary()
		body := headers("told", "token", "x")
		body["description"] = l // readable by contract
		r.do("POST", at0, body)
		if len(testbed.Leaks([]byte(r.seen.String()), l)) == 0 {
			t.Error("a canary in plain sight was not found")
		}
	})
}
