package proxy

import (
	"bufio"
	"context"
	"crypto/x509"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/elazarl/goproxy"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
	"golang.org/x/crypto/ssh"

	"github.com/egressd/egressd/internal/audit"
	"github.com/egressd/egressd/internal/certs"
	"github.com/egressd/egressd/internal/netguard"
)

type noRecords struct{}

func (noRecords) Write(*audit.Record) {}

// bareServer has no policy: it refuses everything.
func bareServer(t *testing.T) *Server {
	t.Helper()
	ca, err := certs.NewEphemeral(certs.Options{})
	if err != nil {
		t.Fatal(err)
	}
	guard, err := netguard.New(netguard.Options{})
	if err != nil {
		t.Fatal(err)
	}
	s, err := New(Options{Logger: zap.NewNop(), Audit: noRecords{}, Registry: prometheus.NewRegistry(), Leaves: ca, Guard: guard, Roots: x509.NewCertPool(), SSHHosts: noHosts{}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = s.Shutdown(context.Background())
		guard.Close()
	})
	return s
}

type noHosts struct{}

func (noHosts) HostSigners(string, uint16) ([]ssh.Signer, error) { return nil, errors.New("none") }

// Every default of the library that would carry traffic past our decisions is set, and
// what it is set to refuses.
func TestGoproxysDefaultsAreOurs(t *testing.T) {
	edge, ok := bareServer(t).edge.(*goproxy.ProxyHttpServer)
	if !ok {
		t.Fatal("the edge is something else")
	}
	library := goproxy.NewProxyHttpServer()
	if library.Tr.Proxy == nil || library.Tr.DialContext != nil {
		t.Error("the library's own transport is not what this test expects: look at its defaults again")
	}
	if edge.Tr.Proxy != nil || edge.Tr.TLSClientConfig != nil || edge.Tr.DialContext == nil || edge.Tr.DialTLSContext == nil {
		t.Error("A19 the transport could follow the environment or skip verification")
	}
	for name, dial := range map[string]func(context.Context, string, string) (net.Conn, error){"DialContext": edge.Tr.DialContext, "DialTLSContext": edge.Tr.DialTLSContext} {
		if c, err := dial(t.Context(), "tcp", "127.0.0.1:1"); c != nil || !errors.Is(err, errRefused) {
			t.Errorf("%s: %v, %v", name, c, err)
		}
	}
	if c, err := edge.ConnectDial("tcp", "127.0.0.1:1"); c != nil || !errors.Is(err, errRefused) {
		t.Errorf("ConnectDial: %v, %v", c, err)
	}
	if c, err := edge.ConnectDialWithReq(nil, "tcp", "127.0.0.1:1"); c != nil || !errors.Is(err, errRefused) {
		t.Errorf("ConnectDialWithReq: %v, %v", c, err)
	}
	if edge.CertStore != nil || edge.AllowHTTP2 || edge.KeepHeader || edge.Verbose || edge.ConnectionErrHandler != nil {
		t.Error("interception, its h2, header passing or logging of the library is on")
	}
	if _, ok := edge.Logger.(silent); !ok {
		t.Errorf("the library logs with %T", edge.Logger)
	}
}

// hijackable gives one end of a pipe away, as an http.Server would.
type hijackable struct {
	*httptest.ResponseRecorder
	conn net.Conn
}

func (h hijackable) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	return h.conn, bufio.NewReadWriter(bufio.NewReader(h.conn), bufio.NewWriter(h.conn)), nil
}

// Whatever a CONNECT asks for, the library's part is to give the connection away:
// never a tunnel, never an interception of its own.
func TestGoproxyOnlyGivesConnectionsAway(t *testing.T) {
	s := bareServer(t)
	for _, target := range []string{"good.test:443", "good.test:80", "good.test", "127.0.0.1:1", "[::1]:443", ":443", "x:0"} {
		near, far := net.Pipe()
		tn := &tunnel{srv: s, raw: near, ctx: t.Context(), drain: t.Context(), sess: &session{srv: s}}
		var ok bool
		if tn.handle, ok = s.live.add(tn); !ok {
			t.Fatal("no slot")
		}
		r := httptest.NewRequest(http.MethodConnect, "http://placeholder/", nil).WithContext(context.WithValue(t.Context(), tunnelKey{}, tn))
		r.RequestURI, r.URL.Host, r.Host = target, target, target
		answer := make(chan string)
		go func() {
			b := make([]byte, 4096)
			n, _ := far.Read(b)
			answer <- string(b[:n])
		}()
		s.edge.ServeHTTP(hijackable{httptest.NewRecorder(), near}, r)
		if got := <-answer; !strings.HasPrefix(got, "HTTP/1.1 403 ") || !strings.Contains(got, "X-Egressd-Error: no_policy") {
			t.Errorf("CONNECT %s: %q", target, got)
		}
		_ = far.Close()
		s.live.remove(tn.handle)
	}
}

// Absolute-form requests do not reach the library's forwarding; if one did, it would
// be answered and not forwarded.
func TestGoproxyForwardsNothing(t *testing.T) {
	s := bareServer(t)
	reached := false
	origin := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { reached = true }))
	defer origin.Close()
	w := httptest.NewRecorder()
	s.edge.ServeHTTP(w, httptest.NewRequest(http.MethodGet, origin.URL+"/", nil))
	if w.Code != http.StatusInternalServerError || w.Body.Len() != 0 || reached {
		t.Errorf("%d %q, reached=%v", w.Code, w.Body, reached)
	}
	// A websocket handshake has a path of its own in the library.
	r := httptest.NewRequest(http.MethodGet, origin.URL+"/", nil)
	r.Header.Set("Connection", "Upgrade")
	r.Header.Set("Upgrade", "websocket")
	w = httptest.NewRecorder()
	s.edge.ServeHTTP(w, r)
	if w.Code == http.StatusOK || w.Code == http.StatusSwitchingProtocols || reached {
		t.Errorf("websocket: %d, reached=%v", w.Code, reached)
	}
}

// The public authority of the library signs nothing here: no action that intercepts exists.
func TestGoproxysAuthorityIsNotUsed(t *testing.T) {
	s := bareServer(t)
	leaf, err := s.leaves.Leaf("good.test")
	if err != nil {
		t.Fatal(err)
	}
	public, err := x509.ParseCertificate(goproxy.GoproxyCa.Certificate[0])
	if err != nil {
		t.Fatal(err)
	}
	mine, err := x509.ParseCertificate(leaf.Certificate[0])
	if err != nil {
		t.Fatal(err)
	}
	if mine.CheckSignatureFrom(public) == nil || mine.Issuer.String() == public.Subject.String() {
		t.Error("D02 the leaf is signed by the library's authority")
	}
}
