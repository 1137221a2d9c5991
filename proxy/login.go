package proxy

import (
	"context"
	"crypto/subtle"
	"crypto/tls"
	"errors"
	"net"
	"net/http"
	"net/netip"
	"sync/atomic"

	"github.com/egressd/egressd/inject"
	"github.com/egressd/egressd/policy"
	"github.com/egressd/egressd/proxy/mqtt"
	"github.com/egressd/egressd/proxy/postgres"
	"github.com/egressd/egressd/proxy/redis"
	"github.com/egressd/egressd/proxy/socks"
	"github.com/egressd/egressd/proxy/sshbridge"
	"github.com/egressd/egressd/proxy/wire"
)

// login is one connection whose protocol has a login of its own, from the decision to its
// end. It belongs to the connection's goroutine but for what is atomic.
type login struct {
	s        *Server
	t        *tunnel
	b        *bound
	f        policy.Flow
	dec      policy.Decision
	addrs    []netip.Addr
	route    route
	alpn     string           // negotiated with the sandbox, and so with the origin
	in       *inject.Injector // of the credential; nil: none
	certFrom *inject.Injector // of the client certificate; nil: none
	isOpen   atomic.Bool
	since    *change            // from before anything was resolved
	cert     *inject.Projection // offered to the origin's TLS
	used     atomic.Pointer[inject.Projection]
	x        *record
}

// serveLogin hands t.conn to the package of its protocol. f may be inside TLS.
func (s *Server) serveLogin(ctx context.Context, t *tunnel, b *bound, f *policy.Flow, dec policy.Decision, addrs []netip.Addr, alpn string) {
	l := &login{s: s, t: t, b: b, f: *f, dec: dec, addrs: addrs, alpn: alpn, since: s.changes.now()}
	if dec.Credential != nil {
		l.in = b.rules.Injectors.Injector(dec.Credential)
	}
	l.x = t.begin(s)
	l.x.dest, l.x.protocol, l.x.decision, l.x.flow = t.dest, f.Protocol.String(), dec, *f
	client := &countedConn{Conn: s.paces.pace(f.Sandbox.ID).slowed(ctx, t.conn)}
	err := l.prepare(ctx)
	if err == nil {
		s.metrics.tunnels.Inc()
		err = l.serve(ctx, l.session(client))
		s.metrics.tunnels.Dec()
		t.handle.unwatch()
	}
	_ = t.conn.Close()
	l.finish(client, err)
}

// prepare resolves what the connection needs besides its credential.
func (l *login) prepare(ctx context.Context) error {
	var ref *refusal
	if l.route, ref = l.s.routeFor(ctx, l.b, l.dec.Proxy); ref != nil {
		return ref.asError()
	}
	if l.dec.ClientCert == nil {
		return nil
	}
	from := l.b.rules.Injectors.Injector(l.dec.ClientCert)
	pr, err := from.Resolve(ctx, l.t.dest.host, l.t.dest.port)
	if err == nil {
		l.cert, l.x.cert, l.certFrom = pr, pr, from
		return nil
	}
	if l.dec.ClientCert.FailOpen {
		l.x.skipped = resolveCode(err)
		return nil
	}
	return unresolved(l.dec.ClientCert, err).asError()
}

func (l *login) serve(ctx context.Context, ws *wire.Session) error {
	if l.dec.Credential == nil {
		return l.passOn(ctx, ws)
	}
	switch l.f.Protocol {
	case policy.Redis:
		return redis.Serve(ctx, ws)
	case policy.MQTT:
		return mqtt.Serve(ctx, ws)
	case policy.Postgres:
		return postgres.Serve(ctx, ws)
	case policy.SOCKS5:
		return socks.Serve(ctx, ws)
	case policy.SSH:
		return sshbridge.Serve(ctx, ws, sshbridge.Options{HostSigners: l.s.sshHosts.HostSigners, Allow: l.allowsSSH})
	}
	return &wire.Refusal{Code: codeProtocol, Detail: "no package for " + l.f.Protocol.String()}
}

// passOn carries what is inside TLS as it is: nothing is logged in, at most a client
// certificate is offered.
func (l *login) passOn(ctx context.Context, ws *wire.Session) error {
	up, err := ws.Dial(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = up.Close() }()
	ws.Opened(up)
	return ws.Pipe(ws.Client, up)
}

func (l *login) session(client net.Conn) *wire.Session {
	d := l.t.dest
	ws := &wire.Session{
		Client: client, InTLS: l.f.InTLS, Host: d.host, Port: d.port,
		Dial: l.dial, AcceptTLS: l.acceptTLS, StartTLS: l.startTLS,
		Credential: l.credential, Opened: l.opened,
		Pipe: func(a, b net.Conn) error {
			_, _, err := pipe(a, b, l.s.limits.IdleTimeout)
			return err
		},
		HandshakeTimeout: l.s.limits.HandshakeTimeout, IdleTimeout: l.s.limits.IdleTimeout,
	}
	rule := l.dec.Credential
	if rule == nil {
		return ws
	}
	ws.Cleartext = rule.AllowCleartext
	if want := rule.SandboxLogin; want != nil {
		ws.Require = func(username, password string) bool {
			user := want.Username == "" || same(want.Username, username)
			return same(want.Password, password) && user
		}
	}
	return ws
}

func same(want, got string) bool { return subtle.ConstantTimeCompare([]byte(want), []byte(got)) == 1 }

func (l *login) dial(ctx context.Context) (net.Conn, error) {
	nc, err := l.s.upstream.reach(ctx, l.f.Sandbox.ID, l.t.dest, l.addrs, l.route)
	if err != nil {
		return nil, dialRefusal(err).asError()
	}
	if l.route.proxy == nil { // else it is the proxy's
		l.x.flow.Addr = addrOf(nc)
	}
	if l.f.InTLS {
		return l.startTLS(ctx, nc)
	}
	return nc, nil
}

func (l *login) startTLS(ctx context.Context, nc net.Conn) (net.Conn, error) {
	c := newClientTLS(l.s.upstream.trust, &plan{key: poolKey{dest: l.t.dest}, cert: l.cert})
	c.conf.ClientSessionCache = nil // one connection: nothing to resume
	var alpn []string
	if l.alpn != "" {
		alpn = []string{l.alpn}
	}
	tc, _, err := c.handshake(ctx, nc, l.t.dest, l.s.limits.HandshakeTimeout, alpn)
	if err != nil {
		return nil, dialRefusal(err).asError()
	}
	return tc, nil
}

func (l *login) acceptTLS(ctx context.Context, client net.Conn) (net.Conn, error) {
	tc := tls.Server(&replayConn{Conn: client, t: l.t}, l.s.tlsConf)
	err := l.s.handshake(ctx, tc)
	if err != nil {
		_ = client.Close()
		return nil, &wire.Refusal{Code: codeBadRequest, Detail: "TLS handshake with the client failed", Err: err}
	}
	return tc, nil
}

func (l *login) credential(ctx context.Context) (*inject.Projection, error) {
	since := l.s.changes.now()
	pr, err := l.in.Resolve(ctx, l.t.dest.host, l.t.dest.port)
	if err != nil {
		return nil, unresolved(l.dec.Credential, err).asError()
	}
	l.used.Store(pr)
	if l.isOpen.Load() { // it logs in once more, maybe with a newer version
		l.describe(since)
	}
	return pr, nil
}

// describe tells what the connection has become, with material that was resolved after since.
func (l *login) describe(since *change) {
	a := about{dest: l.t.dest.String(), protocol: l.f.Protocol.String(), rule: l.dec.Rule,
		stamps: stamps{team: l.f.Sandbox.Team, cred: stampOf(l.used.Load()), cert: stampOf(l.cert), way: stampOf(l.route.login)}}
	if l.dec.Credential != nil {
		a.rule = l.dec.Credential.Name
	}
	l.s.live.describe(l.t.handle, a)
	if since.ended(a.stamps, l.revoked) {
		l.t.handle.cut()
	}
}

func (l *login) revoked() bool {
	return revoked(l.t.ctx, l.in, l.f.Host, l.f.Port) || revoked(l.t.ctx, l.certFrom, l.f.Host, l.f.Port) || l.route.held().revoked(l.t.ctx)
}

// opened registers what may be cut from now on.
func (l *login) opened(up net.Conn) {
	h := l.t.handle
	h.watch(l.stillAllowed, up)
	h.watchCredential(l.revoked)
	l.isOpen.Store(true)
	l.describe(l.since)
	l.since = nil
}

// stillAllowed asks a new ruleset about the connection.
func (l *login) stillAllowed(r *Ruleset) bool {
	b, err := l.t.sess.bindTo(r)
	if err != nil {
		return false
	}
	f := l.f
	f.Sandbox = b.sandbox
	d := r.Policy.Decide(&f)
	return goesOn(&d, &l.dec)
}

// goesOn says whether what was begun under one decision may be under another: allowed, with
// what it would get now, and by the way that it would leave by now.
func goesOn(now, was *policy.Decision) bool {
	return now.Action != policy.Deny && sameSource(now.Credential, was.Credential) && sameSource(now.ClientCert, was.ClientCert) && sameWay(now.Proxy, was.Proxy)
}

func sameWay(a, b *policy.Proxy) bool {
	if a == nil || b == nil {
		return a == b
	}
	return a.Type == b.Type && a.Host == b.Host && a.Port == b.Port && sameSource(a.Credential, b.Credential)
}

// sameSource: what the connection has logged in with is what a rule would log in with now.
func sameSource(a, b *policy.CredentialRule) bool {
	if a == nil || b == nil {
		return a == b
	}
	return a.Binding.SourceRef == b.Binding.SourceRef && a.Team == b.Team
}

// allowsSSH asks the ruleset of now about one thing inside the connection.
func (l *login) allowsSSH(q policy.SSHRequest) bool {
	b, err := l.t.sess.bind()
	if err != nil {
		return false
	}
	f := l.f
	f.Sandbox, f.Request, f.SSH = b.sandbox, true, q
	d := b.rules.Policy.Decide(&f)
	ok := d.Action != policy.Deny && !d.NeedAddr
	if !ok {
		x := l.t.begin(l.s)
		x.dest, x.protocol, x.decision, x.flow = l.t.dest, "ssh", d, f
		x.method = "ssh-" + sshKinds[q.Kind]
		x.refused(denied(d), 0)
	}
	return ok
}

var sshKinds = [...]string{"", "shell", "exec", "subsystem", "forwarding"}

func (l *login) finish(client *countedConn, err error) {
	x := l.x
	x.source, x.status = l.used.Load(), http.StatusOK
	x.bytesIn, x.bytesOut = client.in.Load(), client.out.Load()
	var wr *wire.Refusal
	switch {
	case err == nil:
	case errors.As(err, &wr):
		x.code, x.detail, x.outcome = wr.Code, wr.Error(), outcomeDenied
		x.status = statusOf(wr.Code)
		if x.status >= http.StatusInternalServerError {
			x.outcome = outcomeError
		}
		l.s.metrics.refusals.WithLabelValues(wr.Code).Inc()
	default:
		x.outcome, x.detail = outcomeAborted, err.Error()
	}
	x.finish()
}

// asError makes a refusal what packages of protocols pass on.
func (r *refusal) asError() error { return &wire.Refusal{Code: r.code, Detail: r.detail} }

// countedConn counts the sandbox's bytes of protocols that are not simply piped.
type countedConn struct {
	net.Conn
	in, out atomic.Int64
}

func (c *countedConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	c.in.Add(int64(n))
	return n, err
}

func (c *countedConn) Write(p []byte) (int, error) {
	n, err := c.Conn.Write(p)
	c.out.Add(int64(n))
	return n, err
}

// CloseWrite half-closes where the connection underneath can.
func (c *countedConn) CloseWrite() error {
	if hc := halfCloser(c.Conn); hc != nil {
		return hc.CloseWrite()
	}
	return c.Conn.Close()
}

// halfCloser finds what can be half-closed under what only reads differently.
func halfCloser(c net.Conn) interface{ CloseWrite() error } {
	for {
		if hc, ok := c.(interface{ CloseWrite() error }); ok {
			return hc
		}
		under, ok := c.(interface{ NetConn() net.Conn })
		if !ok {
			return nil
		}
		c = under.NetConn()
	}
}
