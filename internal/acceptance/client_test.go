package acceptance

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync/atomic"
	"time"
)

// reply is an answer of the API or of an origin, read to its end.
type reply struct {
	status int
	header http.Header
	body   []byte
	err    error
}

func (r reply) String() string { return fmt.Sprintf("status %d, err %v, %s", r.status, r.err, r.body) }

func socketClient(path string) *http.Client {
	return &http.Client{Timeout: 30 * time.Second, Transport: &http.Transport{
		MaxIdleConnsPerHost: 64,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", path)
		},
	}}
}

// call sends one request to the API; extra are header names and values in turn.
func (d *daemon) call(method, path string, body any, extra ...string) reply {
	var r io.Reader
	kind := "application/json"
	switch b := body.(type) {
	case nil:
	case []byte:
		r = bytes.NewReader(b)
	default:
		raw, err := json.Marshal(b)
		if err != nil {
			return reply{err: err}
		}
		r = bytes.NewReader(raw)
	}
	if method == http.MethodPatch {
		kind = "application/merge-patch+json"
	}
	req, err := http.NewRequest(method, "http://egressd/api/v1"+path, r)
	if err != nil {
		return reply{err: err}
	}
	if body != nil {
		req.Header.Set("Content-Type", kind)
	}
	for i := 0; i+1 < len(extra); i += 2 {
		req.Header.Set(extra[i], extra[i+1])
	}
	return send(d.api, req)
}

// want is call for a step whose status is known.
func (d *daemon) want(status int, method, path string, body any, extra ...string) reply {
	d.t.Helper()
	a := d.call(method, path, body, extra...)
	if a.status != status {
		d.t.Fatalf("%s %s: want %d, got %s", method, path, status, a)
	}
	return a
}

func send(c *http.Client, req *http.Request) reply {
	resp, err := c.Do(req)
	if err != nil {
		return reply{err: err}
	}
	defer func() { _ = resp.Body.Close() }()
	b, err := io.ReadAll(resp.Body)
	return reply{status: resp.StatusCode, header: resp.Header, body: b, err: err}
}

// add creates a source.
func (d *daemon) add(name, kind string, spec map[string]any) {
	d.t.Helper()
	d.want(http.StatusCreated, http.MethodPost, "/credential-sources", map[string]any{"name": name, "resolverKind": kind, "spec": spec})
}

func tokenSpec(token string) map[string]any {
	return map[string]any{"staticHeaders": map[string]any{"values": map[string]string{"token": token}}}
}

func putToken(token string) map[string]any {
	return map[string]any{"resolverKind": "static_headers", "spec": tokenSpec(token)}
}

// sandbox is an honest client behind the proxy. Each has its own connections.
type sandbox struct {
	*http.Client
	dials atomic.Int64
}

// sandbox makes one that identifies itself as "one" and speaks h2 or HTTP/1.1, never both.
func (d *daemon) sandbox(h2 bool) *sandbox {
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(d.roots) {
		d.t.Fatal("ca.pem holds no certificate")
	}
	s := &sandbox{}
	protos := new(http.Protocols)
	protos.SetHTTP1(!h2)
	protos.SetHTTP2(h2)
	tr := &http.Transport{
		Proxy:           http.ProxyURL(&url.URL{Scheme: "http", Host: d.proxy, User: url.UserPassword("one", proxyToken)}),
		TLSClientConfig: &tls.Config{RootCAs: pool}, Protocols: protos, DisableCompression: true,
		MaxIdleConnsPerHost: 64,
		DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
			s.dials.Add(1)
			return (&net.Dialer{}).DialContext(ctx, network, addr)
		},
	}
	s.Client = &http.Client{Transport: tr, Timeout: 30 * time.Second}
	d.t.Cleanup(s.CloseIdleConnections)
	return s
}

func (s *sandbox) get(target string) reply {
	req, err := http.NewRequest(http.MethodGet, target, nil)
	if err != nil {
		return reply{err: err}
	}
	return send(s.Client, req)
}

// ended is a command that has run to its end.
type ended struct {
	stdout, stderr string
	code           int
}

func (e ended) String() string {
	return fmt.Sprintf("exit code %d\nstdout: %s\nstderr: %s", e.code, e.stdout, e.stderr)
}

// command runs egressd with these arguments. env comes after plainEnv.
func command(stdin string, env []string, args ...string) ended {
	return runCmd(exec.Command(egressd, args...), stdin, env)
}

// plainEnv is the machine's environment without what would configure egressd.
func plainEnv() []string {
	return slices.DeleteFunc(os.Environ(), func(kv string) bool {
		return strings.HasPrefix(kv, "EGRESSD_") || strings.HasPrefix(kv, "SSL_CERT_") || strings.Contains(strings.ToLower(kv[:strings.Index(kv, "=")+1]), "proxy=")
	})
}

func runCmd(cmd *exec.Cmd, stdin string, env []string) ended {
	cmd.Env = append(plainEnv(), env...)
	cmd.Stdin = strings.NewReader(stdin)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	e := ended{stdout: out.String(), stderr: errs.String()}
	var x *exec.ExitError
	switch {
	case errors.As(err, &x):
		e.code = x.ExitCode()
	case err != nil:
		e.code, e.stderr = -1, err.Error()
	}
	return e
}

// cli is command for this daemon.
func (d *daemon) cli(stdin string, args ...string) ended {
	return command(stdin, []string{"EGRESSD_ADDR=unix:" + d.path("state/api.sock")}, args...)
}
