package proxy_test

import (
	"bufio"
	"context"
	"crypto/ed25519"
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
	"golang.org/x/crypto/ssh"

	"github.com/egressd/egressd/inject"
	"github.com/egressd/egressd/internal/audit"
	"github.com/egressd/egressd/internal/certs"
	"github.com/egressd/egressd/internal/netguard"
	"github.com/egressd/egressd/internal/testbed"
	"github.com/egressd/egressd/policy"
	"github.com/egressd/egressd/proxy"
	"github.com/egressd/egressd/source"
	"github.com/egressd/egressd/source/static"
	"github.com/egressd/egressd/store"
	"github.com/egressd/egressd/store/memory"
)

// stack is the whole data plane on loopback: memory store, resolver, policy,
// injectors and a proxy, in front of the testbed's origins.
type stack struct {
	t        testing.TB
	bed      *testbed.Bed
	srv      *proxy.Server
	store    *memory.Store
	resolver *source.Resolver
	kinds    *source.Registry
	ca       *certs.Authority
	guard    *netguard.Guard
	registry *prometheus.Registry
	addr     string
	records  *records
	logs     *observer.ObservedLogs
	cancel   context.CancelFunc
	done     sync.WaitGroup
}

// records is the audit log of a test.
type records struct {
	mu  sync.Mutex
	all []audit.Record
}

func (r *records) Write(a *audit.Record) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.all = append(r.all, *a)
}

func (r *records) list() []audit.Record {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]audit.Record(nil), r.all...)
}

// wait returns the first record that match accepts, within a second.
func (r *records) wait(t testing.TB, match func(audit.Record) bool) audit.Record {
	t.Helper()
	for deadline := time.Now().Add(3 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		for _, a := range r.list() {
			if match(a) {
				return a
			}
		}
		if time.Now().After(deadline) {
			t.Fatalf("no such audit record; have %+v", r.list())
		}
	}
}

const (
	tokenOne = "proxy-token-of-sandbox-one"
	tokenTwo = "proxy-token-of-sandbox-two"
	canary   = "egressd-canary-7Qm2VxT9Lr4Kp8Zs"
	canary2  = "egressd-canary-of-team-two-5Hd8"
)

type options struct {
	limits proxy.Limits
	hosts  map[string]string
	allow  []netip.Prefix
	ns     []string

	revoked func(*testbed.Bed) *certs.Revocations
	guard   func(*netguard.Guard) proxy.Guard
}

// newStack starts a data plane with policyYAML, in which PORT, PLAIN, EVIL and so on
// stand for the origins' ports (see expand).
func newStack(t testing.TB, policyYAML string, o options) *stack {
	t.Helper()
	s := &stack{t: t, bed: testbed.New(t), records: &records{}, registry: prometheus.NewRegistry()}
	var err error
	if s.ca, err = certs.NewEphemeral(certs.Options{}); err != nil {
		t.Fatal(err)
	}
	sealer, opener, err := store.EphemeralKeys()
	if err != nil {
		t.Fatal(err)
	}
	s.store = memory.New(sealer)
	if s.kinds, err = source.NewRegistry(static.Kinds()...); err != nil {
		t.Fatal(err)
	}
	s.resolver = source.NewResolver(s.store, opener, s.kinds, source.Options{
		OnInvalidate: []func(string, string){func(team, name string) { s.srv.SourceChanged(team, name) }},
	})
	hosts := s.bed.Hosts()
	for k, v := range o.hosts {
		hosts[k] = v
	}
	addrs := map[string]netip.Addr{}
	for k, v := range hosts {
		addrs[k] = netip.MustParseAddr(v)
	}
	ln := listenApart(t)
	s.addr = ln.Addr().String()
	if o.allow == nil {
		o.allow = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}
	}
	s.guard, err = netguard.New(netguard.Options{Hosts: addrs, Resolvers: o.ns, AllowCIDRs: o.allow, LookupTimeout: 2 * time.Second,
		Own: func() []netip.AddrPort { return []netip.AddrPort{netip.MustParseAddrPort(s.addr)} }})
	if err != nil {
		t.Fatal(err)
	}
	var revoked *certs.Revocations
	if o.revoked != nil {
		revoked = o.revoked(s.bed)
	}
	var guard proxy.Guard = s.guard
	if o.guard != nil {
		guard = o.guard(s.guard)
	}
	core, logs := observer.New(zap.DebugLevel)
	s.logs = logs
	s.srv, err = proxy.New(proxy.Options{Logger: zap.New(core), Audit: s.records, Registry: s.registry, Leaves: s.ca, Guard: guard, Roots: s.bed.CA.Pool(), Revoked: revoked, SSHHosts: sshHosts(t), Limits: o.limits})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	s.cancel = cancel
	s.done.Go(func() { _ = s.resolver.Run(ctx) })
	s.done.Go(func() {
		if err := s.srv.Serve(ctx, ln); err != nil {
			t.Errorf("serve: %v", err)
		}
	})
	t.Cleanup(s.close)
	for deadline := time.Now().Add(5 * time.Second); !s.resolver.Live(); time.Sleep(time.Millisecond) { // it begins with an empty cache
		if time.Now().After(deadline) {
			t.Fatal("the resolver does not follow the store")
		}
	}
	if policyYAML != "" {
		s.use(policyYAML)
	}
	return s
}

// oneKey is the host key of every host.
type oneKey struct{ ssh.Signer }

func (k oneKey) HostSigners(string, uint16) ([]ssh.Signer, error) { return []ssh.Signer{k.Signer}, nil }

func sshHosts(t testing.TB) proxy.SSHHosts {
	t.Helper()
	_, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	signer, err := ssh.NewSignerFromKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return oneKey{signer}
}

// listenApart takes a port that no origin gets by asking for any: origins are on
// addresses of this machine too, where egressd's own port is never dialled.
func listenApart(t testing.TB) net.Listener {
	t.Helper()
	for range 100 {
		if ln, err := net.Listen("tcp4", fmt.Sprintf("127.0.0.1:%d", 20000+rand.IntN(12000))); err == nil {
			return ln
		}
	}
	t.Fatal("no free port below the ephemeral range")
	return nil
}

func (s *stack) close() {
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Second)
	defer cancel()
	_ = s.srv.Shutdown(ctx)
	s.cancel()
	s.done.Wait()
	s.resolver.Close()
	s.guard.Close()
	_ = s.store.Close()
}

// expand puts the origins' ports into a policy or a URL.
func (s *stack) expand(text string) string {
	for name, port := range map[string]uint16{
		"GOODPORT": s.bed.Good.Port(), "PLAINPORT": s.bed.Plain.Port(), "EVILPORT": s.bed.Evil.Port(), "OTHERPORT": s.bed.Other.Port(),
		"SHAREDPORT": s.bed.Shared.Port(), "SINKPORT": s.bed.Sink.Port(),
	} {
		text = strings.ReplaceAll(text, name, fmt.Sprint(port))
	}
	text = strings.ReplaceAll(text, "TOKENONE", tokenHash(tokenOne))
	return strings.ReplaceAll(text, "TOKENTWO", tokenHash(tokenTwo))
}

func (s *stack) compile(policyYAML string) (*proxy.Ruleset, error) {
	set, _, err := policy.Compile([]policy.File{{Name: "test.yaml", Data: []byte(s.expand(policyYAML))}})
	if err != nil {
		return nil, err
	}
	table, err := inject.Compile(set, s.resolver, func(team, name string) (string, bool) {
		m, err := s.store.Meta(context.Background(), team, name)
		return m.Kind, err == nil
	})
	if err != nil {
		return nil, err
	}
	return &proxy.Ruleset{Policy: set, Injectors: table, Known: s.resolver}, nil
}

func (s *stack) use(policyYAML string) {
	s.t.Helper()
	r, err := s.compile(policyYAML)
	if err != nil {
		s.t.Fatalf("policy: %v", err)
	}
	s.srv.Use(r)
}

// put writes a source and returns when the data plane has it.
func (s *stack) put(team, name, kind string, spec any) store.Meta {
	s.t.Helper()
	raw, err := json.Marshal(spec)
	if err != nil {
		s.t.Fatal(err)
	}
	k, _ := s.kinds.Kind(kind)
	canonical, err := k.Canonical(raw)
	if err != nil {
		s.t.Fatalf("spec: %v", err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	p := store.Put{Meta: store.Meta{Team: team, Name: name, Kind: kind}, Spec: canonical}
	m, err := s.store.Create(ctx, p)
	if errors.Is(err, store.ErrExists) {
		m, _, err = s.store.Update(ctx, p)
	}
	if err != nil {
		s.t.Fatal(err)
	}
	if err := s.resolver.WaitApplied(ctx, m.Rev); err != nil {
		s.t.Fatal(err)
	}
	return m
}

func headerSpec(token string) map[string]any {
	return map[string]any{"staticHeaders": map[string]any{"values": map[string]string{"token": token}}}
}

func basicSpec(user, password string) map[string]any {
	return map[string]any{"staticUsernamePassword": map[string]any{"username": user, "password": password}}
}

// client is an honest sandbox: it goes through the proxy with its token and trusts
// egressd's CA.
func (s *stack) client(user, token string, h2 bool) *http.Client {
	proxyURL := &url.URL{Scheme: "http", Host: s.addr}
	if token != "" {
		proxyURL.User = url.UserPassword(user, token)
	}
	protos := new(http.Protocols)
	protos.SetHTTP1(!h2)
	protos.SetHTTP2(h2)
	tr := &http.Transport{
		Proxy: http.ProxyURL(proxyURL), TLSClientConfig: &tls.Config{RootCAs: s.roots()}, DisableCompression: true,
		MaxIdleConnsPerHost: 256, Protocols: protos, ForceAttemptHTTP2: h2,
	}
	if !h2 {
		tr.TLSNextProto = map[string]func(string, *tls.Conn) http.RoundTripper{}
	}
	s.t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr, Timeout: 20 * time.Second, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
}

func (s *stack) one() *http.Client { return s.client("one", tokenOne, false) }

type answer struct {
	status int
	header http.Header
	body   string
	err    error
}

func do(t testing.TB, c *http.Client, method, target string, edit func(*http.Request)) answer {
	t.Helper()
	req, err := http.NewRequest(method, target, nil)
	if err != nil {
		t.Fatal(err)
	}
	if edit != nil {
		edit(req)
	}
	resp, err := c.Do(req)
	if err != nil {
		return answer{err: err}
	}
	defer func() { _ = resp.Body.Close() }()
	b, err := io.ReadAll(resp.Body)
	return answer{resp.StatusCode, resp.Header, string(b), err}
}

func get(t testing.TB, c *http.Client, target string) answer {
	t.Helper()
	return do(t, c, http.MethodGet, target, nil)
}

// connect opens a tunnel by hand and returns the status of the CONNECT with the
// connection, what came behind the answer replayed.
func (s *stack) connect(target, user, token string) (int, net.Conn, *bufio.Reader) {
	s.t.Helper()
	nc, err := net.Dial("tcp", s.addr)
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { _ = nc.Close() })
	_ = nc.SetDeadline(time.Now().Add(15 * time.Second))
	auth := ""
	if token != "" {
		auth = "Proxy-Authorization: Basic " + base64.StdEncoding.EncodeToString([]byte(user+":"+token)) + "\r\n"
	}
	if _, err := fmt.Fprintf(nc, "CONNECT %s HTTP/1.1\r\nHost: %s\r\n%s\r\n", target, target, auth); err != nil {
		s.t.Fatal(err)
	}
	br := bufio.NewReader(nc)
	resp, err := http.ReadResponse(br, &http.Request{Method: http.MethodConnect})
	if err != nil {
		return 0, nc, br
	}
	return resp.StatusCode, nc, br
}

const basePolicy = `
apiVersion: egressd/v1
sandboxes:
  - id: one
    team: acme
    identify: {proxyTokens: ["TOKENONE"]}
    network:
      egress:
        trafficRules:
          - {name: good, action: allow, domains: [good.test]}
          - {name: evil, action: allow, domains: [evil.test]}
        credentialRules:
          - {name: good-token, credentialRef: gh, protocol: https, domains: [good.test]}
      credentialBindings:
        - ref: gh
          sourceRef: gh-source
          projection:
            type: http_headers
            httpHeaders: {headers: [{name: Authorization, valueTemplate: "Bearer {{ .token }}"}]}
  - id: two
    team: other
    identify: {proxyTokens: ["TOKENTWO"]}
    network:
      egress:
        trafficRules:
          - {name: all, action: allow, domains: [good.test, evil.test]}
`
