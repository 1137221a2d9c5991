package api

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"github.com/egressd/egressd/source"
	"github.com/egressd/egressd/source/static"
	"github.com/egressd/egressd/store"
	"github.com/egressd/egressd/store/memory"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// buffer is a bytes.Buffer for several writers.
type buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *buffer) Sync() error { return nil }

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

func (b *buffer) Reset() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.b.Reset()
}

// world is the part of the daemon around the API: policy and what it refers to.
type world struct {
	cut     []bool
	open    []Connection
	reload  sync.RWMutex
	mu      sync.Mutex
	refs    map[string][]Referrer
	needs   map[string][]string // source → keys that bound templates need
	applied []store.Rev
	fail    error // of Applied
	onView  func()
	drained []uint64
}

func (w *world) View(_ context.Context, team string) (PolicyView, error) {
	if w.onView != nil {
		w.onView()
	}
	return PolicyView{Hash: "h1", LoadedAt: time.Now().UTC(), Sandboxes: []SandboxView{{ID: "agent-7", Team: team, Network: map[string]any{"mode": "block-all"}}}}, nil
}

func (w *world) Check(_ context.Context, files []PolicyFile) (PolicyReport, error) {
	for _, f := range files {
		if strings.Contains(f.Content, "broken") {
			return PolicyReport{Problems: []Problem{{File: f.Name, Line: 3, Column: 1, Path: "sandboxes", Message: "unknown field"}}}, nil
		}
	}
	return PolicyReport{Hash: "h2"}, nil
}

func (w *world) Explain(_ context.Context, _ string, r ExplainRequest) (ExplainResult, error) {
	switch {
	case r.Sandbox != "agent-7":
		return ExplainResult{}, ErrNoSandbox
	case !strings.HasPrefix(r.URL, "https://"):
		return ExplainResult{}, &ExplainError{Fields: map[string][]string{"url": {"must be an https URL"}}}
	}
	return ExplainResult{
		Action: "inspect", Reason: "traffic_rule", Rule: "github",
		Credential: &ExplainCredential{Rule: "github-api", Binding: "gh", Source: "github", Projection: "http_headers", File: "a.yaml", Line: 4},
		Steps:      []ExplainStep{{Stage: "traffic", Rule: "github", File: "a.yaml", Line: 3, Matched: true}},
	}, nil
}

func (w *world) Reload(context.Context) (PolicyReport, error) {
	w.reload.Lock()
	defer w.reload.Unlock()
	return w.Check(context.Background(), nil)
}

func (w *world) Referrers(team, name string) []Referrer {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.refs[team+"/"+name]
}

func (w *world) WithReferrers(team, name string, f func([]Referrer) error) error {
	w.reload.RLock()
	defer w.reload.RUnlock()
	return f(w.Referrers(team, name))
}

func (w *world) bind(team, name string, needs ...string) {
	w.reload.Lock()
	defer w.reload.Unlock()
	w.mu.Lock()
	defer w.mu.Unlock()
	w.refs[team+"/"+name] = []Referrer{{Sandbox: "agent-7", Binding: "gh", File: "team.yaml", Line: 17}}
	w.needs[team+"/"+name] = needs
}

func (w *world) unbind(team, name string) {
	w.reload.Lock()
	defer w.reload.Unlock()
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.refs, team+"/"+name)
}

func (w *world) checkBound(team, name, _ string, keys []string) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	have := map[string]bool{}
	for _, k := range keys {
		have[k] = true
	}
	var missing []string
	for _, k := range w.needs[team+"/"+name] {
		if !have[k] {
			missing = append(missing, k)
		}
	}
	if missing != nil {
		return &MissingKeysError{Keys: missing, Referrers: w.refs[team+"/"+name]}
	}
	return nil
}

func (w *world) apply(_ context.Context, rev store.Rev) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.applied = append(w.applied, rev)
	return w.fail
}

func (w *world) setFail(err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.fail = err
}

type testCA struct{ pem []byte }

func (c testCA) CertPEM() []byte { return c.pem }

func newTestCA(t testing.TB) testCA {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "egressd test CA"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	return testCA{pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})}
}

// rig is a Server on a unix socket and a TCP listener, with all that it writes in buffers.
type rig struct {
	t     testing.TB
	s     *Server
	store *memory.Store
	world *world
	logs  *buffer
	seen  *buffer // every answer with its head, as received
	unix  *http.Client
	tcp   *http.Client
	sock  string
	addr  string // of the TCP listener
	ops   string
	admin string // tokens of every team
	read  string
}

func newRig(t testing.TB, tune ...func(*Options)) *rig {
	t.Helper()
	sealer, _, err := store.EphemeralKeys()
	if err != nil {
		t.Fatal(err)
	}
	r := &rig{t: t, store: memory.New(sealer), logs: new(buffer), seen: new(buffer), world: &world{refs: map[string][]Referrer{}, needs: map[string][]string{}}}
	kinds, err := source.NewRegistry(static.Kinds()...)
	if err != nil {
		t.Fatal(err)
	}
	core := zapcore.NewCore(zapcore.NewJSONEncoder(zap.NewProductionEncoderConfig()), r.logs, zapcore.DebugLevel)
	opt := Options{
		Data:    Data{Writer: r.store, Tokens: r.store, Idempotency: r.store, Kinds: kinds},
		Applied: r.world.apply, Policies: r.world, References: r.world, CA: newTestCA(t), CheckBound: r.world.checkBound,
		Drain: func(_, _ string, v uint64, cut bool) {
			r.world.drained = append(r.world.drained, v)
			r.world.cut = append(r.world.cut, cut)
		},
		Connections: r.world,
		Ready:       func(context.Context) error { return nil },
		Version:     Version{Version: "v0.1.0", Commit: "abc", GoVersion: "go1.26.8"},
		Registry:    prometheus.NewRegistry(), Log: zap.New(core),
	}
	for _, f := range tune {
		f(&opt)
	}
	if r.s, err = New(opt); err != nil {
		t.Fatal(err)
	}
	r.listen()
	r.admin, r.read = r.token("root-admin", "admin", AllTeams), r.token("root-read", "read", AllTeams)
	return r
}

func (r *rig) listen() {
	t := r.t
	dir, err := os.MkdirTemp("", "egd")
	if err != nil {
		t.Fatal(err)
	}
	r.sock = filepath.Join(dir, "api.sock")
	api, ops := r.s.HTTPServer(), r.s.OpsServer()
	var wg sync.WaitGroup
	serve := func(srv *http.Server, network, addr string) string {
		l, err := net.Listen(network, addr)
		if err != nil {
			t.Fatal(err)
		}
		wg.Go(func() {
			if err := srv.Serve(l); !errors.Is(err, http.ErrServerClosed) {
				t.Errorf("serve: %v", err)
			}
		})
		return l.Addr().String()
	}
	serve(api, "unix", r.sock)
	r.addr, r.ops = serve(api, "tcp", "127.0.0.1:0"), serve(ops, "tcp", "127.0.0.1:0")
	plain := &http.Transport{Proxy: nil, DisableCompression: true}
	local := plain.Clone()
	local.DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", r.sock)
	}
	stay := func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	r.tcp, r.unix = &http.Client{Transport: plain, CheckRedirect: stay}, &http.Client{Transport: local, CheckRedirect: stay}
	t.Cleanup(func() {
		plain.CloseIdleConnections()
		local.CloseIdleConnections()
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		for _, srv := range []*http.Server{api, ops} {
			if err := srv.Shutdown(ctx); err != nil {
				t.Errorf("shutdown: %v", err)
			}
		}
		wg.Wait()
		_ = os.RemoveAll(dir)
	})
}

// token makes one in the store and returns its value.
func (r *rig) token(name, role, team string) string {
	r.t.Helper()
	value, hash := newToken()
	if err := r.store.CreateToken(context.Background(), store.Token{Name: name, Role: role, Team: team, Hash: hash, CreatedAt: time.Now()}); err != nil {
		r.t.Fatal(err)
	}
	return value
}

// got is an answer.
type got struct {
	status int
	header http.Header
	raw    []byte
	env    struct {
		Success *bool
		Data    json.RawMessage
		Next    string `json:"nextPageToken"`
		Error   *ErrorBody
	}
}

type option func(*http.Request)

func head(name, value string) option { return func(q *http.Request) { q.Header.Set(name, value) } }
func bare(name string) option        { return func(q *http.Request) { q.Header.Del(name) } }
func auth(token string) option       { return head("Authorization", "Bearer "+token) }
func host(h string) option           { return func(q *http.Request) { q.Host = h } }

// do asks over the socket; body is a string as it is, nil, or anything to be marshalled.
func (r *rig) do(method, path string, body any, opts ...option) *got {
	r.t.Helper()
	return r.send(r.unix, "http://localhost"+path, method, body, opts...)
}

// dial asks over TCP.
func (r *rig) dial(method, path string, body any, opts ...option) *got {
	r.t.Helper()
	return r.send(r.tcp, "http://"+r.addr+path, method, body, opts...)
}

func (r *rig) send(c *http.Client, url, method string, body any, opts ...option) *got {
	r.t.Helper()
	var rd io.Reader
	switch b := body.(type) {
	case nil:
	case string:
		rd = strings.NewReader(b)
	case io.Reader:
		rd = b
	default:
		j, err := json.Marshal(b)
		if err != nil {
			r.t.Fatal(err)
		}
		rd = bytes.NewReader(j)
	}
	q, err := http.NewRequest(method, url, rd)
	if err != nil {
		r.t.Fatal(err)
	}
	if rd != nil {
		q.Header.Set("Content-Type", mediaJSON)
		if method == http.MethodPatch {
			q.Header.Set("Content-Type", mediaMerge)
		}
	}
	for _, o := range opts {
		o(q)
	}
	resp, err := c.Do(q)
	if err != nil {
		r.t.Fatalf("%s %s: %v", method, url, err)
	}
	defer resp.Body.Close()
	g := &got{status: resp.StatusCode, header: resp.Header}
	if g.raw, err = io.ReadAll(resp.Body); err != nil {
		r.t.Fatalf("%s %s: read answer: %v", method, url, err)
	}
	_, _ = fmt.Fprintf(r.seen, "%s %v\n%s\n", resp.Status, resp.Header, g.raw)
	if strings.HasPrefix(resp.Header.Get("Content-Type"), "application/json") && len(g.raw) > 0 {
		if err := json.Unmarshal(g.raw, &g.env); err != nil {
			r.t.Fatalf("%s %s: answer is no JSON: %v", method, url, err)
		}
	}
	if resp.Header.Get("X-Request-Id") == "" {
		r.t.Errorf("%s %s: %d without X-Request-Id", method, url, g.status)
	}
	return g
}

// want checks the status and, for a failure, code and reason.
func (g *got) want(t testing.TB, status int, code Code, reason string) *got {
	t.Helper()
	if g.status != status {
		t.Fatalf("status %d, want %d: %s", g.status, status, g.raw)
	}
	if code == "" {
		if g.env.Success == nil || !*g.env.Success || g.env.Error != nil {
			t.Fatalf("not a success: %s", g.raw)
		}
		return g
	}
	if g.env.Success == nil || *g.env.Success || g.env.Error == nil || g.env.Data != nil {
		t.Fatalf("not a failure: %s", g.raw)
	}
	if g.env.Error.Code != code || g.env.Error.Details.Reason != reason || g.env.Error.Message == "" {
		t.Fatalf("code %q reason %q message %q, want %q %q", g.env.Error.Code, g.env.Error.Details.Reason, g.env.Error.Message, code, reason)
	}
	return g
}

// wantField also checks that there is a message for path.
func (g *got) wantField(t testing.TB, path string) *got {
	t.Helper()
	if g.env.Error == nil || len(g.env.Error.Details.Fields[path]) == 0 {
		t.Fatalf("no message for %q in %s", path, g.raw)
	}
	return g
}

func into[T any](t testing.TB, g *got) T {
	t.Helper()
	var v T
	if err := json.Unmarshal(g.env.Data, &v); err != nil {
		t.Fatalf("%v in %s", err, g.raw)
	}
	return v
}

// headers is a body of kind static_headers.
func headers(name string, kv ...string) map[string]any {
	values := map[string]string{}
	for i := 0; i < len(kv); i += 2 {
		values[kv[i]] = kv[i+1]
	}
	return map[string]any{"name": name, "resolverKind": static.Headers, "spec": headerSpec(values)}
}

func headerSpec(values map[string]string) map[string]any {
	return map[string]any{"staticHeaders": map[string]any{"values": values}}
}

const at0 = base + "/credential-sources"

func (w *world) Connections(team string) []Connection {
	var out []Connection
	for _, c := range w.open {
		if team == AllTeams || c.Team == team {
			out = append(out, c)
		}
	}
	return out
}

func (w *world) CloseConnection(team string, id uint64) bool {
	for i, c := range w.open {
		if c.ID == strconv.FormatUint(id, 10) && (team == AllTeams || c.Team == team) {
			w.open = append(w.open[:i:i], w.open[i+1:]...)
			return true
		}
	}
	return false
}
