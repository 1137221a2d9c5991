package h1

import (
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
)

type refusal struct {
	name, raw, want string // want: the statuses of all answers on the connection
}

func post(fields, body string) string {
	return "POST / HTTP/1.1\r\nHost: good.test\r\n" + fields + "\r\n" + body
}

func get(fields string) string { return "GET / HTTP/1.1\r\nHost: good.test\r\n" + fields + "\r\n" }

const smuggled = "GET /smug HTTP/1.1\r\nHost: good.test\r\n\r\n"

// refusals are the rows of security.md's table of what net/http lets through and of
// its list of what both refuse. Each is one connection; what follows a refused head is
// never served.
func refusals() []refusal {
	long := strings.Repeat("a", 20<<10)
	return []refusal{
		{"C01 CL.TE", post("Content-Length: 4\r\nTransfer-Encoding: chunked\r\n", "0\r\n\r\n"+smuggled), "400"},
		{"C01 TE.CL", post("Transfer-Encoding: chunked\r\nContent-Length: 4\r\n", "0\r\n\r\n"+smuggled), "400"},
		{"C03 equal lengths twice", post("Content-Length: 1\r\nContent-Length: 1\r\n", "x"+smuggled), "400"},
		{"C03 different lengths", post("Content-Length: 1\r\nContent-Length: 5\r\n", "x"+smuggled), "400"},
		{"C03 list of equal lengths", post("Content-Length: 3, 3\r\n", "xxx"), "400"},
		{"C03 list without blank", post("Content-Length: 3,3\r\n", "xxx"), "400"},
		{"C03 plus", post("Content-Length: +3\r\n", "xxx"), "400"},
		{"C03 hexadecimal", post("Content-Length: 0x3\r\n", "xxx"), "400"},
		{"C03 negative", post("Content-Length: -1\r\n", ""), "400"},
		{"C03 empty", post("Content-Length: \r\n", ""), "400"},
		{"C03 leading zeros", post("Content-Length: 0003\r\n", "xxx"), "400"},
		{"C03 underscore", post("Content-Length: 1_0\r\n", "0123456789"), "400"},
		{"C03 trailing blank", post("Content-Length: 3 \r\n", "xxx"), "400"},
		{"C03 19 digits", post("Content-Length: 1000000000000000000\r\n", ""), "400"},
		{"C03 TE on HTTP 1.0", "POST / HTTP/1.0\r\nHost: good.test\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", "400"},
		{"C03 xchunked", post("Transfer-Encoding: xchunked\r\n", "0\r\n\r\n"), "501"},
		{"C03 chunked twice", post("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", "0\r\n\r\n"), "400"},
		{"C03 chunked, identity", post("Transfer-Encoding: chunked, identity\r\n", "0\r\n\r\n"), "501"},
		{"C03 identity", post("Transfer-Encoding: identity\r\n", ""), "501"},
		{"C03 gzip, chunked", post("Transfer-Encoding: gzip, chunked\r\n", "0\r\n\r\n"), "501"},
		{"C03 vertical tab before chunked", post("Transfer-Encoding: \x0bchunked\r\n", "0\r\n\r\n"), "400"},
		{"C03 blank before the colon of TE", post("Transfer-Encoding : chunked\r\n", "0\r\n\r\n"), "400"},
		{"C04 obs-fold", get("X-A: b\r\n c\r\n"), "400"},
		{"C04 folded TE", post("Transfer-Encoding:\r\n chunked\r\n", "0\r\n\r\n"), "400"},
		{"C04 fold with a tab", get("X-A: b\r\n\tc: d\r\n"), "400"},
		{"C04 first header begins with a space", "GET / HTTP/1.1\r\n Host: good.test\r\n\r\n", "400"},
		{"C05 bare LF line ends", "GET / HTTP/1.1\nHost: good.test\n\n", "400"},
		{"C05 bare LF inside the block", "GET / HTTP/1.1\r\nHost: good.test\nX-A: b\r\n\r\n", "400"},
		{"C05 bare LF as the last line end", "GET / HTTP/1.1\r\nHost: good.test\r\n\n", "400"},
		{"C05 bare CR in a value", get("X-A: b\rX-B: c\r\n"), "400"},
		{"C05 two CR", get("X-A: b\r\r\n"), "400"},
		{"C05 CR behind the version", "GET / HTTP/1.1\r\r\nHost: good.test\r\n\r\n", "400"},
		{"C05 NUL in a value", get("X-A: b\x00\r\n"), "400"},
		{"C05 NUL in a name", get("X\x00A: b\r\n"), "400"},
		{"C05 leading CRLF", "\r\n" + get(""), "400"},
		{"C14 TRACE", "TRACE / HTTP/1.1\r\nHost: good.test\r\n\r\n", "405"},
		{"C14 TRACK", "TRACK / HTTP/1.1\r\nHost: good.test\r\n\r\n", "405"},
		{"CONNECT inside", "CONNECT b.test:443 HTTP/1.1\r\nHost: b.test:443\r\n\r\n" + smuggled, "405"},
		{"PRI", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "505"},
		{"PRI as 1.1", "PRI / HTTP/1.1\r\nHost: good.test\r\n\r\n", "405"},
		{"lower-case method", "get / HTTP/1.1\r\nHost: good.test\r\n\r\n", "400"},
		{"bad method", "G(T / HTTP/1.1\r\nHost: good.test\r\n\r\n", "400"},
		{"no method", " / HTTP/1.1\r\nHost: good.test\r\n\r\n", "400"},
		{"two blanks", "GET  / HTTP/1.1\r\nHost: good.test\r\n\r\n", "400"},
		{"blank in the target", "GET /a b HTTP/1.1\r\nHost: good.test\r\n\r\n", "400"},
		{"no target", "GET HTTP/1.1\r\nHost: good.test\r\n\r\n", "400"},
		{"target without slash", "GET a HTTP/1.1\r\nHost: good.test\r\n\r\n", "400"},
		{"target with backslash", "GET \\a HTTP/1.1\r\nHost: good.test\r\n\r\n", "400"},
		{"backslash inside", "GET /a\\b HTTP/1.1\r\nHost: good.test\r\n\r\n", "400"},
		{"two slashes", "GET //b.test/x HTTP/1.1\r\nHost: good.test\r\n\r\n", "400"},
		{"fragment", "GET /#frag HTTP/1.1\r\nHost: good.test\r\n\r\n", "400"},
		{"bad escape", "GET /%zz HTTP/1.1\r\nHost: good.test\r\n\r\n", "400"},
		{"UTF-8 in the target", "GET /\xc3\xa9 HTTP/1.1\r\nHost: good.test\r\n\r\n", "400"},
		{"OPTIONS asterisk", "OPTIONS * HTTP/1.1\r\nHost: good.test\r\n\r\n", "400"},
		{"absolute target inside a tunnel", "GET http://good.test/ HTTP/1.1\r\nHost: good.test\r\n\r\n", "400"},
		{"https in cleartext", "GET https://good.test/ HTTP/1.1\r\nHost: good.test\r\n\r\n", "400"},
		{"HTTP 9.9", "GET / HTTP/9.9\r\nHost: good.test\r\n\r\n", "505"},
		{"HTTP 2.0", "GET / HTTP/2.0\r\nHost: good.test\r\n\r\n", "505"},
		{"HTTP 1.2", "GET / HTTP/1.2\r\nHost: good.test\r\n\r\n", "505"},
		{"HTTP 0.9", "GET /\r\n\r\n", "400"},
		{"lower-case http", "GET / http/1.1\r\nHost: good.test\r\n\r\n", "400"},
		{"escape in Host", "GET / HTTP/1.1\r\nHost: a.test%00.evil\r\n\r\n", "400"},
		{"no Host", "GET / HTTP/1.1\r\n\r\n", "400"},
		{"empty Host", "GET / HTTP/1.1\r\nHost: \r\n\r\n", "400"},
		{"two Hosts", "GET / HTTP/1.1\r\nHost: a.test\r\nHost: a.test\r\n\r\n", "400"},
		{"list in Host", "GET / HTTP/1.1\r\nHost: a.test, b.test\r\n\r\n", "400"},
		{"user in Host", "GET / HTTP/1.1\r\nHost: u@a.test\r\n\r\n", "400"},
		{"slash in Host", "GET / HTTP/1.1\r\nHost: a.test/b\r\n\r\n", "400"},
		{"UTF-8 in Host", "GET / HTTP/1.1\r\nHost: \xc3\xa9.test\r\n\r\n", "400"},
		{"word for a port", "GET / HTTP/1.1\r\nHost: a.test:http\r\n\r\n", "400"},
		{"port 65536", "GET / HTTP/1.1\r\nHost: a.test:65536\r\n\r\n", "400"},
		{"bracket without end", "GET / HTTP/1.1\r\nHost: [::1\r\n\r\n", "400"},
		{"zone in Host", "GET / HTTP/1.1\r\nHost: [fe80::1%25lo]\r\n\r\n", "400"},
		{"blank in a name", get("X A: b\r\n"), "400"},
		{"empty name", get(": b\r\n"), "400"},
		{"UTF-8 name", get("X-\xc3\xa9: b\r\n"), "400"},
		{"no colon", get("X-A\r\n"), "400"},
		{"C15 unknown expectation", get("Expect: 200-maybe\r\n"), "417"},
		{"C15 unknown expectation on 1.0", "GET / HTTP/1.0\r\nHost: good.test\r\nExpect: x\r\n\r\n", "417"},
		{"C15 two expectations", post("Expect: 100-continue\r\nExpect: 100-continue\r\nContent-Length: 1\r\n", "x"), "417"},
		{"C07 length announced as a trailer", post("Transfer-Encoding: chunked\r\nTrailer: X, Content-Length\r\n", "0\r\n\r\n"), "400"},
		{"C22 10,000 headers", get(strings.Repeat("A: b\r\n", 10000)), "431"},
		{"C22 129 headers", "GET / HTTP/1.1\r\nHost: a\r\n" + strings.Repeat("A: b\r\n", 128) + "\r\n", "431"},
		{"C22 1,000 cookies", get(strings.Repeat("Cookie: a=b\r\n", 1000)), "431"},
		{"C22 line of 20 KiB", get("X-A: " + long + "\r\n"), "431"},
		{"C22 five lines of 15 KiB", get(strings.Repeat("X-A: "+long[:15<<10]+"\r\n", 5)), "431"},
		{"C22 target of 20 KiB", "GET /" + long + " HTTP/1.1\r\nHost: good.test\r\n\r\n", "414"},
		{"C22 2 MiB header", get("X-A: " + strings.Repeat("a", 2<<20) + "\r\n"), "431"},
	}
}

func TestAttack_refused_heads(t *testing.T) {
	var served atomic.Int32
	s := testServer(func(_ http.ResponseWriter, r *http.Request) { served.Add(1); _, _ = io.Copy(io.Discard, r.Body) })
	addr := serve(t, s)
	for _, c := range refusals() {
		t.Run(c.name, func(t *testing.T) {
			answer, _ := raw(t, addr, c.raw) // a long head is answered before it was read: the rest may cause a reset
			if got := statuses(answer); got != c.want {
				t.Fatalf("answered %q, want %s: %.200q", got, c.want, answer)
			}
			if !strings.Contains(answer, "\r\nConnection: close\r\n") {
				t.Fatalf("no Connection: close in %q", answer)
			}
		})
	}
	if n := served.Load(); n != 0 {
		t.Fatalf("%d requests reached the handler", n)
	}
}

func TestAccepted_heads(t *testing.T) {
	for _, c := range []struct{ name, raw, host, method, body string }{
		{"C03 Chunked in any case", post("Transfer-Encoding: cHunked\r\n", "1\r\nx\r\n0\r\n\r\n"), "good.test", "POST", "x"},
		{"Host with capitals and a dot", "GET / HTTP/1.1\r\nHost: GOOD.test.\r\n\r\n", "GOOD.test.", "GET", ""},
		{"IPv6 Host", "GET / HTTP/1.1\r\nHost: [::1]:8080\r\n\r\n", "[::1]:8080", "GET", ""},
		{"GET with a body", "GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nhi", "a", "GET", "hi"},
		{"no Host on 1.0", "GET / HTTP/1.0\r\n\r\n", "", "GET", ""},
		{"unregistered method", "PROPFIND / HTTP/1.1\r\nHost: a\r\n\r\n", "a", "PROPFIND", ""},
		{"127 headers", "GET / HTTP/1.1\r\nHost: a\r\n" + strings.Repeat("A: b\r\n", 127) + "\r\n", "a", "GET", ""},
		{"a head of several buffers", "GET /" + strings.Repeat("p", 8<<10) + " HTTP/1.1\r\nHost: a\r\nX: " + strings.Repeat("v", 15<<10) + "\r\n\r\n", "a", "GET", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			rec := &recorder{}
			s := testServer(rec.ServeHTTP)
			answer, err := raw(t, serve(t, s), c.raw)
			if err != nil || statuses(answer) != "200" || len(rec.all) != 1 {
				t.Fatalf("%d requests, answer %q, %v", len(rec.all), answer, err)
			}
			if r := rec.all[0]; r.Host != c.host || r.Method != c.method || r.Body != c.body || r.Failed {
				t.Fatalf("got %+v", r)
			}
		})
	}
}

func TestExplicitProxyTargets(t *testing.T) {
	for _, c := range []struct{ name, raw, want, host, path string }{
		{"absolute", "GET http://a.test/p?q HTTP/1.1\r\nHost: a.test\r\n\r\n", "200", "a.test", "/p"},
		{"absolute without path", "GET http://a.test HTTP/1.1\r\nHost: a.test\r\n\r\n", "200", "a.test", "/"},
		{"absolute, query only", "GET http://a.test?q HTTP/1.1\r\nHost: a.test\r\n\r\n", "200", "a.test", "/"},
		{"absolute, Host alike", "GET http://A.test:80/ HTTP/1.1\r\nHost: a.TEST.\r\n\r\n", "200", "A.test:80", "/"},
		{"absolute, other Host", "GET http://a.test/ HTTP/1.1\r\nHost: b.test\r\n\r\n", "400", "", ""},
		{"absolute, other port", "GET http://a.test:81/ HTTP/1.1\r\nHost: a.test\r\n\r\n", "400", "", ""},
		{"absolute with user", "GET http://u:p@a.test/ HTTP/1.1\r\nHost: a.test\r\n\r\n", "400", "", ""},
		{"absolute, two slashes", "GET http://a.test//b HTTP/1.1\r\nHost: a.test\r\n\r\n", "400", "", ""},
		{"absolute, fragment", "GET http://a.test/#f HTTP/1.1\r\nHost: a.test\r\n\r\n", "400", "", ""},
		{"absolute https", "GET https://a.test/ HTTP/1.1\r\nHost: a.test\r\n\r\n", "400", "", ""},
		{"absolute ftp", "GET ftp://a.test/ HTTP/1.1\r\nHost: a.test\r\n\r\n", "400", "", ""},
		{"absolute, no host", "GET http:///x HTTP/1.1\r\nHost: a.test\r\n\r\n", "400", "", ""},
		{"B23 CONNECT refused", "CONNECT denied.test:443 HTTP/1.1\r\nHost: denied.test:443\r\n\r\nGET http://good.test/ HTTP/1.1\r\nHost: good.test\r\n\r\n", "200", "denied.test:443", ""},
		{"B23 CONNECT without port", "CONNECT a.test HTTP/1.1\r\nHost: a.test\r\n\r\n" + smuggled, "400", "", ""},
		{"B23 CONNECT to a URL", "CONNECT http://a.test:1/ HTTP/1.1\r\nHost: a.test\r\n\r\n", "400", "", ""},
		{"B23 CONNECT without host", "CONNECT :443 HTTP/1.1\r\nHost: a.test\r\n\r\n", "400", "", ""},
		{"B23 CONNECT with a body", "CONNECT a.test:443 HTTP/1.1\r\nHost: a.test:443\r\nContent-Length: 4\r\n\r\nabcd", "400", "", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			n, host, path := 0, "", ""
			s := testServer(func(_ http.ResponseWriter, r *http.Request) { n++; host, path = r.URL.Host, r.URL.Path })
			s.AllowAbsolute, s.AllowConnect = true, true
			answer, _ := raw(t, serve(t, s), c.raw)
			if statuses(answer) != c.want || host != c.host || path != c.path {
				t.Fatalf("answer %q, host %q, path %q", answer, host, path)
			}
			if n > 1 || strings.HasPrefix(c.name, "B23") && !strings.Contains(answer, "Connection: close") {
				t.Fatalf("%d requests, %q", n, answer)
			}
		})
	}
}

func TestAttack_C06_chunk_grammar(t *testing.T) {
	for name, body := range map[string]string{
		"bare LF in an extension": "3;a\nxx\r\n0\r\n\r\n", "bare LF in the size": "3\nabc\r\n0\r\n\r\n", "0x3": "0x3\r\nabc\r\n0\r\n\r\n",
		"17 digits": "00000000000000003\r\nabc\r\n0\r\n\r\n", "16 digits": "fffffffffffffff0\r\nabc", "20 KiB extension": "3;" + strings.Repeat("a", 20<<10) + "\r\nabc\r\n0\r\n\r\n",
		"no CRLF behind": "3\r\nabcXX0\r\n\r\n", "empty size": "\r\nabc\r\n0\r\n\r\n", "negative": "-3\r\nabc\r\n0\r\n\r\n", "plus": "+3\r\nabc\r\n0\r\n\r\n",
		"blank before the size": " 3\r\nabc\r\n0\r\n\r\n", "blank behind the size": "3 \r\nabc\r\n0\r\n\r\n", "NUL in an extension": "3;\x00\r\nabc\r\n0\r\n\r\n",
		"CR in an extension": "3;\rx\r\nabc\r\n0\r\n\r\n", "cut short": "3\r\nab", "no last chunk": "3\r\nabc\r\n", "chunk too short": "2\r\nabc\r\n0\r\n\r\n",
		"C07 length in the trailers": "0\r\nContent-Length: 4\r\n\r\n", "C07 TE in the trailers": "0\r\nTransfer-Encoding: chunked\r\n\r\n",
		"C07 10,000 trailers": "0\r\n" + strings.Repeat("A: b\r\n", 10000) + "\r\n", "C07 fold in the trailers": "0\r\nA: b\r\n c\r\n\r\n", "C07 trailer of 8 KiB": "0\r\nA: " + strings.Repeat("b", 8<<10) + "\r\n\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			rec := &recorder{}
			answer, _ := raw(t, serve(t, testServer(rec.ServeHTTP)), post("Transfer-Encoding: chunked\r\n", body)+smuggled)
			if len(rec.all) != 1 || !rec.all[0].Failed {
				t.Fatalf("served %+v, answer %q", rec.all, answer)
			}
		})
	}
}

func TestAttack_C07_trailers_of_a_request(t *testing.T) {
	rec := &recorder{}
	s := testServer(rec.ServeHTTP)
	_, err := raw(t, serve(t, s), post("Transfer-Encoding: chunked\r\nTrailer: Authorization, X-Sum\r\n",
		"0\r\nAuthorization: evil\r\nHost: b.test\r\nProxy-Authorization: x\r\nCookie: a=b\r\nX-Sum: 1\r\n\r\n"))
	if err != nil || len(rec.all) != 1 || rec.all[0].Failed {
		t.Fatalf("%+v, %v", rec.all, err)
	}
	tr := rec.all[0].Trailer
	if len(tr) != 1 || tr.Get("X-Sum") != "1" || rec.all[0].Header.Get("Authorization") != "" {
		t.Fatalf("trailers %v, header %v", tr, rec.all[0].Header)
	}
}
