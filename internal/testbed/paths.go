package testbed

import (
	"bytes"
	"compress/gzip"
	"crypto/subtle"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httputil"
	"strconv"
	"strings"
	"time"

	"github.com/andybalholm/brotli"
	"github.com/coder/websocket"
)

// routes are the paths that every origin answers. The origins are hostile where a test
// asks for it: /echo* reflect the whole request head, credentials and all.
func (o *Origin) routes() http.Handler {
	mux := http.NewServeMux()
	for pattern, h := range map[string]http.HandlerFunc{
		"/{$}":                hello,
		"/echo":               echoPlain,
		"/echo-gz":            echoGzip,
		"/echo-br":            echoBrotli,
		"/echo-slow":          echoSlow,
		"/echo-range":         echoRange,
		"/echo-json":          echoJSON,
		"/echo-enc/{enc}":     echoEncoded,
		"/headers":            headersJSON,
		"/bearer":             o.bearerPath,
		"/basic":              o.basicPath,
		"/cert":               certPath,
		"/sse":                func(w http.ResponseWriter, r *http.Request) { events(w, r, "text/event-stream", "data: %d\n\n") },
		"/ndjson":             func(w http.ResponseWriter, r *http.Request) { events(w, r, "application/x-ndjson", "{\"n\":%d}\n") },
		"/ws":                 websocketEcho,
		"/trailers":           trailers,
		"/upload":             upload,
		"/download":           download,
		"/status/{code}":      status,
		"/head":               head,
		"/early":              early,
		"/reset":              reset,
		"/truncate":           truncate,
		"/hints":              hints,
		"/wait":               wait,
		"/redirect/{code}":    redirect,
		"/steer":              steer,
		"/cookies":            func(w http.ResponseWriter, _ *http.Request) { w.Header().Set("Set-Cookie", "session=abc; Secure") },
		"/anything/{rest...}": echoPlain,
	} {
		mux.HandleFunc(pattern, h)
	}
	for pattern, h := range o.opts.Mount {
		mux.Handle(pattern, h)
	}
	return mux
}

func hello(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "hello\n") }

// reflection is the request as the origin saw it, head and body.
func reflection(r *http.Request) []byte {
	dump, err := httputil.DumpRequest(r, true)
	if err != nil {
		return []byte("cannot read the request: " + err.Error())
	}
	return dump
}

func echoPlain(w http.ResponseWriter, r *http.Request) { _, _ = w.Write(reflection(r)) }

func echoGzip(w http.ResponseWriter, r *http.Request) {
	body := reflection(r)
	w.Header().Set("Content-Encoding", "gzip")
	zw := gzip.NewWriter(w)
	_, _ = zw.Write(body)
	_ = zw.Close()
}

func echoBrotli(w http.ResponseWriter, r *http.Request) {
	body := reflection(r)
	w.Header().Set("Content-Encoding", "br")
	zw := brotli.NewWriter(w)
	_, _ = zw.Write(body)
	_ = zw.Close()
}

// echoSlow sends the reflection a byte at a time, so that no chunk holds a secret whole.
func echoSlow(w http.ResponseWriter, r *http.Request) {
	body := reflection(r)
	rc := http.NewResponseController(w)
	for i := range body {
		if _, err := w.Write(body[i : i+1]); err != nil {
			return
		}
		_ = rc.Flush()
	}
}

func echoRange(w http.ResponseWriter, r *http.Request) {
	http.ServeContent(w, r, "echo.txt", time.Time{}, bytes.NewReader(reflection(r)))
}

func echoJSON(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(string(reflection(r)))
}

func echoEncoded(w http.ResponseWriter, r *http.Request) {
	body := reflection(r)
	switch r.PathValue("enc") {
	case "base64":
		_, _ = io.WriteString(w, base64.StdEncoding.EncodeToString(body))
	case "hex":
		_, _ = io.WriteString(w, hex.EncodeToString(body))
	case "utf16":
		for _, b := range body {
			_, _ = w.Write([]byte{b, 0})
		}
	default:
		http.Error(w, "no such encoding", http.StatusNotFound)
	}
}

// headersJSON answers {"method","target","host","proto","header"}.
func headersJSON(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(map[string]any{
		"method": r.Method, "target": r.RequestURI, "host": r.Host, "proto": r.Proto, "header": r.Header,
	})
}

func same(a, b string) bool { return subtle.ConstantTimeCompare([]byte(a), []byte(b)) == 1 }

func (o *Origin) bearerPath(w http.ResponseWriter, r *http.Request) {
	o.mu.Lock()
	want := o.bearer
	o.mu.Unlock()
	auth := r.Header.Values("Authorization")
	if want == "" || len(auth) != 1 || !same(auth[0], "Bearer "+want) {
		w.Header().Set("WWW-Authenticate", `Bearer realm="testbed"`)
		http.Error(w, "bearer token wanted", http.StatusUnauthorized)
		return
	}
	_, _ = io.WriteString(w, "authorized\n")
}

func (o *Origin) basicPath(w http.ResponseWriter, r *http.Request) {
	o.mu.Lock()
	want := o.basic
	o.mu.Unlock()
	user, pw, ok := r.BasicAuth()
	if !ok || len(r.Header.Values("Authorization")) != 1 || !same(user, want[0]) || !same(pw, want[1]) {
		w.Header().Set("WWW-Authenticate", `Basic realm="testbed"`)
		http.Error(w, "user name and password wanted", http.StatusUnauthorized)
		return
	}
	_, _ = io.WriteString(w, "authorized\n")
}

// certPath tells the common name of the client's certificate, 401 without one.
func certPath(w http.ResponseWriter, r *http.Request) {
	if r.TLS == nil || len(r.TLS.PeerCertificates) == 0 {
		http.Error(w, "client certificate wanted", http.StatusUnauthorized)
		return
	}
	_, _ = io.WriteString(w, r.TLS.PeerCertificates[0].Subject.CommonName+"\n")
}

func number(r *http.Request, key string, def int64) int64 {
	n, err := strconv.ParseInt(r.URL.Query().Get(key), 10, 64)
	if err != nil || n < 0 {
		return def
	}
	return n
}

// events sends ?n= events (default 3), ?ms= apart (default 50), each flushed.
func events(w http.ResponseWriter, r *http.Request, kind, format string) {
	w.Header().Set("Content-Type", kind)
	rc := http.NewResponseController(w)
	tick := time.NewTicker(time.Duration(max(1, number(r, "ms", 50))) * time.Millisecond)
	defer tick.Stop()
	for i := range number(r, "n", 3) {
		if _, err := fmt.Fprintf(w, format, i); err != nil || rc.Flush() != nil {
			return
		}
		select {
		case <-tick.C:
		case <-r.Context().Done():
			return
		}
	}
}

// websocketEcho returns each message as it came, until the peer closes.
func websocketEcho(w http.ResponseWriter, r *http.Request) {
	c, err := websocket.Accept(w, r, &websocket.AcceptOptions{InsecureSkipVerify: true}) // the Origin header is not the subject here
	if err != nil {
		return
	}
	defer func() { _ = c.CloseNow() }()
	c.SetReadLimit(1 << 20)
	for {
		kind, msg, err := c.Read(r.Context())
		if err != nil || c.Write(r.Context(), kind, msg) != nil {
			return
		}
	}
}

// trailers announces one trailer and sends it and, on h2, an unannounced one.
func trailers(w http.ResponseWriter, r *http.Request) {
	_, _ = io.Copy(io.Discard, r.Body)
	w.Header().Set("Trailer", "X-Checksum")
	_, _ = io.WriteString(w, "body\n")
	w.Header().Set("X-Checksum", "abc123")
	w.Header().Set(http.TrailerPrefix+"X-Late", "yes")
}

// upload reads the whole body and answers how many bytes it had.
func upload(w http.ResponseWriter, r *http.Request) {
	n, err := io.Copy(io.Discard, r.Body)
	if err != nil {
		http.Error(w, "the body broke off", http.StatusBadRequest)
		return
	}
	_, _ = fmt.Fprintf(w, "%d\n", n)
}

// download sends ?n= bytes of a fixed pattern; ?chunked=1 without a length.
func download(w http.ResponseWriter, r *http.Request) {
	n := number(r, "n", 1024)
	if r.URL.Query().Get("chunked") == "" {
		w.Header().Set("Content-Length", strconv.FormatInt(n, 10))
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	_, _ = io.CopyN(w, Pattern(), n)
}

// Pattern is an endless, cheap and checkable stream of bytes: i mod 251.
func Pattern() io.Reader { return &pattern{} }

type pattern struct{ i byte }

func (p *pattern) Read(b []byte) (int, error) {
	for j := range b {
		b[j] = p.i
		if p.i++; p.i == 251 {
			p.i = 0
		}
	}
	return len(b), nil
}

// status answers with the code of the path, with a body where the code allows one.
func status(w http.ResponseWriter, r *http.Request) {
	code, err := strconv.Atoi(r.PathValue("code"))
	if err != nil || code < 200 || code > 999 {
		code = http.StatusBadRequest
	}
	w.WriteHeader(code)
	if code != http.StatusNoContent && code != http.StatusNotModified {
		_, _ = fmt.Fprintf(w, "status %d\n", code)
	}
}

// head declares a length that a GET keeps and a HEAD must not wait for.
func head(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Length", "12")
	if r.Method != http.MethodHead {
		_, _ = io.WriteString(w, "twelve bytes")
	}
}

// early gives its final answer before it reads the body, and never reads it.
func early(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Connection", "close")
	http.Error(w, "no need for the body", http.StatusRequestEntityTooLarge)
}

// reset ends without an answer: a TCP reset on HTTP/1.1, RST_STREAM on h2.
func reset(_ http.ResponseWriter, r *http.Request) {
	if c, ok := r.Context().Value(connKey{}).(*originConn); ok && r.ProtoMajor == 1 {
		if tcp, ok := c.raw.(*net.TCPConn); ok {
			_ = tcp.SetLinger(0)
		}
		_ = c.raw.Close()
	}
	panic(http.ErrAbortHandler)
}

// truncate promises ?n= bytes (default 1000) and cuts the connection half way.
func truncate(w http.ResponseWriter, r *http.Request) {
	n := number(r, "n", 1000)
	w.Header().Set("Content-Length", strconv.FormatInt(n, 10))
	_, _ = io.CopyN(w, Pattern(), n/2)
	_ = http.NewResponseController(w).Flush()
	panic(http.ErrAbortHandler)
}

// hints sends ?n= times 103 before the answer.
func hints(w http.ResponseWriter, r *http.Request) {
	for i := range number(r, "n", 1) {
		w.Header().Set("Link", fmt.Sprintf("</style-%d.css>; rel=preload", i))
		w.WriteHeader(http.StatusEarlyHints)
	}
	w.Header().Del("Link")
	_, _ = io.WriteString(w, "hinted\n")
}

// wait answers after ?ms= (default 1000), or not at all when the client goes away.
func wait(w http.ResponseWriter, r *http.Request) {
	select {
	case <-time.After(time.Duration(number(r, "ms", 1000)) * time.Millisecond):
		_, _ = io.WriteString(w, "waited\n")
	case <-r.Context().Done():
	}
}

// redirect answers with the code and Location ?to= (default https://evil.test/).
func redirect(w http.ResponseWriter, r *http.Request) {
	code, err := strconv.Atoi(r.PathValue("code"))
	to := r.URL.Query().Get("to")
	if to == "" {
		to = "https://evil.test/"
	}
	if err != nil || code < 300 || code > 399 {
		w.Header().Set("Refresh", "0; url="+to)
		return
	}
	w.Header().Set("Location", to)
	w.WriteHeader(code)
}

// steer sends every header with which an origin tries to lead a client elsewhere; the
// session cookie repeats the credential that came in.
func steer(w http.ResponseWriter, r *http.Request) {
	h := w.Header()
	h.Set("Alt-Svc", `h3=":443"; ma=86400`)
	h.Set("WWW-Authenticate", `Bearer realm="https://evil.test/token"`)
	h.Set("Authentication-Info", `nextnonce="abc"`)
	h.Set("Set-Cookie", "session="+strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer "))
	_, _ = io.WriteString(w, "steered\n")
}
