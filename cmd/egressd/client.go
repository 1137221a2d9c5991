package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/egressd/egressd/api"
	"github.com/egressd/egressd/internal/config"
	"github.com/egressd/egressd/internal/secret"
)

const (
	maxAnswer     = 64 << 20 // bytes of one answer of the API
	clientTimeout = 60 * time.Second
)

// dialFlags say which daemon a command talks to.
type dialFlags struct {
	addr, tokenFile, config, stateDir, team string
	tls                                     clientCert
}

// clientCert is what an https --addr is verified with, and what it may ask for.
type clientCert struct{ ca, cert, key string }

// register adds the flags; --token-file too, unless the command has one for a secret.
func (d *dialFlags) register(fs *pflag.FlagSet) {
	fs.StringVar(&d.addr, "addr", "", "the daemon: unix:PATH, https://HOST:PORT or http://127.0.0.1:PORT (EGRESSD_ADDR); default: its socket")
	fs.StringVar(&d.tokenFile, "api-token-file", "", "file with an API token (else EGRESSD_TOKEN)")
	fs.StringVar(&d.tls.ca, "addr-ca", "", "CA file (PEM) to verify an https --addr with")
	fs.StringVar(&d.tls.cert, "addr-cert", "", "client certificate (PEM) for an https --addr that wants one")
	fs.StringVar(&d.tls.key, "addr-key", "", "its private key (PEM)")
	fs.StringVar(&d.config, "config", "", "the daemon's config, to find its socket (EGRESSD_CONFIG)")
	fs.StringVar(&d.team, "for-team", "", "team to act for (EGRESSD_TEAM), when the token is bound to none; default: default")
	fs.StringVar(&d.stateDir, "state-dir", "", "the daemon's stateDir, to find its socket (EGRESSD_STATE_DIR)")
}

// alias makes --token-file mean --api-token-file on a command that stores no secret.
func (d *dialFlags) alias(cmd *cobra.Command) *cobra.Command {
	cmd.Flags().StringVar(&d.tokenFile, "token-file", "", "file with an API token (else EGRESSD_TOKEN)")
	return cmd
}

// client speaks to one daemon.
type client struct {
	http  *http.Client
	base  string // scheme://host, no slash at the end
	where string // for messages
	token secret.String
	team  string
}

func (a *app) client(d dialFlags) (*client, error) {
	addr := d.addr
	if addr == "" {
		addr = a.env("EGRESSD_ADDR")
	}
	if addr == "" {
		path, err := a.socketPath(d)
		if err != nil {
			return nil, err
		}
		addr = "unix:" + path
	}
	token, err := a.apiToken(d)
	if err != nil {
		return nil, err
	}
	tr := &http.Transport{Proxy: nil, DisableCompression: true} // never through a proxy of the environment
	c := &client{http: &http.Client{Transport: tr, Timeout: clientTimeout, CheckRedirect: refuseRedirect}, where: addr, token: token, team: d.team}
	if c.team == "" {
		c.team = a.env("EGRESSD_TEAM")
	}
	if path, ok := strings.CutPrefix(addr, "unix:"); ok {
		c.base, c.where = "http://egressd", path
		tr.DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", path)
		}
		return c, nil
	}
	u, err := url.Parse(addr)
	if err != nil || u.Host == "" || (u.Path != "" && u.Path != "/") || u.User != nil || u.RawQuery != "" {
		return nil, usage("--addr %q is not unix:PATH, https://HOST:PORT or http://127.0.0.1:PORT", addr)
	}
	switch {
	case u.Scheme == "https":
		if tr.TLSClientConfig, err = d.tls.config(); err != nil {
			return nil, err
		}
	case u.Scheme != "http":
		return nil, usage("--addr %q is not unix:PATH, https://HOST:PORT or http://127.0.0.1:PORT", addr)
	case !isLoopback(u.Hostname()):
		return nil, usage("--addr %q: only https leaves this machine; http is for loopback", addr)
	}
	c.base = u.Scheme + "://" + u.Host
	return c, nil
}

func refuseRedirect(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }

func isLoopback(host string) bool {
	ip, err := netip.ParseAddr(host)
	return host == "localhost" || (err == nil && ip.IsLoopback())
}

func (t clientCert) config() (*tls.Config, error) {
	conf := &tls.Config{MinVersion: tls.VersionTLS12}
	if t.ca != "" {
		pem, err := readSmall(t.ca)
		if err != nil {
			return nil, usage("--addr-ca: %w", fileError(t.ca, err))
		}
		conf.RootCAs = x509.NewCertPool()
		if !conf.RootCAs.AppendCertsFromPEM(pem) {
			return nil, usage("--addr-ca %s holds no certificate in PEM", t.ca)
		}
	}
	if t.cert != "" || t.key != "" {
		cert, err := tls.LoadX509KeyPair(t.cert, t.key)
		if err != nil {
			return nil, usage("--addr-cert and --addr-key: %w", err)
		}
		conf.Certificates = []tls.Certificate{cert}
	}
	return conf, nil
}

func (a *app) socketPath(d dialFlags) (string, error) {
	file := d.config
	if file == "" {
		file = a.env("EGRESSD_CONFIG")
	}
	env := a.environ
	if d.stateDir != "" {
		env = append(slices.Clone(env), "EGRESSD_STATE_DIR="+d.stateDir)
	}
	cfg, err := config.Load(config.Input{File: file, Env: env})
	if err != nil {
		return "", err
	}
	return cfg.SocketPath(), nil
}

func (a *app) apiToken(d dialFlags) (secret.String, error) {
	if d.tokenFile == "" {
		return secret.New(strings.TrimSpace(a.env("EGRESSD_TOKEN"))), nil
	}
	b, err := readSmall(d.tokenFile)
	if err != nil {
		return secret.String{}, usage("API token: %s", fileError(d.tokenFile, err))
	}
	token := strings.TrimSpace(string(b))
	if token == "" {
		return secret.String{}, usage("API token: %s is empty", d.tokenFile)
	}
	return secret.New(token), nil
}

// answer is one successful answer of the API.
type answer struct {
	raw  []byte // the envelope
	data json.RawMessage
	etag string
}

func (x *answer) into(v any) error {
	if err := json.Unmarshal(x.data, v); err != nil {
		return fail(exitNetwork, "the daemon's answer is not understood: is it another version? (`egressd version`): %w", err)
	}
	return nil
}

type header struct{ name, value string }

// do sends one request under /api/v1 and turns a failure into an error with its code.
func (c *client) do(ctx context.Context, method, path string, body any, headers ...header) (*answer, error) {
	var content io.Reader
	if body != nil {
		b, err := json.Marshal(body)
		if err != nil {
			return nil, usage("the request cannot be encoded: %w", err)
		}
		content = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, method, c.base+"/api/v1"+path, content)
	if err != nil {
		return nil, usage("%w", err)
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	if c.token.Len() > 0 {
		req.Header.Set("Authorization", "Bearer "+c.token.Reveal())
	}
	if c.team != "" {
		req.Header.Set(api.TeamHeader, c.team)
	}
	for _, h := range headers {
		req.Header.Set(h.name, h.value)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, c.unreachable(err)
	}
	defer func() { _ = resp.Body.Close() }() // it was read to its end, or is of no use
	raw, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return nil, fail(exitNetwork, "the answer of %s broke off: %w", c.where, bare(err))
	}
	return c.read(resp, bytes.TrimSpace(raw))
}

func (c *client) read(resp *http.Response, raw []byte) (*answer, error) {
	if resp.StatusCode < 300 && !strings.HasPrefix(resp.Header.Get("Content-Type"), "application/json") {
		return &answer{raw: raw, data: raw}, nil // ca.pem
	}
	var env struct {
		Success bool            `json:"success"`
		Data    json.RawMessage `json:"data"`
		Error   *api.ErrorBody  `json:"error"`
	}
	err := json.Unmarshal(raw, &env)
	switch {
	case err == nil && env.Success && resp.StatusCode < 300:
		return &answer{raw: raw, data: env.Data, etag: resp.Header.Get("ETag")}, nil
	case err != nil || env.Error == nil:
		return nil, fail(exitNetwork, "%s answered %d, but not as egressd's API does: check --addr", c.where, resp.StatusCode)
	}
	return nil, refused(resp, env.Error, raw)
}

// refused is an error of the API as one line.
func refused(resp *http.Response, e *api.ErrorBody, raw []byte) error {
	parts := []string{strings.ReplaceAll(e.Message, "; see error.details.", ": ")}
	switch {
	case len(e.Details.Fields) > 0:
		parts = fieldLines(e.Details.Fields)
	case len(e.Details.Referrers) > 0:
		parts = []string{"the policy in force still needs it"}
	}
	for _, r := range e.Details.Referrers {
		parts = append(parts, fmt.Sprintf("bound as %s in %s (%s:%d)", r.Binding, r.Sandbox+r.Template, r.File, r.Line))
	}
	for _, p := range e.Details.Problems {
		parts = append(parts, problemLine(p))
	}
	if len(e.Details.MissingKeys) > 0 {
		parts = append(parts, "missing: "+strings.Join(e.Details.MissingKeys, ", "))
	}
	if hint := hintFor(e); hint != "" {
		parts = append(parts, hint)
	}
	if id := resp.Header.Get("X-Request-Id"); id != "" && resp.StatusCode >= 500 {
		parts = append(parts, "request "+id)
	}
	return &failed{code: exitFor(e), err: errors.New(strings.Join(parts, "; ")), envelope: raw, api: e}
}

func fieldLines(fields map[string][]string) []string {
	var out []string
	for path, messages := range fields {
		out = append(out, path+": "+strings.Join(messages, ", "))
	}
	slices.Sort(out)
	return out
}

func hintFor(e *api.ErrorBody) string {
	switch e.Details.Reason {
	case api.ReasonTokenMissing, api.ReasonTokenInvalid:
		return "give one with --api-token-file or EGRESSD_TOKEN, or use the daemon's socket as its owner"
	case api.ReasonRole:
		return "use a token with the role that this needs"
	case api.ReasonTeam:
		return "leave --for-team and EGRESSD_TEAM out, or use a token that is bound to no team"
	case api.ReasonReferenced:
		return "remove the binding from the policy first"
	case api.ReasonExists:
		if !strings.Contains(e.Message, "source") {
			return "choose another name"
		}
		return "choose another name, or `egressd source rotate` for a new version"
	case api.ReasonKindUnknown:
		return "`egressd source kinds` lists them"
	case api.ReasonStale:
		return "somebody changed it meanwhile: look at it and try again"
	case api.ReasonMisdirectedHost:
		return "add the name to api.hosts"
	}
	return ""
}

func exitFor(e *api.ErrorBody) int {
	switch e.Code {
	case api.CodeUnauthorized, api.CodeForbidden:
		return exitAuth
	case api.CodeConflict, api.CodePreconditionFailed:
		return exitConflict
	case api.CodeRateLimited:
		return exitNetwork
	case api.CodeUnavailable, api.CodeInternal:
		return exitStore
	}
	return exitUsage
}

// unreachable says why no answer came.
func (c *client) unreachable(err error) error {
	unix := c.base == "http://egressd"
	switch {
	case unix && errors.Is(err, fs.ErrNotExist):
		return fail(exitNetwork, "the daemon is not running: there is no socket %s; start it with `egressd serve`, or name another with --addr or --state-dir", c.where)
	case unix && errors.Is(err, syscall.ECONNREFUSED):
		return fail(exitNetwork, "the daemon is not running: nothing answers on %s; start it with `egressd serve`", c.where)
	case unix && errors.Is(err, fs.ErrPermission):
		return fail(exitAuth, "permission denied on %s: run this as the daemon's user, or use --addr and a token", c.where)
	case errors.Is(err, syscall.ECONNREFUSED):
		return fail(exitNetwork, "nothing listens on %s: is api.listen set and the daemon running?", c.where)
	case errors.Is(err, context.DeadlineExceeded) || os.IsTimeout(err):
		return fail(exitNetwork, "%s did not answer in time", c.where)
	}
	var unknown x509.UnknownAuthorityError
	var host x509.HostnameError
	if errors.As(err, &unknown) || errors.As(err, &host) {
		return fail(exitNetwork, "the certificate of %s is not trusted (%w): name its CA with --addr-ca", c.where, bare(err))
	}
	return fail(exitNetwork, "cannot reach %s: %w", c.where, bare(err))
}

// bare takes the URL out of a client's error.
func bare(err error) error {
	var u *url.Error
	if errors.As(err, &u) {
		return u.Err
	}
	return err
}

const maxSmall = 1 << 20

// readSmall reads a file of at most 1 MiB.
func readSmall(name string) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }() // only read
	return readAllSmall(f)
}

var errTooLarge = errors.New("larger than 1 MiB")

func readAllSmall(r io.Reader) ([]byte, error) {
	b, err := io.ReadAll(io.LimitReader(r, maxSmall+1))
	if err == nil && len(b) > maxSmall {
		return nil, errTooLarge
	}
	return b, err
}

// fileError is err without what os puts around it, the name in front.
func fileError(name string, err error) error {
	var p *fs.PathError
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("%s does not exist", name)
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("%s cannot be read: permission denied", name)
	case errors.As(err, &p):
		return fmt.Errorf("%s cannot be read: %w", name, p.Err)
	}
	return fmt.Errorf("%s: %w", name, err)
}
