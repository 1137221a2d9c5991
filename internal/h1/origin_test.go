package h1

import (
	"strings"
	"testing"
)

type badAnswer struct{ name, answer, reason string }

// badAnswers are what an origin may send that net/http's Transport accepts or not,
// and that must not be passed on.
func badAnswers() []badAnswer {
	const ok = "HTTP/1.1 200 OK\r\n"
	return []badAnswer{
		{"C20 obs-fold", ok + "X-A: b\r\n c\r\nContent-Length: 0\r\n\r\n", "obs_fold"},
		{"C20 bare LF", "HTTP/1.1 200 OK\nContent-Length: 0\n\n", "bare_lf"},
		{"C20 blank before the colon", ok + "Content-Length : 3\r\n\r\nabc", "blank_in_field_name"},
		{"C20 CR in a value", ok + "X-A: b\rSet-Cookie: c\r\nContent-Length: 0\r\n\r\n", "bad_field_value"},
		{"C20 NUL in a value", ok + "X-A: \x00\r\nContent-Length: 0\r\n\r\n", "bad_field_value"},
		{"C20 CR in the reason", "HTTP/1.1 200 O\rK\r\nContent-Length: 0\r\n\r\n", "bad_status_line"},
		{"C20 status 99", "HTTP/1.1 099 X\r\n\r\n", "bad_status"},
		{"C20 status 1000", "HTTP/1.1 1000 X\r\n\r\n", "bad_status_line"},
		{"C20 signed status", "HTTP/1.1 +20 X\r\n\r\n", "bad_status"},
		{"C20 no blank behind the status", "HTTP/1.1 200OK\r\n\r\n", "bad_status_line"},
		{"C20 HTTP 2.0", "HTTP/2.0 200 OK\r\n\r\n", "bad_status_line"},
		{"C20 ICY", "ICY 200 OK\r\n\r\n", "bad_status_line"},
		{"C20 header of 64 KiB", ok + "X-A: " + strings.Repeat("a", 64<<10) + "\r\n\r\n", "line_too_long"},
		{"C20 1,000 Set-Cookie", ok + strings.Repeat("Set-Cookie: a=b\r\n", 1000) + "\r\n", "too_many_headers"},
		{"C01 length and TE", ok + "Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", "te_and_cl"},
		{"C03 equal lengths twice", ok + "Content-Length: 3\r\nContent-Length: 3\r\n\r\nabc", "repeated_cl"},
		{"C03 different lengths", ok + "Content-Length: 3\r\nContent-Length: 4\r\n\r\nabc", "repeated_cl"},
		{"C03 list of lengths", ok + "Content-Length: 3, 3\r\n\r\nabc", "bad_content_length"},
		{"C03 signed length", ok + "Content-Length: +3\r\n\r\nabc", "bad_content_length"},
		{"C03 unknown TE", ok + "Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", "unknown_te"},
		{"C03 TE on 1.0", "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", "te_on_http_1_0"},
		{"C16 101 that nobody asked for", "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n", "unrequested_101"},
		{"C16 2,000 x 103", strings.Repeat("HTTP/1.1 103 Early Hints\r\n\r\n", 2000) + ok + "Content-Length: 0\r\n\r\n", "too_many_1xx"},
		{"C16 100 for ever", strings.Repeat("HTTP/1.1 100 Continue\r\n\r\n", 2000), "too_many_1xx"},
		{"C16 1xx with a body", "HTTP/1.1 103 Early Hints\r\nContent-Length: 3\r\n\r\nabc" + ok + "Content-Length: 0\r\n\r\n", "framed_1xx"},
		{"C06 chunk without CRLF", ok + "Transfer-Encoding: chunked\r\n\r\n3\r\nabcXX", "chunk_without_crlf"},
		{"C06 bare LF in a chunk size", ok + "Transfer-Encoding: chunked\r\n\r\n3\nabc\r\n0\r\n\r\n", "bare_lf"},
		{"C07 length in the trailers", ok + "Transfer-Encoding: chunked\r\n\r\n0\r\nContent-Length: 3\r\n\r\n", "framing_in_trailers"},
	}
}

func TestAttack_refused_answers(t *testing.T) {
	for _, b := range badAnswers() {
		t.Run(b.name, func(t *testing.T) {
			c := newClient(t, answering(t, b.answer, false))
			_, _, err := c.get("GET")
			if got := reasonOf(err); got != b.reason {
				t.Fatalf("got %v, want %s", err, b.reason)
			}
			if Retryable(err) || c.done > 1 || c.reusable {
				t.Fatalf("retryable %v, done %d, reusable %v", Retryable(err), c.done, c.reusable)
			}
			if _, _, err := c.get("GET"); err == nil {
				t.Fatal("the connection was used again")
			}
		})
	}
}
