package testbed

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/miekg/dns"
)

type addrPort = netip.AddrPort

func sha(s string) string {
	h := sha256.Sum256([]byte(s))
	return hex.EncodeToString(h[:])
}

func TestNameServerAnswersByScript(t *testing.T) {
	ns := NewNS(t)
	ns.On("good.test", DNSAnswer{IPs: []string{"127.0.0.2", "::2"}}, DNSAnswer{IPs: []string{"127.0.0.3"}, TTL: 9},
		DNSAnswer{Rcode: dns.RcodeServerFailure})
	ns.On("alias.test", DNSAnswer{CNAME: "vault.internal", IPs: []string{"127.0.0.9"}})
	ns.On("h3.test", DNSAnswer{RRs: []string{"h3.test. 60 IN HTTPS 1 . alpn=h3"}})
	r := &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, network, ns.Addr())
	}}
	look := func(name string) string {
		ctx, stop := context.WithTimeout(t.Context(), 3*time.Second)
		defer stop()
		ips, err := r.LookupNetIP(ctx, "ip4", name+".")
		if err != nil {
			return "error"
		}
		return ips[0].String()
	}
	got := []string{look("good.test"), look("GOOD.test"), look("good.test"), look("alias.test"), look("none.test")}
	if d := cmp.Diff([]string{"127.0.0.2", "127.0.0.3", "error", "127.0.0.9", "error"}, got); d != "" {
		t.Error(d)
	}
	for _, network := range []string{"udp", "tcp"} {
		m := new(dns.Msg).SetQuestion("h3.test.", dns.TypeHTTPS)
		in, _, err := (&dns.Client{Net: network}).Exchange(m, ns.Addr())
		if err != nil || len(in.Answer) != 1 || !strings.Contains(in.Answer[0].String(), "h3") {
			t.Errorf("%s: %v, %v", network, in, err)
		}
	}
	q := ns.Queries()
	if last := q[len(q)-1]; last != (DNSQuery{Name: "h3.test", Type: "HTTPS", TCP: true}) {
		t.Errorf("%+v", last)
	}
	ns.DropAll(true)
	m := new(dns.Msg).SetQuestion("good.test.", dns.TypeA)
	if in, _, err := (&dns.Client{Timeout: 50 * time.Millisecond}).Exchange(m, ns.Addr()); err == nil {
		t.Errorf("answered %v", in)
	}
}

func TestGitClonesAndPushesWithBasicOnly(t *testing.T) {
	g := NewGit(t, "agent", "p@ss/word")
	o := NewOrigin(t, nil, OriginOptions{Plain: true, Mount: map[string]http.Handler{"/git/": g}})
	at := func(user, pw string) string {
		return "http://" + url.UserPassword(user, pw).String() + "@" + o.Addr().String() + "/git/repo.git"
	}
	dir := filepath.Join(t.TempDir(), "clone")
	GitRun(t, nil, "clone", "-q", at("agent", "p@ss/word"), dir)
	readme, err := os.ReadFile(filepath.Join(dir, "README"))
	if err != nil || string(readme) != "hello from git\n" {
		t.Fatalf("%q, %v", readme, err)
	}
	big := make([]byte, 3<<20) // more than http.postBuffer: git sends it chunked
	for i := range big {
		big[i] = byte(i * i >> 7)
	}
	if err := os.WriteFile(filepath.Join(dir, "big"), big, 0o600); err != nil {
		t.Fatal(err)
	}
	before := g.Head(t)
	GitRun(t, nil, "-C", dir, "add", "big")
	GitRun(t, nil, "-C", dir, "commit", "-q", "-m", "second")
	GitRun(t, nil, "-C", dir, "push", "-q", "origin", "main")
	if g.Head(t) == before {
		t.Error("the push changed nothing")
	}
	refused := g.Refused()
	g.Set("agent", "rotated")
	resp, err := http.Get(at("agent", "p@ss/word") + "/info/refs?service=git-upload-pack")
	if err != nil {
		t.Fatal(err)
	}
	_ = resp.Body.Close()
	if resp.StatusCode != http.StatusUnauthorized || g.Refused() != refused+1 {
		t.Errorf("%d with the old password", resp.StatusCode)
	}
	http.DefaultClient.CloseIdleConnections()
}

func TestLeaksFindsEveryForm(t *testing.T) {
	secret := NewCanary()
	var zipped bytes.Buffer
	zw := gzip.NewWriter(&zipped)
	_, _ = io.WriteString(zw, "…"+base64.StdEncoding.EncodeToString([]byte("xx"+secret+"yy")))
	_ = zw.Close()
	for name, data := range map[string]string{
		"raw":      "a" + secret + "b",
		"base64 0": base64.StdEncoding.EncodeToString([]byte(secret + "tail")),
		"base64 1": base64.URLEncoding.EncodeToString([]byte("x" + secret + "tail")),
		"base64 2": base64.StdEncoding.EncodeToString([]byte("agent:p" + secret)),
		"basic":    base64.StdEncoding.EncodeToString([]byte("user:" + secret)),
		"hex":      hex.EncodeToString([]byte("pre" + secret)),
		"url":      "?k=" + url.QueryEscape(secret),
		"gzip":     "junk" + zipped.String() + "junk",
	} {
		if len(Leaks([]byte(data), secret)) == 0 {
			t.Errorf("%s: not found", name)
		}
		if l := Leaks([]byte(data), NewCanary()); len(l) > 0 {
			t.Errorf("%s: found another secret: %v", name, l)
		}
	}
}

func TestSinkRecords(t *testing.T) {
	s := NewSink(t, "127.0.0.3")
	c, err := net.Dial("tcp", netip.AddrPortFrom(netip.MustParseAddr("127.0.0.3"), s.Port()).String())
	if err != nil {
		t.Fatal(err)
	}
	_, _ = io.WriteString(c, "stolen")
	_ = c.Close()
	for end := time.Now().Add(2 * time.Second); string(s.Captured()) != "stolen"; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%q from %d connections", s.Captured(), s.Conns())
		}
	}
}
