package acceptance

import (
	"bufio"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
	"github.com/miekg/dns"
	"golang.org/x/crypto/ssh"

	"github.com/egressd/egressd/internal/testbed"
)

// canaryPlaceholder stands for a token in what the sandbox sends to place.test.
const canaryPlaceholder = "placeholder-for-the-canary-0001"

// What canaryPolicy gets besides, where a whole daemon runs.
const (
	moreTraffic = `          - {name: more, action: allow, domains: [aws.test, place.test]}
          - {name: ssh, action: allow, domains: [ssh.test], appProtocols: [ssh]}
          - {name: redis, action: allow, domains: [redis.test], appProtocols: [redis]}
`
	moreRules = `          - {name: aws, credentialRef: aws, domains: [aws.test], scrub: true}
          - {name: place, credentialRef: place, domains: [place.test], scrub: true}
          - {name: ssh, credentialRef: ssh, protocol: ssh, domains: [ssh.test]}
          - {name: redis, credentialRef: basic, protocol: redis, allowCleartext: true, domains: [redis.test]}
`
	moreBindings = `        - {ref: aws, sourceRef: aws_access_key, projection: {type: aws_sigv4}}
        - ref: place
          sourceRef: static_headers
          projection:
            type: placeholder_substitution
            placeholderSubstitution: {replacements: [{placeholder: PLACEHOLDER, valueTemplate: "{{ .token }}", locations: [header, query, body]}]}
        - ref: ssh
          sourceRef: static_ssh_private_key
          projection: {type: ssh_proxy, sshProxy: {upstreamUsername: git, sandboxPublicKeys: ["SANDBOXKEY"], knownHosts: ["HOSTKEY"]}}
`
	anotherSandbox = `  - id: two
    identify: {sourceCIDRs: [127.0.0.91/32]}
    network: {egress: {trafficRules: [{name: one, action: allow, domains: [headers.test]}]}}
`
)

// fullPolicy is canaryPolicy with the protocols and projections that a daemon serves.
func (r *canaryRig) fullPolicy() string {
	p := strings.Replace(canaryPolicy, "        credentialRules:\n", moreTraffic+"        credentialRules:\n"+moreRules, 1)
	p = strings.Replace(p, "      credentialBindings:\n", "      credentialBindings:\n"+moreBindings, 1) + anotherSandbox
	_, port, _ := net.SplitHostPort(r.sshd.ln.Addr().String())
	return strings.NewReplacer(
		"PLACEHOLDER", canaryPlaceholder, "SANDBOXKEY", authorized(r.sshKey), "HOSTKEY", fmt.Sprintf("[ssh.test]:%s %s", port, authorized(r.sshd.host)),
	).Replace(p)
}

func authorized(s ssh.Signer) string {
	return strings.TrimSpace(string(ssh.MarshalAuthorizedKey(s.PublicKey())))
}

// keyServer is an SSH server that lets in who shows any key, and remembers it.
type keyServer struct {
	ln   net.Listener
	host ssh.Signer
	wg   sync.WaitGroup

	mu  sync.Mutex
	key ssh.PublicKey // the last that logged in
}

func newKeyServer(t *testing.T, ip string) *keyServer {
	ln, err := net.Listen("tcp4", net.JoinHostPort(ip, "0"))
	if err != nil {
		t.Fatal(err)
	}
	s := &keyServer{ln: ln, host: newSigner(t)}
	s.wg.Go(s.accept)
	t.Cleanup(func() {
		_ = ln.Close()
		s.wg.Wait()
	})
	return s
}

func (s *keyServer) accept() {
	for {
		nc, err := s.ln.Accept()
		if err != nil {
			return
		}
		s.wg.Go(func() {
			defer func() { _ = nc.Close() }()
			_ = nc.SetDeadline(time.Now().Add(30 * time.Second))
			s.serve(nc)
		})
	}
}

func (s *keyServer) serve(nc net.Conn) {
	conf := &ssh.ServerConfig{PublicKeyCallback: func(_ ssh.ConnMetadata, key ssh.PublicKey) (*ssh.Permissions, error) {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.key = key
		return nil, nil
	}}
	conf.AddHostKey(s.host)
	c, channels, requests, err := ssh.NewServerConn(nc, conf)
	if err != nil {
		return
	}
	defer func() { _ = c.Close() }()
	s.wg.Go(func() { ssh.DiscardRequests(requests) })
	for in := range channels {
		ch, asked, err := in.Accept()
		if err != nil {
			return
		}
		s.wg.Go(func() {
			for q := range asked {
				_ = q.Reply(q.Type == "exec", nil)
				if q.Type == "exec" && !strings.Contains(string(q.Payload), "stay") {
					_, _ = io.WriteString(ch, "hello\n")
					_, _ = ch.SendRequest("exit-status", false, []byte{0, 0, 0, 0})
					_ = ch.Close()
				}
			}
		})
	}
}

func newSigner(t *testing.T) ssh.Signer {
	t.Helper()
	s, err := ssh.ParsePrivateKey([]byte(text(sshSample(t, false).fields, "privateKeyPem")))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// repeatSession tells a sandbox what its request was given.
func repeatSession(w http.ResponseWriter, q *http.Request) {
	_, _ = io.WriteString(w, q.Header.Get("X-Amz-Security-Token"))
}

// tellingRedis is a Redis that says loudly which password it does not like.
func tellingRedis(t *testing.T, ip string) net.Listener {
	ln, err := net.Listen("tcp4", net.JoinHostPort(ip, "0"))
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			_ = c.SetDeadline(time.Now().Add(10 * time.Second))
			head := make([]byte, 4096)
			n, _ := c.Read(head)
			_, _ = fmt.Fprintf(c, "-WRONGPASS %q\r\n", head[:n])
			_ = c.Close()
		}
	})
	t.Cleanup(func() {
		_ = ln.Close()
		wg.Wait()
	})
	return ln
}

// tunnel opens a CONNECT to an authority, as sandbox one.
func (r *canaryRig) tunnel(authority string) net.Conn {
	r.t.Helper()
	c, err := net.Dial("tcp", r.d.proxy)
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { _ = c.Close() })
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	_, _ = fmt.Fprintf(c, "CONNECT %s HTTP/1.1\r\nHost: %s\r\nProxy-Authorization: Basic %s\r\n\r\n", authority, authority,
		base64.StdEncoding.EncodeToString([]byte("one:"+proxyToken)))
	resp, err := http.ReadResponse(bufio.NewReaderSize(c, 16), nil) // 16: nothing comes before we speak
	if err != nil || resp.StatusCode != http.StatusOK {
		r.t.Fatalf("CONNECT %s: %v, %v", authority, resp, err)
	}
	return c
}

// driveLogins uses every projection that is not a header, and the ways in beside CONNECT.
func (r *canaryRig) driveLogins() {
	r.t.Helper()
	r.driveSigning()
	r.drivePlaceholders()
	r.driveSSH()
	c := r.tunnel(r.redis)
	_, _ = io.WriteString(c, "PING\r\n")
	answer, _ := io.ReadAll(c)
	r.keep("proxy answers", answer)
	if !strings.Contains(string(answer), "upstream_login_refused") {
		r.t.Errorf("redis: %q", answer)
	}
	r.driveSOCKS()
	r.driveDNS()
}

func (r *canaryRig) driveSigning() {
	r.t.Helper()
	for _, path := range []string{"/", "/session"} {
		req, err := http.NewRequest(http.MethodGet, r.url("aws.test", path), nil)
		if err != nil {
			r.t.Fatal(err)
		}
		const empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855" // SHA-256 of nothing
		req.Header.Set("X-Amz-Content-Sha256", empty)
		dummy := aws.Credentials{AccessKeyID: "DUMMYDUMMYDUMMYDUMMY", SecretAccessKey: "dummy-secret-of-the-sandbox"}
		if err := v4.NewSigner().SignHTTP(r.t.Context(), dummy, req, empty, "s3", "eu-west-1", time.Now()); err != nil {
			r.t.Fatal(err)
		}
		if a := r.keepReply("proxy answers", send(r.d.sandbox(false).Client, req)); a.status != http.StatusOK {
			r.t.Errorf("aws.test%s: %s", path, a)
		}
	}
}

// drivePlaceholders uses one where it belongs, with an origin that repeats everything, and
// where it does not; and sends the secret itself, as only a sandbox that had it could.
func (r *canaryRig) drivePlaceholders() {
	r.t.Helper()
	ask := func(want int, method, target, body string) {
		r.t.Helper()
		req, err := http.NewRequest(method, target, strings.NewReader(body))
		if err != nil {
			r.t.Fatal(err)
		}
		req.Header.Set("X-Key", canaryPlaceholder)
		req.Header.Set("Content-Type", "application/json")
		if a := r.keepReply("proxy answers", send(r.d.sandbox(false).Client, req)); a.status != want {
			r.t.Errorf("%s %s: want %d, got %s", method, target, want, a)
		}
	}
	for _, path := range []string{"/echo", "/echo-slow", "/echo-gz", "/echo-br", "/echo-json"} {
		ask(200, http.MethodPost, r.url("place.test", path+"?key="+canaryPlaceholder), `{"key":"`+canaryPlaceholder+`"}`)
	}
	ask(200, http.MethodGet, r.url("place.test", "/"), "")
	ask(403, http.MethodGet, r.url("basic.test", "/"), "")
	for _, l := range r.placed.inject {
		req, err := http.NewRequest(http.MethodGet, r.url("basic.test", "/?x="+url.QueryEscape(l)), nil)
		if err != nil {
			r.t.Fatal(err)
		}
		req.Header.Set("X-Stolen", l)
		if a := r.keepReply("proxy answers", send(r.d.sandbox(false).Client, req)); a.status != http.StatusForbidden {
			r.t.Errorf("a stolen value: %s", a)
		}
	}
}

// driveSSH logs in, runs a command, and is seen and closed while another runs.
func (r *canaryRig) driveSSH() {
	r.t.Helper()
	authority, _, _, _, err := ssh.ParseAuthorizedKey([]byte(strings.TrimPrefix(r.must(0, r.cli("", nil, "ca", "ssh", "--config", r.d.path("egressd.yaml")), "ca ssh").stdout, "@cert-authority * ")))
	if err != nil {
		r.t.Fatal(err)
	}
	_, port, _ := net.SplitHostPort(r.sshd.ln.Addr().String())
	at := "ssh.test:" + port
	check := &ssh.CertChecker{IsHostAuthority: func(k ssh.PublicKey, _ string) bool { return string(k.Marshal()) == string(authority.Marshal()) }}
	login := func(key ssh.Signer) (*ssh.Client, error) {
		c, channels, requests, err := ssh.NewClientConn(r.tunnel(at), at, &ssh.ClientConfig{
			User: "anybody", Auth: []ssh.AuthMethod{ssh.PublicKeys(key)}, HostKeyCallback: check.CheckHostKey,
			BannerCallback: func(m string) error { r.keep("proxy answers", []byte(m)); return nil },
		})
		if err != nil {
			return nil, err
		}
		return ssh.NewClient(c, channels, requests), nil
	}
	if _, err := login(newSigner(r.t)); err == nil {
		r.t.Error("ssh: a key that the rule does not name was let in")
	}
	c, err := login(r.sshKey)
	if err != nil {
		r.t.Fatal(err)
	}
	s, err := c.NewSession()
	if err != nil {
		r.t.Fatal(err)
	}
	out, err := s.CombinedOutput("hello")
	r.keep("proxy answers", append(out, fmt.Sprint(err)...))
	if err != nil || string(out) != "hello\n" {
		r.t.Errorf("ssh: %q, %v", out, err)
	}
	r.driveConnections()
	_ = c.Close()
}

// driveConnections lists the session and closes it.
func (r *canaryRig) driveConnections() {
	r.t.Helper()
	r.must(0, r.cli("", nil, "connections", "list", "--json"), "connections list --json")
	list := r.must(0, r.cli("", nil, "connections", "list", "--source", "static_ssh_private_key"), "connections list").stdout
	m := regexp.MustCompile(`(?m)^(\d+) +one +connect +ssh\.test:\d+ +ssh +static_ssh_private_key@\d+`).FindStringSubmatch(list)
	if m == nil {
		r.t.Fatalf("the SSH session is not listed: %s", list)
	}
	r.must(0, r.cli("", nil, "connections", "close", m[1]), "connections close")
	r.must(1, r.cli("", nil, "connections", "close", "no-number", "--json"), "connections close")
	r.ok(http.MethodGet, "/connections?sandbox=one", nil)
	r.call(http.MethodDelete, "/connections/18446744073709551615", nil)
}

func (r *canaryRig) driveSOCKS() {
	r.t.Helper()
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(r.d.roots)
	for _, password := range []string{proxyToken, "wrong-" + proxyToken} {
		tr := &http.Transport{Proxy: http.ProxyURL(&url.URL{Scheme: "socks5", Host: r.d.proxy, User: url.UserPassword("one", password)}), TLSClientConfig: &tls.Config{RootCAs: pool}}
		req, err := http.NewRequest(http.MethodGet, r.url("headers.test", "/"), nil)
		if err != nil {
			r.t.Fatal(err)
		}
		a := r.keepReply("proxy answers", send(&http.Client{Transport: tr, Timeout: 20 * time.Second}, req))
		tr.CloseIdleConnections()
		if ok := a.status == http.StatusOK; ok != (password == proxyToken) {
			r.t.Errorf("SOCKS5: %s", a)
		}
	}
}

func (r *canaryRig) driveDNS() {
	r.t.Helper()
	m := regexp.MustCompile(`"dns":\["(127[^"]+)"`).FindSubmatch(r.d.errout.since(0))
	if m == nil {
		r.t.Fatal("the log does not name the DNS listener")
	}
	for _, ask := range []struct {
		from, name string
		want       int
	}{
		{"127.0.0.91", "headers.test.", dns.RcodeSuccess},
		{"127.0.0.91", "denied.test.", dns.RcodeRefused},
		{"127.0.0.92", "headers.test.", -1}, // nobody's address gets no answer at all
	} {
		c := dns.Client{Net: "tcp", Dialer: &net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(ask.from)}, Timeout: 5 * time.Second}}
		got, _, err := c.ExchangeContext(r.t.Context(), new(dns.Msg).SetQuestion(ask.name, dns.TypeA), string(m[1]))
		code := -1
		if err == nil {
			r.keep("proxy answers", []byte(got.String()))
			code = got.Rcode
		}
		if code != ask.want {
			r.t.Errorf("DNS: %s from %s: %v, %v", ask.name, ask.from, got, err)
		}
	}
}

// driveIsolated runs the self-test where it is meant to: nothing of it leaves this machine.
func (r *canaryRig) driveIsolated() {
	r.t.Helper()
	inner := []string{"--", egressd, "selftest", "--json", "--target4", "192.0.2.1:7", "--timeout", "400ms"}
	args := append([]string{"run", "--isolate", "--inject", "headers.test=THE_TOKEN"}, inner...)
	got := r.cli("", []string{"THE_TOKEN=" + r.placed.inject[0]}, args...)
	if got.code != 0 || !strings.Contains(got.stdout, `"verdict"`) {
		r.t.Errorf("egressd %q: %s", args, got)
	}
}

// reachedLogins is the counter-check of driveLogins.
func (r *canaryRig) reachedLogins(samples []sample) {
	r.t.Helper()
	place := r.origins["place.test"]
	whole := string(place.Captured())
	if n := strings.Count(whole, samples[0].inject[0]); n < 6 || strings.Contains(whole, canaryPlaceholder) {
		r.t.Errorf("place.test got the token %d times, and the placeholder: %v", n, strings.Contains(whole, canaryPlaceholder))
	}
	signed := r.origins["aws.test"].Last(r.t).Header
	if !strings.Contains(signed.Get("Authorization"), "Credential="+text(samples[4].fields, "accessKeyId")+"/") || signed.Get("X-Amz-Security-Token") != text(samples[4].fields, "sessionToken") {
		r.t.Errorf("aws.test got %q", signed)
	}
	if testbed.Leaks([]byte(whole+string(r.origins["aws.test"].Captured())), text(samples[4].fields, "secretAccessKey")) != nil {
		r.t.Error("the secret key was sent, not signed with")
	}
	own, err := ssh.ParsePrivateKey([]byte(text(samples[3].fields, "privateKeyPem")))
	r.sshd.mu.Lock()
	defer r.sshd.mu.Unlock()
	if err != nil || r.sshd.key == nil || string(r.sshd.key.Marshal()) != string(own.PublicKey().Marshal()) {
		r.t.Errorf("ssh.test was not shown the source's key: %v", err)
	}
}
