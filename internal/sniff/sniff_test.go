package sniff

import (
	"strings"
	"testing"
)

func TestDetect(t *testing.T) {
	for _, tc := range []struct {
		name, in string
		want     Protocol
		decided  bool
	}{
		{"nothing yet", "", Unknown, false},
		{"get", "GET / HTTP/1.1\r\n", HTTP, true},
		{"method alone", "GET", Unknown, false},
		{"method and space", "GET ", HTTP, true},
		{"connect", "CONNECT good.test:443 HTTP/1.1\r\n", HTTP, true},
		{"trace", "TRACE / HTTP/1.1\r\n", HTTP, true},
		{"made-up method", "BREW /pot HTTP/1.1\r\n", HTTP, true},
		{"made-up method, absolute form", "BREW http://good.test/ HTTP/1.1\r\n", HTTP, true},
		{"made-up method, cut in the scheme", "BREW ht", Unknown, false},
		{"made-up method, options form", "BREW * HTTP/1.1\r\n", HTTP, true},
		{"a word of another protocol", "EHLO mail.test\r\n", Unknown, true},
		{"B32 lower-case method", "get / HTTP/1.1\r\n", HTTP, true},
		{"B32 method that is no token", "G(T / HTTP/1.1\r\n", Unknown, true},
		{"tab for space", "GET\t/ HTTP/1.1\r\n", HTTP, true},
		{"C05 empty lines first", "\r\n\r\nGET / HTTP/1.1\r\n", HTTP, true},
		{"only empty lines", "\r\n", Unknown, false},
		{"too many empty lines", strings.Repeat("\n", 9) + "GET / ", Unknown, true},
		{"method too long", strings.Repeat("A", 33) + " /", Unknown, true},
		{"method that never ends", strings.Repeat("A", 33), Unknown, true},
		{"blanks that never end", "BREW" + strings.Repeat(" ", 60), Unknown, true},
		{"A10 h2 preface", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", HTTP2Preface, true},
		{"h2 preface cut", "PRI * HTTP/2", Unknown, false},
		{"PRI of HTTP/1.1", "PRI * HTTP/1.1\r\n", HTTP, true},
		{"a method that begins like PRI", "PROPFIND / HTTP/1.1", HTTP, true},
		{"A10 ssh", "SSH-2.0-x\r\n", SSH, true},
		{"ssh cut", "SSH", Unknown, false},
		{"a method that begins like SSH", "SEARCH / HTTP/1.1", HTTP, true},
		{"A10 socks5", "\x05\x01\x00", SOCKS5, true},
		{"socks4", "\x04\x01\x00\x50\x7f\x00\x00\x01\x00", Unknown, true},
		{"tls", "\x16\x03\x01\x02\x00\x01", TLS, true},
		{"tls, one byte", "\x16", Unknown, false},
		{"B20 handshake type, other version", "\x16\x02\x00\x10\x10", Unknown, true},
		{"B20 SSLv2 hello", "\x80\x2e\x01\x03\x01", Unknown, true},
		{"B20 alert first", "\x15\x03\x01\x00\x02\x02\x28", Unknown, true},
		{"A10 application data first", "\x17\x03\x03\x00\x10", Unknown, true},
		{"zeros", "\x00\x00\x00\x00", Unknown, true},
		{"utf-8", "éa", Unknown, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, decided := Detect([]byte(tc.in))
			if got != tc.want || decided != tc.decided {
				t.Errorf("Detect(%q) = %v, %v; want %v, %v", tc.in, got, decided, tc.want, tc.decided)
			}
		})
	}
}

func TestProtocolString(t *testing.T) {
	if got := SOCKS5.String(); got != "socks5" {
		t.Errorf("SOCKS5 = %q", got)
	}
	if got := Protocol(200).String(); got != "unknown" {
		t.Errorf("Protocol(200) = %q", got)
	}
}

// FuzzDetect holds what callers rely on: an answer that was decided does not change when
// more bytes come, and MaxPrefix bytes are always enough.
func FuzzDetect(f *testing.F) {
	for _, s := range []string{"GET / HTTP/1.1\r\n", "PRI * HTTP/2.0\r\n\r\n", "SSH-2.0-x", "\x16\x03\x01", "\x05\x01\x00", "\r\nBREW http://x",
		mqttConnect, "*1\r\n$4\r\nPING\r\n", "HELLO 3\r\n", sslRequest, startup, "AMQP\x00\x00\x09\x01", dnsQuery, mongoHello, "\x80\x2e\x01\x00\x02"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		final, decided := Detect(b)
		if !decided && len(b) >= MaxPrefix {
			t.Fatalf("undecided after %d bytes", len(b))
		}
		for i := range b {
			p, ok := Detect(b[:i])
			if ok && (p != final || !decided) {
				t.Fatalf("decided %v after %d bytes, then %v, %v", p, i, final, decided)
			}
			if first, _ := detectFirst(b[:max(i, 1)]); first != Unknown && ok && p != first {
				t.Fatalf("%v became %v", first, p)
			}
			if !ok && p != Unknown {
				t.Fatalf("undecided, but %v", p)
			}
		}
	})
}
