package h1

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// seen is what a handler was given.
type seen struct {
	Method, Target, Host string
	Minor                int
	Header, Trailer      http.Header
	Body                 string
	Failed               bool // the body ended with an error
}

// recorder reads every request whole and keeps what it saw.
type recorder struct {
	mu  sync.Mutex
	all []seen
}

func (rec *recorder) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	s := seen{Method: r.Method, Target: r.RequestURI, Host: r.Host, Minor: r.ProtoMinor, Body: string(body), Failed: err != nil}
	s.Header, s.Trailer = r.Header.Clone(), r.Trailer.Clone()
	rec.mu.Lock()
	defer rec.mu.Unlock()
	rec.all = append(rec.all, s)
}

// comparable drops what the two report differently on purpose: fields that h1 takes
// out because they frame, trailers that it never passes on, and the Cache-Control that
// net/http makes out of Pragma.
func (s seen) comparable(ours *seen) seen {
	for _, k := range []string{"Content-Length", "Transfer-Encoding", "Trailer", "Expect", "Host"} {
		delete(s.Header, k)
	}
	if ours != nil && ours.Header["Cache-Control"] == nil && len(s.Header["Pragma"]) > 0 {
		delete(s.Header, "Cache-Control")
	}
	for k, v := range s.Trailer {
		if neverTrailer(k) || len(v) == 0 { // net/http keeps names that were only announced
			delete(s.Trailer, k)
		}
	}
	if len(s.Trailer) == 0 {
		s.Trailer = nil
	}
	if len(s.Header) == 0 {
		s.Header = nil
	}
	if s.Method == http.MethodConnect {
		s.Host = "" // net/http reports the target's
	}
	return s
}

// stdServer is net/http's server, fed with connections by the fuzz target.
type stdServer struct {
	conns chan net.Conn
	ended chan struct{}
	rec   *recorder
}

type recordKey struct{}

func newStdServer(t testing.TB) *stdServer {
	s := &stdServer{conns: make(chan net.Conn), ended: make(chan struct{}, 1)}
	srv := &http.Server{
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			r.Context().Value(recordKey{}).(*recorder).ServeHTTP(w, r)
		}),
		ErrorLog:  log.New(io.Discard, "", 0),
		ConnState: func(_ net.Conn, st http.ConnState) { s.state(st) },
		ConnContext: func(ctx context.Context, _ net.Conn) context.Context {
			return context.WithValue(ctx, recordKey{}, s.rec)
		},
	}
	done := make(chan struct{})
	go func() { defer close(done); _ = srv.Serve(s) }()
	t.Cleanup(func() { close(s.conns); <-done; _ = srv.Close() })
	return s
}

func (s *stdServer) state(st http.ConnState) {
	if st == http.StateClosed || st == http.StateHijacked {
		s.ended <- struct{}{}
	}
}

func (s *stdServer) Accept() (net.Conn, error) {
	c, ok := <-s.conns
	if !ok {
		return nil, net.ErrClosed
	}
	return c, nil
}

func (s *stdServer) Close() error   { return nil }
func (s *stdServer) Addr() net.Addr { return &net.TCPAddr{} }

func (s *stdServer) serve(in []byte) []seen {
	s.rec = &recorder{}
	s.conns <- newMemConn(in)
	<-s.ended
	s.rec.mu.Lock()
	defer s.rec.mu.Unlock()
	return s.rec.all
}

func serveMem(in []byte, h http.Handler) (*memConn, any) {
	var panicked any
	s := testServer(nil)
	s.Handler, s.AllowAbsolute, s.AllowConnect = h, true, true
	s.Panicked = func(v any) { panicked = v }
	mc := newMemConn(in)
	s.ServeConn(context.Background(), context.Background(), mc)
	return mc, panicked
}

// FuzzRequestAgainstNetHTTP holds h1 to two properties over any byte stream: it
// serves no request that net/http's server would not serve at that place (so nothing
// can be smuggled past the one by the other), and what it serves it reads alike.
func FuzzRequestAgainstNetHTTP(f *testing.F) {
	for _, c := range refusals() {
		f.Add([]byte(c.raw))
	}
	for _, s := range requestSeeds {
		f.Add([]byte(s))
	}
	std := newStdServer(f)
	f.Fuzz(func(t *testing.T, in []byte) {
		ours := &recorder{}
		if _, p := serveMem(in, ours); p != nil {
			t.Fatalf("panic: %v", p)
		}
		theirs := std.serve(in)
		for i := range ours.all {
			if i >= len(theirs) {
				t.Fatalf("h1 served request %d, net/http did not: %+v", i, ours.all[i])
			}
			o := ours.all[i]
			if o.Failed {
				if i != len(ours.all)-1 {
					t.Fatal("h1 served a request behind a broken body")
				}
				theirs[i].Body, o.Body, theirs[i].Failed, theirs[i].Trailer = "", "", true, nil
			}
			if d := cmp.Diff(theirs[i].comparable(&o), o.comparable(nil)); d != "" {
				t.Fatalf("request %d differs (-net/http +h1):\n%s", i, d)
			}
		}
	})
}

var requestSeeds = []string{
	"GET / HTTP/1.1\r\nHost: a\r\n\r\nGET /2 HTTP/1.1\r\nHost: a\r\n\r\n",
	"POST /x?y=%zz HTTP/1.1\r\nHost: a.test:8080\r\nContent-Length: 3\r\n\r\nabcGET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
	"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: Chunked\r\nTrailer: X-T\r\n\r\n3;e=1\r\nabc\r\n0\r\nX-T: v\r\nAuthorization: b\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
	"GET http://a.test/p?q HTTP/1.1\r\nHost: A.test.:80\r\nPragma: no-cache\r\n\r\n",
	"CONNECT [::1]:443 HTTP/1.1\r\nHost: [::1]:443\r\n\r\n\x16\x03\x01",
	"GET / HTTP/1.0\r\n\r\n", "HEAD /%41 HTTP/1.1\r\nhost:a\r\nx-a:  b \r\nX-A: c\r\n\r\n",
	"PUT / HTTP/1.1\r\nHost: a\r\nExpect: 100-Continue\r\nContent-Length: 1\r\n\r\nz",
	"GET / HTTP/1.1\r\nHost: a\r\nCookie: a=1\r\nCookie: b=\xff\r\nX:\r\n\r\n",
}

// FuzzResponse reads an answer to a GET and to a HEAD from any bytes: no panic, no
// more body than bytes, and a connection that is said to be reusable has nothing left.
func FuzzResponse(f *testing.F) {
	for _, s := range answerSeeds {
		f.Add([]byte(s), true)
	}
	for _, c := range badAnswers() {
		f.Add([]byte(c.answer), false)
	}
	f.Fuzz(func(t *testing.T, in []byte, head bool) {
		method := http.MethodGet
		if head {
			method = http.MethodHead
		}
		mc := newMemConn(in)
		cc := NewClientConn(mc, DefaultLimits())
		reusable, done := false, 0
		resp, err := cc.RoundTrip(request(method, nil, 0), &RoundTripOptions{Target: "/", Host: "a", Done: func(ok bool) { reusable = ok; done++ }})
		if err != nil {
			if done != 0 {
				t.Fatal("Done was called for a RoundTrip that failed")
			}
			return
		}
		for k, vs := range resp.Header {
			for _, v := range vs {
				if !all(k, isToken) || strings.ContainsAny(v, "\r\n\x00") {
					t.Fatalf("field %q: %q", k, v)
				}
			}
		}
		body, err := io.ReadAll(resp.Body)
		_ = resp.Body.Close()
		if len(body) > len(in) || head && len(body) > 0 {
			t.Fatalf("a body of %d bytes", len(body))
		}
		if done != 1 || reusable && (mc.in.Len() != 0 || err != nil) {
			t.Fatalf("done %d times, reusable %v, %d bytes left, %v", done, reusable, mc.in.Len(), err)
		}
	})
}

var answerSeeds = []string{
	"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nab",
	"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n0\r\nX-T: 1\r\n\r\n",
	"HTTP/1.0 200 OK\r\n\r\nuntil the end", "HTTP/1.1 204 \r\n\r\n", "HTTP/1.1 304\r\nContent-Length: 5\r\n\r\n",
	"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\n",
}

// FuzzChunked compares the chunk reader with net/http's over any bytes: what it
// takes for a whole body is one to net/http as well, with the same bytes.
func FuzzChunked(f *testing.F) {
	for _, s := range []string{"0\r\n\r\n", "3\r\nabc\r\n0\r\n\r\n", "3;x=\"y\"\r\nabc\r\n0\r\nA: b\r\n\r\n", "a\r\n0123456789\r\n0\r\n\r\nrest",
		"3;a\nxx", "3\n", "0x3\r\nabc\r\n0\r\n\r\n", "12345678901234567\r\n", "3\r\nabcXX0\r\n\r\n", "\r\n", "-1\r\n", "0\r\nContent-Length: 3\r\n\r\n", "00003\r\nabc\r\n000\r\n\r\n"} {
		f.Add([]byte(s))
	}
	std := newStdServer(f)
	f.Fuzz(func(t *testing.T, in []byte) {
		src := bytes.NewReader(in)
		rd := &reader{fill: src.Read}
		p := &payload{rd: rd, framing: framing{chunked: true}}
		got, err := io.ReadAll(p)
		rd.take()
		if err != nil {
			var pe *ProtocolError
			if !errors.Is(err, io.ErrUnexpectedEOF) && !errors.As(err, &pe) {
				t.Fatalf("error %v", err)
			}
			return
		}
		head := "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
		all := std.serve([]byte(head + string(in)))
		if len(all) == 0 || all[0].Failed || all[0].Body != string(got) {
			t.Fatalf("h1 read %q, net/http %+v", got, all)
		}
	})
}
