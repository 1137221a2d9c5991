package selftest

import (
	"bytes"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

func TestJudge(t *testing.T) {
	for _, tc := range []struct {
		answer string
		err    error
		want   Verdict
		say    string
	}{
		{"HTTP/1.1 403 Forbidden\r\nx-egressd-error: policy_denied\r\n\r\nbody", nil, Governed, "policy_denied"},
		{"HTTP/1.0 403 Forbidden\r\nX-Egressd-Error: a\x1b[31m\r\n\r\n", nil, Governed, "egressd refused it: a"},
		{"HTTP/1.1 200 OK\r\n\r\nX-Egressd-Error: in the body", nil, Open, "bytes"},
		{"HTTP/1.1 200 OK\r\n\r\n", nil, Open, "bytes"},
		{"SSH-2.0-x\r\nX-Egressd-Error: y\r\n\r\n", nil, Open, "bytes"},
		{"\x00", io.EOF, Open, "1 bytes"},
		{"", io.EOF, Blocked, "closed without an answer"},
		{"", syscall.ECONNRESET, Blocked, "reset"},
		{"", fmt.Errorf("x: %w", os.ErrDeadlineExceeded), Unclear, "silence"},
	} {
		v, detail := judge([]byte(tc.answer), tc.err)
		if v != tc.want || !strings.Contains(detail, tc.say) || strings.ContainsAny(detail, "\x1b\r\n") {
			t.Errorf("%q, %v: %s, %q; want %s, %q", tc.answer, tc.err, v, detail, tc.want, tc.say)
		}
	}
}

func TestJudgeTLS(t *testing.T) {
	if v, _ := judgeCertificate(&x509.Certificate{Issuer: pkix.Name{Organization: []string{"egressd"}}}); v != Governed {
		t.Errorf("egressd's certificate: %s", v)
	}
	if v, _ := judgeCertificate(&x509.Certificate{Issuer: pkix.Name{Organization: []string{"Somebody"}}}); v != Open {
		t.Errorf("another's certificate: %s", v)
	}
	for alert, want := range map[byte]Verdict{49: Governed, 40: Unclear, 112: Unclear} {
		if v, _, ok := judgeAlert([]byte{21, 3, 3, 0, 2, 2, alert}); !ok || v != want {
			t.Errorf("alert %d: %s", alert, v)
		}
	}
	if _, _, ok := judgeAlert([]byte{22, 3, 3, 0, 2, 2, 49}); ok {
		t.Error("a handshake is no alert")
	}
}

func dnsAnswer(t *testing.T, rcode dnsmessage.RCode, ede int, answers, authorities bool) []byte {
	t.Helper()
	name := dnsmessage.MustNewName("a.test.")
	m := dnsmessage.Message{Header: dnsmessage.Header{ID: 7, Response: true, RCode: rcode}}
	if answers {
		m.Answers = []dnsmessage.Resource{{Header: dnsmessage.ResourceHeader{Name: name, Class: dnsmessage.ClassINET}, Body: &dnsmessage.AResource{A: [4]byte{192, 0, 2, 1}}}}
	}
	if authorities {
		m.Authorities = []dnsmessage.Resource{{Header: dnsmessage.ResourceHeader{Name: name, Class: dnsmessage.ClassINET}, Body: &dnsmessage.NSResource{NS: name}}}
	}
	if ede >= 0 {
		m.Additionals = []dnsmessage.Resource{{
			Header: dnsmessage.ResourceHeader{Name: dnsmessage.MustNewName("."), Type: dnsmessage.TypeOPT},
			Body:   &dnsmessage.OPTResource{Options: []dnsmessage.Option{{Code: optionEDE, Data: binary.BigEndian.AppendUint16(nil, uint16(ede))}}},
		}}
	}
	b, err := m.Pack()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestJudgeDNS(t *testing.T) {
	for name, tc := range map[string]struct {
		answer []byte
		want   Verdict
	}{
		"egressd":         {dnsAnswer(t, dnsmessage.RCodeRefused, edeBlocked, false, false), Governed},
		"a server's no":   {dnsAnswer(t, dnsmessage.RCodeRefused, -1, false, false), Unclear},
		"another error":   {dnsAnswer(t, dnsmessage.RCodeRefused, 18, false, false), Unclear},
		"not blocked":     {dnsAnswer(t, dnsmessage.RCodeSuccess, edeBlocked, false, false), Unclear},
		"an address":      {dnsAnswer(t, dnsmessage.RCodeSuccess, -1, true, false), Open},
		"no such name":    {dnsAnswer(t, dnsmessage.RCodeNameError, -1, false, true), Open},
		"refused, with a": {dnsAnswer(t, dnsmessage.RCodeRefused, edeBlocked, true, false), Open},
		"noise":           {[]byte("hello"), Open},
	} {
		if v, detail := judgeDNS(tc.answer, 7); v != tc.want {
			t.Errorf("%s: %s, %s; want %s", name, v, detail, tc.want)
		}
	}
	if v, _ := judgeDNS(dnsAnswer(t, dnsmessage.RCodeRefused, edeBlocked, false, false), 8); v != Open {
		t.Errorf("another id: %s", v)
	}
}

func TestHellos(t *testing.T) {
	if b := quicHello(); len(b) < 1200 || b[0]&0xc0 != 0xc0 || bytes.Equal(b, quicHello()) {
		t.Error("not an Initial of an unknown version")
	}
	query, id, err := question("a.test")
	var m dnsmessage.Message
	if err != nil || m.Unpack(query) != nil || m.ID != id || len(m.Questions) != 1 || len(m.Additionals) != 1 {
		t.Errorf("query %x, %v", query, err)
	}
	if _, _, err := question(strings.Repeat("a", 300)); err == nil {
		t.Error("a name that is too long")
	}
}

// Without a target of the operator's the plan aims at public addresses; with one at none.
func TestPlanStaysWithTheTargets(t *testing.T) {
	public := Options{}.plan()
	for _, want := range []string{"tcp-direct-v4", "tcp-direct-v6", "dns-udp-v4", "dns-tcp-v6", "dot-v4", "doh-v6", "quic-v4", "udp-other-v6", "icmp-v4", "icmp-v6",
		"http-direct-v4", "metadata-v4", "metadata-v6", "by-name", "peer", "own-listener", "unix-socket", "vsock"} {
		if !hasProbe(public, want) {
			t.Errorf("no probe %s", want)
		}
	}
	own := Options{Target4: netip.MustParseAddrPort("192.0.2.1:7")}.plan()
	for _, p := range own {
		host, _, _ := strings.Cut(p.target, "/")
		a, err := netip.ParseAddrPort(host)
		if err == nil && a.Addr() != netip.MustParseAddr("192.0.2.1") && p.name != "metadata-v4" {
			t.Errorf("%s aims at %s", p.name, p.target)
		}
	}
	if !hasProbe(own, "ipv6") || hasProbe(own, "tcp-direct-v6") {
		t.Error("the other family is not skipped")
	}
}

func hasProbe(probes []probe, name string) bool {
	for _, p := range probes {
		if p.name == name {
			return true
		}
	}
	return false
}

func TestWhy(t *testing.T) {
	for want, err := range map[string]error{
		"refused": &net.OpError{Err: os.NewSyscallError("connect", syscall.ECONNREFUSED)}, "not permitted": syscall.EPERM, "prohibited": syscall.EACCES,
		"no route": syscall.ENETUNREACH, "no answer": os.ErrDeadlineExceeded, "a b": errors.New("a\n b"), "it does not exist": syscall.ENOENT, "not supported here": syscall.EAFNOSUPPORT,
	} {
		if got := why(err); got != want {
			t.Errorf("%v: %q, want %q", err, got, want)
		}
	}
}

// A target that says nothing holds no probe for longer than its time.
func TestSilence(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = ln.Close() }()
	begun := time.Now()
	r := probe{"x", "y", nil}
	r.try = Options{Own: []string{ln.Addr().String()}}.own()[0].try
	got := r.run(t.Context(), 200*time.Millisecond)
	if got.Verdict != Unclear || time.Since(begun) > 5*time.Second {
		t.Errorf("%+v", got)
	}
}

func FuzzJudge(f *testing.F) {
	f.Add([]byte("HTTP/1.1 403 Forbidden\r\nX-Egressd-Error: policy_denied\r\n\r\n"))
	f.Add([]byte{21, 3, 3, 0, 2, 2, 49})
	f.Fuzz(func(t *testing.T, b []byte) {
		_, detail := judge(b, io.EOF)
		_, more := judgeDNS(b, 7)
		_, alert, _ := judgeAlert(b)
		if strings.ContainsFunc(detail+more+alert, func(r rune) bool { return r < ' ' || r > '~' }) {
			t.Errorf("%q %q %q", detail, more, alert)
		}
	})
}
