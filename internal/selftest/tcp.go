package selftest

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"syscall"
)

// organization stands in the certificates of egressd's CA.
const organization = "egressd"

// maxReply is as much of an answer as is looked at.
const maxReply = 16 << 10

func nonce() string { return strings.ToLower(rand.Text()) }

// tryText sends a line that no protocol has: only a target that answers anything answers.
func tryText(ctx context.Context, network, to string) (Verdict, string) {
	return exchange(ctx, network, to, "egressd-selftest "+nonce()+"\r\n\r\n")
}

// tryHTTP asks as programs that look for credentials do.
func tryHTTP(ctx context.Context, network, to string) (Verdict, string) {
	host, port, err := net.SplitHostPort(to)
	if err != nil {
		return Skipped, "it is not HOST:PORT"
	}
	if strings.Contains(host, ":") {
		host = "[" + host + "]"
	}
	if port != "80" {
		host += ":" + port
	}
	return exchange(ctx, network, to, "GET / HTTP/1.1\r\nHost: "+host+"\r\nMetadata-Flavor: Google\r\nUser-Agent: egressd-selftest\r\nConnection: close\r\n\r\n")
}

// exchange sends text and looks who answers.
func exchange(ctx context.Context, network, to, text string) (Verdict, string) {
	c, err := dial(ctx, network, to)
	if err != nil {
		return Blocked, why(err)
	}
	defer func() { _ = c.Close() }()
	if _, err := io.WriteString(c, text); err != nil {
		return Blocked, "accepted, then " + why(err)
	}
	return judge(readSome(c))
}

// readSome reads until an answer says who gave it, or ends.
func readSome(c net.Conn) ([]byte, error) {
	var all []byte
	b := make([]byte, 4096)
	for len(all) < maxReply {
		n, err := c.Read(b)
		all = append(all, b[:n]...)
		if err != nil {
			return all, err
		}
		if _, _, ok := bytes.Cut(all, []byte("\r\n\r\n")); ok {
			break
		}
	}
	return all, nil
}

// judge tells who gave an answer.
func judge(answer []byte, err error) (Verdict, string) {
	if code, ok := refusedByEgressd(answer); ok {
		return Governed, "egressd refused it: " + code
	}
	switch {
	case len(answer) > 0:
		return Open, fmt.Sprintf("somebody answered with %d bytes", len(answer))
	case errors.Is(err, os.ErrDeadlineExceeded):
		return Unclear, "accepted, then silence"
	}
	return Blocked, "accepted, then " + why(err)
}

// refusedByEgressd finds the header of egressd's own answers. The code is of egressd's words:
// a letter or an underscore each.
func refusedByEgressd(answer []byte) (code string, ok bool) {
	head, _, _ := bytes.Cut(answer, []byte("\r\n\r\n"))
	if !bytes.HasPrefix(head, []byte("HTTP/1.")) {
		return "", false
	}
	for line := range bytes.Lines(head) {
		name, value, _ := bytes.Cut(line, []byte(":"))
		if !bytes.EqualFold(name, []byte("X-Egressd-Error")) {
			continue
		}
		value = bytes.TrimSpace(value)
		if i := bytes.IndexFunc(value, func(r rune) bool { return r != '_' && (r < 'a' || r > 'z') && (r < '0' || r > '9') }); i >= 0 {
			value = value[:i]
		}
		return string(value), true
	}
	return "", false
}

// why is an error in a few words.
func why(err error) string {
	switch {
	case err == nil, errors.Is(err, io.EOF):
		return "closed without an answer"
	case errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE):
		return "reset"
	case errors.Is(err, syscall.ECONNREFUSED):
		return "refused"
	case errors.Is(err, syscall.EPERM):
		return "not permitted"
	case errors.Is(err, syscall.EACCES):
		return "prohibited"
	case errors.Is(err, syscall.ENETUNREACH), errors.Is(err, syscall.EHOSTUNREACH), errors.Is(err, syscall.EADDRNOTAVAIL):
		return "no route"
	case errors.Is(err, syscall.EAFNOSUPPORT), errors.Is(err, syscall.EPROTONOSUPPORT), errors.Is(err, syscall.ESOCKTNOSUPPORT):
		return "not supported here"
	case errors.Is(err, syscall.ENOENT):
		return "it does not exist"
	case errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, context.DeadlineExceeded):
		return "no answer"
	}
	return strings.Join(strings.Fields(err.Error()), " ")
}

// tapped keeps what was read of a connection.
type tapped struct {
	net.Conn
	in []byte
}

func (t *tapped) Read(p []byte) (int, error) {
	n, err := t.Conn.Read(p)
	if len(t.in) < maxReply {
		t.in = append(t.in, p[:n]...)
	}
	return n, err
}

// tryTLS looks at whose certificate is shown.
func tryTLS(ctx context.Context, network, to, serverName string) (Verdict, string) {
	raw, err := dial(ctx, network, to)
	if err != nil {
		return Blocked, why(err)
	}
	defer func() { _ = raw.Close() }()
	t := &tapped{Conn: raw}
	c := tls.Client(t, &tls.Config{ServerName: serverName, MinVersion: tls.VersionTLS12, NextProtos: []string{"http/1.1"}})
	err = c.HandshakeContext(ctx)
	chain := c.ConnectionState().PeerCertificates
	var unverified *tls.CertificateVerificationError
	if errors.As(err, &unverified) {
		chain = unverified.UnverifiedCertificates
	}
	if len(chain) > 0 {
		return judgeCertificate(chain[0])
	}
	if v, detail, ok := judgeAlert(t.in); ok {
		return v, detail
	}
	if err == nil {
		err = errors.New("no certificate")
	}
	return judge(t.in, err)
}

func judgeCertificate(leaf *x509.Certificate) (Verdict, string) {
	if slices.Contains(leaf.Issuer.Organization, organization) {
		return Governed, "egressd's certificate was shown"
	}
	return Open, "a certificate that is not egressd's was shown"
}

// Of RFC 8446: the record type of alerts, and the alert that a client's identity is not
// allowed, for which servers have no reason before they know it.
const (
	alertRecord  = 21
	accessDenied = 49
)

// judgeAlert: egressd refuses TLS with an alert, and so does many a server.
func judgeAlert(in []byte) (Verdict, string, bool) {
	if len(in) < 7 || in[0] != alertRecord {
		return "", "", false
	}
	if in[6] == accessDenied {
		return Governed, "refused by TLS alert access_denied, as egressd does", true
	}
	return Unclear, fmt.Sprintf("refused by TLS alert %d, egressd's or another's", in[6]), true
}

// tryName resolves as the system does and goes on by TLS.
func tryName(ctx context.Context, name string) (Verdict, string) {
	host, port, err := net.SplitHostPort(name)
	if err != nil {
		return Skipped, "it is not NAME:PORT"
	}
	ips, err := (&net.Resolver{PreferGo: true}).LookupNetIP(ctx, "ip", host)
	var no *net.DNSError
	switch {
	case errors.As(err, &no) && no.IsTimeout:
		return Blocked, "the name was not resolved: no answer"
	case err != nil:
		return Blocked, "the name was not resolved"
	case len(ips) == 0:
		return Blocked, "the name has no address"
	}
	slices.SortFunc(ips, netip.Addr.Compare)
	return tryTLS(ctx, "tcp", net.JoinHostPort(ips[0].Unmap().String(), port), host)
}

// trySocket: connecting is enough. Whatever serves a Unix socket is outside of any network.
func trySocket(ctx context.Context, path string) (Verdict, string) {
	c, err := dial(ctx, "unix", path)
	if err != nil {
		return Blocked, why(err)
	}
	_ = c.Close()
	return Open, "it accepts"
}
