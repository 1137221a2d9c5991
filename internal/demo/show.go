package main

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// show is the demo itself. A step that does not come out as it should is an error.
type show struct {
	out    io.Writer
	daemon *daemon
	origin *origin
	n      int

	direct, through *http.Client
}

func (s *show) say(format string, args ...any) { _, _ = fmt.Fprintf(s.out, format+"\n", args...) }

func (s *show) step(title string) {
	s.n++
	s.say("\n%d. %s", s.n, title)
}

func indent(text string) string {
	return "     " + strings.ReplaceAll(strings.TrimRight(text, "\n"), "\n", "\n     ")
}

func (s *show) close() {
	for _, c := range []*http.Client{s.direct, s.through} {
		if c != nil {
			c.CloseIdleConnections()
		}
	}
}

func (s *show) steps(ctx context.Context) error {
	first, second := "demo-"+rand.Text(), "demo-"+rand.Text()
	s.origin.accept(first)
	s.say("origin   %s  (wants token %s)", s.origin.url(), fingerprint(first))
	s.say("egressd  http://%s", s.daemon.proxy)
	if err := s.clients(ctx); err != nil {
		return err
	}

	s.step("The client has no token. It asks the origin directly:")
	if _, err := s.ask(ctx, s.direct, http.StatusUnauthorized, ""); err != nil {
		return err
	}
	s.step("The operator gives the token to egressd, which never gives it back:")
	if _, err := s.command(ctx, first, "source", "add", "demo-api"); err != nil {
		return err
	}
	s.step("The same client, still without a token, asks through egressd:")
	before, err := s.ask(ctx, s.through, http.StatusOK, fingerprint(first))
	if err != nil {
		return err
	}
	s.step("The token is rotated through the API while the client's connection stays open (the origin now wants " + fingerprint(second) + "):")
	s.origin.accept(second)
	if _, err := s.command(ctx, second, "source", "rotate", "demo-api"); err != nil {
		return err
	}
	s.step("The next request on that same connection carries the new one:")
	after, err := s.ask(ctx, s.through, http.StatusOK, fingerprint(second))
	if err != nil {
		return err
	}
	if before != after {
		return fmt.Errorf("the second request came over another connection (%s, before %s)", after, before)
	}
	s.say("     (both requests went over the client's connection from %s)", after)

	s.step("What can be read about the source, its value never:")
	shown, err := s.command(ctx, "", "source", "get", "demo-api")
	if err != nil {
		return err
	}
	if strings.Contains(shown, first) || strings.Contains(shown, second) {
		return fmt.Errorf("the value is in the answer of `source get`")
	}
	return s.audit(second)
}

// clients are the same program twice: one that dials the origin, one behind egressd that
// trusts egressd's CA. Neither has a token.
func (s *show) clients(ctx context.Context) error {
	roots := x509.NewCertPool()
	roots.AddCert(s.origin.cert)
	s.direct = &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{
		TLSClientConfig: &tls.Config{RootCAs: roots},
		DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, network, s.origin.ln.Addr().String())
		},
	}}
	ca, err := s.daemon.cli(ctx, "", "ca", "export")
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(s.daemon.dir, "egressd-ca.pem"), []byte(ca), 0o600); err != nil {
		return err
	}
	trust := x509.NewCertPool()
	if !trust.AppendCertsFromPEM([]byte(ca)) {
		return fmt.Errorf("`egressd ca export` gave no certificate")
	}
	s.through = &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{
		Proxy:           http.ProxyURL(&url.URL{Scheme: "http", Host: s.daemon.proxy}),
		TLSClientConfig: &tls.Config{RootCAs: trust},
	}}
	return nil
}

// ask sends one request and returns the client's end of the connection that it went over.
func (s *show) ask(ctx context.Context, c *http.Client, status int, want string) (local string, err error) {
	ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{
		GotConn: func(i httptrace.GotConnInfo) { local = i.Conn.LocalAddr().String() },
	})
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.origin.url(), nil)
	if err != nil {
		return "", err
	}
	resp, err := c.Do(req)
	if err != nil {
		return "", err
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 1<<16))
	if err != nil {
		return "", err
	}
	s.say("   GET %s", s.origin.url())
	s.say("%s", indent(fmt.Sprintf("%s\n%s", resp.Status, body)))
	if resp.StatusCode != status || !strings.Contains(string(body), want) {
		return "", fmt.Errorf("wanted %d %s", status, want)
	}
	return local, nil
}

func (s *show) command(ctx context.Context, secret string, args ...string) (string, error) {
	pipe := ""
	if secret != "" {
		pipe = "printf %s \"$TOKEN\" | "
	}
	s.say("   $ %segressd %s", pipe, strings.Join(args, " "))
	out, err := s.daemon.cli(ctx, secret, args...)
	if err != nil {
		return "", err
	}
	s.say("%s", indent(out))
	return out, nil
}

// audit shows the record of the last request; it is written behind, so it is waited for.
func (s *show) audit(secret string) error {
	s.step("The record of the last request:")
	file := filepath.Join(s.daemon.dir, "state", "audit.jsonl")
	for end := time.Now().Add(5 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		b, err := os.ReadFile(file)
		if err == nil {
			if strings.Contains(string(b), secret) {
				return fmt.Errorf("the value is in the audit log")
			}
			lines := strings.Split(strings.TrimSpace(string(b)), "\n")
			if last := lines[len(lines)-1]; strings.Contains(last, "demo-api@2") || strings.Contains(last, `"demo-api"`) {
				s.say("%s", indent(last))
				return nil
			}
		}
		if time.Now().After(end) {
			return errors.Join(fmt.Errorf("no record of the request in %s", file), err)
		}
	}
}

// next tells what to try while the daemon runs.
func (s *show) next() {
	d := s.daemon
	s.say(`
egressd is running. Try, in another terminal:

   export EGRESSD_ADDR=%[1]s
   curl --cacert %[2]s/egressd-ca.pem -x http://%[3]s %[4]s
   curl --cacert %[2]s/egressd-ca.pem -x http://%[3]s https://example.com/      # refused: no rule allows it
   printf wrong | %[5]s source rotate demo-api      # then ask again: 401 from the origin
   %[5]s source disable demo-api                    # then ask again: 503 from egressd
   %[5]s policy explain --sandbox demo %[4]s
   tail -f %[2]s/state/audit.jsonl
   $EDITOR %[2]s/policy/demo.yaml                   # in force as soon as it is saved

Ctrl-C ends all of it and removes %[2]s.`, d.addr(), d.dir, d.proxy, s.origin.url(), d.bin)
}
