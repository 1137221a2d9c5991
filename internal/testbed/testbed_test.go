package testbed

import (
	"bytes"
	"context"
	"crypto/tls"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"
	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// client dials o whatever the name in the URL.
func client(t *testing.T, ca *CA, o interface{ Addr() addrPort }, h2 bool, edit func(*tls.Config)) *http.Client {
	t.Helper()
	cfg := &tls.Config{RootCAs: ca.Pool()}
	if edit != nil {
		edit(cfg)
	}
	tr := &http.Transport{
		TLSClientConfig: cfg, ForceAttemptHTTP2: h2, DisableCompression: true,
		DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, network, o.Addr().String())
		},
	}
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr, Timeout: 10 * time.Second, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
}

func get(t *testing.T, c *http.Client, url string, edit func(*http.Request)) (*http.Response, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	if edit != nil {
		edit(req)
	}
	resp, err := c.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp, string(body)
}

func TestOriginRecordsWhatReachesIt(t *testing.T) {
	ca := NewCA(t)
	for _, proto := range []string{"HTTP/1.1", "HTTP/2.0"} {
		t.Run(proto, func(t *testing.T) {
			o := NewOrigin(t, ca, OriginOptions{ClientCAs: ca.Pool()})
			cert := ca.ClientCert(t, "agent-7")
			c := client(t, ca, o, proto == "HTTP/2.0", func(cfg *tls.Config) { cfg.Certificates = []tls.Certificate{cert} })
			resp, err := c.Post(o.URL("/upload?x=1"), "text/plain", strings.NewReader("twelve bytes"))
			if err != nil {
				t.Fatal(err)
			}
			answer, _ := io.ReadAll(resp.Body)
			_ = resp.Body.Close()
			if string(answer) != "12\n" || resp.Proto != proto {
				t.Errorf("answer %q over %s", answer, resp.Proto)
			}
			got := o.Last(t)
			want := Request{
				Proto: proto, Method: "POST", Target: "/upload?x=1", Host: o.HostPort(), ClientCert: "agent-7", BodyBytes: 12,
				BodySHA256: sha("twelve bytes"),
			}
			got.Header, got.Time, got.Trailer = nil, time.Time{}, nil
			if d := cmp.Diff(want, got); d != "" {
				t.Error(d)
			}
			conn := o.Conns()[0]
			if conn.SNI != "good.test" || conn.ClientCert != "agent-7" || conn.AppBytes == 0 || conn.WireBytes <= conn.AppBytes {
				t.Errorf("connection: %+v", conn)
			}
			if !bytes.Contains(conn.App, []byte("twelve bytes")) || bytes.Contains(conn.Wire, []byte("twelve bytes")) {
				t.Error("App must hold the plain bytes and Wire must not")
			}
		})
	}
}

func TestPaths(t *testing.T) {
	bed := New(t)
	o := bed.Good
	o.SetBearer("right")
	o.SetBasic("user", "pass")
	withHeader := func(k, v string) func(*http.Request) {
		return func(r *http.Request) { r.Header.Set(k, v) }
	}
	for _, tt := range []struct {
		path string
		edit func(*http.Request)
		code int
		body string // contained
	}{
		{"/", nil, 200, "hello"},
		{"/echo", withHeader("X-Probe", "reflected"), 200, "X-Probe: reflected"},
		{"/echo-slow", withHeader("X-Probe", "reflected"), 200, "X-Probe: reflected"},
		{"/echo-range", withHeader("Range", "bytes=0-3"), 206, "GET "},
		{"/echo-json", nil, 200, `GET /echo-json`},
		{"/echo-enc/hex", nil, 200, "474554202f6563686f"},
		{"/headers", withHeader("X-Probe", "reflected"), 200, `"X-Probe":["reflected"]`},
		{"/bearer", nil, 401, ""},
		{"/bearer", withHeader("Authorization", "Bearer wrong"), 401, ""},
		{"/bearer", withHeader("Authorization", "Bearer right"), 200, "authorized"},
		{"/basic", withHeader("Authorization", "Basic dXNlcjpwYXNz"), 200, "authorized"},
		{"/basic", withHeader("Authorization", "Basic dXNlcjpwYXN0"), 401, ""},
		{"/cert", nil, 401, ""},
		{"/sse?n=2&ms=1", nil, 200, "data: 0\n\ndata: 1\n\n"},
		{"/ndjson?n=2&ms=1", nil, 200, "{\"n\":0}\n{\"n\":1}\n"},
		{"/download?n=5", nil, 200, "\x00\x01\x02\x03\x04"},
		{"/download?n=300&chunked=1", nil, 200, "\xf9\xfa\x00\x01"},
		{"/status/204", nil, 204, ""},
		{"/status/418", nil, 418, "status 418"},
		{"/head", nil, 200, "twelve bytes"},
		{"/hints?n=3", nil, 200, "hinted"},
		{"/redirect/307", nil, 307, ""},
		{"/steer", withHeader("Authorization", "Bearer abc"), 200, "steered"},
		{"/wait?ms=1", nil, 200, "waited"},
	} {
		for _, h2 := range []bool{false, true} {
			resp, body := get(t, client(t, bed.CA, o, h2, nil), o.URL(tt.path), tt.edit)
			if resp.StatusCode != tt.code || !strings.Contains(body, tt.body) {
				t.Errorf("%s (h2 %v): %d %q, want %d and %q in it", tt.path, h2, resp.StatusCode, body, tt.code, tt.body)
			}
		}
	}
	resp, _ := get(t, client(t, bed.CA, o, false, nil), o.URL("/trailers"), nil)
	if resp.Trailer.Get("X-Checksum") != "abc123" {
		t.Errorf("trailers: %v", resp.Trailer)
	}
	for _, path := range []string{"/reset", "/truncate"} {
		for _, h2 := range []bool{false, true} {
			resp, err := client(t, bed.CA, o, h2, nil).Get(o.URL(path))
			if err == nil {
				_, err = io.ReadAll(resp.Body)
				_ = resp.Body.Close()
			}
			if err == nil {
				t.Errorf("%s (h2 %v) ended cleanly", path, h2)
			}
		}
	}
}

func TestWebSocketEcho(t *testing.T) {
	bed := New(t)
	c := client(t, bed.CA, bed.Good, false, nil)
	ws, _, err := websocket.Dial(t.Context(), strings.Replace(bed.Good.URL("/ws"), "https", "wss", 1), &websocket.DialOptions{HTTPClient: &http.Client{Transport: c.Transport}})
	if err != nil {
		t.Fatal(err)
	}
	if err := ws.Write(t.Context(), websocket.MessageText, []byte("ping")); err != nil {
		t.Fatal(err)
	}
	_, msg, err := ws.Read(t.Context())
	if err != nil || string(msg) != "ping" {
		t.Fatalf("%q, %v", msg, err)
	}
	_ = ws.Close(websocket.StatusNormalClosure, "")
}

// Every case of the matrix fails in crypto/tls, but for those that say otherwise; and no
// application byte reaches the origin where the handshake fails.
func TestBadTLSMatrix(t *testing.T) {
	ca := NewCA(t)
	seen := map[string]bool{}
	for _, b := range BadTLSMatrix(t, ca, "good.test") {
		if seen[b.Name] {
			t.Errorf("two cases named %q", b.Name)
		}
		seen[b.Name] = true
		t.Run(b.Name, func(t *testing.T) {
			o := NewOrigin(t, ca, b.Options())
			resp, err := client(t, ca, o, true, nil).Get("https://" + b.Host + "/")
			if err == nil {
				_ = resp.Body.Close()
			}
			if b.LibraryAccepts != (err == nil) {
				t.Errorf("LibraryAccepts is %v, but the error was: %v", b.LibraryAccepts, err)
			}
			if err != nil && o.AppBytes() != 0 {
				t.Errorf("%d application bytes were sent", o.AppBytes())
			}
			if len(o.Conns()) == 0 {
				t.Error("the origin was not asked at all")
			}
		})
	}
}

func TestClientCertificateIsDemanded(t *testing.T) {
	ca := NewCA(t)
	o := NewOrigin(t, ca, OriginOptions{ClientCAs: ca.Pool(), RequireClientCert: true})
	if resp, err := client(t, ca, o, true, nil).Get(o.URL("/cert")); err == nil {
		_ = resp.Body.Close()
		t.Error("answered without a certificate")
	}
	cert := ca.ClientCert(t, "right")
	_, body := get(t, client(t, ca, o, true, func(c *tls.Config) { c.Certificates = []tls.Certificate{cert} }), o.URL("/cert"), nil)
	if body != "right\n" {
		t.Errorf("%q", body)
	}
}

func TestRawOriginSendsExactBytes(t *testing.T) {
	ca := NewCA(t)
	answer := "HTTP/1.1 200 OK\r\nX-Odd : 1\r\nContent-Length: 2\r\n\r\nok"
	r := NewRaw(t, RawOptions{CA: ca, Serve: Answer(true, answer)})
	c, err := tls.Dial("tcp", r.Addr().String(), &tls.Config{RootCAs: ca.Pool(), ServerName: "good.test"})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	for range 2 {
		_, _ = io.WriteString(c, "GET / HTTP/1.1\r\nHost: good.test\r\n\r\n")
		buf := make([]byte, len(answer))
		if _, err := io.ReadFull(c, buf); err != nil || string(buf) != answer {
			t.Fatalf("%q, %v", buf, err)
		}
	}
	if r.Conns() != 1 || strings.Count(string(r.Captured()), "GET /") != 2 {
		t.Errorf("%d connections, captured %q", r.Conns(), r.Captured())
	}
}
