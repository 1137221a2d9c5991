package proxy_test

import (
	"net/http"
	"testing"
	"time"

	"golang.org/x/net/http2"

	"github.com/egressd/egressd/internal/audit"
)

// A malformed head ends its stream with PROTOCOL_ERROR and leaves the others alone.
func TestAttack_C09_connection_fields_end_their_stream(t *testing.T) {
	g := attacked(t, options{})
	for _, f := range [][2]string{{"connection", "close"}, {"keep-alive", "x"}, {"proxy-connection", "x"}, {"upgrade", "h2c"}, {"te", "gzip"}, {"te", "trailers, deflate"}, {"transfer-encoding", "chunked"}} {
		t.Run("C09 "+f[0]+" "+f[1], func(t *testing.T) {
			g.forget()
			c := newH2(t, g, g.good(t, "h2"))
			id, err := c.open(true, pseudo("GET", g.goodHost(), "/x", f[0], f[1])...) // with a body to come, 400 may be first and reset it
			if err != nil {
				t.Fatal(err)
			}
			for reset := false; !reset; {
				fr, err := c.fr.ReadFrame()
				if err != nil {
					t.Fatal(err)
				}
				if rst, ok := fr.(*http2.RSTStreamFrame); ok {
					if reset = true; rst.StreamID != id || rst.ErrCode != http2.ErrCodeProtocol {
						t.Fatalf("%v", rst)
					}
				}
			}
			if a := c.request("GET", g.goodHost(), "/bearer"); a.err != nil || a.status != http.StatusOK {
				t.Errorf("the next stream: %+v", a)
			}
			g.records.wait(t, func(a audit.Record) bool { return a.Code == "bad_request" && a.Outcome == "denied" && a.Status == 400 })
		})
	}
	g.safe(t)
}

// What negotiates h2 and then speaks something else is not served as HTTP/1, nor answered.
func TestAttack_C09_another_protocol_on_h2(t *testing.T) {
	g := attacked(t, options{})
	for name, text := range map[string]string{
		"HTTP/1.1":        "GET / HTTP/1.1\r\nHost: good.test\r\n\r\n",
		"half a preface":  "PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n",
		"a little":        "GE",
		"another version": "PRI * HTTP/1.1\r\n\r\nSM\r\n\r\n",
	} {
		t.Run("C09 "+name, func(t *testing.T) {
			g.untouched(t, func() {
				if got, closed := g.talk(g.good(t, "h2"), text, 2*time.Second); len(got) > 0 || !closed {
					t.Errorf("%q, closed=%v", got, closed)
				}
			})
		})
	}
	g.safe(t)
}
