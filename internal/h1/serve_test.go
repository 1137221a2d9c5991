package h1

import (
	"bufio"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"
)

func TestPipelining(t *testing.T) {
	addr := serve(t, testServer(echo))
	answer, err := raw(t, addr, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\none"+
		"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\ntwo\r\n0\r\n\r\n"+
		"GET / HTTP/1.1\r\nHost: a\r\n\r\nPOST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nConnection: close\r\n\r\nthree"+smuggled)
	if err != nil || statuses(answer) != "200 200 200 200" {
		t.Fatalf("%q, %v", answer, err)
	}
	one, two, three := strings.Index(answer, "one"), strings.Index(answer, "two"), strings.Index(answer, "three")
	if one < 0 || two < one || three < two {
		t.Fatalf("order in %q", answer)
	}
}

func TestHTTP10(t *testing.T) {
	stream := func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, "a")
		w.(http.Flusher).Flush()
		_, _ = io.WriteString(w, "b")
	}
	answer, err := raw(t, serve(t, testServer(stream)), "GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\nGET / HTTP/1.0\r\n\r\n")
	if err != nil || statuses(answer) != "200" || strings.Contains(answer, "chunked") || !strings.HasSuffix(answer, "\r\n\r\nab") {
		t.Fatalf("%q, %v", answer, err)
	}
}

func TestAttack_C18_bodiless_answers(t *testing.T) {
	for _, c := range []struct {
		method string
		status int
		length string
	}{{"HEAD", 200, ""}, {"HEAD", 200, "5"}, {"GET", 204, ""}, {"GET", 204, "5"}, {"GET", 304, ""}, {"GET", 304, "5"}} {
		h := func(w http.ResponseWriter, _ *http.Request) {
			if c.length != "" {
				w.Header().Set("Content-Length", c.length)
			}
			w.WriteHeader(c.status)
			_, _ = io.WriteString(w, "body!")
			w.(http.Flusher).Flush()
		}
		addr := serve(t, testServer(h))
		answer, err := raw(t, addr, c.method+" / HTTP/1.1\r\nHost: a\r\n\r\n")
		head, rest, _ := strings.Cut(answer, "\r\n\r\n")
		if err != nil || rest != "" || strings.Contains(head, "Transfer-Encoding") {
			t.Errorf("%s %d: %q, %v", c.method, c.status, answer, err)
		}
		if c.status == 204 && strings.Contains(head, "Content-Length") {
			t.Errorf("length on a 204: %q", head)
		}
		cl := newClient(t, addr)
		for range 2 { // the connection stays in step
			status, body, err := cl.get(c.method)
			if status != c.status || body != "" || err != nil || !cl.reusable {
				t.Errorf("%s %d through the client: %d %q %v %v", c.method, c.status, status, body, err, cl.reusable)
			}
		}
	}
}

func TestTrailers(t *testing.T) {
	h := func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		sum := r.Trailer.Get("X-Sum")
		_, _ = io.WriteString(w, "body")
		w.Header()[http.TrailerPrefix+"X-Echo"] = []string{sum}
		w.Header()[http.TrailerPrefix+"Content-Length"] = []string{"3"}
		w.Header()[http.TrailerPrefix+"Set-Cookie"] = []string{"a=b"}
		w.Header()[http.TrailerPrefix+"X-Split"] = []string{"a\r\nX-Evil: 1"}
	}
	c := newClient(t, serve(t, testServer(h)))
	for _, send := range []bool{true, false} {
		req := request("POST", strings.NewReader("hello"), -1)
		req.Trailer = http.Header{"X-Sum": {"7"}, "Authorization": {"evil"}, "X-Split": {"a\r\nb"}}
		opts := c.options()
		opts.Trailers = send
		resp, err := c.RoundTrip(req, opts)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadAll(resp.Body); err != nil {
			t.Fatal(err)
		}
		want := map[bool]string{true: "7", false: ""}[send]
		if got := resp.Trailer; len(got) != 1 || got.Get("X-Echo") != want || !c.reusable {
			t.Fatalf("trailers %v, reusable %v", got, c.reusable)
		}
	}
}

func TestAttack_C15_expect_continue(t *testing.T) {
	read := func(w http.ResponseWriter, r *http.Request) { echo(w, r) }
	ignore := func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusForbidden) }
	for _, c := range []struct {
		name    string
		h       http.HandlerFunc
		send    string
		want    string
		closing bool
	}{
		{"body behind the 100", read, post("Expect: 100-continue\r\nContent-Length: 2\r\n", ""), "100", false},
		{"body before the 100", read, post("Expect: 100-continue\r\nContent-Length: 2\r\n", "hi"), "100 200", false},
		{"never read, not sent", ignore, post("Expect: 100-continue\r\nContent-Length: 2\r\n", ""), "403", true},
		{"never read, but sent", ignore, post("Expect: 100-continue\r\nContent-Length: 60\r\n", smuggled), "403", true},
		{"not on 1.0", read, "POST / HTTP/1.0\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\nhi", "200", true},
		{"without a body", read, get("Expect: 100-continue\r\n"), "200", false},
	} {
		t.Run(c.name, func(t *testing.T) {
			answer, _ := raw(t, serve(t, testServer(c.h)), c.send)
			if statuses(answer) != c.want || strings.Contains(answer, "Connection: close") != c.closing {
				t.Fatalf("%q", answer)
			}
		})
	}
	t.Run("body never sent", func(t *testing.T) {
		s := testServer(read)
		s.BodyStall = 100 * time.Millisecond
		nc := dial(t, serve(t, s))
		_, _ = io.WriteString(nc, post("Expect: 100-continue\r\nContent-Length: 2\r\n", ""))
		answer, err := io.ReadAll(nc)
		if statuses(string(answer)) != "100" || err == nil {
			t.Fatalf("%q, %v: want 100 and a reset", answer, err)
		}
	})
}

// TestRestOfABody covers what is left when the handler is done.
func TestRestOfABody(t *testing.T) {
	none := func(http.ResponseWriter, *http.Request) {}
	closes := func(_ http.ResponseWriter, r *http.Request) {
		_ = r.Body.Close()
		if _, err := r.Body.Read(make([]byte, 1)); !errors.Is(err, http.ErrBodyReadAfterClose) {
			panic(err)
		}
	}
	for _, h := range []http.HandlerFunc{none, closes} {
		addr := serve(t, testServer(h))
		short := "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10000\r\n\r\n" + strings.Repeat("x", 10000)
		if answer, err := raw(t, addr, short+short); statuses(answer) != "200 200" || err != nil {
			t.Fatalf("%q, %v", answer, err)
		}
		answer, _ := raw(t, addr, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000000\r\n\r\n"+short)
		if statuses(answer) != "200" || !strings.Contains(answer, "Connection: close") {
			t.Fatalf("%q", answer)
		}
	}
}

func TestInterimAnswers(t *testing.T) {
	h := func(w http.ResponseWriter, _ *http.Request) {
		for range 5 {
			w.Header()["Link"] = []string{"</a.css>"}
			w.Header()["Content-Length"] = []string{"9"}
			w.WriteHeader(http.StatusEarlyHints)
			clear(w.Header())
		}
		w.WriteHeader(http.StatusSwitchingProtocols) // only by hijacking
		_, _ = io.WriteString(w, "ok")
	}
	c := newClient(t, serve(t, testServer(h)))
	n := 0
	opts := c.options()
	opts.Got1xx = func(status int, h http.Header) error {
		if n++; status != 103 || h.Get("Link") != "</a.css>" || len(h) != 1 {
			t.Errorf("%d %v", status, h)
		}
		return nil
	}
	resp, err := c.RoundTrip(request("GET", nil, 0), opts)
	if err != nil || n != 5 {
		t.Fatal(n, err)
	}
	if b, err := io.ReadAll(resp.Body); string(b) != "ok" || err != nil || !c.reusable {
		t.Fatal(string(b), err)
	}
	opts = c.options()
	opts.Got1xx = func(int, http.Header) error { return errTest }
	if _, err := c.RoundTrip(request("GET", nil, 0), opts); !errors.Is(err, errTest) || Retryable(err) {
		t.Fatal(err)
	}
}

// TestBrokenHandlers: what a handler gets wrong never reaches the client as a clean
// answer.
func TestBrokenHandlers(t *testing.T) {
	split := []string{"a\r\nX-Evil: 1", "a\nb", "a\rb", "a\x00b"}
	handlers := map[string]http.HandlerFunc{
		"H11 too little": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "10")
			_, _ = io.WriteString(w, "short")
		},
		"H11 too little, flushed": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "10")
			_, _ = io.WriteString(w, "short")
			w.(http.Flusher).Flush()
		},
		"too much": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "3")
			if _, err := io.WriteString(w, "short"); !errors.Is(err, errLong) {
				panic(err)
			}
		},
		"C03 two lengths": func(w http.ResponseWriter, _ *http.Request) {
			w.Header()["Content-Length"] = []string{"3", "4"}
			_, _ = io.WriteString(w, "abc")
		},
		"bad length": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "+3")
			_, _ = io.WriteString(w, "abc")
		},
		"C20 CRLF in a name":      func(w http.ResponseWriter, _ *http.Request) { w.Header()["X-A\r\nX-B"] = []string{"c"} },
		"C20 blank in a name":     func(w http.ResponseWriter, _ *http.Request) { w.Header()["X A"] = []string{"c"} },
		"status 99":               func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(99) },
		"status 1000":             func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(1000) },
		"H12 panic":               func(http.ResponseWriter, *http.Request) { panic("x") },
		"H12 panic behind a body": func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "abc"); panic("x") },
		"H12 abort":               func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) },
		"H12 abort in a stream": func(w http.ResponseWriter, _ *http.Request) {
			_, _ = io.WriteString(w, "abc")
			panic(http.ErrAbortHandler)
		},
	}
	for _, v := range split {
		handlers["C20 splitting "+strings.ToValidUTF8(v, "")] = func(w http.ResponseWriter, _ *http.Request) { w.Header()["X-A"] = []string{v} }
	}
	for name, h := range handlers {
		t.Run(name, func(t *testing.T) {
			panics := make(chan any, 1)
			s := testServer(h)
			s.Panicked = func(v any) { panics <- v }
			addr := serve(t, s)
			c := newClient(t, addr)
			if status, body, err := c.get("GET"); err == nil {
				t.Fatalf("a clean answer: %d %q", status, body)
			}
			if strings.Contains(name, "panic") && <-panics != "x" {
				t.Fatal("the panic was not reported")
			}
			answer, err := raw(t, addr, get(""))
			if !isCut(err) || strings.Contains(answer, "\r\n0\r\n") || strings.Contains(answer, "X-Evil") {
				t.Fatalf("%q, %v", answer, err)
			}
			select {
			case v := <-panics:
				if v != "x" {
					t.Fatal(v)
				}
			default:
			}
		})
	}
}

// TestFramingIsOurs: fields that frame are never taken from a handler or a caller.
func TestFramingIsOurs(t *testing.T) {
	h := func(w http.ResponseWriter, r *http.Request) {
		if r.ContentLength != 0 || len(r.TransferEncoding) != 0 || r.Header.Get("Expect")+r.Header.Get("Upgrade")+r.Header.Get("Connection") != "" || r.Host != "origin.test" {
			t.Errorf("got %+v", r)
		}
		w.Header()["content-length"] = []string{"1"}
		w.Header()["transfer-encoding"] = []string{"gzip"}
		w.Header()["Transfer-Encoding"] = []string{"chunked"}
		w.Header()["CONNECTION"] = []string{"X-Y"}
		_, _ = io.WriteString(w, "ok")
	}
	c := newClient(t, serve(t, testServer(h)))
	req := request("GET", nil, 0)
	for _, k := range []string{"content-length", "Content-Length", "transfer-encoding", "CONNECTION", "Upgrade", "expect", "hOst", "trailer"} {
		req.Header[k] = []string{"5"}
	}
	resp, err := c.RoundTrip(req, c.options())
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(resp.Body)
	if string(b) != "ok" || err != nil || len(resp.Header["Transfer-Encoding"]) != 1 {
		t.Fatal(string(b), err, resp.Header)
	}
}

func TestStreamsAreNotHeldBack(t *testing.T) {
	next := make(chan string)
	h := func(w http.ResponseWriter, _ *http.Request) {
		for s := range next {
			if _, err := io.WriteString(w, s); err != nil {
				return
			}
		}
	}
	c := newClient(t, serve(t, testServer(h)))
	var b *bufio.Reader
	for i := range 3 {
		go func() { next <- "event\n" }()
		if i == 0 {
			resp, err := c.RoundTrip(request("GET", nil, 0), c.options())
			if err != nil {
				t.Fatal(err)
			}
			b = bufio.NewReader(resp.Body)
		}
		if line, err := b.ReadString('\n'); line != "event\n" {
			t.Fatal(line, err)
		}
	}
	close(next)
	if _, err := b.ReadString('\n'); err != io.EOF || !c.reusable {
		t.Fatal(err, c.reusable)
	}
}

// A chunked answer that comes before the request's body was read ends at once: its end
// does not wait for a client that goes on sending, or stops.
func TestEarlyChunkedAnswerEndsBeforeTheBody(t *testing.T) {
	addr := serve(t, testServer(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "no") }))
	nc, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = nc.Close() }()
	_ = nc.SetDeadline(time.Now().Add(5 * time.Second))
	if _, err := io.WriteString(nc, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\nbegin"); err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	resp, err := http.ReadResponse(bufio.NewReader(nc), nil)
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(resp.Body)
	if err != nil || string(b) != "no" {
		t.Fatalf("%q %v", b, err)
	}
	if d := time.Since(start); d > time.Second { // testServer's BodyStall is 2 s
		t.Errorf("the answer ended after %v", d)
	}
}
